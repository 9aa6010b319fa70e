"""The drop-ins beside torch.nn: values and all gradients over random configurations, torch's own module inputs, and errors."""

import os
import random
import subprocess
import sys
import warnings

import pytest

pytest.importorskip("torch", reason="needs PyTorch, which is what it serves")

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastlstm.adapters.torch.modules as adapter
from fastlstm.adapters.torch import serve

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
LAYERS, CELLS = ("RNN", "LSTM", "GRU"), ("RNNCell", "LSTMCell", "GRUCell")


@pytest.fixture(autouse=True)
def nothing_falls_back():
    """A fallback would compare torch with itself."""
    serve._said.clear()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*falls back to torch.*")
        yield
    serve._said.clear()


def error(ours, theirs):
    """Largest difference, by the largest element where that is above 1."""
    assert (ours is None) == (theirs is None)
    if ours is None or theirs.numel() == 0:
        return 0.0
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    return ((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1)).item()


def twins(name, *arguments, **options):
    """(ours, torch's) with the same weights."""
    ours, theirs = getattr(adapter, name)(*arguments, **options), getattr(nn, name)(*arguments, **options)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def flat(results):
    """The tensors of a result in order."""
    if isinstance(results, PackedSequence):
        return [results.data]
    if isinstance(results, torch.Tensor):
        return [results]
    return [tensor for part in results for tensor in flat(part)]


def leaf(tensor):
    return tensor.detach().clone().requires_grad_()


def run(module, inputs, weights_of_loss, lengths=None):
    """Results, and gradients of inputs and parameters, of a weighted sum of all results."""
    inputs = [leaf(tensor) for tensor in inputs]
    x, *state = inputs
    if lengths is not None:
        first = getattr(module, "batch_first", False)
        x = pack_padded_sequence(x, lengths, batch_first=first, enforce_sorted=lengths.equal(lengths.sort(descending=True)[0]))
    state = () if not state else (state[0],) if len(state) == 1 else (tuple(state),)
    module.zero_grad()
    results = flat(module(x, *state))
    generator = torch.Generator().manual_seed(weights_of_loss)
    loss = sum((result * torch.randn(result.shape, generator=generator, dtype=result.dtype)).sum() for result in results)
    loss.backward()
    return [*results, *(tensor.grad for tensor in inputs), *(parameter.grad for parameter in module.parameters())]


def assert_same(ours, theirs, dtype, *arguments):
    for k, (a, b) in enumerate(zip(run(ours, *arguments), run(theirs, *arguments), strict=True)):
        assert error(a, b) < TOLERANCE[dtype], f"result {k}"


def a_layer(draw):
    """(module names and options, inputs, lengths) of one random configuration."""
    name = draw.choice(LAYERS)
    dtype = draw.choice([torch.float32, torch.float64])
    inputs, hidden, layers = draw.randint(1, 20), draw.randint(1, 36), draw.choice([1, 1, 2, 3])
    options = {
        "bias": draw.random() < 0.8,
        "batch_first": draw.random() < 0.5,
        "bidirectional": draw.random() < 0.5,
        "num_layers": layers,
        "dtype": dtype,
    }
    if name == "RNN":
        options["nonlinearity"] = draw.choice(["tanh", "relu"])
    width = hidden
    if name == "LSTM" and hidden > 1 and draw.random() < 0.3:
        width = options["proj_size"] = draw.randint(1, hidden - 1)
    steps, batch = draw.randint(1, 12), draw.randint(1, 7)
    form = draw.choice(["batched", "batched", "unbatched", "packed", "packed"])
    middle = () if form == "unbatched" else (batch,)
    shape = (steps, *middle, inputs)
    if options["batch_first"] and middle:
        shape = (batch, steps, inputs)
    tensors = [torch.randn(shape, dtype=dtype)]
    if draw.random() < 0.6:
        count = layers * (1 + options["bidirectional"])
        sizes = [width, hidden] if name == "LSTM" else [hidden]
        tensors += [torch.randn(count, *middle, size, dtype=dtype) for size in sizes]
    lengths = None
    if form == "packed":
        lengths = torch.tensor([draw.randint(1, steps) for _ in range(batch)])
        if draw.random() < 0.5:
            lengths = lengths.sort(descending=True)[0]
    return name, (inputs, hidden), options, tensors, lengths


@pytest.mark.parametrize("seed", range(25))
def test_random_layers_are_torchs(seed):
    draw = random.Random(seed)
    torch.manual_seed(seed)
    for _ in range(22):
        name, sizes, options, tensors, lengths = a_layer(draw)
        ours, theirs = twins(name, *sizes, **options)
        assert repr(ours) == repr(theirs)
        try:
            assert_same(ours, theirs, options["dtype"], tensors, seed, lengths)
        except AssertionError as wrong:
            raise AssertionError(f"{theirs} of {[tuple(t.shape) for t in tensors]}, lengths {lengths}: {wrong}") from wrong


