"""What a fit shows: a bar on a terminal, lines elsewhere, nothing where nobody looks."""

import math
import re
import sys
import time

import fastlstm
from fastlstm.training import progress
from fastlstm.training.progress import Progress, Status
from tests.support.training import language_model, stream, trainer_in


class Terminal:
    """A stderr that says it is a terminal."""

    encoding = "ascii"

    def __init__(self):
        self.text = ""

    def write(self, text):
        text.encode("ascii")
        self.text += text

    def flush(self):
        pass

    def isatty(self):
        return True


STATUS = Status(
    epoch=2, epochs=5, step=120, loss=1.5, perplexity=4.48169, rate=45678.0, unit="tokens", fraction=0.25, left=65.0
)


def test_status_lines():
    assert STATUS.line() == "epoch 2/5  step 120  loss 1.5000  perplexity 4.48  45.7k tokens/s  left 1:05"
    other = Status(epoch=2, epochs=None, step=3, loss=0.5, perplexity=None, rate=0.0, unit="steps", fraction=0.5, left=math.inf)
    assert other.line() == "epoch 2  step 3  loss 0.5000  left ?"


def test_a_bar_on_a_terminal(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(True) as progress:
        assert progress.due()
        progress.show(STATUS)
        assert not progress.due()
    assert re.search(r" 25%\|##.*\| epoch 2/5  loss 1\.5000  ppl 4\.48  45\.7k tokens/s  left 1:05", terminal.text)


def test_fit_on_a_terminal(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    fastlstm.Trainer(language_model()).fit(stream(), epochs=2)
    assert "epoch 2/2" in terminal.text
    assert "100%" in terminal.text


def test_lines_elsewhere(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_FIRST_LINE_SECONDS", 1e9)
    fastlstm.Trainer(language_model()).fit(stream(), epochs=2)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("epoch 2/2  step ")
    assert "tokens/s  left 0:00" in captured.err


def test_lines_are_rare(capsys, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Progress(True) as progress:
        for second, due in [(0, False), (1, False), (3, True), (4, False), (12, False), (13, True)]:
            now[0] = 1000.0 + second
            assert progress.due() == due, second
            if due:
                progress.show(STATUS)
    assert capsys.readouterr().err.count("\n") == 2


def test_nothing_is_shown_where_nobody_looks(capsys, monkeypatch):
    trainer_in(None).fit(stream())
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys, "stderr", None)
    fastlstm.Trainer(language_model()).fit(stream())


def test_a_closed_stderr_does_not_stop_the_training(monkeypatch):
    class Closed:
        def isatty(self):
            return False

        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Closed())
    history = fastlstm.Trainer(language_model()).fit(stream(), epochs=2)
    assert len(history) == 2
