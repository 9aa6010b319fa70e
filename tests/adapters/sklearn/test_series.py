"""Under the series estimators: panels and fillings, windows and their units, losses, the network with an output each step."""

import numpy as np
import pytest

pytest.importorskip("sklearn")

from fastlstm.adapters.sklearn.network import Pinball, StepNetwork, learn, optimizer_of, squared_error
from fastlstm.adapters.sklearn.panel import Moments, covariate_array, filled, is_panel, panel_of_series, panel_of_table
from fastlstm.adapters.sklearn.windows import Frame, Windows

NAN = np.nan


# Panels


def test_ends_of_rows_are_padding_and_ends_of_arrays_are_missing_values():
    table = panel_of_table(np.array([[1.0, NAN, 3.0, NAN, NAN], [NAN, 2.0, 3.0, 4.0, 5.0]]))
    assert (table.starts.tolist(), table.ends.tolist(), table.variables, table.flat) == ([0, 1], [3, 5], 1, True)
    series = panel_of_series([np.array([1.0, NAN, 3.0, NAN, NAN]), np.array([2.0, 3.0])])
    assert (series.starts.tolist(), series.ends.tolist(), series.longest) == ([0, 0], [5, 2], 5)


def test_what_is_a_panel():
    one = np.ones(3)
    ragged = np.empty(2, object)
    ragged[:] = [one, np.ones(2)]
    series = [[one, one], (one, np.ones((3, 2))), np.ones((2, 3, 1)), [[1, 2], [3]], [[[1], [2]], [[3], [4]]], ragged]
    assert [is_panel(X) for X in series] == [True] * 6
    tables = [[[1, 2], [3, 4]], np.ones((2, 3)), [1.0, 2.0], list(np.ones(3)), []]
    assert [is_panel(X) for X in tables] == [False] * 5


def test_gaps_are_filled_from_a_season_before_or_from_the_last_value():
    values, gaps = filled(panel_of_table(np.array([[NAN, 1.0, 2.0, NAN, NAN, NAN, 7.0]])), season=2)
    np.testing.assert_array_equal(values[0, :, 0], [NAN, 1, 2, 1, 2, 1, 7])
    np.testing.assert_array_equal(gaps[0, :, 0], [1, 0, 0, 1, 2, 3, 0])
    values, _ = filled(panel_of_table(np.array([[3.0, NAN, NAN, 4.0]])), season=3)
    np.testing.assert_array_equal(values[0, :, 0], [3, 3, 3, 4])


def test_moments_leave_out_what_is_missing():
    moments = Moments.of(np.array([[[1.0, 5.0], [3.0, 5.0]], [[NAN, 5.0], [5.0, NAN]]]))
    np.testing.assert_allclose(moments.center, [3, 5])
    np.testing.assert_allclose(moments.scale, [np.std([1, 3, 5]), 1])


def test_covariates_are_checked():
    found = covariate_array("covariates", [np.ones((4, 2)), np.zeros((3, 2))], [3, 2], None)
    assert found.shape == (2, 3, 2)
    np.testing.assert_array_equal(np.isnan(found[..., 0]), [[False] * 3, [False, False, True]])
    assert covariate_array("covariates", np.ones((2, 5)), [3, 5], None).shape == (2, 5, 1)
    with pytest.raises(ValueError, match="covariates has 2 series; expected 3"):
        covariate_array("covariates", np.ones((2, 5)), [3, 3, 3], None)
    with pytest.raises(ValueError, match=r"covariates\[1\] has shape \[5, 1\]; expected at least 6 steps"):
        covariate_array("covariates", np.ones((2, 5)), [3, 6], None)
    with pytest.raises(ValueError, match=r"covariates\[0\] has shape \[5, 1\]; expected at least 3 steps .* of 2"):
        covariate_array("covariates", np.ones((2, 5)), [3, 3], 2)
    with pytest.raises(ValueError, match=r"covariates\[0\] contains NaN"):
        covariate_array("covariates", np.full((1, 5), NAN), [3], None)


# Windows


def windows_of(table, season=1, covariates=None):
    panel = panel_of_table(np.asarray(table, float))
    return Windows(panel, np.zeros((len(panel), 1, 0)) if covariates is None else covariates, season)


def test_a_window_ends_in_the_seasonal_naive_forecast():
    windows = windows_of([[1, 2, 3, 4, 5, 6, 7, 8]], season=3, covariates=np.arange(20.0).reshape(1, 10, 2))
    cut = windows.cut(np.array([0]), np.array([6]), window=4, horizon=4)
    np.testing.assert_array_equal(cut.values[0, :, 0], [3, 4, 5, 6, 4, 5, 6, 4])
    np.testing.assert_array_equal(cut.gaps[0, :, 0], [0, 0, 0, 0, 1, 2, 3, 4])
    np.testing.assert_array_equal(cut.covariates[0, :, 0], [4, 6, 8, 10, 12, 14, 16, 18])
    np.testing.assert_array_equal(cut.at[:, 0], [4, 5, 6, 7])
    np.testing.assert_array_equal(cut.naive[0, :, 0], [4, 5, 6, 4])


