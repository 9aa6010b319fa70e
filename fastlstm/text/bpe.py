"""Byte-pair tokens, learnt and applied by the package ``tokenizers``, which is imported only when they are used.

Knows nothing of files, batches or models.
"""

from __future__ import annotations

import codecs
import contextlib
import importlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..files import schema
from .tokens import Decoder, UnknownCharacterError, as_pieces, check_id, check_ids, name_characters

_ENCODE_CHUNK = 1 << 20  # characters encoded at once: the package's working memory is many times the text

# What the package may be told: parts that cut, pad or rewrite a text would break what this class promises, and some of them
# take memory, time or the process.
_FLAGS = {"add_prefix_space": schema.flag, "trim_offsets": schema.flag, "use_regex": schema.flag}
_BYTE_LEVEL = schema.tagged({"ByteLevel": _FLAGS}, maybe=("use_regex",))


def _no(place: str, value: Any) -> None:
    """False or null, of what would change a text."""
    if value is not None and value is not False:
        schema.refuse(place, value, "null or false, as decoding must give every text back exactly")


# Nor a Split: its pattern is a regular expression of the file's own, which may take for ever.
_CUT = schema.tagged(
    {
        "Digits": {"individual_digits": schema.flag},
        "ByteLevel": {**_FLAGS, "add_prefix_space": _no},
    },
    maybe=("use_regex",),
)
_SEQUENCE = schema.table({"type": schema.anything, "pretokenizers": schema.listed(_CUT)})


def _pre_tokenizer(place: str, value: Any) -> None:
    """What cuts a text into words: ByteLevel, and before it perhaps Digits."""
    schema.mapping(place, value)
    (_SEQUENCE if value.get("type") == "Sequence" else _CUT)(place, value)
    kinds = [cut["type"] for cut in _cuts(value)]
    if kinds[-1:] != ["ByteLevel"] or "ByteLevel" in kinds[:-1]:
        schema.refuse(place, value, "ByteLevel, or a Sequence of Digits with ByteLevel at its end")


def _cuts(pre_tokenizer: dict[str, Any]) -> list[dict[str, Any]]:
    cuts: list[dict[str, Any]] = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    return cuts


def _added(place: str, value: Any) -> None:
    """A token that is found as a whole, without what stands around it."""
    schema.mapping(place, value)
    for key in ("lstrip", "rstrip"):
        _no(f"{place}.{key}", value.get(key))


_EMPTY = schema.optional(schema.choice(""))
_FIELDS = {
    "version": schema.text,
    "truncation": schema.nothing,
    "padding": schema.nothing,
    "added_tokens": schema.listed(_added),
    "normalizer": _no,
    "pre_tokenizer": _pre_tokenizer,
    "post_processor": schema.optional(_BYTE_LEVEL),
    "decoder": schema.optional(_BYTE_LEVEL),
    "model": schema.table(
        {
            "type": schema.choice("BPE"),
            "dropout": schema.nothing,
            "unk_token": schema.optional(schema.text),
            "continuing_subword_prefix": _EMPTY,
            "end_of_word_suffix": _EMPTY,
            "fuse_unk": schema.flag,
            "byte_fallback": schema.flag,
            "ignore_merges": schema.flag,
            "vocab": schema.mapping,
            "merges": schema.listed(schema.anything),
        },
        "type",
        "byte_fallback",
        "ignore_merges",
        "unk_token",
    ),
}
_JSON = schema.table(_FIELDS, "post_processor", "decoder")


