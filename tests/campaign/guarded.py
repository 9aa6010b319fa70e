"""Random layers, models, cells, losses and optimizers with every array at the edge of a forbidden page.

A trial draws one configuration and runs it twice: with usual arrays, and with every array of the engine and every argument
between two pages that nobody may touch, so that one element too many is a crash. Both must have the same bits, and what is left
of an array's pages must stay as it was. Arrays that are let go become forbidden for a while.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import mmap
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import fastlstm
from fastlstm import losses
from fastlstm.kernels.native import jit, team
from fastlstm.runtime import cpu

NAME, TRIALS = "guarded", 20_000
LIMIT = 120.0  # the first of an instruction set may have to compile
DTYPES = ("float32", "float64", "bfloat16")
SIZES = (1, 2, 3, 5, 7, 8, 9, 13, 15, 16, 17, 23, 31, 32, 33, 47, 48, 49, 63, 64, 65, 70)
PAGE, LEFT = mmap.PAGESIZE, 0xA5
KEPT = 4000  # regions that stay forbidden after their arrays

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_forbidden: collections.deque[tuple[int, int]] = collections.deque()

Put = Callable[..., np.ndarray]  # an array, and whether it may be written to


class Region:
    """Memory of one array, that ends or begins at a page that nobody may touch."""

    damaged = 0  # regions that were written to beside their arrays

    def __init__(self, shape: tuple[int, ...], dtype: Any, align: int, fill: int, at_end: bool) -> None:
        kind = np.dtype(dtype)
        self.bytes = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        self.room = max(1, -(-self.bytes // PAGE)) * PAGE
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self.base = _libc.mmap(None, self.room + 2 * PAGE, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
        if self.base == ctypes.c_void_p(-1).value:
            raise MemoryError(f"mmap: errno {ctypes.get_errno()}")
        self.begin = self.base + PAGE
        for page in (self.base, self.begin + self.room):
            _protect(page, PAGE)
        self.at = (self.begin + self.room - self.bytes) // align * align if at_end else self.begin
        ctypes.memset(self.begin, LEFT, self.room)
        ctypes.memset(self.at, fill, self.bytes)
        self.__array_interface__ = {"shape": shape, "typestr": kind.str, "data": (self.at, False), "version": 3}

    def __del__(self) -> None:
        before = ctypes.string_at(self.begin, self.at - self.begin)
        behind = ctypes.string_at(self.at + self.bytes, self.begin + self.room - self.at - self.bytes)
        Region.damaged += bool((before + behind).strip(bytes([LEFT])))
        _protect(self.base, self.room + 2 * PAGE)
        _forbidden.append((self.base, self.room + 2 * PAGE))
        if len(_forbidden) > KEPT:
            _libc.munmap(*_forbidden.popleft())


def _protect(address: int, size: int) -> None:
    if _libc.mprotect(address, size, 0):
        raise OSError(ctypes.get_errno(), "mprotect")


@contextlib.contextmanager
def guards(at_end: bool) -> Iterator[Put]:
    """Within the block, the engine's arrays are guarded; gives what makes guarded copies of arguments, read-only or not."""

    def make(shape: tuple[int, ...], dtype: Any, align: int, fill: int) -> np.ndarray:
        return np.asarray(Region(shape, dtype, align, fill, at_end))

    def copy(array: np.ndarray, writable: bool = False) -> np.ndarray:
        guarded = make(array.shape, array.dtype, array.itemsize, LEFT)
        guarded[...] = array
        if not writable:
            guarded.flags.writeable = False
        return guarded

    not_a_number = 0xFF  # in every byte of what is not initialised
    guarded: dict[str, Callable[..., np.ndarray]] = {
        "empty": lambda self, *shape: make(shape, self.storage, 64, not_a_number),
        "zeros": lambda self, *shape: make(shape, self.storage, 64, 0),
        "buffer": lambda self, size, dtype: make((size,), dtype, 16, 0),
    }
    usual = {name: getattr(cpu.Cpu, name) for name in guarded}
    # Of arrays for callers each engine has a function of its own.
    engines = {engine: engine.new for engine in map(cpu.shared, DTYPES)}
    try:
        for name, function in guarded.items():
            setattr(cpu.Cpu, name, function)
        for engine in engines:
            engine.new = partial(make, dtype=engine.storage, align=engine.itemsize, fill=not_a_number)
        yield copy
    finally:
        for name, function in usual.items():
            setattr(cpu.Cpu, name, function)
        for engine, new in engines.items():
            engine.new = new


