"""A case with all that a layer can be given, and its forward pass waiting for gradients."""

import pytest

from tests.support import cases

every_kind = pytest.mark.parametrize("kind", cases.KINDS)


def small(kind, **changes):
    """A case with two layers, both directions, lengths, resets and states."""
    settings = {
        "steps": 6,
        "batch": 4,
        "inputs": 5,
        "hidden": 9,
        "layers": 2,
        "bidirectional": True,
        "lengths": True,
        "resets": True,
        "state": "both",
        "dstate": "both",
    }
    return cases.Case(kind, 77, **(settings | {"proj": 3 * (kind == "lstm-projected")} | changes))


def flat(*values):
    """All arrays in nested tuples, in order."""
    return [leaf for v in values for leaf in (flat(*v) if isinstance(v, tuple) else [v])]


def opened(case, layer):
    """A forward_train of the case: its results, its backprop and the arguments of that."""
    given = case.data(cases.storage(layer)).given
    out, state, backprop = layer.forward_train(given.x, case.pair(given), lengths=given.lengths, resets=given.resets)
    return flat(out, state), backprop, (given.dout, case.pair(given, "d"))


def different(case, seed):
    return cases.Case(**{**vars(case), "seed": seed})
