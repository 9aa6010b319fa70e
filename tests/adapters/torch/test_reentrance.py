"""A finalizer or a handler of a signal may use the drop-ins, also the one that is in use."""

import gc

import pytest
import torch

from fastlstm.adapters.torch import GRU, LSTM, LSTMCell
from fastlstm.adapters.torch.threads import threads
from fastlstm.kernels.native import team


class Cycle:
    """Calls when the collector finds it."""

    def __init__(self, call):
        self.me, self.call = self, call

    def __del__(self):
        self.call()


@pytest.mark.parametrize("make", [lambda: LSTM(3, 5), lambda: GRU(3, 5, 2, bidirectional=True), lambda: LSTMCell(3, 5)])
def test_finalizers_may_call_modules_of_the_same_shape(make):
    torch.manual_seed(0)
    ours, other, x = make(), make(), torch.randn(4, 2, 3) if not isinstance(make(), LSTMCell) else torch.randn(2, 3)

    def forward(module):
        with torch.no_grad():
            return module(x)[0]

    def gradients():
        ours.zero_grad()
        ours(x)[0].sum().backward()
        return [p.grad.clone() for p in ours.parameters()]

    wanted, known, unlike = forward(ours), gradients(), forward(other)
    before = gc.get_threshold()
    try:
        gc.set_threshold(5, 10**6, 10**6)
        for _ in range(100):
            Cycle(lambda: forward(other))
            torch.testing.assert_close(forward(ours), wanted, rtol=0, atol=0)
            Cycle(lambda: forward(other))
            torch.testing.assert_close(gradients(), known, rtol=0, atol=0)
    finally:
        gc.set_threshold(*before)
        gc.collect()
    torch.testing.assert_close(forward(other), unlike, rtol=0, atol=0)


def test_a_call_in_the_middle_of_another_has_weights_and_buffers_of_its_own(monkeypatch):
    from fastlstm.adapters.torch import core

    torch.manual_seed(0)
    ours, other, x = LSTM(3, 5), LSTM(3, 5), torch.randn(4, 2, 3)
    wanted, unlike, seen = ours(x)[0], other(x)[0], []
    hold = core.Core.hold

    def interrupted(self, weights, known=0):
        version = hold(self, weights, known)
        if not seen:
            seen.append(None)
            seen.append(other(x)[0])
        return version

    monkeypatch.setattr(core.Core, "hold", interrupted)
    torch.testing.assert_close(ours(x)[0], wanted, rtol=0, atol=0)
    torch.testing.assert_close(seen[1], unlike, rtol=0, atol=0)
    monkeypatch.undo()
    other(x)[0].sum().backward()
    known = [p.grad.clone() for p in other.parameters()]
    other.zero_grad()
    out, loss = ours(x)[0], other(x)[0].sum()
    seen.clear()

    def nested(self, weights, known=0):
        version = hold(self, weights, known)
        if not seen:
            seen.append(None)
            loss.backward()
        return version

    monkeypatch.setattr(core.Core, "hold", nested)
    out.sum().backward()
    assert seen
    for found, wanted in zip(other.parameters(), known, strict=True):
        torch.testing.assert_close(found.grad, wanted, rtol=0, atol=0)


def test_threads_are_as_before_after_contexts_within_each_other():
    before = team.lent.job, team.held.count
    with threads:
        inner = team.lent.job, team.held.count
        with threads:
            pass
        assert (team.lent.job, team.held.count) == inner
    assert (team.lent.job, team.held.count) == before
