"""`fastlstm train`: what it prints and writes, and how an interrupted run goes on."""

import json
import os
import re
import shlex
import signal
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file

import fastlstm
from fastlstm.command import cli
from fastlstm.command import train as firstrun
from fastlstm.training import checkpoint
from tests.command.command import SMALL, TEXT


def test_a_first_run_shows_itself_learning(run, book, monkeypatch):
    monkeypatch.setattr(firstrun, "_SAMPLE_SECONDS", (0.0, 0.0, 1e9))
    package = Path(fastlstm.__file__).parent
    before = {path for path in package.rglob("*") if "__pycache__" not in path.parts}
    code, out, err = run("train", book, *SMALL, "--epochs", "3", "--lr", "0.02")
    assert code == 0
    assert {path for path in package.rglob("*") if "__pycache__" not in path.parts} == before

    samples = re.findall(r"^--- sample after (\d+) s(, loss [\d.]+)? -+\n(.*?)\n-{78}$", out, flags=re.M | re.S)
    assert len(samples) == 4
    assert [loss != "" for _, loss, _ in samples] == [False, True, True, True]
    texts = [text for *_, text in samples]
    assert all(len(text) == len(texts[0]) for text in texts)
    assert texts[0] != texts[-1]

    folder = Path("runs/a-book-gru-1")
    assert f"kept in {folder}" in out
    assert {path.name for path in folder.iterdir()} == {
        checkpoint.LAST,
        checkpoint.BEST,
        checkpoint.HISTORY,
        checkpoint.SETTINGS,
    }
    for wanted in ("trained ", "held-out text ", "bits per character", "characters per second", "microseconds per"):
        assert wanted in out
    assert re.search(r"peak memory +\d+ MiB", out)
    assert "article" not in out, "another shape of model is no measure for the article's"
    last = shlex.split(out.splitlines()[-1].removeprefix("to generate more"))
    assert last[-4:] == ["generate", str(folder), "--temperature", "0.8"]
    assert re.search(r"^epoch 3/3  step \d+  loss", err, flags=re.M)

    settings = json.loads((folder / checkpoint.SETTINGS).read_text())
    assert settings["text"] == str(book)
    assert (settings["cell"], settings["hidden_size"], settings["epochs"]) == ("gru", 8, 3)

    assert run("train", book, *SMALL, "--epochs", "1", "--quiet")[0] == 0
    assert Path("runs/a-book-gru-2").is_dir()


def test_the_default_is_two_minutes_on_the_text_that_python_carries(run, monkeypatch):
    seen = {}

    def fit(self, train, valid, **options):
        seen.update(options, tokens=train.describe()["tokens"])
        self.history.append({"loss": 1.0})

    monkeypatch.setattr(fastlstm.Trainer, "fit", fit)
    code, out, _ = run("train", "--hidden-size", "8", "--quiet")
    assert code == 0
    assert seen["time_limit"] == 120
    assert seen["epochs"] > 10**6
    assert seen["tokens"] > 300_000
    assert "learns topics" in out
    assert Path("runs/topics-lstm-1").is_dir()


def test_minutes_end_a_run(run, book):
    began = time.monotonic()
    code, out, err = run("train", book, *SMALL, "--minutes", "0.005", "--out", "here")
    assert code == 0
    assert time.monotonic() - began < 20
    assert "held-out text" in out
    assert re.search(r"^epoch \d+  step", err)
    assert Path("here", checkpoint.LAST).exists()


def test_the_articles_preset(run, book, monkeypatch):
    seen = {}

    def fit(self, train, valid, **options):
        seen.update(options, config=self.model.config, lr=self.optimizer.lr, train=train.describe())
        self.history.append({"loss": 1.0})
        for seconds in (1.0, 0.5):
            self.pace.count(1, 10_000, seconds, 1.0)

    monkeypatch.setattr(fastlstm.Trainer, "fit", fit)
    book_of_enough = Path("long.txt")
    book_of_enough.write_text(TEXT * 30, encoding="utf-8")
    code, out, _ = run("train", book_of_enough, "--preset", "article", "--cell", "gru", "--quiet")
    assert code == 0
    assert (seen["epochs"], seen["time_limit"], seen["lr"], seen["patience"]) == (50, None, 0.001, None)
    for name, value in (("cell", "gru"), ("hidden_size", 256), ("num_layers", 2), ("embedding_size", 256)):
        assert seen["config"][name] == value
    assert (seen["train"]["batch_size"], seen["train"]["seq_len"]) == (64, 100)
    # 50 x 1,003,854 characters at 20,000 in a second.
    assert "50 epochs x 1,003,854 characters: 41:50 here (projected from the speed)" in out
    assert "beside 14 hours in the article" in out


def test_the_preset_is_on_shakespeare(run, monkeypatch):
    def load(source):
        raise OSError(f"asked for {source}")

    monkeypatch.setattr("fastlstm.text.load_corpus", load)
    code, _, err = run("train", "--preset", "article")
    assert (code, err) == (1, "fastlstm: error: asked for shakespeare\n")


@pytest.mark.parametrize(
    ("schedule", "config"),
    [
        ("constant", None),
        ("cosine", {"type": "CosineWarmup"}),
        ("step", {"type": "StepDecay"}),
        ("plateau", {"type": "Plateau"}),
    ],
)
def test_schedules(run, book, monkeypatch, schedule, config):
    seen = []

    def fit(self, *_, **__):
        seen.append(self.schedule)
        self.history.append({"loss": 1.0})

    monkeypatch.setattr(fastlstm.Trainer, "fit", fit)
    assert run("train", book, *SMALL, "--epochs", "40", "--schedule", schedule, "--quiet")[0] == 0
    assert (seen[0] and seen[0].config["type"]) == (config and config["type"])


