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


# The proxy.


class Answering(http.server.BaseHTTPRequestHandler):
    """Answers POST with the body that came, PUT and DELETE with nothing, GET with what was put."""

    protocol_version = "HTTP/1.1"
    server: Upstream
    wbufsize = -1

    def do_POST(self) -> None:
        self.answer(200, self.body())

    def do_PUT(self) -> None:
        body = self.body()
        self.server.kept[self.path] = body
        self.answer(200, b"")

    def do_GET(self) -> None:
        self.answer(200, self.server.kept[self.path])

    do_HEAD = do_GET

    def do_DELETE(self) -> None:
        del self.server.kept[self.path]
        self.answer(204, None)

    def handle_expect_100(self) -> bool:
        if self.path == "/unwanted":
            self.answer(412, b"no")
            return False
        return super().handle_expect_100()

    def body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            length = int(self.headers.get("Content-Length", 0))
            body = self.rfile.read(length)
            if len(body) < length:
                self.server.broken.append((self.path, len(body)))
                raise ConnectionAbortedError
            return body
        pieces = []
        while size := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def answer(self, status: int, body: bytes | None) -> None:
        self.send_response_only(status)
        if body is None:
            self.end_headers()
        elif "chunked" in self.path:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for start in range(0, len(body), 70_000):
                piece = body[start : start + 70_000]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")
        elif "endless" in self.path:
            self.close_connection = True
            self.end_headers()
            self.wfile.write(body)
        else:
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)
        self.wfile.flush()


