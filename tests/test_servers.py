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

import optuna
import pytest
import serving
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import Database, Fault, Proxy, Server
from serving.apart import ProxyApart
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
) -> None:
    use(view)
    bucket = view.make_bucket()
    put(view, bucket, "a/b", BODY)
    assert get(view, bucket, "a/b") == BODY


def test_over_https_the_certificate_is_checked_also_by_the_stricter_rules_of_python_3_13(
    ceph: Server,
) -> None:
    address = urlsplit(ceph.over_https().url)
    strict = ssl.create_default_context(cafile=ceph.ca_bundle)
    strict.verify_flags |= ssl.VERIFY_X509_STRICT
    connection = http.client.HTTPSConnection(address.netloc, context=strict, timeout=60)
    with contextlib.closing(connection):
        connection.request("GET", "/")
        assert connection.getresponse().status == http.client.OK
    with pytest.raises(ssl.SSLCertVerificationError):
        http.client.HTTPSConnection(address.netloc, timeout=60).request("GET", "/")


@pytest.mark.parametrize("name", serving.NAMES)
def test_a_durable_server_that_was_killed_has_what_it_acknowledged_and_stopped_it_leaves_nothing(
    name: str, start: Callable[..., Server], use: Callable[[Server], None]
) -> None:
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
def test_a_server_whose_starter_was_killed_is_gone_too(tmp_path: Path) -> None:
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


def test_a_program_that_ends_is_an_error_with_its_last_words() -> None:
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
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# The databases.


