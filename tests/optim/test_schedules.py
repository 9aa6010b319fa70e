"""Schedules of the learning rate, against their formulas and PyTorch's."""

import math

import numpy as np
import pytest

from fastlstm import optim
from fastlstm.optim import schedules


def test_cosine_with_warmup():
    schedule = schedules.CosineWarmup(4, 24, floor=0.2)
    assert [schedule(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    for step in range(4, 24):
        assert schedule(step) == pytest.approx(0.2 + 0.4 * (1 + math.cos(math.pi * (step - 4) / 20)))
    assert schedule(24) == schedule(1000) == pytest.approx(0.2)
    assert schedules.CosineWarmup(0, 10)(0) == 1
    assert schedules.CosineWarmup(3, 3)(3) in (0.0, 1.0)


def test_step_decay_against_torch():
    torch = pytest.importorskip("torch", reason="needs PyTorch, which is what it compares with")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs, ours = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.3), schedules.StepDecay(3, 0.3)
    for step in range(10):
        assert ours(step) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("patience", [0, 1, 3])
def test_plateau_against_torch(patience):
    torch = pytest.importorskip("torch", reason="needs PyTorch, which is what it compares with")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=patience, min_lr=0.1, eps=0)
    ours = schedules.Plateau(factor=0.5, patience=patience, floor=0.1)
    for step, metric in enumerate(np.random.default_rng(patience).uniform(1, 3, 40)):
        theirs.step(metric)
        ours.update(metric)
        if step == 20:
            state, ours = ours.state, schedules.from_config(ours.config)
            ours.state = state
        assert ours(step) == optimizer.param_groups[0]["lr"]
    assert ours(40) == 0.1


def test_plateau_of_what_is_no_number():
    schedule = schedules.Plateau(factor=0.5, patience=0)
    for metric in (math.nan, math.nan, -1.0, -1.0):
        schedule.update(metric)
    assert schedule.state == {"best": -1.0, "stale": 0, "scale": 0.125}


@pytest.mark.parametrize(
    "schedule",
    [schedules.Constant(), schedules.CosineWarmup(1, 5), schedules.StepDecay(2), schedules.Plateau(0.1, 0, 0.01, 0.05)],
)
def test_a_schedule_from_its_config(schedule):
    again = optim.schedule_from_config(schedule.config)
    assert again.config == schedule.config
    assert repr(again) == repr(schedule)
    again.state = schedule.state
    assert again.state == schedule.state
    schedule.update(1.0)
    assert schedule(0) == again(0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.CosineWarmup(5, 4), r"warmup_steps is 5; expected 0 to total_steps \(4\)"),
        (lambda: schedules.CosineWarmup(0, 0), "total_steps is 0"),
        (lambda: schedules.CosineWarmup(0, 1, floor=2), "floor is 2; expected a number >= 0 and <= 1"),
        (lambda: schedules.StepDecay(0), "step_size is 0"),
        (lambda: schedules.StepDecay(1, 0), "gamma is 0"),
        (lambda: schedules.Plateau(factor=1), "factor is 1; expected a number > 0 and < 1"),
        (lambda: schedules.Plateau(patience=-1), "patience is -1"),
        (lambda: schedules.from_config({"type": "Linear"}), "type is 'Linear'; expected one of Constant"),
        (lambda: setattr(schedules.Constant(), "state", {"a": 1}), "Constant has none"),
        (lambda: setattr(schedules.Plateau(), "state", {"a": 1}), "expected"),
    ],
)
def test_schedules_that_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
    with pytest.raises(NotImplementedError):
        schedules.Schedule()(0)
