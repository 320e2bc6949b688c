"""S3 and GCS keep the contracts on real servers, alone and under `ContentStore`."""

from __future__ import annotations

import filecmp
import io
import json
import os
import pickle
import random
import subprocess
import sys
import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn, cast

import boto3
import pytest
import requests
from botocore import UNSIGNED
from botocore.config import Config
from botocore.credentials import RefreshableCredentials
from google.api_core.exceptions import NotFound, ServiceUnavailable
from google.auth.credentials import AnonymousCredentials, Credentials
from google.cloud import storage
from requests.adapters import HTTPAdapter
from serving import Proxy

from casartifacts import errors, open_store
from casartifacts.backends.boto3 import Boto3ArtifactStore
from casartifacts.backends.gcs import GCSArtifactStore
from casartifacts.backoff import Backoff
from casartifacts.bodies import Range
from casartifacts.cache import ArtifactCache
from casartifacts.store import ContentStore
from casartifacts.testing import Check, checks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from serving import Server

    from casartifacts.protocols import ArtifactStore, Backend

pytest_plugins = ["serving.fixtures"]


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
    # Its manifest asked for; four hints, five blobs, manifest and ref written.
    assert requests(lambda: upload(store, large)) <= 12
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


@pytest.mark.parametrize(
    "steps", [3, pytest.param(30, marks=pytest.mark.slow)], ids=["short", "long"]
)
def test_what_is_nearly_the_same_costs_what_is_new(
    counted: tuple[Proxy, str], tmp_path: Path, steps: int
) -> None:
    """256 MiB of which a tenth is new in one place, everything shifted, at the end of a chain."""
    proxy, url = counted
    chance = random.Random(steps)
    size = 256 * 2**20
    new = size // 10
    body = b"".join(chance.randbytes(2**20) for _ in range(256))
    file = tmp_path / "model.pt"

    def upload(store: ContentStore) -> str:
        proxy.reset()
        with file.open("rb") as opened:
            return store.add(opened, filename="model.pt")

    def step() -> None:
        nonlocal body
        at = chance.randrange(size - new)
        body = chance.randbytes(1000) + body[:at] + chance.randbytes(new) + body[at + new :]
        file.write_bytes(body)

    store = open_store(url, cache=False)
    file.write_bytes(body)
    upload(store)
    sent = []
    for _ in range(steps):
        step()
        upload(store)
        assert sum(proxy.counts.requests.values()) <= 8
        sent.append(proxy.counts.sent_bodies / new)
    # Now and then a piece of an old blob that is hardly used any more is stored anew.
    assert sum(sent) / steps <= 1.1, sent
    assert sent[-1] <= 1.1, sent
    step()
    another = open_store(url, cache=False)
    proxy.latency_seconds = 0.03  # so that what is asked at once is under way at once
    artifact_id = upload(another)
    proxy.latency_seconds = 0.0
    told = f"{steps} steps: {dict(proxy.counts.requests)}, {proxy.counts.round_trips} round trips"
    assert sum(proxy.counts.requests.values()) <= 30, told
    assert proxy.counts.sent_bodies <= 1.1 * new, told
    open_store(url, cache=False).download(artifact_id, tmp_path / "copy")
    assert filecmp.cmp(tmp_path / "copy", file, shallow=False)


