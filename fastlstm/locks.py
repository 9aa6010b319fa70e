"""Locks of what several Python threads share: a forked child finds them free, since whoever held them does not exist there."""

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


_holders: weakref.WeakSet[Holder] = weakref.WeakSet()


def _renew() -> None:
    for holder in _holders:
        holder.make_locks()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
