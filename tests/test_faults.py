"""What goes wrong between a store and its bucket, on real servers, and what comes of it.

`TABLE` says which fault gives which outcome: the right bytes, or one clear error in bounded time.
After every row: the planned fault was hit, nothing false was delivered, the next try succeeds and
reads back whole, and in the bucket lie only whole blobs, manifests and records, and no unfinished
multipart upload.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import logging
import os
import re
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import pytest
from serving import Fault, HAProxy, Proxy

from casartifacts import errors, names, planning
from casartifacts.backends import boto3 as s3_backend
from casartifacts.backends import gcs as gcs_backend
from casartifacts.backends.boto3 import Boto3ArtifactStore
from casartifacts.backends.gcs import GCSArtifactStore
from casartifacts.backoff import Backoff
from casartifacts.digest import digest_of
from casartifacts.manifest import Manifest
from casartifacts.records import Ref, StoreRecord
from casartifacts.store import ContentStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from serving import Server

pytest_plugins = ["serving.fixtures"]

# Contents of three blobs, where a blob is at most so large.
BLOB_LIMIT = 2 * 2**20
LARGE = 5 * 2**20
SMALL = 100_000

# How many tries there are, and seconds in which a row must have ended.
TRIES = 4
BOUND = 20

# Seconds without a byte after which a client gives up.
PATIENCE = 0.7

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
    Row("latency of 100 ms", {}, "any", ALL, RIGHT, link={"latency_seconds": 0.1}),
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
    Row("half a list", {"kind": "cut", "side": "answer", "after": 99}, "listings", ("list",), RIGHT),
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
        Row(f"{status} {code}", {"kind": "refuse", "status": status, "code": code, "times": 3},
            "any", ALL, RIGHT)
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
        self.near = self.store(side.near, tries=1)

    def store(self, client: Any, *, tries: int = TRIES) -> ContentStore:
        """Open the store, without a cache, with a client; delays are short."""
        kind: Any = GCSArtifactStore if self.side.protocol == "gcs" else Boto3ArtifactStore
        backend = kind(self.side.bucket, client, prefix=self.prefix)
        return ContentStore(Backoff(backend, max_retries=tries, min_delay=0.01, max_delay=0.05))

    def far(self) -> ContentStore:
        """Open the store through the proxy."""
        return self.store(self.side.far)

    def plan(self, fault: dict[str, Any], strikes: str = "any") -> Fault:
        """Plan a fault for these requests; once, unless it says otherwise."""
        asked = REQUESTS[strikes][self.side.protocol]
        return self.proxy.plan(Fault(**{"times": 1, **asked, **fault}))

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
        monkeypatch.setattr(s3_backend, "_CONNECT_TIMEOUT", PATIENCE)
        monkeypatch.setattr(s3_backend, "_READ_TIMEOUT", PATIENCE)
        proxy = Proxy(server.home)
        bucket = server.make_bucket()
        clients = [client_of(server.behind(url), bucket, use) for url in (server.home, proxy.url)]
        server.behind(server.home)
        sides[name] = Side(server.protocol, bucket, proxy, *clients)
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
        with pytest.raises(Exception, match="") as caught:
            job.do(store)
        told = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
        kinds = {kind.__name__ for kind in type(caught.value).__mro__}
        assert kinds & set(row.outcome.kind.split("|")), caught.value
        assert re.search(row.outcome.words, told), told
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