def test_what_each_request_must_carry_is_carried_by_each_that_knows_it(
    ceph: Server, use: Callable[[Server], None]
) -> None:
    """Encryption, storage class, rights, who pays: in the words of boto3."""
    use(ceph)
    seen: list[tuple[str, dict[str, str]]] = []

    def note(request: Any, **_: object) -> None:
        told = {name.lower(): value for name, value in request.headers.items()}
        headers = {k: v.decode() if isinstance(v, bytes) else v for k, v in told.items()}
        seen.append((request.method, headers))

    client = boto3.client("s3", config=Config(request_checksum_calculation="when_required"))
    client.meta.events.register("before-send.s3", note)
    words = {"ACL": "private", "StorageClass": "STANDARD", "RequestPayer": "requester"}
    store = Boto3ArtifactStore(ceph.make_bucket(), client, prefix="runs", extra_args=words)
    store.write("small", io.BytesIO(b"small"))
    store.write("large", io.BytesIO(bytes(65 * 2**20)))
    assert store.write_if_absent("small", io.BytesIO(b"other")) is False
    assert [entry.name for entry in store.list("")] == ["large", "small"]
    with store.open_range("large", 64 * 2**20, 10) as reader:
        assert reader.read(10) == bytes(10)
    store.move("small", "moved")
    store.remove("moved")
    writes = [headers for method, headers in seen if "x-amz-acl" in headers]
    assert [headers["x-amz-storage-class"] for headers in writes] == ["STANDARD"] * 4
    assert {method for method, headers in seen if "x-amz-acl" in headers} == {"PUT", "POST"}
    assert {headers.get("x-amz-request-payer", "") for _, headers in seen} == {"requester"}
    # Whether a part is wanted is asked first; what is small goes out at once.
    asks = [int(headers["content-length"]) for _, headers in seen if "expect" in headers]
    assert asks == [64 * 2**20, 2**20]


@pytest.fixture
def counted_gcs(gcs: Server, use: Callable[[Server], None]) -> Iterator[tuple[Proxy, str]]:
    """A bucket of GCS behind a proxy, and its name."""
    name = gcs.make_bucket()
    with Proxy(gcs.home) as proxy:
        use(gcs.behind(proxy.url))
        yield proxy, name
        gcs.behind(gcs.home)


def test_parameters_of_uploads_to_gcs_and_who_pays_are_sent(counted_gcs: tuple[Proxy, str]) -> None:
    proxy, name = counted_gcs
    store = GCSArtifactStore(name, extra_args={"predefinedAcl": "private"}, user_project="payer")
    store.write("a", io.BytesIO(b"a"))
    assert store.stat("a") is not None
    with store.open_reader("a") as reader:
        assert reader.read() == b"a"
    store.remove("a")
    paths = [exchange.target for exchange in proxy.counts.exchanges]
    assert len(paths) == 4
    assert all("userProject=payer" in path for path in paths)
    assert ["predefinedAcl=private" in path for path in paths] == [True, False, False, False]


class Answers(HTTPAdapter):
    """Answers requests with what it was given, one after the other, and keeps what they sent."""

    def __init__(self, *answers: tuple[int, bytes]) -> None:
        super().__init__()
        self._answers = iter(answers)
        self.sent: list[bytes] = []

    def send(self, request: requests.PreparedRequest, **_: Any) -> requests.Response:  # type: ignore[override]  # requests has five more
        body: Any = request.body or ()
        self.sent.append(b"".join(body))
        answer = requests.Response()
        answer.status_code, told = next(self._answers)
        answer.raw = io.BytesIO(told)
        answer.request, answer.url = request, request.url or ""
        return answer

    def client(self) -> Any:
        """Return a client of GCS that asks this."""
        session = requests.Session()
        session.mount("https://", self)
        return storage.Client(project="p", credentials=AnonymousCredentials(), _http=session)  # type: ignore[no-untyped-call]  # google.auth has no types


@pytest.mark.parametrize(
    ("told", "met"),
    [
        ("No such object: my-bucket/runs/a-bucket", errors.ArtifactNotFound),
        ("The specified bucket does not exist.", NotFound),
    ],
)
def test_google_says_whether_the_object_or_the_bucket_is_missing(
    told: str, met: type[Exception]
) -> None:
    """The bucket's and the object's name may have "bucket" in them."""
    for body in (told.encode(), json.dumps({"error": {"code": 404, "message": told}}).encode()):
        answers = Answers((404, body), (404, body))
        store = GCSArtifactStore("my-bucket", answers.client(), prefix="runs")
        with pytest.raises(met):
            store.open_reader("a-bucket")
        with pytest.raises(met):
            store.remove("a-bucket")


def identity(store: Any) -> tuple[object, ...]:
    """Return who a store's client is to its server, and where that is."""
    client = store.client
    if isinstance(store, GCSArtifactStore):
        credentials: Any = client._credentials
        email = getattr(credentials, "service_account_email", None)
        return type(credentials), email, client.project, client.api_endpoint
    keys, config = client._request_signer._credentials, client.meta.config
    signed = config.signature_version is not UNSIGNED
    known = (keys and keys.access_key, signed, client.meta.region_name, client.meta.endpoint_url)
    return (*known, config.s3, config.read_timeout, config.retries)


