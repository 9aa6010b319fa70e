"""dtype="bfloat16" beyond single layers (test_kernels.py): models, streams, compiled steps, and which products there are."""

import os
import subprocess
import sys

import numpy as np
import pytest

import fastlstm
from fastlstm.kernels.native import jit
from fastlstm.runtime import info

every_product = pytest.mark.parametrize("product", jit.PRODUCTS)
every_cell = pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])


@pytest.fixture
def use(request):
    """Within the test, products are made in one way; skipped where this processor lacks it."""
    product = request.getfixturevalue("product")
    if product not in jit.bfloat16_products(jit.isa()):
        pytest.skip(f"no bfloat16 products by {product!r} beside {jit.isa()} here")
    with jit.use_bfloat16_product(product):
        yield


def off(got, want):
    return np.linalg.norm(got - want) / np.linalg.norm(want)


@every_product
@every_cell
@pytest.mark.parametrize("vocabulary", [13, 500])  # by the table of tokens, and without it
def test_language_models_train_as_in_float32(cell, vocabulary, product, use):
    draw = np.random.default_rng(0)
    ids, targets = draw.integers(0, vocabulary, (2, 9, 21))
    losses, gradients = {}, {}
    for dtype in ("float32", "bfloat16"):
        model = fastlstm.LanguageModel(vocabulary, cell, hidden_size=40, num_layers=2, seed=3, dtype=dtype)
        assert model.params.flat.dtype == np.float32
        losses[dtype], _ = model.train_batch(ids, targets)
        gradients[dtype] = model.grads.flat.copy()
    assert abs(losses["bfloat16"] - losses["float32"]) < 0.01
    assert 0 < off(gradients["bfloat16"], gradients["float32"]) < 0.03


@every_cell
def test_a_model_learns(cell):
    ids = np.tile(np.arange(8), (4, 50)).T[:33]
    model = fastlstm.LanguageModel(8, cell, hidden_size=32, num_layers=1, seed=0, dtype="bfloat16")
    trainer = fastlstm.Trainer(model, fastlstm.Adam(lr=1e-2), progress=False)
    for _ in range(60):
        loss = trainer.step(ids[:-1], ids[1:])
    assert loss < 0.1


@every_product
@pytest.mark.parametrize("form", ["lstm", "gru", "original", "rnn", "relu"])
@pytest.mark.parametrize("hidden", [5, 17, 33])
def test_an_infinite_input_stays_in_its_row(hidden, form, product, use):
    """Rows are padded with zeros that products read: none may become infinity times zero."""
    cell, more = {"original": ("gru", {"reset_after": False}), "relu": ("rnn", {"nonlinearity": "relu"})}.get(form, (form, {}))
    make = {"lstm": fastlstm.LSTM, "gru": fastlstm.GRU, "rnn": fastlstm.RNN}[cell]
    layer, exact = (make(3, hidden, 2, seed=0, dtype=dtype, **more) for dtype in ("bfloat16", "float32"))
    with layer.edit() as params, exact.edit() as same:  # of one sign, so that no infinities are subtracted
        for name in params:
            params[name][...] = np.abs(params[name])
            same[name][...] = params[name]
    x = np.abs(np.random.default_rng(0).standard_normal((6, 4, 3), np.float32))
    x[1, 2, 1] = np.inf
    (out, _, backprop), (want, _) = layer.forward_train(x), exact(x)
    assert np.array_equal(np.isfinite(out), np.isfinite(want))
    assert np.isfinite(np.delete(out, 2, axis=1)).all()
    if form != "relu":
        assert np.isfinite(out).all(), "gates and tanh are bounded"
    dx, _ = backprop(np.ones_like(out))
    assert np.isfinite(np.delete(dx, 2, axis=1)).all()


