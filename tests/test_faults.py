"""What goes wrong between a store and its bucket, on real servers, and what comes of it.

`TABLE` says which fault gives which outcome: the right bytes, or one clear error in bounded time.
After every row: the planned fault was hit, nothing false was delivered, the next try succeeds and
reads back whole, and in the bucket lie only whole blobs, manifests and records, and no unfinished
multipart upload.
"""

from __future__ import annotations

import io
import itertools
import json
import logging
import os
import re
import socket
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self

import pytest
from serving import Exchange, Fault, HAProxy, Proxy

from casartifacts import errors, names, planning
from casartifacts.backends import boto3 as s3_backend
from casartifacts.backends import gcs as gcs_backend
from casartifacts.backends.boto3 import Boto3ArtifactStore
from casartifacts.backends.gcs import GCSArtifactStore
from casartifacts.backends.memory import MemoryArtifactStore
from casartifacts.backoff import Backoff
from casartifacts.digest import digest_of
from casartifacts.manifest import Manifest
from casartifacts.records import Ref, StoreRecord
from casartifacts.store import ContentStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from serving import Server

    from casartifacts.protocols import Entry

pytest_plugins = ["serving.fixtures"]

# Contents of three blobs, where a blob is at most so large.
BLOB_LIMIT = 2 * 2**20
LARGE = 5 * 2**20
SMALL = 100_000

# How many tries there are, and seconds in which a row must have ended.
TRIES = 4
BOUND = 100

# Seconds without a byte after which a client gives up.
PATIENCE = 1.0

Act = Literal["upload", "upload small", "download", "read", "remove", "list"]

ALL: tuple[Act, ...] = ("upload", "upload small", "download", "read", "remove", "list")

BOTH = ("ceph", "gcs")


@dataclass(frozen=True)
class Right:
    """The act succeeds with the right bytes; nothing is heard of the fault."""


@dataclass(frozen=True)
class Refused:
    """The act raises this class, in these words."""

    kind: str
    words: str


@dataclass(frozen=True)
class False_:  # noqa: N801 -- the word is taken
    """The act succeeds; reading says `CorruptArtifact` until the content is uploaded again."""


RIGHT = Right()
FALSE_THEN_HEALED = False_()


@dataclass(frozen=True)
class Row:
    """What goes wrong with which requests, for which acts and servers, and what comes of it."""

    name: str
    fault: dict[str, Any]
    strikes: str
    acts: tuple[Act, ...]
    outcome: Any
    servers: tuple[str, ...] = BOTH
    link: dict[str, float] = field(default_factory=dict)


# The requests that a fault strikes, in the words of each protocol.
REQUESTS: dict[str, dict[str, dict[str, Any]]] = {
    "any": {"s3": {}, "gcs": {"target": "/o"}},
    "writes": {"s3": {"method": "PUT"}, "gcs": {"method": "POST", "target": "^/upload/"}},
    "reads": {"s3": {"method": "GET", "target": "^/[^?]+/"}, "gcs": {"target": "^/download/"}},
    "reads of blobs": {
        "s3": {"method": "GET", "target": "/blobs/"},
        "gcs": {"target": "^/download/.*blobs"},
    },
    "reads of manifests": {
        "s3": {"method": "GET", "target": "/manifests/"},
        "gcs": {"target": "^/download/.*manifests"},
    },
    "looks": {"s3": {"method": "HEAD"}, "gcs": {"method": "GET", "target": "^/storage/.*/o/"}},
    "removals": {"s3": {"method": "DELETE"}, "gcs": {"method": "DELETE"}},
    "listings": {
        "s3": {"method": "GET", "target": "list-type=2"},
        "gcs": {"method": "GET", "target": r"/o\?"},
    },
    "conditions": {"s3": {"header": "If-None-Match"}},
    "writes of blobs": {"s3": {"method": "PUT", "target": "/blobs/"}},
    "writes of manifests": {"s3": {"method": "PUT", "target": "/manifests/"}},
    "writes of refs": {"s3": {"method": "PUT", "target": "/refs/"}},
}

UPLOADS: tuple[Act, ...] = ("upload", "upload small")
READS: tuple[Act, ...] = ("download", "read")

