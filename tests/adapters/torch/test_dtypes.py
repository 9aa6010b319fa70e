"""The drop-ins in half precisions and under autocast: as near to float64 as torch's own layers are, in torch's own dtypes."""

import itertools

import pytest

pytest.importorskip("torch", reason="needs PyTorch, which is what it serves")

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

import fastlstm.adapters.torch.modules as adapter
from fastlstm.adapters.torch import dtypes as _torch_dtypes
from fastlstm.adapters.torch import serve
from fastlstm.kernels.native import jit
from tests.adapters.torch.test_modules import CELLS, LAYERS, error, flat, leaf

B16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64


def test_what_is_asked_of_torch_is_seen_by_nobody():
    """Checkpoints record what is saved, hooks of all modules what is called."""
    called = []
    hook = nn.modules.module.register_module_forward_hook(lambda module, *_: called.append(module))
    ours, theirs, _ = three("GRU", 5, 6)
    x = torch.randn(4, 3, 5)
    try:
        for module in (ours, theirs):
            _torch_dtypes._under_autocast.cache_clear()
            with torch.autocast("cpu", dtype=B16):
                out = checkpoint(lambda x, layer: layer(x)[0], x, module, use_reentrant=False)
            out.float().square().sum().backward()
    finally:
        hook.remove()
    assert {id(module) for module in called} == {id(ours), id(theirs)}
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert error(a.grad, b.grad) < 0.03


def test_dropout_is_the_same_with_and_without_gradients():
    """As a checkpoint that recomputes a layer needs it: neither way may be left to torch, which drops others."""
    layer = adapter.LSTM(32, 256, 2, dropout=0.5, dtype=B16)
    x, results = torch.randn(5, 16, 32, dtype=B16), []
    for grads in (False, True):
        torch.manual_seed(3)
        with torch.set_grad_enabled(grads):
            results.append(layer(x)[0].detach())
    assert torch.equal(*results)


def test_another_default_device_changes_nothing():
    _torch_dtypes._under_autocast.cache_clear()
    ours, theirs, _ = three("GRU", 5, 6)
    x = torch.randn(4, 3, 5)
    with torch.autocast("cpu", dtype=B16):
        want = theirs(x)[0]
        torch.set_default_device("meta")
        try:
            out = ours(x)[0]
        finally:
            torch.set_default_device(None)
    assert out.dtype is want.dtype
    assert error(out, want) < 0.03


def relative(got, want):
    return ((got.double() - want).norm() / want.norm()).item()


def everything(module, inputs, autocast, lengths=None):
    """Results, and gradients of inputs and parameters, of a weighted sum of the results; lengths of a packed batch."""
    inputs = [leaf(tensor) for tensor in inputs]
    x, *state = inputs
    given = x if lengths is None else pack_padded_sequence(x, lengths)
    module.zero_grad()
    with torch.autocast("cpu", dtype=autocast or B16, enabled=autocast is not None):
        results = flat(module(given, (tuple(state) if len(state) == 2 else state[0]) if state else None))
    generator = torch.Generator().manual_seed(0)
    sum((result.double() * torch.randn(result.shape, generator=generator, dtype=F64)).sum() for result in results).backward()
    return [*results, *(tensor.grad for tensor in inputs), *(parameter.grad for parameter in module.parameters())]


def three(name, *arguments, dtype=None, **options):
    """(ours, torch's, torch's in float64) with the same weights, which `dtype` can hold."""
    theirs = getattr(nn, name)(*arguments, dtype=dtype, **options)
    ours = getattr(adapter, name)(*arguments, dtype=dtype, **options)
    exact = getattr(nn, name)(*arguments, dtype=F64, **options)
    for module in (ours, exact):
        module.load_state_dict(theirs.state_dict())
    return ours, theirs, exact


def assert_as_near(modules, inputs, autocast, lengths=None):
    """Ours beside torch's, both by their distance from what float64 gives for the same numbers."""
    ours, theirs, exact = modules
    found = [everything(module, inputs, autocast, lengths) for module in (ours, theirs)]
    found.append(everything(exact, [part.double() for part in inputs], None, lengths))
    for k, (a, b, want) in enumerate(zip(*found, strict=True)):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), f"result {k}"
        assert relative(a, want) <= 1.5 * relative(b, want), f"result {k}"


FORMS = {"whole": {}, "stacked": {"num_layers": 2, "bidirectional": True}, "packed": {"bidirectional": True}, "projected": {}}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["bfloat16", "float16", "autocast"])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_as_near_to_float64_as_torchs(name, kind, form):
    torch.manual_seed(0)
    options = dict(FORMS[form])
    if form == "projected":
        if name != "LSTM":
            pytest.skip("only LSTMs have projections")
        options["proj_size"] = 24
    dtype = F32 if kind == "autocast" else getattr(torch, kind)
    modules = three(name, 33, 48, dtype=dtype, **options)
    count, width = options.get("num_layers", 1) * (1 + options.get("bidirectional", False)), options.get("proj_size", 48)
    states = [torch.randn(count, 6, size).mul(0.5).to(dtype) for size in [width, 48][: 1 + (name == "LSTM")]]
    x = torch.randn(20, 6, 33).to(dtype)
    lengths = [20, 17, 17, 9, 4, 1] if form == "packed" else None
    assert_as_near(modules, [x, *states], B16 if kind == "autocast" else None, lengths)
    assert_as_near(modules, [x], B16 if kind == "autocast" else None, lengths)


