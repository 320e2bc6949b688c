"""Bytes out of a backend, verified before anybody sees them.

Rule 1: a piece leaves only if its chunks have the digests of the manifest, the last one only if the
whole has the digest of the content.
Rule 2: a piece that reads wrong is read once more; twice wrong is `CorruptArtifact`.
Rule 3: a name that is not live is looked for in the trash and read there, in place: readers write
nothing and work with read-only credentials.
Rule 4: pieces are read into a few buffers that are used again and again: memory is bounded by what
is under way, and its pages are touched once (the first touch costs more than the reading).
"""

from __future__ import annotations

import io
from bisect import bisect_right
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import accumulate
from queue import SimpleQueue
from typing import TYPE_CHECKING, BinaryIO, Protocol, TypeVar

from casartifacts import errors, files, names
from casartifacts.buffers import BUFFER_SIZE, new_buffer
from casartifacts.digest import Hasher, digest_of
from casartifacts.errors import CorruptArtifact
from casartifacts.manifest import Manifest
from casartifacts.matching import Found, found
from casartifacts.parallel import WORKERS, in_order

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

    from casartifacts.manifest import ChunkTable
    from casartifacts.protocols import Backend

__all__ = ["Near", "PieceReader", "Target", "bring", "content", "record"]

_T = TypeVar("_T")

# A piece ends with the chunk that makes it at least so long, or with its segment. Near by it stays
# in the processor's cache while it is read, hashed and written, and more of them at once would wait
# for each other at the file they write to.
_PIECE_SIZE = 2 * 2**20
_AHEAD = 3

# Elsewhere a request costs a round trip: for a reader there are 20 MiB on their way; to a file go a
# few large requests, streamed, so that their memory is that of their buffers.
_REMOTE_PIECE_SIZE = 4 * 2**20
_STREAM_SIZE = 32 * 2**20

# Most records are smaller, and a reader makes room for all that it is asked for.
_RECORD_PIECE_SIZE = 2**16

# No record is larger: 40 bytes per chunk of 96 KiB would be a content of 2.4 TiB.
_LARGEST_RECORD = 2**30


@dataclass(frozen=True, slots=True)
class _Piece:
    """A stretch of a content: its first chunk, how many, where it begins, and its length.

    `is_here` says that the target has it already.
    """

    chunk: int
    count: int
    offset: int
    length: int
    is_here: bool = False


def record(backend: Backend, name: str, *, most: int = _LARGEST_RECORD) -> bytes:
    """Return all that is under a live name, or its first `most` bytes and one more.

    Raises:
        ArtifactNotFound: There is nothing.
    """
    pieces = []
    with closing(backend.open_reader(name)) as reader:
        left = most + 1
        while left > 0 and (piece := reader.read(min(left, _RECORD_PIECE_SIZE))):
            pieces.append(piece)
            left -= len(piece)
    return b"".join(pieces)


def content(backend: Backend, *, digest: str, size: int, is_small: bool) -> Iterator[memoryview]:
    """Yield the bytes of a content in order, verified; each piece is good until the next.

    Raises:
        CorruptArtifact: They read wrong twice, or are not there.
    """
    if is_small:
        yield memoryview(_small_content(backend, digest, size))
        return
    pieces = _Pieces(backend, _manifest(backend, digest, size))
    hasher = Hasher()
    done = 0
    for piece in pieces.fetched(pieces.read_verified):
        hasher.update(piece)
        done += len(piece)
        if done == size and hasher.hexdigest() != digest:
            raise CorruptArtifact(
                f"The chunks of content {digest} are as its manifest says, but together they have "
                f"the digest {hasher.hexdigest()}: its manifest is wrong. Nothing was delivered."
            )
        yield piece


class Target(Protocol):
    """A file that is being filled."""

    def write_at(self, piece: memoryview, offset: int) -> None:
        """Write bytes from an offset; called by several threads."""
        ...

    def read_at(self, buffer: memoryview, offset: int) -> int:
        """Read what was written back into a buffer; returns how much there was."""
        ...


