"""Tokenizers by characters and by words: text to integer ids and back. Byte pairs are in ``bpe``.

Knows nothing of files, batches or models.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..runtime import check
from ..runtime.arrays import as_numpy

UNKNOWN_WORD = "<unk>"
"""What a word tokenizer's id 0 is written as: any word outside its vocabulary."""

_WORD = re.compile(r"(?:[^\W\d_]|['’])+|[^ ]")
_NO_SPACE_BEFORE = frozenset(".,;:!?)]}%…”»")
_NO_SPACE_AFTER = frozenset("([{«“‘$#@")
_NO_SPACE_AROUND = frozenset("\n\r\t-–—/\\_")


class UnknownCharacterError(ValueError):
    """A text holds characters that the tokenizer has no id for."""


class Decoder(Protocol):
    """Turns ids into text one by one, as they are generated."""

    def push(self, token_id: int) -> str:
        """Take the next id and return the text that is certain by now (may be empty)."""
        ...

    def flush(self) -> str:
        """Return what is still held back at the end of the ids."""
        ...


class Tokenizer(Protocol):
    """What every tokenizer offers; `fastlstm.text.tokenizer_from_config` makes one from its `config`."""

    @property
    def vocab_size(self) -> int:
        """Number of distinct ids; they are ``0 ... vocab_size - 1``."""
        ...

    @property
    def config(self) -> dict[str, Any]:
        """All that the tokenizer is, as values that JSON can hold, with its class under ``"type"``."""
        ...

    def encode(self, text: str) -> NDArray[np.int32]:
        """Ids of `text`, int32 [N]."""
        ...

    def decode(self, ids: ArrayLike) -> str:
        """Text of `ids`, integers [N] in ``0 ... vocab_size - 1``.

        Raises
        ------
        TypeError
            For None and other things of which no array can be made.
        ValueError
            For other arrays, and for ids out of range.
        """
        ...

    def decode_stream(self) -> Decoder:
        """Return a fresh decoder for ids that come one by one."""
        ...


class CharTokenizer:
    """One token per character (Unicode code point); decoding gives exactly the text that was encoded.

    Parameters
    ----------
    symbols : str
        The characters known, each once; a character's id is its place in `symbols`.

    Raises
    ------
    ValueError
        If `symbols` is empty or holds a character twice.

    Examples
    --------
    >>> tokenizer = CharTokenizer.from_text("to be or not")
    >>> tokenizer.config["symbols"]
    ' benort'
    >>> tokenizer.encode("not be")
    array([3, 4, 6, 0, 1, 2], dtype=int32)
    >>> tokenizer.decode([3, 4, 6, 0, 1, 2])
    'not be'
    """

    def __init__(self, symbols: str) -> None:
        if not isinstance(symbols, str) or not symbols:
            raise ValueError(f"symbols: expected a string of at least one character, got {symbols!r}")
        twice = [symbol for symbol, count in Counter(symbols).items() if count > 1]
        if twice:
            raise ValueError(f"symbols: each character may occur once; more often: {name_characters(twice)}")
        self._symbols = symbols
        self._codes = _code_points(symbols)
        self._ids = np.full(int(self._codes.max()) + 2, -1, np.int32)  # the last entry serves all higher code points
        self._ids[self._codes] = np.arange(len(symbols), dtype=np.int32)

    @classmethod
    def from_text(cls, text: str | Iterable[str]) -> CharTokenizer:
        """Tokenizer of the characters that occur in `text` (or in any of several pieces), by code point."""
        return cls("".join(sorted(set("".join(as_pieces(text))))))

    @property
    def vocab_size(self) -> int:
        """Number of characters known."""
        return len(self._symbols)

    @property
    def config(self) -> dict[str, Any]:
        """``{"type": "CharTokenizer", "symbols": str}``."""
        return {"type": "CharTokenizer", "symbols": self._symbols}

    def encode(self, text: str) -> NDArray[np.int32]:
        """Ids of `text`, int32 [number of characters].

        Raises
        ------
        UnknownCharacterError
            If a character of `text` is not among the symbols; the message names up to ten such.
        """
        codes = _code_points(text)
        ids: NDArray[np.int32] = self._ids[np.minimum(codes, len(self._ids) - 1)]
        if ids.size and ids.min() < 0:
            strange = [chr(code) for code in np.unique(codes[ids < 0])]
            place = int(np.argmax(ids < 0))
            raise UnknownCharacterError(
                f"text: the tokenizer does not know {name_characters(strange)} (first at position {place}); "
                f"it knows the {self.vocab_size} characters {_shorten(self._symbols)}"
            )
        return ids

    def decode(self, ids: ArrayLike) -> str:
        """Text of `ids` (any integers in ``0 ... vocab_size - 1``, 1-d)."""
        codes: NDArray[np.uint32] = self._codes[check_ids(ids, self.vocab_size)]
        return codes.astype("<u4", copy=False).tobytes().decode("utf-32-le", "surrogatepass")

    def decode_stream(self) -> Decoder:
        """Return a decoder that gives each id's character at once."""
        return _CharDecoder(self._symbols)


class _CharDecoder:
    def __init__(self, symbols: str) -> None:
        self._symbols = symbols

    def push(self, token_id: int) -> str:
        return self._symbols[check_id(token_id, len(self._symbols))]

    def flush(self) -> str:
        return ""