TABLE = [
    # Slow, and in the end right.
    Row("latency of 50 ms", {}, "any", ALL, RIGHT, link={"latency_seconds": 0.05}),
    Row(
        "1 Gbit/s and 10 ms",
        {},
        "any",
        ALL,
        RIGHT,
        link={"latency_seconds": 0.01, "bytes_per_second": 125e6},
    ),
    # Connections that break.
    Row("reset at connect", {"kind": "drop", "times": 2}, "any", ALL, RIGHT),
    Row("reset before the request", {"kind": "reset", "times": 2}, "any", ALL, RIGHT),
    Row("cut before the request", {"kind": "cut", "times": 2}, "any", ALL, RIGHT),
    Row("reset at byte 1", {"kind": "reset", "after": 1, "times": 2}, "writes", UPLOADS, RIGHT),
    Row("reset in a body", {"kind": "reset", "after": 70_000}, "writes", UPLOADS, RIGHT),
    Row("cut in a body", {"kind": "cut", "after": 70_000}, "writes", UPLOADS, RIGHT),
    Row("cut late", {"kind": "cut", "after": 1_000_000, "times": 2}, "writes", ("upload",), RIGHT),
    # Answers that break: in the head, at the first byte, in the middle, at the last byte.
    Row("no answer", {"kind": "reset", "side": "answer"}, "reads", (*READS, "list"), RIGHT),
    Row("no list", {"kind": "cut", "side": "answer"}, "listings", ("list",), RIGHT),
    Row(
        "half a list", {"kind": "cut", "side": "answer", "after": 99}, "listings", ("list",), RIGHT
    ),
    Row("answer of a byte", {"kind": "cut", "side": "answer", "after": 1}, "reads", READS, RIGHT),
    *(
        Row(
            f"{kind} after {after} bytes of an answer",
            {"kind": kind, "side": "answer", "after": after, "times": 2},
            "reads of blobs",
            READS,
            RIGHT,
        )
        for kind in ("reset", "cut")
        for after in (1, 65_536, 900_000)
    ),
    Row(
        "half a manifest",
        {"kind": "cut", "side": "answer", "after": 500},
        "reads of manifests",
        READS,
        RIGHT,
    ),
    Row(
        "a truncated body that claims to be whole",
        {"kind": "shorten", "side": "answer", "after": 10_000},
        "reads of blobs",
        READS,
        RIGHT,
    ),
    Row(
        "a truncated manifest that claims to be whole",
        {"kind": "shorten", "side": "answer", "after": 100},
        "reads of manifests",
        READS,
        RIGHT,
    ),
    # The server has acted, and the client does not hear of it.
    Row("lost answer", {"kind": "reset", "side": "answer", "times": 2}, "writes", UPLOADS, RIGHT),
    Row("lost look", {"kind": "reset", "side": "answer"}, "looks", ("upload", "remove"), RIGHT),
    Row("lost removal", {"kind": "reset", "side": "answer"}, "removals", ("remove",), RIGHT),
    Row("lost trash", {"kind": "cut", "side": "answer"}, "writes", ("remove",), RIGHT),
    # Black holes.
    Row("hole before the request", {"kind": "stall"}, "any", ("remove", "list"), RIGHT),
    Row("hole in a body", {"kind": "stall", "after": 70_000}, "writes", UPLOADS, RIGHT),
    Row("hole for an answer", {"kind": "stall", "side": "answer"}, "writes", UPLOADS, RIGHT),
    Row(
        "hole in an answer",
        {"kind": "stall", "side": "answer", "after": 65_536},
        "reads of blobs",
        READS,
        RIGHT,
    ),
    Row(
        "a hole for ever",
        {"kind": "stall", "times": None},
        "any",
        ("upload", "download", "remove", "list"),
        Refused("HTTPClientError|Timeout", r"[Tt]ime[d -]?out(.|\n)*try 4"),
    ),
    Row(
        "a network that is gone",
        {"kind": "reset", "times": None},
        "any",
        ALL,
        Refused("HTTPClientError|ConnectionError", r"(onnection|reset)(.|\n)*try 4"),
    ),
    # Servers in trouble.
    *(
        Row(
            f"{status} {code}",
            {"kind": "refuse", "status": status, "code": code, "times": 2},
            "any",
            ALL if code == "SlowDown" else ("upload", "download", "list"),
            RIGHT,
        )
        for status, code in (
            (500, "InternalError"),
            (503, "SlowDown"),
            (503, "ServiceUnavailable"),
            (429, "TooManyRequests"),
        )
    ),
    Row(
        "503 for ever",
        {"kind": "refuse", "status": 503, "code": "SlowDown", "times": None},
        "any",
        ALL,
        Refused("ClientError|ServiceUnavailable", r"(SlowDown|503)(.|\n)*try 4"),
    ),
    # What no retry mends.
    Row(
        "credentials that expire midway",
        {"kind": "refuse", "status": 400, "code": "ExpiredToken", "skip": 1, "times": None},
        "any",
        ALL,
        Refused("ClientError|BadRequest", "Expired|have expired"),
    ),
    Row(
        "a right that is missing",
        {"kind": "refuse", "status": 403, "code": "AccessDenied", "times": None},
        "any",
        ALL,
        Refused("ClientError|Forbidden", "AccessDenied|403"),
    ),
    # Wrong bytes.
    Row(
        "a bit flipped in an answer",
        {"kind": "garble", "side": "answer", "after": 50_000},
        "reads of blobs",
        READS,
        RIGHT,
    ),
    Row(
        "a bit flipped in a manifest on its way down",
        {"kind": "garble", "side": "answer", "after": 300},
        "reads of manifests",
        READS,
        RIGHT,
    ),
    Row(
        "bits flipped in every answer",
        {"kind": "garble", "side": "answer", "after": 50_000, "times": None},
        "reads of blobs",
        READS,
        Refused("CorruptArtifact", "expected digest .* got .* Nothing"),
    ),
    Row(
        "a bit flipped in a blob on its way up",
        {"kind": "garble", "after": 60_000},
        "writes",
        UPLOADS,
        FALSE_THEN_HEALED,
    ),
    Row(
        "a bit flipped in a manifest on its way up",
        {"kind": "garble", "after": 300},
        "writes of manifests",
        ("upload",),
        FALSE_THEN_HEALED,
        servers=("ceph",),
    ),
    Row(
        "a bit flipped in a ref on its way up",
        {"kind": "garble", "after": 100},
        "writes of refs",
        UPLOADS,
        FALSE_THEN_HEALED,
        servers=("ceph",),
    ),
    # Conditions.
    Row(
        "conditions are refused",
        {"kind": "refuse", "status": 501, "code": "NotImplemented", "times": None},
        "conditions",
        UPLOADS,
        RIGHT,
        servers=("ceph",),
    ),
    Row(  # Ceph's signature covers the field
        "conditions are ignored",
        {"kind": "strip", "header": "If-None-Match", "times": None},
        "conditions",
        UPLOADS,
        RIGHT,
        servers=("ministack",),
    ),
    Row(
        "somebody is writing the same",
        {"kind": "refuse", "status": 409, "code": "ConditionalRequestConflict", "times": 3},
        "conditions",
        UPLOADS,
        RIGHT,
        servers=("ceph",),
    ),
]


