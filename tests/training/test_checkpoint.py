"""Checkpoint files: whole or absent, never executed, refused when damaged."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fastlstm.training import checkpoint
from fastlstm.training.checkpoint import CheckpointError

ARRAYS = {
    "weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "strided": np.arange(24, dtype=np.float64).reshape(4, 6).T[::2],
    "empty": np.zeros((0, 3), np.float32),
    "scalar": np.array(2.5),
    "ids": np.array([-1, 2**40]),
    "mask": np.array([True, False, True]),
    "half": np.array([1.5, -2], np.float16),
}
RECORD = {"steps": 7, "loss": 0.1 + 0.2, "names": ["a", "\u00fc"], "nothing": None}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "last.safetensors"
    checkpoint.write_checkpoint(path, ARRAYS, RECORD)
    return path


def test_round_trip_is_exact(file):
    arrays, record = checkpoint.read_checkpoint(file)
    assert record == RECORD
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype
        assert arrays[name].shape == array.shape
        assert arrays[name].tobytes() == array.tobytes()
        assert arrays[name].flags.writeable


def test_the_file_is_plain_safetensors(file):
    arrays = load_file(file)
    assert (arrays["strided"] == ARRAYS["strided"]).all()


def test_nothing_else_is_left_in_the_folder(file):
    assert os.listdir(file.parent) == [file.name]


def test_a_failed_write_leaves_the_old_file(file, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    before = file.read_bytes()
    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            with pytest.raises(OSError, match="No space left"):
                checkpoint.write_checkpoint(file, {"weight": np.zeros(3)}, {})
            with pytest.raises(OSError, match="No space left"):
                checkpoint.write_json(file.with_name("settings.json"), {})
        assert file.read_bytes() == before
        assert os.listdir(file.parent) == [file.name]


def test_a_folder_that_cannot_be_synced_is_no_failure(file, monkeypatch):
    real = os.fsync
    calls = []

    def refuse_folders(descriptor):
        calls.append(descriptor)
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(22, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    checkpoint.write_checkpoint(file, {"weight": np.ones(3)}, {})
    assert len(calls) == 2
    assert (checkpoint.read_checkpoint(file)[0]["weight"] == 1).all()


WRITER = """
import sys
import numpy as np
from fastlstm.training import checkpoint
print("ready", flush=True)
number = 0
while True:
    number += 1
    checkpoint.write_checkpoint(sys.argv[1], {"weight": np.full(300_000, number, np.float32)}, {"number": number})
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_writer_leaves_a_whole_checkpoint(tmp_path):
    path = tmp_path / "last.safetensors"
    for wait in (0.02, 0.051, 0.083):
        with subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            while not path.exists():
                time.sleep(0.001)
            time.sleep(wait)
            process.kill()
        arrays, record = checkpoint.read_checkpoint(path)
        assert (arrays["weight"] == record["number"]).all()
        others = [entry.name for entry in tmp_path.iterdir() if entry != path]
        assert len(others) <= 1
        assert all(name.startswith(f".{path.name}.") for name in others)
    checkpoint.write_checkpoint(path, {"weight": np.zeros(3)}, {"number": 0})
    assert os.listdir(tmp_path) == [path.name]


def test_writers_do_not_disturb_each_other(tmp_path):
    path, failures, done = tmp_path / "last.safetensors", [], threading.Event()

    def write(number):
        try:
            for _ in range(10):
                checkpoint.write_checkpoint(path, {"weight": np.full(100_000, number, np.float32)}, {"number": number})
        except Exception as error:
            failures.append(error)

    def read():
        while not done.is_set():
            try:
                arrays, record = checkpoint.read_checkpoint(path)
                assert (arrays["weight"] == record["number"]).all()
            except Exception as error:
                failures.append(error)

    write(0)
    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write, args=(number,)) for number in (1, 2, 3)]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert not failures
    assert os.listdir(tmp_path) == [path.name]