@contextlib.contextmanager
def machine(rng: random.Random) -> Iterator[str]:
    """A dtype, and the instruction set, the way of products and the threads that serve it within the block."""
    dtype, threads = rng.choice(DTYPES), team.num_threads()
    isa = rng.choice([*jit.supported()[:1] * 3, *jit.supported()])
    with jit.use_isa(isa), jit.use_bfloat16_product(rng.choice(jit.bfloat16_products(isa))):
        team.set_num_threads(rng.choice((1, 2)))
        try:
            yield dtype
        finally:
            team.set_num_threads(threads)


def trial(rng: random.Random, folder: Path) -> int:
    """One configuration, twice."""
    act = rng.choices((layer, language_model, series, cell, by_hand), (6, 2, 2, 1, 2))[0]
    with machine(rng) as dtype:
        options = draw(rng, dtype)
        usual = bits(act(options, np.random.default_rng(options["seed"]), lambda array, writable=False: array))
        with guards(rng.random() < 0.7) as put:
            guarded = bits(act(options, np.random.default_rng(options["seed"]), put))
    differ = [k for k, (a, b) in enumerate(zip(usual, guarded, strict=True)) if a != b]
    assert not differ, f"{act.__name__} {options}: results {differ} differ"
    damaged, Region.damaged = Region.damaged, 0
    assert not damaged, f"{act.__name__} {options}: written to beside {damaged} arrays"
    return 1


def draw(rng: random.Random, dtype: str) -> dict[str, Any]:
    """Sizes and options of a configuration."""

    def size() -> int:
        return rng.choice((*SIZES, rng.randint(1, 100)))

    cell, hidden = rng.choice(("lstm", "gru", "rnn")), size()
    return {
        "seed": rng.randrange(2**31),
        "dtype": dtype,
        "storage": "float64" if dtype == "float64" else "float32",
        "cell": cell,
        "inputs": size(),
        "hidden": hidden,
        "layers": rng.choice((1, 1, 2, 3)),
        "bias": rng.random() < 0.8,
        "steps": rng.choice((1, 1, 2, 3, 5, 8, 17)),
        "batch": rng.choice((1, 1, 2, 3, 4, 5, 8, 9, 16, 17, 24, 25, 33)),
        "two_ways": rng.random() < 0.3,
        "batch_first": rng.random() < 0.3,
        "reset_after": rng.random() < 0.6,
        "projection": rng.randint(1, hidden - 1) if cell == "lstm" and hidden > 1 and rng.random() < 0.3 else 0,
        "nonlinearity": rng.choice(("tanh", "relu")),
        "dropout": rng.choice((0.0, 0.0, 0.4)),
        "state": rng.random() < 0.5,
        "lengths": rng.random() < 0.35,
        "resets": rng.random() < 0.3,
        "optimizer": rng.choice(("Adam", "AdamW", "SGD", "RMSprop")),
        "vocabulary": size() + 1,
        "tied": rng.random() < 0.3,
        "outputs": rng.choice((1, 2, 3, 5, 17)),
        "horizon": rng.choice((1, 3, 8)),
        "normalize": rng.random() < 0.6,
        "read": rng.choice(("float32", "float64")),
    }


def bits(results: Any) -> list[bytes]:
    """The bytes of all arrays and numbers."""
    if isinstance(results, tuple | list):
        return [one for part in results for one in bits(part)]
    return [] if results is None else [np.array(results).tobytes()]


def _options(o: dict[str, Any]) -> dict[str, Any]:
    """Of a layer's or model's constructor, that depend on the kind of cell."""
    return {"lstm": {"proj_size": o["projection"]}, "gru": {"reset_after": o["reset_after"]}, "rnn": {}}[o["cell"]]


