"""Plain PyTorch programs with one line changed: the same loss curve, the same checkpoints."""

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs PyTorch, which is what it serves")

import torch

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
SMALL = {
    "torch_language_model": [
        "--words",
        "9000",
        "--vocabulary",
        "500",
        "--embedding",
        "32",
        "--hidden",
        "48",
        "--batch",
        "8",
        "--steps",
        "35",
        "--epochs",
        "2",
    ],
    "torch_forecaster": ["--histories", "400", "--hidden", "24", "--batch", "32", "--longest", "72", "--epochs", "4"],
}


def main(name, *arguments):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main([*SMALL[name], *map(str, arguments)])


@pytest.mark.parametrize("name", SMALL)
def test_the_loss_curve_is_torchs(name, capsys):
    ours, theirs = main(name), main(name, "--plain")
    for kind in ("train", "valid"):
        a, b = torch.tensor(ours[kind]), torch.tensor(theirs[kind])
        assert torch.allclose(a, b, rtol=2e-3), f"{kind}: {(a / b - 1).abs().max():.1e}"
    quarter = len(ours["train"]) // 4
    assert sum(ours["train"][-quarter:]) < 0.97 * sum(ours["train"][:quarter])
    assert "epoch 2: train" in capsys.readouterr().out


def test_a_checkpoint_goes_on_with_and_without_the_line(tmp_path):
    whole = main("torch_language_model")
    for first, second in (((), ("--plain",)), (("--plain",), ())):
        path = tmp_path / f"checkpoint-{len(first)}.pt"
        main("torch_language_model", "--checkpoint", path, *first)
        state = torch.load(path)
        assert state["epoch"] == 1
        assert [name for name in state["model"] if name.startswith("lstm")][:2] == ["lstm.weight_ih_l0", "lstm.weight_hh_l0"]
        torch.save(state | {"epoch": 0}, path)  # as if it had been stopped after the first
        gone_on = main("torch_language_model", "--checkpoint", path, *second)
        assert len(gone_on["valid"]) == 1
        assert gone_on["valid"][0] < whole["valid"][0]
