"""Files that are whole or absent, whatever stops the process and whoever else writes them. Knows nothing of what they hold.

A file is written under a name of its own beside the path, brought to the disk, then put in place by one ``os.replace``.
While it is written it is locked. The system ends a lock with the process that holds it, so the next writer can tell what a
dead one left from what a living one writes, also where the two run in different containers.
"""

import contextlib
import errno
import os
import platform
import secrets
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import BinaryIO

if sys.platform != "win32":
    import fcntl

_DAY = 24 * 3600
_FLAGS = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


@contextlib.contextmanager
def replacing(path: Path, folder: int | None = None, mode: int = 0o666) -> Iterator[Path]:
    """
    Give a file name that no other writer uses: what the block writes to it is at `path` afterwards, unless the block fails.

    Parameters
    ----------
    path : Path
        Its folder is made if need be, unless `folder` is given.
    folder : int, optional
        Descriptor of the path's folder, through which its files are reached whatever is in their paths now.
    mode : int
        Permissions of the file, before the process's umask.

    Raises
    ------
    OSError
        If the file cannot be written; it names `path`, where what was there before is intact.
    """
    if folder is None:
        path.parent.mkdir(parents=True, exist_ok=True)
    with _named(path):
        _clear(path, folder)
        temporary, lock = _create(path, folder, mode)
        try:
            with lock:
                try:
                    yield temporary
                    os.fsync(lock.fileno())
                finally:
                    if os.name == "nt":
                        lock.close()  # there, an open file can be neither renamed nor removed
                os.replace(_seen(temporary, folder), _seen(path, folder), src_dir_fd=folder, dst_dir_fd=folder)
        finally:
            # In place, it has this name no more; what cannot be removed now is left to the next writer.
            with contextlib.suppress(OSError):
                os.unlink(_seen(temporary, folder), dir_fd=folder)
    _sync(path.parent, folder)


def append(path: Path, text: str) -> None:
    """
    Add text to the end of a file.

    Raises
    ------
    OSError
        If it cannot be written, or its folder is not there.
    """
    with _named(path), path.open("a", encoding="utf-8", newline="\n") as file:
        file.write(text)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Have the system's errors name the path that the caller knows, and its folder if that is gone."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        gone = error.errno == errno.ENOENT and not os.path.isdir(path.parent)
        reason = f"the folder {path.parent} is gone" if gone else error.strerror or os.strerror(error.errno)
        raise OSError(error.errno, reason, str(path)) from error


def _seen(path: Path, folder: int | None) -> Path:
    """The path as the system is told it: through its open folder if there is one."""
    return path if folder is None else Path(path.name)


def _create(path: Path, folder: int | None, mode: int) -> tuple[Path, BinaryIO]:
    """A new file, empty, and its descriptor, which holds its lock."""
    while True:
        temporary = path.with_name(f".{path.name}.{_machine()}.{secrets.token_hex(8)}.tmp")
        name = _seen(temporary, folder)
        file = os.fdopen(os.open(name, _FLAGS | os.O_CREAT | os.O_EXCL, mode, dir_fd=folder), "r+b", buffering=0)
        # Who clears may have found it before it was locked.
        if _lock(file.fileno()) is not False and os.fstat(file.fileno()).st_nlink:
            return temporary, file
        file.close()
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=folder)


def _clear(path: Path, folder: int | None) -> None:
    """Remove the temporary files that killed writers of a path left: of this machine at once, of any after a day."""
    for name in os.listdir(path.parent if folder is None else folder):
        if name.startswith(f".{path.name}.") and name.endswith(".tmp"):
            # Whoever else clears may be faster; what cannot be removed is no reason not to write.
            with contextlib.suppress(OSError):
                _remove_left(_seen(path.with_name(name), folder), folder, name.startswith(f".{path.name}.{_machine()}."))


def _remove_left(temporary: Path, folder: int | None, here: bool) -> None:
    with os.fdopen(os.open(temporary, _FLAGS, dir_fd=folder), "r+b", buffering=0) as file:
        old = time.time() - os.fstat(file.fileno()).st_mtime > _DAY
        free = _lock(file.fileno())
        left = old if free is None else free and (here or old)
        if left and os.name != "nt":
            os.unlink(temporary, dir_fd=folder)
    if left and os.name == "nt":
        os.unlink(temporary)


@cache
def _machine() -> str:
    """Name of the running system, which its containers share: a lock tells the truth within it, over a network not always."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")[:8]
    except OSError:
        return platform.node()


def _lock(descriptor: int) -> bool | None:
    """Lock an open file: True if it is locked now, False if another holds it, None where there are no locks."""
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _sync(path: Path, folder: int | None) -> None:
    """Bring a folder to the disk, and with it the renaming of what is in it."""
    if os.name == "nt":
        return  # it opens no folders, and needs none of this
    descriptor = os.open(path, os.O_RDONLY) if folder is None else folder
    try:
        # Some network file systems refuse: the replacement is atomic there all the same.
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        if folder is None:
            os.close(descriptor)
