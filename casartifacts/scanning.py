"""Reading a source to know it: its digest, and its chunks.

Rule 1: the chunks are those of the bytes that the digest is of: both come from the same buffers.
Rule 2: a source may have another size at its end than was said; what was read counts.
"""

from __future__ import annotations

from array import array
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from casartifacts.buffers import BUFFER_SIZE, new_buffer
from casartifacts.chunking import Cutter
from casartifacts.cutpoints import cut_points
from casartifacts.digest import Hasher
from casartifacts.manifest import ChunkTable
from casartifacts.parallel import Beside
from casartifacts.trail import Cuts, Trail

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casartifacts.bodies import Source
    from casartifacts.chunking import ChunkerParameters

__all__ = ["Scan", "agrees", "cut", "read"]

# Most small contents end in the first piece that is read, and making room for a MiB costs more than
# all the rest of their upload.
_FIRST_SIZE = 2**16

# 4 MiB, or two of the longest chunks: large enough that the work on it hides the cost of handing it
# to a thread. 256 MiB in pieces of 1, 2, 4 and 8 MiB are read for their digest in 81, 67, 59 and 62
# ms. But room must be made for two, which takes 0.3 ms per MiB: what is small has smaller ones.
_WINDOW_SIZE = 4 * 2**20
_FEWEST_WINDOWS = 6

# How many chunks are compared before a file is taken for one that is known.
_COMPARED = 4


class Scan(NamedTuple):
    """What was read: digest, size in bytes, all of a small content, and the cuts if asked for."""

    digest: str
    size: int
    small: bytes | None = None
    cuts: Cuts | None = None


def read(source: Source, *, small_limit: int) -> Scan:
    """Read a source for its digest alone; the bytes of one up to the limit are kept."""
    hasher = Hasher()
    head = bytearray()
    size = 0
    hashing = Beside()
    buffers = [new_buffer(_FIRST_SIZE)]
    window_size = (source.known_size() or 0) // _FEWEST_WINDOWS
    window_size = max(BUFFER_SIZE, min(_WINDOW_SIZE, window_size))
    with hashing:
        while count := source.read_into(buffers[0], size):
            piece = buffers[0][:count]
            size += count
            if size <= small_limit:
                head += piece
            if count < window_size:  # the first piece, or the last: no thread is worth it
                hashing.end()
                hasher.update(piece)
            else:
                hashing.begin(partial(hasher.update, piece))
                buffers.reverse()
            if len(buffers) == 1 and count == _FIRST_SIZE:
                # Two in turn: while one is hashed, the other is filled.
                buffers = [new_buffer(window_size) for _ in range(2)]
        hashing.end()
    return Scan(hasher.hexdigest(), size, bytes(head) if size <= small_limit else None)


def cut(
    source: Source, *, size: int, chunker: ChunkerParameters, known: Sequence[Cuts] = ()
) -> Scan:
    """Read a source for its digest and its chunks.

    One thread reads and finds the cuts, one hashes the whole, one hashes the chunks.

    Args:
        source: What is read.
        size: Its size in bytes, as far as anybody knows.
        chunker: How it is cut.
        known: Contents that were cut so by this process: where this one is as they are, the ends
            of its chunks are not looked for.
    """
    points = cut_points(source.read_at, size, least=chunker.minimum)
    trail = Trail(known)
    cutter = Cutter(chunker, trail, points)
    content = Hasher()
    lengths: array[int] = array("I")
    digests = bytearray()

    def hash_chunks(window: memoryview, cuts: list[int]) -> None:
        at = 0
        for length in cuts:
            digests.extend(Hasher(window[at : at + length]).digest())
            at += length
        lengths.extend(cuts)

    whole = Beside()
    parts = Beside()
    window_size = max(min(_WINDOW_SIZE, size + 1), 2 * chunker.maximum)
    # Two in turn: while one is hashed, the other is filled.
    buffers = [new_buffer(window_size) for _ in range(2)]
    rest = memoryview(b"")
    done = 0
    is_last = False
    with whole, parts:
        while not is_last:
            buffers.reverse()
            window = buffers[0]
            window[: len(rest)] = rest
            filled = len(rest)
            while filled < window_size and (
                count := source.read_into(window[filled:], done + filled)
            ):
                filled += count
            is_last = filled < window_size
            cuts = cutter.cut(window[:filled], is_last=is_last)
            ready = sum(cuts)
            whole.begin(partial(content.update, window[:ready]))
            parts.begin(partial(hash_chunks, window, cuts))
            rest = window[ready:filled]
            done += ready
        whole.end()
        parts.end()
    found = trail.cuts(ChunkTable(lengths, bytes(digests)))
    return Scan(content.hexdigest(), done, None, found)


def agrees(source: Source, chunks: ChunkTable) -> bool:
    """Tell whether a few chunks of a source are those of a content, so that it is likely the same.

    What is new differs in most of its chunks; what is shifted differs in all.
    """
    wanted = {len(chunks) * part // _COMPARED for part in range(_COMPARED)} | {len(chunks) - 1}
    offset = 0
    for index, length in enumerate(chunks.lengths):
        if index in wanted:
            found = new_buffer(length)
            count = source.read_into(found, offset)
            if count < length or Hasher(found).digest() != chunks[index][1]:
                return False
        offset += length
    return True
