"""Texts by name or file: read, verified, downloaded once, and kept in the user's cache folder.

Knows nothing of tokens.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

from ..files.folders import Folder, user_cache_folder

_DEFAULT_FEWEST = 400_000  # characters; every Python so far carries 460,000 or more


class _Corpus(NamedTuple):
    url: str
    sha256: str
    files: tuple[str, ...]  # names that a local copy may have; the first is the one written


_CORPORA = {
    "shakespeare": _Corpus(
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        ("tinyshakespeare.txt", "input.txt"),
    )
}

CORPORA = tuple(_CORPORA)
"""Texts that `load_corpus` knows by name."""


class TextError(ValueError):
    """A text cannot be used: empty, too short or not UTF-8."""


class ChecksumError(TextError):
    """A file is not the text that it should be."""


class DownloadError(OSError):
    """A text could not be downloaded."""


def load_corpus(source: str | os.PathLike[str] | None = None) -> str:
    r"""Text to train on.

    Parameters
    ----------
    source : str or path, optional
        - None: the text of `pydoc_data.topics`, the language reference that every Python carries; needs no network.
        - ``"shakespeare"``: a megabyte of Shakespeare; from the folder that the environment variable `FASTLSTM_DATA`
          names (``tinyshakespeare.txt`` or ``input.txt``), else from the user's cache folder, else downloaded into it.
          The checksum is verified in each case. (A file of that name is ``./shakespeare``.)
        - ``"-"``: standard input.
        - Otherwise a file.

    Returns
    -------
    str
        The text, from UTF-8, without a byte order mark, its line ends ``"\n"``.

    Raises
    ------
    FileNotFoundError, IsADirectoryError, OSError
        If the file cannot be read.
    DownloadError
        If the download fails (an OSError).
    TextError
        If the text is empty or not UTF-8 (a ValueError); `ChecksumError` if a copy is not the expected text.

    Examples
    --------
    >>> len(load_corpus()) > 400_000
    True
    """
    if source is None:
        return _python_topics()
    if source == "-":
        return _decode(sys.stdin.buffer.read(), "standard input")
    if isinstance(source, str) and source in _CORPORA:
        return _decode(_fetch(source, _CORPORA[source]), source)
    path = Path(source)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give one text file, or '-' and several files by standard input")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path}: no such file; give the path of a UTF-8 text file, or one of the names {', '.join(CORPORA)}, "
            "or nothing for the text that Python carries"
        ) from None
    return _decode(data, str(path))


def _python_topics() -> str:
    remedy = "give a text file instead"
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise TextError(f"this Python lacks pydoc_data.topics, the default text; {remedy}") from error
    text = "\n\n".join(topics[name] for name in sorted(topics))
    if len(text) < _DEFAULT_FEWEST:
        raise TextError(f"this Python's pydoc_data.topics, the default text, has only {len(text)} characters; {remedy}")
    return text


def _decode(data: bytes, where: str) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
            hint = f"it looks like UTF-16; convert it, for example: iconv -f UTF-16 -t UTF-8 {where}"
        else:
            hint = f"convert it to UTF-8, for example from Latin-1: iconv -f LATIN1 -t UTF-8 {where}"
        raise TextError(
            f"{where}: not UTF-8 at byte {error.start} (0x{data[error.start]:02x}, in line {line}); {hint}"
        ) from None
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    if not text:
        raise TextError(f"{where}: the text is empty; give one of at least some thousand characters")
    return text


def _fetch(name: str, corpus: _Corpus) -> bytes:
    folder = os.environ.get("FASTLSTM_DATA")
    for path in [Path(folder).expanduser() / file for file in corpus.files] if folder else []:
        if path.is_file():
            data = path.read_bytes()
            _verify(data, corpus, str(path), "replace or remove it, or unset FASTLSTM_DATA")
            return data
    cache, file = user_cache_folder() / "corpora", corpus.files[0]
    kept = _kept(cache, file)
    if kept is not None and hashlib.sha256(kept).hexdigest() == corpus.sha256:  # else damaged: downloaded anew
        return kept
    data = _download(name, corpus)
    try:
        with contextlib.closing(Folder(cache)) as opened:
            opened.write(file, data)
    except OSError as error:
        warnings.warn(f"{cache / file} could not be written, so the next run downloads again: {error}", stacklevel=3)
    return data


def _kept(cache: Path, file: str) -> bytes | None:
    """What a file in the user's cache holds, None where there is none that is this user's."""
    with contextlib.suppress(OSError), contextlib.closing(Folder(cache)) as opened:
        return opened.read(file)
    return None


def _verify(data: bytes, corpus: _Corpus, where: str, remedy: str) -> None:
    found = hashlib.sha256(data).hexdigest()
    if found != corpus.sha256:
        raise ChecksumError(
            f"{where}: not the expected text: sha256 {found} ({len(data)} bytes) instead of {corpus.sha256}; {remedy}"
        )


def _download(name: str, corpus: _Corpus) -> bytes:
    # Imported here: with TLS and all they cost every `import fastlstm` more than the rest of this package.
    import http.client
    import urllib.error
    import urllib.request

    remedy = (
        f"put the file into a folder as {corpus.files[0]} and set FASTLSTM_DATA to that folder, "
        "or give another text file, or give none to use the text that Python carries"
    )
    try:
        with urllib.request.urlopen(corpus.url, timeout=30) as response:
            data: bytes = response.read()
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it is the response itself
        folder = os.environ.get("FASTLSTM_DATA")
        missing = f" (FASTLSTM_DATA={folder} holds neither {' nor '.join(corpus.files)})" if folder else ""
        raise DownloadError(
            f"{name}: {corpus.url} could not be downloaded: {error}{missing}; without a network, {remedy}"
        ) from error
    _verify(data, corpus, f"{name}: what came from {corpus.url}", f"try again, or {remedy}")
    return data