@pytest.mark.parametrize("seed", range(4))
def test_random_cells_are_torchs(seed):
    draw = random.Random(seed)
    torch.manual_seed(seed)
    for _ in range(25):
        name, dtype = draw.choice(CELLS), draw.choice([torch.float32, torch.float64])
        inputs, hidden, batch = draw.randint(1, 20), draw.randint(1, 36), draw.choice([(), (1,), (5,)])
        options = {"nonlinearity": draw.choice(["tanh", "relu"])} if name == "RNNCell" else {}
        ours, theirs = twins(name, inputs, hidden, bias=draw.random() < 0.8, dtype=dtype, **options)
        assert repr(ours) == repr(theirs)
        states = (2 if name == "LSTMCell" else 1) if draw.random() < 0.7 else 0
        tensors = [torch.randn(*batch, size, dtype=dtype) for size in [inputs] + [hidden] * states]
        assert_same(ours, theirs, dtype, tensors, seed)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_more_threads_and_chunks(name, dtype):
    """Large enough that threads share the work and a sequence takes more than one chunk."""
    torch.manual_seed(0)
    ours, theirs = twins(name, 40, 130, 2, bidirectional=True, dtype=dtype)
    x = torch.randn(60, 24, 40, dtype=dtype)
    assert_same(ours, theirs, dtype, [x], 0)
    assert_same(ours, theirs, dtype, [x], 0, torch.randint(1, 61, (24,), generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_the_inputs_that_torch_tests_with(name, dtype, training):
    """`torch.testing._internal.common_modules`, with packed sequences where it has them, and its unbatched references."""
    modules = pytest.importorskip("torch.testing._internal.common_modules", reason="needs expecttest")
    info = next(info for info in modules.module_db if info.module_cls is getattr(nn, name))
    torch.manual_seed(0)  # which draws the samples
    options = {"with_packed_sequence": True} if name in ("RNN", "GRU") else {}
    samples = info.module_inputs_func(info, "cpu", dtype, True, training, **options)
    assert len(samples) >= 2
    for sample in samples:
        arguments, keywords = sample.constructor_input.args, sample.constructor_input.kwargs
        ours, theirs = twins(name, *arguments, dtype=dtype, **keywords)
        ours.train(training), theirs.train(training)
        results = []
        for module in (ours, theirs):
            for tensor in flat(sample.forward_input.args):
                tensor.grad = None
            got = flat(module(*sample.forward_input.args, **sample.forward_input.kwargs))
            sum(part.sum() for part in got).backward()
            grads = [tensor.grad for tensor in flat(sample.forward_input.args)]
            results.append([*got, *grads, *(parameter.grad for parameter in module.parameters())])
        for a, b in zip(*results, strict=True):
            assert error(a, b) < TOLERANCE[dtype]
        if not isinstance(sample.forward_input.args[0], PackedSequence):
            want = sample.reference_fn(ours, *sample.forward_input.args)
            for a, b in zip(flat(ours(*sample.forward_input.args)), flat(want), strict=True):
                assert error(a, b) < TOLERANCE[dtype]


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_the_errors_that_torch_tests_for(name):
    modules = pytest.importorskip("torch.testing._internal.common_modules", reason="needs expecttest")
    info = next(info for info in modules.module_db if info.module_cls is getattr(nn, name))
    samples = info.module_error_inputs_func(info, "cpu", torch.float32, False, False)
    assert samples
    for sample in samples:
        case = sample.module_error_input
        arguments, keywords = case.constructor_input.args, case.constructor_input.kwargs
        if sample.error_on is modules.ModuleErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(sample.error_type, match=sample.error_regex):
                getattr(adapter, name)(*arguments, **keywords)
            continue
        ours = getattr(adapter, name)(*arguments, **keywords)
        with pytest.raises(sample.error_type, match=sample.error_regex):
            ours(*case.forward_input.args, **case.forward_input.kwargs)


X, H = torch.ones(4, 3, 5), torch.ones(1, 3, 6)
WRONG = {
    "dimensions": (torch.ones(5), None),
    "four dimensions": (torch.ones(2, 4, 3, 5), None),
    "width": (torch.ones(4, 3, 7), None),
    "dtype": (X.double(), None),
    "integers": (X.long(), None),
    "state's width": (X, torch.ones(1, 3, 7)),
    "state's batch": (X, torch.ones(1, 2, 6)),
    "state's layers": (X, torch.ones(2, 3, 6)),
    "state's axes": (X, torch.ones(3, 6)),
    "unbatched state": (torch.ones(4, 5), H),
    "no steps": (torch.ones(0, 3, 5), None),
    "text": ("text", None),
    "array": (X.numpy(), None),
    "packed width": (pack_padded_sequence(torch.ones(4, 3, 7), [4, 3, 2]), None),
    "packed state": (pack_padded_sequence(X, [4, 3, 2]), torch.ones(1, 2, 6)),
}


@pytest.mark.filterwarnings("ignore:.*falls back to torch")
@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("name", LAYERS)
def test_errors_are_torchs_own(name, case):
    ours, theirs = twins(name, 5, 6)
    x, h = WRONG[case]
    state = h if h is None or name != "LSTM" else (h, h)
    with pytest.raises(Exception) as want:  # noqa: PT011 whatever it is, ours is the same
        theirs(x, state)
    with pytest.raises(type(want.value)) as got:
        ours(x, state)
    assert str(got.value) == str(want.value)


@pytest.mark.parametrize("name", CELLS)
def test_errors_of_cells_are_torchs_own(name):
    ours, theirs = twins(name, 5, 6)
    for x, h in (
        (torch.ones(1, 2, 3, 5), None),
        (torch.ones(3, 7), None),
        (torch.ones(3, 5), torch.ones(2, 6)),
        (torch.ones(3, 5), torch.ones(3, 7)),
        (torch.ones(3, 5).double(), None),
    ):
        state = h if h is None or name != "LSTMCell" else (h, h)
        with pytest.raises(Exception) as want:  # noqa: PT011
            theirs(x, state)
        with pytest.raises(type(want.value)) as got:
            ours(x, state)
        assert str(got.value) == str(want.value)


def test_errors_of_constructors_are_torchs_own():
    for arguments, options in (
        ((0, 3), {}),
        ((3, 0), {}),
        ((3, 3, 0), {}),
        ((3, 3), {"dropout": 2}),
        ((3, 3), {"bias": 1}),
        ((3, 3), {"proj_size": 3}),
        ((3.0, 3), {}),
    ):
        with pytest.raises(Exception) as want:  # noqa: PT011
            nn.LSTM(*arguments, **options)
        with pytest.raises(type(want.value)) as got:
            adapter.LSTM(*arguments, **options)
        assert str(got.value) == str(want.value)


def test_an_empty_batch_is_torchs():
    ours, theirs = twins("GRU", 5, 6)
    for a, b in zip(ours(torch.ones(4, 0, 5)), theirs(torch.ones(4, 0, 5)), strict=True):
        assert a.shape == b.shape


def test_inputs_of_any_strides():
    ours, theirs = twins("LSTM", 5, 6, batch_first=True)
    x, h = torch.randn(5, 8, 3).permute(2, 1, 0)[:, ::2], torch.randn(6, 3, 1).permute(2, 1, 0)
    turned = torch.view_as_complex(torch.randn(3, 4, 5, 2)).conj().imag  # the sign is still to be turned in memory
    for given in (x, turned, torch.randn(1, 1, 5).expand(3, 4, 5)):
        for a, b in zip(flat(ours(given, (h, h))), flat(theirs(given, (h, h))), strict=True):
            assert error(a, b) < 1e-6
    assert ours(x)[0].stride() == theirs(x)[0].stride()


def test_without_torch_one_sentence_says_so():
    code = "import sys; sys.modules['torch'] = None\nimport fastlstm.adapters.torch"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        'ImportError: fastlstm.adapters.torch needs PyTorch; install it with: pip install "fastlstm[torch]"'
    )


FORK = """
import os, signal, threading, torch
from fastlstm.adapters.torch import serve
from fastlstm.adapters.torch import GRU

layer, x = GRU(3, 5), torch.ones(4, 2, 3)
with torch.no_grad():
    want = layer(x)[0]
    core, = serve._cores[layer].values()
    held, done = threading.Event(), threading.Event()

    def hold():
        with core.lock:
            held.set()
            done.wait()

    threading.Thread(target=hold).start()
    held.wait()
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        os._exit(0 if torch.equal(layer(x)[0], want) else 1)
    print(os.waitpid(child, 0)[1])
    done.set()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_finds_the_lock_free():
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=90, check=True)
    assert done.stdout.split() == ["0"], done.stderr


@pytest.mark.parametrize("sizes", [(5, 0), (0, 5), (0, 0)])
@pytest.mark.parametrize("name", CELLS)
def test_cells_of_no_units_or_inputs_are_torchs(name, sizes):
    ours, theirs = twins(name, *sizes)
    for batch in ((3,), ()):
        results = [flat(module(torch.randn(*batch, sizes[0]))) for module in (ours, theirs)]
        for a, b in zip(*results, strict=True):
            assert error(a, b) == 0
