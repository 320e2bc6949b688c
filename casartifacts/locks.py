"""Locks that a fork never leaves held by a thread that the child does not have.

Rule: one for a module, held for a few steps in memory; never while anything is waited for.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

__all__ = ["lock_over_forks"]


def lock_over_forks() -> AbstractContextManager[bool]:
    """Return a lock that whoever forks holds at that moment; it lives as long as the process."""
    lock = threading.RLock()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(
            before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release
        )
    return lock
