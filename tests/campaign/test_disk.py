"""The preloaded library that the campaign of disks stands on: each kind of call does fail, and is told by the file's name."""

import errno
import json
import os
import subprocess
import sys

import pytest

from tests.campaign import disk

CODE = """
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
    library = disk.preloaded(tmp_path)
    if library is None:
        pytest.skip("no C compiler for Linux: calls fail by hooks in Python alone")
    run, kinds = tmp_path / "run" / "settings.json", disk.KINDS[1:]
    command = [sys.executable, "-c", CODE, run, str(errno.EDQUOT), *kinds]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"LD_PRELOAD": str(library)})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {kind: [1, errno.EDQUOT, str(run), "old"] for kind in kinds}
    assert os.listdir(run.parent) == [run.name]
