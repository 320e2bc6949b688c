"""What a row of the table is, what it is raced with, and the list of all rows.

To add one, write a function that returns its two sides and mark it with `row`; what both samples
share goes into `shared`, an empty folder that lives as long as the row.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from racing.remote import Servers

    # A side of a race: gets an empty folder, makes its preparations there, and returns what is
    # timed.
    Side = Callable[[Path], Callable[[], object]]
    Sides = Callable[["Place", Path], tuple[Side, Side]]

__all__ = ["MIB", "ROWS", "SMALL_SIZE", "Bound", "Passed", "Place", "Row", "Skipped", "Unit", "row"]

MIB = 2**20

SMALL_SIZE = 2**10

# What an upload sends beside the artifact is its manifest and its ref. A blob is much larger.
_RECORDS_SIZE = MIB

# Seconds per job; peak memory; what passed a link.
Unit = Literal["s", "MiB", "requests"]


@dataclass(frozen=True)
class Place:
    """What is raced with: a file of random bytes, large ones, small artifacts, and servers."""

    folder: Path
    small: int
    servers: Servers

    @property
    def file(self) -> Path:
        """The raced file."""
        return self.folder / "file"

    @property
    def large(self) -> Path:
        """The file for peak memory."""
        return self.folder / "large"

    @property
    def large_remote(self) -> Path:
        """The file for peak memory with buckets."""
        return self.folder / "large-remote"

    @cached_property
    def bodies(self) -> list[bytes]:
        """The small artifacts."""
        return [os.urandom(SMALL_SIZE) for _ in range(self.small)]


@dataclass(frozen=True)
class Passed:
    """What one operation sent over the link, without latency and with it.

    Attributes:
        requests: The larger number of the two, as the next three.
        sent: Bytes from client to server, heads included.
        received: Bytes from server to client, heads included.
        round_trips: Requests in a row, each after the answer to the one before it.
        ranges: How many of the requests are for stretches of blobs.
        more: Bytes of bodies that were sent beyond those of the artifact.
        seconds: How long it took without latency, once.
        late_seconds: How long it took with it, once.
        methods: Requests by method, where they are most.
    """

    requests: int
    sent: int
    received: int
    round_trips: int
    ranges: int
    more: int
    seconds: float
    late_seconds: float
    methods: dict[str, int]


@dataclass(frozen=True)
class Bound:
    """The most that our side may cost: `factor` times the reference, and `plus` in its unit.

    Of requests, `plus` may leave out the ranges of blobs, and no byte may go out `twice`.
    """

    factor: float = 0.0
    plus: float = 0.0
    beside_ranges: bool = False
    twice: bool = True

    def text(self, unit: Unit) -> str:
        """Say it in a table."""
        if unit == "requests":
            more = " + ranges" if self.beside_ranges else ""
            return f"{self.plus:g}{more}{'' if self.twice else ', none twice'}"
        plus = f"{self.plus:g} {unit}" if self.plus else ""
        if self.factor == 1.0 and plus:
            return f"+ {plus}"
        return plus or f"{self.factor:g}"

    def holds(self, ours: float, theirs: float) -> bool:
        """Tell whether it is kept."""
        return ours <= self.factor * theirs + self.plus

    def holds_for(self, passed: Passed) -> bool:
        """Tell whether it is kept by what passed a link."""
        counted = passed.requests - passed.ranges * self.beside_ranges
        return counted <= self.plus and (self.twice or passed.more <= _RECORDS_SIZE)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    `per` is how often a sample does the job. Only seconds are timed; in another unit the job
    returns its figure, and one round is enough. `server` is the one that it is raced on.
    """

    name: str
    reference: str
    sides: Sides
    bound: Bound | None
    unit: Unit
    per: int
    server: str | None


class Skipped(Exception):
    """A row that cannot be raced here; says why."""


ROWS: list[Row] = []


def row(
    name: str,
    *,
    reference: str,
    bound: Bound | None = None,
    unit: Unit = "s",
    per: int = 1,
    server: str | None = None,
) -> Callable[[Sides], None]:
    """Add a row to the list."""

    def register(sides: Sides) -> None:
        ROWS.append(Row(name, reference, sides, bound, unit, per, server))

    return register
