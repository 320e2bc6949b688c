"""Room for a content: how much there is, what others have reserved, and what must go for it.

Rule 1: room is made before a content comes in, exact to the byte, and reserved for all processes by
the name of the file that is to be filled; what they count and note has its room kept free for it.
Rule 2: it is made in one transaction of the table, so that no two make it at once.
Rule 3: nothing is deleted in vain.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import shutil
import stat
import time
from typing import TYPE_CHECKING, NamedTuple

from casartifacts.cache.counters import MOST_BYTES
from casartifacts.cache.folder import READ, Filling, aside, delete, fillings, is_locked, lock
from casartifacts.cache.slots import LEAST_KEPT

if TYPE_CHECKING:
    from collections.abc import Callable

    from casartifacts.cache.counters import Counting
    from casartifacts.cache.database import AnyTable
    from casartifacts.cache.slots import Slot

__all__ = [
    "being_filled",
    "default_floor",
    "default_limit",
    "drop_left",
    "free",
    "reserve",
    "survey",
]

# By default a tenth of the file system, but no more than this.
_MOST_BY_DEFAULT = 100 * 2**30

# By default one part in twenty of the file system stays free, whatever the limit.
_FREE_PARTS = 20

# A cache that is not a hundred times as large as what may lie beside the contents would be felt to
# be smaller by it: there it comes on top.
_LARGE = 100

# What the table may grow by while a content comes in, and the last block of its file.
_SLACK = 2**16

# Where locks do nothing, a file in tmp/ belongs to a dead process if nobody wrote to it for a
# minute; where they cannot be had, for a day.
_QUIET_SECONDS = 60
_FORGOTTEN_SECONDS = 86_400

# What a dead process has filled is kept for as long, for the next one to go on from, unless its
# room is needed.
_KEPT_SECONDS = 86_400


def default_limit(folder: str) -> int:
    """Return the limit of a cache for which none was given."""
    return min(_disk_of(folder).total // 10, _MOST_BY_DEFAULT)


def default_floor(folder: str) -> int:
    """Return how many bytes of the file system stay free where nothing else was said."""
    return _disk_of(folder).total // _FREE_PARTS


def free(folder: str, *, floor: int | None = None) -> int:
    """Return the bytes that may still be written; the floor of the file system is left."""
    return _disk_of(folder).free - (default_floor(folder) if floor is None else floor)


def _for_contents(table: AnyTable, limit: int) -> int:
    """Return how much of a limit contents may take, so that all but the table keeps to it."""
    beside = MOST_BYTES + table.most_noted
    return limit - beside if limit >= _LARGE * beside else limit


def _disk_of(folder: str) -> shutil._ntuple_diskusage:
    place = folder
    while not os.path.exists(place):
        place = os.path.dirname(place)
    return shutil.disk_usage(place)


def reserve(
    table: AnyTable,
    new_slot: Callable[[list[str]], Slot],
    *,
    folder: str,
    digest: str,
    size: int,
    limit: int,
    floor: int | None,
    passing: set[str] | None,
    counting: Counting,
) -> Slot | Filling | None:
    """Evict what must go for a content of this size and make its slot; None if in vain.

    If a living process fills a file with this content, that file is returned instead, unless it is
    one of `passing`; None are all.
    """
    limit = _for_contents(table, limit)
    if size > limit or not hasattr(os, "pwrite"):
        return None
    with contextlib.ExitStack() as stack:
        with table.transact():
            found = survey(folder)
            # One of those who ended may have been killed as a content got its place.
            table.sweep(anew=bool(found.ended))
            _drop(folder, found.ended)
            if passing is not None:
                for filling in found.living:
                    if filling.digest == digest and filling.path not in passing:
                        return filling
            # What the new one goes on from goes last.
            leftovers = [left for left in found.left if left.digest == digest]
            spare = [left for left in found.left if left.digest != digest]
            sizes = [entry.size for entry in (*found.aside, *found.left)]
            can_go = table.bytes_held() + sum(sizes)
            excess = max(
                can_go + found.promised + size - limit,
                found.unwritten + size + _SLACK - free(folder, floor=floor),
            )
            if excess > can_go:
                return None
            excess -= sum(_drop(folder, [*found.aside, *spare], excess))
            evicted, dropped = table.drop_oldest(excess)
            excess -= dropped
            if excess > 0:
                excess -= sum(_drop(folder, leftovers, excess))
            with counting as counters:
                counters.evictions += evicted
            if excess > 0:
                return None  # another user keeps some from being deleted
            slot = stack.enter_context(
                contextlib.closing(new_slot([left.path for left in leftovers]))
            )
        # What was evicted may share its blocks with other files: see what came of it.
        if found.unwritten + size > free(folder, floor=floor):
            return None
        stack.pop_all()
        return slot


def being_filled(folder: str, digest: str, *, passing: set[str]) -> Filling | None:
    """Return a file that a living process fills with a content, as `reserve` does; no table."""
    with contextlib.suppress(OSError):
        for filling in fillings(folder):
            if filling.digest == digest and filling.path not in passing:
                with contextlib.suppress(FileNotFoundError):
                    if not _is_left(filling.path, os.lstat(filling.path)):
                        return filling
    return None


def drop_left(table: AnyTable, *, folder: str) -> list[int]:
    """Delete what dead processes had been filling; returns how many bytes each file had."""
    # In a transaction, as a slot is made in one: its file is there before it is locked.
    with table.transact():
        found = survey(folder)
        table.sweep(anew=bool(found.ended))
        return _drop(folder, [*found.ended, *found.left])


class Left(NamedTuple):
    """A file that may be deleted; its size is what is on the disk."""

    path: str
    size: int
    digest: str


class Found(NamedTuple):
    """What lies in the folder beside the contents.

    Attributes:
        living: Files that living processes fill.
        promised: The bytes that these reserve.
        unwritten: How many of them are not on the disk yet.
        left: What dead ones have filled, for others to go on from.
        ended: What is left of dead ones and of no use.
        aside: What was put aside.
    """

    living: list[Filling]
    promised: int
    unwritten: int
    left: list[Left]
    ended: list[Left]
    aside: list[Left]


def survey(folder: str) -> Found:
    """Look through the folder."""
    put_aside = [Left(path, size, "") for path, size in aside(folder)]
    found: list[tuple[float, Left]] = []
    living: list[Filling] = []
    ended: list[Left] = []
    promised = unwritten = 0
    for filling in fillings(folder):
        with contextlib.suppress(FileNotFoundError):
            status = os.lstat(filling.path)
            if not _is_left(filling.path, status):
                living.append(filling)
                promised += filling.size
                unwritten += max(0, filling.size - status.st_blocks * 512)
                continue
            file = Left(filling.path, status.st_size, filling.digest)
            if file.size < LEAST_KEPT or _age(status) > _KEPT_SECONDS:
                ended.append(file)
            else:
                found.append((status.st_mtime, file))
    left = [left for _, left in sorted(found)]
    return Found(living, promised, unwritten, left, ended, put_aside)


def _drop(folder: str, files: list[Left], excess: float = math.inf) -> list[int]:
    """Delete so many bytes of these files, the first ones first; returns the size of each gone."""
    gone: list[int] = []
    while files and sum(gone) < excess:
        file = files.pop(0)
        # Another user keeps it, or its owner was alive and has just let go of it.
        with contextlib.suppress(OSError):
            delete(folder, file.path)
            gone.append(file.size)
    return gone


def _age(status: os.stat_result) -> float:
    return time.time() - status.st_mtime


def _is_left(path: str, status: os.stat_result) -> bool:
    """Tell whether whoever filled this file is dead."""
    if not stat.S_ISREG(status.st_mode):
        return True  # nobody fills what is no file
    with contextlib.ExitStack() as stack:
        try:
            file, same = (stack.enter_context(io.FileIO(os.open(path, READ))) for _ in range(2))
        except PermissionError:
            return _age(status) > _FORGOTTEN_SECONDS  # another user's, who closed it
        is_free = lock(file.fileno())
        if is_free is None:
            return _age(status) > _FORGOTTEN_SECONDS
        # A lock that is not seen from here is not seen from anywhere: it does nothing.
        works = is_free and is_locked(same.fileno())
    return is_free and (works is True or _age(status) > _QUIET_SECONDS)
