"""What people ask of a cache: what is in it, and to take out what is of no use.

Rule 1: a file in flight is not touched: one that is being filled by a process that lives, and one
that has its place but not its row yet.
Rule 2: it is done in small steps, so that no other process waits for long.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

from casartifacts.cache import counters, room
from casartifacts.cache import folder as places

if TYPE_CHECKING:
    from collections.abc import Callable

    from casartifacts.cache.counters import Counters
    from casartifacts.cache.database import AnyTable
    from casartifacts.cache.table import Row

__all__ = ["Ask", "Cleaned", "Stat", "Verified", "clean", "digests", "find", "look"]

_T = TypeVar("_T")


class Ask(Protocol):
    """Does something with the table, or raises `CacheUnavailable`."""

    def __call__(self, act: Callable[[AnyTable], _T]) -> _T:
        """Do it."""
        ...


@dataclass(frozen=True, slots=True)
class Stat:
    """What a cache holds at one moment, and what happened in it until then.

    Attributes:
        folder: Where it is.
        contents: How many contents it holds.
        size: Their bytes.
        size_limit: The most bytes of the folder but its table.
        free: Bytes that are free on its file system.
        floor: Bytes of these that it leaves free.
        filling: How many contents are on their way in.
        filling_size: The bytes that are reserved for them.
        left: How many were on their way in when their processes were killed.
        left_size: What there is of them, in bytes.
        aside: How many contents turned out wrong and lie in `damaged/`.
        aside_size: Their bytes.
        totals: What all processes have counted.
    """

    folder: str
    contents: int
    size: int
    size_limit: int
    free: int
    floor: int
    filling: int
    filling_size: int
    left: int
    left_size: int
    aside: int
    aside_size: int
    totals: Counters


@dataclass(frozen=True, slots=True)
class Verified:
    """What came of hashing every content of a cache.

    Attributes:
        contents: How many are right.
        size: Their bytes.
        wrong: The digests of those that were not; they were put aside.
    """

    contents: int
    size: int
    wrong: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What was taken out of a cache.

    Attributes:
        left_over: Files that killed processes had been filling.
        strays: Files among the contents that the table does not know.
        lost: Rows of the table whose files are gone, or have another size.
        aside: Files that had been put aside.
        contents: Contents.
        size: The bytes of all these files.
    """

    left_over: int
    strays: int
    lost: int
    aside: int
    contents: int
    size: int


def look(table: AnyTable, *, folder: str, size_limit: int, floor: int | None) -> Stat:
    """Say what there is."""
    found = room.survey(folder)
    left = [*found.left, *found.ended]
    free = shutil.disk_usage(folder).free
    return Stat(
        folder=folder,
        contents=table.contents_held(),
        size=table.bytes_held(),
        size_limit=size_limit,
        free=free,
        floor=room.default_floor(folder) if floor is None else floor,
        filling=len(found.living),
        filling_size=found.promised,
        left=len(left),
        left_size=sum(file.size for file in left),
        aside=len(found.aside),
        aside_size=sum(file.size for file in found.aside),
        totals=counters.totals(folder),
    )


def clean(folder: str, ask: Ask, *, everything: bool) -> Cleaned:
    """Take out what is of no use, or everything; `ask` does something with the table."""
    aside = ask(lambda _: places.drop_aside(folder))
    counters.drop_broken(folder)
    contents: list[int] = []
    while everything and (sizes := ask(lambda table: table.drop_some())):
        contents += sizes
    lost, rowid = 0, 0
    while (page := ask(partial(_drop_lost, after=rowid))) is not None:
        lost, rowid = lost + page[0], page[1]
    strays: list[int] = []
    for above in ask(lambda _: places.content_folders(folder)):
        strays += ask(partial(_drop_strays, above=above))
    left_over = ask(partial(room.drop_left, folder=folder))
    return Cleaned(
        left_over=len(left_over),
        strays=len(strays),
        lost=lost,
        aside=len(aside),
        contents=len(contents),
        size=sum(contents) + sum(strays) + sum(left_over) + sum(entry.size for entry in aside),
    )


def digests(table: AnyTable, *, after: str) -> list[str]:
    """Return the digests of a page of contents, those that follow this one."""
    return table.digests(after=after)


def find(table: AnyTable, *, digest: str) -> Row | None:
    """Return what stands in the row of a content, or None."""
    return table.find(digest)


def _drop_lost(table: AnyTable, *, after: int) -> tuple[int, int] | None:
    return table.drop_lost(after=after)


def _drop_strays(table: AnyTable, *, above: str) -> list[int]:
    return table.drop_strays(above=above)
