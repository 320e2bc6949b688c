"""Faults that come and go in a proxy, each seen to strike.

Rule: what no server with a checksum on its way in would take (a bit that flips in an upload) is
not weather; a bit that flips in a download is.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from serving import Fault

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from serving import Proxy

__all__ = ["FAULTS", "blow", "pass_through"]

FAULTS = {
    "reset before a write": Fault("reset", method="PUT"),
    "reset within a blob": Fault("reset", method="PUT", target="/blobs/", after=5_000),
    "lost answer to a blob": Fault("reset", side="answer", method="PUT", target="/blobs/"),
    "lost answer to a manifest": Fault("cut", side="answer", method="PUT", target="/manifests/"),
    "lost answer to a ref": Fault("reset", side="answer", method="PUT", target="/refs/"),
    "silence before a write": Fault("stall", method="PUT"),
    "silence after a write": Fault("stall", side="answer", method="PUT"),
    "too busy": Fault("refuse", status=503, code="SlowDown"),
    "a server in trouble": Fault("refuse", status=500, code="InternalError", method="PUT"),
    "a question refused": Fault("refuse", status=503, code="ServiceUnavailable", method="HEAD"),
    "a read cut short": Fault("cut", side="answer", method="GET", target="/blobs/", after=9_000),
    "a read that is reset": Fault("reset", side="answer", method="GET", after=20),
    # Once: what reads wrong twice is reported as damaged, and rightly.
    "a bit flipped in a read": Fault(
        "garble", side="answer", method="GET", target="/blobs/", after=7_777, times=1
    ),
}
"""What can go wrong, by name; each is planned as a copy."""

_PATIENCE_SECONDS = 180.0
_TICK_SECONDS = 0.05

# How long the weather waits for a request that it can strike.
_LONGEST_SECONDS = 3.0

# Silence lasts so long; then the connection is cut.
_SILENCE_SECONDS = 0.4


def pass_through(proxy: Proxy, names: list[str], *, check: Callable[[], None]) -> dict[str, int]:
    """Let each of these faults strike a few times; return how often it did.

    Raises:
        TimeoutError: One of them was never hit.
    """
    hits = {}
    for name in names:
        with proxy.plan(_copy(name, times=3)) as fault:
            if not _wait(_PATIENCE_SECONDS, fault=fault, act=check):
                raise TimeoutError(f"no request met {name!r} in {_PATIENCE_SECONDS:.0f} s")
            _wait(_SILENCE_SECONDS, act=check)
        hits[name] = fault.hits
    return hits


def blow(
    proxy: Proxy,
    chance: random.Random,
    *,
    over: Callable[[dict[str, int]], bool],
    act: Callable[[], None],
) -> dict[str, int]:
    """Let random faults come and go until `over(hits)`; return how often each struck.

    `act` is called every few hundredths of a second.
    """
    hits = dict.fromkeys(FAULTS, 0)
    coming: list[str] = []
    while not over(hits):
        if not coming:
            coming = chance.sample(list(FAULTS), len(FAULTS))
        name = coming.pop()
        # A read is rare, because caches answer most: what strikes at all, strikes it.
        rate = 1.0 if FAULTS[name].method == "GET" else chance.uniform(0.05, 0.4)
        with proxy.plan(_copy(name, times=20, rate=rate)) as fault:
            _wait(_LONGEST_SECONDS, fault=fault, act=act)
            _wait(chance.uniform(0.2, 1.2), act=act)
        hits[name] += fault.hits
        _wait(chance.uniform(0.1, 0.6), act=act)
    return hits


def _copy(name: str, *, times: int, rate: float = 1.0) -> Fault:
    fault = FAULTS[name]
    return replace(fault, times=fault.times or times, rate=rate)


def _wait(seconds: float, *, act: Callable[[], None], fault: Fault | None = None) -> bool:
    """Let that time pass, or return True as soon as the fault has struck."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        if fault is not None and fault.hits:
            return True
        act()
        time.sleep(_TICK_SECONDS)
    return False
