"""Optimizers, norms and clipping, against the float64 reference and PyTorch, and what they promise beside.

The kernels of update.py are reached by way of them.
"""

import math
import tracemalloc

import numpy as np
import pytest

from fastlstm import optim
from fastlstm.kernels import reference
from fastlstm.kernels.native import jit, team
from fastlstm.runtime.params import Slots

DTYPES = pytest.mark.parametrize("dtype", ["float64", "float32"])
TOLERANCE = {"float64": 1e-12, "float32": 1e-6}
CASES = {
    "sgd": ("SGD", {"lr": 0.1}),
    "sgd-decayed": ("SGD", {"lr": 0.1, "weight_decay": 0.03}),
    "sgd-momentum": ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.03}),
    "sgd-nesterov": ("SGD", {"lr": 0.1, "momentum": 0.8, "nesterov": True}),
    "rmsprop": ("RMSprop", {}),
    "rmsprop-momentum": ("RMSprop", {"lr": 0.02, "alpha": 0.9, "eps": 1e-3, "weight_decay": 0.03, "momentum": 0.7}),
    "adam": ("Adam", {}),
    "adam-decayed": ("Adam", {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.03}),
    "adamw": ("AdamW", {}),
    "adamw-decayed": ("AdamW", {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.3}),
}
every_case = pytest.mark.parametrize("name", CASES)


@pytest.fixture(autouse=True)
def threads():
    before = team.num_threads()
    yield
    team.set_num_threads(before)


def made(name, **options):
    kind, arguments = CASES[name]
    return getattr(optim, kind)(**{**arguments, **options})


def drawn(count, size, dtype):
    """Start and gradients of `count` steps."""
    rng = np.random.default_rng(size)
    return rng.standard_normal(size).astype(dtype), rng.standard_normal((count, size)).astype(dtype)