class BPETokenizer:
    """Byte-pair encoding over UTF-8 bytes: knows every text, and decoding gives it back exactly.

    Needs the package ``tokenizers`` (``pip install fastlstm[bpe]``).

    Parameters
    ----------
    json : str
        A byte-level BPE tokenizer as the package ``tokenizers`` serialises it (``Tokenizer.to_str()``). It changes no text
        (no normalizer, no prefix space) and cuts words by ``ByteLevel``, or by ``Digits`` and then ``ByteLevel``.

    Raises
    ------
    ImportError
        If the package ``tokenizers`` is not installed.
    ValueError
        If `json` is not such a tokenizer.

    Examples
    --------
    >>> tokenizer = BPETokenizer.from_text("to be or not to be, to be", vocab_size=259)
    >>> tokenizer.vocab_size, len(tokenizer.encode("to be"))
    (259, 2)
    >>> tokenizer.decode(tokenizer.encode("naïve ☃"))
    'naïve ☃'
    """

    def __init__(self, json: str) -> None:
        package = _import_tokenizers()
        with schema.within("json: not a tokenizer of byte-level BPE"):
            schema.text("it", json)
            found = schema.parse(json)
            _JSON("it", found)
        # Without its pattern words hold spaces as well, so a text may not be cut before them.
        self._whole = not _cuts(found["pre_tokenizer"])[-1].get("use_regex", True)
        with _told("json: not a tokenizer that the package 'tokenizers' can read"):
            self._tokenizer = package.Tokenizer.from_str(json)
        size = self._tokenizer.get_vocab_size()
        to_byte = _byte_of_symbol()
        try:
            self._bytes = [bytes(to_byte[symbol] for symbol in self._tokenizer.id_to_token(i)) for i in range(size)]
        except (KeyError, TypeError) as error:
            raise ValueError(f"json: expected a byte-level BPE tokenizer; token {error} is not made of bytes") from None

    @classmethod
    def from_text(cls, text: str | Iterable[str], vocab_size: int = 2048) -> BPETokenizer:
        """Tokenizer with merges learnt from `text` (or from several pieces).

        Parameters
        ----------
        text : str or iterable of str
            The training text and nothing else: merges are statistics, and would carry those of a validation text.
        vocab_size : int
            Tokens at most, 256 of them the single bytes; fewer where the text has no more pairs that occur twice.
            The default gives about 2.6 characters per token on a megabyte of Shakespeare.
        """
        if vocab_size < 256:
            raise ValueError(f"vocab_size: expected at least 256, the number of bytes, got {vocab_size}")
        package = _import_tokenizers()
        byte_level = package.pre_tokenizers.ByteLevel
        tokenizer = package.Tokenizer(package.models.BPE())
        tokenizer.pre_tokenizer = byte_level(add_prefix_space=False)
        tokenizer.decoder = package.decoders.ByteLevel()
        trainer = package.trainers.BpeTrainer(
            vocab_size=vocab_size, min_frequency=2, show_progress=False, initial_alphabet=sorted(byte_level.alphabet())
        )
        chunks = (chunk for piece in as_pieces(text) for chunk in _word_chunks(piece))
        tokenizer.train_from_iterator(chunks, trainer)
        return cls(tokenizer.to_str())

    @property
    def vocab_size(self) -> int:
        """Number of tokens known."""
        return len(self._bytes)

    @property
    def config(self) -> dict[str, Any]:
        """``{"type": "BPETokenizer", "json": str}``."""
        return {"type": "BPETokenizer", "json": self._tokenizer.to_str()}

    def encode(self, text: str) -> NDArray[np.int32]:
        """Ids of `text`, int32 [number of tokens].

        Raises
        ------
        UnknownCharacterError
            If `text` holds surrogates, which are half characters and have no bytes in UTF-8.
        """
        try:
            text.encode()
        except UnicodeEncodeError:
            halves = {symbol for symbol in text if "\ud800" <= symbol <= "\udfff"}
            raise UnknownCharacterError(
                f"text: {name_characters(sorted(halves))} are surrogates, not whole characters"
            ) from None
        with _told("text: the package 'tokenizers' failed on it"):
            chunks = [text] if self._whole else _word_chunks(text)
            ids = [np.array(self._tokenizer.encode(chunk).ids, np.int32) for chunk in chunks]
        return np.concatenate(ids) if ids else np.empty(0, np.int32)

    def decode(self, ids: ArrayLike) -> str:
        """Text of `ids` (any integers in ``0 ... vocab_size - 1``, 1-d); bytes that are not UTF-8 become U+FFFD."""
        pieces = self._bytes
        return b"".join([pieces[i] for i in check_ids(ids, self.vocab_size).tolist()]).decode(errors="replace")

    def decode_stream(self) -> Decoder:
        """Return a decoder that holds back the bytes of a character until it has all of them."""
        return _ByteDecoder(self._bytes)


class _ByteDecoder:
    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        return self._utf8.decode(self._pieces[check_id(token_id, len(self._pieces))])

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Raise whatever the package raises as a ValueError; its panics are no `Exception`, and it has no narrower types."""
    try:
        yield
    except MemoryError:  # of the machine, not of what the package was given
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"{what}: {error}") from error


def _import_tokenizers() -> Any:
    try:
        return importlib.import_module("tokenizers")
    except ImportError as error:
        raise ImportError(
            "BPE tokens need the package 'tokenizers', which is not installed: pip install fastlstm[bpe]"
        ) from error


def _word_chunks(text: str, size: int = _ENCODE_CHUNK) -> Iterator[str]:
    """Cut `text` where byte-level BPE cuts it anyway, between a word and the space after it."""
    border = re.compile(r"(?<=\S)[ \n]")
    start = 0
    while start < len(text):
        match = border.search(text, start + size)
        stop = match.start() if match else len(text)
        yield text[start:stop]
        start = stop


def _byte_of_symbol() -> dict[str, int]:
    """Map each character of byte-level BPE to its byte.

    Bytes that Latin-1 prints stand for themselves, the others, in order, for the code points from 256 on.
    """
    printed = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {chr(256 + n): byte for n, byte in enumerate(others)}
