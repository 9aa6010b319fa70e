"""The examples run as users run them, and show what they promise."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_forecast_is_better_than_naive(capsys):
    errors = load("forecast").main(["--hours", "1500", "--epochs", "14"])
    assert errors["gru"] < errors["same hour yesterday"] < errors["last value"]
    printed = capsys.readouterr().out
    assert "same hour yesterday" in printed
    assert len(printed.splitlines()[-1].split()) == 2 + 12


def test_waveforms_are_told_apart(capsys):
    accuracy = load("classify").main(["--waves", "600", "--steps", "40", "--epochs", "8"])
    assert accuracy > 0.6  # a quarter would be chance
    assert "sawtooth" in capsys.readouterr().out


def test_the_compiled_loop_is_the_layer(capsys):
    assert load("compiled_loop").main(["--steps", "3000", "--hidden", "16"]) == 0
    assert "us a step" in capsys.readouterr().out


@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.py")))
def test_each_is_a_program_with_help(name):
    if name.startswith("torch_"):
        pytest.importorskip("torch")
    done = subprocess.run([sys.executable, EXAMPLES / f"{name}.py", "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage:")
