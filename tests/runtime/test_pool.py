"""Which buffers a pool keeps: those of a whole loop that is differentiated at its end, and of shapes that come again."""

import numpy as np
import pytest

import fastlstm
from fastlstm.stack.stack import Pool, Spaces

STEPS = 20


@pytest.fixture
def made(monkeypatch):
    """Every `Spaces` that is made from here on."""
    made, plain = [], Spaces.__init__

    def init(self, *arguments):
        made.append(self)
        plain(self, *arguments)

    monkeypatch.setattr(Spaces, "__init__", init)
    return made


def train(cell, steps):
    x, passes = np.ones((2, 3), np.float32), []
    for _ in range(steps):
        h, backprop = cell.forward_train(x)
        passes.append(backprop)
    for backprop in reversed(passes):
        backprop(np.ones_like(h))


def test_a_loop_of_many_steps_is_recorded_once(made):
    cell = fastlstm.GRUCell(3, 5, seed=0)
    train(cell, STEPS)
    assert len(made) == STEPS
    train(cell, STEPS)
    assert len(made) == STEPS


def test_inference_beside_such_a_loop_forgets_nothing(made, monkeypatch):
    monkeypatch.setattr(Pool, "ROOM", 0)
    cell, x = fastlstm.GRUCell(3, 5, seed=0), np.ones((2, 3), np.float32)
    for _ in range(2):
        cell(x)
        train(cell, STEPS)
    before = len(made)
    for _ in range(3):
        cell(x)
        train(cell, STEPS)
    assert len(made) == before


def test_shapes_that_come_again_are_kept_while_there_is_room(made, monkeypatch):
    layer = fastlstm.GRU(3, 5, seed=0)

    def call(shapes):
        for steps in shapes:
            layer(np.ones((steps, 2, 3), np.float32))

    call(range(1, 31))
    call(range(1, 31))
    assert len(made) == 30
    monkeypatch.setattr(Pool, "ROOM", 0)
    call([31])
    assert len(layer._pool.free) == Pool.KEPT + 1
    assert [spaces.of[0][0].arrays["h"].shape[0] - 1 for _, spaces in layer._pool.free] == [*range(23, 32)]  # used last
    call(range(23, 32))
    assert len(made) == 31
    call([1])
    assert len(made) == 32
