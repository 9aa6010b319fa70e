"""device="cuda" on the simulated device: layers against the reference, all else against the CPU, and what a user meets."""

import builtins
import contextlib
import dataclasses
import shutil
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest

import fastlstm
from fastlstm.kernels.device import cuda
from fastlstm.runtime.arrays import as_numpy
from tests.cuda.simulator.simulator import ORDERS
from tests.support import cases

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++, which builds CUDA kernels for the CPU")
SMALL = {
    kind: [
        dataclasses.replace(
            case,
            chunk=0,
            hidden=min(case.hidden, 17),
            inputs=min(case.inputs, 9),
            proj=min(case.proj, 5),
            batch=min(case.batch, 6),
            steps=min(case.steps, 5),
        )
        for case in listed[:20]
    ]
    for kind, listed in cases.CASES.items()
}
CELLS = [{"cell": "lstm"}, {"cell": "gru", "tie_weights": True}, {"cell": "rnn"}, {"cell": "lstm", "embedding_size": 4}]


@pytest.fixture
def device():
    from tests.cuda.simulator.device import simulated

    with simulated() as made:
        yield made


def off(got, want):
    got, want = as_numpy(got).astype(np.float64), as_numpy(want).astype(np.float64)
    return float(np.linalg.norm(got - want)) / max(float(np.linalg.norm(want)), 1e-30)


@needs_compiler
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16", "tf32"])
@pytest.mark.parametrize("kind", list(cases.KINDS))
def test_layers_agree_with_the_reference(kind, dtype, device):
    # A few rounded numbers have no norm to speak of.
    several = [dataclasses.replace(case, hidden=max(case.hidden, 12)) for case in SMALL[kind][:7]]
    for case in several if dtype in cases.COARSE else SMALL[kind]:
        layer = case.layer(dtype, "cuda")
        got, masks = case.results(layer)
        cases.check(case, got, case.wanted(layer, masks), dtype)


@needs_compiler
@pytest.mark.parametrize("kind", list(cases.KINDS))
def test_kernels_are_right_in_every_order_of_threads(kind):
    from tests.cuda.simulator.device import simulated

    case = dataclasses.replace(SMALL[kind][2], lengths=True, resets=True, batch=5, steps=3, hidden=7)
    with simulated(ORDERS):
        layer = case.layer("float32", "cuda")
        got, masks = case.results(layer)
        cases.check(case, got, case.wanted(layer, masks), "float32")


@needs_compiler
@pytest.mark.parametrize("kind", list(cases.KINDS))
def test_a_loss_on_the_final_state_alone(kind, device):
    case = dataclasses.replace(SMALL[kind][2], layers=2, bidirectional=False, dstate="both", form="batch-first")
    ends = []
    layer = case.layer("float32", "cuda")
    given = case.data("float32").given
    for dout in (None, np.zeros_like(given.dout), None):
        layer.zero_grads()
        _, _, backprop = layer.forward_train(given.x, lengths=given.lengths, resets=given.resets)
        dx, dstate = backprop(dout, case.pair(given, "d"))
        ends.append([as_numpy(one).copy() for one in (dx, *(dstate if case.cell == "lstm" else (dstate,)), layer.grads.flat)])
    assert ends[0][-1].any()
    for other in ends[1:]:
        assert all(np.array_equal(one, two) for one, two in zip(ends[0], other, strict=True))


@needs_compiler
def test_dropout_of_all_leaves_none(device):
    """See the same of tests/layers/test_basic.py."""
    layer, x = fastlstm.layers.basic.Dropout(1.0, device="cuda", seed=0), np.full(504_651, np.inf, np.float32)
    layer.calls = 121
    out, backprop = layer.forward_train(x)
    assert not as_numpy(out).any()
    assert not as_numpy(backprop(x)).any()


@needs_compiler
def test_a_shape_seen_before_runs_as_one_graph_with_the_same_bits(device):
    layer = fastlstm.GRU(3, 5, 2, dropout=0.3, device="cuda", seed=0)
    results = []
    for k in range(4):
        layer.dropout_calls = 0
        layer.zero_grads()
        x = np.random.default_rng(0).standard_normal((4, 2, 3)).astype(np.float32)
        out, h, backprop = layer.forward_train(x, None if k % 2 else np.zeros((2, 2, 5), np.float32))
        dx, _ = backprop(np.ones(out.shape, np.float32))
        results.append([as_numpy(one).copy() for one in (out, h, dx, layer.grads.flat)])
    assert device.graphs == 3  # forward with a state and without, and backward
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert np.array_equal(one, two)