@pytest.mark.parametrize("name", CELLS)
def test_cells_in_float16_are_as_near_to_float64_as_torchs(name):
    torch.manual_seed(0)
    states = [torch.randn(32, 96).mul(0.5).half() for _ in range(1 + (name == "LSTMCell"))]
    assert_as_near(three(name, 40, 96, dtype=F16), [torch.randn(32, 40).half(), *states], None)


def dtypes(module, x, states):
    """Of the results, or the error's text."""
    try:
        return [tensor.dtype for tensor in flat(module(x, states))]
    except (RuntimeError, ValueError) as wrong:
        return str(wrong)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("chosen", [B16, F16])
def test_dtypes_under_autocast_are_torchs(name, chosen):
    """Whatever the dtypes given; where torch has an error it is torch's own."""
    served = 0
    for given, weights, state, form in itertools.product(
        (F32, B16), (F32, B16), (None, F32, B16), ("whole", "alike", "packed", "projected")
    ):
        if form == "projected" and name != "LSTM":
            continue
        size = {"proj_size": 3} if form == "projected" else {}
        ours, theirs, _ = three(name, 5, 6, dtype=weights, **size)
        x, states = torch.randn(4, 3, 5, dtype=given), None
        if state is not None:
            parts = torch.zeros(1, 3, size.get("proj_size", 6), dtype=state), torch.zeros(1, 3, 6, dtype=state)
            states = parts if name == "LSTM" else parts[0]
        if form in ("alike", "packed"):
            x = pack_padded_sequence(x, [4, 4, 4] if form == "alike" else [4, 2, 1])
        for grad in (True, False):
            with torch.autocast("cpu", dtype=chosen), torch.set_grad_enabled(grad):
                want = dtypes(theirs, x, states)
                assert dtypes(ours, x, states) == want, (given, weights, state, form, grad)
                served += isinstance(want, list)
    assert served > 20


def test_what_torch_does_not_mix_is_its_own_error():
    ours, theirs, _ = three("GRU", 5, 6, dtype=B16)
    with pytest.raises(ValueError, match="input") as want:
        theirs(torch.ones(4, 3, 5))
    with pytest.raises(ValueError, match="input") as got:
        ours(torch.ones(4, 3, 5))
    assert str(got.value) == str(want.value)


@pytest.mark.parametrize("name", LAYERS)
def test_autocast_leaves_float64_and_other_devices_alone(name):
    ours, theirs, _ = three(name, 5, 6, dtype=F64)
    x = torch.randn(4, 3, 5, dtype=F64)
    with torch.autocast("cpu", dtype=B16):
        assert error(ours(x)[0], theirs(x)[0]) < 1e-12
    ours, theirs, _ = three(name, 5, 6)
    torch.set_autocast_enabled("cuda", True)
    try:
        assert error(ours(x.float())[0], theirs(x.float())[0]) < 1e-6
    finally:
        torch.set_autocast_enabled("cuda", False)


def test_autocast_draws_no_random_numbers():
    _torch_dtypes._under_autocast.cache_clear()
    layer, x, state = adapter.LSTM(5, 6), torch.randn(4, 3, 5), torch.get_rng_state()
    with torch.autocast("cpu", dtype=B16):
        layer(x)
    assert torch.get_rng_state().equal(state)


def test_weights_changed_in_place_are_seen():
    ours, theirs, _ = three("GRU", 5, 6, dtype=B16)
    x = torch.randn(4, 3, 5, dtype=B16)
    for _ in range(2):
        assert error(ours(x)[0].float(), theirs(x)[0].float()) < 2**-6
        for module in (ours, theirs):
            module.weight_hh_l0.data.mul_(-2)


def test_derivatives_of_derivatives():
    ours, _, exact = three("GRU", 5, 16, dtype=B16)
    x, grads = torch.randn(4, 3, 5, dtype=B16), []
    for module, given in ((ours, leaf(x)), (exact, leaf(x.double()))):
        out, _ = module(given)
        (slope,) = torch.autograd.grad(out.square().sum(), given, create_graph=True)
        slope.square().sum().backward()
        grads.append([given.grad, *(parameter.grad for parameter in module.parameters())])
    for a, b in zip(*grads, strict=True):
        assert a.dtype is B16
        assert relative(a, b) < 0.05


def test_what_is_left_to_torch_where_it_is_the_faster(monkeypatch):
    monkeypatch.setattr(jit, "bfloat16_product", lambda: "dot")
    ours, theirs, _ = three("LSTM", 5, 400, dtype=B16)
    x = torch.randn(4, 6, 5, dtype=B16)
    with torch.no_grad(), pytest.warns(UserWarning, match="LSTM falls back to torch: its inference in bfloat16"):
        assert ours(x)[0].equal(theirs(x)[0])
    serve._said.clear()
    ours(x)  # in training it is served, and packed
    with torch.no_grad():
        ours(pack_padded_sequence(x, [4, 4, 4, 3, 2, 1]))
        ours(x[:, :5])
    for name in CELLS:
        ours, theirs, _ = three(name, 5, 400, dtype=B16)
        with pytest.warns(UserWarning, match="a step in half precision"):
            assert flat(ours(x[0]))[0].equal(flat(theirs(x[0]))[0])
        serve._said.clear()
        ours, theirs, _ = three(name, 5, 6, dtype=F16)
        with pytest.warns(UserWarning, match="a step in half precision"):
            assert flat(ours(x[0].half()))[0].equal(flat(theirs(x[0].half()))[0])
