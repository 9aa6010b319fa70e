"""Texts for language models: how they are split, and the streams of tokens made of them.

The one place to import from for all about text: corpora and tokenizers are found here too. Knows nothing of models, the
trainer or the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastlstm.data import TokenStream, TooShortError

from ..files import schema
from ..files.folders import user_cache_folder
from ..runtime import check
from .bpe import BPETokenizer
from .corpora import CORPORA, ChecksumError, DownloadError, TextError, load_corpus
from .tokens import CharTokenizer, Decoder, Tokenizer, UnknownCharacterError, WordTokenizer

__all__ = [
    "CORPORA",
    "SPLITS",
    "TOKENIZERS",
    "BPETokenizer",
    "CharTokenizer",
    "ChecksumError",
    "Decoder",
    "DownloadError",
    "Prepared",
    "TextError",
    "Tokenizer",
    "UnknownCharacterError",
    "WordTokenizer",
    "load_corpus",
    "prepare",
    "split_ids",
    "token_stream",
    "tokenizer_from_config",
    "user_cache_folder",
]

TOKENIZERS = ("char", "word", "bpe")
"""Kinds of tokens that `prepare` knows by name."""

SPLITS = ("tail", "rows")
"""Ways to set a part aside for validation: "tail", the last 10 %; "rows", the last 5 % of every batch row."""

_TAIL_FRACTION = 0.1
_ROWS_FRACTION = 0.05


_FROM_CONFIG: dict[str, tuple[Callable[[Any], Tokenizer], str, schema.Check]] = {
    "CharTokenizer": (CharTokenizer, "symbols", schema.text),
    "WordTokenizer": (WordTokenizer, "words", schema.listed(schema.text)),
    "BPETokenizer": (BPETokenizer, "json", schema.text),
}
_CONFIG = schema.tagged({name: {entry: check} for name, (_, entry, check) in _FROM_CONFIG.items()})


def tokenizer_from_config(config: Mapping[str, Any]) -> Tokenizer:
    """Tokenizer that `config`, another tokenizer's ``config``, describes.

    Raises
    ------
    ValueError
        If `config` names no known type, or its entries are not those of that type.
    ImportError
        If it is a BPE tokenizer and the package ``tokenizers`` is not installed.

    Examples
    --------
    >>> tokenizer_from_config({"type": "CharTokenizer", "symbols": "abc"}).encode("cab")
    array([2, 0, 1], dtype=int32)
    """
    _CONFIG("config", config)
    make, entry, _ = _FROM_CONFIG[config["type"]]
    return make(config[entry])


def split_ids(ids: ArrayLike, split: str = "tail", batch_size: int = 64) -> tuple[NDArray[Any], NDArray[Any]]:
    """Split tokens into a training and a validation part.

    Parameters
    ----------
    ids : array_like, [N]
        The tokens.
    split : {"tail", "rows"}
        "tail": the last 10 % are for validation. "rows": the tokens are cut into `batch_size` contiguous rows, of each
        of which the last 5 % are for validation; the ``N % batch_size`` tokens that remain are in neither part.
    batch_size : int
        Rows of "rows". A `TokenStream` of this batch size reads each part in these very rows.

    Returns
    -------
    train, valid : ndarray, 1-d

    Raises
    ------
    ValueError
        If `ids` is not 1-d, or `split` or `batch_size` is not as said.

    Examples
    --------
    >>> train, valid = split_ids(range(40), "rows", batch_size=2)
    >>> valid
    array([19, 39])
    """
    tokens = check.given("ids", ids)
    if tokens.ndim != 1:
        raise ValueError(f"ids: expected a 1-d array, got shape {tokens.shape}")
    train, valid = _cuts(tokens.size, split, batch_size)
    return np.concatenate([tokens[cut] for cut in train]), np.concatenate([tokens[cut] for cut in valid])


def _cuts(length: int, split: str, batch_size: int) -> tuple[list[slice], list[slice]]:
    """Slices of a sequence that are for training and those that are for validation."""
    if split == "tail":
        border = int(length * (1 - _TAIL_FRACTION))
        return [slice(0, border)], [slice(border, length)]
    if split != "rows":
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    row = length // batch_size
    kept = int(row * (1 - _ROWS_FRACTION))
    starts = range(0, batch_size * row, row) if row else [0]
    return [slice(at, at + kept) for at in starts], [slice(at + kept, at + row) for at in starts]


class Prepared(NamedTuple):
    """A text made ready for training, by `prepare`."""

    tokenizer: Tokenizer
    train: TokenStream
    valid: TokenStream


def prepare(
    text: str,
    tokenizer: str | Tokenizer = "char",
    split: str = "tail",
    batch_size: int = 64,
    seq_len: int = 100,
    *,
    vocab_size: int = 2048,
    min_count: int = 2,
) -> Prepared:
    """Make a tokenizer and the streams for training and validation from a text.

    The text is split by characters, then each part is encoded, so every kind of token is validated on the same text.
    Words and byte pairs are learnt from the training part alone. The characters of "char" are those of the whole text:
    a list of symbols carries no statistics, and a symbol that only the validation part has must have an id.

    Parameters
    ----------
    text : str
        The whole text.
    tokenizer : {"char", "word", "bpe"} or Tokenizer
        Kind of tokens, or a tokenizer that there is already.
    split : {"tail", "rows"}
        What is set aside for validation, see `split_ids`. With "rows", rows of words or byte pairs are of equal numbers
        of tokens, so their borders are near those of the rows of characters, not on them.
    batch_size, seq_len : int
        As of `TokenStream`. The validation stream keeps its remainder, so it may have a last, shorter batch.
    vocab_size : int
        Of "bpe": tokens at most.
    min_count : int
        Of "word": a word seen more rarely in the training part is ``<unk>``.

    Returns
    -------
    tokenizer, train, valid : Prepared
        A named tuple.

    Raises
    ------
    TextError
        If the text is too short (a ValueError); the message says for what, and which sizes would fit.
    UnknownCharacterError
        If a given tokenizer does not know a character of the text (a ValueError).
    ImportError
        If "bpe" is asked for and the package ``tokenizers`` is not installed.
    ValueError
        If an argument is out of its range.

    Examples
    --------
    >>> tokenizer, train, valid = prepare("to be or not to be " * 50, batch_size=4, seq_len=10)
    >>> tokenizer.vocab_size, len(train), train.num_tokens, valid.num_tokens
    (7, 21, 840, 88)
    """
    train_cuts, valid_cuts = _cuts(len(text), split, batch_size)
    train = [text[cut] for cut in train_cuts]
    if isinstance(tokenizer, str):
        tokenizer = _learn(tokenizer, text, train, vocab_size, min_count)
    return Prepared(
        tokenizer,
        _stream(tokenizer, train, batch_size, seq_len, False, "training part of the text"),
        _stream(tokenizer, [text[cut] for cut in valid_cuts], batch_size, seq_len, True, "validation part of the text"),
    )


def _learn(kind: str, text: str, train: list[str], vocab_size: int, min_count: int) -> Tokenizer:
    if kind not in TOKENIZERS:
        raise ValueError(f"tokenizer: expected one of {', '.join(TOKENIZERS)}, got {kind!r}")
    if not text:
        raise TextError("text: expected at least one character, got none")
    if kind == "char":
        return CharTokenizer.from_text(text)
    return WordTokenizer.from_text(train, min_count) if kind == "word" else BPETokenizer.from_text(train, vocab_size)


def token_stream(
    tokenizer: Tokenizer, text: str, batch_size: int = 64, seq_len: int = 100, *, keep_remainder: bool = True
) -> TokenStream:
    """Stream of a whole text's tokens, as for evaluation; arguments and errors are those of `prepare`.

    Examples
    --------
    >>> stream = token_stream(CharTokenizer("abc"), "abcabcabc", batch_size=2, seq_len=2)
    >>> len(stream), stream.num_tokens, stream.characters_per_token
    (2, 6, 1.0)
    """
    return _stream(tokenizer, [text], batch_size, seq_len, keep_remainder, "text")


def _stream(
    tokenizer: Tokenizer, pieces: list[str], batch_size: int, seq_len: int, keep_remainder: bool, what: str
) -> TokenStream:
    ids = np.concatenate([tokenizer.encode(piece) for piece in pieces])
    # Of words there is none: what <unk> stands for is not predicted, so bits per character would not be comparable.
    per_token = None if isinstance(tokenizer, WordTokenizer) or not ids.size else sum(map(len, pieces)) / ids.size
    try:
        return TokenStream(ids, batch_size, seq_len, keep_remainder=keep_remainder, characters_per_token=per_token)
    except TooShortError as error:
        raise TextError(f"{what}: {error}") from None
