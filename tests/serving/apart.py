"""The proxy in a process of its own, for who measures: with its client it would share a GIL.

    with ProxyApart(server.home) as proxy:
        seen = server.behind(proxy.url)
        proxy.set(latency_seconds=0.03, bytes_per_second=125e6)
        proxy.reset()
        ...
        assert proxy.counts().requests == {"PUT": 1}

Rule 1: one line of JSON asks, one line answers. Figures are exact as soon as the client's call has
returned, as in the proxy itself.
Rule 2: it ends with the pipe, so it never outlives who started it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter, deque
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Self

from serving.processes import ServerFailed
from serving.proxy import Proxy
from serving.traffic import Counts, Exchange

__all__ = ["ProxyApart"]


class ProxyApart:
    """A `Proxy` without faults that runs elsewhere; `url` is what to give to the client."""

    def __init__(self, upstream: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "serving.apart", upstream],
            cwd=Path(__file__).parent.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,  # Ctrl-C is for us; it ends with the pipe
        )
        try:
            self.url: str = self._ask("url")
        except ServerFailed:
            self._process.communicate()
            raise

    def set(self, *, latency_seconds: float, bytes_per_second: float | None) -> None:
        """Make the link such from the next request on."""
        self._ask("set", latency_seconds=latency_seconds, bytes_per_second=bytes_per_second)

    def reset(self) -> None:
        """Count from zero."""
        self._ask("reset")

    def counts(self) -> Counts:
        """Tell what has passed since the start or the last `reset`."""
        told = self._ask("counts")
        requests = Counter(told.pop("requests"))
        exchanges = deque(Exchange(**each) for each in told.pop("exchanges"))
        return Counts(requests=requests, exchanges=exchanges, **told)

    def close(self) -> None:
        """Cut all connections and end; raises if something went wrong in the proxy itself."""
        self._process.communicate()
        if self._process.returncode:
            raise ServerFailed(f"the proxy ended with {self._process.returncode}: see above")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, verb: str, **arguments: object) -> Any:
        asks, answers = self._process.stdin, self._process.stdout
        if asks is None or answers is None:
            raise ServerFailed("the proxy has no pipes")
        try:
            print(json.dumps([verb, arguments]), file=asks, flush=True)
            line = answers.readline()
        except OSError as error:
            raise ServerFailed("the proxy is gone: see above") from error
        if not line:
            raise ServerFailed("the proxy is gone: see above")
        return json.loads(line)


def _serve(upstream: str) -> None:
    with Proxy(upstream) as proxy:
        for line in sys.stdin:
            verb, arguments = json.loads(line)
            sys.stdout.write(json.dumps(_answer(proxy, verb, arguments)) + "\n")
            sys.stdout.flush()


def _answer(proxy: Proxy, verb: str, arguments: dict[str, Any]) -> object:
    if verb == "url":
        return proxy.url
    if verb == "counts":
        counts = proxy.counts
        told = {field.name: getattr(counts, field.name) for field in fields(counts)}
        return {**told, "exchanges": [asdict(each) for each in list(counts.exchanges)]}
    if verb == "reset":
        proxy.reset()
    elif verb == "set":
        proxy.latency_seconds = arguments["latency_seconds"]
        proxy.bytes_per_second = arguments["bytes_per_second"]
    else:
        raise ValueError(f"no verb {verb!r}")
    return None


if __name__ == "__main__":
    _serve(sys.argv[1])