@dataclass(frozen=True, slots=True)
class Near:
    """Bytes near by that a content has too, as far as anybody knows.

    Attributes:
        read_at: Reads into a buffer from an offset there; returns how many bytes there were.
        chunks: The chunks of the content that lies there; None if it is the same one, in part.
        extents: Which part, as begin and end in bytes.
    """

    read_at: Callable[[memoryview, int], int]
    chunks: ChunkTable | None = None
    extents: Sequence[tuple[int, int]] = ()

    def runs(self, chunks: ChunkTable) -> Sequence[Found]:
        """Return where stretches of a content with these chunks lie."""
        if self.chunks is None:
            return [Found(begin, end - begin, 0, begin) for begin, end in self.extents]
        return found(chunks, [self.chunks])


def bring(
    backend: Backend,
    target: Target,
    *,
    digest: str,
    size: int,
    is_small: bool,
    report: Callable[[int], object],
    near: Iterable[Near] = (),
) -> Manifest | None:
    """Write the bytes of a content to a file, in any order; returns its manifest if it has one.

    They are verified when this returns, so nothing of them is published before: one digest instead
    of two. What reads wrong is brought once more, chunk by chunk, which says where it is wrong.

    Chunks that are found `near` are taken from there, each after it was verified. `report` is
    called with how many bytes are there.

    Raises:
        CorruptArtifact: They read wrong twice, or are not there.
    """
    if is_small:
        target.write_at(memoryview(_small_content(backend, digest, size)), 0)
        report(size)
        return None
    manifest = _manifest(backend, digest, size)
    hasher = Hasher()
    done = 0
    has = bytearray(len(manifest.chunks))
    for each in near:
        _take(manifest, target, each, has)
    brought = _streamed if backend.remote else _copied
    with suppress(CorruptArtifact), closing(brought(backend, manifest, target, has)) as pieces:
        for piece in pieces:
            hasher.update(piece)
            done += len(piece)
            report(done)
    if hasher.hexdigest() == digest:
        return manifest
    done = 0
    for piece in content(backend, digest=digest, size=size, is_small=False):
        target.write_at(piece, done)
        done += len(piece)
        report(done)
    return manifest


def _take(manifest: Manifest, target: Target, near: Near, has: bytearray) -> None:
    """Copy the chunks that are near by and right, and note which."""
    runs = iter(near.runs(manifest.chunks))
    run = next(runs, None)
    buffer = new_buffer(max(manifest.chunks.lengths))
    offset = 0
    for chunk, length in enumerate(manifest.chunks.lengths):
        while run is not None and run.offset + run.length < offset + length:
            run = next(runs, None)
        if run is None:
            return
        if not has[chunk] and run.offset <= offset:
            piece = buffer[:length]
            try:
                count = near.read_at(piece, run.there + offset - run.offset)
            except OSError:
                return  # what is near may fail without harm
            if count == length and Hasher(piece).digest() == manifest.chunks[chunk][1]:
                target.write_at(piece, offset)
                has[chunk] = True
        offset += length


def _copied(
    backend: Backend, manifest: Manifest, target: Target, has: bytearray
) -> Generator[memoryview]:
    """Read, write and yield the bytes from the same few buffers."""
    pieces = _Pieces(backend, manifest, has=has)

    def copy(piece: _Piece, buffer: memoryview) -> None:
        if piece.is_here:
            target.read_at(buffer, piece.offset)
        else:
            pieces.read(piece, buffer)
            target.write_at(buffer, piece.offset)

    yield from pieces.fetched(copy)


