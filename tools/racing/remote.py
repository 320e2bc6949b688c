"""A server to race on, in memory, and the link to it: none, or a proxy that counts and slows down.

The proxy runs in a process of its own; `instrument` tells what it can pass.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import serving
from serving.apart import ProxyApart

from racing.rows import Skipped

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from serving import Counts, Server

    from casartifacts.protocols import Backend

__all__ = ["LATE", "SLOW", "SWIFT", "Link", "Remote", "Servers"]


@dataclass(frozen=True)
class Link:
    """What lies between a client and its server."""

    latency_seconds: float = 0.0
    bytes_per_second: float | None = None


SWIFT = Link()
LATE = Link(latency_seconds=0.03)
SLOW = Link(latency_seconds=0.03, bytes_per_second=125e6)  # 1 Gbit/s


class Servers:
    """Starts each server when the first row asks for it, and ends them all."""

    def __init__(self) -> None:
        self._ending = contextlib.ExitStack()
        self._started: dict[str, Remote] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.close()

    def get(self, name: str) -> Remote:
        """Return this server with an empty bucket.

        Raises:
            Skipped: It cannot be had here.
        """
        if name not in self._started:
            if reason := serving.missing(name):
                raise Skipped(reason)
            server = self._ending.enter_context(serving.start(name))
            proxy = self._ending.enter_context(ProxyApart(server.home))
            self._started[name] = Remote(server, proxy)
        remote = self._started[name]
        remote.empty()
        return remote


class Remote:
    """A server and its one bucket. Clients that are made without arguments reach it."""

    def __init__(self, server: Server, proxy: ProxyApart) -> None:
        self._server = server
        self._proxy = proxy
        self._bucket = server.make_bucket()
        self.reach(None)

    def url(self, prefix: str) -> str:
        """Return what `open_store` takes."""
        return f"{'gs' if self._server.protocol == 'gcs' else 's3'}://{self._bucket}/{prefix}"

    def reach(self, link: Link | None) -> None:
        """Let clients that are made from now on talk to it over such a link; None is none."""
        url = self._server.home if link is None else self._proxy.url
        if link is not None:
            self._proxy.set(
                latency_seconds=link.latency_seconds, bytes_per_second=link.bytes_per_second
            )
        os.environ.update(self._server.behind(url).environment)
        # Else google-cloud-storage asks about the bucket in a thread of its own, for traces that
        # nobody has asked for, and counts depend on when.
        os.environ["DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA"] = "1"

    def empty(self, prefix: str = "") -> None:
        """Delete what is in the bucket below a prefix; clients go directly from then on."""
        self.reach(None)
        place = self._backend()
        for entry in list(place.list(prefix)):
            place.remove(entry.name)

    def put(self, file: Path) -> str:
        """Keep a file as one object; return its name, which is an artifact id of Optuna's."""
        artifact_id = str(uuid.uuid4())
        with file.open("rb") as body:
            self._backend().write(artifact_id, body)
        return artifact_id

    def count(self, job: Callable[[], object]) -> tuple[Counts, float]:
        """Do a job over the link; tell what passed it meanwhile, and the seconds that it took."""
        self._proxy.reset()
        begun = time.perf_counter()
        job()
        seconds = time.perf_counter() - begun
        return self._proxy.counts(), seconds

    def _backend(self) -> Backend:
        from casartifacts.backends.boto3 import Boto3ArtifactStore
        from casartifacts.backends.gcs import GCSArtifactStore

        if self._server.protocol == "gcs":
            return GCSArtifactStore(self._bucket)
        return Boto3ArtifactStore(self._bucket)
