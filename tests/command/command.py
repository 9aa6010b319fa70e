"""The command in a process of its own, and options for a small run."""

import os
import subprocess
import sys

TEXT = "to be, or not to be: that is the question.\ncaf\u00e9? na\u00efve.\n" * 60
SMALL = ["--hidden-size", "8", "--num-layers", "1", "--batch-size", "4", "--seq-len", "20", "--cell", "gru"]


def command(*words, env=(), **options):
    """The command in a process of its own."""
    options = {"capture_output": True, "encoding": "utf-8", "errors": "replace", "check": False, **options}
    return subprocess.run([sys.executable, "-m", "fastlstm", *map(str, words)], env={**os.environ, **dict(env)}, **options)
