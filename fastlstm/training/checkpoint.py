"""Files of a run: checkpoints that are whole or absent, settings, history. Knows arrays, JSON and file names; no model.

A checkpoint is one safetensors file: its tensors are the arrays, its metadata holds one JSON record. Files are replaced as a
whole (files/writing.py), so that whatever stops the process, the folder holds the old checkpoint or the new one.
"""

import json
import math
import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..files import schema
from ..files.writing import append, replacing
from ..version import __version__

FORMAT = 1
"""Number of the layout described here; a file of a later layout is refused."""

SUFFIX = ".safetensors"
LAST = "last" + SUFFIX
BEST = "best" + SUFFIX
HISTORY = "history.jsonl"
SETTINGS = "settings.json"

_KEY = "fastlstm"
# The names that safetensors has for NumPy's little-endian types.
_DTYPES = {
    "|b1": "BOOL",
    "|i1": "I8",
    "|u1": "U8",
    "<i2": "I16",
    "<u2": "U16",
    "<f2": "F16",
    "<i4": "I32",
    "<u4": "U32",
    "<f4": "F32",
    "<i8": "I64",
    "<u8": "U64",
    "<f8": "F64",
}


class CheckpointError(schema.FileError):
    """A file is not a checkpoint of this package, or is damaged, or comes from a newer version; a `fastlstm.FileError`."""


_HEADER = {
    "format": schema.integer(),
    "version": schema.text,
    "crc32": schema.integer(),
    "record_crc32": schema.integer(),
    "record": schema.mapping,
}


def write_checkpoint(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], record: Mapping[str, Any]) -> None:
    """
    Write arrays and a JSON record as one file, in place of what is there.

    The bytes are on the disk before the name changes: a crash or a full disk leaves the file that was there before.

    Parameters
    ----------
    path : path
        The file; its folder is made if it is missing.
    arrays : mapping of str to ndarray
        Any shapes; the types are those of safetensors (no objects, no strings).
    record : mapping
        What JSON can hold, without NaN or infinity.

    Raises
    ------
    OSError
        If the file cannot be written; what was there before is intact.
    """
    dense = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    # The record as it will be read: JSON has no tuples and no keys but texts.
    known = json.loads(json.dumps(dict(record), allow_nan=False))
    header = {
        "format": FORMAT,
        "version": __version__,
        "crc32": _crc32(dense),
        "record_crc32": _record_crc32(known),
        "record": known,
    }
    write_tensors(path, dense, {_KEY: json.dumps(header, allow_nan=False)})