def slots_of(values, dtype):
    """Parameters and gradients that hold the values as a matrix and a vector."""
    size = values.size
    slots = Slots({"weight": (1, size // 2), "bias": (size - size // 2,)}, dtype)
    slots.params.flat[:] = values
    return slots


def referred(name, start, gradients):
    """The parameters after all steps, from the float64 reference."""
    kind, options = CASES[name]
    state = [np.zeros(start.size)] * {"SGD": 1, "RMSprop": 2, "Adam": 2, "AdamW": 2}[kind]
    param = start
    for number, gradient in enumerate(gradients, start=1):
        step = (number,) if kind.startswith("Adam") else ()
        param, *state = getattr(reference, kind.lower())(param, gradient, *state, *step, **options)
    return param


@DTYPES
@pytest.mark.parametrize("size", [1, 7, 64, 1003])
@every_case
def test_against_the_reference(name, size, dtype):
    start, gradients = drawn(20, size, dtype)
    optimizer, params = made(name), {"w": start.copy()}
    slots = slots_of(start, dtype)
    flat = made(name)
    for gradient in gradients:
        optimizer.step(params, {"w": gradient})
        slots.grads.flat[:] = gradient
        flat.step(slots.params, slots.grads)
    wanted = referred(name, start, gradients)
    assert np.linalg.norm(params["w"] - wanted) <= TOLERANCE[dtype] * np.linalg.norm(wanted)
    assert slots.params.flat.tobytes() == params["w"].tobytes()
    assert slots.params.version == 21
    assert optimizer.steps == flat.steps == 20


@DTYPES
@every_case
def test_against_torch(name, dtype):
    torch = pytest.importorskip("torch", reason="needs PyTorch, which is what it compares with")
    start, gradients = drawn(20, 333, dtype)
    kind, options = CASES[name]
    wanted = torch.tensor(start, requires_grad=True)
    theirs, ours, params = getattr(torch.optim, kind)([wanted], **options), made(name), {"w": start.copy()}
    for gradient in gradients:
        wanted.grad = torch.tensor(gradient)
        theirs.step()
        ours.step(params, {"w": gradient})
    wanted = wanted.detach().numpy()
    assert np.linalg.norm(params["w"] - wanted) <= TOLERANCE[dtype] * np.linalg.norm(wanted)


@DTYPES
@every_case
def test_same_bits_everywhere(name, dtype):
    start, gradients = drawn(2, 40_007, dtype)
    results = []
    for count in (1, 2):
        team.set_num_threads(count)
        for isa in jit.supported():
            with jit.use_isa(isa):
                optimizer, params = made(name), {"w": start.copy()}
                for gradient in gradients:
                    optimizer.step(params, {"w": gradient})
            results.append(params["w"].tobytes())
    assert len(set(results)) == 1


@every_case
def test_scale_is_a_factor_on_the_gradients(name):
    start, gradients = drawn(3, 55, "float64")
    ours, theirs, a, b = made(name), made(name), {"w": start.copy()}, {"w": start.copy()}
    for gradient in gradients:
        before = gradient.copy()
        ours.step(a, {"w": gradient}, scale=0.25)
        theirs.step(b, {"w": 0.25 * gradient})
        assert np.array_equal(gradient, before)
    assert np.array_equal(a["w"], b["w"])


@every_case
def test_gradients_in_arrays_of_ones_own(name):
    """Parameters of a model with a plain mapping of gradients."""
    start, gradients = drawn(3, 9, "float32")
    slots, optimizer, plain, params = slots_of(start, "float32"), made(name), made(name), {"w": start.copy()}
    for gradient in gradients:
        optimizer.step(slots.params, {"weight": gradient[:4].reshape(1, 4), "bias": gradient[4:]})
        plain.step(params, {"w": gradient})
    assert np.array_equal(slots.params.flat, params["w"])
    assert slots.params.version == 4


@every_case
def test_goes_on_from_its_state(name):
    start, gradients = drawn(6, 21, "float32")
    whole, a = made(name), slots_of(start, "float32")
    first, b = made(name), slots_of(start, "float32")
    for number, gradient in enumerate(gradients):
        if number == 3:
            second = optim.from_config(first.config)
            second.load_state_arrays(first.state_arrays())
            second.steps = first.steps
            first = second
        for optimizer, slots in ((whole, a), (first, b)):
            slots.grads.flat[:] = gradient
            optimizer.step(slots.params, slots.grads)
    assert a.params.flat.tobytes() == b.params.flat.tobytes()
    assert repr(first) == repr(whole)
    # What was handed out is a copy, and what was handed in is copied.
    arrays = whole.state_arrays()
    for array in arrays.values():
        array[:] = 0
    assert whole.state_arrays().keys() == arrays.keys()
    assert all(array.any() for array in whole.state_arrays().values())


def test_state_of_named_arrays():
    optimizer, params = optim.Adam(), {"a.b": np.ones((2, 3), np.float32), "c": np.ones(4)}
    optimizer.step(params, {name: np.ones_like(array) for name, array in params.items()})
    arrays = optimizer.state_arrays()
    assert {name: (array.shape, array.dtype.name) for name, array in arrays.items()} == {
        "m.a.b": ((2, 3), "float32"),
        "v.a.b": ((2, 3), "float32"),
        "m.c": ((4,), "float64"),
        "v.c": ((4,), "float64"),
    }
    other = optim.Adam()
    other.load_state_arrays(arrays)
    assert all(np.array_equal(other.state_arrays()[name], arrays[name]) for name in arrays)
    assert made("sgd").state_arrays() == {}


@every_case
def test_nothing_is_allocated_after_the_first_step(name):
    slots, optimizer = slots_of(np.ones(200_000), "float32"), made(name)
    slots.grads.flat[:] = 0.5
    for _ in range(2):
        optimizer.step(slots.params, slots.grads, scale=optim.grad_norm(slots.grads))
    tracemalloc.start()
    try:
        for _ in range(5):
            optimizer.step(slots.params, slots.grads, scale=optim.grad_norm(slots.grads))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10_000


def test_learning_rate_may_change_and_reach_zero():
    optimizer, params = optim.SGD(lr=1.0), {"w": np.zeros(3)}
    optimizer.step(params, {"w": np.ones(3)})
    optimizer.lr = 0.5
    optimizer.step(params, {"w": np.ones(3)})
    optimizer.lr = 0.0
    optimizer.step(params, {"w": np.ones(3)})
    assert params["w"].tolist() == [-1.5] * 3
    assert optim.from_config(optimizer.config).lr == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: optim.SGD(lr=0), "lr is 0; expected a number > 0"),
        (lambda: optim.SGD(lr="fast"), "lr is 'fast'"),
        (lambda: optim.SGD(lr=True), "lr is True"),
        (lambda: optim.SGD(lr=math.nan), "lr is nan"),
        (lambda: optim.SGD(lr=math.inf), "lr is inf"),
        (lambda: optim.Adam(lr=10**400), "lr is too large for a float; expected a number > 0"),
        (lambda: optim.Adam(lr=-(10**5000)), "lr is too large for a float; expected a number > 0"),
        (lambda: optim.SGD(lr=1, momentum=-1), "momentum is -1; expected a number >= 0"),
        (lambda: optim.SGD(lr=1, nesterov=True), "nesterov is True"),
        (lambda: optim.SGD(lr=1, weight_decay=-0.1), "weight_decay is -0.1"),
        (lambda: optim.RMSprop(alpha=1), "alpha is 1; expected a number >= 0 and < 1"),
        (lambda: optim.RMSprop(eps=-1), "eps is -1"),
        (lambda: optim.Adam(betas=(0.9, 1.0)), r"betas\[1\] is 1.0"),
        (lambda: optim.Adam(betas=0.9), "betas is 0.9; expected two numbers"),
        (lambda: optim.Adam(eps=None), "eps is None"),
        (lambda: setattr(optim.Adam(), "lr", -1), "lr is -1"),
        (lambda: optim.from_config({"type": "Adagrad"}), "type is 'Adagrad'; expected one of SGD, RMSprop, Adam, AdamW"),
        (lambda: optim.from_config({"type": "SGD"}), "lr is None"),
        (lambda: optim.Adam().load_state_arrays({"square": np.ones(2)}), "'square' is not of Adam"),
        (lambda: optim.Adam().load_state_arrays({"m": np.ones(2)}), r"keeps \['m', 'v'\]"),
        (lambda: optim.clip_grad_norm({}, 0), "max_norm is 0"),
        (lambda: optim.clip_grad_value({}, -1), "max_value is -1"),
    ],
)
def test_arguments_that_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("params", "grads", "error", "message"),
    [
        ({"w": [1.0]}, {"w": np.ones(1)}, TypeError, r"params\['w'\] is of type list; expected a NumPy array"),
        ({"w": np.ones(1, int)}, {"w": np.ones(1)}, ValueError, r"params\['w'\] has dtype int64; expected float32 or float64"),
        ({"w": np.ones(1, ">f8")}, {"w": np.ones(1)}, ValueError, "has dtype >f8"),
        ({"w": np.ones((4, 4))[:, ::2]}, {"w": np.ones((4, 2))}, ValueError, "strided or not aligned"),
        ({"w": np.broadcast_to(np.ones(1), 1)}, {"w": np.ones(1)}, ValueError, "expected a writable"),
        ({"w": np.ones(1)}, {}, KeyError, "grads has no 'w'"),
        ({"w": np.ones(2)}, {"w": np.ones(3)}, ValueError, r"grads\['w'\] is float64 \[3\]; expected float64 \[2\]"),
        ({"w": np.ones(2)}, {"w": np.ones(2, "f4")}, ValueError, r"grads\['w'\] is float32 \[2\]"),
    ],
)
def test_arrays_that_are_refused(params, grads, error, message):
    optimizer = optim.Adam()
    with pytest.raises(error, match=message):
        optimizer.step(params, grads)
    assert optimizer.steps == 0


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"w": np.ones(3)}, r"params\['w'\] is float64 \[3\]; this optimizer's state is for float64 \[2\]"),
        ({"u": np.ones(2)}, r"params\['w'\] is missing"),
        ({"w": np.ones(2), "u": np.ones(2)}, r"params are \['w', 'u'\]; this optimizer's state is for \['w'\]"),
    ],
)
def test_one_optimizer_serves_one_set_of_parameters(params, message):
    optimizer, ones = optim.Adam(), {"w": np.ones(2)}
    optimizer.step(ones, {"w": np.ones(2)})
    with pytest.raises(ValueError, match=message):
        optimizer.step(params, {name: np.ones_like(array) for name, array in params.items()})


