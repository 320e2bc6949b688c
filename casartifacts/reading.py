"""Bytes out of a backend, verified before anybody sees them.

Rule 1: a piece leaves only if its chunks have the digests of the manifest, the last one only if the
whole has the digest of the content.
Rule 2: a piece that reads wrong is read once more; twice wrong is `CorruptArtifact`.
Rule 3: a name that is not live is looked for in the trash and read there, in place: readers write
nothing and work with read-only credentials.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, TypeVar

from casartifacts import errors, names
from casartifacts.digest import Hasher, digest_of
from casartifacts.errors import CorruptArtifact
from casartifacts.manifest import Manifest
from casartifacts.parallel import in_order, start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

    from casartifacts.protocols import Backend

__all__ = ["PieceReader", "content", "find", "read", "whole"]

_T = TypeVar("_T")

# 4 MiB a range, four of them under way: 20 MiB of memory.
_PIECE_SIZE = 4 * 2**20
_AHEAD = 4

# No manifest is larger: 40 bytes per chunk of at least 64 KiB would be a content of 1.6 TiB.
_LARGEST_RECORD = 2**30


@dataclass(frozen=True, slots=True)
class _Piece:
    """A stretch of a content: its first chunk, how many, where it begins, and its length."""

    chunk: int
    count: int
    offset: int
    length: int


def find(backend: Backend, name: str) -> str | None:
    """Return where these bytes lie: under their own name, or in the trash; None if nowhere."""
    if backend.stat(name) is not None:
        return name
    try:
        runs = sorted(backend.list_folders(names.TRASH), reverse=True)
    except io.UnsupportedOperation:
        return None  # a place that cannot list has no trash
    for run in runs:
        if backend.stat(trashed := names.trashed(run, name)) is not None:
            return trashed
    return None


def read(backend: Backend, name: str, *, start: int = 0, length: int = _LARGEST_RECORD) -> bytes:
    """Read a range of what is under a name, live or in the trash.

    Raises:
        ArtifactNotFound: It is in neither.
    """
    try:
        return backend.read_range(name, start, length)
    except errors.ArtifactNotFound:
        place = find(backend, name)
        if place is None:
            raise
        return backend.read_range(place, start, length)


def content(backend: Backend, *, digest: str, size: int, is_small: bool) -> Iterator[bytes]:
    """Yield the bytes of a content in order, verified.

    Raises:
        CorruptArtifact: They read wrong twice, or are not there.
    """
    if is_small:
        yield _twice(lambda: _small_content(backend, digest, size))
        return
    pieces = _Pieces(backend, _manifest(backend, digest, size))
    hasher = Hasher()
    done = 0
    for piece in in_order(pieces.read, pieces, ahead=_AHEAD):
        hasher.update(piece)
        done += len(piece)
        if done == size and hasher.hexdigest() != digest:
            raise CorruptArtifact(
                f"The chunks of content {digest} are as its manifest says, but together they have "
                f"the digest {hasher.hexdigest()}: its manifest is wrong. Nothing was delivered."
            )
        yield piece


def whole(backend: Backend, *, digest: str, size: int, is_small: bool) -> Iterator[bytes]:
    """Yield the bytes of a content in order; they are verified only when this ends.

    For callers that publish nothing before: one digest instead of two, beside their writing.

    Raises:
        CorruptArtifact: They are wrong, or are not there.
    """
    if is_small:
        yield from content(backend, digest=digest, size=size, is_small=True)
        return
    pieces = _Pieces(backend, _manifest(backend, digest, size))
    hasher = Hasher()
    hashing: Future[object] | None = None
    for piece in in_order(pieces.read_unverified, pieces, ahead=_AHEAD):
        if hashing is not None:
            hashing.result()
        hashing = start(partial(hasher.update, piece))
        yield piece
    if hashing is not None:
        hashing.result()
    if hasher.hexdigest() != digest:
        raise CorruptArtifact(f"Content {digest} reads as {hasher.hexdigest()} from {backend!r}")


def _manifest(backend: Backend, digest: str, size: int) -> Manifest:
    name = names.manifest(digest)
    return _twice(lambda: Manifest.decode(_whole(backend, name), digest=digest, size=size))


class PieceReader(io.RawIOBase):
    """A forward reader over pieces of bytes; wrap it in `io.BufferedReader`."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
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
            self._rest = memoryview(piece)
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


class _Pieces:
    """The pieces of a content, and how one of them is read."""

    def __init__(self, backend: Backend, manifest: Manifest) -> None:
        self._backend = backend
        self._manifest = manifest
        # Where in the content each segment begins.
        self._starts = [0, *accumulate(part.length for part in manifest.segments)]

    def __iter__(self) -> Iterator[_Piece]:
        first = offset = length = 0
        for chunk, chunk_length in enumerate(self._manifest.chunks.lengths):
            if length and length + chunk_length > _PIECE_SIZE:
                yield _Piece(first, chunk - first, offset, length)
                first, offset, length = chunk, offset + length, 0
            length += chunk_length
        yield _Piece(first, len(self._manifest.chunks) - first, offset, length)

    def read(self, piece: _Piece) -> bytes:
        """Read a piece and verify its chunks."""
        return _twice(lambda: self._read_once(piece))

    def read_unverified(self, piece: _Piece) -> bytes:
        """Read a piece as it is."""
        return b"".join(self._ranges(piece))

    def _read_once(self, piece: _Piece) -> bytes:
        found = self.read_unverified(piece)
        at = 0
        for chunk in range(piece.chunk, piece.chunk + piece.count):
            length, expected = self._manifest.chunks[chunk]
            got = Hasher(memoryview(found)[at : at + length]).digest()
            if got != expected:
                raise CorruptArtifact(
                    f"Bytes {piece.offset + at} to {piece.offset + at + length} of content "
                    f"{self._manifest.digest} read wrong from {self._backend!r}: expected digest "
                    f"{expected.hex()}, got {got.hex()}. Nothing of them was delivered; upload the "
                    "content again or restore its blobs from a copy."
                )
            at += length
        return found

    def _ranges(self, piece: _Piece) -> Iterator[bytes]:
        at, end = piece.offset, piece.offset + piece.length
        index = bisect_right(self._starts, at) - 1
        while at < end:
            part = self._manifest.segments[index]
            inside = at - self._starts[index]
            length = min(part.length - inside, end - at)
            name = names.blob(self._manifest.blobs[part.blob][0])
            yield _whole(self._backend, name, start=part.start + inside, length=length)
            at += length
            index += 1


def _small_content(backend: Backend, digest: str, size: int) -> bytes:
    # One byte more than there should be: a longer file is wrong too.
    found = _whole(backend, names.blob(digest), length=size + 1)
    if (got := digest_of(found)) != digest:
        raise CorruptArtifact(
            f"Content {digest} ({size} bytes) reads wrong from {backend!r}: got {len(found)} bytes "
            f"with digest {got}. Nothing was delivered; upload it again or restore its blob "
            f"{names.blob(digest)} from a copy."
        )
    return found


def _whole(backend: Backend, name: str, *, start: int = 0, length: int = _LARGEST_RECORD) -> bytes:
    try:
        return read(backend, name, start=start, length=length)
    except errors.ArtifactNotFound as error:
        raise CorruptArtifact(
            f"{name} is neither live nor in the trash of {backend!r}, although a ref needs it. "
            "Upload the content again or restore that name from a copy."
        ) from error


def _twice(attempt: Callable[[], _T]) -> _T:
    try:
        return attempt()
    except CorruptArtifact:
        return attempt()