def layer(o: dict[str, Any], numbers: np.random.Generator, put: Put) -> Any:
    """Inference, training, a second backward pass in the same buffers, an optimizer's step, a stream."""
    make = {"lstm": fastlstm.LSTM, "gru": fastlstm.GRU, "rnn": fastlstm.RNN}[o["cell"]]
    options = _options(o) | ({"nonlinearity": o["nonlinearity"]} if o["cell"] == "rnn" else {})
    net = make(
        o["inputs"],
        o["hidden"],
        o["layers"],
        bias=o["bias"],
        batch_first=o["batch_first"],
        dropout=o["dropout"],
        bidirectional=o["two_ways"],
        dtype=o["dtype"],
        seed=o["seed"],
        **options,
    )
    steps, batch, first = o["steps"], o["batch"], o["batch_first"]
    axes = (batch, steps) if first else (steps, batch)

    def floats(*shape: int) -> np.ndarray:
        return put(numbers.standard_normal(shape).astype(o["storage"]))

    def state() -> Any:
        count, lstm = o["layers"] * (1 + o["two_ways"]), o["cell"] == "lstm"
        h = floats(count, batch, o["projection"] or o["hidden"])
        return None if not o["state"] else (h, floats(count, batch, o["hidden"])) if lstm else h

    x, h = floats(*axes, o["inputs"]), state()
    how = {
        "lengths": put(numbers.integers(0, steps + 1, batch)) if o["lengths"] else None,
        "resets": put(numbers.random(axes) < 0.2) if o["resets"] else None,
    }
    results: list[Any] = [net(x, h, **how)]
    out, _, backprop = net.forward_train(x, h, **how)
    dout = floats(*out.shape)
    results += [out, backprop(dout, state()), net.grads.flat.copy()]
    backprop = net.forward_train(x, h, **how)[2]
    backprop(dout)
    results += [net.grads.flat.copy(), fastlstm.clip_grad_norm(net.grads, 0.5)]
    getattr(fastlstm, o["optimizer"])(lr=1e-2).step(net.params, net.grads)
    results += [net.params.flat.copy(), net(x, **how)]
    if not o["two_ways"]:
        stream = fastlstm.Stream(net, batch)
        for one in np.moveaxis(x, 1, 0)[:4] if first else x[:4]:
            results.append(stream(put(one.copy()), resets=put(numbers.random(batch) < 0.2)).copy())
        results.append(stream.state)
    return results


def language_model(o: dict[str, Any], numbers: np.random.Generator, put: Put) -> Any:
    """Training, evaluation, a backward pass by hand, a stream."""
    model = fastlstm.LanguageModel(
        o["vocabulary"],
        o["cell"],
        None if o["tied"] else o["inputs"],
        o["hidden"],
        o["layers"],
        o["dropout"],
        o["tied"],
        dtype=o["dtype"],
        seed=o["seed"],
        **_options(o),
    )
    trainer = fastlstm.Trainer(model, getattr(fastlstm, o["optimizer"])(lr=1e-2), progress=False)

    def ids() -> np.ndarray:
        return put(numbers.integers(0, o["vocabulary"], (o["steps"], o["batch"])).astype(np.int32))

    inputs, targets = ids(), ids()
    results: list[Any] = [trainer.step(inputs, targets), trainer.step(ids(), ids())]
    logits, state = model(inputs)
    results += [logits, state]
    out, state, backprop = model.forward_train(inputs, state)
    dlogits = put(numbers.standard_normal(out.shape).astype(out.dtype))
    results += [out, state, backprop(dlogits, state)[1], model.grads.flat.copy()]
    sums, state = model.eval_batch(inputs, targets, state)
    stream = fastlstm.Stream(model, o["batch"])
    return [*results, sums["loss"], state, [stream(put(one.copy())).copy() for one in inputs[:3]]]