def expanded() -> list[Any]:
    found = []
    for row in TABLE:
        for server, act in itertools.product(row.servers, row.acts):
            found.append(pytest.param(row, server, act, id=f"{row.name}, {act}, {server}"))
    return found


@dataclass
class Side:
    """A server, a bucket there, and clients of it that our backends made: near, and far."""

    protocol: str
    bucket: str
    proxy: Proxy
    near: Any
    far: Any


class Place:
    """A folder in a bucket of a server: near, and through a proxy that is to break things."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self.proxy = side.proxy
        self.prefix = uuid.uuid4().hex
        self.near = self.store(side.near)

    def store(self, client: Any, *, tries: int = TRIES, max_delay: float = 0.05) -> ContentStore:
        """Open the store, without a cache, with a client; delays are short."""
        kind: Any = GCSArtifactStore if self.side.protocol == "gcs" else Boto3ArtifactStore
        backend = kind(self.side.bucket, client, prefix=self.prefix)
        return ContentStore(
            Backoff(backend, max_retries=tries, min_delay=0.01, max_delay=max_delay)
        )

    def far(self) -> ContentStore:
        """Open the store through the proxy."""
        return self.store(self.side.far)

    def plan(self, fault: dict[str, Any], strikes: str = "any") -> Fault:
        """Plan a fault for these requests; once, unless it says otherwise."""
        asked = REQUESTS[strikes][self.side.protocol]
        return self.proxy.plan(Fault(**{"times": 1, **asked, **fault}))

    def exchanges(self, status: int | None = None) -> list[Exchange]:
        """Return what was asked about objects through the proxy, or what was answered so."""
        # Google's library also asks for the bucket, once, in a thread of its own.
        about = REQUESTS["any"][self.side.protocol].get("target", "")
        found = [each for each in self.proxy.counts.exchanges if about in each.target]
        return [each for each in found if status in (None, each.status)]

    def named(self) -> dict[str, bytes]:
        """Return all that lies there, without the prefix."""
        client, bucket, top = self.side.near, self.side.bucket, f"{self.prefix}/"
        if self.side.protocol == "gcs":
            blobs = client.list_blobs(bucket, prefix=top)
            return {blob.name.removeprefix(top): blob.download_as_bytes() for blob in blobs}
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=top)
        keys = [item["Key"] for page in pages for item in page.get("Contents", ())]
        return {
            key.removeprefix(top): client.get_object(Bucket=bucket, Key=key)["Body"].read()
            for key in keys
        }

    def check_whole(self) -> None:
        """See that nothing lies there but what is whole, and nothing hidden."""
        named = self.named()
        record = named.pop(names.STORE_RECORD)
        limit = StoreRecord.decode(record, "").small_content_limit
        sizes = {}
        for name, body in named.items():
            if name.startswith((names.REFS, names.TRASH + names.REFS)):
                ref = Ref.decode_any(body, name)
                assert ref.digest
                sizes[ref.digest] = ref.size
                assert ref.size <= limit or names.manifest(ref.digest) in named
                assert ref.size > limit or names.blob(ref.digest) in named
            elif not name.startswith("manifests/"):
                assert name == names.blob(digest_of(body))
        for name, body in named.items():
            if name.startswith("manifests/"):
                digest = name.rpartition("/")[2]
                manifest = Manifest.decode(body, digest=digest, size=sizes.get(digest, LARGE))
                assert all(names.blob(blob) in named for blob, _ in manifest.blobs)
        if self.side.protocol == "s3":
            listed = self.side.near.list_multipart_uploads(Bucket=self.side.bucket)
            assert not listed.get("Uploads")


@pytest.fixture(scope="session")
def sides() -> Iterator[dict[str, Side]]:
    """What is made once for each server."""
    found: dict[str, Side] = {}
    yield found
    for side in found.values():
        side.near.close()
        side.far.close()
        side.proxy.close()


@pytest.fixture
def side(
    request: pytest.FixtureRequest,
    use: Callable[[Server], None],
    monkeypatch: pytest.MonkeyPatch,
    sides: dict[str, Side],
) -> Side:
    """The server of a row; black holes are given up soon there."""
    name = request.param
    server: Server = request.getfixturevalue(name)
    if name not in sides:
        proxy = Proxy(server.home)
        bucket = server.make_bucket()
        near = client_of(server.behind(server.home), bucket, use)
        monkeypatch.setattr(s3_backend, "_CONNECT_TIMEOUT", PATIENCE)
        monkeypatch.setattr(s3_backend, "_READ_TIMEOUT", PATIENCE)
        far = client_of(server.behind(proxy.url), bucket, use)
        server.behind(server.home)
        sides[name] = Side(server.protocol, bucket, proxy, near, far)
    monkeypatch.setattr(gcs_backend, "_TIMEOUT", (PATIENCE, PATIENCE))
    return sides[name]


def client_of(server: Server, bucket: str, use: Callable[[Server], None]) -> Any:
    """Return a client as our backends make it, without retries of its own."""
    use(server)
    kind: Any = GCSArtifactStore if server.protocol == "gcs" else Boto3ArtifactStore
    backend = kind(bucket)
    backend.retries_off()
    return backend.client


@pytest.fixture
def place(side: Side, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """An empty folder; blobs are small there."""
    monkeypatch.setattr(planning, "BLOB_LIMIT", BLOB_LIMIT)
    place = Place(side)
    yield place
    side.proxy.latency_seconds, side.proxy.bytes_per_second = 0.0, None
    for fault in side.proxy._faults:
        fault.end()


@dataclass
class Job:
    """What a row does, again and again."""

    place: Place
    act: Act
    folder: Path
    content: bytes = b""
    kept: str = ""
    uploaded: str = ""

    def prepare(self) -> None:
        """Put into the bucket what the act needs."""
        self.content = os.urandom(SMALL if self.act in ("upload small", "list") else LARGE)
        self.kept = self.place.near.add(io.BytesIO(b"kept" * 10))
        if self.act not in UPLOADS:
            self.uploaded = self.place.near.add(io.BytesIO(self.content))

    def do(self, store: ContentStore) -> None:
        """Act, and look at what the act itself gives."""
        if self.act in UPLOADS:
            self.uploaded = store.add(io.BytesIO(self.content))
        elif self.act == "download":
            self.download(store)
        elif self.act == "read":
            with store.open_reader(self.uploaded) as reader:
                assert reader.read() == self.content
        elif self.act == "remove":
            store.remove(self.uploaded)
        else:
            ids = {ref.artifact_id for ref in store.refs()}
            assert ids == {self.kept, self.uploaded}

    def download(self, store: ContentStore) -> None:
        target = self.folder / uuid.uuid4().hex
        try:
            store.download(self.uploaded, target)
            assert target.read_bytes() == self.content
        except BaseException:
            assert not target.exists()
            raise
        assert [path.name for path in self.folder.iterdir()] == [target.name]
        target.unlink()

    def check(self) -> None:
        """See that what the act has done is done, by asking the server without the proxy."""
        fresh = ContentStore(self.place.near.backend)
        assert fresh.open_reader(self.kept).read() == b"kept" * 10
        if self.act == "remove":
            with pytest.raises(errors.ArtifactNotFound):
                fresh.open_reader(self.uploaded)
            assert names.trashed_ref(self.uploaded) in self.place.named()
        else:
            self.download(fresh)


@pytest.mark.parametrize(("row", "side", "act"), expanded(), indirect=["side"])
def test_a_fault_has_the_outcome_of_the_table(
    row: Row, place: Place, act: Act, tmp_path: Path
) -> None:
    job = Job(place, act, tmp_path)
    job.prepare()
    store = place.far()
    place.proxy.reset()
    if row.fault.get("kind") == "drop":
        place.proxy.hang_up()
    for name, value in row.link.items():
        setattr(place.proxy, name, value)
    fault = place.plan(row.fault, row.strikes) if row.fault else None
    began = time.monotonic()
    if isinstance(row.outcome, Refused):
        kinds, told = raised(lambda: job.do(store))
        assert re.search(rf"\b({row.outcome.kind})\b", kinds), told
        assert re.search(row.outcome.words, told), told
        # What no retry mends was not tried again.
        assert ("try 4" in row.outcome.words) == ("try 4" in told)
    else:
        job.do(store)
    assert time.monotonic() - began < BOUND
    if fault is not None:
        assert fault.hits >= 1
        fault.end()
    else:
        assert place.proxy.counts.requests.total() > 1
    if row.outcome is FALSE_THEN_HEALED:
        for _ in range(2):  # not only the first time
            with pytest.raises(errors.CorruptArtifact):
                job.download(store)
        store.write(job.uploaded, io.BytesIO(job.content))
    elif act == "remove" and isinstance(row.outcome, Right):
        with pytest.raises(errors.ArtifactNotFound):
            job.do(store)
    else:
        job.do(store)  # the next try
    job.check()
    place.check_whole()


# What the table has no room for.


def raised(act: Callable[[], object]) -> tuple[str, str]:
    """Act, which must fail; return the classes of the error and all that it says."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 -- the caller looks at it
        act()
    kinds = "|".join(kind.__name__ for kind in type(caught.value).__mro__)
    return kinds, "\n".join([str(caught.value), *getattr(caught.value, "__notes__", ())])