def _streamed(
    backend: Backend, manifest: Manifest, target: Target, has: bytearray
) -> Generator[memoryview]:
    """Let large pieces stream to the file side by side; yield the bytes as they lie in it."""
    pieces = _Pieces(backend, manifest, has=has, least=_STREAM_SIZE)

    def stream(piece: _Piece) -> _Piece:
        if piece.is_here:
            return piece
        buffer = new_buffer(BUFFER_SIZE)
        for part in pieces.parts(piece):
            with part.open() as reader:
                at = 0
                while at < part.length:
                    view = buffer[: part.length - at]
                    part.check(at + files.fill(reader, view), at + len(view))
                    target.write_at(view, part.offset + at)
                    at += len(view)
        return piece

    buffer = new_buffer(BUFFER_SIZE)
    for piece in in_order(stream, pieces):
        at, end = piece.offset, piece.offset + piece.length
        while at < end and (count := target.read_at(buffer[: end - at], at)):
            yield buffer[:count]
            at += count


def _manifest(backend: Backend, digest: str, size: int) -> Manifest:
    name = names.manifest(digest)
    return _twice(
        lambda: Manifest.decode(
            _needed(backend, name, lambda place: record(backend, place)), digest=digest, size=size
        )
    )


class PieceReader(io.RawIOBase):
    """A forward reader over pieces of bytes; wrap it in `io.BufferedReader`."""

    def __init__(self, pieces: Iterator[memoryview]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")
        self._error: Exception | None = None

    def readable(self) -> bool:
        """Say yes."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill a buffer as far as the current piece goes."""
        if self._error is not None:
            raise self._error  # an end after an error would pass for the end of the content
        while not self._rest:
            try:
                piece = next(self._pieces, None)
            except Exception as error:
                self._error = error
                raise
            if piece is None:
                return 0
            self._rest = piece
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def close(self) -> None:
        """End what is being read ahead."""
        if not self.closed:
            close: Callable[[], None] | None = getattr(self._pieces, "close", None)
            if close is not None:
                close()
        super().close()


@dataclass(frozen=True, slots=True)
class _Part:
    """A range of a blob: where in the blob and where in the content it begins, and its length."""

    backend: Backend
    name: str
    start: int
    offset: int
    length: int

    def open(self) -> BinaryIO:
        """Open the range, wherever its blob lies."""
        return _needed(
            self.backend,
            self.name,
            lambda place: self.backend.open_range(place, self.start, self.length),
        )

    def check(self, count: int, wanted: int) -> None:
        """Raise unless as many bytes came as were wanted."""
        if count != wanted:
            raise CorruptArtifact(
                f"{self.name} in {self.backend!r} ends at byte {self.start + count}, but a content "
                f"needs it up to byte {self.start + self.length}. Nothing was delivered. "
                f"{_advice(self.name)}"
            )


class _Pieces:
    """The pieces of a content, and how one of them is read."""

    def __init__(
        self,
        backend: Backend,
        manifest: Manifest,
        *,
        has: bytearray | None = None,
        least: int | None = None,
    ) -> None:
        self._backend = backend
        self._manifest = manifest
        self._has = has or bytes(len(manifest.chunks))
        self._least = least or (_REMOTE_PIECE_SIZE if backend.remote else _PIECE_SIZE)
        self._ahead = WORKERS if backend.remote else _AHEAD
        # Where in the content each segment begins.
        self._starts = [0, *accumulate(part.length for part in manifest.segments)]

    def __iter__(self) -> Iterator[_Piece]:
        first = offset = length = 0
        ends = set(self._starts)
        has = self._has
        for chunk, chunk_length in enumerate(self._manifest.chunks.lengths):
            length += chunk_length
            end = offset + length
            is_last = chunk + 1 == len(has) or has[chunk + 1] != has[chunk]
            if length >= self._least or is_last or end in ends:
                yield _Piece(first, chunk + 1 - first, offset, length, bool(has[chunk]))
                first, offset, length = chunk + 1, end, 0

    def fetched(self, act: Callable[[_Piece, memoryview], None]) -> Generator[memoryview]:
        """Let `act` fill a buffer for each piece, some ahead; yield the buffers in order.

        Each is filled anew after the next one was asked for.
        """
        size = self._least + max(self._manifest.chunks.lengths)
        free: SimpleQueue[memoryview] = SimpleQueue()
        for _ in range(self._ahead + 1):
            free.put(new_buffer(size))

        def fetch(piece: _Piece) -> tuple[memoryview, int]:
            buffer = free.get_nowait()
            act(piece, buffer[: piece.length])
            return buffer, piece.length

        for buffer, length in in_order(fetch, self, ahead=self._ahead):
            yield buffer[:length]
            free.put(buffer)

    def parts(self, piece: _Piece) -> Iterator[_Part]:
        """Yield the ranges of blobs that make a piece."""
        at, end = piece.offset, piece.offset + piece.length
        index = bisect_right(self._starts, at) - 1
        while at < end:
            segment = self._manifest.segments[index]
            inside = at - self._starts[index]
            length = min(segment.length - inside, end - at)
            name = names.blob(self._manifest.blobs[segment.blob][0])
            yield _Part(self._backend, name, segment.start + inside, at, length)
            at += length
            index += 1

    def read(self, piece: _Piece, buffer: memoryview) -> None:
        """Read a piece as it is."""
        for part in self.parts(piece):
            with part.open() as reader:
                at = part.offset - piece.offset
                part.check(files.fill(reader, buffer[at : at + part.length]), part.length)

    def read_verified(self, piece: _Piece, buffer: memoryview) -> None:
        """Read a piece and verify its chunks."""
        _twice(lambda: self._read_once(piece, buffer))

    def _read_once(self, piece: _Piece, buffer: memoryview) -> None:
        self.read(piece, buffer)
        at = 0
        for chunk in range(piece.chunk, piece.chunk + piece.count):
            length, expected = self._manifest.chunks[chunk]
            got = Hasher(buffer[at : at + length]).digest()
            if got != expected:
                raise CorruptArtifact(
                    f"Bytes {piece.offset + at} to {piece.offset + at + length} of content "
                    f"{self._manifest.digest} read wrong from {self._backend!r}: expected digest "
                    f"{expected.hex()}, got {got.hex()}. Nothing of them was delivered. "
                    f"{_advice(*(part.name for part in self.parts(piece)))}"
                )
            at += length


def _small_content(backend: Backend, digest: str, size: int) -> bytes:
    return _twice(lambda: _small_content_once(backend, digest, size))


def _small_content_once(backend: Backend, digest: str, size: int) -> bytes:
    name = names.blob(digest)
    # A longer file is wrong too.
    found = _needed(backend, name, lambda place: record(backend, place, most=size))
    if (got := digest_of(found)) != digest:
        raise CorruptArtifact(
            f"Content {digest} ({size} bytes) reads wrong from {backend!r}: got {len(found)} bytes "
            f"with digest {got}. Nothing was delivered. {_advice(name)}"
        )
    return found


def _advice(*wrong: str) -> str:
    listed = " and ".join(wrong)
    return (
        f"Restore {listed} from a copy, or upload the content again: from this process at once, "
        "from another one after deleting what reads wrong"
        " (in a bucket its manifest too, if it has one)."
    )


def _needed(backend: Backend, name: str, read: Callable[[str], _T]) -> _T:
    """Read what a ref needs, where it is live, or else where it lies in the trash."""
    missing: Exception | None = None
    for place in _places(backend, name):
        try:
            return read(place)
        except errors.ArtifactNotFound as error:
            missing = error
    raise CorruptArtifact(
        f"{name} is neither live nor in the trash of {backend!r}, although a ref needs it. "
        "Upload the content again or restore that name from a copy."
    ) from missing


def _places(backend: Backend, name: str) -> Iterator[str]:
    yield name
    # A place that cannot list has no trash.
    with suppress(io.UnsupportedOperation):
        for run in sorted(backend.list_folders(names.TRASH), reverse=True):
            yield names.trashed(run, name)


def _twice(attempt: Callable[[], _T]) -> _T:
    try:
        return attempt()
    except CorruptArtifact:
        return attempt()