def test_flat_buffers_that_do_not_fit():
    a, b = slots_of(np.ones(6), "float32"), slots_of(np.ones(8), "float32")
    with pytest.raises(ValueError, match=r"grads is float32 \[8\]; expected float32 \[6\]"):
        optim.Adam().step(a.params, b.grads)


# Norms and clipping


@DTYPES
@pytest.mark.parametrize("sizes", [(1,), (5, 9), (4096,), (4097, 3), (100_001,)])
def test_norm_and_clipping_by_norm(sizes, dtype):
    rng = np.random.default_rng(len(sizes))
    grads = {str(k): rng.standard_normal(size).astype(dtype) for k, size in enumerate(sizes)}
    wanted = math.sqrt(sum(float((array.astype(np.float64) ** 2).sum()) for array in grads.values()))
    assert optim.grad_norm(grads) == pytest.approx(wanted, rel=1e-14)
    before = {name: array.copy() for name, array in grads.items()}
    assert optim.clip_grad_norm(grads, 2 * wanted) == pytest.approx(wanted, rel=1e-14)
    assert all(np.array_equal(grads[name], before[name]) for name in grads)
    assert optim.clip_grad_norm(grads, 0.5 * wanted) == pytest.approx(wanted, rel=1e-14)
    for name, array in grads.items():
        assert np.allclose(array, before[name] * (0.5 * wanted / (wanted + 1e-6)), rtol=TOLERANCE[dtype], atol=0)


