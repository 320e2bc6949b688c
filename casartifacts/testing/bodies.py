"""Streams that behave as badly as the contracts allow, for whoever must read them.

Rule 1: what arrives must be `content` from `start` to its end, whatever `seek` and `tell` say.
Rule 2: a stream knows no store, and no test framework.
"""

from __future__ import annotations

import io
import os
import random
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed import WriteableBuffer

    # For type checkers what `io.FileIO` is for them too: a raw stream that passes as BinaryIO.
    class _RawStream(io.RawIOBase, BinaryIO):
        def read(self, size: int = -1, /) -> bytes: ...

else:
    _RawStream = io.RawIOBase

__all__ = ["Body", "ContractBroken", "OnlyRead", "Stream"]


class ContractBroken(AssertionError):
    """Something does not do what `casartifacts.protocols` promises."""


class Stream(_RawStream):
    """Reads `content` forward, as badly as asked for.

    Args:
        content: All the bytes.
        start: Where the stream stands at first.
        most: Each read gives 1 to `most` bytes (drawn with a fixed seed); None gives all asked for.
        claims: The length that `seek` to the end claims; None is honest.
        seekable: Whether it can seek and tell at all.
        fails_at: From this offset on every read raises; `len(content)` raises instead of the last
            `b""`.
        failure: Makes the error that those reads raise.
        on_read: Called before every read, also before the one that finds the end.
    """

    def __init__(
        self,
        content: bytes,
        *,
        start: int = 0,
        most: int | None = None,
        claims: int | None = None,
        seekable: bool = True,
        fails_at: int | None = None,
        failure: Callable[[], BaseException] = lambda: OSError("planned: this stream fails"),
        on_read: Callable[[], object] = lambda: None,
    ) -> None:
        self._content = content
        self._position = start
        self._most = most
        self._claims = len(content) if claims is None else claims
        self._seekable = seekable
        self._fails_at = fails_at
        self._failure = failure
        self._on_read = on_read
        self._draw = random.Random(len(content))  # noqa: S311 -- the same pieces in every run

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill some of the buffer; 0 is the end. All other reads come through here."""
        self._on_read()
        if self._fails_at is not None and self._position >= self._fails_at:
            raise self._failure()
        room = memoryview(buffer).cast("B")
        wanted = len(room)
        if self._most is not None:
            wanted = min(wanted, self._draw.randint(1, self._most))
        if self._fails_at is not None:
            wanted = min(wanted, self._fails_at - self._position)
        piece = self._content[self._position : self._position + wanted]
        room[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def seekable(self) -> bool:
        """Say what it was made with."""
        return self._seekable

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Go where asked; the end is where the stream claims it to be."""
        if not self._seekable:
            raise io.UnsupportedOperation("planned: this stream cannot seek")
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._claims}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """Say where the stream stands."""
        return self.seek(0, os.SEEK_CUR)


class Body(Stream):
    """A stream that belongs to somebody else: closing it is an error, and is counted."""

    closings = 0

    def close(self) -> None:
        """Refuse: the body stays the caller's."""
        self.closings += 1
        raise ContractBroken(f"contract 6: the body stays the caller's, but {self!r} was closed")

    def __del__(self) -> None:
        """Do nothing: an ordinary stream would close itself here."""


class OnlyRead:
    """Has nothing but `read`, as the body of an HTTP answer may."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def read(self, size: int = -1, /) -> bytes:
        """Read on."""
        return self._stream.read(size)
