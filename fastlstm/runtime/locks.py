"""What several Python threads share: locks, which a forked child finds free, since whoever held them does not exist there; and
what is done once, whoever comes first.
"""

from __future__ import annotations

import os
import weakref


class Holder:
    """Base of what holds locks: it makes them in `make_locks`, and again in a forked child."""

    def __init__(self) -> None:
        self.make_locks()
        _holders.add(self)

    def make_locks(self) -> None:
        """Set the attributes that are locks to new ones."""
        raise AssertionError("subclasses make their locks")


class Once:
    """Something that is done once: by one of several threads, or by a call or a handler that interrupts it."""

    def __init__(self) -> None:
        self._left = [None]

    def first(self) -> bool:
        """Whether nobody has asked before."""
        try:
            self._left.pop()  # one operation of the interpreter: nothing comes in between
        except IndexError:
            return False
        return True

    @property
    def done(self) -> bool:
        """Whether somebody has asked."""
        return not self._left


_holders: weakref.WeakSet[Holder] = weakref.WeakSet()


def _renew() -> None:
    for holder in _holders:
        holder.make_locks()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
