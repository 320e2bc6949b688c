"""What passes a proxy, counted, and what is to go wrong with it, planned.

Rule: written in the proxy's thread, read (and a fault ended) in any other.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Self

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Counts", "Exchange", "Fault", "Side"]

Side = Literal["request", "answer"]


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
    answered: int = 0  # the longest chain that has been answered to its end


@dataclass(slots=True, eq=False)
class Fault:
    """What goes wrong, with which requests, and how often it has (`hits`).

    Attributes:
        kind: "reset" (RST), "cut" (an orderly end of the connection), "stall" (silence until the
            fault ends), "refuse" (answered with `status`; the server never hears of it), "garble"
            (one bit of the body's byte number `after` is flipped), "shorten" (an answer's body ends
            there and is announced so), "strip" (the field `header` does not reach the server),
            "drop" (a new connection is reset before anything is read from it; what is said below
            of requests holds for connections, and `method`, `target`, `header` say nothing).
        side: Whose bytes: those of the request, or those of the answer.
        after: How many bytes of that body pass before it strikes. 0 on the side of the request:
            the server hears nothing. 0 on the side of the answer: the server has acted and
            answered, and the client hears nothing. A body that is shorter is no hit.
        status: What a refused request is answered with.
        code: The error's name in that answer, as S3 would give it.
        retry_after: The header of that name, in seconds.
        method: Only requests of this method.
        target: Only requests whose target (path and query) matches this pattern somewhere.
        header: Only requests that have this field.
        skip: The first so many of these pass.
        times: How often it strikes at most.
        rate: With which probability it strikes.
    """

    kind: Literal["reset", "cut", "stall", "refuse", "garble", "shorten", "strip", "drop"]
    side: Side = "request"
    after: int = 0
    status: int = 503
    code: str = "SlowDown"
    retry_after: int | None = None
    method: str | None = None
    target: str = ""
    header: str = ""
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def choose(
        self, method: str, target: str, *, chance: float, field: Callable[[bytes], str]
    ) -> bool:
        """Decide whether to strike this request; if so, it counts towards `times`."""
        if self.kind == "drop":
            return False
        if self.method not in (None, method) or not re.search(self.target, target):
            return False
        if self.header and not field(self.header.lower().encode()):
            return False
        return self._take(chance)

    def choose_connection(self, *, chance: float) -> bool:
        """Decide whether to strike this new connection; if so, it counts towards `times`."""
        return self.kind == "drop" and self._take(chance)

    def _take(self, chance: float) -> bool:
        if self.ended or (self.times is not None and self._chosen >= self.times):
            return False
        self._passed += 1
        if self._passed <= self.skip or chance >= self.rate:
            return False
        self._chosen += 1
        return True
