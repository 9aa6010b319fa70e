"""The drop-ins in torch's graph: second passes and derivatives, hooks, threads, dropout."""

import copy
import threading
import warnings

import pytest

pytest.importorskip("torch", reason="needs PyTorch, which is what it serves")

import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

import fastlstm.adapters.torch.modules as adapter
from fastlstm.adapters.torch import serve
from tests.adapters.torch.test_modules import CELLS, LAYERS, error, flat, leaf, twins

LENGTHS = torch.tensor([2, 4, 1])


@pytest.fixture(autouse=True)
def fallbacks_are_said_anew():
    serve._said.clear()
    yield
    serve._said.clear()


def function_of(layer, packed, state):
    """(function of tensors, the tensors): results of a layer as a function of inputs, states and parameters."""
    names = [name for name, _ in layer.named_parameters()]
    x = torch.randn(4, 3, layer.input_size, dtype=torch.float64, requires_grad=True)
    count = layer.num_layers * (1 + layer.bidirectional)
    sizes = [layer.proj_size or layer.hidden_size, layer.hidden_size][: 1 + (layer.mode == "LSTM")]
    states = [torch.randn(count, 3, n, dtype=torch.float64, requires_grad=True) for n in sizes] if state else []

    def function(x, *rest):
        hx, weights = rest[: len(states)], rest[len(states) :]
        given = pack_padded_sequence(x, LENGTHS, enforce_sorted=False) if packed else x
        arguments = (given,) if not hx else (given, hx if layer.mode == "LSTM" else hx[0])
        return tuple(flat(torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), arguments)))

    return function, (x, *states, *(leaf(parameter) for parameter in layer.parameters()))


@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_and_their_gradients(name, packed):
    torch.manual_seed(0)
    options = {"proj_size": 2} if name == "LSTM" else {}
    layer = getattr(adapter, name)(2, 3, 2, bidirectional=True, dtype=torch.float64, **options)
    function, tensors = function_of(layer, packed, state=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert gradcheck(function, tensors)
        small = getattr(adapter, name)(2, 2, dtype=torch.float64)
        assert gradgradcheck(*function_of(small, packed, state=True))


@pytest.mark.parametrize("name", CELLS)
def test_gradients_of_cells(name):
    cell = getattr(adapter, name)(2, 3, dtype=torch.float64)
    x, h = (torch.randn(2, n, dtype=torch.float64, requires_grad=True) for n in (2, 3))
    state = (h, leaf(h)) if name == "LSTMCell" else (h,)

    def function(x, *state):
        return tuple(flat(cell(x, state if len(state) == 2 else state[0])))

    assert gradcheck(function, (x, *state))
    assert gradgradcheck(function, (x, *state))


@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
def test_a_second_backward_pass(packed):
    ours, theirs = twins("LSTM", 5, 6, 2)
    x = torch.randn(4, 3, 5)
    given = pack_padded_sequence(x, LENGTHS, enforce_sorted=False) if packed else x
    for module in (ours, theirs):
        loss = flat(module(given))[0].square().sum()
        loss.backward(retain_graph=True)
        loss.backward(retain_graph=True)
        loss.backward()
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            loss.backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert error(a.grad, b.grad) < 1e-5


def test_a_gradient_penalty():
    """Second derivatives in single precision, where torch's oneDNN layers have none."""
    ours, _ = twins("LSTM", 5, 6)
    twin = copy.deepcopy(ours).double()
    x, grads = torch.randn(4, 3, 5), []
    for module, given in ((ours, leaf(x)), (twin, leaf(x.double()))):
        out, _ = module(given)
        (slope,) = torch.autograd.grad(out.square().sum(), given, create_graph=True)
        slope.square().sum().backward()
        grads.append([given.grad, *(parameter.grad for parameter in module.parameters())])
    for a, b in zip(*grads, strict=True):
        assert error(a, b.float()) < 1e-4


@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
def test_what_needs_no_gradient_gets_none(packed):
    ours, theirs = twins("GRU", 5, 6, 2)
    for module in (ours, theirs):
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name.endswith("l1"))
        x = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
        given = pack_padded_sequence(x, LENGTHS, enforce_sorted=False) if packed else x
        _, h = module(given)
        h.sum().backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert error(a.grad, b.grad) < 1e-5
    assert not ours.requires_grad_(False)(given)[1].requires_grad
    with torch.no_grad():
        assert not theirs.requires_grad_(True)(given)[1].requires_grad