def series(o: dict[str, Any], numbers: np.random.Generator, put: Put) -> Any:
    """A fit, a step, prediction, a backward pass by hand, a stream."""
    sizes = {
        "cell": o["cell"],
        "hidden_size": o["hidden"],
        "num_layers": o["layers"],
        "dropout": o["dropout"],
        "bidirectional": o["two_ways"],
        "normalize": o["normalize"],
        "dtype": o["dtype"],
        "seed": o["seed"],
        **_options(o),
    }
    batch, steps = o["batch"], o["steps"]
    model: Any
    if o["outputs"] % 2:
        model = fastlstm.SequenceRegressor(o["inputs"], o["outputs"], o["horizon"], **sizes)
        targets = numbers.standard_normal((batch, o["horizon"], o["outputs"])).astype(o["read"])
    else:
        model = fastlstm.SequenceClassifier(o["inputs"], o["outputs"], **sizes)
        targets = numbers.integers(0, o["outputs"], batch)
    inputs = numbers.standard_normal((batch, steps, o["inputs"])).astype(o["read"])
    lengths = numbers.integers(1, steps + 1, batch) if o["lengths"] else None
    trainer = fastlstm.Trainer(model, getattr(fastlstm, o["optimizer"])(lr=1e-2), progress=False)
    trainer.fit(fastlstm.Batches(inputs, targets, max(1, batch // 2), lengths=lengths), epochs=1)
    results: list[Any] = [model.params.flat.copy()]
    x, ends = put(inputs.swapaxes(0, 1).copy()), None if lengths is None else put(lengths)
    results.append(trainer.step(x, put(targets), lengths=ends))
    out, backprop = model.forward_train(x, ends)
    dout = put(numbers.standard_normal(out.shape).astype(out.dtype))
    results += [out, backprop(dout), model.grads.flat.copy(), model(x, ends)]
    if not o["two_ways"]:
        stream = fastlstm.Stream(model, batch)
        results += [stream(put(one.copy())).copy() for one in x[:3]]
    return results


def cell(o: dict[str, Any], numbers: np.random.Generator, put: Put) -> Any:
    """A cell, a linear map, an embedding and dropout, each forward and backward."""

    def floats(*shape: int) -> np.ndarray:
        return put(numbers.standard_normal(shape).astype(o["storage"]))

    make = {"lstm": fastlstm.LSTMCell, "gru": fastlstm.GRUCell, "rnn": fastlstm.RNNCell}[o["cell"]]
    how = {"dtype": o["dtype"], "seed": o["seed"]}
    batch, inputs, hidden = o["batch"], o["inputs"], o["hidden"]
    net: Any = make(inputs, hidden, o["bias"], **how)
    x, h = floats(batch, inputs), floats(batch, hidden)
    state = (h, floats(batch, hidden)) if o["cell"] == "lstm" else h
    out, backprop = net.forward_train(x, state)
    results = [net(x, state), out, backprop(state), net.grads.flat.copy()]
    linear = fastlstm.Linear(inputs, hidden, o["bias"], **how)
    out, backprop = linear.forward_train(x)
    results += [out, backprop(h), linear.grads.flat.copy()]
    embedding = fastlstm.Embedding(o["vocabulary"], inputs, **how)
    out, backprop = embedding.forward_train(put(numbers.integers(0, o["vocabulary"], (o["steps"], batch)).astype(np.int32)))
    results += [out, backprop(floats(*out.shape)), embedding.grads.flat.copy()]
    out, backprop = fastlstm.Dropout(0.3, **how).forward_train(x)
    return [*results, out, backprop(x)]


def by_hand(o: dict[str, Any], numbers: np.random.Generator, put: Put) -> Any:
    """Losses, optimizers, norms and clipping on arrays of the caller's own."""

    def floats(*shape: int) -> np.ndarray:
        return put(numbers.standard_normal(shape).astype(o["storage"]))

    def written(*shape: int) -> np.ndarray:
        return put(numbers.standard_normal(shape).astype(o["storage"]), True)

    shape = (o["steps"], o["batch"], o["vocabulary"])
    targets = put(numbers.integers(-1, o["vocabulary"], shape[:2]).astype(np.int32))
    results: list[Any] = [losses.softmax_cross_entropy(floats(*shape), targets, out=written(*shape))]
    for function in (losses.mean_squared_error, losses.mean_absolute_error):
        results += [function(floats(*shape), floats(*shape)), function(floats(*shape), floats(*shape), out=written(*shape))]
    params = {"w": written(o["hidden"], o["inputs"]), "b": written(o["hidden"])}
    grads = {name: written(*param.shape) for name, param in params.items()}
    optimizer = getattr(fastlstm, o["optimizer"])(lr=1e-2)
    for _ in range(2):
        norm = fastlstm.grad_norm(grads)
        results += [norm, fastlstm.clip_grad_norm(grads, 0.5 * norm + 1e-3), *map(np.copy, grads.values())]
        fastlstm.clip_grad_value(grads, 0.1)
        optimizer.step(params, grads)
        results += [*map(np.copy, params.values()), *map(np.copy, grads.values())]
    return results
