"""One HTTP/1.1 connection as a proxy sees it: heads to read, bodies to hand on in pieces.

Rule: it understands only as much of HTTP as is needed to know where a head and a body end.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["TO_THE_END", "Gone", "Head", "Wire"]

# 2 GiB through this took 1.1 s of CPU in pieces of 1 MiB, 1.5 s of 256 KiB (2.5 and 3.2 with
# asyncio's streams, which copy twice more). Only what is used of it takes memory.
_PIECE = 2**20

_HEAD_LIMIT = 64 * 2**10

_CHUNKED, TO_THE_END = -1, -2

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: on, 0 s: close() sends RST


class Gone(Exception):
    """A side has ended the connection, or a fault has."""


class Head:
    """The first line and the fields of a request or an answer."""

    def __init__(self, raw: bytes) -> None:
        first, *lines = raw[:-4].split(b"\r\n")
        self.raw = raw
        self.words = first.decode("latin-1").split(" ", 2)
        if len(self.words) < 2:
            raise Gone(f"not HTTP: {first!r}")
        self._fields: dict[bytes, str] = {}
        for line in lines:
            name, _, value = line.partition(b":")
            self._fields[name.lower()] = value.strip().decode("latin-1")

    def field(self, name: bytes) -> str:
        return self._fields.get(name, "")

    def without(self, name: bytes) -> bytes:
        """Return the head as it would be without this field."""
        lines = self.raw.split(b"\r\n")
        return b"\r\n".join(x for x in lines if x.partition(b":")[0].lower() != name.lower())

    @property
    def length(self) -> int:
        """The length of the body, or one of the two other ways to end it."""
        if "chunked" in self.field(b"transfer-encoding").lower():
            return _CHUNKED
        length = self.field(b"content-length")
        if length:
            return int(length)
        return TO_THE_END if self.words[0].startswith("HTTP/") else 0

    @property
    def waits(self) -> bool:
        """Whether the body follows only after a "100 Continue" (or a second without it)."""
        return "100-continue" in self.field(b"expect").lower()

    @property
    def closes(self) -> bool:
        return "close" in self.field(b"connection").lower() or "HTTP/1.0" in self.words


class Wire:
    """One connection, and what has been read ahead from it."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = connection
        self._loop = asyncio.get_running_loop()
        self._bytes = bytearray(_PIECE)
        self._view = memoryview(self._bytes)
        self._start = self._end = 0

    async def send(self, piece: bytes | memoryview) -> None:
        await self._loop.sock_sendall(self.socket, piece)

    async def until(self, mark: bytes) -> bytes:
        """Return all up to and with this mark; empty if the other side has ended in good order."""
        while (at := self._bytes.find(mark, self._start, self._end)) < 0:
            if self._end - self._start > _HEAD_LIMIT:
                raise Gone(f"no {mark!r} in {_HEAD_LIMIT} bytes")
            if not await self._more():
                if self._start != self._end:
                    raise Gone("ended in a head")
                return b""
        taken = bytes(self._view[self._start : at + len(mark)])
        self._start = at + len(mark)
        return taken

    async def body(self, length: int) -> AsyncIterator[tuple[bytes | memoryview, bool]]:
        """Yield the body's pieces, each with whether it is the last.

        What is content is a view, good until the next step; what is framing is bytes.
        """
        if length == _CHUNKED:
            size = -1
            while size:
                line = await self._line()
                size = int(line.split(b";")[0], 16)
                yield line, False
                async for piece in self._content(size):
                    yield piece, False
                if size:
                    yield await self._line(), False
            while (line := await self._line()) != b"\r\n":
                yield line, False
            yield line, True
        elif length == TO_THE_END:
            while self._start != self._end or await self._more():
                yield self._take(_PIECE), False
            yield b"", True
        else:
            async for piece in self._content(length):
                length -= len(piece)
                yield piece, not length

    def usable(self) -> bool:
        """Tell whether the other side, asked for nothing, has neither spoken nor ended."""
        try:
            self.socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return self._start == self._end
        except OSError:
            return False
        return False

    def shut(self) -> None:
        """End both directions; who waits for this connection is woken."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def close(self, *, reset: bool = False) -> None:
        with contextlib.suppress(OSError):
            if reset:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.socket.close()

    async def _content(self, size: int) -> AsyncIterator[memoryview]:
        while size:
            if self._start == self._end and not await self._more():
                raise Gone("ended in a body")
            piece = self._take(size)
            size -= len(piece)
            yield piece

    async def _line(self) -> bytes:
        line = await self.until(b"\r\n")
        if not line:
            raise Gone("ended in a body")
        return line

    def _take(self, limit: int) -> memoryview:
        piece = self._view[self._start : min(self._end, self._start + limit)]
        self._start += len(piece)
        return piece

    async def _more(self) -> bool:
        if self._start:
            kept = bytes(self._view[self._start : self._end])
            self._view[: len(kept)] = kept
            self._start, self._end = 0, len(kept)
        size = await self._loop.sock_recv_into(self.socket, self._view[self._end :])
        self._end += size
        return size > 0
