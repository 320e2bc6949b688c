"""Room for a content: how much there is, what others have reserved, and what must go for it.

Rule 1: room is made before a content comes in, exact to the byte, and reserved for all processes by
the name of the file that is to be filled.
Rule 2: it is made in one transaction of the table, so that no two make it at once.
Rule 3: nothing is deleted in vain.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import time
from typing import TYPE_CHECKING

from casartifacts.cache.folder import Filling, aside, fillings, lock

if TYPE_CHECKING:
    from collections.abc import Callable

    from casartifacts.cache.counters import Counting
    from casartifacts.cache.folder import Aside
    from casartifacts.cache.slots import Slot
    from casartifacts.cache.table import Table

__all__ = ["default_limit", "drop_left_over", "free", "reserve"]

# By default a tenth of the file system, but no more than this.
_MOST_BY_DEFAULT = 100 * 2**30

# One part in twenty of the file system stays free, whatever the limit.
_FREE_PARTS = 20

# What the table may grow by while a content comes in, and the last block of its file.
_SLACK = 2**16

# A file in tmp/ belongs to a killed process if nobody has it locked and nobody wrote to it for a
# minute (a lock may do nothing on some file systems), or for a day where locks cannot be had.
_QUIET_SECONDS = 60
_FORGOTTEN_SECONDS = 86_400


def default_limit(folder: str) -> int:
    """Return the limit of a cache for which none was given."""
    place = folder
    while not os.path.exists(place):
        place = os.path.dirname(place)
    return min(shutil.disk_usage(place).total // 10, _MOST_BY_DEFAULT)


def reserve(
    table: Table,
    new_slot: Callable[[], Slot],
    *,
    folder: str,
    size: int,
    limit: int,
    counting: Counting,
) -> Slot | None:
    """Evict what must go for a content of this size and make its slot; None if in vain."""
    if size > limit or not hasattr(os, "pwrite"):
        return None
    with contextlib.ExitStack() as stack:
        with table.transact():
            table.sweep()
            put_aside = aside(folder)
            can_go = table.bytes_held() + sum(entry.size for entry in put_aside)
            promised, unwritten = _promised(folder)
            excess = max(
                can_go + promised + size - limit,
                unwritten + size + _SLACK - free(folder),
            )
            if excess > can_go:
                return None
            evicted = table.drop_oldest(excess - _drop_aside(put_aside, excess))
            with counting as counters:
                counters.evictions += evicted
            slot = stack.enter_context(contextlib.closing(new_slot()))
        # What was evicted may share its blocks with other files: see what came of it.
        if excess > 0 and unwritten + size > free(folder):
            return None
        stack.pop_all()
        return slot


def _drop_aside(put_aside: list[Aside], excess: int) -> int:
    """Delete so many bytes of what was put aside, the oldest first; returns how many went."""
    dropped = 0
    for entry in put_aside:
        if dropped >= excess:
            break
        with contextlib.suppress(FileNotFoundError):
            os.unlink(entry.path)
        dropped += entry.size
    return dropped


def free(folder: str) -> int:
    """Return the bytes that may still be written; the floor of the file system is left."""
    disk = shutil.disk_usage(folder)
    return disk.free - disk.total // _FREE_PARTS


def _promised(folder: str) -> tuple[int, int]:
    """Return the bytes reserved by files being filled, and how many are not on the disk yet."""
    promised = unwritten = 0
    for path, size in fillings(folder):
        with contextlib.suppress(FileNotFoundError):
            status = os.lstat(path)
            if _is_left_over(path, status):
                with contextlib.suppress(OSError):
                    os.unlink(path)
                continue
            promised += size
            unwritten += max(0, size - status.st_blocks * 512)
    return promised, unwritten


def _is_left_over(path: str, status: os.stat_result) -> bool:
    """Tell whether whoever filled this file is dead."""
    age = time.time() - status.st_mtime
    if age < _QUIET_SECONDS or not stat.S_ISREG(status.st_mode):
        return False
    is_free = None
    with contextlib.suppress(OSError), open(path, "r+b") as file:
        is_free = lock(file.fileno())
    return age > _FORGOTTEN_SECONDS if is_free is None else is_free


def drop_left_over(folder: str) -> list[Filling]:
    """Delete what killed processes had been filling; returns what went."""
    gone = []
    for filling in fillings(folder):
        with contextlib.suppress(OSError):
            if _is_left_over(filling.path, status := os.lstat(filling.path)):
                os.unlink(filling.path)
                gone.append(Filling(filling.path, status.st_size))
    return gone
