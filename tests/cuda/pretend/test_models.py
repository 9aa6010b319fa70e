"""Models under the real CuPy on the pretend device beside the CPU's: training, streams of tokens, generation, checkpoints; and
memory that runs out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastlstm
from fastlstm.generate import Run
from fastlstm.runtime.arrays import as_numpy
from fastlstm.text.tokens import CharTokenizer

IDS = np.random.default_rng(0).integers(0, 9, 90)


def off(got: Any, want: Any) -> float:
    got, want = (np.asarray(as_numpy(one), np.float64) for one in (got, want))
    return float(np.linalg.norm(got - want)) / max(float(np.linalg.norm(want)), 1e-30)


def model_on(device: str, dtype: str = "float32", cell: str = "lstm", **options: Any) -> fastlstm.LanguageModel:
    return fastlstm.LanguageModel(
        9, cell, hidden_size=12, num_layers=2, dropout=0.2, seed=3, dtype=dtype, device=device, **options
    )


@pytest.mark.parametrize(
    ("cell", "dtype", "bound"),
    [
        ("lstm", "float32", 1e-5),
        ("gru", "float64", 1e-12),
        ("rnn", "tf32", 5e-3),
        ("lstm", "bfloat16", 2e-2),
        ("gru", "float16", 2e-2),
    ],
)
def test_training_and_use(cell: str, dtype: str, bound: float) -> None:
    batches = np.random.default_rng(0).integers(0, 9, (4, 2, 5, 3))
    ends: list[list[Any]] = []
    for device in ("cpu", "cuda"):
        model = model_on(device, dtype if device == "cuda" or dtype == "float64" else "float32", cell)
        trainer = fastlstm.Trainer(model, progress=False)
        losses = [trainer.step(ids, targets) for ids, targets in batches]
        step = fastlstm.Stream(model, 2)
        streamed = [as_numpy(step([1, 2])).copy() for _ in range(4)]
        logits, state = model(batches[0, 0])
        _, _, backprop = model.forward_train(batches[0, 0], state)
        backprop(np.ones(logits.shape))
        ends.append([losses, model.params.flat, *streamed, logits, step.state[0]])
    for got, want in zip(ends[1], ends[0], strict=True):
        assert off(got, want) < bound


def test_generation_is_that_of_the_cpu() -> None:
    drawn = []
    for device in ("cpu", "cuda"):
        drawn.append(Run(model_on(device, "float64"), CharTokenizer("abcdefghi")).generate("abc", 20, seed=5))
    assert drawn[0] == drawn[1]


def test_a_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    def data() -> fastlstm.TokenStream:
        return fastlstm.TokenStream(IDS, batch_size=4, seq_len=5)

    trainer = fastlstm.Trainer(model_on("cuda", "tf32"), checkpoint_dir=tmp_path / "run", progress=False, seed=1)
    trainer.fit(data(), data(), epochs=1)
    resumed = fastlstm.Trainer.resume(tmp_path / "run", data(), data(), progress=False)
    for one in (resumed, trainer):
        one.fit(data(), data(), epochs=2)
    assert np.array_equal(as_numpy(resumed.model.params.flat), as_numpy(trainer.model.params.flat))
    run = fastlstm.load(tmp_path / "run", device="cpu")
    ids = IDS[:20].reshape(10, 2)
    assert off(fastlstm.load(tmp_path / "run").model(ids)[0], run.model(ids)[0]) < 5e-3


def test_models_of_numbers() -> None:
    draw, ends = np.random.default_rng(0), []
    x, targets, lengths = draw.normal(3, 2, (6, 4, 3)), draw.normal(-2, 3, (4, 1, 2)), np.array([6, 2, 1, 4])
    for device in ("cpu", "cuda"):
        model = fastlstm.SequenceRegressor(3, 2, hidden_size=6, bidirectional=True, num_layers=2, seed=1, device=device)
        trainer = fastlstm.Trainer(model, progress=False)
        losses = [trainer.step(x, targets) for _ in range(3)]
        ends.append([losses, model.params.flat, model(x, lengths=lengths)])
    for got, want in zip(ends[1], ends[0], strict=True):
        assert off(got, want) < 1e-5


def test_memory_that_runs_out_leaves_all_as_it_was() -> None:
    import cupy

    from fastlstm.kernels.device.cuda import OutOfMemory
    from tests.cuda.pretend.machine import machine

    inputs, targets = IDS[:12].reshape(6, 2), IDS[1:13].reshape(6, 2)
    calm = fastlstm.Trainer(model_on("cuda"), progress=False)
    wanted = [calm.step(inputs, targets) for _ in range(3)]
    calm = None
    trainer = fastlstm.Trainer(model_on("cuda"), progress=False)
    before, failed, room = as_numpy(trainer.model.params.flat), list[str](), 0
    trainer.model._engine.device._workspaces.clear()
    cupy.get_default_memory_pool().free_all_blocks()
    taken, loss = machine.memory.total, None
    while loss is None:
        machine.room = taken + room
        try:
            loss = trainer.step(inputs, targets)
        except OutOfMemory as error:
            failed.append(str(error))
        if loss is None:
            assert np.array_equal(as_numpy(trainer.model.params.flat), before)
            assert trainer.steps == 0
            trainer.model.dropout_calls = 0
        room = room * 2 + 2048
    assert len(failed) > 5
    assert all("bytes for an array" in text and "on cuda:0" in text for text in failed)
    machine.room = 1 << 40
    assert [loss, *(trainer.step(inputs, targets) for _ in range(2))] == wanted
