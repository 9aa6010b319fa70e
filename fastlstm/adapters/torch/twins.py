"""Which class serves a layer in the place of its own: the drop-in for torch.nn's, and for classes derived from that one more.

That one is derived from both, so that the layer keeps its class's methods, and `isinstance` what it says.
"""

from __future__ import annotations

import copyreg
import types
from collections.abc import Callable
from typing import Any

from torch import nn

from .serve import OF_CELLS, say

Kind = type[nn.Module]

# What torch.nn's forward pass is made of, which that of the drop-ins does not ask for.
OF_A_CALL = (
    "forward",
    "__call__",
    "_call_impl",
    "__getattr__",
    "__getattribute__",
    "check_input",
    "check_hidden_size",
    "check_forward_args",
    "get_expected_hidden_size",
    "get_expected_cell_size",
    "permute_hidden",
)

TWINS: dict[Kind, Kind] = {}
"""By torch.nn's class; the drop-ins are entered where they are defined."""

_derived: dict[Kind, Kind] = {}


def telling(base: Kind) -> Any:
    """`__setattr__` of a drop-in for torch's class `base`."""

    def setter(self: Any, name: str, value: Any) -> None:
        if name == "qconfig":
            say(
                f"{type(self).__name__} is passed over by torch's quantization, which looks for torch.nn's own classes: "
                "call fastlstm.adapters.torch.restore before it"
            )
        base.__setattr__(self, name, value)

    return setter


def reason_against(layer: nn.Module) -> str | None:
    """Why a recurrent layer cannot be served by another class; None where it can."""
    kind = type(layer)
    if kind in originals():
        return "is one of fastlstm's already"
    if kind in TWINS:
        return None
    base = _base(kind)
    if base is None:
        return f"{kind.__name__} is a class derived from none of {', '.join(each.__name__ for each in TWINS)}"
    names = (*OF_A_CALL, *getattr(layer, "_flat_weights_names", OF_CELLS))
    own = next((name for name in names if getattr(kind, name, None) is not getattr(base, name, None)), None)
    if own is not None:
        return f"{kind.__name__} is a class derived from torch.nn's with a {own} of its own"
    try:
        twin(kind)
    except TypeError as error:
        return f"{kind.__name__} is a class that none can be derived from: {error}"
    return None


def _base(kind: Kind) -> Kind | None:
    return next((each for each in kind.__mro__ if each in TWINS), None)


def twin(kind: Kind) -> Kind:
    """The class that serves layers of a class, torch.nn's or derived from it."""
    if kind in TWINS:
        return TWINS[kind]
    if kind not in _derived:
        base = _base(kind)
        assert base is not None
        members = {
            "__slots__": (),
            "__reduce_ex__": _reducer(kind),
            "__module__": kind.__module__,
            "__qualname__": kind.__qualname__,
            "__doc__": kind.__doc__,
        }
        made = types.new_class(kind.__name__, (kind, TWINS[base]), exec_body=lambda space: space.update(members))
        _derived.setdefault(kind, made)  # another thread may have been faster
    return _derived[kind]


def originals() -> dict[Kind, Kind]:
    """The class whose layers each twin serves."""
    return {made: kind for kind, made in (TWINS | _derived).items()}


def _reducer(kind: Kind) -> Callable[[Any, Any], Any]:
    """For pickles and copies: no module holds a class that is made as the program runs."""

    def reduce(self: Any, protocol: Any) -> Any:
        function, arguments, *rest = super(twin(kind), self).__reduce_ex__(max(protocol, 2))
        if function is copyreg.__newobj__:  # type: ignore[attr-defined]
            function, arguments = _anew, (kind, *arguments[1:])
        return function, arguments, *rest

    return reduce


def _anew(kind: Kind, *arguments: Any) -> Any:
    made: Any = twin(kind)
    return made.__new__(made, *arguments)
