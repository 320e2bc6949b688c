"""What this process was told lately: which names are live in a backend (rule K of the design).

An answer counts for an hour from before its question was sent: garbage collection leaves names
alone for longer than that. The clock counts suspended time, so a laptop that slept asks again.

Rule 1: no I/O; the clock comes in as a parameter.
Rule 2: never pickled; another process asks for itself.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from casartifacts.locks import lock_over_forks

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MAX_AGE_SECONDS", "Knowledge", "seconds_since_boot"]

# One hour: a twelfth of the time in which a collector with the default grace of 24 h moves
# anything, and half of that with the shortest grace that is accepted, 4 h.
MAX_AGE_SECONDS = 3600.0

_lock = lock_over_forks()

# About 20 MB of names at most; what is dropped is asked again.
_MOST_NAMES = 100_000


def seconds_since_boot() -> float:
    """Read a clock that runs on while the machine is suspended, where there is one."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class Knowledge:
    """The names that were live at most an hour ago; may be used by several threads."""

    def __init__(self, clock: Callable[[], float] = seconds_since_boot) -> None:
        self.now = clock
        self._told: dict[str, float] = {}

    def learn(self, name: str, *, asked_at: float) -> None:
        """Note that a name is live by an answer to a question sent at `asked_at` (by `now`)."""
        with _lock:
            self._told.pop(name, None)
            self._told[name] = asked_at
            if len(self._told) > _MOST_NAMES:
                del self._told[next(iter(self._told))]

    def is_fresh(self, name: str) -> bool:
        """Tell whether a name is known to be live."""
        told = self._told.get(name)
        return told is not None and self.now() - told <= MAX_AGE_SECONDS

    def forget(self, name: str) -> None:
        """Drop what is known of a name."""
        with _lock:
            self._told.pop(name, None)

    def clear(self) -> None:
        """Drop everything, as every pass of garbage collection does."""
        with _lock:
            self._told.clear()