def read_checkpoint(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """
    Read what `write_checkpoint` wrote.

    Returns
    -------
    arrays : dict of str to ndarray
        Writable, owned by the caller.
    record : dict

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    CheckpointError
        If the file is cut short, altered, of another program, or of a newer version. Nothing in it is ever executed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint file")
    with schema.reading(path, CheckpointError):
        text, arrays = _read_tensors(path)
        header = _read_header(path, text)
        if header["crc32"] != _crc32(arrays):
            raise CheckpointError(f"{path} is damaged: its numbers do not match their checksum")
        record: dict[str, Any] = header["record"]
        if header["record_crc32"] != _record_crc32(record):
            raise CheckpointError(f"{path} is damaged: its record does not match its checksum")
    return arrays, record


def _read_tensors(path: Path) -> tuple[str, dict[str, np.ndarray]]:
    """The text that only checkpoints have, and the arrays."""
    from safetensors import SafetensorError, safe_open

    arrays = {}
    try:
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get(_KEY)
            if text is None:
                raise CheckpointError(f"{path} is a safetensors file, but not a checkpoint of fastlstm")
            for name in file.keys():  # noqa: SIM118
                kind = file.get_slice(name).get_dtype()
                schema.choice(*_DTYPES.values())(f"the type of array {name!r}", kind)
                arrays[name] = file.get_tensor(name)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged, or is not a checkpoint of fastlstm ({error})") from None
    return text, arrays


def _read_header(path: Path, text: str) -> dict[str, Any]:
    """What `write_checkpoint` wrote beside the arrays."""
    try:
        header: dict[str, Any] = schema.parse(text)
        schema.mapping("its header", header)
        if header.get("format") != FORMAT:
            schema.integer()("format", header.get("format"))
            raise CheckpointError(
                f"{path} has checkpoint format {header['format']}, written by fastlstm {header.get('version')!s:.20}; "
                f"this is fastlstm {__version__}, which reads format {FORMAT}"
            )
        # Checkpoints made before records had a checksum have none.
        header.setdefault("record_crc32", _record_crc32(header.get("record")))
        schema.table(_HEADER)("its header", header)
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: its record cannot be read ({error})") from None
    return header


def write_tensors(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """
    Write a plain safetensors file as `write_checkpoint` does, whole or not at all.

    Parameters
    ----------
    path : path
        The file; its folder is made if it is missing.
    arrays : mapping of str to ndarray
        The tensors, under these names.
    metadata : mapping of str to str
        The text pairs of the file's header.
    """
    path = Path(path)
    # Widest types first, as safetensors itself has it: every tensor then lies aligned.
    dense = [(name, np.asarray(array, order="C")) for name, array in arrays.items()]
    dense.sort(key=lambda item: (-item[1].itemsize, item[0]))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, array in dense:
        if array.dtype.str not in _DTYPES:
            raise TypeError(f"arrays[{name!r}]: safetensors has no type for {array.dtype}")
        start, end = end, end + array.nbytes
        header[name] = {"dtype": _DTYPES[array.dtype.str], "shape": array.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    # Not by safetensors' own writer, which copies all tensors, or when killed leaves files that nobody clears away.
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, array in dense:
            if array.size:
                file.write(array.data.cast("B"))


def find_checkpoint(path: str | os.PathLike[str], *, best: bool) -> Path:
    """
    The checkpoint file that a path means: the file itself, or the one to take from a run's folder.

    Parameters
    ----------
    path : path
        A checkpoint file, or the folder of a run.
    best : bool
        Of a folder, take the checkpoint with the lowest validation loss if there is one; otherwise, the last.

    Raises
    ------
    FileNotFoundError
        If there is none.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such run; name a run's folder or a checkpoint file")
    for name in (BEST, LAST) if best else (LAST,):
        if (path / name).is_file():
            return path / name
    raise FileNotFoundError(f"{path} holds no checkpoint ({LAST} is missing)")


def checkpoint_file(path: str | os.PathLike[str]) -> Path:
    """What saving to ``path`` writes: itself if it ends in ``.safetensors``, else the last one in that folder."""
    path = Path(path)
    return path if path.suffix == SUFFIX else path / LAST


def write_json(path: str | os.PathLike[str], value: object) -> None:
    """Write a JSON file for people to read, whole or not at all."""
    _write_text(Path(path), json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """
    Read a JSON file.

    Raises
    ------
    FileNotFoundError
        If there is none.
    CheckpointError
        If it is not JSON.
    """
    try:
        return schema.parse(Path(path).read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: it is not JSON ({error})") from None


def write_lines(path: str | os.PathLike[str], records: Iterable[Mapping[str, Any]]) -> None:
    """Write records as JSON lines, whole or not at all."""
    _write_text(Path(path), "".join(_line(record) for record in records))


def append_line(path: str | os.PathLike[str], record: Mapping[str, Any]) -> None:
    """Add one record to a file of JSON lines; the folder must exist."""
    append(Path(path), _line(record))


def plain(value: Any) -> Any:
    """The value as JSON gives it back: tuples are lists, numbers that JSON lacks are None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, os.PathLike):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"


def _write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def _record_crc32(record: Any) -> int:
    """Checksum over a record as JSON."""
    return zlib.crc32(json.dumps(record).encode())


def _crc32(arrays: Mapping[str, np.ndarray]) -> int:
    """Checksum over names, types, shapes and bytes, in the order of the names."""
    value = 0
    for name in sorted(arrays):
        array = arrays[name]
        value = zlib.crc32(f"{name} {array.dtype.str} {array.shape}".encode(), value)
        # A view of the bytes; an empty array has none to view.
        if array.size:
            value = zlib.crc32(array.data.cast("B"), value)
    return value
