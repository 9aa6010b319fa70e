"""Keras's files as a configuration and arrays. Needs h5py, not Keras, and runs nothing that a file says.

`.keras` is a zip of config.json and model.weights.h5; `.weights.h5` is the latter alone. Variables of a model's layer lie
in `layers/<class>_<count>/.../vars/<number>`.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

WEIGHTS, CONFIG, METADATA = "model.weights.h5", "config.json", "metadata.json"
# A small file may declare more than memory holds; real weights hardly compress. Below the floor nobody is hurt.
FLOOR, EXPANSION = 1 << 24, 100


class _Refused(ValueError):
    """An error in our own words, beside those of zipfile and h5py."""


class Variables:
    """The arrays of one file of weights, by the path of the object that they belong to."""

    def __init__(self, file: Any, path: Path) -> None:
        self._file, self._path = file, path

    def __call__(self, place: str) -> list[np.ndarray]:
        """The variables `place/vars/0`, `place/vars/1` and so on; none if there is no such place."""
        with _damage(self._path):
            group = self._group(f"{place}/vars")
            names = [str(k) for k in range(len(group or ()))]
            if sorted(group or ()) != sorted(names):
                raise _Refused(f"{self._path} has variables {sorted(group)} in {place}/vars; expected {names}")
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
                raise _Refused(f"{self._path} has no group at {place}, but {type(group).__name__}")
        return group

    def _member(self, group: Any, name: str, place: str) -> Any:
        import h5py

        # A link could lead to another file of this machine.
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise _Refused(f"{self._path} has a link at {place}; expected the data themselves")
        return group[name]

    def _array(self, group: Any, name: str, place: str) -> np.ndarray:
        import h5py

        found = self._member(group, name, place)
        if not isinstance(found, h5py.Dataset) or found.external or found.is_virtual or found.shape is None:
            raise _Refused(f"{self._path} has no plain array at {place}")
        if found.dtype.kind not in "fiu":
            raise _Refused(f"{self._path} has dtype {found.dtype} at {place}; expected real numbers")
        size = int(np.prod(found.shape, dtype=object)) * found.dtype.itemsize
        if size > max(FLOOR, EXPANSION * found.id.get_storage_size()):
            raise _Refused(f"{self._path} declares {size} bytes at {place}, but holds {found.id.get_storage_size()}")
        return np.asarray(found[()])


@contextlib.contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[tuple[dict[str, Any] | None, Variables]]:
    """The configuration, None for a file of weights alone, and the variables, while the block runs.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
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
        raise _Refused(f"{path} is a folder; expected a file, as model.save writes it with zipped=True")
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
            raise _Refused(f"{path} is neither a .keras file nor a .weights.h5 file")
        with _damage(path):
            file = h5py.File(data, "r")
            old = "layer_names" in file.attrs or "model_weights" in file
        with file:
            if old:
                raise _Refused(f"{path} is an HDF5 file of Keras 2; load it with Keras 3 and save it as .keras")
            yield config, Variables(file, path)


def _unzipped(path: Path) -> tuple[dict[str, Any], bytes]:
    """Configuration and weights of a .keras file."""
    with _damage(path), zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if CONFIG not in names or WEIGHTS not in names:
            raise _Refused(f"{path} holds {', '.join(sorted(names)[:5])}; expected {CONFIG} and {WEIGHTS}, as model.save "
                             "writes them")  # fmt: skip
        metadata = _json(path, archive, METADATA) if METADATA in names else {}
        version = str(metadata.get("keras_version", "3"))
        if not version.startswith("3"):
            raise _Refused(f"{path} was written by Keras {version}; expected Keras 3")
        return _json(path, archive, CONFIG), _member(path, archive, WEIGHTS)


def _member(path: Path, archive: zipfile.ZipFile, name: str) -> bytes:
    info = archive.getinfo(name)
    if info.file_size > max(FLOOR, EXPANSION * info.compress_size):
        raise _Refused(f"{path} declares {info.file_size} bytes of {name}, but holds {info.compress_size}")
    return archive.read(name)


def _json(path: Path, archive: zipfile.ZipFile, name: str) -> dict[str, Any]:
    try:
        found = json.loads(_member(path, archive, name))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise _Refused(f"{path} is damaged: {name} is not JSON ({error})") from None
    if not isinstance(found, dict):
        raise _Refused(f"{path} is damaged: {name} is not a JSON object")
    return found


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    """What zipfile and h5py say of a damaged file, as one kind of error."""
    try:
        yield
    except _Refused:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise _Refused(f"{path} is damaged ({type(error).__name__}: {error})") from error
