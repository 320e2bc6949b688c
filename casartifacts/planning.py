"""Reading a source once more for what is to be stored of it: its new blobs, one after another.

Three threads share the work: one reads and compares the chunks, one hashes the blobs, and, where
the place is near, one writes them. Elsewhere they are handed out while the pass goes on, so that
they are sent beside it.

Rule 1: the chunks of the first reading are the truth. A source that has others now, by their
fingerprints, is refused, and no manifest is made.
Rule 2: a blob ends where a chunk ends, so that no chunk lies in two blobs.
Rule 3: what is hashed is what is written: the same bytes in the same buffer. Where nothing is
written here, a blob that is all of the content has its digest already: who sends it compares it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Protocol

from casartifacts.buffers import new_buffer
from casartifacts.digest import Hasher, fingerprint
from casartifacts.errors import ContentChanged
from casartifacts.manifest import BLOB_LIMIT
from casartifacts.matching import BOUNDS, Layout, Stretch, lay_out
from casartifacts.parallel import Beside

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from casartifacts.bodies import Source
    from casartifacts.manifest import ChunkTable, Manifest
    from casartifacts.trail import Cuts

__all__ = ["NewBlob", "Plan", "Sink", "plan"]

# 4 MiB, or the longest chunk: large enough that the work on it hides the cost of handing it to a
# thread.
_WINDOW_SIZE = 4 * 2**20


@dataclass(frozen=True, slots=True)
class NewBlob:
    """Stretches of the content that are stored as a blob with this digest."""

    stretches: tuple[Stretch, ...]
    length: int
    digest: str

    def read_at(self, source: Callable[[int, int], bytes], offset: int, length: int) -> bytes:
        """Return bytes from an offset in the blob, by reading them where they are in the source."""
        for stretch in self.stretches:
            if offset < stretch.length:
                return source(stretch.offset + offset, min(length, stretch.length - offset))
            offset -= stretch.length
        return b""


class Sink(Protocol):
    """Takes the bytes of blobs as they come by; called by one thread at a time."""

    def write(self, piece: memoryview) -> None:
        """Take the next bytes of the blob, or the first ones."""
        ...

    def end(self, blob: NewBlob) -> None:
        """Give the blob its name: all of its bytes have come."""
        ...


def plan(chunks: ChunkTable, bases: Sequence[Manifest]) -> Layout:
    """Lay out a content: what is taken from blobs that others are made of, and what is new."""
    return lay_out(chunks, bases=bases, bounds=replace(BOUNDS, blob_limit=BLOB_LIMIT))


class Plan:
    """The new blobs of a content; iterate over it for them.

    Args:
        source: The content.
        digest: Its digest, as it was read.
        cuts: Its chunks, as they were read.
        layout: How it is put together.
        sink: Takes the blobs in the same pass; None if they are sent by whoever iterates.
    """

    def __init__(
        self,
        source: Source,
        *,
        digest: str,
        cuts: Cuts,
        layout: Layout,
        sink: Sink | None = None,
    ) -> None:
        self._source = source
        self._digest = digest
        self._sink = sink
        self._cuts = cuts
        self._layout = layout
        # Where each chunk begins, and where the last one ends.
        self._offsets = [0, *accumulate(cuts.chunks.lengths)]

    def __iter__(self) -> Iterator[NewBlob]:
        """Read what is new and yield its blobs in order.

        Raises:
            ContentChanged: The source is not what it was in the first reading.
        """
        hashing = Beside()
        writing = Beside()
        size = max(_WINDOW_SIZE, *self._cuts.chunks.lengths)
        # Two in turn: while one is hashed and written, the other is filled.
        buffers = [new_buffer(size) for _ in range(2)] if self._layout.fresh else []
        with hashing, writing:
            for stretches in self._layout.fresh:
                length = sum(stretch.length for stretch in stretches)
                is_all = length == self._offsets[-1]
                if is_all and self._sink is None:
                    yield NewBlob(stretches, length, self._digest)
                    continue
                hasher = Hasher()
                for first, last in self._windows(stretches, size):
                    buffers.reverse()
                    window = self._read(buffers[0], first, last)
                    hashing.begin(partial(hasher.update, window))
                    if self._sink is not None:
                        writing.begin(partial(self._sink.write, window))
                hashing.end()
                writing.end()
                blob = NewBlob(stretches, length, hasher.hexdigest())
                if is_all and blob.digest != self._digest:
                    raise _changed(f"the digest {blob.digest}")
                if self._sink is not None:
                    self._sink.end(blob)
                yield blob

    def _windows(self, stretches: Sequence[Stretch], size: int) -> Iterator[tuple[int, int]]:
        """Yield ranges of chunks, each of at most so many bytes."""
        for stretch in stretches:
            first = bisect_left(self._offsets, stretch.offset)
            end = bisect_left(self._offsets, stretch.offset + stretch.length)
            while first < end:
                last = bisect_right(self._offsets, self._offsets[first] + size) - 1
                last = min(max(last, first + 1), end)
                yield first, last
                first = last

    def _read(self, buffer: memoryview, first: int, last: int) -> memoryview:
        """Read some chunks, which are those of the first reading."""
        offset = self._offsets[first]
        window = buffer[: self._offsets[last] - offset]
        filled = 0
        while filled < len(window):
            count = self._source.read_into(window[filled:], offset + filled)
            if not count:
                raise _changed(f"an end after {offset + filled} bytes")
            filled += count
        for chunk in range(first, last):
            begin, end = (at - offset for at in self._offsets[chunk : chunk + 2])
            if fingerprint(window[begin:end]) != self._cuts.fingerprint(chunk):
                raise _changed(f"other bytes at {offset + begin} to {offset + end}")
        return window


def _changed(found: str) -> ContentChanged:
    return ContentChanged(
        f"The content changed while it was being uploaded: the second reading gave {found}, "
        "unlike the first. Nothing was published; upload it again when nobody writes to it."
    )
