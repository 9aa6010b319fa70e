"""Folders that code is loaded from: whatever lets another user change them is found, whatever their paths become is nothing."""

import contextlib
import os
import re
import shutil
import stat
import sys
import tempfile
from pathlib import Path

import pytest

from fastlstm.files import folders
from fastlstm.files.folders import Folder, UnsafeError

posix = pytest.mark.skipif(os.name != "posix", reason="owners and modes of POSIX")
root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files to others")
NOBODY, STRANGER = 65534, 12345


@pytest.fixture
def base():
    """A folder that others can reach, as they cannot pytest's own."""
    path = Path(tempfile.mkdtemp()).resolve()
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def opened(path):
    return contextlib.closing(Folder(path))


def test_a_folder_is_made_for_this_user_alone(base):
    before = os.umask(0)
    try:
        with opened(base / "a" / "b") as folder:
            folder.write("file", b"data")
            assert folder.read("file") == b"data"
    finally:
        os.umask(before)
    if os.name == "posix":
        modes = [stat.S_IMODE(path.stat().st_mode) for path in (base / "a", base / "a" / "b", base / "a" / "b" / "file")]
        assert modes == [0o700, 0o700, 0o644]
    assert os.listdir(base / "a" / "b") == ["file"]


@posix
@pytest.mark.parametrize("level", ["", "a", "a/b"])
@pytest.mark.parametrize(("mode", "who"), [(0o775, "its group"), (0o757, "everybody"), (0o777, "everybody")])
def test_what_others_may_write_to_is_refused(base, level, mode, who):
    (base / "a" / "b").mkdir(parents=True, mode=0o755)
    (base / level).chmod(mode)
    told = f"^{who} may write to the folder {base / level}; 'chmod go-w {base / level}' ends that$"
    with pytest.raises(UnsafeError, match=told):
        Folder(base / "a" / "b")
    (base / level).chmod(mode & ~0o022)
    Folder(base / "a" / "b").close()


@root
@pytest.mark.parametrize("level", ["", "a", "a/b"])
def test_what_another_owns_is_refused(base, level):
    (base / "a" / "b").mkdir(parents=True)
    os.chown(base / level, STRANGER, STRANGER)
    told = f"^the folder {base / level} belongs to user {STRANGER}, not to root or this user, 0$"
    with pytest.raises(UnsafeError, match=told):
        Folder(base / "a" / "b")


@posix
def test_in_a_folder_like_tmp_own_folders_are_safe(base):
    base.chmod(0o1777)
    with opened(base / "mine") as folder:
        folder.write("file", b"data")
        assert folder.read("file") == b"data"


@root
@pytest.mark.parametrize("kind", ["folder", "link"])
def test_in_a_folder_like_tmp_others_folders_and_links_are_refused(base, kind):
    """A link could be turned to another folder afterwards."""
    base.chmod(0o1777)
    (base / "mine").mkdir(mode=0o700)
    planted = base / "planted"
    if kind == "folder":
        planted.mkdir()
    else:
        planted.symlink_to(base / "mine")
    os.chown(planted, STRANGER, STRANGER, follow_symlinks=False)
    for path in (planted, planted / "kernels"):
        with pytest.raises(UnsafeError, match=f"the {kind} {planted} belongs to user {STRANGER}"):
            Folder(path)


@posix
@pytest.mark.parametrize("absolute", [True, False])
def test_own_links_are_followed_and_judged_by_where_they_lead(base, absolute):
    (base / "way").mkdir()
    (base / "real" / "deep").mkdir(parents=True)
    (base / "way" / "link").symlink_to(base / "real" if absolute else Path("..") / "real")
    with opened(base / "way" / "link" / "deep") as folder:
        folder.write("file", b"data")
    assert (base / "real" / "deep" / "file").read_bytes() == b"data"
    (base / "real").chmod(0o777)
    with pytest.raises(UnsafeError, match="everybody may write to the folder .*real"):
        Folder(base / "way" / "link" / "deep")


@posix
def test_links_in_a_circle_end(base):
    (base / "one").symlink_to(base / "two")
    (base / "two").symlink_to(base / "one")
    with pytest.raises(OSError, match="symbolic links"):
        Folder(base / "one" / "folder")


@posix
def test_a_file_in_the_way_is_named(base):
    (base / "file").write_text("")
    with pytest.raises(NotADirectoryError, match=str(base / "file")):
        Folder(base / "file" / "kernels")


@posix
def test_what_happens_to_the_path_later_changes_nothing(base):
    with opened(base / "cache") as folder:
        folder.write("kernel", b"mine")
        (base / "cache").rename(base / "moved")
        (base / "cache").mkdir()
        (base / "cache" / "kernel").write_bytes(b"planted")
        assert folder.read("kernel") == b"mine"
        folder.write("another", b"mine")
    assert os.listdir(base / "cache") == ["kernel"]
    assert sorted(os.listdir(base / "moved")) == ["another", "kernel"]


@root
def test_a_swap_between_look_and_opening_is_seen(base, monkeypatch):
    """What is judged is what was opened."""
    (base / "cache").mkdir()
    real = os.stat

    def swapping(path, *, dir_fd=None, follow_symlinks=True):
        about = real(path, dir_fd=dir_fd, follow_symlinks=follow_symlinks)
        if path == "cache":
            (base / "cache").rename(base / "moved")
            (base / "cache").mkdir()
            os.chown(base / "cache", STRANGER, STRANGER)
        return about

    monkeypatch.setattr(folders.os, "stat", swapping)
    with pytest.raises(UnsafeError, match=f"cache belongs to user {STRANGER}"):
        Folder(base / "cache")


