"""A proxy between clients and one HTTP/1.1 server: it counts, slows down and breaks what passes.

    with Proxy(server.home, latency_seconds=0.03, bytes_per_second=125e6) as proxy:
        seen = server.behind(proxy.url)
        with proxy.plan(Fault("reset", side="answer", method="PUT", times=1)) as fault:
            ...
        assert fault.hits == 1
        assert proxy.counts.requests == {"PUT": 2}

Rule 1: it runs in a thread of its own. Latency, bandwidth and faults may be changed from any other
at any time, and hold for requests that begin after it (bandwidth: from the next piece on).
Rule 2: figures are exact as soon as the client's call has returned.
Rule 3: memory does not grow with what passes.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import threading
import time
import weakref
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from serving.link import Link
from serving.traffic import Counts, Exchange, Fault, Side

if TYPE_CHECKING:
    from serving.wire import Head

__all__ = ["Counts", "Exchange", "Fault", "Proxy"]

# A link goes on carrying while we wake late or copy, so that much lost time is made up for: without
# it, one connection got 90 MB/s of a link of 125.
_MADE_UP_SECONDS = 0.005

# Proxies whose sockets a forked child must let go of: a connection that it holds cannot end.
_LIVE: weakref.WeakSet[Proxy] = weakref.WeakSet()


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
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._random = random.Random(seed)
        self._faults: tuple[Fault, ...] = ()
        self._free_at: dict[Side, float] = {"request": 0.0, "answer": 0.0}
        self._links: set[asyncio.Task[None]] = set()
        self._bug: BaseException | None = None
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self._listener.setblocking(False)
        self._sockets.add(self._listener)
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

    def hang_up(self) -> None:
        """End all connections; clients that had one connect anew."""

        async def end() -> None:
            links = tuple(self._links)
            for link in links:
                link.cancel()
            await asyncio.gather(*links, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result()

    def reset(self) -> None:
        """Count from zero; what is under way still counts for the old `counts`."""
        self.counts = Counts()

    def close(self) -> None:
        """Cut all connections and end; raises what went wrong in the proxy itself, if anything."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()
        if self._bug is not None:
            bug, self._bug = self._bug, None
            raise bug

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        host, port = self.upstream
        return f"Proxy('http://{host}:{port}') at {self.url}"

    def _choose(self, request: Head) -> Fault | None:
        """Return the fault that is to strike this request, if any."""
        method, target = request.words[:2]
        for fault in self._faults:
            chance = self._random.random()
            if fault.choose(method, target, chance=chance, field=request.field):
                return fault
        return None

    def _drops(self) -> bool:
        """Tell whether a fault strikes this new connection."""
        for fault in self._faults:
            if fault.choose_connection(chance=self._random.random()):
                fault.hits += 1
                return True
        return False

    async def _pace(self, side: Side, size: int) -> None:
        """Return when the link has carried that many bytes more."""
        if self.bytes_per_second:
            now = time.monotonic()
            begun = max(now - _MADE_UP_SECONDS, self._free_at[side])
            self._free_at[side] = begun + size / self.bytes_per_second
            if self._free_at[side] > now:
                await asyncio.sleep(self._free_at[side] - now)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._accept())

    async def _accept(self) -> None:
        def ended(link: asyncio.Task[None]) -> None:
            self._links.discard(link)
            if not link.cancelled() and link.exception() is not None:
                self._bug = link.exception()

        async def accept() -> None:
            while True:
                client, _ = await self._loop.sock_accept(self._listener)
                self._sockets.add(client)
                self.counts.connections += 1
                link = self._loop.create_task(Link(self, client).run())
                self._links.add(link)
                link.add_done_callback(ended)

        accepting = self._loop.create_task(accept())
        accepting.add_done_callback(ended)
        await self._stop.wait()
        running = (accepting, *self._links)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        self._listener.close()


def _let_go() -> None:
    for proxy in list(_LIVE):
        for each in list(proxy._sockets):
            each.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
