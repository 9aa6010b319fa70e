"""What the layers promise beside the numbers, which test_kernels.py judges: ownership, reuse, versions, errors."""

import numpy as np
import pytest

import fastlstm
from fastlstm.kernels import reference
from fastlstm.runtime import check, engine
from tests.support import cases
from tests.support.layer_cases import different, every_kind, flat, opened, small


@every_kind
def test_gradients_add_up_until_zeroed(kind):
    case = small(kind)
    layer = case.layer("float64")
    once, _ = case.results(layer)
    twice, _ = case.results(layer)
    for name in layer.params:
        assert np.allclose(twice[name], 2 * once[name], rtol=1e-13, atol=1e-15)
        assert np.array_equal(twice[name], layer.grads[name])
    layer.zero_grads()
    assert not layer.grads.flat.any()
    again, _ = case.results(layer)
    assert all(np.array_equal(again[name], once[name]) for name in once)


@every_kind
def test_backprop_is_for_one_call(kind):
    case = small(kind)
    layer = case.layer("float32")
    _, backprop, arguments = opened(case, layer)
    backprop(*arguments)
    grads = layer.grads.flat.copy()
    with pytest.raises(RuntimeError, match="backprop was called before or closed"):
        backprop(*arguments)
    _, backprop, arguments = opened(case, layer)
    backprop.close()
    backprop.close()
    with pytest.raises(RuntimeError, match="backprop was called before or closed"):
        backprop(*arguments)
    assert np.array_equal(layer.grads.flat, grads)


@every_kind
def test_old_activations_do_not_meet_new_weights(kind):
    case = small(kind)
    layer = case.layer("float32")
    for edit in (
        lambda: layer.load_state_dict(layer.state_dict()),
        lambda: fastlstm.SGD(lr=0.1).step(layer.params, layer.grads),
        lambda: fastlstm.flatten(layer),
    ):
        _, backprop, arguments = opened(case, layer)
        edit()
        with pytest.raises(RuntimeError, match="parameters were edited between forward_train and its backprop"):
            backprop(*arguments)
        assert not layer.grads.flat.any()
        backprop.close()
    _, backprop, arguments = opened(case, layer)
    backprop(*arguments)
    assert layer.grads.flat.any()


def test_a_refused_gradient_does_not_use_backprop_up():
    case = small("lstm")
    layer = case.layer("float32")
    _, backprop, (dout, dstate) = opened(case, layer)
    with pytest.raises(ValueError, match="dout has shape"):
        backprop(dout[1:], dstate)
    assert not layer.grads.flat.any()
    backprop(dout, dstate)
    assert layer.grads.flat.any()


@every_kind
def test_forwards_may_be_open_together_and_go_back_in_any_order(kind):
    one = small(kind)
    pair, wanted = (one, different(one, 78)), []
    layer = one.layer("float32")
    for case in pair:
        layer.zero_grads()
        results, backprop, arguments = opened(case, layer)
        wanted.append([*results, *flat(*backprop(*arguments)), layer.grads.flat.copy()])
    for order in ((0, 1), (1, 0)):
        open_ones = [opened(case, layer) for case in pair]
        for k in order:
            layer.zero_grads()
            results, backprop, arguments = open_ones[k]
            got = [*results, *flat(*backprop(*arguments)), layer.grads.flat]
            assert all(np.array_equal(a, b) for a, b in zip(got, wanted[k], strict=True)), f"{order}, {k}"


@every_kind
@pytest.mark.parametrize("form", ["time-major", "batch-first"])
def test_what_is_returned_belongs_to_the_caller(kind, form):
    case = small(kind, form=form)
    layer = case.layer("float32")

    def everything(case):
        given = case.data("float32").given
        inference = layer(given.x, case.pair(given), lengths=given.lengths, resets=given.resets)
        results, backprop, arguments = opened(case, layer)
        return flat(*inference) + results + flat(*backprop(*arguments))

    first = everything(case)
    kept = [array.copy() for array in first]
    everything(different(case, 78))
    assert all(np.array_equal(a, b) for a, b in zip(first, kept, strict=True))
    for array in first:
        assert array.flags.writeable
        array.fill(np.nan)
    assert all(np.array_equal(a, b) for a, b in zip(everything(case), kept, strict=True))


