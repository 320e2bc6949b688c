"""What the cache says of itself: how often it hit, missed, evicted and healed.

Rule 1: each process counts its own, from zero after a fork.
"""

from __future__ import annotations

import os
import threading
import weakref
from dataclasses import dataclass

__all__ = ["Counters", "Counting"]


@dataclass
class Counters:
    """What happened in this process since the cache object was made."""

    hits: int = 0
    misses: int = 0
    bytes_served: int = 0
    waits: int = 0
    evictions: int = 0
    heals: int = 0


class Counting:
    """The counters of one cache; `with counting as counters:` keeps other threads out."""

    def __init__(self) -> None:
        self.begin_anew()
        _living.add(self)

    def begin_anew(self) -> None:
        """Count from zero, whoever held the lock."""
        self._lock = threading.Lock()
        self.counters = Counters()

    def __enter__(self) -> Counters:
        self._lock.acquire()
        return self.counters

    def __exit__(self, *_: object) -> None:
        self._lock.release()


_living: weakref.WeakSet[Counting] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    # A thread that is not there any more may have held a lock.
    for each in list(_living):
        each.begin_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
