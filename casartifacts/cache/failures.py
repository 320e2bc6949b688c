"""How the cache fails: never a read.

Rule 1: whatever goes wrong inside leaves as `CacheUnavailable`, is said once, and is gone around.
Rule 2: what failed is left alone for a while, so that nobody waits for it again and again.
"""

from __future__ import annotations

import time

__all__ = ["CacheUnavailable", "Pause", "WrongError"]

# How long a cache that failed is left alone before it is tried again.
_PAUSE_SECONDS = 60


class CacheUnavailable(Exception):
    """The cache cannot do this now (full disk, broken database, no permission): go around it."""


class WrongError(Exception):
    """What a row leads to is not the content that it names."""


class Pause:
    """A while in which something is not tried, and why."""

    def __init__(self) -> None:
        self._until = 0.0
        self._why = ""

    def begin(self, why: str) -> CacheUnavailable:
        """Leave it alone from now on; returns what says so."""
        self._until = time.monotonic() + _PAUSE_SECONDS
        self._why = why
        return CacheUnavailable(why)

    def check(self) -> None:
        """Raise `CacheUnavailable` while it is to be left alone."""
        if time.monotonic() < self._until:
            raise CacheUnavailable(self._why)
