"""A proxy between a client and one HTTP/1.1 server: it counts, slows down and breaks what passes.

Rule 1: heads are read, bodies are handed on piece by piece; memory does not grow with a body.
Rule 2: what a client may know has been counted: figures are exact as soon as its call returns.
Rule 3: nothing is retried or mended. A server that is away looks like a connection that is reset.
Rule 4: it runs in a thread of its own. Latency, bandwidth and faults may be changed from any other
at any time, and hold for requests that begin after it (bandwidth: from the next piece on).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import socket
import struct
import threading
import time
import weakref
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["Counts", "Exchange", "Fault", "Proxy"]

# 256 KiB: what a socket gives at once on Linux; larger pieces were no faster.
_PIECE = 256 * 2**10
_HEAD_LIMIT = 64 * 2**10

# How long a server that answered early is given to take the rest of the body.
_REST_SECONDS = 1.0

_TICK_SECONDS = 0.02

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: on, 0 s: close() sends RST


@dataclass(slots=True)
class Exchange:
    """One request and what came of it; `status` is None until, and unless, it was answered.

    `sent` and `received` are bytes of the two bodies as they are on the wire.
    """

    method: str
    target: str
    range: str | None
    status: int | None = None
    sent: int = 0
    received: int = 0


@dataclass(slots=True)
class Counts:
    """What has passed since the proxy was started or `reset`.

    Attributes:
        requests: How many by method, those that met a fault included.
        sent: Bytes from client to server, heads included.
        received: Bytes from server to client, heads included.
        sent_bodies: The part of `sent` that is bodies.
        received_bodies: The part of `received` that is bodies.
        connections: How many a client has opened.
        round_trips: The longest chain of requests of which each began after the one before it had
            been answered: what a link's latency is multiplied with.
        exchanges: The last ten thousand requests.
    """

    requests: Counter[str] = field(default_factory=Counter)
    sent: int = 0
    received: int = 0
    sent_bodies: int = 0
    received_bodies: int = 0
    connections: int = 0
    round_trips: int = 0
    exchanges: deque[Exchange] = field(default_factory=lambda: deque(maxlen=10_000))
    _answered: int = 0  # the longest chain that has been answered to its end


@dataclass(slots=True, eq=False)
class Fault:
    """What goes wrong, with which requests, and how often it has (`hits`).

    Attributes:
        kind: "reset" (RST), "cut" (an orderly end of the connection), "stall" (silence until the
            fault ends), "refuse" (answered with `status`; the server never hears of it), "garble"
            (one bit of the body's byte number `after` is flipped).
        side: Whose bytes: those of the request, or those of the answer.
        after: How many bytes of that body pass before it strikes. 0 on the side of the request:
            the server hears nothing. 0 on the side of the answer: the server has acted and
            answered, and the client hears nothing. A body that is shorter is no hit.
        status: What a refused request is answered with.
        code: The error's name in that answer, as S3 would give it.
        retry_after: The header of that name, in seconds.
        method: Only requests of this method.
        target: Only requests whose target (path and query) matches this pattern somewhere.
        skip: The first so many of these pass.
        times: How often it strikes at most.
        rate: With which probability it strikes.
    """

    kind: Literal["reset", "cut", "stall", "refuse", "garble"]
    side: Literal["request", "answer"] = "request"
    after: int = 0
    status: int = 503
    code: str = "SlowDown"
    retry_after: int | None = None
    method: str | None = None
    target: str = ""
    skip: int = 0
    times: int | None = None
    rate: float = 1.0
    hits: int = 0
    ended: bool = False
    _passed: int = 0
    _chosen: int = 0  # has struck, or is about to

    def end(self) -> None:
        """Strike no more; what is stalled by it is cut."""
        self.ended = True

    def __enter__(self) -> Fault:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def _choose(self, method: str, target: str, *, chance: float) -> bool:
        """Decide whether to strike this request; if so, it counts towards `times`."""
        if self.ended or (self.times is not None and self._chosen >= self.times):
            return False
        if self.method not in (None, method) or not re.search(self.target, target):
            return False
        self._passed += 1
        if self._passed <= self.skip or chance >= self.rate:
            return False
        self._chosen += 1
        return True


class Proxy:
    """Listens on the loopback at `url` and hands on to the server at `upstream` (plain HTTP).

    Attributes:
        url: What to give to the client.
        counts: What has passed; `reset()` begins anew.
        latency_seconds: By how much each answer is late, and the first request of a connection.
        bytes_per_second: What a link carries in each direction, all connections together.
    """

    def __init__(
        self,
        upstream: str,
        *,
        latency_seconds: float = 0.0,
        bytes_per_second: float | None = None,
        seed: int = 0,
    ) -> None:
        address = urlsplit(upstream)
        if address.scheme != "http" or address.hostname is None or address.port is None:
            raise ValueError(f"expected http://HOST:PORT to stand in front of, got {upstream!r}")
        self.upstream = (address.hostname, address.port)
        self.latency_seconds = latency_seconds
        self.bytes_per_second = bytes_per_second
        self.counts = Counts()
        self.sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._random = random.Random(seed)  # noqa: S311 -- chances, not secrets
        self._faults: tuple[Fault, ...] = ()
        self._free_at = {"request": 0.0, "answer": 0.0}
        self._bug: BaseException | None = None
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self._listener.setblocking(False)
        self.sockets.add(self._listener)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()
        _LIVE.add(self)

    def plan(self, fault: Fault) -> Fault:
        """Let this go wrong from now on, until `fault.end()`, or the end of a `with` over it."""
        self._faults = (*(old for old in self._faults if not old.ended), fault)
        return fault

    def reset(self) -> None:
        """Count from zero; what is under way still counts for the old `counts`."""
        self.counts = Counts()

    def close(self) -> None:
        """Cut all connections and end; may be called twice. An error of the proxy itself is raised.
        """
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()
        if self._bug is not None:
            bug, self._bug = self._bug, None
            raise bug

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        host, port = self.upstream
        return f"Proxy('http://{host}:{port}') at {self.url}"

    def choose(self, method: str, target: str) -> Fault | None:
        """Return the fault that is to strike this request, if any."""
        for fault in self._faults:
            if fault._choose(method, target, chance=self._random.random()):  # noqa: SLF001
                return fault
        return None

    async def pace(self, side: str, size: int) -> None:
        """Return when the link has carried that many bytes more."""
        if self.bytes_per_second:
            now = time.monotonic()
            self._free_at[side] = max(now, self._free_at[side]) + size / self.bytes_per_second
            await asyncio.sleep(self._free_at[side] - now)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._accept())

    async def _accept(self) -> None:
        links: set[asyncio.Task[None]] = set()

        def ended(link: asyncio.Task[None]) -> None:
            links.discard(link)
            if not link.cancelled() and link.exception() is not None:
                self._bug = link.exception()

        async def accept() -> None:
            while True:
                client, _ = await self._loop.sock_accept(self._listener)
                self.counts.connections += 1
                link = self._loop.create_task(_Link(self, client).run())
                links.add(link)
                link.add_done_callback(ended)

        accepting = self._loop.create_task(accept())
        await self._stop.wait()
        for task in (accepting, *links):
            task.cancel()
        await asyncio.gather(accepting, *links, return_exceptions=True)
        self._listener.close()


class _Gone(Exception):
    """A side has ended the connection, or a fault has."""


class _Head:
    """The first line and the fields of a request or an answer."""

    def __init__(self, raw: bytes) -> None:
        first, *lines = raw[:-4].split(b"\r\n")
        self.raw = raw
        self.words = first.decode("latin-1").split(" ", 2)
        if len(self.words) < 2:  # noqa: PLR2004 -- a method and a target, a version and a status
            raise _Gone(f"not HTTP: {first!r}")
        self._fields: dict[bytes, str] = {}
        for line in lines:
            name, _, value = line.partition(b":")
            self._fields[name.lower()] = value.strip().decode("latin-1")

    def field(self, name: bytes) -> str:
        return self._fields.get(name, "")

    @property
    def length(self) -> int:
        """The length of the body, or one of the two other ways to end it."""
        if "chunked" in self.field(b"transfer-encoding").lower():
            return _CHUNKED
        length = self.field(b"content-length")
        if length:
            return int(length)
        return _TO_THE_END if self.words[0].startswith("HTTP/") else 0

    @property
    def closes(self) -> bool:
        return "close" in self.field(b"connection").lower() or "HTTP/1.0" in self.words


_CHUNKED, _TO_THE_END = -1, -2


class _Wire:
    """One connection, and what has been read ahead from it."""

    def __init__(self, connection: socket.socket, *, loop: asyncio.AbstractEventLoop) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = connection
        self._loop = loop
        self._bytes = bytearray(_PIECE)
        self._view = memoryview(self._bytes)
        self._start = self._end = 0

    async def send(self, piece: bytes | memoryview) -> None:
        await self._loop.sock_sendall(self.socket, piece)

    async def until(self, mark: bytes) -> bytes:
        """Return all up to and with this mark; empty if the other side has ended in good order."""
        while (at := self._bytes.find(mark, self._start, self._end)) < 0:
            if self._end - self._start > _HEAD_LIMIT:
                raise _Gone(f"no {mark!r} in {_HEAD_LIMIT} bytes")
            if not await self._more():
                if self._start != self._end:
                    raise _Gone("ended in a head")
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
        elif length == _TO_THE_END:
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

    def close(self, *, reset: bool = False) -> None:
        with contextlib.suppress(OSError):
            if reset:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.socket.close()

    async def _content(self, size: int) -> AsyncIterator[memoryview]:
        while size:
            if self._start == self._end and not await self._more():
                raise _Gone("ended in a body")
            piece = self._take(size)
            size -= len(piece)
            yield piece

    async def _line(self) -> bytes:
        line = await self.until(b"\r\n")
        if not line:
            raise _Gone("ended in a body")
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