def test_other_tokens_and_options(run, book):
    options = ["--dropout", "0.1", "--tie-weights", "--dtype", "float64", "--clip-norm", "0", "--patience", "1"]
    options += ["--tokens", "word", "--split", "rows", "--epochs", "2", "--seed", "5", "--out", "w"]
    code, out, _ = run("train", book, *SMALL, *options)
    assert code == 0
    assert "words per second" in out
    assert "bits per character" not in out, "a text with <unk> is not comparable"
    run_ = fastlstm.load("w")
    assert run_.model.config["dtype"] == "float64"
    assert "head.weight" not in run_.model.params
    code, out, _ = run("generate", "w", "--prompt", "to be", "--length", "5", "--seed", "1")
    assert code == 0
    assert out.startswith("to be")


def test_a_model_that_diverges(run, book, monkeypatch):
    def broken(self, *_, **__):
        return float("nan"), None

    monkeypatch.setattr(fastlstm.LanguageModel, "train_batch", broken)
    code, _, err = run("train", book, *SMALL, "--epochs", "2", "--quiet")
    assert code == 1
    assert err.count("\n") == 1
    assert re.match(r"fastlstm: error: the loss is nan in step 1: try a learning rate below 0\.002", err)


# Going on


def interrupted(run, book, folder, monkeypatch, step, *options):
    """A run that Ctrl-C ends after a step; returns what was printed on stderr."""
    update = fastlstm.Trainer._apply

    def apply(self, *arguments):
        loss = update(self, *arguments)
        if self.steps == step:
            os.kill(os.getpid(), signal.SIGINT)
        return loss

    with monkeypatch.context() as patch:
        patch.setattr(fastlstm.Trainer, "_apply", apply)
        code, _, err = run("train", book, *SMALL, "--out", folder, "--quiet", *options)
    assert code == cli.INTERRUPTED
    return err


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_an_interrupted_run_goes_on_to_the_bit(run, book, monkeypatch):
    options = ["--epochs", "3", "--dropout", "0.3", "--num-layers", "2"]
    assert run("train", book, *SMALL, *options, "--out", "once", "--quiet")[0] == 0
    err = interrupted(run, book, "run", monkeypatch, 40, *options)
    assert "stopped after step 40; to go on" in err
    hint = shlex.split(err.splitlines()[-1])
    assert hint[-3:] == ["train", "--resume", "run"]
    code, out, _ = run(*hint[-3:], "--quiet")
    assert code == 0
    assert "run goes on from step 40 (epoch 2, batch " in out
    once, other = load_file(Path("once", checkpoint.LAST)), load_file(Path("run", checkpoint.LAST))
    assert once.keys() == other.keys()
    assert all(once[name].tobytes() == other[name].tobytes() for name in once)

    code, out, _ = run("train", "--resume", "run", "--quiet")
    assert code == 0
    assert "all 3 epochs are done; --epochs 13" in out
    assert run("train", "--resume", "run", "--epochs", "4", "--quiet")[0] == 0
    assert len(fastlstm.load(Path("run", checkpoint.LAST)).history) == 4


def test_a_run_by_minutes_goes_on_by_minutes_or_epochs(run, book):
    assert run("train", book, *SMALL, "--minutes", "0.001", "--out", "run", "--quiet")[0] == 0
    steps = fastlstm.load(Path("run", checkpoint.LAST)).history[-1]["step"]
    assert run("train", "--resume", "run", "--quiet")[0] == 0
    history = fastlstm.load(Path("run", checkpoint.LAST)).history
    assert history[-1]["step"] > steps
    epochs = int(history[-1]["epoch"]) + 2
    assert run("train", "--resume", "run", "--epochs", epochs, "--quiet")[0] == 0
    assert fastlstm.load(Path("run", checkpoint.LAST)).history[-1]["epoch"] == epochs
    settings = json.loads(Path("run", checkpoint.SETTINGS).read_text())
    assert (settings["minutes"], settings["epochs"]) == (None, epochs)


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_the_text_of_a_run_may_move_but_not_change(run, book, monkeypatch):
    text = Path("text.txt")
    text.write_text(TEXT, encoding="utf-8")
    interrupted(run, text, "run", monkeypatch, 5, "--epochs", "2")
    text.rename("moved.txt")
    code, _, err = run("train", "--resume", "run")
    assert code == 1
    assert "no such file" in err
    assert run("train", "moved.txt", "--resume", "run", "--quiet")[0] == 0
    text.write_text(TEXT + "!", encoding="utf-8")
    code, _, err = run("evaluate", "run")
    assert code == 1
    assert "not the text that run was trained on" in err


def test_a_text_by_standard_input(run, monkeypatch):
    def load(source):
        assert source == "-"
        return TEXT

    monkeypatch.setattr("fastlstm.text.load_corpus", load)
    assert run("train", "-", *SMALL, "--epochs", "1", "--quiet")[0] == 0
    code, _, err = run("evaluate", "runs/stdin-gru-1")
    assert code == 2
    assert "came by standard input" in err
    assert run("train", "-", "--resume", "runs/stdin-gru-1", "--epochs", "2", "--quiet")[0] == 0