@every_kind
def test_arguments_may_change_before_backprop(kind):
    """Activations are saved, not the caller's arrays, whose dtypes here are those that need no conversion."""
    case = small(kind)
    layer = case.layer("float32")
    _, backprop, arguments = opened(case, layer)
    wanted = [*flat(*backprop(*arguments)), layer.grads.flat.copy()]
    layer.zero_grads()
    given = case.data("float32").given
    out, state, backprop = layer.forward_train(given.x, case.pair(given), lengths=given.lengths, resets=given.resets)
    for array in flat(given.x, case.pair(given), given.lengths, given.resets, out, state):
        array.fill(1)
    got = [*flat(*backprop(*arguments)), layer.grads.flat]
    assert all(np.array_equal(a, b) for a, b in zip(got, wanted, strict=True))


@every_kind
def test_arguments_are_left_alone(kind):
    case = small(kind)
    layer = case.layer("float32")
    given, fresh = case.data("float32").given, case.data("float32").given
    _, _, backprop = layer.forward_train(given.x, case.pair(given), lengths=given.lengths, resets=given.resets)
    backprop(given.dout, case.pair(given, "d"))
    assert all(np.array_equal(array, getattr(fresh, name)) for name, array in vars(given).items())


@every_kind
def test_edits_are_seen_at_once(kind):
    """Packed copies are renewed for a call and for the backward pass, whoever wrote the parameters."""
    case = small(kind)
    layer, other = case.layer("float64"), different(case, 3).layer("float64")
    wanted, masks = case.results(other)
    cases.check(case, wanted, case.wanted(other, masks), "float64")

    def by_edit():
        with layer.edit() as params:
            for name, value in other.params.items():
                params[name][...] = value

    def by_flat():
        layer.params.flat[:] = other.params.flat
        layer.params.bump()

    for change in (by_edit, lambda: layer.load_state_dict(other.state_dict()), by_flat):
        layer.load_state_dict(case.layer("float64").state_dict())
        before, _ = case.results(layer)
        assert not np.array_equal(before["out"], wanted["out"])
        change()
        layer.zero_grads()
        got, _ = case.results(layer)
        assert all(np.array_equal(got[name], wanted[name]) for name in wanted)


@every_kind
def test_joined_layers_compute_on(kind):
    case = small(kind)
    one, two = case.layer("float64"), different(case, 3).layer("float64")
    wanted, _ = case.results(one)
    one.zero_grads()
    whole = fastlstm.flatten(one, two)
    assert [*whole.params] == [f"{k}.{name}" for k in (0, 1) for name in one.params]
    got, _ = case.results(one)
    assert all(np.array_equal(got[name], wanted[name]) for name in wanted)
    assert np.array_equal(whole.grads["0.weight_hh_l1"], one.grads["weight_hh_l1"])
    with whole.params.edit() as params:
        for name in one.params:
            params[f"0.{name}"][...] = two.params[name]
    one.zero_grads()
    got, masks = case.results(one)
    cases.check(case, got, case.wanted(two, masks), "float64")


@pytest.mark.parametrize("rubbish", [1e30, np.nan], ids=["huge", "nan"])
@every_kind
def test_what_stands_in_the_padding_does_not_matter(kind, rubbish):
    case = small(kind)
    layer = case.layer("float64")
    results = []
    for padding in (0.0, rubbish):
        given = case.data("float64").given
        ended = np.arange(case.steps)[:, None] >= given.lengths
        given.x[ended] = given.dout[ended] = padding
        layer.zero_grads()
        out, state, backprop = layer.forward_train(
            given.x, case.pair(given), lengths=given.lengths, resets=given.resets | (ended & (padding != 0))
        )
        assert not out[ended].any()
        dx, dstate = backprop(given.dout, case.pair(given, "d"))
        assert not dx[ended].any()
        results.append([*flat(out, state, dx, dstate), layer.grads.flat.copy()])
    assert all(np.array_equal(a, b) for a, b in zip(*results, strict=True))


