"""What callers hand in, as bytes that can be read at any offset, twice and by several threads.

Rule 1: the stream stays the caller's: it is read from where it stands, never closed, and left at
its end when the upload is done.
Rule 2: nothing that a stream says about its length is believed; only `b""` is the end.
Rule 3: what goes out is hashed on its way, and its last piece is handed over only if the digest
agrees: a request whose last piece is withheld stores nothing.
"""

from __future__ import annotations

import io
import os
import stat
import tempfile
import threading
from typing import TYPE_CHECKING, BinaryIO, cast

from casartifacts.buffers import BUFFER_SIZE
from casartifacts.digest import Hasher
from casartifacts.errors import ContentChanged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Outgoing", "Range", "Source", "pieces", "spooled", "take"]


class Source:
    """The bytes of a caller's stream, from where it stood to its end."""

    def __init__(self, body: BinaryIO) -> None:
        self._body = body
        self._base = body.tell()
        self._lock = threading.Lock()

    def read_at(self, offset: int, length: int) -> bytes:
        """Return bytes from an offset, at least one unless there are no more."""
        with self._lock:
            self._body.seek(self._base + offset)
            return _checked(self._body.read(length))[:length]

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Read bytes from an offset into a buffer; returns how many, 0 only at the end."""
        piece = self.read_at(offset, len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)

    def stamp(self) -> tuple[int, ...]:
        """Return what changes when the bytes do, as far as that can be told without reading."""
        return ()

    def known_size(self) -> int | None:
        """Return how many bytes there seem to be; None where only reading them tells."""
        return None

    def size(self) -> int:
        """Return how many bytes there are; they are read to count them, where nobody knows."""
        counted = 0
        while piece := self.read_at(counted, BUFFER_SIZE):
            counted += len(piece)
        return counted

    def finish(self, size: int) -> None:
        """Leave the caller's stream at its end."""
        self._body.seek(self._base + size)

    def close(self) -> None:
        """Drop what was copied of the caller's stream, if anything was."""


class _FileSource(Source):
    """A real file: read by offset, without the caller's position and without a lock."""

    def read_at(self, offset: int, length: int) -> bytes:
        return os.pread(self._body.fileno(), length, self._base + offset)

    def read_into(self, buffer: memoryview, offset: int) -> int:
        if not hasattr(os, "preadv"):  # macOS before 11
            return super().read_into(buffer, offset)
        return os.preadv(self._body.fileno(), [buffer], self._base + offset)

    def stamp(self) -> tuple[int, ...]:
        status = os.fstat(self._body.fileno())
        return status.st_size, status.st_mtime_ns

    def known_size(self) -> int:
        return max(0, os.fstat(self._body.fileno()).st_size - self._base)

    def size(self) -> int:
        return self.known_size()


class _SpooledSource(Source):
    """A copy of a body that cannot seek, which has been read to its end."""

    def finish(self, size: int) -> None:
        pass  # it is there already

    def close(self) -> None:
        self._body.close()


def take(body: BinaryIO) -> Source:
    """Make what a caller handed in readable at any offset.

    Raises:
        TypeError: It is not a binary stream.
    """
    if not callable(getattr(body, "read", None)):
        raise TypeError(
            f"content_body must be a file opened in binary mode or another object with read(), "
            f"got {body!r}"
        )
    readable = getattr(body, "readable", None)
    if readable is not None and not readable():
        raise TypeError(f"content_body must be opened for reading, got {body!r}")
    seekable = getattr(body, "seekable", None)
    if seekable is None or not seekable():
        return _SpooledSource(spooled(body))
    # Exactly these types: gzip and other wrappers hand out the descriptor of something else.
    if hasattr(os, "pread") and type(body) in {io.FileIO, io.BufferedReader, io.BufferedRandom}:
        raw = body if isinstance(body, io.FileIO) else body.raw  # type: ignore[attr-defined]
        if type(raw) is io.FileIO and stat.S_ISREG(os.fstat(raw.fileno()).st_mode):
            if type(body) is io.BufferedRandom:
                body.flush()
            return _FileSource(body)
    return Source(body)


def spooled(body: BinaryIO) -> BinaryIO:
    """Return a copy of a body, read to its end, at its start: above 1 MiB it lies on disk.

    Raises:
        TypeError: As `pieces`.
    """
    spool = tempfile.SpooledTemporaryFile(max_size=BUFFER_SIZE)  # noqa: SIM115 -- its user closes it
    try:
        for piece in pieces(body):  # writelines() would keep all of them in memory first
            spool.write(piece)
    except BaseException:
        spool.close()
        raise
    spool.seek(0)
    return cast("BinaryIO", spool)


def pieces(body: BinaryIO) -> Iterator[bytes]:
    """Yield what a body still has to give.

    Raises:
        TypeError: It gives text, or None: a stream that has nothing yet is not at its end.
    """
    while piece := _checked(body.read(BUFFER_SIZE)):
        yield piece


def _checked(piece: object) -> bytes:
    if not isinstance(piece, bytes | bytearray | memoryview):
        raise TypeError(
            "content_body must be opened in binary mode, and wait for its bytes: read() returned "
            f"{type(piece).__name__}"
        )
    return bytes(piece)


class Range(io.RawIOBase):
    """A range of a source as a stream that can be read again from its beginning.

    Args:
        read_at: Returns bytes from an offset of the source.
        start, length: The range, in bytes.
    """

    def __init__(self, read_at: Callable[[int, int], bytes], *, start: int, length: int) -> None:
        self._read_at = read_at
        self._start = start
        self._length = length
        self._position = 0

    def __len__(self) -> int:
        return self._length

    def readable(self) -> bool:
        """Say yes."""
        return True

    def seekable(self) -> bool:
        """Say yes."""
        return True

    def tell(self) -> int:
        """Return the position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a position in bytes."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Read into a buffer, for callers that wrap this in a BufferedReader."""
        piece = self.read(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)

    def read(self, size: int | None = -1) -> bytes:
        """Return the next bytes.

        Raises:
            ContentChanged: The source has become shorter.
        """
        left = self._length - self._position
        wanted = left if size is None or size < 0 else min(size, left)
        if wanted <= 0:
            return b""
        piece = self._read_at(self._start + self._position, wanted)
        if not piece:
            raise self._changed()
        self._position += len(piece)
        return piece

    def _changed(self) -> ContentChanged:
        return ContentChanged(
            f"The content changed while it was being uploaded: bytes {self._start} to "
            f"{self._start + self._length} are no longer what they were a moment ago. "
            "Nothing was published; upload it again when nobody writes to it."
        )


class Outgoing(Range):
    """A range of a source on its way out; every attempt begins at 0 and is checked anew.

    Args:
        read_at, start, length: As for `Range`.
        digest: What the range was when it was planned.
    """

    def __init__(
        self, read_at: Callable[[int, int], bytes], *, start: int, length: int, digest: str
    ) -> None:
        super().__init__(read_at, start=start, length=length)
        self._digest = digest
        self._hashed = 0
        self._hasher = Hasher()

    def read(self, size: int | None = -1) -> bytes:
        """Return the next bytes.

        Raises:
            ContentChanged: What was read is not what was planned; the last piece is withheld.
        """
        if self._position == 0:
            self._hashed, self._hasher = 0, Hasher()
        elif self._position != self._hashed:
            raise io.UnsupportedOperation("a body on its way out is read from its beginning")
        piece = super().read(size)
        self._hasher.update(piece)
        self._hashed = self._position
        if self._position == self._length and self._hasher.hexdigest() != self._digest:
            raise self._changed()
        return piece
