"""The examples for scikit-learn's users find what they promise, and draw it."""

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("statsmodels")

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def no_window(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")


def test_carbon_dioxide_is_forecast_better_than_naively(tmp_path, capsys):
    picture = tmp_path / "co2.png"
    scores = load("sklearn_forecast").main(["--folds", "2", "--picture", str(picture)])
    assert scores["forecast"]["mae"] < 0.6 * scores["seasonal naive"]["mae"]
    assert scores["forecast"]["mae"] < 0.6 * scores["naive"]["mae"]
    assert 0.5 < scores["forecast"]["coverage"] < 1
    assert "Next months:" in capsys.readouterr().out
    pytest.importorskip("matplotlib")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_two_strongest_el_ninos_are_found(tmp_path, capsys):
    picture = tmp_path / "nino.png"
    years = load("sklearn_anomaly").main(["--picture", str(picture)])
    assert {1983, 1998} <= set(years)
    assert len(years) < 8
    assert "anomalous" in capsys.readouterr().out
    pytest.importorskip("matplotlib")
    assert picture.read_bytes().startswith(b"\x89PNG")