@needs_compiler
def test_streams_share_no_buffers_and_wait_for_the_packed_weights(device):
    layer = fastlstm.LSTM(3, 5, device="cuda", seed=0)
    x = np.random.default_rng(0).standard_normal((4, 2, 3)).astype(np.float32)
    with device.on(1):
        first = as_numpy(layer(x)[0])
    assert device.waited == []
    with device.on(2):
        second = as_numpy(layer(x)[0])
    assert {(who, whose) for who, whose, _ in device.waited} == {(2, 1)}
    assert np.array_equal(first, second)
    one, two = (spaces for _, spaces in layer._pool.free)
    assert (one.queue, two.queue) == (1, 2)
    with device.on(1):
        layer(x)
    assert [spaces for _, spaces in layer._pool.free] == [two, one]
    # What one stream saved and another used last goes on behind the latter.
    with device.on(1):
        out, _, backprop = layer.forward_train(x)
    with device.on(2):
        backprop(np.ones(out.shape, np.float32))
    assert layer._pool.free[-1][1].queue == 2
    # New weights are packed on the stream that comes first, and the other waits for them again.
    device.waited.clear()
    layer.params.bump()
    with device.on(2):
        layer(x)
    assert device.waited == []
    with device.on(1):
        layer(x)
    assert [(who, whose) for who, whose, _ in device.waited] == [(1, 2)], "one mark, however many packs"


@needs_compiler
def test_the_check_of_streams_sees_shared_buffers(device, monkeypatch):
    from benchmarks.gpu import checks

    assert checks.check_streams("general", (1, 2, 3), 6, 3) == {"streams": 3, "repeats": 3}
    assert {(who, whose) for who, whose, _ in device.waited} == {(2, 1), (3, 1)}
    from fastlstm.layers.recurrent import LayerRun

    outputs = iter([0.0] * 3 + [0.0, 1.0, 0.0])  # the second stream's are others'
    whole = LayerRun.__init__

    def mixed(run, *arguments, **options):
        whole(run, *arguments, **options)
        run.outputs[0][...] += next(outputs)

    monkeypatch.setattr(LayerRun, "__init__", mixed)
    with pytest.raises(AssertionError, match="general form, repeat 0: other bits than alone"):
        checks.check_streams("general", (1, 2, 3), 6, 1)


def test_the_stream_that_each_thread_has_is_another_in_each(monkeypatch):
    """CuPy gives the same handle for all of them."""
    handle = 7
    stream = SimpleNamespace(ptr=handle, wait_event=lambda event: waited.append(event))
    waited, recorded = [], []
    event = SimpleNamespace(record=lambda on: recorded.append(on))
    cupy = SimpleNamespace(
        cuda=SimpleNamespace(
            get_current_stream=lambda index=0: stream,
            Event=lambda disable_timing: event,
            Device=lambda index: contextlib.nullcontext(),
        )
    )
    device = cuda.Device.__new__(cuda.Device)
    device.index, device.cupy, device._current = 0, cupy, contextlib.nullcontext()
    found = []

    def look():
        found.append(device.queue())

    for stream.ptr, same in ((7, True), (2, False)):
        found.clear()
        look()
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        assert (found[0] == found[1]) is same
    mark = device.mark()
    assert mark[0] == device.queue()
    assert recorded == [stream]
    device.wait(mark)
    assert waited == [event]