def test_an_input_changed_in_place_is_noticed():
    layer, x = adapter.RNN(5, 6), torch.randn(4, 3, 5)
    out, _ = layer(x)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()
    out, _ = layer(x)
    with torch.no_grad():
        layer.weight_hh_l0.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_hooks():
    layer, seen = adapter.LSTM(5, 6), []
    layer.register_forward_pre_hook(lambda module, given: seen.append("before"))
    layer.register_forward_hook(lambda module, given, out: seen.append("after"))
    layer.register_full_backward_hook(lambda module, dx, dout: seen.append(dx[0].shape))
    layer.weight_ih_l0.register_hook(lambda grad: seen.append(grad.shape))
    layer.weight_hh_l0.register_post_accumulate_grad_hook(lambda weight: seen.append("accumulated"))
    layer(torch.randn(4, 3, 5, requires_grad=True))[0].sum().backward()
    assert seen[:2] == ["before", "after"]
    assert {torch.Size([4, 3, 5]), torch.Size([24, 5]), "accumulated"} <= set(seen[2:])


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant):
    ours, theirs = twins("GRU", 5, 6)
    x = torch.randn(4, 3, 5, requires_grad=True)
    for module in (ours, theirs):
        checkpoint(lambda x, layer: layer(x)[0], x, module, use_reentrant=reentrant).square().sum().backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert error(a.grad, b.grad) < 1e-5


def test_saved_tensors_on_other_memory():
    ours, theirs = twins("GRU", 5, 6)
    x = torch.randn(4, 3, 5)
    for module in (ours, theirs):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t.clone()):
            out, _ = module(x)
        out.square().sum().backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert error(a.grad, b.grad) < 1e-5


@pytest.mark.parametrize("name", LAYERS)
def test_inference_mode(name):
    ours, theirs = twins(name, 5, 6)
    with torch.inference_mode():
        x = torch.randn(4, 3, 5)
        out = flat(ours(x))
        assert out[0].is_inference()
        made_inside = getattr(adapter, name)(5, 6)
        made_inside.load_state_dict(theirs.state_dict())
        assert error(made_inside(x)[0], theirs(x)[0]) < 1e-6
        assert error(out[0], theirs(x)[0]) < 1e-6
    with torch.no_grad():
        ours.weight_ih_l0.mul_(2)
    assert error(ours(x.clone())[0], out[0]) > 1e-4
    ours(torch.randn(4, 3, 5))[0].sum().backward()


