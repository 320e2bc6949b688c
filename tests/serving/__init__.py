"""Real servers to test against, started by fixtures (`serving.fixtures`) and by `tools/servers`.

processes   programs that are gone when their test is
server      what a started server is to a test
ceph        Ceph's S3 gateway, http and https          emulators   MiniStack, fake-gcs-server
proxy       counts, slows down and breaks what passes between a client and a server
apart       the same in a process of its own, without faults, for who measures
haproxy     TLS in front of any of them, and a 503 now and then

with serving.start("ceph") as server, Proxy(server.home) as proxy:
    seen = server.behind(proxy.url)
    ... export seen.environment, seen.make_bucket(), use it ...
    assert proxy.counts.requests == {"PUT": 1}
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from serving import ceph, emulators
from serving.haproxy import HAProxy
from serving.processes import ServerFailed
from serving.proxy import Counts, Exchange, Fault, Proxy
from serving.server import Server

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "NAMES",
    "Counts",
    "Exchange",
    "Fault",
    "HAProxy",
    "Proxy",
    "Server",
    "ServerFailed",
    "missing",
    "start",
]

_MISSING: dict[str, Callable[[], str | None]] = {
    "ceph": ceph.missing,
    "ministack": emulators.missing_ministack,
    "gcs": emulators.missing_gcs,
}

NAMES = tuple(_MISSING)


def missing(name: str) -> str | None:
    """Return why this server cannot be started here, in words for a reader, or None if it can."""
    return _MISSING[name]()


def start(name: str, *, durable: bool = False) -> Server:
    """Start this server in a folder and on ports of its own; returns when it answers.

    With `durable=True` what it has acknowledged survives `kill()` and `restart()`; otherwise it is
    in memory, and gone.
    """
    if name == "ceph":
        return ceph.start(durable=durable)
    if name == "ministack":
        return emulators.start_ministack(durable=durable)
    if name == "gcs":
        return emulators.start_gcs(durable=durable)
    raise ValueError(f"no server named {name!r}: there are {', '.join(NAMES)}")