CALLS: dict[str, Callable[[Backoff], object]] = {
    "open_reader": lambda backend: backend.open_reader("there").read(),
    "open_range": lambda backend: backend.open_range("there", 0, 4).read(),
    "write": lambda backend: backend.write("new", io.BytesIO(b"body")),
    "write_if_absent": lambda backend: backend.write_if_absent("new", io.BytesIO(b"body")),
    "stat": lambda backend: backend.stat("there"),
    "remove": lambda backend: backend.remove("there"),
    "list": lambda backend: list(backend.list("")),
    "list_folders": lambda backend: list(backend.list_folders("")),
    "move": lambda backend: backend.move("there", "elsewhere"),
}


@pytest.mark.parametrize("side", BOTH, indirect=True)
@pytest.mark.parametrize("call", CALLS)
def test_one_failed_call_is_one_request_and_a_server_in_trouble_is_asked_as_often_as_was_said(
    place: Place, call: str
) -> None:
    """Not thirty: the retries of an SDK do not multiply with those of `Backoff`."""
    place.near.backend.write("there", io.BytesIO(b"body"))
    far: Any = place.far().backend
    for status, code, tries in ((403, "AccessDenied", 1), (503, "SlowDown", TRIES)):
        place.proxy.reset()
        trouble = {"kind": "refuse", "status": status, "code": code, "times": None}
        with place.plan(trouble) as fault:
            began = time.monotonic()
            raised(lambda: CALLS[call](far))
            assert time.monotonic() - began < BOUND
        assert fault.hits == len(place.exchanges()) == tries
    CALLS[call](far)  # and now it goes well