class Upstream(http.server.ThreadingHTTPServer):
    """A server of the standard library, the bodies that it keeps, and those that broke off."""

    request_queue_size = 128
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.kept: dict[str, bytes] = {}
        self.broken: list[tuple[str, int]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: that a connection breaks is what is tested."""


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def proxy(upstream: Upstream) -> Iterator[Proxy]:
    upstream.kept.clear()
    upstream.broken.clear()
    with Proxy(upstream.url) as proxy:
        yield proxy


@contextlib.contextmanager
def connected(proxy: Proxy, *, timeout: float = 10.0) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection(urlsplit(proxy.url).netloc, timeout=timeout)
    with contextlib.closing(connection):
        yield connection


def ask(
    connection: http.client.HTTPConnection,
    method: str,
    target: str,
    body: bytes | Iterator[bytes] | None = None,
) -> bytes:
    connection.request(method, target, body, encode_chunked=True)
    return connection.getresponse().read()


requests = st.tuples(
    st.sampled_from(["POST", "PUT", "GET", "HEAD", "DELETE"]),
    st.sampled_from(["", "chunked", "endless"]),
    st.sampled_from([0, 1, 70_000, 2**20, 3_000_001]) | st.integers(0, 300_000),
    st.booleans(),  # chunked body
    st.booleans(),  # new connection
)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(plan=st.lists(requests, max_size=8))
def test_every_body_passes_whole_and_is_counted_exactly(upstream: Upstream, plan: list[Any]):
    with Proxy(upstream.url) as proxy, contextlib.ExitStack() as open_ones:
        connection = open_ones.enter_context(connected(proxy))
        wanted: list[tuple[str, int, int]] = []
        for method, kind, size, chunked, fresh in plan:
            if fresh or not wanted:
                connection = open_ones.enter_context(connected(proxy))
            body = os.urandom(size)
            upstream.kept[f"/{kind}"] = body
            sent = body if method in ("POST", "PUT") else b""
            due = body if method in ("POST", "GET") else b""
            stream = iter([sent[:1000], sent[1000:]]) if chunked and sent else sent or None
            assert ask(connection, method, f"/{kind}", stream) == due
            if method == "PUT":
                assert upstream.kept[f"/{kind}"] == body
            assert proxy.counts.requests.total() == len(wanted) + 1
            last = proxy.counts.exchanges[-1]
            assert (last.method, last.target) == (method, f"/{kind}")
            assert last.status == (204 if method == "DELETE" else 200)
            if not chunked:
                assert last.sent == len(sent)
            if kind != "chunked":
                assert last.received == len(due)
            wanted.append((method, last.sent, last.received))
        counts = proxy.counts
        for method in ("POST", "PUT", "GET", "HEAD", "DELETE"):
            assert counts.requests[method] == [each[0] for each in wanted].count(method)
        assert counts.sent_bodies == sum(sent for _, sent, _ in wanted)
        assert counts.received_bodies == sum(received for _, _, received in wanted)


def test_heads_and_interim_answers_are_counted_to_the_byte(proxy: Proxy):
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
    with socket.create_connection(address_of(proxy)) as client:
        client.sendall(head)
        interim = client.recv(1000)
        assert interim == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"body")
        answer = b""
        while not answer.endswith(b"body"):
            answer += client.recv(1000)
        assert proxy.counts.sent == len(head) + 4
        assert proxy.counts.received == len(interim) + len(answer)
        assert (proxy.counts.sent_bodies, proxy.counts.received_bodies) == (4, 4)
        assert proxy.counts.round_trips == 3  # the connection, the interim answer, the answer
    proxy.reset()
    assert proxy.counts.sent == proxy.counts.round_trips == 0


def test_a_body_that_was_not_wanted_is_not_waited_for_and_the_connection_goes_on(proxy: Proxy):
    refused = b"PUT /unwanted HTTP/1.1\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n"
    with socket.create_connection(address_of(proxy), timeout=10) as client:
        for wanted in (b"HTTP/1.1 412", b"no"), (b"HTTP/1.1 200", b"four"):
            client.sendall(refused if wanted[1] == b"no" else FOUR)
            answer = b""
            while not answer.endswith(wanted[1]):
                answer += client.recv(1000)
            assert answer.startswith(wanted[0])
    assert [each.status for each in proxy.counts.exchanges] == [412, 200]
    assert [each.sent for each in proxy.counts.exchanges] == [0, 4]


def test_round_trips_are_the_longest_chain_of_requests_and_latency_is_paid_for_each(proxy: Proxy):
    proxy.latency_seconds = 0.05
    ready = threading.Barrier(4)

    def three_in_a_row(_: int) -> None:
        with connected(proxy) as connection:
            ready.wait()
            for _ in range(3):
                ask(connection, "POST", "/", b"x")

    with ThreadPoolExecutor(4) as pool:
        began = time.monotonic()
        list(pool.map(three_in_a_row, range(4)))
        took = time.monotonic() - began
    assert proxy.counts.requests == {"POST": 12}
    assert proxy.counts.connections == 4
    # Each connection costs one, each of its requests one more. Threads that drift apart can make
    # the chain longer, but not as long as if one had waited for the other.
    assert 4 <= proxy.counts.round_trips <= 8
    assert took >= 4 * 0.05
    proxy.latency_seconds = 0
    proxy.reset()
    with connected(proxy) as connection:
        for _ in range(7):
            ask(connection, "POST", "/", b"x")
    assert proxy.counts.round_trips == 8


def test_bandwidth_is_shared_by_all_connections_and_counts_each_direction_apart(proxy: Proxy):
    proxy.bytes_per_second = 20e6

    def there_and_back(_: int) -> None:
        with connected(proxy) as connection:
            assert ask(connection, "POST", "/", BODY * 10) == BODY * 10

    with ThreadPoolExecutor(4) as pool:
        began = time.monotonic()
        list(pool.map(there_and_back, range(4)))
        took = time.monotonic() - began
    assert took >= 4 * 10 * len(BODY) / 20e6


FOUR = b"POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\nfour"


def address_of(proxy: Proxy) -> tuple[str, int]:
    address = urlsplit(proxy.url)
    assert address.hostname
    assert address.port
    return address.hostname, address.port


# Its faults. Where one strikes: what the server has seen by then, and what the client sees.


def strike(proxy: Proxy, fault: Fault, *, size: int = 300_000) -> tuple[bytes, Exception | None]:
    """Upload under this fault; return what came of the answer's body, and the error."""
    with proxy.plan(fault), connected(proxy, timeout=0.5) as connection:
        try:
            return ask(connection, "POST", "/x", bytes(size)), None
        except http.client.IncompleteRead as error:
            return error.partial, error
        except (OSError, http.client.HTTPException) as error:
            return b"", error


def test_a_reset_before_the_request_leaves_the_server_untouched(proxy: Proxy, upstream: Upstream):
    fault = Fault("reset", method="PUT")
    with proxy.plan(fault), connected(proxy) as connection:
        with pytest.raises(ConnectionResetError):
            ask(connection, "PUT", "/x", b"body")
        ask(connection, "POST", "/", b"another method")
    assert fault.hits == 1
    assert not upstream.kept
    assert [each.status for each in proxy.counts.exchanges] == [None, 200]


@pytest.mark.parametrize("kind", ["reset", "cut"])
@pytest.mark.parametrize("after", [1, 70_000, 299_999])
def test_a_break_in_a_request_gives_the_server_just_so_many_bytes(
    proxy: Proxy, upstream: Upstream, kind: Any, after: int
):
    fault = Fault(kind, after=after)
    _, error = strike(proxy, fault)
    assert isinstance(error, (OSError, http.client.RemoteDisconnected))
    assert fault.hits == 1
    until(lambda: upstream.broken == [("/x", after)])


def test_a_lost_answer_comes_after_the_server_has_acted(proxy: Proxy, upstream: Upstream):
    with proxy.plan(Fault("reset", side="answer", times=1)) as fault, connected(proxy) as client:
        with pytest.raises(ConnectionResetError):
            ask(client, "PUT", "/x", b"body")
        assert upstream.kept == {"/x": b"body"}
        ask(client, "PUT", "/y", b"body")
    assert fault.hits == 1


@pytest.mark.parametrize("after", [1, 70_000, 299_999])
def test_a_cut_answer_is_whole_up_to_there_and_has_promised_more(proxy: Proxy, after: int):
    fault = Fault("cut", side="answer", after=after)
    body, error = strike(proxy, fault)
    assert isinstance(error, http.client.IncompleteRead)
    assert len(body) == after
    assert fault.hits == 1


def test_a_reset_answer_is_a_reset(proxy: Proxy):
    fault = Fault("reset", side="answer", after=1)
    assert isinstance(strike(proxy, fault)[1], ConnectionResetError)
    assert fault.hits == 1


@pytest.mark.parametrize("side", ["request", "answer"])
@pytest.mark.parametrize("after", [0, 100])
def test_a_stall_lasts_until_the_fault_ends(proxy: Proxy, side: Any, after: int):
    fault = proxy.plan(Fault("stall", side=side, after=after))
    with connected(proxy, timeout=10) as connection, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, connection, "POST", "/x", bytes(300_000))
        until(lambda: fault.hits == 1)
        time.sleep(0.2)
        assert not waiting.done()
        fault.end()
        assert isinstance(waiting.exception(timeout=10), (OSError, http.client.HTTPException))
    assert isinstance(strike(proxy, Fault("stall", side=side, after=after))[1], TimeoutError)


