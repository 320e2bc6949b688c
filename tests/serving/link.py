"""One client's connection through the proxy: request after request, on to the server and back.

Rule 1: what a client may know has been counted: bytes are counted before they are sent.
Rule 2: nothing is retried or mended; a server that is away looks like a connection that is reset.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from serving.traffic import Counts, Exchange, Fault, Side
from serving.wire import TO_THE_END, Gone, Head, Wire

if TYPE_CHECKING:
    from serving.proxy import Proxy

__all__ = ["Link"]

# How long a server that has answered early is given to take the rest of the body.
_REST_SECONDS = 1.0

_TICK_SECONDS = 0.02


@dataclass(slots=True)
class Job:
    """A request under way."""

    counts: Counts
    exchange: Exchange
    fault: Fault | None
    depth: int  # how long the chain is that ends here, so far
    struck: bool = False
    sending: asyncio.Task[None] | None = None

    def breaks(self, side: Side) -> Fault | None:
        """Return the fault if it is one that ends the connection on this side."""
        fault = self.fault
        if fault is None or fault.ended or fault.side != side:
            return None
        return fault if fault.kind in ("reset", "cut", "stall") else None

    def count(self, side: Side, size: int, *, body: bool) -> None:
        if side == "request":
            self.counts.sent += size
            self.counts.sent_bodies += size * body
            self.exchange.sent += size * body
        else:
            self.counts.received += size
            self.counts.received_bodies += size * body
            self.exchange.received += size * body


class Link:
    """One connection of a client, and the one to the server that belongs to it."""

    def __init__(self, proxy: Proxy, client: socket.socket) -> None:
        self._proxy = proxy
        self._client = Wire(client)
        self._server: Wire | None = None
        self._fresh = True
        self._reset = False

    async def run(self) -> None:
        """Take one request after the other, until a side or a fault ends the connection."""
        try:
            self._reset = self._proxy._drops()
            while not self._reset and (raw := await self._client.until(b"\r\n\r\n")):
                await self._take(Head(raw))
        except (Gone, OSError):
            pass
        finally:
            self._client.close(reset=self._reset)
            if self._server:
                self._server.close()

    async def _take(self, request: Head) -> None:
        method, target = request.words[:2]
        exchange = Exchange(method, target, request.field(b"range") or None)
        counts = self._proxy.counts
        counts.requests[method] += 1
        counts.exchanges.append(exchange)
        fault = self._proxy._choose(request)
        job = Job(counts, exchange, fault, counts.answered)
        job.count("request", len(request.raw), body=False)
        try:
            if self._fresh:
                self._fresh = False
                await self._late(job)  # the handshake
            if fault and fault.kind == "refuse":
                await self._refuse(request, job, fault)
            else:
                await self._hand_on(request, job)
        finally:
            if fault and not job.struck:
                fault._chosen -= 1

    async def _refuse(self, request: Head, job: Job, fault: Fault) -> None:
        job.struck = True
        fault.hits += 1
        job.exchange.status = fault.status
        if not request.waits:
            async for piece, _ in self._client.body(request.length):
                await self._proxy._pace("request", len(piece))
                job.count("request", len(piece), body=True)
        text = f"<Error><Code>{fault.code}</Code><Message>planned</Message></Error>".encode()
        fields = [f"HTTP/1.1 {fault.status} Planned", f"Content-Length: {len(text)}"]
        if fault.retry_after is not None:
            fields.append(f"Retry-After: {fault.retry_after}")
        if request.waits:  # whether its body comes all the same is not known: end, to be sure
            fields.append("Connection: close")
        await self._late(job)
        empty = request.words[0] == "HEAD"
        head = "\r\n".join([*fields, "", ""]).encode()
        await self._forward(self._client, head, job, side="answer", last=empty)
        if not empty:
            await self._forward(self._client, text, job, side="answer", body=True, last=True)
        if request.waits:
            raise Gone("refused")

    async def _hand_on(self, request: Head, job: Job) -> None:
        if (fault := job.breaks("request")) and not fault.after:
            await self._strike(job, fault)
        self._reset = True  # until all went well: a server that is away looks like this
        server = await self._connect()
        await server.send(self._stripped(request, job))
        if request.length:
            job.sending = asyncio.create_task(self._send(request, server, job))
        try:
            ends = await self._answer(request, server, job)
            if job.sending:
                await asyncio.wait({job.sending}, timeout=_REST_SECONDS)
                if job.sending.cancelled() or not job.sending.done():
                    server.shut()  # it answered early: the rest of the body reaches nobody
                if not job.sending.cancelled():
                    await job.sending
        finally:
            if job.sending:
                job.sending.cancel()
                with contextlib.suppress(Gone, OSError, asyncio.CancelledError):
                    await job.sending
        self._reset = False
        if ends:
            raise Gone("the end was announced")

    def _stripped(self, request: Head, job: Job) -> bytes:
        fault = job.fault
        if fault is None or fault.kind != "strip":
            return request.raw
        job.struck = True
        fault.hits += 1
        return request.without(fault.header.encode())

    async def _shorten(self, answer: Head, server: Wire, job: Job, fault: Fault) -> None:
        """Hand on an answer as if its body ended after so many bytes; the connection ends, too."""
        job.struck = True
        fault.hits += 1
        head = answer.without(b"content-length")[:-2] + b"Content-Length: %d\r\n\r\n" % fault.after
        await self._forward(self._client, head, job, side="answer")
        left = fault.after
        async for piece, _ in server.body(answer.length):
            shown = piece[:left]
            left -= len(shown)
            await self._forward(self._client, shown, job, side="answer", body=True, last=not left)
            if not left:
                return

    async def _send(self, request: Head, server: Wire, job: Job) -> None:
        try:
            await self._pass(self._client, server, request.length, job, side="request")
        except (Gone, OSError):
            server.shut()  # wakes who waits for its answer
            raise

    async def _answer(self, request: Head, server: Wire, job: Job) -> bool:
        """Hand on what the server answers; return whether the connection ends with it."""
        waits = request.waits
        while True:
            raw = await server.until(b"\r\n\r\n")
            if not raw:
                raise Gone("the server has ended the connection")
            answer = Head(raw)
            status = int(answer.words[1])
            await self._late(job)
            if status >= 200:
                break
            waits = False
            await self._forward(self._client, raw, job, side="answer")
        if waits and job.sending and not job.exchange.sent:
            # The client has not sent its body and will not: what it sends next is a request.
            job.sending.cancel()
        if (fault := job.breaks("answer")) and not fault.after:
            await self._strike(job, fault)
        job.exchange.status = status
        empty = request.words[0] == "HEAD" or status in (204, 304) or not answer.length
        if (fault := job.fault) and fault.kind == "shorten" and answer.length > fault.after:
            await self._shorten(answer, server, job, fault)
            return True
        await self._forward(self._client, raw, job, side="answer", last=empty)
        if not empty:
            await self._pass(server, self._client, answer.length, job, side="answer")
        return request.closes or answer.closes or (not empty and answer.length == TO_THE_END)

    async def _pass(self, source: Wire, target: Wire, length: int, job: Job, *, side: Side) -> None:
        passed, deaf = 0, False
        async for piece, last in source.body(length):
            if isinstance(piece, memoryview):
                await self._harm(piece, target, job, side=side, passed=passed)
                passed += len(piece)
            try:
                await self._forward(target, piece, job, side=side, body=True, last=last, deaf=deaf)
            except OSError:
                if side == "answer":
                    raise
                deaf = True  # it may have answered before it ended; its answer tells

    async def _harm(
        self, piece: memoryview, target: Wire, job: Job, *, side: Side, passed: int
    ) -> None:
        fault = job.fault
        if fault is None or fault.side != side:
            return
        at = fault.after - passed
        if fault.kind == "garble" and not fault.ended and 0 <= at < len(piece):
            piece[at] ^= 1
            job.struck = True
            fault.hits += 1
        elif job.breaks(side) and 0 <= at <= len(piece):
            await self._forward(target, piece[:at], job, side=side, body=True)
            await self._strike(job, fault)

    async def _strike(self, job: Job, fault: Fault) -> None:
        job.struck = True
        fault.hits += 1
        # Ended from another thread, which an asyncio.Event does not allow.
        while fault.kind == "stall" and not fault.ended:  # noqa: ASYNC110
            await asyncio.sleep(_TICK_SECONDS)
        self._reset = fault.kind == "reset"
        raise Gone(f"planned: {fault.kind}")

    async def _forward(
        self,
        target: Wire,
        piece: bytes | memoryview,
        job: Job,
        *,
        side: Side,
        body: bool = False,
        last: bool = False,
        deaf: bool = False,
    ) -> None:
        await self._proxy._pace(side, len(piece))
        job.count(side, len(piece), body=body)
        if last and side == "answer":
            job.counts.answered = max(job.counts.answered, job.depth)
        if not deaf:
            await target.send(piece)

    async def _late(self, job: Job) -> None:
        job.depth += 1
        job.counts.round_trips = max(job.counts.round_trips, job.depth)
        if self._proxy.latency_seconds:
            await asyncio.sleep(self._proxy.latency_seconds)

    async def _connect(self) -> Wire:
        if self._server and not self._server.usable():
            self._server.close()
            self._server = None
        if self._server is None:
            connection = socket.socket()
            self._proxy._sockets.add(connection)
            self._server = Wire(connection)
            await asyncio.get_running_loop().sock_connect(connection, self._proxy.upstream)
        return self._server