def test_many_threads():
    """Each has the results that it would have alone, though all share the module."""
    layer, inputs = adapter.LSTM(20, 40, 2), [torch.randn(10 + k % 3, 6, 20) for k in range(6)]

    def once(k):
        given = pack_padded_sequence(inputs[k], [10, 8, 5, 5, 2, 1]) if k % 2 else inputs[k]
        out = flat(layer(given))[0]
        return [out, *torch.autograd.grad(out.square().sum(), [*layer.parameters()])]

    want, right = [once(k) for k in range(6)], []

    def many(k):
        for _ in range(20):
            right.append(all(error(a, b) < 1e-5 for a, b in zip(once(k), want[k], strict=True)))

    threads = [threading.Thread(target=many, args=(k,)) for k in range(6)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert right == [True] * 120


@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_dropout_comes_from_torchs_generator(bidirectional, packed):
    layer = adapter.GRU(5, 16, 3, dropout=0.4, bidirectional=bidirectional)
    x = torch.randn(6, 3, 5)
    given = pack_padded_sequence(x, torch.tensor([6, 6, 6]), enforce_sorted=False) if packed else x

    def draw(seed):
        torch.manual_seed(seed)
        return flat(layer(given))[0].detach()

    assert draw(1).equal(draw(1))
    assert not draw(1).equal(draw(2))
    state = torch.get_rng_state()
    assert not flat(layer(given))[0].equal(flat(layer(given))[0])
    torch.set_rng_state(state)
    with torch.no_grad():
        assert flat(layer(given))[0].equal(draw(2)) is False  # without gradients it drops as well
    layer.eval()
    plain = nn.GRU(5, 16, 3, bidirectional=bidirectional)
    plain.load_state_dict(layer.state_dict())
    assert error(draw(1), flat(plain(given))[0]) < 1e-6
    layer.eval()(given)
    assert torch.get_rng_state().equal(torch.get_rng_state())


def test_dropout_is_the_same_for_packed_and_in_every_pass():
    """First derivatives by the kernels, the same by torch's operations, and a packed batch of equal lengths: one mask."""
    layer, x = adapter.LSTM(5, 16, 2, dropout=0.5, dtype=torch.float64), torch.randn(6, 3, 5, dtype=torch.float64)
    found = {}
    for kind in ("kernels", "twice", "torch", "packed"):
        torch.manual_seed(3)
        leafs = leaf(x)
        given = pack_padded_sequence(leafs, torch.tensor([6, 6, 6])) if kind == "packed" else leafs
        out = flat(layer(given))[0].view(6, 3, 16)
        if kind == "twice":
            torch.autograd.grad(out.square().sum(), leafs, retain_graph=True)
        (slope,) = torch.autograd.grad(out.square().sum(), leafs, create_graph=kind == "torch")
        found[kind] = out.detach(), slope.detach()
    for kind in ("twice", "torch", "packed"):
        for a, b in zip(found["kernels"], found[kind], strict=True):
            assert error(a, b) < 1e-10, kind


def test_dropout_keeps_the_right_share():
    torch.manual_seed(0)
    layer = adapter.RNN(3, 200, 2, dropout=0.3)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.bias_ih_l0.fill_(10.0)  # the first layer's outputs are 1
        layer.weight_ih_l1.copy_(torch.eye(200))  # the second's tell what came through
    out = layer(torch.zeros(50, 4, 3))[0].atanh()
    assert abs((out == 0).double().mean().item() - 0.3) < 0.01
    assert error(out[out != 0], torch.full_like(out[out != 0], 1 / 0.7)) < 1e-3
    layer.dropout = 1.0
    assert not layer(torch.zeros(50, 4, 3))[0].any()


def test_graphs_that_are_dropped_give_their_buffers_back():
    layer, x = adapter.GRU(5, 6), torch.randn(4, 3, 5)
    layer(x)
    (core,) = serve._cores[layer].values()
    ((_, spaces),) = core.pool.free
    for _ in range(3):
        layer(x)
    assert [each for _, each in core.pool.free] == [spaces]
    two = [layer(x), layer(x)]
    del two
    assert len(core.pool.free) == 2


def test_packed_batches_are_not_padded_and_recorded_once():
    layer = adapter.LSTM(5, 6)
    for lengths in ([40, 1, 1, 1], [17, 9, 9, 8], [11, 11, 11, 11]):
        out, _ = layer(pack_padded_sequence(torch.randn(lengths[0], 4, 5), lengths))
        out.data.sum().backward()
        assert isinstance(out, PackedSequence)
        assert pad_packed_sequence(out)[1].tolist() == lengths
    (core,) = serve._cores[layer].values()
    ((_, spaces),) = core.pool.free
    assert spaces.of[0][0].arrays["h"].shape == (12, 4, core.engine.padded(6))  # 11 steps of 4 rows, and the initial states
    assert len(spaces._programs) == 2


def test_fallbacks_are_said_once_and_are_right():
    ours, theirs = twins("LSTM", 5, 6, dtype=torch.complex64)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        x = torch.randn(4, 3, 5, dtype=torch.complex64)
        out, _ = ours(x)
        ours(x)
    assert [str(each.message) for each in said] == [
        "LSTM falls back to torch: tensors are complex64, and the kernels serve float32, float64, bfloat16, float16"
    ]
    assert said[0].filename == __file__
    assert out.equal(theirs(x)[0])
    ours, theirs = twins("GRU", 5, 6)
    x = torch.randn(4, 3, 5)
    with pytest.warns(UserWarning, match="torch.func"):
        slopes = torch.func.grad(lambda x: ours(x)[0].sum())(x)
    assert error(slopes, torch.func.grad(lambda x: theirs(x)[0].sum())(x)) < 1e-5
    ours, theirs = twins("RNN", 5, 6)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x)
        with pytest.warns(UserWarning, match="forward-mode"):
            out, _ = ours(dual)
        slopes = [torch.autograd.forward_ad.unpack_dual(each).tangent for each in (out, theirs(dual)[0])]
    assert error(*slopes) < 1e-6
    with pytest.warns(UserWarning, match="device meta"):
        assert adapter.GRUCell(5, 6, device="meta")(torch.ones(3, 5, device="meta")).shape == (3, 6)


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_many_gradients_at_once(name):
    """Torch takes them through one backward pass together."""
    options = {} if name in CELLS else {"num_layers": 2, "bidirectional": True}
    ours, theirs = twins(name, 5, 6, dtype=torch.float64, **options)
    x = torch.randn(3, 5, dtype=torch.float64) if name in CELLS else torch.randn(4, 3, 5, dtype=torch.float64)
    grads = []
    for module in (ours, theirs):
        results = flat(module(x))
        given = [torch.stack([result.detach().cos(), result.detach().sin()]) for result in results]
        grads.append(torch.autograd.grad(results, [*module.parameters()], given, is_grads_batched=True))
    assert max(error(a, b) for a, b in zip(*grads, strict=True)) < 1e-10
    jacobians = [torch.autograd.functional.jacobian(lambda x: flat(ours(x))[0], x, vectorize=many) for many in (True, False)]
    assert error(*jacobians) < 1e-10


@pytest.mark.parametrize("width", [5, 16])
@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_gradients_are_as_contiguous_as_torchs(name, width):
    ours, theirs = twins(name, width, 6)
    x = leaf(torch.randn(3, width) if name in CELLS else torch.randn(4, 3, width))
    slopes = []
    for module in (ours, theirs):
        slopes.append(torch.autograd.grad(flat(module(x))[0].sum(), [x, *module.parameters()]))
    for a, b in zip(*slopes, strict=True):
        assert a.stride() == b.stride()
        assert error(a, b) < 1e-5


def test_calls_that_wait_share_what_only_the_backward_pass_needs():
    """A loop over many steps would else hold arrays of the weights' size for each."""
    ours, theirs = twins("LSTMCell", 5, 64)
    xs = torch.randn(12, 3, 5)
    for module in (ours, theirs):
        for _ in range(2):
            state = None
            for x in xs:
                state = module(x, state)
            state[0].square().sum().backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert error(a.grad, b.grad) < 1e-5
    (core,) = serve._cores[ours].values()
    made = [spaces.of[0][0].arrays for _, spaces in core.pool.free]
    assert len(made) == 12
    assert len({id(arrays["h"]) for arrays in made}) == 12
    assert len({id(arrays["d_hh"]) for arrays in made}) == 1
