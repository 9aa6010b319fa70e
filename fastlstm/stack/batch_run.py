"""A batch under way through a stack, and its backward pass. Knows no layers, models or losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..runtime import check
from ..runtime.locks import Once
from ..runtime.params import Slots
from ..runtime.workspace import Workspace
from .stack import Call, Pool, Spaces


class BatchRun:
    """One batch on its way through a stack: buffers for its shape, and the programs recorded into them.

    Parameters
    ----------
    slots : Slots
        The parameters that the batch is computed with.
    pool : Pool
        Where the buffers come from, and go back to.
    call : Call
        Shape and options of the batch.
    key : hashable
        Batches with equal keys may use the same buffers.

    Attributes
    ----------
    values : dict
        Values of the programs' `Later` and `Result` places that all programs of the batch share, by name.
    """

    def __init__(self, slots: Slots, pool: Pool, call: Call, key: Any) -> None:
        self.slots, self.call, self.stamp = slots, call, slots.store.stamp
        self.values: dict[str, Any] = {}
        self._pool, self._key = pool, key
        self.spaces: Spaces = pool.take(key)

    @property
    def own(self) -> Workspace:
        """The workspace for what belongs to no single layer."""
        return self.spaces.own

    def run(self, what: Any, record: Callable[[], None], packing: bool = False, **values: Any) -> None:
        """Run the program called `what`; `record` makes it at its first use."""
        self.spaces.program(what, record, packing).run(**self.values, **values)

    def check_unedited(self) -> None:
        """Check that the parameters are those of the forward pass.

        Raises
        ------
        RuntimeError
            If they were edited since: what the forward pass saved does not fit them.
        """
        check.unedited(self.stamp, self.slots.store.stamp)

    def close(self) -> None:
        """Give the buffers back. A second call does nothing."""
        spaces = self.__dict__.pop("spaces", None)
        if spaces is not None:
            self._pool.give(self._key, spaces)


class Backprop:
    """The backward pass of one forward pass: call it once, or `close` it to free what was saved for it.

    Parameters
    ----------
    read : callable
        Takes the gradients that the user gives, checks them, and returns the arguments of `run`.
    run : callable
        Computes the backward pass. Of several threads that call at once, one gets here.
    close : callable
        Frees what the forward pass saved, if no backward pass is wanted.
    """

    def __init__(
        self, read: Callable[..., tuple[Any, ...]], run: Callable[..., Any], close: Callable[[], None] = lambda: None
    ) -> None:
        self._read, self._run, self._close, self._used = read, run, close, Once()

    def __call__(self, *gradients: Any, **named: Any) -> Any:
        """Add to the gradients of the parameters, and return the gradients of the inputs.

        The method that returned this object says which gradients it takes and returns.

        Raises
        ------
        RuntimeError
            On a second call, since the first uses up what was saved; and after an edit of the parameters.
        TypeError, ValueError
            For a gradient that does not fit; the call does not count then.
        """
        check.unused(self._used.done)
        arguments = self._read(*gradients, **named)
        check.unused(not self._used.first())
        result = self._run(*arguments)
        del self._run  # and with it what was saved
        return result

    def close(self) -> None:
        """Free what was saved, without a backward pass."""
        if self._used.first():
            del self._run
            self._close()
