"""The servers as pytest fixtures, one of each per worker; `pytest_plugins = ["serving.fixtures"]`.

A server that cannot be had skips its tests and says why; where `tools/test --servers` runs in CI,
it fails them.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

import serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from serving import Server

__all__ = ["ceph", "gcs", "ministack", "use", "wanted"]


def wanted(name: str) -> None:
    """Skip the test, or in CI fail it, if this server cannot be started here."""
    reason = serving.missing(name)
    if reason and os.environ.get("CI") and os.environ.get("CASARTIFACTS_TEST_SERVERS"):
        pytest.fail(f"CI is to have every server: {reason}")
    if reason:
        pytest.skip(reason)


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


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[Server], None]:
    """Point clients that this test makes without arguments at a server."""

    def export(server: Server) -> None:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)

    return export


def _serve(name: str) -> Iterator[Server]:
    wanted(name)
    with serving.start(name) as server:
        yield server