class WordTokenizer:
    """Words: a run of letters and apostrophes is a token, so is any other single character; spaces are dropped.

    Line ends are "other characters" and are kept. Words outside the vocabulary become ``<unk>``, id 0, so every text
    can be encoded, but decoding does not give it back exactly: spaces are put where English has them.

    Parameters
    ----------
    words : sequence of str
        The vocabulary by id, each once; the first is ``"<unk>"``.

    Raises
    ------
    ValueError
        If `words` does not begin with ``"<unk>"``, holds nothing else, or holds a word twice.

    Examples
    --------
    >>> tokenizer = WordTokenizer.from_text("To be, or not to be: that's it, or not?", min_count=2)
    >>> tokenizer.config["words"]
    ['<unk>', ',', 'be', 'not', 'or']
    >>> tokenizer.encode("be or not to be")
    array([2, 4, 3, 0, 2], dtype=int32)
    >>> tokenizer.decode(tokenizer.encode("not be, or else"))
    'not be, or <unk>'
    """

    def __init__(self, words: Sequence[str]) -> None:
        if isinstance(words, str) or len(words) < 2 or words[0] != UNKNOWN_WORD:
            raise ValueError(
                f"words: expected a list of {UNKNOWN_WORD!r} and at least one word, got {_shorten(words)}; "
                "a text in which no word occurs often enough has none"
            )
        self._words = list(words)
        self._ids = {word: i for i, word in enumerate(self._words)}
        if len(self._ids) != len(self._words):
            twice = [word for word, count in Counter(self._words).items() if count > 1]
            raise ValueError(f"words: each word may occur once; more often: {_shorten(twice)}")

    @classmethod
    def from_text(cls, text: str | Iterable[str], min_count: int = 2) -> WordTokenizer:
        """Tokenizer of the words that occur at least `min_count` times in `text` (or in several pieces together).

        The default leaves out what is seen once. Frequent words come first, equally frequent ones alphabetically.
        """
        if min_count < 1:
            raise ValueError(f"min_count: expected at least 1, got {min_count}")
        counts: Counter[str] = Counter()
        for piece in as_pieces(text):
            counts.update(_WORD.findall(piece))
        kept = sorted((-count, word) for word, count in counts.items() if count >= min_count)
        return cls([UNKNOWN_WORD, *(word for _, word in kept)])

    @property
    def vocab_size(self) -> int:
        """Number of words known, ``<unk>`` included."""
        return len(self._words)

    @property
    def config(self) -> dict[str, Any]:
        """``{"type": "WordTokenizer", "words": list of str}``."""
        return {"type": "WordTokenizer", "words": list(self._words)}

    def encode(self, text: str) -> NDArray[np.int32]:
        """Ids of the words of `text`, int32 [number of words]; 0 for words that are not known."""
        ids = self._ids
        return np.array([ids.get(word, 0) for word in _WORD.findall(text)], np.int32)

    def decode(self, ids: ArrayLike) -> str:
        """Text of `ids` (any integers in ``0 ... vocab_size - 1``, 1-d), with spaces where English has them."""
        decoder = self.decode_stream()
        return "".join([decoder.push(token_id) for token_id in check_ids(ids, self.vocab_size).tolist()])

    def decode_stream(self) -> Decoder:
        """Return a decoder that gives each word at once, with the space before it where one belongs."""
        return _WordDecoder(self._words)


class _WordDecoder:
    def __init__(self, words: list[str]) -> None:
        self._words = words
        self._last = "\n"
        self._in_quotes = False

    def push(self, token_id: int) -> str:
        word, last = self._words[check_id(token_id, len(self._words))], self._last
        closes = word == '"' and self._in_quotes
        glued = (
            closes
            or word in _NO_SPACE_BEFORE
            or word in _NO_SPACE_AROUND
            or last in _NO_SPACE_AFTER
            or last in _NO_SPACE_AROUND
            or (last == '"' and self._in_quotes)  # just opened
            or (word.isdecimal() and last.isdecimal())
        )
        if word == '"':
            self._in_quotes = not closes
        elif word == "\n":
            self._in_quotes = False  # a quote that was never closed ends with its line
        self._last = word
        return word if glued else " " + word

    def flush(self) -> str:
        return ""


def as_pieces(text: str | Iterable[str]) -> Iterable[str]:
    """Treat a single text as the only one of several pieces."""
    return [text] if isinstance(text, str) else text


def _code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint32, copy=False)


def check_ids(ids: ArrayLike, vocab_size: int) -> NDArray[Any]:
    """Return `ids`, wherever they lie, as a 1-d integer array in host memory, all below `vocab_size`.

    Raises
    ------
    TypeError
        For None and other things of which no array can be made.
    ValueError
        For any other array.
    """
    array: NDArray[Any] = check.given("ids", ids, as_numpy)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"ids: expected a 1-d array of integers, got {array.ndim}-d {array.dtype}")
    if array.size and not 0 <= array.min() <= array.max() < vocab_size:
        raise ValueError(f"ids: expected 0 ... {vocab_size - 1}, got {array.min()} ... {array.max()}")
    return array if array.size else array.astype(np.int32)


def check_id(token_id: int, vocab_size: int) -> int:
    """Return `token_id` if it is below `vocab_size`, or raise ValueError (a list would take -1 as its last)."""
    if not 0 <= token_id < vocab_size:
        raise ValueError(f"token_id: expected 0 ... {vocab_size - 1}, got {token_id}")
    return token_id


def name_characters(characters: Sequence[str], most: int = 10) -> str:
    """List `characters` for an error message, invisible ones by number."""
    named = ", ".join(f"{character!r} (U+{ord(character):04X})" for character in characters[:most])
    return named if len(characters) <= most else f"{named} and {len(characters) - most} more"


def _shorten(value: object, most: int = 120) -> str:
    text = repr(value)
    return text if len(text) <= most else text[:most] + "..."