@pytest.mark.parametrize("side", BOTH, indirect=True)
def test_backoff_removes_once(place: Place) -> None:
    place.near.backend.write("there", io.BytesIO(b"body"))
    far = place.far().backend
    place.proxy.reset()
    far.remove("there")
    assert place.proxy.counts.requests["DELETE"] == 1
    assert len(place.exchanges()) <= 2
    with pytest.raises(errors.ArtifactNotFound):
        far.remove("there")
    assert place.proxy.counts.requests["DELETE"] <= 2


def test_a_client_that_we_make_gives_up_a_black_hole_in_half_a_minute(
    ceph: Server, use: Callable[[Server], None]
) -> None:
    use(ceph)
    config = Boto3ArtifactStore("bucket").client.meta.config
    assert config.connect_timeout <= 10
    assert config.read_timeout <= 30
    assert max(gcs_backend._TIMEOUT) <= 30


# Rights, asked of Ceph itself: an anonymous user has those that the bucket's policy grants.

RIGHTS = ("s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:ListBucket")

# What is missing, and which acts then fail, in which words. All others succeed.
MISSING_RIGHTS: list[tuple[str, dict[Act, str]]] = [
    (
        "s3:GetObject",
        dict.fromkeys(("upload small", "download", "read", "remove", "list"), "Grant s3:GetObject"),
    ),
    ("s3:PutObject", {"upload small": "AccessDenied", "remove": "AccessDenied"}),
    ("s3:DeleteObject", {"remove": "AccessDenied"}),
    # S3 answers 403, not 404, for what is missing.
    (
        "s3:ListBucket",
        {"upload small": "s3:ListBucket", "remove": "s3:ListBucket", "list": "AccessDenied"},
    ),
]