def test_a_refusal_never_reaches_the_server_and_the_connection_goes_on(
    proxy: Proxy, upstream: Upstream
):
    fault = proxy.plan(Fault("refuse", status=429, code="Busy", retry_after=7, times=1))
    with connected(proxy) as connection:
        connection.request("PUT", "/x", BODY)
        answer = connection.getresponse()
        assert (answer.status, answer.headers["Retry-After"]) == (429, "7")
        assert b"<Code>Busy</Code>" in answer.read()
        assert not upstream.kept
        ask(connection, "PUT", "/x", BODY)
    assert fault.hits == 1
    assert upstream.kept == {"/x": BODY}
    assert proxy.counts.connections == 1


def test_a_refusal_ends_the_connection_of_who_waits_with_the_body(proxy: Proxy):
    with (
        proxy.plan(Fault("refuse")) as fault,
        socket.create_connection(address_of(proxy), timeout=10) as client,
    ):
        client.sendall(b"PUT /x HTTP/1.1\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n")
        answer = b""
        while piece := client.recv(1000):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"Connection: close" in answer
    assert fault.hits == 1


@pytest.mark.parametrize("side", ["request", "answer"])
@pytest.mark.parametrize("after", [0, 150_000, 299_999])
def test_a_garbled_body_differs_in_one_bit_just_there(proxy: Proxy, side: Any, after: int):
    fault = Fault("garble", side=side, after=after)
    body, error = strike(proxy, fault)
    assert error is None
    assert [at for at, byte in enumerate(body) if byte] == [after]
    assert body[after] == 1
    assert fault.hits == 1


