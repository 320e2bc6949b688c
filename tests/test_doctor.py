"""`casartifacts doctor`: on real servers, folders and caches, right ones and broken ones.

Whatever it finds, it says of each thing what was found and what to do, it ends in bounded time, and
nothing is left in the bucket or in the folder.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any, cast

import pytest
from serving import Fault, Proxy
from serving import proxy as proxies
from serving.link import Link

from casartifacts import ArtifactCache, chunking, doctor, names, open_store
from casartifacts.backends.memory import MemoryArtifactStore
from casartifacts.cache import mounts
from casartifacts.digest import digest_of
from casartifacts.doctor import findings
from casartifacts.opening import open_backend
from casartifacts.protocols import Entry

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping
    from pathlib import Path

    from serving import Server
    from serving.link import Job
    from serving.wire import Head

    from casartifacts.doctor import Finding

pytest_plugins = ["serving.fixtures"]

STATES = ("fine", "warning", "wrong")


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take only what is silent on purpose for silent, not a machine that stalls."""
    monkeypatch.setattr(findings, "_PATIENCE_SECONDS", 120.0)


def examine(url: str | Path, *, cache: str | Path | None = None) -> dict[str, Finding]:
    """Examine a set-up; returns the worst that was found of each thing."""
    found: dict[str, Finding] = {}
    for finding in doctor.examine(str(url), cache=False if cache is None else str(cache)):
        assert finding.state in STATES
        assert finding.found
        assert finding.found.isprintable()
        assert (
            finding.advice
            or finding.state == "fine"
            or finding.about in {"not tried", "store", "record"}
        )
        before = found.get(finding.about, finding)
        found[finding.about] = max(before, finding, key=lambda each: STATES.index(each.state))
    return found


def not_fine(found: dict[str, Finding]) -> dict[str, str]:
    return {about: each.state for about, each in found.items() if each.state != "fine"}


def told(finding: Finding) -> str:
    return f"{finding.found} {finding.advice}"


def tree(folder: Path) -> list[tuple[str, int]]:
    """Everything below a folder, with its permissions."""
    return sorted(
        (str(path.relative_to(folder)), path.lstat().st_mode) for path in folder.rglob("*")
    )


# Folders