def damaged(data):
    """Ways in which a file's bytes can be wrong."""
    header = int.from_bytes(data[:8], "little")
    flipped = bytearray(data)
    flipped[-2] ^= 0x40
    return {
        "empty": b"",
        "cut": data[: len(data) // 2],
        "one byte short": data[:-1],
        "one byte more": data + b"\0",
        "other": b"PK\x03\x04 this is an archive or so, and no checkpoint",
        "a number changed": bytes(flipped),
        "record changed": data.replace(b'\\"steps\\": 7', b'\\"steps\\": 9'),
        "a name in the record changed": data.replace(b'\\"nothing\\"', b'\\"nothinh\\"'),
        "record cut": data[:8] + data[8 : 8 + header].replace(b'\\"record\\"', b'\\"dorecr\\"') + data[8 + header :],
        "record no JSON": data[:8] + data[8 : 8 + header].replace(b'{\\"format', b'(\\"format') + data[8 + header :],
    }


@pytest.mark.parametrize("kind", damaged(bytes(100)))
def test_damage_is_told(file, kind):
    file.write_bytes(damaged(file.read_bytes())[kind])
    with pytest.raises(CheckpointError, match=r"last\.safetensors is damaged"):
        checkpoint.read_checkpoint(file)


def test_a_checkpoint_from_before_records_had_a_checksum(file):
    data = file.read_bytes()
    # As long as before, so that all else stays in its place.
    file.write_bytes(re.sub(rb'\\"record_crc32\\": \d+, ', lambda entry: b" " * len(entry[0]), data))
    assert b"record_crc32" not in file.read_bytes()
    assert checkpoint.read_checkpoint(file)[1] == RECORD


def test_the_record_is_read_as_json_has_it(file):
    checkpoint.write_checkpoint(file, {}, {"sizes": (1, 2), "names": {3: "c"}})
    assert checkpoint.read_checkpoint(file)[1] == {"sizes": [1, 2], "names": {"3": "c"}}


def test_other_safetensors_files_are_told(file):
    checkpoint.write_tensors(file, {"weight": np.zeros(3)}, {"format": "pt"})
    with pytest.raises(CheckpointError, match="not a checkpoint of fastlstm"):
        checkpoint.read_checkpoint(file)


def test_a_newer_format_is_told(file, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT", 99)
        patch.setattr(checkpoint, "__version__", "9.0")
        checkpoint.write_checkpoint(file, {}, {})
    with pytest.raises(CheckpointError, match=r"format 99, written by fastlstm 9\.0"):
        checkpoint.read_checkpoint(file)


def test_types_that_safetensors_lacks_are_refused(file):
    before = file.read_bytes()
    for array in (np.array(["text"]), np.array([None]), np.zeros(2, complex)):
        with pytest.raises(TypeError, match="arrays\\['x'\\]"):
            checkpoint.write_checkpoint(file, {"x": array}, {})
    with pytest.raises(ValueError, match="JSON"):
        checkpoint.write_checkpoint(file, {}, {"loss": float("nan")})
    assert file.read_bytes() == before


def test_find_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such run"):
        checkpoint.find_checkpoint(tmp_path / "missing", best=True)
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        checkpoint.find_checkpoint(tmp_path, best=True)
    with pytest.raises(FileNotFoundError, match="no such checkpoint file"):
        checkpoint.read_checkpoint(tmp_path)
    last, best = tmp_path / checkpoint.LAST, tmp_path / checkpoint.BEST
    last.touch()
    assert checkpoint.find_checkpoint(tmp_path, best=True) == last
    best.touch()
    assert checkpoint.find_checkpoint(tmp_path, best=True) == best
    assert checkpoint.find_checkpoint(tmp_path, best=False) == last
    assert checkpoint.find_checkpoint(best, best=False) == best


def test_checkpoint_file():
    assert checkpoint.checkpoint_file("run") == Path("run/last.safetensors")
    assert checkpoint.checkpoint_file("run/now.safetensors") == Path("run/now.safetensors")


def test_json_and_lines(tmp_path):
    path = tmp_path / "new" / "settings.json"
    checkpoint.write_json(path, {"a": [1, None]})
    assert checkpoint.read_json(path) == {"a": [1, None]}
    path.write_text("{")
    with pytest.raises(CheckpointError, match="not JSON"):
        checkpoint.read_json(path)

    lines = tmp_path / "history.jsonl"
    checkpoint.write_lines(lines, [{"epoch": 1}, {"epoch": 2}])
    checkpoint.append_line(lines, {"epoch": 3})
    assert [json.loads(line)["epoch"] for line in lines.read_text().splitlines()] == [1, 2, 3]


def test_plain_is_what_json_gives_back():
    value = {"a": (1, np.float32(0.5), np.int64(3)), 2: float("inf"), "path": Path("x"), "nan": [float("nan")]}
    plain = checkpoint.plain(value)
    assert plain == {"a": [1, 0.5, 3], "2": None, "path": "x", "nan": [None]}
    assert json.loads(json.dumps(plain)) == plain