@every_product
@every_cell
def test_streams_and_compiled_steps_follow_the_sequence(cell, product, use):
    """Not to the bit: tiles sum in another order than single rows."""
    make = {"lstm": fastlstm.LSTM, "gru": fastlstm.GRU, "rnn": fastlstm.RNN}[cell]
    layer = make(20, 50, 2, seed=1, dtype="bfloat16")
    x = np.random.default_rng(0).standard_normal((12, 20), np.float32)
    want, _ = layer(x)
    stream, compiled = fastlstm.Stream(layer), layer.compiled()
    step = getattr(fastlstm, f"{cell}_step")
    states = [np.zeros((2, 50), np.float32) for _ in range(1 + (cell == "lstm"))]
    for t in range(12):
        assert off(stream(x[t]), want[t]) < 1e-2
        assert off(step(compiled, x[t], *states), want[t]) < 1e-2
    again = fastlstm.Stream(layer)
    again.state = stream.state
    assert np.array_equal(again(x[0]), stream(x[0]))


def test_classifiers_and_regressors_take_it():
    x = np.random.default_rng(0).standard_normal((7, 5, 3))
    for dtype in ("float32", "bfloat16"):
        model = fastlstm.SequenceClassifier(3, 4, hidden_size=24, seed=0, normalize=False, dtype=dtype)
        logits, backprop = model.forward_train(x)
        dx = backprop(np.ones_like(logits))
        if dtype == "float32":
            want = logits, dx
        else:
            assert off(logits, want[0]) < 1e-2
            assert 0 < off(dx, want[1]) < 3e-2


def test_linear_takes_it():
    x = np.random.default_rng(0).standard_normal((6, 37), np.float32)
    exact, rounded = (fastlstm.Linear(37, 20, seed=0, dtype=dtype) for dtype in ("float32", "bfloat16"))
    (want, back), (got, back_rounded) = exact.forward_train(x), rounded.forward_train(x)
    assert 0 < off(got, want) < 1e-2
    assert off(back_rounded(got), back(want)) < 2e-2
    assert off(rounded.grads.flat, exact.grads.flat) < 2e-2


def test_rounding_is_to_the_nearest_even():
    """A product with the identity shows what operands were rounded to."""
    layer = fastlstm.Linear(32, 32, bias=False, seed=0, dtype="bfloat16")
    with layer.edit() as params:
        params["weight"][...] = np.eye(32, dtype=np.float32)
    bits = np.array([0x3F800000, 0x3F808000, 0x3F818000, 0x3F808001, 0xC0490FDB, 0x7F7FFFFF - 0xFFFF], np.uint32)
    x = np.zeros((1, 32), np.float32)
    x[0, : bits.size] = bits.view(np.float32)
    wanted = ((bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).astype(np.uint32)
    assert np.array_equal(layer(x)[0, : bits.size].view(np.uint32), wanted)


def test_the_way_of_products_can_be_chosen_and_is_told():
    offered = jit.bfloat16_products(jit.isa())
    assert offered[-1] == "convert"
    assert info.describe()["bfloat16_in_use"] == jit.bfloat16_product()
    with jit.use_bfloat16_product("convert"):
        assert info.describe()["bfloat16_in_use"] == "convert"
    with pytest.raises(ValueError, match="expected one of|this machine has"), jit.use_bfloat16_product("magic"):
        pass
    if "avx2" in jit.supported():
        with jit.use_isa("avx2"):
            assert jit.bfloat16_products("avx2") == ("convert",)


def test_a_wrong_choice_is_an_error_that_names_what_there_is():
    code = "import fastlstm, numpy; fastlstm.LSTM(3, 4, dtype='bfloat16')(numpy.ones((2, 3), numpy.float32))"
    environment = os.environ | {"FASTLSTM_BFLOAT16": "fast"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert "FASTLSTM_BFLOAT16 is 'fast'; expected one of amx, dot, convert" in done.stderr


def test_refused_tiles_fall_back(monkeypatch):
    """A system may say no; then another way serves, and `fastlstm info` says why."""
    if "amx" not in jit.bfloat16_products(jit.isa()):
        pytest.skip("no tiles here that could be refused")
    monkeypatch.setattr(jit, "tiles_granted", lambda: False)
    jit.bfloat16_products.cache_clear()
    try:
        assert jit.bfloat16_product() != "amx"
        assert jit.tiles() == "refused by the system"
        layer = fastlstm.LSTM(5, 6, seed=0, dtype="bfloat16")
        out, _ = layer(np.ones((3, 5), np.float32))
        assert np.isfinite(out).all()
    finally:
        jit.bfloat16_products.cache_clear()