def in_a_child(look: Callable[[], object]) -> object:
    """Return what a forked process sees."""
    here, there = os.pipe()
    if not (child := os.fork()):
        try:
            os.write(there, pickle.dumps(look()))
        finally:
            os._exit(0)
    os.close(there)
    with os.fdopen(here, "rb") as seen:
        sent = seen.read()
    os.waitpid(child, 0)
    return pickle.loads(sent)  # noqa: S301 -- made in this function


class ServiceAccount(Credentials):
    """Credentials of Google's that are somebody."""

    service_account_email = "somebody@example.com"

    def refresh(self, request: object) -> None:
        """Need nothing."""


def handed_in(kind: str) -> Any:
    """Return a store with a client of a kind that no setting of the machine gives."""
    if kind.startswith("gcs"):
        credentials = ServiceAccount() if kind == "gcs" else AnonymousCredentials()  # type: ignore[no-untyped-call]  # as above
        where = {"api_endpoint": "http://127.0.0.1:9"}
        return GCSArtifactStore("b", storage.Client("theirs", credentials, client_options=where))
    config = Config(
        signature_version=UNSIGNED if kind == "s3 unsigned" else None,
        s3={"addressing_style": "path"},
        read_timeout=7,
        retries={"total_max_attempts": 2, "mode": "standard"},
    )
    keys = ("a", "secret") if kind == "s3" else ()
    session = boto3.Session(*keys, region_name="eu-north-1")
    return Boto3ArtifactStore("b", session.client("s3", config=config, endpoint_url="http://there"))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A machine whose own settings give other credentials."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "the machine's")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    user = {"type": "authorized_user", "client_id": "1", "client_secret": "2", "refresh_token": "3"}
    (tmp_path / "user.json").write_text(json.dumps(user))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "user.json"))
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    return monkeypatch