@needs_compiler
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("options", CELLS, ids=lambda options: "-".join(map(str, options.values())))
@pytest.mark.parametrize("vocabulary", [7, 40])  # by the table of tokens, and without it
def test_training_is_that_of_the_cpu(options, vocabulary, dtype, device):
    draw = np.random.default_rng(0)
    batches = draw.integers(0, vocabulary, (3, 2, 5, 3))
    ends = []
    for where in ("cpu", "cuda"):
        model = fastlstm.LanguageModel(
            vocabulary, hidden_size=6, num_layers=2, dropout=0.2, seed=3, dtype=dtype, device=where, **options
        )
        trainer = fastlstm.Trainer(model, progress=False)
        losses = [trainer.step(ids, targets) for ids, targets in batches]
        step = fastlstm.Stream(model, 2)
        streamed = [as_numpy(step([1, 2], resets=np.array([k == 1, False]))).copy() for k in range(3)]
        logits, state = model(batches[0, 0])
        _, _, backprop = model.forward_train(batches[0, 0], state)
        _, dstate = backprop(np.ones(logits.shape))
        pair = dstate if isinstance(dstate, tuple) else (dstate,)
        ends.append([losses, model.params.flat, *streamed, logits, *pair, step.state[0]])
    # An activation that is off by 1e-7 may fall to the other side where it is rounded to bfloat16.
    tolerance = {"float64": 1e-12, "float32": 5e-6, "bfloat16": 2e-4}[dtype]
    for got, want in zip(ends[1], ends[0], strict=True):
        assert off(np.asarray(got) if isinstance(got, list) else got, np.asarray(want)) < tolerance


@needs_compiler
@pytest.mark.parametrize(
    "make",
    [
        lambda: fastlstm.SGD(0.1, momentum=0.9, nesterov=True),
        lambda: fastlstm.RMSprop(0.01, momentum=0.5),
        lambda: fastlstm.AdamW(0.01),
    ],
)
def test_optimizers_and_clipping(make, device):
    ends = []
    for where in ("cpu", "cuda"):
        layer, optimizer = fastlstm.LSTM(3, 4, device=where, seed=0), make()
        for _ in range(3):
            out, _, backprop = layer.forward_train(np.ones((3, 2, 3)))
            layer.zero_grads()
            backprop(np.ones(out.shape))
            fastlstm.clip_grad_value(layer.grads, 0.5)
            norm = fastlstm.clip_grad_norm(layer.grads, 0.1)
            optimizer.step(layer.params, layer.grads)
        ends.append((layer.params.flat, norm))
    assert off(ends[1][0], ends[0][0]) < 1e-6
    assert ends[1][1] == pytest.approx(ends[0][1], rel=1e-6)


@needs_compiler
def test_models_that_read_sequences(device):
    draw = np.random.default_rng(0)
    x, lengths = draw.standard_normal((6, 4, 3)), np.array([6, 2, 0, 1])
    targets = {fastlstm.SequenceRegressor: draw.standard_normal((4, 1, 2)), fastlstm.SequenceClassifier: draw.integers(0, 2, 4)}
    for kind, wanted in targets.items():
        ends = []
        for where in ("cpu", "cuda"):
            model = kind(3, 2, hidden_size=6, bidirectional=True, num_layers=2, dropout=0.1, seed=1, device=where)
            trainer = fastlstm.Trainer(model, progress=False)
            losses = [model.train_batch(x, wanted, lengths=lengths)[0] for _ in range(2)]
            losses.append(trainer.step(x, wanted))
            sums, _ = model.eval_batch(x, wanted)
            ends.append([np.array(losses), model.params.flat, model(x, lengths=lengths), np.array(list(sums.values()))])
        for got, want in zip(ends[1], ends[0], strict=True):
            assert off(got, want) < 1e-5


@needs_compiler
def test_the_small_layers_and_cells(device):
    x = np.random.default_rng(0).standard_normal((3, 2, 4)).astype(np.float32)
    for make in (
        lambda where: fastlstm.layers.basic.Linear(4, 3, seed=0, device=where),
        lambda where: fastlstm.layers.basic.Dropout(0.4, seed=0, device=where),
    ):
        (got, back), (want, back_cpu) = make("cuda").forward_train(x), make("cpu").forward_train(x)
        assert off(got, want) < 1e-6
        ones = np.ones(want.shape, np.float32)
        assert off(back(ones), back_cpu(ones)) < 1e-6
    tables = [fastlstm.layers.basic.Embedding(7, 3, seed=0, device=where) for where in ("cpu", "cuda")]
    for table in tables:
        out, back = table.forward_train([[1, 2, 2]])
        back(np.ones(out.shape, np.float32))
    assert off(tables[1].grads["weight"], tables[0].grads["weight"]) == 0
    for kind in (fastlstm.RNNCell, fastlstm.LSTMCell, fastlstm.GRUCell):
        results = [kind(4, 3, seed=0, device=where)(x[0]) for where in ("cpu", "cuda")]
        one, two = (r if isinstance(r, tuple) else (r,) for r in results)
        assert all(off(got, want) < 1e-6 for got, want in zip(two, one, strict=True))


