"""The command as a process: exit codes, signals, readers that go away; and its small parts."""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastlstm
from fastlstm.command import cli, train
from fastlstm.training import checkpoint, progress
from tests.command.command import SMALL, command


def test_help_and_version(run):
    names = ("train", "generate", "evaluate", "export", "info", "warmup")
    for words in (["--help"], *([name, "--help"] for name in names)):
        code, out, _ = run(*words)
        assert code == 0
        assert out.isascii()
        assert "fastlstm train" in out if words == ["--help"] else "examples:\n  fastlstm" in out
    assert run("--version") == (0, f"fastlstm {fastlstm.__version__}\n", "")


def test_exit_codes_of_the_process(tmp_path):
    assert command("--version").stdout == f"fastlstm {fastlstm.__version__}\n"
    failed = command("generate", tmp_path / "missing")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "Traceback" not in failed.stderr
    assert command("generate").returncode == 2
    as_module = subprocess.run([sys.executable, "-m", "fastlstm.command.cli", "--version"], capture_output=True, check=False)
    assert as_module.returncode == 0
    assert as_module.stdout


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_ctrl_c_on_the_process(book, tmp_path):
    words = [sys.executable, "-m", "fastlstm", "train", book, *SMALL, "--epochs", "100000", "--out", tmp_path / "run"]
    options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "encoding": "utf-8"}
    with subprocess.Popen([*map(str, words)], **options) as process:
        for line in process.stderr:
            # The kernels may say that they compile.
            if line.startswith("epoch "):
                break
        process.send_signal(signal.SIGINT)
        err = process.stderr.read()
    assert process.returncode == 130
    assert "Traceback" not in err
    assert re.search(r"stopped after step \d+; to go on", err)
    resumed = command("train", "--resume", tmp_path / "run", "--minutes", "0.001")
    assert resumed.returncode == 0
    assert "goes on from step" in resumed.stdout


@pytest.mark.skipif(os.name != "posix", reason="needs pipes of POSIX")
def test_a_reader_that_goes_away(book, trained, tmp_path):
    def through_a_closed_pipe(*words):
        reader, writer = os.pipe()
        os.close(reader)
        try:
            return command(*words, capture_output=False, stdout=writer, stderr=subprocess.PIPE)
        finally:
            os.close(writer)

    done = through_a_closed_pipe("generate", trained, "--length", "50")
    assert done.returncode == 0
    assert "rror" not in done.stderr
    done = through_a_closed_pipe("train", book, *SMALL, "--epochs", "1", "--out", tmp_path / "run")
    assert done.returncode == 0
    assert "rror" not in done.stderr
    assert (tmp_path / "run" / checkpoint.LAST).exists(), "the training went on without a reader"


def test_a_console_that_cannot_show_the_text(trained):
    words = ("generate", trained, "--prompt", "caf\u00e9", "--length", "5", "--seed", "1")
    done = command(*words, env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert done.returncode == 0
    assert done.stdout.startswith("caf?")


# Small parts


def test_peak_memory(monkeypatch):
    array = np.ones(2_000_000)
    plain = train.peak_memory()
    assert plain > array.nbytes
    monkeypatch.setattr("builtins.open", refused)
    other = train.peak_memory()
    assert 0.3 * plain < other < 30 * plain
    monkeypatch.setitem(sys.modules, "resource", None)
    assert train.peak_memory() is None


def refused(*_, **__):
    raise OSError


@pytest.mark.parametrize(
    ("program", "start"),
    [
        ("bin/fastlstm", ["bin/fastlstm"]),
        ("/elsewhere/pytest", [sys.executable, "-m", "fastlstm"]),
        ("on the path", ["fastlstm"]),
    ],
)
def test_commands_are_shown_as_they_can_be_typed(tmp_path, monkeypatch, program, start):
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "bin" / "fastlstm"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(script.parent) if program == "on the path" else "/nowhere")
    monkeypatch.setattr(sys, "argv", [str(script) if program == "on the path" else program])
    assert shlex.split(train._command("generate", Path("a run"))) == [*start, "generate", "a run"]


class Gone:
    """A stdout that nobody reads any more."""

    def write(self, text):
        raise BrokenPipeError

    def flush(self):
        pass

    def isatty(self):
        return False

    def fileno(self):
        raise OSError


def test_nobody_reads(run, trained, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Gone())
    assert cli.main(["generate", str(trained)]) == 0
    progress.write("a sample")


def test_a_bar_lets_text_pass(capsys):
    import tqdm

    assert tqdm
    progress.write("a sample")
    assert capsys.readouterr().out == "a sample\n"


def test_the_sample_starts_from_the_articles_prompt_where_it_can(run):
    Path("prompt.txt").write_text("To be or not to be?\n" * 200)
    code, out, _ = run("train", "prompt.txt", *SMALL, "--epochs", "1")
    assert code == 0
    assert out.count("\nTo be or not to be") == 2
    assert "--prompt 'To be or not to be'" in out.splitlines()[-1]
    for lacking in ("to be\n", "To be or to be\n"):
        Path("words.txt").write_text(lacking * 400)
        code, out, _ = run("train", "words.txt", *SMALL, "--epochs", "1", "--tokens", "word")
        assert code == 0
        assert "--prompt" not in out