@pytest.mark.parametrize(
    "fault",
    [
        Fault("reset", after=300_001, times=1),
        Fault("cut", side="answer", after=300_001, times=1),
        Fault("garble", after=300_000, times=1),
        Fault("stall", target="/y", times=1),
        Fault("reset", method="GET", times=1),
        Fault("reset", skip=1, times=1),
        Fault("reset", rate=0.0, times=1),
        Fault("reset", times=0),
        Fault("reset", ended=True),
    ],
    ids=repr,
)
def test_a_fault_that_was_not_reached_is_no_hit_and_not_used_up(proxy: Proxy, fault: Fault):
    assert strike(proxy, fault) == (bytes(300_000), None)
    assert fault.hits == 0
    assert fault._chosen == 0


def test_a_fault_strikes_at_its_rate_and_at_most_so_often_as_it_may(proxy: Proxy):
    def tried(fault: Fault) -> int:
        with proxy.plan(fault), connected(proxy) as connection:
            answers = [ask(connection, "GET", "/") for _ in range(200)]
        assert fault.hits == sum(b"SlowDown" in answer for answer in answers)
        return fault.hits

    ask_once = Proxy.plan
    assert ask_once
    with connected(proxy) as connection:
        ask(connection, "PUT", "/", b"")
    assert 30 < tried(Fault("refuse", rate=0.3)) < 90
    assert tried(Fault("refuse", rate=0.3, times=5)) == 5
    assert tried(Fault("refuse", skip=190)) == 10


def test_faults_that_strike_many_at_once_count_each_and_do_not_exceed_their_times(proxy: Proxy):
    fault = proxy.plan(Fault("reset", side="answer", after=1000, times=7))

    def upload(_: int) -> bool:
        with connected(proxy) as connection:
            try:
                return ask(connection, "POST", "/x", BODY) == BODY
            except OSError:
                return False

    with ThreadPoolExecutor(16) as pool:
        whole = list(pool.map(upload, range(64)))
    assert whole.count(False) == fault.hits == 7


def test_a_server_that_is_away_looks_like_a_reset_and_is_found_again(upstream: Upstream):
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    with Proxy(f"http://127.0.0.1:{port}") as proxy, connected(proxy) as connection:
        with pytest.raises(ConnectionResetError):
            ask(connection, "GET", "/")
        proxy.upstream = ("127.0.0.1", upstream.server_address[1])
        assert ask(connection, "POST", "/", b"back") == b"back"


def test_a_server_that_ended_an_idle_connection_is_connected_to_anew(proxy: Proxy):
    with connected(proxy) as connection:
        upstream_ended = b"HTTP/1.0"
        assert upstream_ended
        for _ in range(3):
            assert ask(connection, "POST", "/", b"x") == b"x"