def test_a_short_history_is_read_from_its_beginning_and_repeats_its_last_value():
    windows = windows_of([[NAN, NAN, 3, 4, NAN, NAN]], season=3)
    cut = windows.cut(np.array([0]), np.array([4]), window=5, horizon=2)
    assert cut.read.tolist() == [2]
    np.testing.assert_array_equal(cut.values[0, :4, 0], [3, 4, 4, 4])
    np.testing.assert_array_equal(cut.at[:, 0], [2, 3])


def test_origins():
    windows = windows_of([[0.0] * 10, [NAN] * 4 + [1.0] * 6, [1.0, 2.0] + [NAN] * 8, [0.0] * 4 + [NAN] * 3 + [1.0] * 3])
    series, origins = windows.origins(window=6, horizon=3, stride=2)
    assert origins[series == 0].tolist() == [7, 5, 3]  # at least half a window before, a horizon after
    assert origins[series == 1].tolist() == [7]
    assert origins[series == 2].tolist() == []  # too short
    assert origins[series == 3].tolist() == [7, 5, 3]
    _, dense = windows_of([[0.0] * 4 + [NAN] * 3 + [1.0] * 3]).origins(window=6, horizon=3, stride=1)
    assert dense.tolist() == [7, 6, 5, 3]  # nothing is known of the three steps from 4 on
    with pytest.raises(ValueError, match="X has no series longer than 10 steps; expected more than the horizon"):
        windows.origins(window=6, horizon=10, stride=1)


def frame_of(windows, anchor="auto", horizon=2, window=6):
    series, origins = windows.origins(window, horizon, 1)
    return Frame.of(windows, series, origins, None, window, horizon, anchor)


def test_the_anchor_suits_the_series():
    rng = np.random.default_rng(0)
    wander = np.cumsum(rng.normal(0, 1, (3, 60)), axis=1)
    levels = rng.normal(0, 1, (3, 60)) * 0.1 + np.cumsum(rng.normal(0, 0.1, (3, 60)), axis=1) + np.array([[0], [50], [100]])
    noise = rng.normal(0, 1, (3, 60))
    assert frame_of(windows_of(wander)).naive
    assert frame_of(windows_of(levels)).naive
    assert not frame_of(windows_of(noise)).naive
    assert frame_of(windows_of(noise), "naive").naive
    assert not frame_of(windows_of(wander), "mean").naive


@pytest.mark.parametrize("anchor", ["naive", "mean"])
def test_units_of_inputs_and_outputs(anchor):
    rng = np.random.default_rng(1)
    windows = windows_of(rng.normal(0, 1, (4, 50)) * 3 + np.array([[0], [10], [20], [30]]))
    frame = frame_of(windows, anchor)
    series, origins = windows.origins(6, 2, 1)
    cut = windows.cut(series, origins, 6, 2)
    inputs, lengths, outputs = frame.scaled(cut)
    assert inputs.shape == (8, len(series), 2)
    full = lengths == 8
    history = inputs[:6, full, 0]
    corrections = (windows.targets(series, origins, 2).swapaxes(0, 1) - outputs.center) / outputs.scale
    if anchor == "naive":
        np.testing.assert_allclose(history.mean(axis=0), 0, atol=1e-12)
        np.testing.assert_allclose(history.std(axis=0), 1)
        np.testing.assert_array_equal(outputs.center, cut.naive.swapaxes(0, 1))
    else:
        values = windows.panel.values.ravel()
        np.testing.assert_allclose(history[:, 0], (cut.values[full][0, :6, 0] - values.mean()) / values.std())
        np.testing.assert_allclose(corrections.mean(), 0, atol=1e-9)
    np.testing.assert_allclose(corrections.std(), 1, rtol=1e-6)
    np.testing.assert_allclose(inputs[6:, full, 1], np.log1p([[1], [2]]) * np.ones(full.sum()))


def test_flat_windows_have_the_units_of_the_panel():
    windows = windows_of([[5.0] * 20, [1.0, 2.0, 1.0, 3.0] * 5])
    cut = windows.cut(np.array([0]), np.array([18]), 6, 2)
    inputs, _, outputs = frame_of(windows, "naive").scaled(cut)
    assert np.isfinite(inputs).all()
    np.testing.assert_array_equal(inputs[:, 0, 0], 0)
    assert (outputs.scale > 0).all()


# Losses


