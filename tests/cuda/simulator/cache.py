"""Where compiled things are kept between runs: files named by the hash of all that they were made from."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from fastlstm.text.corpora import user_cache_folder


def key(*parts: str | bytes) -> str:
    """Name for what is made from `parts`."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:32]


def kept(name: str, make: Callable[[Path], None]) -> Path:
    """File `name` of the cache; where it is missing, `make` writes it to the path that it is given."""
    root = os.environ.get("FASTLSTM_CACHE")
    folder = (Path(root) if root else user_cache_folder()) / "cuda-tests"
    path = folder / name
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            fresh = Path(work, name)
            make(fresh)
            fresh.replace(path)  # whole or not at all, also where several processes make it
    return path
