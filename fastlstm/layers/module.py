"""Parameters and gradients by name: what layers, cells, heads and models have in common."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..runtime.params import Gradients, Parameters, Slots, load_into


class Owner:
    """Base of everything that owns parameters; `slots` says where they lie."""

    slots: Slots
    BUILT: tuple[str, ...] = ()  # attributes that `_build` makes

    def _build(self) -> None:
        """Make what calls need beside parameters and settings: kernels' packed weights and buffers."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in self.BUILT}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._build()

    @property
    def params(self) -> Parameters:
        """Read-only views of the parameters by name."""
        return self.slots.params

    @property
    def grads(self) -> Gradients:
        """Views of the gradients by name; backward passes add to them."""
        return self.slots.grads

    @contextlib.contextmanager
    def edit(self) -> Iterator[dict[str, np.ndarray]]:
        """Writable views of the parameters inside the block; packed copies are renewed after it.

        Calls in other threads read each weight as it was or as it is now.
        """
        with self.params.edit() as views:
            yield views

    def zero_grads(self) -> None:
        """Set all gradients to zero."""
        self.grads.flat.fill(0)

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of the parameters by name."""
        return {name: view.copy() for name, view in self.params.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> None:
        """Copy NumPy, CuPy or torch arrays in; nothing is written if one does not fit.

        Raises
        ------
        KeyError
            With `strict`, for missing or unexpected names.
        TypeError
            For what is no array of real numbers.
        ValueError
            For a wrong shape.
        """
        load_into(self.params, state_dict, strict)


def flatten(*layers: Owner) -> Slots:
    """Join the parameters of several layers into one buffer, so that optimizers and norms run over it once.

    The weights move: do it before anything else uses the layers.

    Returns
    -------
    Slots
        With `params` and `grads` named `0.weight_ih_l0`, `1.weight` and so on; the layers keep their own names.

    Raises
    ------
    ValueError
        For no layers, layers of several dtypes, a layer that comes twice, and one that is part of a joined buffer already:
        moving it into another would leave the first buffer's names on memory that nobody reads.
    """
    if not layers:
        raise ValueError("layers is empty; expected at least one layer")
    return Slots.joined({str(k): layer.slots for k, layer in enumerate(layers)})
