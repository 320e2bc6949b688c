"""Reading a source for the second time: its chunks, and the blobs that it is stored as.

One pass over the file, in which three threads share the work: one cuts and hashes the chunks, one
hashes the whole, one hashes the blobs and, where the place is near, writes them at once. Elsewhere
they are handed out while the pass goes on, so that they are sent beside it.

Rule 1: the digest of the first pass is the truth. A file that gives another one now is refused,
and no manifest is made.
Rule 2: a blob ends where a chunk ends, so that no chunk lies in two blobs.
Rule 3: what is hashed is what is written: the same bytes in the same buffer.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

from casartifacts.chunking import Cutter
from casartifacts.cutpoints import cut_points
from casartifacts.digest import Hasher
from casartifacts.errors import ContentChanged
from casartifacts.manifest import BLOB_LIMIT, ChunkTable, Manifest, Segment
from casartifacts.parallel import Beside

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casartifacts.bodies import Source
    from casartifacts.chunking import ChunkerParameters

__all__ = ["NewBlob", "Plan", "Sink"]

# 4 MiB, or two of the longest chunks: large enough that the work on it hides the cost of handing it
# to a thread.
_WINDOW_SIZE = 4 * 2**20


@dataclass(frozen=True, slots=True)
class NewBlob:
    """A range of the content, in bytes, that is stored as a blob with this digest."""

    start: int
    length: int
    digest: str


class Sink(Protocol):
    """Takes the bytes of blobs as they come by; called by one thread at a time."""

    def write(self, piece: memoryview) -> None:
        """Take the next bytes of the blob, or the first ones."""
        ...

    def end(self, blob: NewBlob) -> None:
        """Give the blob its name: all of its bytes have come."""
        ...


class Plan:
    """How a content is stored that nothing is known of.

    Iterate over it for its blobs; after the last one, `manifest()` tells how they make the content.

    Args:
        source, digest, size: The content.
        chunker: How it is cut.
        sink: Takes the blobs in the same pass; None if they are sent by whoever iterates.
    """

    def __init__(
        self,
        source: Source,
        *,
        digest: str,
        size: int,
        chunker: ChunkerParameters,
        sink: Sink | None = None,
    ) -> None:
        self._source = source
        self._sink = sink
        self._digest = digest
        self._size = size
        self._chunker = chunker
        self._lengths: array[int] = array("I")
        self._digests = bytearray()
        self._blobs: list[NewBlob] = []

    def manifest(self) -> Manifest:
        """Return the manifest; the plan has been iterated over to its end."""
        return Manifest(
            digest=self._digest,
            size=self._size,
            blobs=tuple((blob.digest, blob.length) for blob in self._blobs),
            segments=tuple(
                Segment(index, 0, blob.length) for index, blob in enumerate(self._blobs)
            ),
            chunks=ChunkTable(self._lengths, bytes(self._digests)),
            chunker=self._chunker,
        )

    def __iter__(self) -> Iterator[NewBlob]:
        """Read the source and yield its blobs in order.

        Raises:
            ContentChanged: The source is not what it was in the first pass.
        """
        content = Hasher()
        blobs = _Packer(self._sink)
        hashing: Beside[object] = Beside()
        packing: Beside[list[NewBlob]] = Beside()
        with hashing, packing:
            for window, lengths in self._windows():
                hashing.begin(partial(content.update, window))
                yield from self._note(packing.begin(partial(blobs.add, window, lengths)))
                at = 0
                for length in lengths:
                    self._digests += Hasher(window[at : at + length]).digest()
                    at += length
                self._lengths.extend(lengths)
            hashing.end()
            yield from self._note(packing.end())
            yield from self._note(blobs.finish())
        if content.hexdigest() != self._digest:
            raise _changed(self._digest, f"digest {content.hexdigest()}")

    def _note(self, blobs: list[NewBlob] | None) -> list[NewBlob]:
        blobs = blobs or []
        self._blobs += blobs
        return blobs

    def _windows(self) -> Iterator[tuple[memoryview, list[int]]]:
        """Yield stretches of the content with the lengths of the chunks in each."""
        points = cut_points(self._source.read_at, self._size, least=self._chunker.minimum)
        cutter = Cutter(self._chunker, points)
        window_size = max(_WINDOW_SIZE, 2 * self._chunker.maximum)
        # Two buffers in turn: while one is worked on, the other is filled.
        buffers = [memoryview(bytearray(window_size)) for _ in range(2)]
        rest = memoryview(b"")
        offset = 0
        while offset < self._size:
            buffers.reverse()
            window = buffers[0]
            window[: len(rest)] = rest
            filled = len(rest)
            wanted = min(window_size, self._size - offset)
            while filled < wanted:
                count = self._source.read_into(window[filled:wanted], offset + filled)
                if not count:
                    raise _changed(self._digest, f"an end after {offset + filled} bytes")
                filled += count
            window = window[:filled]
            lengths = cutter.cut(window, is_last=offset + filled == self._size)
            done = sum(lengths)
            yield window[:done], lengths
            rest = window[done:]
            offset += done


class _Packer:
    """Packs chunks into blobs; called by one thread at a time."""

    def __init__(self, sink: Sink | None) -> None:
        self._sink = sink
        self._hasher = Hasher()
        self._start = 0
        self._length = 0

    def add(self, window: memoryview, lengths: list[int]) -> list[NewBlob]:
        """Take the next chunks; return the blobs that are full."""
        full = []
        begin = at = 0
        for length in lengths:
            if self._length + (at - begin) + length > BLOB_LIMIT:
                self._take(window[begin:at])
                full += self.finish()
                begin = at
            at += length
        self._take(window[begin:at])
        return full

    def _take(self, piece: memoryview) -> None:
        self._hasher.update(piece)
        self._length += len(piece)
        if self._sink is not None:
            self._sink.write(piece)

    def finish(self) -> list[NewBlob]:
        """End the blob, if there is one."""
        if not self._length:
            return []
        blob = NewBlob(self._start, self._length, self._hasher.hexdigest())
        if self._sink is not None:
            self._sink.end(blob)
        self._start += self._length
        self._length, self._hasher = 0, Hasher()
        return [blob]


def _changed(digest: str, found: str) -> ContentChanged:
    return ContentChanged(
        f"The content changed while it was being uploaded: its first reading gave digest {digest}, "
        f"the second {found}. Nothing was published; upload it again when nobody writes to it."
    )
