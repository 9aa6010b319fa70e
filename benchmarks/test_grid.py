"""Times layers of many sizes against PyTorch and ONNX Runtime: a few shapes of `benchmarks.speed.grid`, or with --full all."""

from __future__ import annotations

from functools import partial

from benchmarks.measure.contest import OURS, hold
from benchmarks.peers import layers
from benchmarks.peers.layers import CELLS, Shape
from benchmarks.speed import grid

CORNERS = [(64, 1), (256, 32)]  # H, B
WAYS = {"forward+backward": (layers.training, (OURS, "torch")), "inference": (layers.inference, (OURS, "torch", "onnxruntime"))}


def pytest_generate_tests(metafunc):
    if metafunc.config.getoption("smoke"):
        shapes = [Shape("lstm", 16, 2, 4)]
    else:
        full = [(hidden, batch) for hidden in grid.HIDDENS for batch in grid.BATCHES]
        sizes = full if metafunc.config.getoption("full") else CORNERS
        shapes = [Shape(cell, hidden, batch) for cell in CELLS for hidden, batch in sizes]
    found = [(shape, way, who) for shape in shapes for way, (_, whos) in WAYS.items() for who in whos]
    metafunc.parametrize(("shape", "way", "who"), found, ids=[f"{shape} {way}-{who}" for shape, way, who in found])


def briefly(makers, *, blocks, seconds):
    """Hold a small contest: there are many, so each gets a third of the time."""
    return hold(makers, blocks=blocks, seconds=seconds / 3)


def test_layer(shape, way, who, contest):
    make, whos = WAYS[way]
    makers = {("", one): partial(layers.alone, make, shape, one) for one in whos}
    contest(f"{way} {shape}", "", who, makers, section="grid", hold=briefly)
