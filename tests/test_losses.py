"""The losses for use by hand, against the float64 reference and PyTorch, and what they refuse."""

import numpy as np
import pytest

from fastlstm import losses
from fastlstm.kernels import reference
from fastlstm.kernels.native import jit, team

DTYPES = pytest.mark.parametrize("dtype", ["float64", "float32"])
TOLERANCE = {"float64": 1e-13, "float32": 1e-6}
REGRESSIONS = ["mean_squared_error", "mean_absolute_error"]


def same(got, wanted, dtype):
    (loss, gradient), (loss_wanted, gradient_wanted) = got, wanted
    assert isinstance(loss, float)
    assert gradient.dtype == dtype
    assert gradient.shape == gradient_wanted.shape
    assert abs(loss - loss_wanted) <= TOLERANCE[dtype] * abs(loss_wanted)
    assert np.linalg.norm(gradient - gradient_wanted) <= TOLERANCE[dtype] * np.linalg.norm(gradient_wanted)


@DTYPES
@pytest.mark.parametrize(("shape", "classes"), [((1,), 2), ((5,), 65), ((3, 4), 17), ((2, 3, 2), 130), ((), 9)])
def test_cross_entropy(shape, classes, dtype):
    rng = np.random.default_rng(classes)
    logits, targets = rng.standard_normal((*shape, classes)).astype(dtype), rng.integers(0, classes, shape)
    wanted, dwanted = reference.softmax_cross_entropy(logits.reshape(-1, classes), targets.ravel())
    before = logits.copy()
    same(losses.softmax_cross_entropy(logits, targets), (wanted, dwanted.reshape(logits.shape)), dtype)
    assert np.array_equal(logits, before)
    # Strided logits, targets of another type, and the gradient in place of the logits.
    wide = np.repeat(logits, 2, axis=-1)[..., ::2]
    out = np.full(logits.shape, 7, dtype)
    loss, gradient = losses.softmax_cross_entropy(wide, targets.astype(np.uint16), out=out)
    assert gradient is out
    again, inside = losses.softmax_cross_entropy(logits, targets, out=logits)
    assert inside is logits
    assert loss == again
    assert np.array_equal(out, inside)


@DTYPES
def test_cross_entropy_against_torch(dtype):
    torch = pytest.importorskip("torch", reason="needs PyTorch, which is what it compares with")
    rng = np.random.default_rng(0)
    values, targets = 3 * rng.standard_normal((50, 33)).astype(dtype), rng.integers(-1, 33, 50)
    assert (targets < 0).any()
    logits = torch.tensor(values, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(targets), ignore_index=-1)
    loss.backward()
    same(losses.softmax_cross_entropy(values, targets), (loss.item(), logits.grad.numpy()), dtype)
    same(losses.softmax_cross_entropy(logits, torch.tensor(targets)), (loss.item(), logits.grad.numpy()), dtype)


def test_cross_entropy_where_no_row_counts():
    loss, gradient = losses.softmax_cross_entropy(np.ones((3, 4)), np.full(3, -1))
    assert loss == 0
    assert not gradient.any()


@DTYPES
@pytest.mark.parametrize("shape", [(1,), (3, 5), (4, 33, 41), ()])
@pytest.mark.parametrize("name", REGRESSIONS)
def test_regressions(name, shape, dtype):
    rng = np.random.default_rng(3)
    prediction, target = rng.standard_normal((2, *shape)).astype(dtype)
    if prediction.size > 1:
        target.flat[0] = prediction.flat[0]
    compute = getattr(losses, name)
    wanted = getattr(reference, name)(prediction, target)
    same(compute(prediction, target), wanted, dtype)
    same(compute(prediction, target.astype(np.float64)), wanted, dtype)
    loss, gradient = compute(prediction, target)
    assert compute(np.repeat(prediction[..., None], 2, axis=-1)[..., 0], target)[0] == loss
    out = np.array(prediction)
    again, inside = compute(out, target, out=out)
    assert inside is out
    assert again == loss
    assert np.array_equal(inside, gradient)


@pytest.mark.parametrize("name", REGRESSIONS)
def test_regressions_against_torch(name):
    torch = pytest.importorskip("torch", reason="needs PyTorch, which is what it compares with")
    values, target = np.random.default_rng(4).standard_normal((2, 9, 7))
    prediction = torch.tensor(values, requires_grad=True)
    judge = {"mean_squared_error": torch.nn.functional.mse_loss, "mean_absolute_error": torch.nn.functional.l1_loss}[name]
    loss = judge(prediction, torch.tensor(target))
    loss.backward()
    same(getattr(losses, name)(values, target), (loss.item(), prediction.grad.numpy()), "float64")


@DTYPES
def test_same_bits_everywhere(dtype):
    rng = np.random.default_rng(6)
    logits, targets = rng.standard_normal((700, 65)).astype(dtype), rng.integers(0, 65, 700)
    numbers, wanted = rng.standard_normal((2, 350_001)).astype(dtype)
    before, results = team.num_threads(), set()
    for count in (1, 2):
        team.set_num_threads(count)
        for isa in jit.supported():
            with jit.use_isa(isa):
                loss, gradient = losses.softmax_cross_entropy(logits, targets)
                results.add((loss, gradient.tobytes(), *(getattr(losses, name)(numbers, wanted)[0] for name in REGRESSIONS)))
    team.set_num_threads(before)
    assert len(results) == 1


@pytest.mark.parametrize("name", REGRESSIONS)
def test_what_is_not_finite_shows(name):
    for bad in (np.nan, np.inf):
        values = np.ones(100, np.float32)
        values[77] = bad
        assert not np.isfinite(getattr(losses, name)(values, np.zeros(100, np.float32))[0])


ONES = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: losses.softmax_cross_entropy(ONES, [0.0, 1.0]), TypeError, "targets has dtype float64; expected integers"),
        (lambda: losses.softmax_cross_entropy(ONES, np.array([True, False])), TypeError, "targets has dtype bool"),
        (
            lambda: losses.softmax_cross_entropy(ONES.astype(int), [0, 1]),
            TypeError,
            "logits has dtype int64; expected float32 or",
        ),
        (lambda: losses.softmax_cross_entropy(ONES, [0, 1, 2]), ValueError, r"targets has shape \[3\] and logits \[2, 3\]"),
        (lambda: losses.softmax_cross_entropy(ONES[:0], np.zeros(0, int)), ValueError, r"targets has shape \[0\]"),
        (lambda: losses.softmax_cross_entropy(ONES, [0, 3]), ValueError, "targets has values from 0 to 3; expected 0 to 2"),
        (lambda: losses.softmax_cross_entropy(ONES, [-2, 0]), ValueError, "targets has values from -2 to 0"),
        (lambda: losses.softmax_cross_entropy(ONES, [0, 1], out=np.ones((2, 3))), ValueError, r"\[2, 3\] and dtype float64"),
        (lambda: losses.softmax_cross_entropy(ONES, [0, 1], out=[]), TypeError, "out is list"),
        (lambda: losses.mean_squared_error(ONES, ONES[0]), ValueError, r"target has shape \[3\] and prediction \[2, 3\]"),
        (lambda: losses.mean_squared_error(ONES[:0], ONES[:0]), ValueError, "not empty"),
        (lambda: losses.mean_squared_error(ONES, ONES > 0), TypeError, "target has dtype bool; expected real numbers"),
        (lambda: losses.mean_absolute_error(ONES, ONES, out=np.ones((3, 2), "f4").T), ValueError, "out is strided"),
    ],
)
def test_what_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
