"""The command: what it prints, where it writes, its exit codes, and its words when something is wrong."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import fastlstm
from fastlstm import checkpoint, cli, engine, firstrun, progress
from fastlstm.generate import Run
from fastlstm.series import SequenceRegressor

TEXT = "to be, or not to be: that is the question.\ncaf\u00e9? na\u00efve.\n" * 60
SMALL = ["--hidden-size", "8", "--num-layers", "1", "--batch-size", "4", "--seq-len", "20", "--cell", "gru"]


def command(*words, env=(), **options):
    """The command in a process of its own."""
    options = {"capture_output": True, "encoding": "utf-8", "errors": "replace", "check": False, **options}
    return subprocess.run(
        [sys.executable, "-m", "fastlstm", *map(str, words)], env={**os.environ, **dict(env)}, **options
    )


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


# Training


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
        checkpoint.LAST, checkpoint.BEST, checkpoint.HISTORY, checkpoint.SETTINGS,
    }  # fmt: skip
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
            self.pace.count(10_000, seconds, 1.0)

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


# Bad use


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "COMMAND"),
        (["dance"], "invalid choice: 'dance'"),
        (["train", "--cell", "elman"], "invalid choice: 'elman'"),
        (["train", "--hidden-size", "0"], "expected a whole number from 1, got '0'"),
        (["train", "--hidden-size", "many"], "expected a whole number from 1, got 'many'"),
        (["train", "--minutes", "0"], "expected a number above 0, got '0'"),
        (["train", "--dropout", "1"], "expected a number from 0 to below 1, got '1'"),
        (["train", "--dropout", "-0.1"], "expected a number from 0 to below 1"),
        (["train", "--tokens", "bpe", "--vocab-size", "255"], "--vocab-size 255: bpe tokens are at least the 256"),
        (["train", "--clip-norm", "-1"], "expected a number from 0, got '-1'"),
        (["train", "--seed", "-1"], "from 0 to 2**64 - 1"),
        (["train", "--hidden", "8"], "unrecognized arguments"),
        (["train", "--device", "tpu"], "--device: expected cpu or cuda, got 'tpu'"),
        (["train", "--tie-weights", "--embedding-size", "8"], "--tie-weights: one table"),
        (["train", "--schedule", "cosine"], "give --epochs"),
        (["train", "--resume", "RUN", "--hidden-size", "8", "--out", "x"], "--hidden-size, --out: a resumed run keeps"),
        (["train", "--resume", f"RUN/{checkpoint.LAST}"], "name the run's folder"),
        (["train", "--out", "RUN"], "there is a run in it; --resume"),
        (["generate"], "RUN"),
        (["generate", "RUN", "--top-p", "2"], "expected a number above 0 and at most 1, got '2'"),
        (["generate", "RUN", "--top-p", "0"], "expected a number above 0 and at most 1, got '0'"),
        (["export", "RUN", "--to", "onyx"], "invalid choice: 'onyx'"),
        (["export", "RUN", "--to", "safetensors", "-o", checkpoint.BEST], "the name of a checkpoint"),
        (["export", "RUN", "--to", "onnx", "-o", checkpoint.LAST], "the name of a checkpoint"),
        (["export", "RUN", "--to", "onnx", "--weights", "int8"], "--weights: only with --to c, not --to onnx"),
        (["export", "RUN", "--to", "c", "--weights", "int4"], "invalid choice: 'int4'"),
    ],
)
def test_bad_use(run, trained, words, message):
    code, out, err = run(*(word.replace("RUN", str(trained)) for word in words))
    assert code == 2
    assert message in err
    assert out == ""
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--device", "cuda"], "device is 'cuda': "),
        (["train", "--device", "cuda:1"], "device is 'cuda:1': "),
        (["train", "missing.txt"], "missing.txt: no such file"),
        (["train", "--resume", "missing"], "missing: no such run"),
        (["train", "--resume", "."], "holds no checkpoint"),
        (["generate", "missing"], "missing: no such run"),
        (["generate", "RUN", "--prompt", "$"], "'$'"),
        (["evaluate", "RUN", "missing.txt"], "missing.txt: no such file"),
        (["export", "missing", "--to", "safetensors"], "missing: no such run"),
        (["export", "RUN", "--to", "safetensors", "-o", "/dev/null/x"], "/dev/null"),
        (["export", "RUN", "--to", "c", "-o", "/dev/null/x"], "/dev/null"),
    ],
)
def test_failures_are_one_line(run, trained, words, message):
    code, out, err = run(*(word.replace("RUN", str(trained)) for word in words))
    assert code == 1
    assert message in err
    assert err.startswith("fastlstm: error: ")
    assert err.count("\n") == 1
    assert out == ""


def test_debug_shows_where(run):
    with pytest.raises(FileNotFoundError):
        run("generate", "missing", "--debug")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "not enough memory; a smaller --batch-size, --seq-len or --hidden-size needs less"),
        (AssertionError("oh"), "AssertionError: oh (--debug shows where)"),
        (ValueError(), "ValueError:  (--debug shows where)"),
        (OSError(28, "No space left on device", "x/last"), "x/last: No space left on device"),
        (ValueError("two\n  lines"), "two lines"),
    ],
)
def test_every_error_has_words(run, monkeypatch, error, message):
    def fail():
        raise error

    monkeypatch.setattr(engine, "describe", fail)
    assert run("info") == (1, "", f"fastlstm: error: {message}\n")


def test_interruption_anywhere(run, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "describe", interrupt)
    assert run("info") == (130, "", "fastlstm: interrupted\n")


# The other commands


def test_generate(run, trained):
    code, out, err = run("generate", trained, "--prompt", "to be", "--length", "40", "--seed", "1")
    assert (code, err) == (0, "")
    assert out == "to be" + fastlstm.load(trained).generate("to be", 40, seed=1) + "\n"
    options = ["--temperature", "0.5", "--top-k", "5", "--top-p", "0.9", "--seed", "2"]
    code, out, _ = run("generate", trained, *options, "--length", "30")
    assert out == fastlstm.load(trained).generate("", 30, 0.5, 5, 0.9, 2) + "\n"


def test_a_terminal_is_not_obeyed(run, trained, monkeypatch):
    def stream(self, *_):
        yield from ("a\tb\n", "\x1b[2J")

    monkeypatch.setattr(Run, "stream", stream)
    assert run("generate", trained)[1] == "a\tb\n\x1b[2J\n", "a file gets what the model wrote"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert run("generate", trained)[1] == "a\tb\n?[2J\n"


def test_evaluate(run, trained, book):
    code, out, _ = run("evaluate", trained)
    assert code == 0
    found = float(re.search(r"^loss +([\d.]+) nats per token$", out, flags=re.M)[1])
    history = fastlstm.load(trained).history
    assert found == pytest.approx(min(record["valid_loss"] for record in history), abs=1e-4)
    for line in ("tokens ", "perplexity ", "bits per token ", "bits per character "):
        assert f"\n{line}" in f"\n{out}"
    assert run("evaluate", trained / checkpoint.BEST)[1] == out

    code, out, _ = run("evaluate", trained, book, "--json")
    assert code == 0
    results = json.loads(out)
    assert results["count"] == pytest.approx(len(TEXT), abs=3)
    assert results["bits_per_character"] == results["bits_per_token"]


def test_evaluate_wants_a_model_of_text(run):
    model = SequenceRegressor(2, 1, hidden_size=4, num_layers=1)
    fastlstm.Trainer(model, progress=False).save("run")
    code, _, err = run("evaluate", "run")
    assert code == 1
    assert "was not trained on text" in err


def test_export(run, trained):
    code, out, _ = run("export", trained, "--to", "safetensors", "-o", "new/weights.safetensors")
    assert code == 0
    weights = load_file("new/weights.safetensors")
    expected = fastlstm.load(trained).model.state_dict()
    assert weights.keys() == expected.keys()
    assert all((weights[name] == expected[name]).all() for name in expected)
    assert f"{len(weights)} tensors, {sum(array.size for array in weights.values()):,} numbers" in out
    assert run("export", trained, "--to", "safetensors")[0] == 0
    (trained / "weights.safetensors").unlink()
    code, _, err = run("generate", "new/weights.safetensors")
    assert code == 1
    assert "not a checkpoint of fastlstm" in err


def test_export_to_onnx(run, trained):
    pytest.importorskip("onnx")
    from fastlstm.adapters import onnx

    code, out, err = run("export", trained, "--to", "onnx", "-o", "new/book.onnx")
    assert (code, err) == (0, "")
    path = Path("new/book.onnx")
    assert out == f"{path}: {path.stat().st_size:,} bytes\n"
    book, ids = fastlstm.load(trained), np.array([[1, 2], [3, 4]])
    model = onnx.load(path)
    logits, state = book.model(ids)
    outputs = model({"ids": ids})
    np.testing.assert_allclose(outputs["logits"], logits, atol=1e-6)
    np.testing.assert_allclose(outputs["h_n"], state, atol=1e-6)
    assert json.loads(model.metadata["tokenizer"]) == book.tokenizer.config
    assert json.loads(model.metadata["model"]) == book.model.config
    assert run("export", trained, "--to", "onnx")[0] == 0
    assert (trained / "model.onnx").read_bytes() == path.read_bytes()
    (trained / "model.onnx").unlink()


def test_export_to_onnx_without_onnx(run, trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.delitem(sys.modules, "fastlstm.adapters.onnx", raising=False)
    monkeypatch.delattr("fastlstm.adapters.onnx", raising=False)
    message = 'fastlstm.adapters.onnx needs the package onnx: pip install "fastlstm[onnx]"'
    assert run("export", trained, "--to", "onnx") == (1, "", f"fastlstm: error: {message}\n")


def test_export_to_onnx_of_what_it_cannot_hold(run):
    pytest.importorskip("onnx")
    model = fastlstm.LanguageModel(5, hidden_size=8, proj_size=4, num_layers=1, seed=0)
    fastlstm.Trainer(model, progress=False).save("run")
    code, out, err = run("export", "run", "--to", "onnx")
    assert (code, out) == (1, "")
    assert "proj_size is 4; expected 0: ONNX's LSTM has no projection" in err
    assert not Path("run/model.onnx").exists()


@pytest.mark.parametrize("weights", [None, "float32", "int8"])
def test_export_to_c(run, trained, weights):
    from fastlstm.adapters import c

    words = [] if weights is None else ["--weights", weights]
    code, out, err = run("export", trained, "--to", "c", "-o", "new/code", *words)
    assert (code, err) == (0, "")
    wanted = c.export(fastlstm.load(trained).model, "wanted", weights=weights or "float32")
    for file in (wanted.header, wanted.source):
        assert Path("new/code", file.name).read_bytes() == file.read_bytes()
    assert out == (
        f"{Path('new/code', wanted.header.name)}, {Path('new/code', wanted.source.name)}: "
        f"{wanted.weight_bytes:,} bytes of weights, {wanted.state_bytes:,} of state\n"
    )
    assert run("export", trained, "--to", "c")[0] == 0
    assert (trained / "c" / wanted.source.name).exists()
    shutil.rmtree(trained / "c")


def test_info(run, monkeypatch):
    code, out, _ = run("info", "--json")
    assert code == 0
    assert json.loads(out)["fastlstm"] == fastlstm.__version__
    facts = {"threads": 2, "kernels": {"lstm": "avx2", "rnn_tanh": "portable"}, "sets": ("a", "b")}
    monkeypatch.setattr(engine, "describe", lambda: facts)
    lines = [f"fastlstm  {fastlstm.__version__}", "threads   2", "kernels", "  lstm      avx2", "  rnn_tanh  portable"]
    assert run("info") == (0, "\n".join([*lines, "sets      a, b", ""]), "")


def test_warmup(run, monkeypatch):
    def warmup(progress):
        progress("lstm.forward float32")

    monkeypatch.setattr(engine, "warmup", warmup)
    assert run("warmup") == (0, "lstm.forward float32\ndone in 0:00\n", "")


# As a process


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
    as_module = subprocess.run([sys.executable, "-m", "fastlstm.cli", "--version"], capture_output=True, check=False)
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
    plain = firstrun.peak_memory()
    assert plain > array.nbytes
    monkeypatch.setattr("builtins.open", refused)
    other = firstrun.peak_memory()
    assert 0.3 * plain < other < 30 * plain
    monkeypatch.setitem(sys.modules, "resource", None)
    assert firstrun.peak_memory() is None


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
    assert shlex.split(firstrun._command("generate", Path("a run"))) == [*start, "generate", "a run"]


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