@pytest.mark.parametrize("name", serving.DATABASES)
def test_a_database_keeps_a_study_for_who_has_its_url_and_stopped_it_leaves_nothing(
    name: str, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(name)  # skips without it
    with serving.start_database(name) as database:
        with serving.open_storage(database.url) as storage:
            study = optuna.create_study(study_name="kept", storage=storage)
            study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
            params = [trial.params for trial in study.trials]
        with serving.open_storage(database.url) as storage:
            seen = optuna.load_study(study_name="kept", storage=storage)
            assert [trial.params for trial in seen.trials] == params
        address = urlsplit(database.url)
        assert address.hostname == "127.0.0.1"
        assert address.password
        stranger = database.url.replace(address.password, "wrong")
        with (
            pytest.raises(Exception, match=r"(?i)password|denied"),
            serving.open_storage(stranger) as storage,
        ):
            optuna.load_study(study_name="kept", storage=storage)
        folder, pids = database._programs.folder, database.pids()
        assert all(map(alive, pids))
    assert not folder.exists()
    assert not any(map(alive, pids))


# The proxy.


class Answering(http.server.BaseHTTPRequestHandler):
    """Answers POST with the body that came, PUT and DELETE with nothing, GET with what was put."""

    protocol_version = "HTTP/1.1"
    server: Upstream
    wbufsize = -1

    def do_POST(self) -> None:
        self.answer(200, self.body())

    def do_PUT(self) -> None:
        if self.path in ("/early", "/deaf"):
            self.answer(403, b"no")
            self.close_connection = True
            self.server.deaf.wait(self.path == "/deaf" and 100)
            return
        body = self.body()
        self.server.kept[self.path] = body
        self.answer(200, b"")

    def do_GET(self) -> None:
        self.answer(200, self.server.kept[self.path])

    do_HEAD = do_GET  # noqa: N815 -- the library's way to name it

    def do_DELETE(self) -> None:
        del self.server.kept[self.path]
        self.answer(204, None)

    def handle_expect_100(self) -> bool:
        if self.path == "/unwanted":
            self.answer(412, b"no")
            return False
        super().handle_expect_100()
        self.wfile.flush()
        return True

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
        self.close_connection = self.path == "/parting"  # without a word
        shown = b"" if self.command == "HEAD" or body is None else body
        if body is None:
            self.end_headers()
        elif "chunked" in self.path:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for start in range(0, len(shown), 70_000):
                piece = shown[start : start + 70_000]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            if self.command != "HEAD":
                self.wfile.write(b"0\r\n\r\n")
        elif "endless" in self.path:
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(shown)
        else:
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(shown)
        self.wfile.flush()


class Upstream(http.server.ThreadingHTTPServer):
    """A server of the standard library, the bodies that it keeps, and those that broke off."""

    request_queue_size = 128
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.kept: dict[str, bytes] = {}
        self.deaf = threading.Event()
        self.ended = 0
        self.broken: list[tuple[str, int]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        self.ended += 1

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
def connected(
    proxy: Proxy | ProxyApart, *, timeout: float = 60.0
) -> Iterator[http.client.HTTPConnection]:
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
def test_every_body_passes_whole_and_is_counted_exactly(
    upstream: Upstream, plan: list[Any]
) -> None:
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


def test_heads_and_interim_answers_are_counted_to_the_byte(proxy: Proxy) -> None:
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
    with socket.create_connection(address_of(proxy), timeout=60) as client:
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


def test_a_body_that_was_not_wanted_is_not_waited_for_and_the_connection_goes_on(
    proxy: Proxy,
) -> None:
    refused = b"PUT /unwanted HTTP/1.1\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n"
    with socket.create_connection(address_of(proxy), timeout=60) as client:
        for wanted in (b"HTTP/1.1 412", b"no"), (b"HTTP/1.1 200", b"four"):
            client.sendall(refused if wanted[1] == b"no" else FOUR)
            answer = b""
            while not answer.endswith(wanted[1]):
                answer += client.recv(1000)
            assert answer.startswith(wanted[0])
    assert [each.status for each in proxy.counts.exchanges] == [412, 200]
    assert [each.sent for each in proxy.counts.exchanges] == [0, 4]


@pytest.mark.parametrize("target", ["/early", "/deaf"])
def test_an_answer_that_comes_before_the_body_reaches_the_client(
    proxy: Proxy, upstream: Upstream, target: str
) -> None:
    upstream.deaf.clear()
    with connected(proxy) as connection:
        assert ask(connection, "PUT", target, bytes(20_000_000)) == b"no"
        assert ask(connection, "POST", "/", b"x") == b"x"
    upstream.deaf.set()
    assert [each.status for each in proxy.counts.exchanges] == [403, 200]


def test_a_forked_child_does_not_keep_connections_open(proxy: Proxy) -> None:
    with connected(proxy) as connection:
        ask(connection, "POST", "/", b"x")
        go, come = os.pipe()
        here, begun = os.pipe()
        child = os.fork()
        if not child:
            os.close(come)
            os.write(begun, b"x")
            os.read(go, 1)
            os._exit(0)
        os.read(here, 1)  # what the child does after a fork, it has done
        proxy.close()
        with pytest.raises(ConnectionError):
            ask(connection, "POST", "/", b"x")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address_of(proxy), timeout=1)
        for descriptor in (come, go, here, begun):
            os.close(descriptor)
        assert os.waitpid(child, 0)[1] == 0


def test_memory_does_not_grow_with_what_passes(proxy: Proxy, upstream: Upstream) -> None:
    size, piece = 512 * 2**20, bytes(2**20)
    with socket.create_server(("127.0.0.1", 0)) as server:
        proxy.upstream = server.getsockname()
        with socket.create_connection(address_of(proxy), timeout=20) as client:
            client.sendall(b"PUT / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % size)
            taking = threading.Thread(target=take, args=(server, size))
            taking.start()
            client.sendall(piece)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            for _ in range(size // len(piece) - 1):
                client.sendall(piece)
            assert client.recv(100).endswith(b"\r\n\r\n")
            taking.join()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < 8 * 1024  # KiB
    assert proxy.counts.sent_bodies == size


def take(server: socket.socket, size: int) -> None:
    """Read a request with a body of this size and say that it is well."""
    connection, _ = server.accept()
    buffer = bytearray(2**20)
    with connection:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += connection.recv(1)
        while size:
            size -= connection.recv_into(buffer)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


def test_round_trips_are_the_longest_chain_of_requests_and_latency_is_paid_for_each(
    proxy: Proxy,
) -> None:
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


def test_bandwidth_is_shared_by_all_connections_and_counts_each_direction_apart(
    proxy: Proxy,
) -> None:
    proxy.bytes_per_second = 20e6

    def there_and_back(_: int) -> None:
        with connected(proxy) as connection:
            assert ask(connection, "POST", "/", BODY * 10) == BODY * 10

    with ThreadPoolExecutor(4) as pool:
        began = time.monotonic()
        list(pool.map(there_and_back, range(4)))
        took = time.monotonic() - began
    made_up = 0.005  # seconds that the link makes up for when the proxy was late
    assert took >= 4 * 10 * len(BODY) / 20e6 - made_up


def test_a_proxy_in_a_process_of_its_own_tells_what_one_in_a_thread_tells(
    proxy: Proxy, upstream: Upstream
) -> None:
    def exchange(through: Proxy | ProxyApart) -> float:
        began = time.monotonic()
        with connected(through) as connection:
            ask(connection, "PUT", "/x", BODY)
            assert ask(connection, "GET", "/x") == BODY
            ask(connection, "DELETE", "/x")
        return time.monotonic() - began

    exchange(proxy)
    with ProxyApart(upstream.url) as apart:
        exchange(apart)
        assert apart.counts() == proxy.counts
        apart.reset()
        assert apart.counts() == serving.Counts()
        apart.set(latency_seconds=0.05, bytes_per_second=2e6)
        assert exchange(apart) >= 4 * 0.05 + 2 * len(BODY) / 2e6 - 2 * 0.005
        assert apart.counts().requests == {"PUT": 1, "GET": 1, "DELETE": 1}


def test_a_proxy_apart_that_cannot_start_or_has_failed_says_so(upstream: Upstream) -> None:
    with pytest.raises(serving.ServerFailed):
        ProxyApart("https://127.0.0.1:1")
    apart = ProxyApart(upstream.url)
    with pytest.raises(serving.ServerFailed):
        apart._ask("dance")
    with pytest.raises(serving.ServerFailed, match="ended with 1"):
        apart.close()


@LINUX
def test_a_proxy_apart_is_gone_when_its_starter_is() -> None:
    starter = """
import signal, sys
sys.path.insert(0, sys.argv[1])
from serving.apart import ProxyApart
print(ProxyApart("http://127.0.0.1:1")._process.pid, flush=True)
signal.pause()
"""
    command = [sys.executable, "-c", starter, str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        pid = int(process.stdout.readline())
        assert alive(pid)
        process.kill()
    until(lambda: not alive(pid))


FOUR = b"POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\nfour"


def address_of(proxy: Proxy) -> tuple[str, int]:
    address = urlsplit(proxy.url)
    assert address.hostname
    assert address.port
    return address.hostname, address.port


# Its faults. Where one strikes: what the server has seen by then, and what the client sees.


def strike(
    proxy: Proxy, fault: Fault, *, size: int = 300_000, timeout: float = 60.0
) -> tuple[bytes, Exception | None]:
    """Upload under this fault; return what came of the answer's body, and the error."""
    with proxy.plan(fault), connected(proxy, timeout=timeout) as connection:
        try:
            return ask(connection, "POST", "/x", bytes(size)), None
        except http.client.IncompleteRead as error:
            return error.partial, error
        except (OSError, http.client.HTTPException) as error:
            return b"", error


def test_a_reset_before_the_request_leaves_the_server_untouched(
    proxy: Proxy, upstream: Upstream
) -> None:
    fault = Fault("reset", method="PUT")
    with proxy.plan(fault), connected(proxy) as connection:
        with pytest.raises(ConnectionResetError):
            ask(connection, "PUT", "/x", b"body")
        connection.close()  # a client that was reset while it sent begins anew
        ask(connection, "POST", "/", b"another method")
    assert fault.hits == 1
    assert not upstream.kept
    assert [each.status for each in proxy.counts.exchanges] == [None, 200]


@pytest.mark.parametrize("kind", ["reset", "cut"])
@pytest.mark.parametrize("after", [1, 70_000, 299_999])
def test_a_break_in_a_request_gives_the_server_just_so_many_bytes(
    proxy: Proxy, upstream: Upstream, kind: Any, after: int
) -> None:
    fault = Fault(kind, after=after)
    _, error = strike(proxy, fault)
    assert isinstance(error, (OSError, http.client.RemoteDisconnected))
    assert fault.hits == 1
    until(lambda: upstream.broken == [("/x", after)])


def test_a_lost_answer_comes_after_the_server_has_acted(proxy: Proxy, upstream: Upstream) -> None:
    with proxy.plan(Fault("reset", side="answer", times=1)) as fault, connected(proxy) as client:
        with pytest.raises(ConnectionResetError):
            ask(client, "PUT", "/x", b"body")
        assert upstream.kept == {"/x": b"body"}
        ask(client, "PUT", "/y", b"body")
    assert fault.hits == 1


@pytest.mark.parametrize("after", [1, 70_000, 299_999])
def test_a_cut_answer_is_whole_up_to_there_and_has_promised_more(proxy: Proxy, after: int) -> None:
    fault = Fault("cut", side="answer", after=after)
    body, error = strike(proxy, fault)
    assert isinstance(error, http.client.IncompleteRead)
    assert len(body) == after
    assert fault.hits == 1


def test_a_reset_answer_is_a_reset(proxy: Proxy) -> None:
    fault = Fault("reset", side="answer", after=1)
    assert isinstance(strike(proxy, fault)[1], ConnectionResetError)
    assert fault.hits == 1


@pytest.mark.parametrize("side", ["request", "answer"])
@pytest.mark.parametrize("after", [0, 100])
def test_a_stall_lasts_until_the_fault_ends(proxy: Proxy, side: Any, after: int) -> None:
    fault = proxy.plan(Fault("stall", side=side, after=after))
    with connected(proxy, timeout=60) as connection, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, connection, "POST", "/x", bytes(300_000))
        until(lambda: fault.hits == 1)
        time.sleep(0.2)
        assert not waiting.done()
        fault.end()
        assert isinstance(waiting.exception(timeout=60), (OSError, http.client.HTTPException))
    _, error = strike(proxy, Fault("stall", side=side, after=after), timeout=0.5)
    assert isinstance(error, TimeoutError)


def test_a_refusal_never_reaches_the_server_and_the_connection_goes_on(
    proxy: Proxy, upstream: Upstream
) -> None:
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


def test_a_refusal_ends_the_connection_of_who_waits_with_the_body(proxy: Proxy) -> None:
    with (
        proxy.plan(Fault("refuse")) as fault,
        socket.create_connection(address_of(proxy), timeout=60) as client,
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
def test_a_garbled_body_differs_in_one_bit_just_there(proxy: Proxy, side: Any, after: int) -> None:
    fault = Fault("garble", side=side, after=after)
    body, error = strike(proxy, fault)
    assert error is None
    assert [at for at, byte in enumerate(body) if byte] == [after]
    assert body[after] == 1
    assert fault.hits == 1


def test_a_dropped_connection_has_carried_nothing_and_the_next_one_is_well(
    proxy: Proxy, upstream: Upstream
) -> None:
    with proxy.plan(Fault("drop", times=2)) as fault:
        for _ in range(2):
            with connected(proxy) as connection, pytest.raises(ConnectionResetError):
                ask(connection, "PUT", "/x", b"body")
        assert not proxy.counts.requests
        assert not upstream.kept
        with connected(proxy) as connection:
            assert ask(connection, "POST", "/", b"x") == b"x"
    assert fault.hits == 2


def test_after_hanging_up_clients_connect_anew(proxy: Proxy) -> None:
    with connected(proxy) as connection:
        ask(connection, "POST", "/", b"x")
        proxy.hang_up()
        with pytest.raises((ConnectionError, http.client.RemoteDisconnected)):
            ask(connection, "POST", "/", b"x")
        connection.close()
        assert ask(connection, "POST", "/", b"x") == b"x"
    assert proxy.counts.connections == 2


@pytest.mark.parametrize("chunked", ["", "chunked"])
def test_a_shortened_answer_is_whole_to_its_client(proxy: Proxy, chunked: str) -> None:
    with proxy.plan(Fault("shorten", side="answer", after=1000, method="GET")) as fault:
        for target, size in (("/a", 300_000), ("/b", 500)):
            with connected(proxy) as connection:
                ask(connection, "PUT", target + chunked, bytes(size))
                shown = 1000 if size > 1000 and not chunked else size
                assert ask(connection, "GET", target + chunked) == bytes(shown)
    assert fault.hits == (0 if chunked else 1)  # who does not announce a length cannot be believed


def test_a_stripped_field_does_not_reach_the_server_and_only_who_has_it_is_struck(
    proxy: Proxy,
) -> None:
    with proxy.plan(Fault("strip", header="Expect")) as fault, connected(proxy) as connection:
        ask(connection, "POST", "/", b"without")
        assert fault.hits == 0
        # With the field, the body would be refused before it is sent.
        connection.request("PUT", "/unwanted", b"body", {"expect": "100-continue"})
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (200, b"")
    assert fault.hits == 1


def test_haproxy_refuses_as_many_as_it_was_told_by_tls_and_comes_back(upstream: Upstream) -> None:
    if reason := serving.HAProxy.missing():
        pytest.skip(reason)
    with serving.HAProxy(upstream.url, refused_permille=500) as front:
        context = ssl.create_default_context(cafile=front.ca_bundle)

        def statuses() -> list[int]:
            address = urlsplit(front.url).netloc
            connection = http.client.HTTPSConnection(address, context=context, timeout=60)
            found = []
            with contextlib.closing(connection):
                for _ in range(40):
                    connection.request("POST", "/", b"x")
                    answer = connection.getresponse()
                    answer.read()
                    found.append(answer.status)
            return found

        seen = statuses()
        assert set(seen) == {200, 503}
        assert front.refused() == seen.count(503)
        front.kill()
        with pytest.raises(ConnectionRefusedError):
            statuses()
        front.restart()
        assert set(statuses()) == {200, 503}


@pytest.mark.parametrize(
    "fault",
    [
        Fault("reset", after=300_001, times=1),
        Fault("cut", side="answer", after=300_001, times=1),
        Fault("garble", after=300_000, times=1),
        Fault("stall", target="/y", times=1),
        Fault("reset", method="GET", times=1),
        Fault("reset", header="X-Missing", times=1),
        Fault("shorten", side="answer", after=300_000, times=1),
        Fault("reset", skip=1, times=1),
        Fault("reset", rate=0.0, times=1),
        Fault("reset", times=0),
        Fault("reset", ended=True),
    ],
    ids=repr,
)
def test_a_fault_that_was_not_reached_is_no_hit_and_not_used_up(proxy: Proxy, fault: Fault) -> None:
    assert strike(proxy, fault) == (bytes(300_000), None)
    assert fault.hits == 0
    # The proxy gives a fault back when it has ended the exchange, which is after its client has.
    give_up_at = time.monotonic() + 5
    while fault._chosen and time.monotonic() < give_up_at:
        time.sleep(0.01)
    assert fault._chosen == 0


def test_a_fault_strikes_at_its_rate_and_at_most_so_often_as_it_may(proxy: Proxy) -> None:
    def tried(fault: Fault) -> int:
        with proxy.plan(fault), connected(proxy) as connection:
            answers = [ask(connection, "GET", "/") for _ in range(200)]
        assert fault.hits == sum(b"SlowDown" in answer for answer in answers)
        return fault.hits

    with connected(proxy) as connection:
        ask(connection, "PUT", "/", b"")
    assert 30 < tried(Fault("refuse", rate=0.3)) < 90
    assert tried(Fault("refuse", rate=0.3, times=5)) == 5
    assert tried(Fault("refuse", skip=190)) == 10


def test_faults_that_strike_many_at_once_count_each_and_do_not_exceed_their_times(
    proxy: Proxy,
) -> None:
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


def test_a_server_that_is_away_looks_like_a_reset_and_is_found_again(upstream: Upstream) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    with Proxy(f"http://127.0.0.1:{port}") as proxy, connected(proxy) as connection:
        with pytest.raises(ConnectionResetError):
            ask(connection, "GET", "/")
        proxy.upstream = ("127.0.0.1", upstream.server_address[1])
        assert ask(connection, "POST", "/", b"back") == b"back"


def test_a_server_that_ended_an_idle_connection_is_connected_to_anew(
    proxy: Proxy, upstream: Upstream
) -> None:
    with connected(proxy) as connection:
        for _ in range(3):
            ended = upstream.ended
            assert ask(connection, "POST", "/parting", b"x") == b"x"
            until(lambda: upstream.ended > ended)  # noqa: B023 -- called here
    assert proxy.counts.connections == 1


# What the clients of S3 and GCS make of the proxy.


@pytest.mark.parametrize("name", ["ceph", "ministack"])
def test_boto3_through_the_proxy_is_counted_and_broken_as_planned(
    name: str, request: pytest.FixtureRequest, use: Callable[[Server], None]
) -> None:
    from botocore import exceptions

    server: Server = request.getfixturevalue(name)
    bucket = server.make_bucket()
    with Proxy(server.home) as proxy:
        use(server.behind(proxy.url))
        client = s3()
        client.put_object(Bucket=bucket, Key="a", Body=io.BytesIO(BODY))
        client.get_object(Bucket=bucket, Key="a", Range="bytes=10-19")["Body"].read()
        client.head_object(Bucket=bucket, Key="a")
        assert proxy.counts.requests == {"PUT": 1, "GET": 1, "HEAD": 1}
        assert [
            (each.status, each.range, each.sent, each.received) for each in proxy.counts.exchanges
        ] == [(200, None, len(BODY), 0), (206, "bytes=10-19", 0, 10), (200, None, 0, 0)]

        with proxy.plan(Fault("reset", side="answer", method="PUT")) as fault:
            with pytest.raises(exceptions.HTTPClientError):
                client.put_object(Bucket=bucket, Key="b", Body=io.BytesIO(BODY))
            assert fault.hits == 1
        assert client.get_object(Bucket=bucket, Key="b")["Body"].read() == BODY

        with proxy.plan(Fault("cut", method="PUT", after=50_000)) as fault:
            with pytest.raises(exceptions.HTTPClientError):
                client.put_object(Bucket=bucket, Key="c", Body=io.BytesIO(BODY))
            assert fault.hits == 1
        with pytest.raises(client.exceptions.NoSuchKey):
            client.get_object(Bucket=bucket, Key="c")

        with proxy.plan(Fault("cut", side="answer", method="GET", after=50_000)) as fault:
            with pytest.raises(exceptions.HTTPClientError):
                client.get_object(Bucket=bucket, Key="b")["Body"].read()
            assert fault.hits == 1

        with proxy.plan(Fault("refuse", status=503, code="SlowDown")) as fault:
            with pytest.raises(exceptions.ClientError, match="SlowDown"):
                client.put_object(Bucket=bucket, Key="d", Body=io.BytesIO(BODY))
            assert fault.hits == 1


def test_google_cloud_storage_stays_behind_the_proxy_also_where_the_server_names_the_address(
    gcs: Server, use: Callable[[Server], None]
) -> None:
    bucket = gcs.make_bucket()
    with Proxy(gcs.home) as proxy:
        use(gcs.behind(proxy.url))
        many = BODY * 90  # more than 8 MiB goes out in an upload that can be resumed
        resumable = blob(bucket, "a")
        resumable.chunk_size = 2**22
        resumable.upload_from_file(io.BytesIO(many), size=len(many), retry=None)
        resumable.chunk_size = None
        assert resumable.download_as_bytes(retry=None) == many
        # Newer clients ask for the bucket too, once, in a thread of their own.
        seen = [each for each in proxy.counts.exchanges if "/o" in each.target]
        assert [each.method for each in seen] == ["POST", "PUT", "PUT", "PUT", "GET"]
        assert [each.status for each in seen] == [200, 308, 308, 200, 200]
        assert sum(each.sent for each in seen if each.method == "PUT") == len(many)
        assert seen[-1].received == len(many)
        with proxy.plan(
            Fault("garble", side="answer", method="GET", target="/o/", after=5)
        ) as fault:
            from google.cloud.storage.exceptions import DataCorruption

            with pytest.raises(DataCorruption):
                resumable.download_as_bytes(retry=None)
            assert fault.hits == 1
    gcs.behind(gcs.home)


# By hand.


def test_by_hand_a_server_prints_what_to_export_and_ends_with_its_signal(
    gcs: Server, tmp_path: Path
) -> None:
    tool = Path(__file__).parent.parent / "tools" / "servers"
    command = [sys.executable, str(tool), "up", "gcs", "--proxy", "--latency", "0.01"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout
        assert process.stderr
        printed = ""
        while "Ctrl-C" not in printed:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            printed += line
        shell = f'{printed}\nprintf %s "$STORAGE_EMULATOR_HOST"'
        url = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True).stdout
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        with contextlib.closing(connection):
            connection.request("GET", "/storage/v1/b/artifacts")
            assert connection.getresponse().status == http.client.OK
        assert list(tmp_path.iterdir())
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert "requests: GET 1; round trips in a row: 2;" in process.stderr.read()
    assert not list(tmp_path.iterdir())


def test_by_hand_a_database_prints_what_optuna_wants_and_ends_with_its_signal(
    redis: Database, tmp_path: Path
) -> None:
    tool = Path(__file__).parent.parent / "tools" / "servers"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, str(tool), "up", "redis"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout
        name, _, url = process.stdout.readline().removeprefix("export ").strip().partition("=")
        assert name == "OPTUNA_STORAGE"
        with serving.open_storage(url) as storage:
            optuna.create_study(storage=storage)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert not list(tmp_path.iterdir())
