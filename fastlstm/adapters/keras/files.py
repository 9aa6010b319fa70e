"""Keras's files as a configuration and arrays. Needs h5py, not Keras, and runs nothing that a file says.

`.keras` is a zip of config.json and model.weights.h5; `.weights.h5` is the latter alone. Variables of a model's layer lie
in `layers/<class>_<count>/.../vars/<number>`.
"""

from __future__ import annotations

import contextlib
import io
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ...files import schema
from ...files.schema import FileError

WEIGHTS, CONFIG, METADATA = "model.weights.h5", "config.json", "metadata.json"
# A small file may declare more than memory holds. Keras writes weights as they are, and trained ones hardly compress; below the
# floor nobody is hurt.
FLOOR, EXPANSION = 1 << 23, 2


class Variables:
    """The arrays of one file of weights, by the path of the object that they belong to."""

    def __init__(self, file: Any, path: Path) -> None:
        self._file, self._path = file, path
        self._sizes: dict[str, int] = {}

    def __call__(self, place: str) -> list[np.ndarray]:
        """The variables `place/vars/0`, `place/vars/1` and so on; none if there is no such place."""
        with _damage(self._path):
            group = self._group(f"{place}/vars")
            names = [str(k) for k in range(len(group or ()))]
            if sorted(group or ()) != sorted(names):
                raise FileError(f"{self._path} has variables {sorted(group)} in {place}/vars; expected {names}")
            return [self._array(group, name, f"{place}/vars/{name}") for name in names]

    def groups(self, place: str) -> list[str]:
        """Names of the groups in `place`."""
        with _damage(self._path):
            return sorted(self._group(place) or ())

    def _group(self, place: str) -> Any:
        import h5py

        group: Any = self._file
        for name in place.split("/"):
            if name not in group:
                return None
            group = self._member(group, name, place)
            if not isinstance(group, h5py.Group):
                raise FileError(f"{self._path} has no group at {place}, but {type(group).__name__}")
        return group

    def _member(self, group: Any, name: str, place: str) -> Any:
        import h5py

        # A link could lead to another file of this machine.
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise FileError(f"{self._path} has a link at {place}; expected the data themselves")
        return group[name]

    def _array(self, group: Any, name: str, place: str) -> np.ndarray:
        import h5py

        found = self._member(group, name, place)
        if not isinstance(found, h5py.Dataset) or found.external or found.is_virtual or found.shape is None:
            raise FileError(f"{self._path} has no plain array at {place}")
        if found.dtype.kind not in "fiu":
            raise FileError(f"{self._path} has dtype {found.dtype} at {place}; expected real numbers")
        # In a layer a number takes four bytes or more, however it is stored.
        self._sizes[place] = int(np.prod(found.shape, dtype=object)) * max(4, found.dtype.itemsize)
        total, held = sum(self._sizes.values()), self._path.stat().st_size
        if total > max(FLOOR, EXPANSION * held):
            raise FileError(
                f"{self._path} declares {total} bytes of variables up to {place}, but holds {held}; expected "
                f"at most {EXPANSION} times as much: store it without compression"
            )
        return np.asarray(found[()])


@contextlib.contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[tuple[dict[str, Any] | None, Variables]]:
    """The configuration, None for a file of weights alone, and the variables, while the block runs.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    fastlstm.FileError
        If it is not Keras 3's, or damaged.
    ImportError
        Without h5py.
    """
    try:
        import h5py
    except ImportError:
        raise ImportError('reading files of Keras needs h5py: pip install "fastlstm[keras]"') from None
    path = Path(path)
    if path.is_dir():
        raise FileError(f"{path} is a folder; expected a file, as model.save writes it with zipped=True")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    config = None
    with path.open("rb") as source:
        data: Any = source
        signature = source.read(8)
        if zipfile.is_zipfile(source):
            config, weights = _unzipped(path)
            data = io.BytesIO(weights)
        elif signature != b"\x89HDF\r\n\x1a\n":
            raise FileError(f"{path} is neither a .keras file nor a .weights.h5 file")
        with _damage(path):
            file = h5py.File(data, "r")
            old = "layer_names" in file.attrs or "model_weights" in file
        with file:
            if old:
                raise FileError(f"{path} is an HDF5 file of Keras 2; load it with Keras 3 and save it as .keras")
            yield config, Variables(file, path)


def _unzipped(path: Path) -> tuple[dict[str, Any], bytes]:
    """Configuration and weights of a .keras file."""
    with _damage(path), zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if CONFIG not in names or WEIGHTS not in names:
            raise FileError(
                f"{path} holds {', '.join(sorted(names)[:5])}; expected {CONFIG} and {WEIGHTS}, as model.save writes them"
            )
        metadata = _json(path, archive, METADATA) if METADATA in names else {}
        version = str(metadata.get("keras_version", "3"))
        if not version.startswith("3"):
            raise FileError(f"{path} was written by Keras {version}; expected Keras 3")
        return _json(path, archive, CONFIG), _member(path, archive, WEIGHTS)


def _member(path: Path, archive: zipfile.ZipFile, name: str) -> bytes:
    info = archive.getinfo(name)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise FileError(f"{path} has {name} packed by method {info.compress_type}; expected it stored or deflated")
    held = min(info.compress_size, path.stat().st_size)  # the archive's own word alone could be a lie
    if info.file_size > max(FLOOR, EXPANSION * held):
        raise FileError(
            f"{path} declares {info.file_size} bytes of {name}, but holds {held}; expected at most "
            f"{EXPANSION} times as much: store it without compression"
        )
    with archive.open(info) as member:
        return member.read(info.file_size)  # without the number all is unpacked first, and then cut to what was declared


def _json(path: Path, archive: zipfile.ZipFile, name: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = schema.parse(_member(path, archive, name))
        schema.mapping("it", found)
    except FileError:
        raise
    except ValueError as error:
        raise FileError(f"{path} is damaged: {name} is not a JSON object ({error})") from None
    return found


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    """What zipfile and h5py say of a damaged file, as one kind of error."""
    try:
        yield
    except FileError:
        raise
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        OSError,
        RuntimeError,
        KeyError,
        TypeError,
        ValueError,
        OverflowError,
    ) as error:
        raise FileError(f"{path} is damaged ({type(error).__name__}: {error})") from error
