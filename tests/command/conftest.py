"""A text, a run that was trained on it, and the command in this process."""

import pytest

from fastlstm.command import cli
from tests.command.command import SMALL, TEXT


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "a book.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(book, tmp_path_factory):
    """A finished run of two epochs."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    arguments = ["train", str(book), *SMALL, "--epochs", "2", "--lr", "0.02", "--out", str(folder), "--quiet"]
    assert cli.main(arguments) == 0
    return folder


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """The command in this process, from an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*words):
        code = cli.main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