@needs_compiler
def test_arrays_on_the_device_are_taken_where_they_lie(device):
    layer = fastlstm.LSTM(3, 5, device="cuda", seed=0)
    x = device.upload(np.ones((4, 2, 3), np.float32))
    out, state = layer(x)
    again, _ = layer(out[:, :, :3].copy(), state)
    assert device.owns(out)
    assert device.owns(again)
    assert device.owns(state[1])
    want, _ = fastlstm.LSTM(3, 5, seed=0)(np.ones((4, 2, 3), np.float32))
    assert off(out, want) < 1e-6
    layer.load_state_dict({name: as_numpy(value) * 2 for name, value in layer.state_dict().items()})
    assert off(layer(x)[0], want) > 1e-3


@needs_compiler
def test_a_run_goes_on_and_loads_on_either_device(device, tmp_path):
    ids = np.random.default_rng(0).integers(0, 9, 300)

    def data():
        return fastlstm.TokenStream(ids, batch_size=4, seq_len=10)

    model = fastlstm.LanguageModel(9, hidden_size=5, num_layers=1, dropout=0.1, seed=0, device="cuda", dtype="tf32")
    trainer = fastlstm.Trainer(model, checkpoint_dir=tmp_path / "run", progress=False, seed=1)
    trainer.fit(data(), data(), epochs=2)
    resumed = fastlstm.Trainer.resume(tmp_path / "run", data(), data(), progress=False)
    resumed.fit(data(), data(), epochs=3)
    trainer.fit(data(), data(), epochs=3)
    assert resumed.model.device == "cuda"
    assert np.array_equal(as_numpy(resumed.model.params.flat), as_numpy(trainer.model.params.flat))
    run = fastlstm.load(tmp_path / "run", device="cpu")
    assert (run.model.device, run.model.dtype) == ("cpu", "float32")
    logits, _ = run.model(ids[:20].reshape(10, 2))
    assert off(fastlstm.load(tmp_path / "run").model(ids[:20].reshape(10, 2))[0], logits) < 1e-6


@needs_compiler
def test_a_run_from_a_device_loads_where_there_is_none(tmp_path, capsys):
    from tests.cuda.simulator.device import simulated

    with simulated():
        model = fastlstm.LanguageModel(9, hidden_size=5, num_layers=1, seed=0, device="cuda", dtype="float16")
        trainer = fastlstm.Trainer(model, progress=False)
        trainer.save(tmp_path / "run.safetensors")
    if cuda_is_here():
        pytest.skip("this machine has a GPU")
    run = fastlstm.load(tmp_path / "run.safetensors")
    assert (run.model.device, run.model.dtype) == ("cpu", "bfloat16")
    assert "using the CPU" in capsys.readouterr().err


def cuda_is_here():
    try:
        return cuda.count() > 0
    except cuda.Unavailable:
        return False


def test_without_cupy_one_sentence_and_all_else_works(monkeypatch):
    def no_cupy(name, *arguments, **options):
        if name.partition(".")[0] == "cupy":
            raise ImportError(f"No module named {name!r}")
        return importing(name, *arguments, **options)

    importing = builtins.__import__
    cuda.cupy.cache_clear()
    monkeypatch.setattr(builtins, "__import__", no_cupy)
    with pytest.raises(ValueError, match=r"device is 'cuda': CuPy is missing, pip install 'fastlstm\[cuda12\]'"):
        fastlstm.LSTM(3, 5, device="cuda")
    assert fastlstm.LSTM(3, 5, seed=0)(np.ones((2, 1, 3)))[0].shape == (2, 1, 5)


@pytest.mark.parametrize("device", ["cuda:", "cuda:x", "cuda0", "gpu"])
def test_names_of_devices(device):
    with pytest.raises(ValueError, match=f"device is '{device}'; expected 'cpu', 'cuda' or 'cuda:N'"):
        fastlstm.LSTM(3, 5, device=device)


def test_importing_the_package_imports_no_cupy():
    code = "import sys, fastlstm; fastlstm.LSTM(3, 5); sys.exit('cupy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