def gradient_of(loss, prediction, *rest, step=1e-6):
    """By central differences."""
    found = np.zeros_like(prediction)
    for place in np.ndindex(prediction.shape):
        up, down = prediction.copy(), prediction.copy()
        up[place] += step
        down[place] -= step
        found[place] = (loss(up, *rest)[0] - loss(down, *rest)[0]) / (2 * step)
    return found


@pytest.mark.parametrize("levels", [None, [0.1, 0.5, 0.9], [0.25]])
def test_gradients_of_losses(levels):
    rng = np.random.default_rng(0)
    loss = squared_error if levels is None else Pinball(np.array(levels))
    target = rng.normal(0, 1, (3, 4, 2))
    weight = (rng.random(target.shape) > 0.3).astype(float)
    prediction = rng.normal(0, 1, (3, 4, 2 * len(levels or [0])))
    value, gradient = loss(prediction, target, weight)
    np.testing.assert_allclose(gradient, gradient_of(loss, prediction, target, weight), atol=1e-8)
    assert value > 0
    hidden = np.where(weight > 0, target, 1e9)  # what does not count may be anything
    assert loss(prediction, hidden, weight)[0] == value


def test_the_pinball_loss_is_that_of_scikit_learn():
    from sklearn.metrics import mean_pinball_loss

    rng = np.random.default_rng(2)
    target, prediction = rng.normal(0, 1, (50, 1)), rng.normal(0, 1, (50, 2))
    expected = [mean_pinball_loss(target[:, 0], prediction[:, k], alpha=level) for k, level in enumerate((0.2, 0.7))]
    found, _ = Pinball(np.array([0.2, 0.7]))(prediction, target, np.ones_like(target))
    np.testing.assert_allclose(found, np.mean(expected))


# The network


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("some", [False, True])
def test_gradients_of_the_network(cell, some):
    rng = np.random.default_rng(3)
    network = StepNetwork(cell, 3, 4, 5, 2, dropout=0.0, dtype="float64", seed=0, silent=(2, 3), levels=[0.3, 0.8])
    with network.edit() as params:
        for array in params.values():
            array[...] = rng.normal(0, 0.4, array.shape)
    x, lengths = rng.normal(0, 1, (6, 3, 3)), np.array([6, 4, 5])
    at = np.array([[4, 2, 3], [5, 3, 4]]) if some else None
    shape = (2 if some else 6, 3, 2)
    weight = np.ones(shape) if some else (np.arange(6)[:, None] < lengths)[..., None] * np.ones(2)
    targets = at, rng.normal(0, 1, shape), weight

    network.train_batch(x, targets, lengths=lengths)
    grads = {name: grad.copy() for name, grad in network.grads.items()}
    for name, grad in grads.items():

        def loss(values, *_, name=name):
            with network.edit() as params:
                before = params[name].copy()
                params[name][...] = values
            found = network.train_batch(x, targets, lengths=lengths)[0]
            with network.edit() as params:
                params[name][...] = before
            return found, None

        np.testing.assert_allclose(grad, gradient_of(loss, network.params[name].copy()), atol=2e-7, err_msg=name)


def test_a_new_network_corrects_nothing_and_does_not_see_silent_inputs():
    rng = np.random.default_rng(4)
    network = StepNetwork("gru", 3, 2, 4, 1, dropout=0.0, dtype="float32", seed=0, silent=(1, 3))
    x, lengths = rng.normal(0, 1, (5, 2, 3)), np.array([5, 5])
    np.testing.assert_array_equal(network(x, lengths), 0)
    with network.edit() as params:
        params["head.weight"][...] = 1
    changed = x + [0, 1, 2]
    assert np.abs(network(x, lengths)).max() > 0
    np.testing.assert_array_equal(network(changed, lengths), network(x, lengths))


def test_silent_inputs_stay_silent_until_they_speak():
    rng = np.random.default_rng(5)
    network = StepNetwork("lstm", 2, 1, 4, 1, dropout=0.0, dtype="float32", seed=0, silent=(1, 2))
    optimizer = optimizer_of(0.01, 0.1)

    def make_of(x):
        target = x[..., :1] * 0.5
        return lambda rows: (x[:, rows], (None, target[:, rows], np.ones_like(target[:, rows])), np.full(len(rows), len(x)))

    x = rng.normal(0, 1, (6, 10, 2))
    x[..., 1] = 0
    list(learn(network, optimizer, 10, make_of(x), epochs=3, batch_size=4, seed=0))
    np.testing.assert_array_equal(network.params["rnn.weight_ih_l0"][:, 1], 0)
    x[..., 1] = 1
    list(learn(network, optimizer, 10, make_of(x), epochs=1, batch_size=4, seed=0, done=3))
    assert np.abs(network.params["rnn.weight_ih_l0"][:, 1]).max() > 0
