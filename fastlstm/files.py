"""Files that are whole or absent, whatever stops the process and whoever else writes them. Knows nothing of what they hold.

A file is written under a name of its own beside the path, brought to the disk, then put in place by one ``os.replace``.
"""

import contextlib
import glob
import os
import platform
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

_DAY = 24 * 3600


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file name that no other writer uses: what the block writes to it is at `path` afterwards, unless the block fails.

    The folder is made if need be.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    own = f".{path.name}.{platform.node()}."
    _clear(path, own)
    temporary = path.with_name(f"{own}{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        _put_in_place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _clear(path: Path, own: str) -> None:
    """Remove the temporary files that killed writers of a path left: of this machine at once, of any after a day."""
    for file in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        pid = file.name.removeprefix(own).partition(".")[0]
        # Whoever else clears may be faster; what cannot be removed is no reason not to write.
        with contextlib.suppress(OSError):
            if time.time() - file.stat().st_mtime > _DAY or (file.name.startswith(own) and not _lives(pid)):
                file.unlink()


def _lives(pid: str) -> bool:
    """Whether a process of this machine may be running."""
    if os.name == "nt":
        # There, the question below would be an interrupt.
        return True
    try:
        os.kill(int(pid), 0)
    except PermissionError:
        return True  # another user's
    except (ProcessLookupError, OverflowError, ValueError):
        return False
    return True


def _put_in_place(temporary: Path, path: Path) -> None:
    _sync(temporary)
    os.replace(temporary, path)
    # The rename itself is on the disk once the folder is; Windows opens no folders and needs none of this.
    if os.name != "nt":
        _sync(path.parent)


def _sync(path: Path) -> None:
    # Windows flushes only what is open for writing; a folder opens for reading only.
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        # Some network file systems refuse to sync a folder: the replacement is atomic there all the same.
        with contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext():
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
