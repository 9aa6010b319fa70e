"""Token streams and batches of sequences: what they yield, in which order, and what they refuse."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastlstm.data import Batches, TokenStream, TooShortError


def sequences(n=11, steps=5, width=3):
    """Inputs in which every number says where it stands, and targets that name the sequence."""
    return np.arange(n * steps * width, dtype=np.float32).reshape(n, steps, width), np.arange(n)


# --- TokenStream


@given(
    batch_size=st.integers(1, 5),
    seq_len=st.integers(1, 7),
    size=st.integers(0, 120),
    keep=st.booleans(),
)
def test_stream_rows_are_contiguous_and_targets_one_later(batch_size, seq_len, size, keep):
    ids = np.arange(size)
    needed = batch_size * (1 + (1 if keep else seq_len))
    if size < needed:
        with pytest.raises(TooShortError):
            TokenStream(ids, batch_size, seq_len, keep_remainder=keep)
        return
    data = TokenStream(ids, batch_size, seq_len, keep_remainder=keep)
    batches = list(data)
    assert len(batches) == len(data)
    inputs = np.concatenate([x for x, _ in batches])
    targets = np.concatenate([y for _, y in batches])
    row = size // batch_size
    steps = row - 1 if keep else (row - 1) // seq_len * seq_len
    expected = np.arange(batch_size) * row + np.arange(steps)[:, None]
    np.testing.assert_array_equal(inputs, expected)
    np.testing.assert_array_equal(targets, expected + 1)
    assert data.num_tokens == targets.size
    lengths = [len(x) for x, _ in batches]
    assert lengths[:-1] == [seq_len] * (len(lengths) - 1)
    assert lengths[-1] == seq_len or (keep and lengths[-1] < seq_len)


def test_stream_arrays_are_read_only_contiguous_int32_views():
    data = TokenStream(np.arange(1000, dtype=np.uint16), batch_size=4, seq_len=10)
    for inputs, targets in data:
        for array in (inputs, targets):
            assert array.dtype == np.int32
            assert array.shape == (10, 4)
            assert array.flags.c_contiguous
            assert not array.flags.writeable
            assert not array.flags.owndata
    first, again = next(data.batches(0)), next(data.batches(7))
    assert np.shares_memory(first[0], again[0])  # nothing is made anew from epoch to epoch


def test_stream_does_not_hold_on_to_its_ids():
    ids = np.arange(100, dtype=np.int32)
    data = TokenStream(ids, batch_size=1, seq_len=9)
    ids[:] = 0
    assert next(iter(data))[0].ravel().tolist() == list(range(9))
    ids[0] = 1  # and leaves them writable


def test_stream_resumes_in_the_middle():
    data = TokenStream(np.arange(200), batch_size=3, seq_len=7)
    whole = list(data.batches())
    for start in range(len(data) + 1):
        rest = list(data.batches(epoch=3, start=start))
        assert len(rest) == len(whole) - start
        for got, expected in zip(rest, whole[start:], strict=True):
            np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("start", [-1, 10, 1.5, True, None])
def test_stream_refuses_a_start_outside_the_epoch_at_once(start):
    data = TokenStream(np.arange(200), batch_size=3, seq_len=7)
    with pytest.raises((ValueError, TypeError), match="start"):
        data.batches(0, start)  # not only when the first batch is drawn


@pytest.mark.parametrize(
    ("ids", "error", "says"),
    [
        (np.zeros((2, 300), np.int64), ValueError, r"1-d array, got shape \(2, 300\)"),
        (np.array(5), ValueError, r"shape \(\)"),
        (np.zeros(300), TypeError, "float64"),
        (np.zeros(300, bool), TypeError, "bool"),
        (np.array(["a"] * 300), TypeError, "integers"),
        (np.arange(-1, 299), ValueError, r"got -1 \.\.\. 298"),
        (np.full(300, 2**31), ValueError, "2147483648"),
        (np.full(300, 2**63, np.uint64), ValueError, "9223372036854775808"),
        ([], TooShortError, "give more data$"),
    ],
)
def test_stream_refuses_ids(ids, error, says):
    with pytest.raises(error, match=says):
        TokenStream(ids, batch_size=2, seq_len=10)


@pytest.mark.parametrize("name", ["batch_size", "seq_len"])
@pytest.mark.parametrize("value", [0, -3, 2.0, "4", True])
def test_stream_refuses_sizes(name, value):
    with pytest.raises((ValueError, TypeError), match=name):
        TokenStream(np.arange(100), **{"batch_size": 2, "seq_len": 5, name: value})


@pytest.mark.parametrize(
    ("size", "says"),
    [
        (6463, r"6463 tokens .* 64 \* \(100 \+ 1\) = 6464 .* at most batch_size=63 or seq_len=99$"),
        (128, r"at most batch_size=1 or seq_len=1$"),
        (101, r"at most batch_size=1$"),
        (100, r"give more data$"),
        (1, r"give more data$"),
    ],
)
def test_stream_too_short_says_what_would_fit(size, says):
    with pytest.raises(TooShortError, match=says):
        TokenStream(np.arange(size))
    TokenStream(np.arange(6464))


def test_the_sizes_that_are_offered_do_fit():
    TokenStream(np.arange(6463), batch_size=63)
    TokenStream(np.arange(6463), seq_len=99)
    TokenStream(np.arange(128), seq_len=1)
    TokenStream(np.arange(101), batch_size=1)


def test_stream_describes_itself():
    data = TokenStream(np.arange(1003), batch_size=10, seq_len=30, characters_per_token=2.5)
    facts = data.describe()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["tokens"] == 1003
    assert facts["batches"] == len(data) == 3
    assert facts["targets"] == 900
    assert facts["left_out"] == 1003 - 91 * 10
    assert facts["characters_per_token"] == 2.5
    assert facts["sha256"] == TokenStream(np.arange(1003, dtype=np.uint16), 10, 30).describe()["sha256"]
    assert facts["sha256"] != TokenStream(np.arange(1, 1004), 10, 30).describe()["sha256"]
    assert data.carries_state


# --- Batches


def test_batches_are_time_major_copies_of_every_sequence_once():
    inputs, targets = sequences()
    data = Batches(inputs, targets, batch_size=4, seed=3)
    assert not data.carries_state
    assert len(data) == 3
    seen = []
    for x, y in data:
        assert x.shape == (5, len(y), 3)
        assert x.dtype == np.float32
        assert x.flags.c_contiguous
        assert not np.shares_memory(x, inputs)
        np.testing.assert_array_equal(x.swapaxes(0, 1), inputs[y])
        x[:] = -1  # the caller's own
        seen.append(len(y))
    assert seen == [4, 4, 3]
    np.testing.assert_array_equal(inputs, sequences()[0])


def test_batches_keep_the_order_without_shuffle():
    inputs, targets = sequences()
    for epoch in (0, 1):
        order = np.concatenate([y for _, y in Batches(inputs, targets, 4, shuffle=False).batches(epoch)])
        np.testing.assert_array_equal(order, targets)


def order_of(seed, epoch, start=0, n=40):
    data = Batches(np.zeros((n, 1, 1)), np.arange(n), batch_size=4, seed=seed)
    return np.concatenate([y for _, y in data.batches(epoch, start)]).tolist()


def test_shuffle_depends_on_seed_and_epoch_alone():
    assert order_of(1, 0) == order_of(1, 0)
    assert sorted(order_of(1, 0)) == list(range(40))
    different = [order_of(seed, epoch) for seed in (0, 1, 2**64 - 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in different}) == 6
    assert order_of(None, 1) == order_of(0, 1)


def test_shuffle_is_the_same_for_all_time():
    """Defined by Philox's counter, so a run can be resumed with another release of numpy."""
    assert order_of(7, 2, n=10) == [6, 7, 8, 4, 0, 1, 5, 3, 9, 2]


