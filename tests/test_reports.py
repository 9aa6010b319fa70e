"""Faults that users of other recurrent layers reported in public: each tried here, with a line on what it guards."""

import numpy as np
import pytest

import fastlstm
from fastlstm import losses
from tests.support import cases
from tests.support.layer_cases import every_kind, flat, small

KINDS = {"rnn": fastlstm.RNN, "lstm": fastlstm.LSTM, "gru": fastlstm.GRU}
every_cell = pytest.mark.parametrize("cell", KINDS)


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def pair(state):
    return state if isinstance(state, tuple) else (state,)


@every_cell
def test_mean_over_a_sequence_is_the_mean_of_its_steps(cell):
    """Losses that agree have gradients that agree: one call on all steps, or one a step with the state's gradient."""
    layer, steps = KINDS[cell](3, 5, seed=0, dtype="float64"), 6
    x, target = normal(0, steps, 2, 3), normal(1, steps, 2, 5)
    out, _, backprop = layer.forward_train(x)
    loss, dout = losses.mean_squared_error(out, target.astype(np.float64))
    dx, _ = backprop(dout)
    whole = layer.grads.flat.copy()
    layer.zero_grads()
    state, total, passes = None, 0.0, []
    for t in range(steps):
        out, state, backprop = layer.forward_train(x[t : t + 1], state)
        one, dout = losses.mean_squared_error(out, target[t : t + 1].astype(np.float64))
        total += one / steps
        passes.append((backprop, dout / steps))
    dstate, singly = None, []
    for backprop, dout in reversed(passes):
        step, dstate = backprop(dout, dstate)
        singly.insert(0, step)
    assert abs(total - loss) < 1e-12
    assert cases.error(layer.grads.flat, whole) < 1e-12
    assert cases.error(np.concatenate(singly), dx) < 1e-12


@every_kind
def test_lengths_equal_trimmed_runs(kind):
    """Padding takes part in nothing: with both directions and two layers, each row is that of its own steps alone."""
    case = small(kind, lengths=False, resets=False, state="none", steps=6, batch=3)
    layer, lengths, x = case.layer("float32"), [6, 5, 3], normal(0, 6, 3, case.inputs)
    for row, length in enumerate(lengths):
        x[length:, row] = 0
    out, state = layer(x, lengths=lengths)
    for row, length in enumerate(lengths):
        alone, end = layer(x[:length, row])
        assert np.array_equal(out[:length, row], alone)
        assert not out[length:, row].any()
        assert all(np.array_equal(part[:, row], own) for part, own in zip(pair(state), pair(end), strict=True))


@every_cell
def test_many_layers_of_one_step(cell):
    """Depth is no limit: 10 layers, and 40, of few units and one step, forward and backward."""
    for layers in (10, 40):
        layer = KINDS[cell](8, 8, layers, seed=0)
        out, _, backprop = layer.forward_train(normal(0, 1, 2, 8))
        backprop(np.ones_like(out))
        assert np.isfinite(out).all()
        assert all(grad.any() for name, grad in layer.grads.items() if not name.startswith("weight_hh"))  # h_0 is zero


def test_a_state_without_c_is_named():
    """An LSTM's state is a pair: h alone is refused as what it is."""
    layer = fastlstm.LSTM(1, 10, batch_first=True, seed=0)
    with pytest.raises(TypeError, match=r"state is ndarray; expected a pair \(h, c\)"):
        layer(normal(0, 2, 5, 1), np.zeros((1, 2, 10), np.float32))


@every_cell
def test_numbers_that_fade_are_right(cell):
    """States and gradients that sink below the smallest normal number neither stop at it nor spoil what stands beside them."""
    layer = KINDS[cell](2, 16, bias=False, seed=0)
    x = np.zeros((600, 2, 2), np.float32)
    x[0] = 1e-30
    out, _ = layer(x)
    assert np.isfinite(out).all()
    wide = KINDS[cell](2, 16, bias=False, seed=0, dtype="float64")
    assert np.abs(out - wide(x)[0]).max() <= 1e-36 + 1e-5 * np.abs(out).max()
    x[:, 1] = normal(1, 600, 2)
    assert np.array_equal(layer(x)[0][:, 1], layer(x[:, 1])[0])


@every_cell
def test_wide_batches_and_long_sequences(cell):
    """Sizes at which others' libraries give up: a batch of 6464 rows, and 40,000 steps of one, in any layout."""
    layer = KINDS[cell](32, 32, seed=0)
    x = normal(0, 5, 6464, 32)
    out, _ = layer(x)
    assert np.array_equal(out[:, [0, 1000, 6463]], layer(x[:, [0, 1000, 6463]])[0])
    first = KINDS[cell](2, 8, batch_first=True, seed=0)
    x = normal(1, 1, 40_000, 2)
    out, state, backprop = first.forward_train(x)
    dx, _ = backprop(np.ones_like(out) / out.size)
    assert all(np.isfinite(array).all() for array in flat(out, state, dx))
    half, state = first(x[:, :20_000])
    assert np.array_equal(np.concatenate([half, first(x[:, 20_000:], state)[0]], 1), out)


# Reinforcement learning and streams


@every_cell
def test_each_row_ends_with_its_own_length(cell):
    """Of rows of 2 and 5 steps, the state after them is that of each one's own last step."""
    layer, x = KINDS[cell](3, 4, seed=0), normal(0, 5, 2, 3)
    _, state = layer(x, lengths=[2, 5])
    for row, length in enumerate((2, 5)):
        _, own = layer(x[:length, row])
        assert all(np.array_equal(part[:, row], one) for part, one in zip(pair(state), pair(own), strict=True))


