"""Folders of a user's own, from which code may be loaded: no other user can change what is in them.

Each folder on the way, from the root down, must belong to this user or to root, and nobody else may write to it, unless it is
one like ``/tmp``, where nobody can touch another's files. The folder is then held open by descriptor, and its files are reached
through that: whatever is put into its path later changes nothing. Windows keeps a user's folders apart by itself.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
import tempfile
from pathlib import Path

from .writing import replacing

_FOLLOW_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_FOLDER = os.O_RDONLY | _FOLLOW_NO_LINK | getattr(os, "O_DIRECTORY", 0)
_ON_THE_WAY = _FOLDER | getattr(os, "O_PATH", 0)  # a folder that may be entered need not be readable
_MOST_LINKS = 40


class UnsafeError(OSError):
    """Another user could change the files in a folder."""


class Folder:
    """
    A folder that this user and root alone can change, held open.

    Parameters
    ----------
    path : Path
        Its last part or parts are made if they are missing, for this user alone.

    Raises
    ------
    UnsafeError
        If another user could change what is in it; names the folder or link on the way that lets them, and why.
    OSError
        If it is not there and cannot be made, or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._open()

    def _open(self) -> None:
        if os.name == "nt":
            self.path.mkdir(parents=True, exist_ok=True)
            self._descriptor: int | None = None
        else:
            # Where this fails the old number stays, which is no folder's: without one, nothing would be judged.
            self._descriptor = _opened(self.path)
            self._identity = os.fstat(self._descriptor)

    def read(self, name: str) -> bytes:
        """
        Read one of its files.

        Raises
        ------
        UnsafeError
            If another user owns the file or may write to it.
        OSError
            If there is none, or it cannot be read.
        """
        # Without waiting, should it be a pipe.
        flags = os.O_RDONLY | _FOLLOW_NO_LINK | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        folder = self._held()
        with os.fdopen(os.open(self._seen(name), flags, dir_fd=folder), "rb") as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise UnsafeError(f"{self.path / name} is not a regular file")
            if folder is not None:
                _judge(self.path / name, about, _owners())
            return file.read()

    def write(self, name: str, data: bytes) -> None:
        """
        Write one of its files, whole or not at all.

        Raises
        ------
        OSError
            If it cannot be written; what was there before is intact.
        """
        folder = self._held()
        flags = os.O_WRONLY | _FOLLOW_NO_LINK | getattr(os, "O_BINARY", 0)
        with (
            replacing(self.path / name, folder, 0o644) as temporary,
            os.fdopen(os.open(self._seen(temporary.name), flags, dir_fd=folder), "wb") as file,
        ):
            file.write(data)

    def close(self) -> None:
        """Let go of the folder."""
        if self._descriptor is not None:
            os.close(self._descriptor)

    def _seen(self, name: str) -> Path:
        return self.path / name if self._descriptor is None else Path(name)

    def _held(self) -> int | None:
        """The descriptor. Some processes close all that is open, as daemons do: then the folder is opened anew."""
        if self._descriptor is not None:
            try:
                same = os.path.samestat(os.fstat(self._descriptor), self._identity)
            except OSError:
                same = False
            if not same:
                self._open()
        return self._descriptor


def user_cache_folder() -> Path:
    """Folder for files that can be made anew: the platform's for such, of this user; not created here."""
    try:
        if base := os.environ.get("XDG_CACHE_HOME"):
            return Path(base).expanduser() / "fastlstm"
        if sys.platform == "win32" and (base := os.environ.get("LOCALAPPDATA")):
            return Path(base) / "fastlstm" / "Cache"
        return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "fastlstm"
    except RuntimeError:  # a user without a home, as in some containers
        return temporary_folder()


def temporary_folder() -> Path:
    """Folder of this user among temporary files; not created here."""
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(tempfile.gettempdir()) / f"fastlstm-{user}"


def _opened(path: Path) -> int:
    """Descriptor of a folder, made if it is missing, that is safe as is all that leads to it."""
    names, links, shared = list(path.parts[::-1]), 0, False
    seen, folder = Path("/"), os.open("/", _ON_THE_WAY)
    try:
        while names:
            name = names.pop()
            # Where many may write, what stands there may be of anybody whose number this process cannot see.
            owners = {0, os.geteuid()} if shared and not name.startswith("/") else _owners()
            about = _made(name, folder)
            if stat.S_ISLNK(about.st_mode):
                _judge(seen / name, about, owners)
                names += Path(os.readlink(name, dir_fd=folder)).parts[::-1]
                links += 1
                if links > _MOST_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            else:
                below = os.open(name, _ON_THE_WAY if names else _FOLDER, dir_fd=folder)
                os.close(folder)
                seen, folder = seen / name, below
                about = os.fstat(folder)
                _judge(seen, about, owners)
                shared = bool(about.st_mode & 0o022)
    except BaseException as error:
        os.close(folder)
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(seen / name)) from error
        raise
    return folder


def _owners() -> set[int]:
    """Who may own what is loaded: root, this user, and who owns the root of all folders, be it seen under another number."""
    return {0, os.geteuid(), os.stat("/").st_uid}


def _made(name: str, folder: int) -> os.stat_result:
    """What a name in a folder stands for, which is a new folder if it was missing."""
    with contextlib.suppress(FileNotFoundError):
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    with contextlib.suppress(FileExistsError):  # another process is faster
        os.mkdir(name, 0o700, dir_fd=folder)
    return os.stat(name, dir_fd=folder, follow_symlinks=False)


def _judge(path: Path, about: os.stat_result, owners: set[int]) -> None:
    """Refuse what another user could change."""
    kind, mode = "link" if stat.S_ISLNK(about.st_mode) else "folder" if stat.S_ISDIR(about.st_mode) else "file", about.st_mode
    if about.st_uid not in owners:
        raise UnsafeError(f"the {kind} {path} belongs to user {about.st_uid}, not to root or this user, {os.geteuid()}")
    if kind == "link" or (kind == "folder" and mode & stat.S_ISVTX):
        return
    if mode & 0o022:
        who = "everybody" if mode & 0o002 else "its group"
        raise UnsafeError(f"{who} may write to the {kind} {path}; 'chmod go-w {path}' ends that")
