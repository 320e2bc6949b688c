"""S3 and GCS keep the contracts on real servers, alone and under `ContentStore`."""

from __future__ import annotations

import filecmp
import io
import os
import subprocess
import sys
import uuid
from typing import TYPE_CHECKING, cast

import pytest
from serving import Proxy

from casartifacts import open_store
from casartifacts.backends.boto3 import Boto3ArtifactStore
from casartifacts.backends.gcs import GCSArtifactStore
from casartifacts.backoff import Backoff
from casartifacts.store import ContentStore
from casartifacts.testing import Check, checks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from serving import Server

    from casartifacts.protocols import ArtifactStore, Backend

pytest_plugins = ["serving.fixtures"]

SERVERS = ["ceph", "ceph-https", "ministack", "gcs"]


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, use: Callable[[Server], None]) -> Server:
    """One of the servers, to which clients are pointed."""
    name, _, tls = request.param.partition("-")
    found: Server = request.getfixturevalue(name)
    if tls:
        found = found.over_https()
    use(found)
    return found


@pytest.fixture(scope="session")
def buckets() -> dict[str, str]:
    """The buckets by the servers that they are in."""
    return {}


@pytest.fixture
def bucket(server: Server, buckets: dict[str, str]) -> Backend:
    """An empty place in a bucket of the server."""
    name = buckets.setdefault(server.home, "") or server.make_bucket()
    buckets[server.home] = name
    kind = GCSArtifactStore if server.protocol == "gcs" else Boto3ArtifactStore
    return cast("Backend", kind(name, prefix=uuid.uuid4().hex))


@pytest.mark.parametrize("check", checks(backend=True), ids=str)
def test_a_bucket_keeps_the_contracts(bucket: Backend, check: Check) -> None:
    check(Backoff(bucket) if str(check).startswith("threads") else bucket)


@pytest.mark.parametrize("check", checks(backend=False), ids=str)
def test_a_content_store_in_a_bucket_keeps_the_contracts(bucket: Backend, check: Check) -> None:
    check(cast("ArtifactStore", ContentStore(Backoff(bucket))))


@pytest.fixture
def counted(server: Server, use: Callable[[Server], None]) -> Iterator[tuple[Proxy, str]]:
    """A bucket behind a proxy that counts requests, and its URL."""
    if server.url.startswith("https"):
        pytest.skip("the proxy counts what it can read")
    name = server.make_bucket()
    with Proxy(server.home) as proxy:
        use(server.behind(proxy.url))
        yield proxy, f"{'gs' if server.protocol == 'gcs' else 's3'}://{name}/runs"
        server.behind(server.home)


# Downloads what the arguments say, in a process that has never used the store.
_DOWNLOAD = """
import sys
from casartifacts import open_store
url, cache, artifact_id, target = sys.argv[1:]
open_store(url, cache=cache).download(artifact_id, target)
"""


def test_requests_are_few(counted: tuple[Proxy, str], tmp_path: Path) -> None:
    """What an operation costs is what the README says, in a process that has used the store."""
    proxy, url = counted
    cache = tmp_path / "cache"
    store = open_store(url, cache=cache)
    store.write("first", io.BytesIO(b"to make the store"))

    def requests(act: Callable[[], object]) -> int:
        proxy.reset()
        act()
        return sum(proxy.counts.requests.values())

    size = 256 * 2**20
    large = tmp_path / "large"
    large.write_bytes(os.urandom(size))
    ids = []

    def upload(store: ContentStore, file: Path) -> None:
        with file.open("rb") as body:
            ids.append(store.add(body))

    small = tmp_path / "small"
    small.write_bytes(os.urandom(1024))
    assert requests(lambda: upload(store, small)) <= 3
    assert requests(lambda: store.download(ids[0], tmp_path / "down")) <= 2
    # Its manifest asked for, five blobs (the first asked for), manifest and ref written.
    assert requests(lambda: upload(store, large)) <= 9
    assert size < proxy.counts.sent < size + 2**20, "no byte twice"
    assert requests(lambda: upload(store, large)) == 1
    fresh = open_store(url, cache=cache)
    fresh.write("first", io.BytesIO(b"to know the store"))
    assert requests(lambda: upload(fresh, large)) == 2
    # Ref and manifest, then ranges of at least 32 MiB or up to the end of a blob.
    assert requests(lambda: fresh.download(ids[1], tmp_path / "cold")) <= 2 + 10
    assert size < proxy.counts.received < size + 2**20, "no byte twice"
    assert filecmp.cmp(tmp_path / "cold", large, shallow=False)
    again = [sys.executable, "-c", _DOWNLOAD, url, str(cache), ids[1], str(tmp_path / "warm")]
    assert requests(lambda: subprocess.run(again, check=True)) == 0
    assert filecmp.cmp(tmp_path / "warm", large, shallow=False)
