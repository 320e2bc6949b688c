"""The servers that other tests stand on, and the proxy in front of them, are what they claim to be.

The proxy's own tests have an HTTP server of the standard library behind it, so that they run
everywhere; what the S3 and GCS clients make of it is tried on the real servers.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import io
import os
import resource
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import serving
from serving import Fault, Proxy, Server
from serving.processes import Programs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytest_plugins = ["serving.fixtures"]

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")

BODY = os.urandom(100_000)

VIEWS = ("ceph", "ceph over https", "ministack", "gcs")


# The servers.


@pytest.fixture
def view(request: pytest.FixtureRequest) -> Server:
    """Return one of the servers, as a client is to reach it."""
    name, _, https = str(request.param).partition(" over ")
    server: Server = request.getfixturevalue(name)
    return server.over_https() if https else server


def s3(**settings: object) -> Any:
    """Make a client from the environment, as a user would; retries off, so that errors show."""
    boto3 = pytest.importorskip("boto3")
    from botocore.config import Config

    once: dict[str, Any] = {"total_max_attempts": 1}
    # Ceph 16 answers the trailing checksums of boto3's default with 411 over https.
    config = Config(retries=once, request_checksum_calculation="when_required", **settings)
    return boto3.client("s3", config=config)


def put(server: Server, bucket: str, name: str, body: bytes) -> None:
    if server.protocol == "gcs":
        blob(bucket, name).upload_from_string(body, retry=None)
    else:
        s3().put_object(Bucket=bucket, Key=name, Body=body)


def get(server: Server, bucket: str, name: str) -> bytes:
    if server.protocol == "gcs":
        found: bytes = blob(bucket, name).download_as_bytes(retry=None)
    else:
        found = s3().get_object(Bucket=bucket, Key=name)["Body"].read()
    return found


def blob(bucket: str, name: str) -> Any:
    storage = pytest.importorskip("google.cloud.storage")
    return storage.Client().bucket(bucket).blob(name)


@pytest.mark.parametrize("view", VIEWS, indirect=True)
def test_a_server_keeps_an_object_for_a_client_that_knows_only_the_environment(
    view: Server, use: Callable[[Server], None]
):
    use(view)
    bucket = view.make_bucket()
    put(view, bucket, "a/b", BODY)
    assert get(view, bucket, "a/b") == BODY


def test_over_https_the_certificate_is_checked_also_by_the_stricter_rules_of_python_3_13(
    ceph: Server,
):
    address = urlsplit(ceph.over_https().url)
    strict = ssl.create_default_context(cafile=ceph.ca_bundle)
    strict.verify_flags |= ssl.VERIFY_X509_STRICT
    connection = http.client.HTTPSConnection(address.netloc, context=strict, timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", "/")
        assert connection.getresponse().status == http.client.OK
    with pytest.raises(ssl.SSLCertVerificationError):
        http.client.HTTPSConnection(address.netloc, timeout=10).request("GET", "/")


@pytest.mark.parametrize("name", serving.NAMES)
def test_a_durable_server_that_was_killed_has_what_it_acknowledged_and_stopped_it_leaves_nothing(
    name: str, start: Callable[..., Server], use: Callable[[Server], None]
):
    with start(name, durable=True) as server:
        use(server)
        bucket = server.make_bucket()
        put(server, bucket, "kept", BODY)
        killed = server.pids()
        server.kill()
        assert not server.answers()
        assert not any(map(alive, killed))
        server.restart()
        assert get(server, bucket, "kept") == BODY
        put(server, bucket, "new", BODY)
        folder, stopped = server._programs.folder, server.pids()
        assert folder.exists()
        assert all(map(alive, stopped))
    assert not folder.exists()
    assert not any(map(alive, stopped))
    assert not server.answers()
    server.stop()


@LINUX
def test_a_server_whose_starter_was_killed_is_gone_too(tmp_path: Path):
    starter = """
import signal, sys
sys.path.insert(0, sys.argv[1])
from serving.processes import Programs
programs = Programs("test")
programs.start("sleep", ["sleep", "1000"])
print(programs.folder, *programs.pids(), flush=True)
signal.pause()
"""
    command = [sys.executable, "-c", starter, str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        folder, pid = process.stdout.readline().split()
        assert alive(int(pid))
        process.kill()
    until(lambda: not alive(int(pid)) and not Path(folder).exists())


def test_a_program_that_ends_is_an_error_with_its_last_words():
    programs = Programs("test")
    try:
        programs.start("talker", [sys.executable, "-c", "raise SystemExit('no room')"])
        with pytest.raises(serving.ServerFailed, match="talker ended with 1: no room"):
            programs.wait_until(lambda: False, what="answer")
    finally:
        programs.close()


def alive(pid: int) -> bool:
    """Tell whether a process runs; one that nobody has waited for yet does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)