@every_kind
def test_not_a_number_stays_in_its_row(kind):
    case = small(kind, lengths=False, resets=False, layers=1)
    layer = case.layer("float32")
    given = case.data("float32").given
    clean, _ = layer(given.x, case.pair(given))
    given.x[2, 1, 0] = np.nan
    out, _ = layer(given.x, case.pair(given))
    others = [0, 2, 3]
    assert np.array_equal(out[:, others], clean[:, others])
    assert np.isnan(out[2:, 1, : case.width]).all()  # forward from step 2 on,
    assert np.isnan(out[:3, 1, case.width :]).all()  # in reverse from there back
    assert np.array_equal(out[:2, 1, : case.width], clean[:2, 1, : case.width])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@every_kind
def test_an_infinite_input_spreads_as_the_equations_say(kind, dtype):
    """A gate is finite where its input is not: nothing beside the equations may make it otherwise, such as padding."""
    if kind == "rnn-relu":
        pytest.skip("no bounds: infinity stays in the state")
    for hidden in (2, 9, 16, 17, 33):
        case = small(kind, hidden=hidden, lengths=False, resets=False, proj=(hidden + 1) // 3 * (kind == "lstm-projected"))
        layer, data = case.layer(dtype), case.data(dtype)
        x = np.array(data.given.x)
        x[1, 2, 3] = np.inf
        out, _, backprop = layer.forward_train(x, case.pair(data.given))
        assert np.array_equal(layer(x, case.pair(data.given))[0], out)
        dx, _ = backprop(data.given.dout)
        options = cases.KINDS[kind][2]
        with np.errstate(invalid="ignore"):  # a gradient of zero times the infinite input
            wanted, _, saved = reference.stack_forward(
                case.cell,
                x.astype(float),
                dict(layer.params),
                case.pair(data.plain),
                num_layers=2,
                bidirectional=True,
                **options,
            )
            wanted_dx, _, wanted_grads = reference.stack_backward(saved, data.plain.dout, None)
        assert np.isfinite(wanted).all()
        found = {"out": out, "dx": dx, **layer.grads}
        for name, array in {"out": wanted, "dx": wanted_dx, **wanted_grads}.items():
            assert np.array_equal(np.isfinite(found[name]), np.isfinite(array)), f"{name}, {hidden} units"


def test_parts_of_a_pair_may_be_missing():
    layer = fastlstm.LSTM(3, 4, seed=0)
    x = np.ones((2, 3, 3), np.float32)
    h, zeros = np.full((1, 3, 4), 0.5, np.float32), np.zeros((1, 3, 4), np.float32)
    for some, full in (((h, None), (h, zeros)), ((None, h), (zeros, h)), ((None, None), (zeros, zeros))):
        assert np.array_equal(layer(x, some)[0], layer(x, full)[0])
        _, _, backprop = layer.forward_train(x, some)
        got = backprop(np.ones_like(x[..., :1]).repeat(4, 2), some)
        _, _, backprop = layer.forward_train(x, full)
        want = backprop(np.ones_like(x[..., :1]).repeat(4, 2), full)
        assert all(np.array_equal(a, b) for a, b in zip(flat(*got), flat(*want), strict=True))
        assert got[1][0].shape == got[1][1].shape == (1, 3, 4)


def test_seeds_fix_the_weights():
    for kind in cases.KINDS:
        case = small(kind)
        one, same, other = case.layer("float32"), case.layer("float32"), different(case, 3).layer("float32")
        assert np.array_equal(one.params.flat, same.params.flat)
        assert not np.array_equal(one.params.flat, other.params.flat)
        bound = case.hidden**-0.5
        assert np.abs(one.params.flat).max() <= bound
        assert abs(one.params.flat.std() * 3**0.5 - bound) < 0.1 * bound
    assert not np.array_equal(fastlstm.RNN(3, 4).params.flat, fastlstm.RNN(3, 4).params.flat)


def test_a_layer_says_what_it_is():
    layer = fastlstm.LSTM(3, 5, 2, batch_first=True, bidirectional=True, proj_size=2, dtype="float64")
    assert repr(layer) == "LSTM(3, 5, num_layers=2, batch_first=True, bidirectional=True, proj_size=2, dtype='float64')"
    assert repr(fastlstm.RNN(3, 5, nonlinearity="relu", bias=False)) == "RNN(3, 5, nonlinearity='relu', bias=False)"
    assert repr(fastlstm.GRU(3, 5, reset_after=False)) == "GRU(3, 5, reset_after=False)"
    assert (
        layer.input_size,
        layer.hidden_size,
        layer.num_layers,
        layer.bias,
        layer.dropout,
        layer.bidirectional,
        layer.proj_size,
        layer.batch_first,
        layer.dtype,
        layer.device,
    ) == (3, 5, 2, True, 0.0, True, 2, True, "float64", "cpu")
    assert fastlstm.RNN(3, 5, nonlinearity="relu").nonlinearity == "relu"
    assert fastlstm.GRU(3, 5).reset_after


X = np.zeros((4, 3, 2), np.float32)
LAYER = {"lstm": fastlstm.LSTM(2, 5, seed=0), "rnn": fastlstm.RNN(2, 5, seed=0)}
PAIR = (np.zeros((1, 3, 5)), np.zeros((1, 3, 5)))
BAD = {
    "no inputs": (lambda: fastlstm.LSTM(0, 5), ValueError, "input_size is 0; expected at least 1"),
    "half a unit": (lambda: fastlstm.GRU(2, 2.5), TypeError, "hidden_size is 2.5 (float); expected an integer"),
    "true units": (lambda: fastlstm.GRU(2, True), TypeError, "hidden_size is True; expected an integer"),
    "no layers": (lambda: fastlstm.RNN(2, 5, -1), ValueError, "num_layers is -1; expected at least 1"),
    "dropout of more than all": (
        lambda: fastlstm.RNN(2, 5, dropout=1.1),
        ValueError,
        "dropout is 1.1; expected a number p with 0 <= p <= 1",
    ),
    "dropout as text": (lambda: fastlstm.RNN(2, 5, dropout="x"), ValueError, "dropout is 'x'; expected a number"),
    "nonlinearity": (
        lambda: fastlstm.RNN(2, 5, nonlinearity="elu"),
        ValueError,
        "nonlinearity is 'elu'; expected one of 'tanh', 'relu'",
    ),
    "wide projection": (lambda: fastlstm.LSTM(2, 5, proj_size=5), ValueError, "proj_size is 5; expected 0 (none) or a"),
    "dtype": (lambda: fastlstm.LSTM(2, 5, dtype="int8"), ValueError, "dtype is 'int8'; expected one of 'float32'"),
    "cuda": (lambda: fastlstm.LSTM(2, 5, device="cuda:1"), ValueError, "device is 'cuda:1': "),
    "device": (lambda: fastlstm.LSTM(2, 5, device="tpu"), ValueError, "device is 'tpu'; expected 'cpu'"),
    "seed": (lambda: fastlstm.LSTM(2, 5, seed=0.5), TypeError, "seed is 0.5 (float); expected an integer"),
    "flatten": (lambda: fastlstm.flatten(), ValueError, "layers is empty; expected at least one layer"),
    "flatten twice": (lambda: fastlstm.flatten(LAYER["rnn"], LAYER["lstm"], LAYER["rnn"]), ValueError, "part '0' comes twice"),
    "x of one axis": (lambda: LAYER["rnn"](X[0, 0]), ValueError, "x has shape [2]; expected [T, B, 2]"),
    "x too wide": (lambda: LAYER["rnn"](np.zeros((4, 3, 7))), ValueError, "x has shape [4, 3, 7]; expected [T, B, 2]"),
    "x unbatched": (lambda: LAYER["rnn"](np.zeros((4, 7))), ValueError, "x has shape [4, 7]; expected [T, 2]"),
    "x batch first": (lambda: fastlstm.RNN(2, 5, batch_first=True)(np.zeros((4, 3, 7))), ValueError, "expected [B, T, 2]"),
    "x without steps": (lambda: LAYER["rnn"](X[:0]), ValueError, "x has shape [0, 3, 2]; expected no size to be zero"),
    "x without rows": (lambda: LAYER["rnn"](X[:, :0]), ValueError, "x has shape [4, 0, 2]; expected no size to be"),
    "x of words": (lambda: LAYER["rnn"](X.astype(str)), TypeError, "x has dtype <U"),
    "x complex": (lambda: LAYER["rnn"](X * 1j), TypeError, "x has dtype complex64; expected float32"),
    "x of marks": (lambda: LAYER["rnn"](X > 0), TypeError, "x has dtype bool; expected float32"),
    "half a state": (lambda: LAYER["lstm"](X, PAIR[0]), TypeError, "state is ndarray; expected a pair (h, c)"),
    "pair too many": (lambda: LAYER["rnn"](X, PAIR), TypeError, "state is tuple; expected one array h"),
    "state of another batch": (
        lambda: LAYER["lstm"](X[:, :2], PAIR),
        ValueError,
        "state (h) has shape [1, 3, 5]; expected [1, 2, 5]",
    ),
    "c too narrow": (
        lambda: LAYER["lstm"](X, (PAIR[0], PAIR[1][..., 1:])),
        ValueError,
        "state (c) has shape [1, 3, 4]; expected [1, 3, 5]",
    ),
    "state with a batch axis": (lambda: LAYER["lstm"](X[:, 0], PAIR), ValueError, "expected [1, 5]"),
    "lengths of a part": (lambda: LAYER["rnn"](X, lengths=[1, 2]), ValueError, "lengths has shape [2] and dtype int64; expe"),
    "lengths with fractions": (lambda: LAYER["rnn"](X, lengths=[1.0] * 3), ValueError, "dtype float64; expected integers [3]"),
    "lengths too long": (
        lambda: LAYER["rnn"](X, lengths=[1, 2, 5]),
        ValueError,
        "lengths has values from 1 to 5; expected 0 to 4",
    ),
    "negative lengths": (lambda: LAYER["rnn"](X, lengths=[-1, 2, 4]), ValueError, "lengths has values from -1 to 4"),
    "resets as numbers": (
        lambda: LAYER["rnn"](X, resets=X[..., 0]),
        ValueError,
        "resets has shape [4, 3] and dtype float32; expected bool [4, 3]",
    ),
    "resets of a row": (lambda: LAYER["rnn"](X, resets=X[:, 0, 0] > 0), ValueError, "expected bool [4, 3]"),
    "dout": (lambda: LAYER["rnn"].forward_train(X)[2](X), ValueError, "dout has shape [4, 3, 2]; expected [4, 3, 5]"),
    "dstate": (
        lambda: LAYER["lstm"].forward_train(X)[2](np.zeros((4, 3, 5)), PAIR[0]),
        TypeError,
        "dstate_n is ndarray; expected a pair (h, c)",
    ),
    "dstate's h": (
        lambda: LAYER["rnn"].forward_train(X)[2](np.zeros((4, 3, 5)), X),
        ValueError,
        "dstate_n (h) has shape [4, 3, 2]; expected [1, 3, 5]",
    ),
    "tokens": (lambda: check.tokens("ids", [[3, 9]], 9), ValueError, "ids has values from 3 to 9; expected 0 to 8"),
    "tokens' shape": (lambda: check.tokens("ids", [3], 9), ValueError, "ids has shape [1]; expected [T, B]"),
    "tokens' dtype": (lambda: check.tokens("ids", [[3.0]], 9), TypeError, "ids has dtype float64; expected integers"),
    "engine": (lambda: engine.engine("cpu", "float16"), ValueError, "dtype is 'float16'; expected one of 'float32'"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_arguments_are_named_with_what_came_and_what_was_expected(what):
    call, kind, message = BAD[what]
    with pytest.raises(kind) as caught:
        call()
    assert message in str(caught.value)
