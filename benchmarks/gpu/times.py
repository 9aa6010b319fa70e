"""Times layers and training steps on a GPU, against torch if it is installed. `benchmarks.gpu.points` calls it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

import fastlstm
from benchmarks.article import BATCH, HIDDEN_SIZE, NUM_LAYERS, STEPS, TIMES, VOCABULARY
from benchmarks.gpu import forms
from fastlstm.kernels.device import cuda
from fastlstm.training.update import Descent

CELLS = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}
ARTICLE = {cell: TIMES[f"{cell}_cpu_over_gpu"].value for cell in ("lstm", "gru")}  # CPU time / GPU time


@dataclass(frozen=True)
class Sizes:
    """The sizes of all measurements: those of the article, or such small ones that all of them run on a pretend device."""

    hidden: int = HIDDEN_SIZE
    rows: int = BATCH
    steps: int = STEPS
    first: int = 20  # steps of a form's first launches
    square: int = 4096
    cases: int = 14  # of each kind
    repeats: int = 200  # calls of the layer on several streams
    cells: tuple[str, ...] = ("lstm", "gru", "rnn")
    precisions: tuple[str, ...] = forms.PRECISIONS
    coarse: tuple[str, ...] = ("float32", "bfloat16")
    budget: float = 0.6  # seconds of timing

    def shapes(self) -> dict[str, tuple[str, int, int, int, str]]:
        """Return the shapes of the sections layers, forms and waves by name, the article's first."""
        if self == SMALL:
            return {forms.name("lstm", 32, 8, 3, "float32"): ("lstm", 32, 8, 3, "float32")}
        return forms.points()


SMALL = Sizes(32, 8, 3, 3, 192, 1, 3, ("lstm",), ("float32",), ("float32",), 0.0)


@cache
def torch_here() -> Any:
    """Return torch if it has a GPU, else None."""
    try:
        import torch
    except ImportError:
        return None
    return torch if torch.cuda.is_available() else None


def language_model(sizes: Sizes, cell: str, dtype: str, device: str, dropout: float = 0.0) -> tuple[Any, Any]:
    """Return the article's model and a trainer for it."""
    kind = {"hidden_size": sizes.hidden, "num_layers": NUM_LAYERS, "dropout": dropout, "dtype": dtype, "device": device}
    model = fastlstm.LanguageModel(VOCABULARY, cell, seed=0, **kind)
    return model, fastlstm.Trainer(model, progress=False)


def batch(sizes: Sizes) -> tuple[np.ndarray, np.ndarray]:
    """Return ids and targets of the article's shape."""
    ids, targets = np.random.default_rng(0).integers(0, VOCABULARY, (2, sizes.steps, sizes.rows))
    return ids, targets


def milliseconds(function: Callable[[int], Any], budget: float) -> float:
    """Return the median time of a call by CUDA events, after warm-up. The function gets the number of the call."""
    cupy = cuda.cupy()
    stream = cupy.cuda.get_current_stream()
    for k in range(6 if budget else 2):
        function(k)
    stream.synchronize()
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < (10 if budget else 2) or (time.perf_counter() - begin < budget and len(times) < 200):
        start, stop = cupy.cuda.Event(), cupy.cuda.Event()
        start.record(stream)
        function(len(times))
        stop.record(stream)
        stop.synchronize()
        times.append(cupy.cuda.get_elapsed_time(start, stop))
    return statistics.median(times)


def with_speedup(times: dict[str, float]) -> dict[str, float]:
    """Return times with the speed-up, if torch was timed."""
    return times | ({"speedup": times["torch"] / times["fastlstm"]} if "torch" in times else {})


