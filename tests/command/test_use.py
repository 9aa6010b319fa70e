"""The command's other words, and its words when something is wrong."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import fastlstm
from fastlstm.generate import Run
from fastlstm.models.series import SequenceRegressor
from fastlstm.runtime import info
from fastlstm.training import checkpoint
from tests.command.command import TEXT


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "COMMAND"),
        (["dance"], "invalid choice: 'dance'"),
        (["train", "--cell", "elman"], "invalid choice: 'elman'"),
        (["train", "--hidden-size", "0"], "expected a whole number from 1, got '0'"),
        (["train", "--hidden-size", "many"], "expected a whole number from 1, got 'many'"),
        (["train", "--minutes", "0"], "expected a number above 0, got '0'"),
        (["train", "--dropout", "1.5"], "expected a number from 0 to 1, got '1.5'"),
        (["train", "--dropout", "-0.1"], "expected a number from 0 to 1"),
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

    monkeypatch.setattr(info, "describe", fail)
    assert run("info") == (1, "", f"fastlstm: error: {message}\n")


def test_interruption_anywhere(run, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(info, "describe", interrupt)
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
    for name in [name for name in sys.modules if name.startswith("fastlstm.adapters.onnx")]:
        monkeypatch.delitem(sys.modules, name)
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
    monkeypatch.setattr(info, "describe", lambda: facts)
    lines = [f"fastlstm  {fastlstm.__version__}", "threads   2", "kernels", "  lstm      avx2", "  rnn_tanh  portable"]
    assert run("info") == (0, "\n".join([*lines, "sets      a, b", ""]), "")


def test_warmup(run, monkeypatch):
    def warmup(progress):
        progress("lstm.forward float32")

    monkeypatch.setattr(info, "warmup", warmup)
    assert run("warmup") == (0, "lstm.forward float32\ndone in 0:00\n", "")