@DTYPES
def test_norm_has_the_same_bits_everywhere(dtype):
    values = np.random.default_rng(0).standard_normal(400_003).astype(dtype)
    norms = set()
    for count in (1, 2):
        team.set_num_threads(count)
        for isa in jit.supported():
            with jit.use_isa(isa):
                norms.add(optim.grad_norm({"w": values}))
    assert len(norms) == 1


def test_norm_of_extremes():
    assert optim.grad_norm({"w": np.full(4, 1e30, np.float32)}) == pytest.approx(2e30)
    assert optim.grad_norm({}) == 0
    for bad in (np.nan, np.inf, -np.inf):
        values = np.ones(5000, np.float32)
        values[4321] = bad
        assert optim.grad_norm({"w": values}) == pytest.approx(abs(bad), nan_ok=True)
        before = values.copy()
        optim.clip_grad_norm({"w": values}, 1.0)
        assert np.array_equal(values, before, equal_nan=True)


@DTYPES
def test_clipping_against_torch(dtype):
    torch = pytest.importorskip("torch", reason="needs PyTorch, which is what it compares with")
    rng = np.random.default_rng(5)
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in ((3, 7), (19,))]
    for clip in ("norm", "value"):
        tensors = [torch.zeros(array.shape, dtype=getattr(torch, dtype), requires_grad=True) for array in arrays]
        for tensor, array in zip(tensors, arrays, strict=True):
            tensor.grad = torch.tensor(array)
        getattr(torch.nn.utils, f"clip_grad_{clip}_")(tensors, 0.7)
        grads = {str(k): array.copy() for k, array in enumerate(arrays)}
        getattr(optim, f"clip_grad_{clip}")(grads, 0.7)
        for ours, tensor in zip(grads.values(), tensors, strict=True):
            assert np.allclose(ours, tensor.grad.numpy(), rtol=TOLERANCE[dtype], atol=0)


def test_clipping_by_value_of_a_model():
    slots = slots_of(np.zeros(37), "float32")
    slots.grads.flat[:] = np.linspace(-3, 3, 37)
    slots.grads.flat[4], slots.grads.flat[5], slots.grads.flat[6] = np.nan, np.inf, -np.inf
    wanted = np.clip(slots.grads.flat, -1, 1)
    optim.clip_grad_value(slots.grads, 1.0)
    assert np.array_equal(slots.grads.flat, wanted, equal_nan=True)
    slots.grads.flat[4] = 0
    assert optim.clip_grad_norm(slots.grads, 2.0) == pytest.approx(np.linalg.norm(np.nan_to_num(wanted)), rel=1e-6)
    assert optim.grad_norm(slots.grads) == pytest.approx(2.0, rel=1e-5)