def test_a_folder_is_fine_with_and_without_a_store_in_it(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    found = examine(tmp_path / "store", cache=cache)
    assert not_fine(found) == {}
    assert "no store yet" in found["record"].found
    assert "made when it is first used" in found["cache"].found
    assert {"list", "missing", "write", "read", "ranges", "clock", "conditions"} <= found.keys()
    assert {"delete", "move", "versions", "digest", "chunker", "TMPDIR", "folder"} <= found.keys()
    assert tree(tmp_path) == []  # no store and no cache were made

    store = open_store(tmp_path / "store", cache=cache)
    store.download(store.add(io.BytesIO(b"abc")), tmp_path / "abc")
    assert store.cache is not None
    store.cache.close()
    before = tree(tmp_path)
    found = examine(tmp_path / "store", cache=cache)
    assert not_fine(found) == {}
    assert "format 1" in found["record"].found
    assert "it opens" in found["cache table"].found
    assert tree(tmp_path) == before


def test_a_folder_that_may_only_be_read(without_privileges: Path) -> None:
    folder = without_privileges / "store"
    open_store(folder).add(io.BytesIO(b"abc"))
    inner = [path for path in folder.rglob("*") if path.is_dir()]
    for path in [folder, *inner]:
        path.chmod(0o555)
    before = tree(folder)
    found = examine(folder)
    assert not_fine(found) == {"folders": "wrong", "write": "wrong"}
    assert str(folder / "tmp") in found["write"].found
    assert "chmod" in found["write"].advice
    assert f"{len(inner)} of the store's folders" in found["folders"].found
    assert (found["list"].state, found["record"].state) == ("fine", "fine")
    assert tree(folder) == before


def test_a_folder_of_the_store_that_a_colleague_made_for_himself(without_privileges: Path) -> None:
    folder = without_privileges / "store"
    store = open_store(folder)
    artifact_id = store.add(io.BytesIO(b"abc"))
    closed = folder / names.blob(store.stat(artifact_id).digest or "")
    closed.parent.chmod(0o555)
    found = examine(folder)
    assert not_fine(found) == {"folders": "wrong"}
    assert str(closed.parent) in found["folders"].found
    assert "mode 555" in found["folders"].found
    assert "chmod -R g+rwX" in found["folders"].advice


def test_a_folder_that_may_not_be_entered(without_privileges: Path) -> None:
    folder = without_privileges / "store"
    folder.mkdir()
    (folder / "refs").mkdir()
    (folder / "refs").chmod(0)
    found = examine(folder)
    assert not_fine(found) == {"list": "wrong", "folders": "wrong"}
    assert "Permission denied" in found["list"].found


def test_a_folder_in_a_folder_that_may_not_be_entered(without_privileges: Path) -> None:
    above = without_privileges / "above"
    (above / "store").mkdir(parents=True)
    above.chmod(0)
    found = examine(above / "store", cache=above / "cache")
    assert not_fine(found) == {
        "folder": "wrong",
        "list": "wrong",
        "record": "wrong",
        "folders": "wrong",
        "write": "wrong",
        "cache": "wrong",
    }
    assert all(
        "Permission denied" in each.found for each in found.values() if each.state == "wrong"
    )


def test_a_small_disk_and_a_full_one(small_disk: Path) -> None:
    found = examine(small_disk / "store")
    assert not_fine(found) == {"folder": "warning"}
    assert "tmpfs" in found["folder"].found
    assert "which is memory" in found["folder"].found
    (small_disk / "store").mkdir()
    (small_disk / "ballast").write_bytes(bytes(shutil.disk_usage(small_disk).free))
    before = tree(small_disk)
    found = examine(small_disk / "store", cache=small_disk / "cache")
    assert not_fine(found) == {
        "folder": "warning",
        "write": "wrong",
        "not tried": "warning",
        "cache room": "warning",
    }
    assert re.search("No space left.*Make room", told(found["write"]))
    assert "Make room" in found["folder"].advice
    assert tree(small_disk) == before


def test_what_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    found = examine(tmp_path / "file", cache=tmp_path / "file")
    for about in ("folder", "cache"):
        assert re.search("file is no folder.*--", told(found[about]))
    assert not_fine(found) == {"folder": "wrong", "cache": "wrong"}
    assert "write" not in found
    found = examine(tmp_path / "file" / "deeper")
    assert not_fine(found) == {"folder": "wrong"}
    assert tree(tmp_path) == [("file", (tmp_path / "file").lstat().st_mode)]


def test_a_store_of_another_format_and_a_damaged_one(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.add(io.BytesIO(b"abc"))
    record = (tmp_path / names.STORE_RECORD).read_bytes()
    (tmp_path / names.STORE_RECORD).write_bytes(record.replace(b'"format":1', b'"format":2'))
    found = examine(tmp_path)
    assert not_fine(found) == {"record": "wrong"}
    assert re.search("format 2; this version knows format 1.*upgrade", told(found["record"]))
    (tmp_path / names.STORE_RECORD).write_bytes(record[:-9])
    found = examine(tmp_path)
    assert not_fine(found) == {"record": "wrong"}
    assert re.search("damaged.*Restore it", told(found["record"]))


@pytest.mark.parametrize("wrapped", [False, True])
def test_nothing_is_left_when_nobody_waits_for_the_end(
    tmp_path: Path, *, wrapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever Ctrl-C strikes, what was written to try the place is removed."""
    place = MemoryArtifactStore()
    if wrapped:
        monkeypatch.setattr(doctor, "open_backend", lambda _: place)
    most = len(list(doctor.examine(str(tmp_path / "store"), cache=False)))
    for count in range(most):
        examining = doctor.examine(str(tmp_path / "store"), cache=False)
        for _ in range(count):
            next(examining)
        cast("Generator[Finding]", examining).close()
        assert list(place.list("")) == []
        assert tree(tmp_path) == []


class Skewed(MemoryArtifactStore):
    """A place whose clock is wrong."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def list(self, prefix: str) -> Iterator[Entry]:
        for entry in super().list(prefix):
            yield Entry(entry.name, entry.size, entry.modified + self.seconds)


@pytest.mark.parametrize(
    ("seconds", "state", "words"),
    [
        (0, "fine", "agrees"),
        (90, "fine", "90 s ahead"),
        (-3600, "warning", "3600 s behind.*NTP"),
    ],
)
def test_the_clock_of_a_place_is_compared(
    seconds: float, state: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Skewed(seconds)
    monkeypatch.setattr(doctor, "open_backend", lambda _: place)
    found = examine("memory://")
    assert found["clock"].state == state
    assert re.search(words, told(found["clock"]))
    assert list(place.list("")) == []


# Buckets


def url_of(server: Server, bucket: str) -> str:
    return f"{'gs' if server.protocol == 'gcs' else 's3'}://{bucket}/runs"


def objects(url: str) -> set[str]:
    """Everything in a bucket."""
    backend = open_backend(url.removesuffix("/runs"))
    return {entry.name for entry in backend.list("")}


def test_a_bucket_is_fine(server: Server, tmp_path: Path) -> None:
    url = url_of(server, server.make_bucket())
    cache = tmp_path / "cache"
    checksums = {"checksums": "warning"} if server.url.startswith("https") else {}
    found = examine(url, cache=cache)
    assert not_fine(found) == checksums
    assert {"credentials", "list", "record", "missing", "write", "read", "ranges"} <= found.keys()
    assert {"clock", "conditions", "delete", "move"} <= found.keys()
    assert ("checksums" in found) == (server.protocol == "s3")
    assert "enforced" in found["conditions"].found
    if checksums:
        assert "request_checksum_calculation='when_required'" in found["checksums"].advice
    assert objects(url) == set()

    open_store(url, cache=cache).add(io.BytesIO(b"abc"))
    before = objects(url)
    found = examine(url)
    assert not_fine(found) == checksums
    assert "format 1" in found["record"].found
    assert objects(url) == before


def test_a_bucket_that_is_missing(server: Server) -> None:
    found = examine(url_of(server, "no-such-bucket"))
    assert not_fine(found) == {"bucket": "wrong"}
    assert "Make the bucket" in found["bucket"].advice
    assert "write" not in found


def test_credentials_that_are_wrong(
    ceph: Server, use: Callable[[Server], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = url_of(ceph, ceph.make_bucket())
    use(ceph)
    for name, value in [("AWS_ACCESS_KEY_ID", "nobody"), ("AWS_SECRET_ACCESS_KEY", "wrong")]:
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            patch.setattr("boto3.DEFAULT_SESSION", None)
            found = examine(url)
        assert not_fine(found) == {"credentials": "wrong"}
        assert "AWS_PROFILE" in found["credentials"].advice
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)
    found = examine(url)
    assert not_fine(found) == {"credentials": "wrong"}
    assert "Unable to locate credentials" in found["credentials"].found


def test_a_certificate_that_nobody_vouches_for(
    ceph: Server, use: Callable[[Server], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(ceph.over_https())
    monkeypatch.delenv("AWS_CA_BUNDLE")
    found = examine(url_of(ceph, ceph.make_bucket()))
    assert not_fine(found) == {"server": "wrong"}
    assert "AWS_CA_BUNDLE" in found["server"].advice


@pytest.mark.parametrize("protocol", ["s3", "gs"])
def test_a_server_that_is_not_there_and_one_that_is_silent(
    protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "test")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", address)
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        open_backend(f"{protocol}://bucket")  # loads the SDK, which may take as long
        monkeypatch.setattr(findings, "_PATIENCE_SECONDS", 5.0)
        begun = time.monotonic()
        found = examine(f"{protocol}://bucket/runs")
        assert not_fine(found) == {"server": "wrong"}
        assert "no answer in 5 s" in found["server"].found
        assert "Is the" in found["server"].advice
    found = examine(f"{protocol}://bucket/runs")
    assert not_fine(found) == {"server": "wrong"}
    assert "Is the" in found["server"].advice
    assert time.monotonic() - begun < 60


# Rights, taken away one by one

RIGHTS = {
    "list": "s3:ListBucket",
    "read": "s3:GetObject",
    "write": "s3:PutObject",
    "delete": "s3:DeleteObject",
}


@pytest.fixture(scope="session")
def second_user(ceph: Server) -> tuple[str, str]:
    """The keys of a user who owns nothing."""
    folder = ceph._programs.folder
    environment = {name: value for name, value in os.environ.items() if "CEPH" not in name}
    environment["CEPH_CONF"] = str(folder / "ceph.conf")
    keys = "second", "secret-of-the-second"
    command = ["radosgw-admin", "user", "create", "--uid", "second", "--display-name", "second"]
    command += ["--access-key", keys[0], "--secret-key", keys[1]]
    subprocess.run(command, env=environment, cwd=folder, check=True, capture_output=True)
    return keys


def examine_as(
    user: tuple[str, str], given: Mapping[str, object], *, url: str, patch: pytest.MonkeyPatch
) -> dict[str, Finding]:
    """Examine a bucket with the keys of a user, under a policy."""
    client = open_backend(url).client  # type: ignore[attr-defined] # it is a Boto3ArtifactStore
    bucket = url.split("/")[2]
    resources = [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]
    policy = {"Version": "2012-10-17", "Statement": [{**given, "Resource": resources}]}
    client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
    with patch.context() as patched:
        patched.setenv("AWS_ACCESS_KEY_ID", user[0])
        patched.setenv("AWS_SECRET_ACCESS_KEY", user[1])
        patched.setattr("boto3.DEFAULT_SESSION", None)
        found = examine(url)
    client.delete_bucket_policy(Bucket=bucket)
    return found


def check_left(found: dict[str, Finding], left: set[str]) -> None:
    """What is left behind is told, and nothing else is left."""
    names_told: set[str] = set()
    if "left behind" in found:
        pattern = r"tmp/doctor-[0-9a-f]{32}/\w+"
        names_told = {f"runs/{name}" for name in re.findall(pattern, found["left behind"].found)}
        assert left
    assert left == names_told


NOTHING_WRITTEN = {"write": "wrong", "not tried": "warning"}
NOTHING_DELETED = {"delete": "wrong", "not tried": "warning", "left behind": "warning"}


@pytest.mark.parametrize(
    ("lacking", "expected"),
    [
        ([], {}),
        (["list"], {"list": "wrong", "missing": "wrong"}),
        # What one wrote oneself one may read: it shows on what somebody else wrote.
        (["read"], {"record": "wrong"}),
        (["write"], NOTHING_WRITTEN),
        (["delete"], NOTHING_DELETED),
        (["list", "delete"], {"list": "wrong", "missing": "wrong", **NOTHING_DELETED}),
        (["write", "delete"], NOTHING_WRITTEN),
        (
            [*RIGHTS],
            {"list": "wrong", "missing": "wrong", "record": "wrong", **NOTHING_WRITTEN},
        ),
    ],
    ids=str,
)
def test_a_right_that_was_not_given_is_named(  # noqa: PLR0917 -- pytest hands them in by name
    ceph: Server,
    second_user: tuple[str, str],
    lacking: list[str],
    expected: dict[str, str],
    use: Callable[[Server], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use(ceph)
    url = url_of(ceph, ceph.make_bucket())
    open_store(url, cache=False).add(io.BytesIO(b"abc"))
    before = objects(url)
    policy = {
        "Effect": "Allow",
        "Principal": {"AWS": ["arn:aws:iam:::user/second"]},
        "Action": [RIGHTS[right] for right in RIGHTS if right not in lacking]
        or ["s3:GetBucketLocation"],
    }
    found = examine_as(second_user, policy, url=url, patch=monkeypatch)
    assert not_fine(found) == expected
    assert found["credentials"].state == "fine"
    for right in lacking:
        if right in expected:
            assert RIGHTS[right] in found[right].advice
    if "missing" in expected:
        assert f"{RIGHTS['list']} on the bucket (without it, S3" in found["missing"].advice
    if "record" in expected:
        assert RIGHTS["read"] in found["record"].advice
    check_left(found, objects(url) - before)


@pytest.mark.parametrize(
    ("lacking", "expected"),
    [
        ("list", {"list": "wrong"}),  # Ceph tells the owner what is missing all the same
        ("read", {"read": "wrong", "move": "wrong", "record": "wrong"}),
        ("write", NOTHING_WRITTEN),
        ("delete", NOTHING_DELETED),
    ],
)
def test_a_right_that_was_taken_away_is_named(
    ceph: Server,
    lacking: str,
    expected: dict[str, str],
    use: Callable[[Server], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also the owner may be denied to read or delete his own."""
    use(ceph)
    url = url_of(ceph, ceph.make_bucket())
    open_store(url, cache=False).add(io.BytesIO(b"abc"))
    before = objects(url)
    owner = ceph.access_key_id or "", ceph.secret_access_key or ""
    policy = {"Effect": "Deny", "Principal": "*", "Action": [RIGHTS[lacking]]}
    found = examine_as(owner, policy, url=url, patch=monkeypatch)
    assert not_fine(found) == expected
    assert RIGHTS[lacking] in found[lacking].advice
    check_left(found, objects(url) - before)


# Servers that do it differently


@pytest.fixture(params=["ceph", "ministack", "gcs"])
def through(
    request: pytest.FixtureRequest, use: Callable[[Server], None]
) -> Iterator[tuple[Proxy, str]]:
    """A bucket behind a proxy, and its URL."""
    server: Server = request.getfixturevalue(request.param)
    with Proxy(server.home) as proxy:
        use(server.behind(proxy.url))
        yield proxy, url_of(server, server.make_bucket())
        server.behind(server.home)


def test_a_server_that_refuses_conditions(through: tuple[Proxy, str]) -> None:
    proxy, url = through
    if url.startswith("gs"):
        pytest.skip("there, conditions are parameters and always understood")
    with proxy.plan(
        Fault("refuse", status=501, code="NotImplemented", method="PUT", skip=1)
    ) as fault:
        fault.times = 1
        found = examine(url)
        assert fault.hits == 1
    assert not_fine(found) == {}
    assert re.search("refused.*501.*asked before each write", found["conditions"].found)
    assert objects(url) == set()


class Forgetful(Link):
    """Hands on every request without a part of it."""

    forgets = rb""
    forgotten = 0

    async def _hand_on(self, request: Head, job: Job) -> None:
        before = request.raw
        request.raw = re.sub(Forgetful.forgets, b"", before)
        Forgetful.forgotten += request.raw != before
        await super()._hand_on(request, job)


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> type[Forgetful]:
    """How proxies of this test hand on what they get."""
    monkeypatch.setattr(proxies, "Link", Forgetful)
    monkeypatch.setattr(Forgetful, "forgotten", 0)
    return Forgetful


@pytest.mark.parametrize("through", ["ministack", "gcs"], indirect=True)
def test_a_server_that_ignores_conditions(
    through: tuple[Proxy, str], forgetful: type[Forgetful]
) -> None:
    _, url = through
    forgetful.forgets = (
        rb"(?i)\r\nif-none-match: [^\r]*|&ifGenerationMatch=0|(?<=[?])ifGenerationMatch=0&"
    )
    found = examine(url)
    assert forgetful.forgotten
    assert not_fine(found) == {"conditions": "warning"}
    assert "ignored" in found["conditions"].found
    assert "one upload before" in found["conditions"].advice
    assert objects(url) == set()


@pytest.mark.parametrize("through", ["ministack", "gcs"], indirect=True)
def test_a_server_that_ignores_ranges(
    through: tuple[Proxy, str], forgetful: type[Forgetful]
) -> None:
    _, url = through
    forgetful.forgets = rb"(?i)\r\nrange: [^\r]*"
    found = examine(url)
    assert forgetful.forgotten == 2
    assert not_fine(found) == {"ranges": "wrong"}
    assert "another server or no proxy" in found["ranges"].advice
    assert objects(url) == set()


@pytest.mark.parametrize(
    ("fault", "about"),
    [
        (Fault("refuse", method="GET", times=1), "server"),
        (Fault("refuse", method="GET", target="/written"), "read"),
        (Fault("refuse", method="GET", target="/written", skip=1, times=1), "ranges"),
        (Fault("reset", method="GET", target="/written", side="answer", after=1000), "read"),
        (Fault("garble", method="GET", target="/written", side="answer", after=1000), "read"),
        (Fault("reset", method="PUT", target="/written", side="answer"), "write"),
        (Fault("refuse", method="PUT", target="/written", skip=1), "conditions"),
        (Fault("refuse", method="DELETE", times=1), "delete"),
        (Fault("reset", method="DELETE", side="answer", times=1), "delete"),
        (Fault("refuse", method="PUT", target="/target"), "move"),
        (Fault("refuse", method="DELETE", target="/source", times=1), "move"),
        (Fault("reset", method="PUT", target="/target", side="answer"), "move"),
        (Fault("refuse", method="HEAD", target="/missing", status=403), "missing"),
        (Fault("refuse", method="GET", target="json", status=500), "record"),
        (Fault("refuse", method="PUT", target="/checksum", status=411), "checksums"),
    ],
    ids=lambda value: (
        "-".join(map(str, [value.kind, value.method, value.target, value.after, value.skip]))
        if isinstance(value, Fault)
        else value
    ),
)
@pytest.mark.parametrize("through", ["ministack"], indirect=True)
def test_nothing_is_left_when_a_check_fails(
    through: tuple[Proxy, str], fault: Fault, about: str
) -> None:
    """One request is made for each question, and what goes wrong is told where it went wrong."""
    proxy, url = through
    with proxy.plan(dataclasses.replace(fault)) as planned:
        found = examine(url)
        assert planned.hits == 1
    assert about in not_fine(found)
    if fault.status == 503:
        assert "Try again later" in found[about].advice or fault.kind != "refuse"
    assert "left behind" not in found
    assert objects(url) == set()


@pytest.mark.parametrize("through", ["ministack", "gcs"], indirect=True)
def test_a_server_that_falls_silent(
    through: tuple[Proxy, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has got is removed all the same, if it takes that; else it is told."""
    proxy, url = through
    objects(url)  # loads the SDK, which may take as long
    monkeypatch.setattr(findings, "_PATIENCE_SECONDS", 5.0)
    with proxy.plan(Fault("stall", method="GET", target="written", side="answer")) as fault:
        found = examine(url)
        assert fault.hits == 1
    assert not_fine(found) == {"read": "wrong"}
    assert "no answer in 5 s" in found["read"].found
    assert objects(url) == set()
    with proxy.plan(Fault("stall", method="DELETE")) as fault:
        begun = time.monotonic()
        found = examine(url)
        assert time.monotonic() - begun < 60
        assert fault.hits == 2  # the check, and the first name that was to be removed
    assert not_fine(found) == {"delete": "wrong", "left behind": "warning"}
    assert all(name.removeprefix("runs/") in found["left behind"].found for name in objects(url))
    assert objects(url)


# Credentials and packages


def test_google_credentials_that_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    found = examine("gs://bucket/runs")
    assert not_fine(found) == {"credentials": "wrong"}
    assert "gcloud auth" in found["credentials"].advice
    (tmp_path / "key").write_text("not JSON")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key"))
    assert not_fine(examine("gs://bucket/runs")) == {"credentials": "wrong"}


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    found = examine("s3://bucket")
    assert not_fine(found) == {"store": "wrong"}
    assert "pip install" in found["store"].found


def test_a_machine_without_the_compiled_chunker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyfastcdc.cy", None)
    chunking._compiled_fastcdc.cache_clear()
    try:
        found = examine(tmp_path)
    finally:
        chunking._compiled_fastcdc.cache_clear()
    assert not_fine(found) == {"chunker": "warning"}
    assert "pip install" in found["chunker"].advice


def test_a_folder_for_temporary_files_that_is_small(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    found = examine(tmp_path / "store")
    assert not_fine(found) == {"TMPDIR": "warning"}
    assert str(small_disk) in found["TMPDIR"].found


# The cache


def test_a_cache_on_a_network_file_system_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "mountinfo"
    text.write_text(
        "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"
        f"2 1 0:50 / {tmp_path}/home rw shared:1 - nfs4 server:/home rw\n"
        f"3 2 0:51 / {tmp_path}/home/scratch rw - xfs /dev/sdb rw\n"
    )
    monkeypatch.setattr(mounts, "MOUNTINFO", str(text))
    found = examine(tmp_path / "store", cache=tmp_path / "home" / "me" / "cache")
    assert not_fine(found) == {"cache": "wrong"}
    assert "nfs4" in found["cache"].found
    assert "local disk, such as /" in found["cache"].advice
    assert "cache table" not in found
    assert not_fine(examine(tmp_path / "store", cache=tmp_path / "home" / "scratch" / "x")) == {}
    found = examine(tmp_path / "home" / "store")
    assert not_fine(found) == {}
    assert "nfs4, which machines share" in found["folder"].found


@pytest.mark.parametrize(
    ("kind", "is_network"),
    [
        *[
            (kind, True)
            for kind in ("nfs", "nfs4", "cifs", "lustre", "ceph", "beegfs", "9p", "gpfs")
        ],
        *[(kind, True) for kind in ("fuse.sshfs", "fuse.glusterfs", "fuse.JuiceFS", "fuse.rclone")],
        *[(kind, False) for kind in ("ext4", "xfs", "btrfs", "tmpfs", "overlay", "zfs", "apfs")],
        *[(kind, False) for kind in ("fuse", "fuseblk", "fuse.fuse-overlayfs", "nfsd", "fuse.nfs")],
    ],
)
def test_kinds_of_file_systems(kind: str, *, is_network: bool) -> None:
    assert mounts.Mount("/", kind).is_network == is_network


def test_the_file_system_of_a_folder_is_found(small_disk: Path) -> None:
    """On this machine, in a folder with a space in its name, and below a link to it."""
    link = small_disk.parent / "link"
    link.symlink_to(small_disk)
    for folder in (small_disk, small_disk / "not" / "there", link, link / "not there"):
        assert mounts.mount_of(str(folder)) == (str(small_disk), "tmpfs")
    beside = mounts.mount_of(f"{small_disk} 2")
    assert beside is not None
    assert beside.point != str(small_disk)
    assert mounts.mount_of("/proc/self") == ("/proc", "proc")


def test_of_several_mounts_the_last_of_the_longest_counts() -> None:
    text = (
        "1 0 8:1 / / rw - ext4 a rw\n"
        "2 1 0:1 / /data rw master:1 propagate_from:2 - autofs a rw\n"
        "3 2 0:2 / /data rw - nfs a rw\n"
        "4 1 0:3 / /data/a\\040b\\134c rw - xfs a rw\n"
        "nothing of that kind\n"
    )
    assert mounts.mount_in(text, "/data") == ("/data", "nfs")
    assert mounts.mount_in(text, "/data/x") == ("/data", "nfs")
    assert mounts.mount_in(text, "/database") == ("/", "ext4")
    assert mounts.mount_in(text, "/data/a b\\c/d") == ("/data/a b\\c", "xfs")
    assert mounts.mount_in("", "/data") is None


def fill(cache: ArtifactCache) -> None:
    """Put a content into a cache."""
    content = b"content"
    with cache.admit(digest_of(content), size=len(content)) as slot:
        assert slot is not None
        slot.write_at(content, 0)
        slot.publish().close()
    cache.close()


def test_a_cache_whose_table_is_broken_is_left_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    fill(ArtifactCache(folder))
    table = (folder / "cache.db").read_bytes()
    # No table; one that was cut; zeros in its pages; a count in its header that is not right.
    for broken in (
        b"no table at all" * 1000,
        table[:5000],
        table[:8192] + bytes(len(table) - 8192),
        table[:36] + b"\0\0\0\7" + table[40:],
    ):
        (folder / "cache.db").write_bytes(broken)
        before = tree(folder)
        found = examine(tmp_path / "store", cache=folder)
        assert not_fine(found) == {"cache table": "wrong"}
        assert f"Delete {folder}" in found["cache table"].advice
        assert tree(folder) == before
    (folder / "cache.db").write_bytes(b"")
    assert not_fine(examine(tmp_path / "store", cache=folder)) == {}
    assert (folder / "cache.db").read_bytes() == b""
    (folder / "cache.db").unlink()
    os.mkfifo(folder / "cache.db")
    found = examine(tmp_path / "store", cache=folder)
    assert not_fine(found) == {"cache table": "wrong"}
    assert "it is no file" in found["cache table"].found


def test_a_cache_that_others_may_write_to_and_one_that_we_may_not(without_privileges: Path) -> None:
    folder = without_privileges / "cache"
    fill(ArtifactCache(folder))
    for mode, state, said in (
        (0o777, "wrong", "anybody may write"),
        (0o770, "warning", "others may write"),
        (0o2770, "fine", "shared with group"),
    ):
        folder.chmod(mode)
        found = examine(without_privileges / "store", cache=folder)
        assert found["cache"].state == state
        assert said in found["cache"].found
        assert not_fine(found) == ({} if state == "fine" else {"cache": state})
    folder.chmod(0o555)
    found = examine(without_privileges / "store", cache=folder)
    assert not_fine(found) == {"cache": "wrong"}
    assert "may not write" in found["cache"].found
    found = examine(without_privileges / "store", cache=folder / "deeper")
    assert not_fine(found) == {"cache": "wrong"}


def test_a_cache_with_a_variable_in_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("X", "y")
    assert not_fine(examine(tmp_path, cache=tmp_path / "$X")) == {"cache": "wrong"}


# The command line


def run(*arguments: str | Path, code: int, **environment: str) -> tuple[list[str], str]:
    names = ("CASARTIFACTS_", "AWS_", "GOOGLE_", "STORAGE_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(names)}
    ran = subprocess.run(
        [sys.executable, "-m", "casartifacts", "doctor", *map(str, arguments)],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ran.returncode == code, ran
    assert "Traceback" not in ran.stderr
    return ran.stdout.splitlines(), ran.stderr


def test_the_command_says_it_in_lines_and_in_json(tmp_path: Path) -> None:
    store, cache = tmp_path / "store", tmp_path / "cache"
    lines, error = run("--store", store, "--cache", cache, code=0)
    assert error == ""
    rows, error = run("--store", store, "--cache", cache, "--json", code=0)
    assert error == ""
    found: list[dict[str, Any]] = [json.loads(row) for row in rows]
    assert [line.split()[0] for line in lines] == [row["state"] for row in found]
    assert all(row.keys() == {"about", "state", "found", "advice"} for row in found)
    assert tree(tmp_path) == []

    (store / "sub").mkdir(parents=True)
    (store / names.STORE_RECORD).write_bytes(b"{")
    lines, _ = run("--store", store, code=1)
    assert [line.split()[:2] for line in lines if not line.startswith("fine")] == [
        ["wrong", "record"],
    ]


def test_the_command_ends_with_0_after_a_warning(small_disk: Path) -> None:
    lines, _ = run("--store", small_disk, "--cache", "none", code=0)
    assert [line.split()[:2] for line in lines if not line.startswith("fine")] == [
        ["warning", "folder"],
    ]
    assert any("none: each download asks the store" in line for line in lines)


def test_the_command_wants_a_store() -> None:
    for arguments in ([], ["--store", "ftp://x"], ["--store", "memory://"]):
        lines, error = run(*arguments, code=2)
        assert lines == []
        assert "Usage" in error


def test_the_command_examines_the_cache_that_a_bucket_would_have(
    ceph: Server, tmp_path: Path
) -> None:
    url = url_of(ceph, ceph.make_bucket())
    lines, error = run(
        code=0, CASARTIFACTS_STORE=url, XDG_CACHE_HOME=str(tmp_path), **ceph.environment
    )
    assert error == ""
    assert any(str(tmp_path / "casartifacts") in line for line in lines)