def set_torch(dtype: str) -> Any:
    """Set torch's precision; return torch and the dtype of its tensors, or None twice if there is no torch."""
    torch = torch_here()
    if torch is None:
        return None, None
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = dtype == "tf32"
    return torch, {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(dtype, torch.float32)


def layers(cell: str, hidden: int, rows: int, steps: int, dtype: str, budget: float) -> dict[str, Any]:
    """Time one layer against torch's."""
    torch, kind = set_torch(dtype)
    layer = getattr(fastlstm, CELLS[cell])(hidden, hidden, dtype=dtype, device="cuda", seed=0)
    draw, engine = np.random.default_rng(0), layer._engine
    xs = [engine.located(draw.standard_normal((steps, rows, hidden)).astype(np.float32)) for _ in range(3)]
    dout = engine.located(np.ones((steps, rows, hidden), np.float32))

    def ours(k: int) -> None:
        _, _, backprop = layer.forward_train(xs[k % 3])
        backprop(dout)

    found = {
        "forward+backward": {"fastlstm": milliseconds(ours, budget)},
        "inference": {"fastlstm": milliseconds(lambda k: layer(xs[k % 3]), budget)},
    }
    if torch:
        peer = getattr(torch.nn, CELLS[cell])(hidden, hidden).cuda().to(kind)
        ts = [torch.from_dlpack(x).to(kind) for x in xs]
        dt = torch.ones_like(ts[0])

        def theirs(k: int) -> None:
            x = ts[k % 3].detach().requires_grad_()
            peer(x)[0].backward(dt)

        def inferred(k: int) -> None:
            with torch.inference_mode():
                peer(ts[k % 3])

        found["forward+backward"]["torch"] = milliseconds(theirs, budget)
        found["inference"]["torch"] = milliseconds(inferred, budget)
    return {way: with_speedup(times) for way, times in found.items()}


def step(sizes: Sizes, cell: str, dtype: str) -> dict[str, Any]:
    """Time the article's training step against torch's: with every loss read, and "unread", as in a fit."""
    torch, kind = set_torch(dtype)
    model, trainer = language_model(sizes, cell, dtype, "cuda")
    updates = Descent(model, fastlstm.Adam(1e-3), 1.0)
    ids, targets = batch(sizes)
    many = 10  # unread updates between two events: the host runs ahead of the device, as in a fit

    def unread(k: int) -> None:
        for _ in range(many):
            updates.step(ids, targets, updates.state, None)

    times = {"fastlstm": milliseconds(lambda k: trainer.step(ids, targets), sizes.budget)}
    times_unread = {"fastlstm": milliseconds(unread, sizes.budget) / many}
    if torch:
        theirs = torch_step(torch, kind, sizes, cell)
        times["torch"] = milliseconds(lambda k: theirs(True), sizes.budget)
        times_unread["torch"] = milliseconds(lambda k: [theirs(False) for _ in range(many)], sizes.budget) / many
    return with_speedup(times) | {
        "speedup unread" if name == "speedup" else f"{name} unread": time for name, time in with_speedup(times_unread).items()
    }


def torch_step(torch: Any, kind: Any, sizes: Sizes, cell: str) -> Callable[[bool], None]:
    """Return the same training step of torch.nn. Its argument says whether to read the loss."""
    embedding = torch.nn.Embedding(VOCABULARY, sizes.hidden).cuda()
    rnn = getattr(torch.nn, CELLS[cell])(sizes.hidden, sizes.hidden, NUM_LAYERS).cuda()
    head = torch.nn.Linear(sizes.hidden, VOCABULARY).cuda()
    params = [*embedding.parameters(), *rnn.parameters(), *head.parameters()]
    adam = torch.optim.Adam(params, 1e-3, fused=True)
    t_ids, t_targets = (torch.tensor(value, device="cuda") for value in batch(sizes))

    def run(read: bool) -> None:
        adam.zero_grad()
        with torch.autocast("cuda", kind, enabled=kind != torch.float32):
            logits = head(rnn(embedding(t_ids))[0])
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), t_targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        adam.step()
        if read:
            loss.item()

    return run


def ratio(sizes: Sizes, cell: str) -> dict[str, Any]:
    """Measure CPU time / GPU time of a training step in float32 whose loss is read."""
    found: dict[str, Any] = {"article": ARTICLE[cell]}
    ids, targets = batch(sizes)
    for device in ("cpu", "cuda"):
        _, trainer = language_model(sizes, cell, "float32", device)
        for _ in range(2):
            trainer.step(ids, targets)
        times: list[float] = []
        begin = time.perf_counter()
        while len(times) < 3 or (time.perf_counter() - begin < 3 * sizes.budget and len(times) < 100):
            start = time.perf_counter()
            trainer.step(ids, targets)
            times.append((time.perf_counter() - start) * 1e3)
        found[device] = statistics.median(times)
    return found | {"ratio": found["cpu"] / found["cuda"]}
