"""What ways of cutting save of a series, by chunk tables alone."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from blake3 import blake3

from casartifacts.chunking import ChunkerParameters, Cutter
from casartifacts.cutpoints import cut_points
from casartifacts.trail import Trail

if TYPE_CHECKING:
    from collections.abc import Sequence

    from series import Series

__all__ = ["OWN", "Tally", "measure"]

_KIB = 2**10

_OWN = ChunkerParameters()
OWN = (
    f"{_OWN.minimum // _KIB}/{_OWN.average // _KIB}/{_OWN.maximum // _KIB}/{_OWN.normalization}"
    f"/{_OWN.minimum // _KIB}"
)
"""How contents are cut today."""


@dataclass
class Tally:
    """What one way of cutting has found in one series."""

    way: str
    known: set[bytes] = field(default_factory=set)
    size: int = 0
    new: int = 0
    chunks: int = 0
    changes: int = 0

    def add(self, content: memoryview) -> None:
        """Cut the next file."""
        was_new = None
        at = 0
        for length in self._lengths(content):
            digest = blake3(content[at : at + length]).digest()
            is_new = digest not in self.known
            self.new += is_new * length
            self.changes += is_new is not was_new
            self.chunks += 1
            self.known.add(digest)
            was_new = is_new
            at += length
        self.size += at

    def _lengths(self, content: memoryview) -> list[int]:
        minimum, average, maximum, normalization, least = self.way.split("/")
        parameters = ChunkerParameters(
            minimum=int(minimum) * _KIB,
            average=int(average) * _KIB,
            maximum=int(maximum) * _KIB,
            normalization=int(normalization),
        )
        points = []
        if least != "-":
            points = cut_points(
                lambda offset, length: bytes(content[offset : offset + length]),
                len(content),
                least=int(least) * _KIB,
            )
        return Cutter(parameters, Trail(), points).cut(content, is_last=True)


def measure(series: Series, ways: Sequence[str], *, scale: float) -> list[Tally]:
    """Write the files of a series and cut each in every way."""
    tallies = [Tally(way) for way in ways]
    files = 0
    with tempfile.TemporaryDirectory(prefix="casartifacts-savings-") as folder:
        for path in series.files(Path(folder), scale=scale):
            content = memoryview(path.read_bytes())
            for tally in tallies:
                tally.add(content)
            files += 1
    for tally in tallies:
        tally.changes //= files
    return tallies