@posix
@pytest.mark.parametrize("kind", ["writable", "link", "pipe", "another's"])
def test_a_file_that_another_could_change_is_not_read(base, kind):
    with opened(base) as folder:
        folder.write("file", b"data")
        file = base / "file"
        if kind == "writable":
            file.chmod(0o666)
        elif kind == "another's":
            if os.geteuid() != 0:
                pytest.skip("only root gives files to others")
            os.chown(file, STRANGER, STRANGER)
        else:
            file.unlink()
            (base / "target").write_bytes(b"data")
            file.symlink_to(base / "target") if kind == "link" else os.mkfifo(file)
        with pytest.raises(OSError, match=re.escape(str(file)) if kind != "link" else "symbolic links"):
            folder.read("file")
        folder.write("file", b"new")
        assert folder.read("file") == b"new"


@posix
def test_a_process_that_closes_all_that_is_open_finds_its_folder_again(base):
    with opened(base / "cache") as folder:
        folder.write("file", b"data")
        number = folder._descriptor
        os.close(number)
        assert folder.read("file") == b"data"
        # A number is taken again by what is opened next.
        stranger = os.open(base, os.O_RDONLY)
        os.dup2(stranger, folder._descriptor)
        assert folder.read("file") == b"data"
        assert os.fstat(stranger).st_ino == base.stat().st_ino
        os.close(stranger)


@posix
def test_a_folder_lets_go_of_its_descriptors(base):
    here = Path("/proc/self/fd") if Path("/proc/self/fd").exists() else Path("/dev/fd")
    (base / "bad").mkdir()
    (base / "bad").chmod(0o777)
    before = len(os.listdir(here))
    for _ in range(3):
        with opened(base / "a" / "b") as folder, contextlib.suppress(FileNotFoundError):
            folder.read("nothing")
        with pytest.raises(UnsafeError):
            Folder(base / "bad" / "below")
    assert len(os.listdir(here)) == before


@root
def test_another_user_is_served_by_own_folders_and_roots(base):
    """Root's folders serve a user who may enter them, and so do the user's own; a third user's never."""
    base.chmod(0o1777)
    for name, owner, mode in (("roots", 0, 0o755), ("closed", 0, 0o700), ("thirds", STRANGER, 0o755)):
        (base / name).mkdir()
        (base / name / "file").write_bytes(b"data")
        (base / name).chmod(mode)
        for path in (base / name, base / name / "file"):
            os.chown(path, owner, owner)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        found = []
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            for name in ("own", "roots", "closed", "thirds"):
                try:
                    with opened(base / name) as folder:
                        if name == "own":
                            folder.write("file", b"data")
                        found.append(folder.read("file").decode())
                except OSError as error:
                    found.append(type(error).__name__)
        finally:
            os.write(writing, " ".join(found).encode())
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        assert file.read() == "data data PermissionError UnsafeError"
    os.waitpid(child, 0)


@root
def test_who_owns_the_root_owns_the_system(base, monkeypatch):
    """In a user's namespace, root is seen as nobody; but among files that many made, nobody may be anybody."""
    (base / "plain").mkdir()
    real = os.stat, os.fstat

    def seen(about, path):
        fields = list(about)
        if path == "/" or (fields[1], fields[2]) in ours:
            fields[4] = NOBODY
        return os.stat_result(fields)

    ours = {(real[0](path).st_ino, real[0](path).st_dev) for path in ("/", base / "plain")}
    monkeypatch.setattr(folders.os, "stat", lambda path, **options: seen(real[0](path, **options), path))
    monkeypatch.setattr(folders.os, "fstat", lambda descriptor: seen(real[1](descriptor), descriptor))
    Folder(base / "plain").close()
    (base / "shared").mkdir()
    (base / "shared").chmod(0o1777)
    (base / "shared" / "his").mkdir()
    os.chown(base / "shared" / "his", NOBODY, NOBODY)
    with pytest.raises(UnsafeError, match=f"his belongs to user {NOBODY}"):
        Folder(base / "shared" / "his")


def test_cache_folders_of_the_platforms(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: Path("/home/me"))
    for platform, expected in (("linux", ".cache/fastlstm"), ("darwin", "Library/Caches/fastlstm")):
        monkeypatch.setattr(sys, "platform", platform)
        assert folders.user_cache_folder() == Path("/home/me") / expected
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", "/local")
    assert folders.user_cache_folder() == Path("/local/fastlstm/Cache")


def test_a_user_without_a_home_has_a_cache_folder(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(Path, "home", homeless)
    assert folders.user_cache_folder() == folders.temporary_folder()
    monkeypatch.setenv("XDG_CACHE_HOME", "~/nowhere")
    monkeypatch.setattr(Path, "expanduser", lambda path: homeless())
    assert folders.user_cache_folder() == folders.temporary_folder()


@posix
def test_the_temporary_folder_has_the_users_number(monkeypatch):
    """A name that all users share would be the first one's."""
    monkeypatch.setattr(os, "getuid", lambda: 4321)
    assert folders.temporary_folder().name == "fastlstm-4321"


@posix
def test_a_folder_that_became_unsafe_stays_refused(tmp_path):
    """A process may close all its descriptors, as daemons do: the folder is then opened anew, and judged each time."""
    path = tmp_path / "own"
    folder = Folder(path)
    folder.write("a.o", b"good")
    os.close(folder._descriptor)
    path.chmod(0o777)
    for _ in range(3):
        with pytest.raises(UnsafeError, match="own"):
            folder.read("a.o")
