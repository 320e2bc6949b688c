"""Going on as a known content does: its chunks are found again without being cut or digested.

The next checkpoint of a run is the last one but for some stretches. Where a chunk of the last one
was met, the one after it there is expected here, and its fingerprint tells whether it is: that
takes a sixth of the time of looking for its end and digesting it.

Rule 1: pure; each chunk comes by once, in order, and its digest is given as far as it is known.
Rule 2: a fingerprint stands for a digest only within the process that made both (`fingerprint`).
Rule 3: the last chunk of a content ended because the content did: no other one is to end there for
that, so it is recognised but never expected.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from casartifacts.digest import DIGEST_SIZE, FINGERPRINT_SIZE, fingerprint

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
        # All in a row, a place that nothing is expected at after each content. A length of 0
        # expects nothing.
        self._lengths: list[int] = []
        self._fingerprints: list[bytes] = []
        self._first: dict[bytes, int] = {}
        self._begins: list[tuple[int, ChunkTable]] = []
        for cuts in known:
            self._begins.append((len(self._lengths), cuts.chunks))
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
        # Of each chunk that came by: its fingerprint, and where it is known.
        self._met = bytearray()
        self._places: list[int | None] = []

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
        self._places.pop()
        self._place = self._before

    def digests(self) -> list[bytes | None]:
        """Return the digests of the chunks that came by since this was last asked."""
        places, self._places = self._places, []
        return [None if place is None else self._digest(place) for place in places]

    def cuts(self, chunks: ChunkTable) -> Cuts:
        """Return what to know of the content by, now that its chunks are known."""
        return Cuts(chunks, bytes(self._met))

    def _meet(self, mark: bytes, place: int | None) -> None:
        self._met += mark
        self._places.append(place)
        self._before = self._place
        self._place = None if place is None else place + 1

    def _digest(self, place: int) -> bytes:
        begin, chunks = next(each for each in reversed(self._begins) if each[0] <= place)
        at = (place - begin) * DIGEST_SIZE
        return chunks.digests[at : at + DIGEST_SIZE]