@pytest.mark.parametrize("side", ["ceph"], indirect=True)
@pytest.mark.parametrize(("lacking", "refused"), MISSING_RIGHTS, ids=lambda each: str(each)[:20])
def test_without_a_right_what_needs_it_is_refused_at_once_and_nothing_else(
    place: Place, lacking: str, refused: dict[Act, str], tmp_path: Path
) -> None:
    boto3 = pytest.importorskip("boto3")
    from botocore import UNSIGNED
    from botocore.config import Config

    side = place.side
    config = Config(signature_version=UNSIGNED, request_checksum_calculation="when_required")
    anonymous = boto3.client("s3", endpoint_url=side.proxy.url, config=config)
    bucket = f"arn:aws:s3:::{side.bucket}"
    granted = [right for right in RIGHTS if right != lacking]
    statement = {
        "Effect": "Allow",
        "Principal": "*",
        "Action": granted,
        "Resource": [bucket, f"{bucket}/*"],
    }
    policy = {"Version": "2012-10-17", "Statement": [statement]}
    acts: tuple[Act, ...] = ("upload small", "download", "read", "list", "remove")
    jobs = [Job(Place(side), act, tmp_path) for act in acts]
    for job in jobs:
        job.prepare()
    side.near.put_bucket_policy(Bucket=side.bucket, Policy=json.dumps(policy))
    try:
        for job in jobs:
            side.proxy.reset()
            act = partial(job.do, job.place.store(anonymous))
            if job.act in refused:
                kinds, told = raised(act)
                assert "ClientError" in kinds
                assert refused[job.act] in told
            else:
                act()
            assert len(place.exchanges(403)) == (job.act in refused)
    finally:
        side.near.delete_bucket_policy(Bucket=side.bucket)
        anonymous.close()
    for job in jobs:
        if job.act in refused:
            job.do(job.place.near)
        job.check()
        job.place.check_whole()


@pytest.mark.parametrize("side", BOTH, indirect=True)
def test_a_missing_bucket_is_named_at_once(place: Place) -> None:
    place.side = replace(place.side, bucket="there-is-none")
    acts: list[Callable[[ContentStore], object]] = [
        lambda store: store.add(io.BytesIO(b"content")),
        lambda store: list(store.refs()),
    ]
    if place.side.protocol == "s3":  # fake-gcs-server says only "Not Found", Google says which
        acts += [lambda store: store.open_reader("id"), lambda store: store.remove("id")]
    for act in acts:
        store = place.store(place.side.far)
        place.proxy.reset()
        kinds, told = raised(lambda: act(store))  # noqa: B023 -- called here
        assert "ClientError" in kinds or "NotFound" in kinds
        assert re.search("NoSuchBucket|404 .*there-is-none", told)
        assert "ArtifactNotFound" not in kinds
        if place.side.protocol == "s3":
            assert "there-is-none" in told
            assert "There is no such bucket: is its name right" in told
        assert len(place.exchanges()) <= 2


