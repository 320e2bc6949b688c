"""The servers as pytest fixtures, one of each per worker; `pytest_plugins = ["serving.fixtures"]`.

A server that cannot be had skips its tests and says why; where `tools/test --servers` runs in CI,
it fails them.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING

import pytest

import serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from serving import Database, Server

__all__ = ["ceph", "gcs", "mariadb", "ministack", "postgresql", "redis", "start", "use"]


@pytest.fixture(scope="session")
def ceph() -> Iterator[Server]:
    """Ceph's gateway, objects in memory; `ceph.over_https()` is the same over TLS."""
    yield from _serve("ceph")


@pytest.fixture(scope="session")
def ministack() -> Iterator[Server]:
    """MiniStack, objects in memory."""
    yield from _serve("ministack")


@pytest.fixture(scope="session")
def gcs() -> Iterator[Server]:
    """fake-gcs-server, objects in memory."""
    yield from _serve("gcs")


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Database]:
    """PostgreSQL, empty at first; a test takes a study name that no other has."""
    yield from _keep("postgresql")


@pytest.fixture(scope="session")
def mariadb() -> Iterator[Database]:
    """MariaDB, the same."""
    yield from _keep("mariadb")


@pytest.fixture(scope="session")
def redis() -> Iterator[Database]:
    """Redis, the same."""
    yield from _keep("redis")


@pytest.fixture
def start() -> Iterator[Callable[..., Server]]:
    """Start servers of this test's own, to be killed: `start(name, durable=True)`."""
    with contextlib.ExitStack() as ending:

        def started(name: str, *, durable: bool = False) -> Server:
            _skip_without(name)
            return ending.enter_context(serving.start(name, durable=durable))

        yield started


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[Server], None]:
    """Point clients that this test makes from now on, without arguments, at a server."""

    def export(server: Server) -> None:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        # `boto3.client` remembers the credentials that it found first.
        if "boto3" in sys.modules:
            monkeypatch.setattr("boto3.DEFAULT_SESSION", None)

    return export


def _serve(name: str) -> Iterator[Server]:
    _skip_without(name)
    with serving.start(name) as server:
        yield server


def _keep(name: str) -> Iterator[Database]:
    _skip_without(name)
    with serving.start_database(name) as database:
        yield database


def _skip_without(name: str) -> None:
    """Skip the test, or in CI fail it, if this server cannot be started here."""
    reason = serving.missing(name)
    if reason and os.environ.get("CI") and os.environ.get("CASARTIFACTS_TEST_SERVERS"):
        pytest.fail(f"CI is to have every server: {reason}")
    if reason:
        pytest.skip(reason)


@pytest.fixture(params=["ceph", "ceph-https", "ministack", "gcs"])
def server(request: pytest.FixtureRequest, use: Callable[[Server], None]) -> Server:
    """One of the servers, to which clients are pointed."""
    name, _, tls = request.param.partition("-")
    found: Server = request.getfixturevalue(name)
    if tls:
        found = found.over_https()
    use(found)
    return found
