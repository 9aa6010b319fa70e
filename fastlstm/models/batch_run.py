"""One batch through a model: buffers of its shape, and the programs recorded into them. Knows no model's layers or losses."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..runtime import check
from ..runtime.locks import Once
from ..runtime.workspace import Workspace
from ..stack.stack import Call, Spaces


class Batch:
    """What the models' runs share.

    Parameters
    ----------
    model : LanguageModel or Reader
    call : Call
        Its shape says which buffers of the model's pool are taken; `close` gives them back.

    Attributes
    ----------
    values : dict
        What the programs are given, by the names of their `Later`.
    """

    def __init__(self, model: Any, call: Call) -> None:
        self.model, self.call, self.stamp = model, call, model.slots.store.stamp
        self.values: dict[str, Any] = {}
        self._key = (call.steps, call.batch, call.save)
        self.spaces: Spaces = model._pool.take(self._key)
        self.own: Workspace = self.spaces.own
        self.used = Once()

    def ready(self) -> None:
        """See that a backward pass can be made.

        Raises
        ------
        RuntimeError
            If one was made, or the parameters were edited.
        """
        check.unused(self.used.done)
        check.unedited(self.stamp, self.model.slots.store.stamp)

    @contextlib.contextmanager
    def final_use(self) -> Iterator[None]:
        """The last use of the buffers, in the block: they are given back after it.

        Raises
        ------
        RuntimeError
            If they are in use so already, or have been given back.
        """
        check.unused(not self.used.first())
        yield
        self._release()

    def run(self, what: Any, record: Callable[[], None], packing: bool = False, **values: Any) -> None:
        """Run the program `what`, which `record` makes when it is new."""
        self.spaces.program((what, self._variant()), record, packing).run(**self.values, **values)

    def _variant(self) -> Any:
        """What beside its name and the shape decides which calls a program has."""
        return None

    @property
    def losses(self) -> np.ndarray:
        """Parts of the loss, float64, where `judge` and `gradients` put them."""
        raise AssertionError("subclasses say where")

    def loss(self) -> float:
        """The sum of the losses."""
        return float(self.losses.sum())

    def close(self) -> None:
        """Give the buffers back, unless a backward pass uses them or has used them."""
        if self.used.first():
            self._release()

    def _release(self) -> None:
        self.model._pool.give(self._key, self.spaces)
        del self.spaces, self.own  # the caller may keep his `Backprop`