@pytest.mark.parametrize("side", ["gcs"], indirect=True)
def test_google_credentials_that_expire_midway_are_renewed(
    place: Place, side: Side, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from google.auth.credentials import Credentials
    from google.cloud import storage

    class Renewed(Credentials):
        """Credentials that count how often they were renewed."""

        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.times = 0

        def refresh(self, request: object) -> None:
            del request
            self.times += 1
            self.token = f"token-{self.times}"

    monkeypatch.setenv("STORAGE_EMULATOR_HOST", side.proxy.url)
    for act in ("upload", "upload small", "download", "read", "list", "remove"):
        credentials = Renewed()
        client = storage.Client(project="test", credentials=credentials)
        job = Job(Place(side), act, tmp_path)
        job.prepare()
        expired = {"kind": "refuse", "status": 401, "code": "Unauthorized", "skip": 1}
        with job.place.plan(expired) as fault:
            job.do(job.place.store(client))
        assert fault.hits == 1
        assert credentials.times == 2
        client.close()
        job.check()
        job.place.check_whole()


# Objects in parts, which only a bucket used alone writes.


@pytest.mark.parametrize("side", ["ceph"], indirect=True)
@pytest.mark.parametrize(
    "faults",
    [
        [{"kind": "reset", "method": "PUT", "after": 70_000, "skip": 1}],
        [{"kind": "reset", "side": "answer", "method": "PUT", "skip": 1}],
        [{"kind": "refuse", "method": "POST", "target": "uploadId"}],
        [{"kind": "reset", "side": "answer", "method": "POST", "target": "uploadId"}],
        [
            {"kind": "refuse", "method": "PUT", "skip": 2},
            {"kind": "reset", "method": "DELETE", "times": 2},
        ],
        [
            {"kind": "refuse", "method": "PUT", "skip": 2},
            {"kind": "reset", "side": "answer", "method": "DELETE"},
        ],
    ],
    ids=["a part", "lost part", "end refused", "lost end", "end of the end", "lost end of the end"],
)
def test_an_upload_in_parts_that_breaks_leaves_no_parts(
    place: Place, faults: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_backend, "_PART_SIZE", 5 * 2**20)
    body = os.urandom(11 * 2**20)
    planned = [place.plan(fault) for fault in faults]
    place.far().backend.write("large", io.BytesIO(body))
    assert [fault.hits for fault in planned] == [fault.get("times", 1) for fault in faults]
    assert place.named() == {"large": body}
    listed = place.side.near.list_multipart_uploads(Bucket=place.side.bucket)
    assert not listed.get("Uploads")


# TLS, by HAProxy.

HAS_HAPROXY = pytest.mark.skipif(bool(HAProxy.missing()), reason=str(HAProxy.missing()))


@HAS_HAPROXY
@pytest.mark.parametrize("side", ["ceph"], indirect=True)
@pytest.mark.parametrize("answer", ["411", "501"])
def test_a_client_whose_checksums_break_the_server_over_tls_is_told_the_setting(
    place: Place,
    answer: str,
    ceph: Server,
    use: Callable[[Server], None],
) -> None:
    """Ceph answers the trailer of boto3's default with 411 by itself, Swift with 501."""
    boto3 = pytest.importorskip("boto3")
    from botocore.config import Config

    with HAProxy(place.proxy.url) as front, ExitStack() as ending:
        use(ceph.behind(front.url, ca_bundle=front.ca_bundle))
        place.near.add(io.BytesIO(b"to make the store"))
        theirs = ending.enter_context(closing(boto3.client("s3")))
        store = place.store(theirs)
        place.proxy.reset()
        with ExitStack() as planned:
            if answer == "501":
                refusal = {
                    "kind": "refuse",
                    "status": 501,
                    "code": "NotImplemented",
                    "header": "X-Amz-Trailer",
                }
                planned.enter_context(place.plan({**refusal, "times": None}))
            _, told = raised(lambda: store.add(io.BytesIO(b"content")))
        assert "request_checksum_calculation='when_required'" in told
        assert 1 <= len(place.exchanges(int(answer))) <= 3
        config = Config(request_checksum_calculation="when_required")
        ours = ending.enter_context(closing(boto3.client("s3", config=config)))
        store = place.store(ours)
        assert store.open_reader(store.add(io.BytesIO(b"content"))).read() == b"content"
        place.check_whole()


@HAS_HAPROXY
@pytest.mark.parametrize("side", BOTH, indirect=True)
def test_behind_a_front_that_refuses_and_is_killed_every_byte_arrives(
    place: Place, side: Side, request: pytest.FixtureRequest, use: Callable[[Server], None]
) -> None:
    server: Server = request.getfixturevalue("gcs" if side.protocol == "gcs" else "ceph")
    with HAProxy(side.proxy.url, refused_permille=100) as front, ExitStack() as ending:
        client = client_of(server.behind(front.url, ca_bundle=front.ca_bundle), side.bucket, use)
        ending.callback(client.close)
        refused = 0

        def kill() -> None:
            nonlocal refused
            until = time.monotonic() + 60
            while not (refused or (front.refused() and fault.hits)) and time.monotonic() < until:
                time.sleep(0.05)
            refused += front.refused()
            front.kill()
            time.sleep(0.3)
            front.restart()

        with place.plan({"kind": "reset", "side": "answer", "rate": 0.05, "times": None}) as fault:
            under_load(place, client, kill)
        assert refused
        assert fault.hits


def test_a_handshake_that_breaks_off_is_tried_again_and_a_wrong_certificate_is_not(
    ceph: Server, use: Callable[[Server], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    met = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    connection.recv(100_000)
                    met.append(connection)
                    connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        port = listener.getsockname()[1]
        use(ceph.behind(f"https://127.0.0.1:{port}"))
        backend: Any = Boto3ArtifactStore("bucket")
        retrying = Backoff(backend, max_retries=TRIES, min_delay=0.01, max_delay=0.05)
        raised(lambda: retrying.stat("name"))
        backend.client.close()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert len(met) == TRIES
    use(ceph.over_https())
    monkeypatch.delenv("AWS_CA_BUNDLE")
    backend = Boto3ArtifactStore("bucket")
    with Counted() as retries:
        kinds, told = raised(lambda: Backoff(backend).stat("name"))
    backend.client.close()
    assert "SSLError" in kinds
    assert "certificate" in told.lower()
    assert not retries.lines


class Counted(logging.Handler):
    """Keeps what `Backoff` says of each retry."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.lines.append(record.getMessage())

    def __enter__(self) -> Self:
        logging.getLogger("casartifacts.backoff").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("casartifacts.backoff").removeHandler(self)


# Listings that break off.


class BrokenOff(MemoryArtifactStore):
    """A remote place whose first listing breaks off after two names."""

    remote = True
    breaks = True

    def __init__(self, order: Callable[[Iterator[Entry]], Iterable[Entry]]) -> None:
        super().__init__()
        self.order = order

    def list(self, prefix: str) -> Iterator[Entry]:
        for number, entry in enumerate(self.order(super().list(prefix))):
            if self.breaks and number == 2:
                self.breaks = False
                raise ConnectionError("planned")
            yield entry


def test_a_listing_that_broke_off_goes_on_or_is_an_error_but_leaves_out_nothing() -> None:
    expected = [f"refs/{letter}" for letter in "abcde"]
    orders: list[Callable[[Iterator[Entry]], Iterable[Entry]]] = [
        iter,
        lambda entries: reversed(list(entries)),
    ]
    for order in orders:
        place = BrokenOff(order)
        for name in expected:
            place.write(name, io.BytesIO(b""))
        retrying = Backoff(place, max_retries=TRIES, min_delay=0.01, max_delay=0.05)
        if order is not iter:
            with pytest.raises(RuntimeError, match="do not come in order; list again"):
                list(retrying.list("refs/"))
        assert sorted(entry.name for entry in retrying.list("refs/")) == expected


# Servers that die.


def under_load(
    place: Place, client: Any, break_it: Callable[[], object], *, times: int = 3
) -> None:
    """Let four threads upload, read and remove while something breaks; then look at everything."""
    # A minute at most, and half of it on average: a restart takes seconds.
    store = place.store(client, tries=40, max_delay=2)
    stop = threading.Event()
    kept: dict[str, bytes] = {}
    removed: list[str] = []
    shared = os.urandom(LARGE)

    def work(number: int) -> int:
        rounds = 0
        while not stop.is_set() or rounds < 2:
            rounds += 1
            own = os.urandom(SMALL * number + 1)
            for content in (own, shared):
                kept[store.add(io.BytesIO(content))] = content
            gone = store.add(io.BytesIO(own))
            assert store.open_reader(gone).read() == own
            store.remove(gone)
            removed.append(gone)
        return rounds

    with ThreadPoolExecutor(4) as pool, Counted() as retries:
        working = [pool.submit(work, number) for number in range(4)]
        try:
            for _ in range(times):
                time.sleep(0.7)
                break_it()
        finally:
            stop.set()
        assert all(each.result(timeout=100) >= 2 for each in working)
    assert retries.lines
    fresh = ContentStore(place.near.backend)
    for artifact_id, content in kept.items():
        assert fresh.open_reader(artifact_id).read() == content
    for artifact_id in removed:
        with pytest.raises(errors.ArtifactNotFound):
            fresh.open_reader(artifact_id)
    assert {ref.artifact_id for ref in fresh.refs()} == set(kept)
    place.check_whole()


@pytest.mark.parametrize("name", BOTH)
def test_a_server_that_is_killed_and_started_under_load_loses_and_falsifies_nothing(
    name: str,
    start: Callable[..., Server],
    use: Callable[[Server], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(planning, "BLOB_LIMIT", BLOB_LIMIT)
    server = start(name, durable=True)
    bucket = server.make_bucket()
    killed = iter([("radosgw",), ("osd",), ()] if name == "ceph" else [(), (), ()])
    with Proxy(server.home) as proxy, ExitStack() as ending:
        far = client_of(server.behind(proxy.url), bucket, use)
        near = client_of(server.behind(server.home), bucket, use)
        ending.callback(far.close)
        ending.callback(near.close)
        place = Place(Side(server.protocol, bucket, proxy, near, far))

        def kill() -> None:
            server.kill(*next(killed))
            time.sleep(0.2)
            server.restart()

        under_load(place, far, kill)
