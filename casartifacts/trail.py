"""Going on as a known content does: its chunks are found again without looking for their ends.

The next checkpoint of a run is the last one but for some stretches. Where a chunk of the last one
was met, the one after it there is expected here, and its fingerprint tells whether it is, in a
third of the time of looking for where it ends.

Rule 1: pure; each chunk comes by once, in order.
Rule 2: a fingerprint decides where a chunk ends, never what its digest is: two contents with equal
fingerprints can be made (`fingerprint`), and then cost sharing.
Rule 3: the last chunk of a content ended because the content did: no other one is to end there for
that, so it is recognised but never expected.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from casartifacts.digest import FINGERPRINT_SIZE, fingerprint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casartifacts.manifest import ChunkTable

__all__ = ["Cuts", "Trail"]


class Cuts(NamedTuple):
    """The chunks of a content, and their fingerprints in a row."""

    chunks: ChunkTable
    fingerprints: bytes

    def fingerprint(self, index: int) -> bytes:
        """Return the fingerprint of a chunk."""
        return self.fingerprints[index * FINGERPRINT_SIZE : (index + 1) * FINGERPRINT_SIZE]


class Trail:
    """The chunks of one content as they come by, compared with those of known ones.

    Args:
        known: The contents to go on as; the first is preferred.
    """

    def __init__(self, known: Sequence[Cuts] = ()) -> None:
        # All in a row. A length of 0 expects nothing: that of the last chunk, and one after it.
        self._lengths: list[int] = []
        self._fingerprints: list[bytes] = []
        self._first: dict[bytes, int] = {}
        for cuts in known:
            for index, length in enumerate(cuts.chunks.lengths):
                mark = cuts.fingerprint(index)
                self._first.setdefault(mark, len(self._lengths))
                self._lengths.append(length)
                self._fingerprints.append(mark)
            if cuts.chunks.lengths:
                self._lengths[-1] = 0
            self._lengths.append(0)
            self._fingerprints.append(b"")
        # Where the next chunk is expected, if anywhere, and where the one before it was.
        self._place: int | None = None
        self._before: int | None = None
        self._met = bytearray()

    def go_on(self, rest: memoryview) -> list[int]:
        """Take the chunks with which these bytes begin as a known content goes on; their lengths.

        They end within these bytes.
        """
        lengths: list[int] = []
        at = 0
        while self._place is not None and (length := self._lengths[self._place]):
            if at + length > len(rest):
                return lengths
            mark = fingerprint(rest[at : at + length])
            if mark != self._fingerprints[self._place]:
                break
            self._meet(mark, self._place)
            lengths.append(length)
            at += length
        self._place = None
        return lengths

    def note(self, chunk: memoryview) -> bool:
        """Take a chunk that was cut; returns whether it is known what may come after it."""
        mark = fingerprint(chunk)
        self._meet(mark, self._first.get(mark))
        return self._place is not None and bool(self._lengths[self._place])

    def undo(self) -> None:
        """Take the last chunk back: it was none."""
        del self._met[-FINGERPRINT_SIZE:]
        self._place = self._before

    def cuts(self, chunks: ChunkTable) -> Cuts:
        """Return what to know of the content by, now that its chunks are known."""
        return Cuts(chunks, bytes(self._met))

    def _meet(self, mark: bytes, place: int | None) -> None:
        self._met += mark
        self._before = self._place
        self._place = None if place is None else place + 1
