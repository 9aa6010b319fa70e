"""The one writer of files: whole or absent, dead writers' files go, living ones' stay, and errors name the file."""

import contextlib
import errno
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastlstm.files import writing
from fastlstm.training import checkpoint

DAY = 24 * 3600
posix = pytest.mark.skipif(os.name != "posix", reason="locks of POSIX")
WRITER = """
import sys
from pathlib import Path
from fastlstm.files import writing
with writing.replacing(Path(sys.argv[1])) as temporary:
    temporary.write_text("of another process")
    print(temporary.name, flush=True)
    input()
"""


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "run" / "last.safetensors"
    path.parent.mkdir()
    path.write_text("old")
    return path


def write(path, text="new"):
    with writing.replacing(path) as temporary:
        temporary.write_text(text)


def beside(path):
    return sorted(set(os.listdir(path.parent)) - {path.name})


@contextlib.contextmanager
def another_writer(path, *before):
    """Another process that is in the middle of writing a path, and the name of its temporary file."""
    command = [*before, sys.executable, "-c", WRITER, path]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


@posix
def test_a_dead_writers_file_goes_and_a_living_ones_stays(path):
    with another_writer(path) as (living, name):
        with another_writer(path) as (dead, left):
            assert beside(path) == sorted([name, left])
            dead.kill()
            dead.wait()
            write(path)
        assert beside(path) == [name]
        living.communicate("\n")
        assert living.returncode == 0
    assert path.read_text() == "of another process"
    assert beside(path) == []


def can_unshare():
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        return subprocess.run(["unshare", "--pid", "--fork", "true"], capture_output=True, timeout=20).returncode == 0
    return False


def test_writers_in_two_containers_of_one_name_take_nothing_from_each_other(path):
    """There a process of this one has a number that is nobody's."""
    if not can_unshare():
        pytest.skip("namespaces of one's own are not granted here")
    with another_writer(path) as (living, name):
        with another_writer(path, "unshare", "--pid", "--fork", "--kill-child") as (there, other):
            assert beside(path) == sorted([name, other])
            there.communicate("\n")
            assert there.returncode == 0
        assert beside(path) == [name]
        living.communicate("\n")
        assert living.returncode == 0
    assert beside(path) == []


@posix
def test_a_number_taken_again_does_not_keep_a_dead_writers_file(path):
    """Its process is this one's by number, as in a container that was started again."""
    for pid in (os.getpid(), 1):
        left = path.with_name(f".{path.name}.{writing._machine()}.{pid}.tmp")
        left.touch()
        write(path)
        assert beside(path) == []


@posix
def test_of_other_machines_only_what_is_a_day_old_goes(path):
    """A lock may not be seen over a network. A release before this one named processes."""
    others = [path.with_name(f".{path.name}.{name}.tmp") for name in ("other.0123abcd", f"{platform.node()}.77.0123abcd")]
    another = path.with_name(f".best.safetensors.{writing._machine()}.0123abcd.tmp")
    for file in (*others, another):
        file.touch()
    write(path)
    assert beside(path) == sorted(file.name for file in (*others, another))
    for file in others:
        os.utime(file, (time.time() - 1.01 * DAY,) * 2)
    write(path)
    assert beside(path) == [another.name]


@posix
def test_where_there_are_no_locks_only_what_is_a_day_old_goes(path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(writing.fcntl, "flock", none)
    left = path.with_name(f".{path.name}.{writing._machine()}.0123abcd.tmp")
    left.touch()
    write(path)
    assert (path.read_text(), beside(path)) == ("new", [left.name])
    os.utime(left, (time.time() - 1.01 * DAY,) * 2)
    write(path)
    assert beside(path) == []


@posix
def test_a_file_cleared_before_it_was_locked_is_made_again(path, monkeypatch):
    """Another process may find it in just that moment."""
    real, calls = writing._lock, []

    def late(descriptor):
        calls.append(descriptor)
        if len(calls) == 1:
            (name,) = beside(path)
            path.with_name(name).unlink()
        return real(descriptor) if len(calls) != 2 else False

    monkeypatch.setattr(writing, "_lock", late)
    write(path)
    assert len(calls) == 3
    assert (path.read_text(), beside(path)) == ("new", [])


@posix
def test_a_temporary_name_that_is_taken_is_never_opened(path, monkeypatch, tmp_path):
    """Who guesses it and puts a link there gains nothing."""
    precious = tmp_path / "precious"
    precious.write_text("precious")
    monkeypatch.setattr(writing.secrets, "token_hex", lambda count: "0" * 2 * count)
    path.with_name(f".{path.name}.{writing._machine()}.{'0' * 16}.tmp").symlink_to(precious)
    with pytest.raises(FileExistsError):
        write(path)
    assert (precious.read_text(), path.read_text()) == ("precious", "old")


@posix
def test_what_only_looks_like_a_temporary_file_stops_nobody(path):
    os.mkfifo(path.with_name(f".{path.name}.{writing._machine()}.pipe.tmp"))
    path.with_name(f".{path.name}.{writing._machine()}.folder.tmp").mkdir()
    write(path)
    assert path.read_text() == "new"


@pytest.mark.parametrize("call", ["fsync", "replace", "write"])
def test_a_full_disk_is_told_by_the_files_name(path, monkeypatch, call):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((Path, "write_text") if call == "write" else (os, call)), full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write(path)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert path.read_bytes() == b"old"
    assert beside(path) == []


def test_a_folder_that_vanishes_is_named(path):
    def vanishing():
        with writing.replacing(path) as temporary:
            temporary.write_text("new")
            for file in path.parent.iterdir():
                file.unlink()
            path.parent.rmdir()

    with pytest.raises(FileNotFoundError, match=f"the folder {path.parent} is gone") as caught:
        vanishing()
    assert caught.value.filename == str(path)
    with pytest.raises(FileNotFoundError, match=f"the folder {path.parent} is gone") as caught:
        checkpoint.append_line(path.with_name("history.jsonl"), {})
    assert caught.value.filename == str(path.with_name("history.jsonl"))
    write(path)  # makes it again
    assert path.read_text() == "new"


def test_errors_of_the_block_that_are_not_the_systems_stay_as_they_are(path):
    error = OSError("with a text of its own")
    with pytest.raises(OSError, match="with a text of its own") as caught, writing.replacing(path):
        raise error
    assert caught.value is error
    assert (path.read_text(), beside(path)) == ("old", [])
