"""That the campaign's parts for damaged files and failing disks see what they look for: planted faults are found."""

import errno
import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest

import fastlstm
from fastlstm.training import checkpoint
from tests.campaign import damage, disk, files

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory in /proc")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("files")
    (made / "case").mkdir()
    fastlstm.Trainer(fastlstm.SequenceRegressor(2, 2, hidden_size=3, seed=0), progress=False).save(made / "char.safetensors")
    return made


def tries(kind, folder, count=100):
    for seed in range(count):
        files._try(kind(random.Random(seed), folder), folder / "case", kind.__name__)


def raw(rng, folder):
    return files._raw_checkpoint(rng, folder, ["char.safetensors"])


def test_flips_that_no_checksum_catches_are_found(folder, monkeypatch):
    tries(raw, folder)

    class Any(int):
        __hash__ = int.__hash__

        def __eq__(self, other):
            return True

        def __ne__(self, other):
            return False

    monkeypatch.setattr(checkpoint, "_crc32", lambda arrays: Any())
    with pytest.raises(AssertionError, match="was changed and read|were changed and read"):
        tries(raw, folder)


def test_memory_that_a_file_is_not_worth_is_found(folder):
    def greedy(rng, folder):
        return files.Damaged("a", b"", lambda path: np.ones(10**7))

    with pytest.raises(AssertionError, match="a file of 0 bytes took"):
        tries(greedy, folder, 1)


def test_other_errors_and_errors_without_the_files_name_are_found(folder):
    def raised(error):
        def use(path):
            raise error

        return lambda rng, folder: files.Damaged("a", b"", use)

    for error, found in ((KeyError("a"), KeyError), (fastlstm.FileError("somewhere"), AssertionError)):
        kind = raised(error)
        kind.__name__ = "raised"
        with pytest.raises(found):
            tries(kind, folder, 1)
    named = raised(fastlstm.FileError("case/a: damaged"))
    named.__name__ = "named"
    tries(named, folder, 1)


def test_a_seed_gives_the_same_damage(folder):
    arrays, record = checkpoint.read_checkpoint(folder / "char.safetensors")
    made = [
        damage.checkpoint_bytes(damage.damaged_arrays(rng, arrays), damage.damaged_json(rng, record))
        for rng in (random.Random(5), random.Random(5), random.Random(6))
    ]
    assert made[0] == made[1] != made[2]
    (folder / "whole.safetensors").write_bytes(damage.checkpoint_bytes(arrays, record))
    assert checkpoint.read_checkpoint(folder / "whole.safetensors")[1] == record


FAULTS = """
import ctypes, json, sys
from pathlib import Path
from fastlstm.training import checkpoint
path, found = Path(sys.argv[1]), {}
checkpoint.write_json(path, "old")
library = ctypes.CDLL(None)
for kind, name in enumerate(sys.argv[3:], 1):
    library.fault_arm(kind, 1, int(sys.argv[2]), 0)
    try:
        checkpoint.write_json(path, "new")
        found[name] = None
    except OSError as error:
        found[name] = [error.errno, error.filename, checkpoint.read_json(path)]
    found[name] = [library.fault_disarm(), *(found[name] or [])]
print(json.dumps(found))
"""


def test_each_kind_of_call_fails_when_told(tmp_path):
    """The preloaded library that the campaign of disks stands on: the call is told by the file's name."""
    library = disk.preloaded(tmp_path)
    if library is None:
        pytest.skip("no C compiler for Linux: calls fail by hooks in Python alone")
    run, kinds = tmp_path / "run" / "settings.json", disk.KINDS[1:]
    command = [sys.executable, "-c", FAULTS, run, str(errno.EDQUOT), *kinds]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"LD_PRELOAD": str(library)})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {kind: [1, errno.EDQUOT, str(run), "old"] for kind in kinds}
    assert os.listdir(run.parent) == [run.name]