def test_batches_resume_in_the_middle():
    whole = order_of(5, 2)
    for start in range(11):
        data = Batches(np.zeros((40, 1, 1)), np.arange(40), batch_size=4, seed=5)
        rest = [y for _, y in data.batches(2, start)]
        assert [int(i) for y in rest for i in y] == whole[4 * start :]


def test_batches_with_lengths_and_wide_targets_stay_together():
    inputs, _ = sequences()
    targets = inputs[:, -1, :1].astype(np.float64)
    lengths = np.arange(11, dtype=np.uint8) % 6
    for x, y, valid in Batches(inputs, targets, 4, lengths=lengths, seed=1):
        rows = (x[0, :, 0] / 15).astype(int)
        np.testing.assert_array_equal(y, targets[rows])
        np.testing.assert_array_equal(valid, lengths[rows])
        assert valid.dtype == np.int64


def test_batches_take_strided_inputs_and_lists():
    inputs, targets = sequences()
    strided = np.repeat(inputs, 2, axis=1)[:, ::2]
    (x, y), *_ = Batches(strided, targets.tolist(), 11, shuffle=False)
    np.testing.assert_array_equal(x.swapaxes(0, 1), inputs)
    np.testing.assert_array_equal(y, targets)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"inputs": np.zeros((11, 5))}, ValueError, r"\[N, T, I\] without a zero, got \[11, 5\]"),
        ({"inputs": np.zeros((0, 5, 3)), "targets": []}, ValueError, "without a zero"),
        ({"inputs": np.zeros((11, 0, 3))}, ValueError, "without a zero"),
        ({"inputs": np.zeros((11, 5, 3), complex)}, TypeError, "inputs: expected numbers"),
        ({"inputs": np.zeros((11, 5, 3), object)}, TypeError, "inputs: expected numbers"),
        ({"targets": np.zeros(10)}, ValueError, r"each of the 11 sequences of inputs, got shape \[10\]"),
        ({"targets": 3.0}, ValueError, r"got shape \[\]"),
        ({"targets": np.full(11, np.inf)}, ValueError, r"targets: expected finite numbers, got inf at \[0\]"),
        ({"lengths": np.zeros(11)}, TypeError, "lengths: expected integers"),
        ({"lengths": np.zeros(10, int)}, ValueError, r"shape \[10\]"),
        ({"lengths": np.arange(11)}, ValueError, r"expected 0 \.\.\. 5, got 0 \.\.\. 10"),
        ({"lengths": np.full(11, -1)}, ValueError, "got -1"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"seed": -1}, ValueError, "seed"),
        ({"seed": 2**64}, ValueError, "seed"),
        ({"seed": 0.5}, TypeError, "seed"),
    ],
)
def test_batches_refuse(change, error, says):
    inputs, targets = sequences()
    with pytest.raises(error, match=says):
        Batches(**{"inputs": inputs, "targets": targets, **change})


def test_batches_name_the_place_of_a_nan():
    inputs, targets = sequences()
    inputs[4, 2, 1] = np.nan
    with pytest.raises(ValueError, match=r"got nan at \[4, 2, 1\]"):
        Batches(inputs, targets)


def test_batches_refuse_an_epoch_or_start_outside():
    data = Batches(*sequences(), batch_size=4)
    for epoch, start in ((-1, 0), (2**64, 0), (0, 4), (0, -1)):
        with pytest.raises(ValueError, match=r"epoch|start"):
            data.batches(epoch, start)


def test_batches_describe_themselves():
    inputs, targets = sequences()
    facts = Batches(inputs, targets, 4, lengths=np.ones(11, int), seed=9).describe()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["inputs"] == [11, 5, 3]
    assert (facts["batches"], facts["seed"], facts["lengths"]) == (3, 9, True)
    assert facts["sha256"] != Batches(inputs, targets, 4, seed=9).describe()["sha256"]