@every_cell
def test_an_episode_that_begins_in_between_keeps_the_states_before_it(cell):
    """A reset before step 3 of 5 makes the steps from it anew, and touches nothing of those before, outputs or gradients."""
    layer, x, starts = KINDS[cell](3, 4, seed=0), normal(0, 5, 2, 3), np.zeros((5, 2), bool)
    starts[3, 0] = True
    h = tuple(normal(k, 1, 2, 4) for k in range(2))
    state = h if cell == "lstm" else h[0]
    out, _, backprop = layer.forward_train(x, state, resets=starts)
    assert np.array_equal(out[:, 1], layer(x[:, 1], tuple(p[:, 1] for p in h) if cell == "lstm" else h[0][:, 1])[0])
    assert np.array_equal(out[:3], layer(x[:3], state)[0])
    assert np.array_equal(out[3:, 0], layer(x[3:, 0])[0])
    later = np.zeros_like(out)
    later[3:, 0] = 1
    dx, dstate = backprop(later)
    assert not dx[:3].any()
    assert not any(part.any() for part in pair(dstate))


@every_cell
@pytest.mark.parametrize("lengths", [[3, 6, 1], [3, 4, 1]], ids=["one full", "all shorter"])
def test_losses_of_padding_count_for_nothing(cell, lengths):
    """A padded batch, even where all trajectories are shorter, has the gradients of its trajectories, one by one."""
    layer, x, dout = KINDS[cell](3, 4, 2, seed=0, dtype="float64"), normal(0, 6, 3, 3), normal(1, 6, 3, 4)
    x[-1, 2] = np.nan  # what stands in the padding is nobody's business
    out, _, backprop = layer.forward_train(x, lengths=lengths)
    dx, _ = backprop(dout)
    whole = layer.grads.flat.copy()
    assert out.shape == (6, 3, 4)
    layer.zero_grads()
    for row, length in enumerate(lengths):
        own, _, backprop = layer.forward_train(x[:length, row])
        assert np.array_equal(out[:length, row], own)
        assert cases.error(dx[:length, row], backprop(dout[:length, row])[0]) < 1e-12
        assert not dx[length:, row].any()
    assert cases.error(layer.grads.flat, whole) < 1e-12


@every_cell
def test_padding_in_front_is_cut_off_by_a_reset(cell):
    """A row that begins late meets its padding first: a reset where it begins gives it zeros, not what the padding made."""
    layer, x, starts = KINDS[cell](3, 4, seed=0), normal(0, 6, 2, 3), np.zeros((6, 2), bool)
    starts[2, 1] = True
    out, state = layer(x, resets=starts)
    own, end = layer(x[2:, 1])
    assert np.array_equal(out[2:, 1], own)
    assert all(np.array_equal(part[:, 1], one) for part, one in zip(pair(state), pair(end), strict=True))


@every_cell
def test_masks_of_rollouts_and_a_state_that_is_handed_on(cell):
    """Chunks that hand their state on are the whole sequence, whether episodes begin at a chunk's edge or inside."""
    layer, x = KINDS[cell](3, 4, seed=0), normal(0, 12, 3, 3)
    starts = np.random.default_rng(1).random((12, 3)) < 0.3
    starts[4, 0] = starts[8, 1] = True
    whole, last = layer(x, resets=starts)
    state, parts = None, []
    for t in range(0, 12, 4):
        out, state = layer(x[t : t + 4], state, resets=starts[t : t + 4])
        parts.append(out)
    step = fastlstm.Stream(layer, 3)
    streamed = np.array([step(x[t], resets=starts[t]).copy() for t in range(12)])
    for found, end in ((np.concatenate(parts), state), (streamed, step.state)):
        assert np.array_equal(found, whole)
        assert all(np.array_equal(a, b) for a, b in zip(pair(end), pair(last), strict=True))


def test_the_state_is_read_and_written_by_one_name():
    """A stream that goes on in another process, by its state alone: a chunk later it is where the first one is."""
    layer, x = fastlstm.LSTM(3, 4, 2, seed=0), normal(0, 9, 3)
    step, other = fastlstm.Stream(layer), fastlstm.Stream(layer)
    for t in range(5):
        step(x[t])
    other.state = step.state
    assert all(np.array_equal(step(x[t]), other(x[t])) for t in range(5, 9))


@pytest.mark.parametrize(
    ("cell", "dtype", "steps"),
    [
        ("lstm", "float32", 10**6),
        ("gru", "float32", 10**4),
        ("rnn", "float32", 10**4),
        ("lstm", "bfloat16", 10**4),
        ("gru", "bfloat16", 10**4),
    ],
)
def test_a_million_steps_of_a_stream(cell, dtype, steps):
    """No drift: at the end, and ten times on the way, a fresh stream with the same state gives the same bits."""
    layer = KINDS[cell](2, 4, seed=0, dtype=dtype)
    x = normal(0, 1000, 2)
    step, fresh = fastlstm.Stream(layer), fastlstm.Stream(layer)
    for _ in range(10):
        for _ in range(steps // 10_000):
            for one in x:
                step(one)
        fresh.reset()
        fresh.state = step.state
        assert all(np.array_equal(step(one), fresh(one)) for one in x[:50])
    step.reset()
    fresh.reset()
    assert all(np.array_equal(step(one), fresh(one)) for one in x[:50])
    assert np.isfinite(step(x[0])).all()