KINDS = ["s3", "s3 unsigned", "gcs", "gcs anonymous"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("kind", KINDS)
def test_a_client_that_was_handed_in_is_the_same_somebody_after_a_fork(kind: str) -> None:
    store = handed_in(kind)
    assert in_a_child(lambda: (identity(store), in_a_child(lambda: identity(store)))) == (
        identity(store),
        identity(store),
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_retries_that_are_off_stay_off_after_a_fork() -> None:
    store = handed_in("s3")
    store.retries_off()
    retries = in_a_child(lambda: store.client.meta.config.retries["total_max_attempts"])
    assert retries == 1


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("kind", ["s3", "gcs"])
def test_a_pickle_that_would_come_out_as_somebody_else_is_refused(kind: str) -> None:
    store = handed_in(kind)
    with pytest.raises(TypeError, match=r"ArtifactStore\('b'\).* credentials do not travel"):
        pickle.dumps(store)


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("kind", ["s3 unsigned", "gcs anonymous"])
def test_a_pickled_store_stays_anonymous(kind: str) -> None:
    store = handed_in(kind)
    copy = pickle.loads(pickle.dumps(store))  # noqa: S301 -- made in this line
    again = pickle.loads(pickle.dumps(copy))  # noqa: S301 -- made in this line
    assert identity(store) == identity(copy) == identity(again)


@pytest.mark.parametrize("kind", ["s3", "gcs"])
def test_a_pickle_has_the_settings_and_no_secret_where_the_machine_has_the_credentials(
    kind: str, machine: pytest.MonkeyPatch
) -> None:
    machine.setenv("AWS_ACCESS_KEY_ID", "a")
    machine.setattr("google.auth.default", lambda **_: (ServiceAccount(), None))  # type: ignore[no-untyped-call]  # as above
    store = handed_in(kind)
    sent = pickle.dumps(store)
    assert b"secret" not in sent
    assert b"Credentials" not in sent
    assert identity(pickle.loads(sent)) == identity(store)  # noqa: S301 -- made above


def test_keys_that_are_renewed_are_those_of_the_same_role(machine: pytest.MonkeyPatch) -> None:
    """A role that is assumed has other keys in each process."""
    until = datetime.now(UTC) + timedelta(hours=1)

    def assumed(key: str, method: str) -> Any:
        return RefreshableCredentials(key, "secret", "token", until, dict, method)

    store = handed_in("s3")
    store.client._request_signer._credentials = assumed("one", "assume-role")
    found = "botocore.session.Session.get_credentials"
    machine.setattr(found, lambda _: assumed("two", "assume-role"))
    assert b"secret" not in pickle.dumps(store)
    machine.setattr(found, lambda _: assumed("two", "iam-role"))
    with pytest.raises(TypeError):
        pickle.dumps(store)


def raise_(error: Exception) -> NoReturn:
    raise error


@pytest.mark.parametrize("method", ["write", "write_if_absent"])
def test_an_upload_to_gcs_is_tried_again_from_its_beginning(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    answers = Answers((503, b""), (200, b'{"size": "4"}'))
    getattr(GCSArtifactStore("b", answers.client()), method)("a", io.BytesIO(b"body"))
    assert [sent.count(b"body") for sent in answers.sent] == [1, 1]


def test_an_upload_to_gcs_is_sent_once_under_backoff_or_if_its_body_fails() -> None:
    answers = Answers((503, b""))
    store = GCSArtifactStore("b", answers.client())
    store.retries_off()
    with pytest.raises(ServiceUnavailable):
        store.write("a", io.BytesIO(b"body"))
    assert len(answers.sent) == 1
    failures = [ConnectionError("theirs")]
    body = Range(lambda *_: raise_(failures.pop()), start=0, length=4)
    with pytest.raises(ConnectionError, match="theirs"):
        GCSArtifactStore("b", Answers().client()).write("a", cast("BinaryIO", body))


# Prints how many connections each client keeps, and how many threads may want one.
_CONNECTIONS = """
from casartifacts import parallel
from casartifacts.backends.boto3 import Boto3ArtifactStore
from casartifacts.backends.gcs import GCSArtifactStore
s3 = Boto3ArtifactStore("b").client._endpoint.http_session._max_pool_connections
session = GCSArtifactStore("b").client._http
adapters = [session.get_adapter(f"{scheme}://host") for scheme in ("http", "https")]
kept = [adapter.poolmanager.connection_pool_kw["maxsize"] for adapter in adapters]
print(parallel.THREADS, s3, *kept)
"""


def test_clients_keep_a_connection_for_every_thread() -> None:
    environment = {
        **os.environ,
        "CASARTIFACTS_WORKERS": "100",
        "STORAGE_EMULATOR_HOST": "http://127.0.0.1:9",
    }
    made = subprocess.run(
        [sys.executable, "-c", _CONNECTIONS], env=environment, check=True, capture_output=True
    )
    threads, *kept = map(int, made.stdout.split())
    assert threads > 100
    assert len(kept) == 3
    assert min(kept) >= threads


@pytest.mark.parametrize(
    ("module", "kind", "extra"),
    [("boto3", Boto3ArtifactStore, "s3"), ("google.cloud", GCSArtifactStore, "gcs")],
)
def test_a_missing_package_says_how_to_install_it(
    module: str, kind: Callable[[str], object], extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"pip install 'casartifacts\[{extra}\]'"):
        kind("bucket")


def test_stores_print_as_the_code_that_makes_them_and_tell_no_secret(
    ceph: Server, gcs: Server, use: Callable[[Server], None], tmp_path: Path
) -> None:
    for server, scheme in ((ceph, "s3"), (gcs, "gs")):
        use(server)
        store = open_store(f"{scheme}://{server.make_bucket()}/runs/one", cache=tmp_path / "cache")
        code = repr(store)
        assert server.secret_access_key is None or server.secret_access_key not in code
        known = {
            each.__name__: each
            for each in (ContentStore, Backoff, Boto3ArtifactStore, GCSArtifactStore, ArtifactCache)
        }
        made = eval(code, known)  # noqa: S307 -- it was printed one line above
        assert repr(made) == code
        artifact_id = store.add(io.BytesIO(b"the same place"))
        with made.open_reader(artifact_id) as reader:
            assert reader.read() == b"the same place"
