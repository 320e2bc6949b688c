"""The processes of a node fetch a content once, whatever becomes of the one that fetches it.

Rule 1: processes are real, and really killed.
Rule 2: what was fetched is read from the backend's own notes, not from the cache.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import sqlite3
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from node.place import FarAway
from node.readers import Download, digest_of_file, downloading
from node.soak import Node, Soak, contents

from casartifacts import ArtifactCache, ContentStore
from casartifacts import cache as cache_module
from casartifacts.cache import room, waiting
from casartifacts.digest import digest_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from casartifacts.cache import Slot

MIB = 2**20

SOAK_SECONDS = float(os.environ.get("CASARTIFACTS_SOAK_SECONDS", "0"))


def upload(place: FarAway, size: int, *, seed: int = 0) -> tuple[str, bytes]:
    body = random.Random(seed).randbytes(size)
    file = place.log.parent / "body"
    file.write_bytes(body)
    with file.open("rb") as opened:
        return ContentStore(place).add(opened), body


@pytest.fixture
def place(tmp_path: Path) -> FarAway:
    return FarAway(tmp_path / "store", log=tmp_path / "log")


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[ArtifactCache]:
    with contextlib.closing(ArtifactCache(tmp_path / "cache", size_limit=2**30)) as cache:
        yield cache


def filling(cache: ArtifactCache) -> list[Path]:
    return list(cache.folder.glob("tmp/*"))


def wait_until(condition: Callable[[], object]) -> None:
    give_up_at = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.005)


# Processes


def test_32_processes_fetch_a_cold_content_once(
    place: FarAway, cache: ArtifactCache, tmp_path: Path
) -> None:
    """No byte of it crosses the network twice."""
    artifact_id, body = upload(place, 64 * MIB)
    job = Download(store=ContentStore(place, cache=cache), artifact_id=artifact_id, folder=tmp_path)
    with downloading(job, processes=32) as processes:
        pass
    assert [process.exitcode for process in processes] == [0] * 32
    assert place.bytes_read() == len(body)
    right = digest_of_file(tmp_path / "body")
    assert {digest_of_file(tmp_path / str(number)) for number in range(32)} == {right}
    assert not filling(cache)


def test_the_next_one_takes_over_at_once_when_the_fetcher_is_killed(
    place: FarAway, cache: ArtifactCache, tmp_path: Path
) -> None:
    """What it had fetched is gone on from: less than twice the content crosses the network."""
    artifact_id, body = upload(place, 64 * MIB)
    place.seconds_per_mib = 0.1
    job = Download(store=ContentStore(place, cache=cache), artifact_id=artifact_id, folder=tmp_path)
    with downloading(job, processes=32) as processes:
        wait_until(lambda: place.bytes_read() > 16 * MIB)
        (path,) = filling(cache)
        fetcher = int(path.name.split("-")[2])
        (victim,) = (process for process in processes if process.pid == fetcher)
        victim.kill()
    assert Counter(process.exitcode for process in processes) == {0: 31, -9: 1}
    assert len(body) <= place.bytes_read() < len(body) + 8 * MIB
    right = digest_of_file(tmp_path / "body")
    copies = [path for path in tmp_path.iterdir() if path.name.isdecimal()]
    assert len(copies) == 31
    assert {digest_of_file(path) for path in copies} == {right}
    assert not filling(cache)


def test_where_locks_do_nothing_all_bytes_are_right(
    place: FarAway, cache: ArtifactCache, tmp_path: Path
) -> None:
    """Locks only save double work."""
    artifact_id, _ = upload(place, 8 * MIB)
    place.seconds_per_mib = 0.02
    store = ContentStore(place, cache=cache)
    job = Download(store=store, artifact_id=artifact_id, folder=tmp_path, without_locks=True)
    with downloading(job, processes=16) as processes:
        pass
    assert [process.exitcode for process in processes] == [0] * 16
    right = digest_of_file(tmp_path / "body")
    assert {digest_of_file(tmp_path / str(number)) for number in range(16)} == {right}
    with contextlib.closing(store.open_reader(artifact_id)) as reader:
        assert digest_of(reader.read()) == artifact_id[:64]


# Threads, and how long one waits


def test_threads_fetch_a_content_once(place: FarAway, cache: ArtifactCache) -> None:
    artifact_id, body = upload(place, 4 * MIB)
    place.seconds_per_mib = 0.05
    store = ContentStore(place, cache=cache)

    def read(_: int) -> bytes:
        with store.open_reader(artifact_id) as reader:
            return reader.read()

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(read, range(8))) == {body}
    assert place.bytes_read() == len(body)
    assert 1 <= cache.counters.waits <= 7


@pytest.mark.parametrize("moment", ["before it asks for room", "while it opens what it waits for"])
def test_what_somebody_publishes_meanwhile_is_not_fetched_again(
    cache: ArtifactCache, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Also if it was not there when the cache was looked into last."""
    body = b"x" * 1000
    other = ArtifactCache(cache.folder)
    with contextlib.ExitStack() as stack:
        if moment == "before it asks for room":
            original = room.reserve

            def reserve(*given: Any, **options: Any) -> object:
                monkeypatch.undo()
                bring_in(other, body)
                return original(*given, **options)

            monkeypatch.setattr(room, "reserve", reserve)
        else:
            slot = stack.enter_context(other.admit(digest_of(body), size=len(body)))
            assert slot is not None
            slot.write_at(body, 0)
            look_up = cache._look_up

            def wait_for(_: object) -> None:
                # It got its place, and then its row; who looks between the two sees neither.
                monkeypatch.setattr(cache, "_look_up", look_late)

            def look_late(_: str) -> None:
                monkeypatch.setattr(cache, "_look_up", look_up)
                slot.publish().close()

            monkeypatch.setattr(cache_module, "wait_for", wait_for)
        file = cache.fetch(digest_of(body), size=1000, fill=lambda slot: pytest.fail("fetched"))
        assert file is not None
        with file:
            assert file.read() == body
    assert not filling(cache)
    other.close()


@pytest.mark.parametrize("is_open", [True, False])
def test_who_cannot_write_to_the_table_waits_all_the_same(
    cache: ArtifactCache, monkeypatch: pytest.MonkeyPatch, *, is_open: bool
) -> None:
    """A table that is busy for long is no reason to fetch what another one fetches."""
    monkeypatch.setattr("casartifacts.cache.table.BUSY_SECONDS", 0.05)
    monkeypatch.setattr("casartifacts.cache.database.BUSY_SECONDS", 0.05)
    body = b"x" * 1000
    assert not is_open or cache.volume() == 0
    other = ArtifactCache(cache.folder)

    def fetch() -> bytes:
        file = cache.fetch(digest_of(body), size=1000, fill=lambda slot: pytest.fail("fetched"))
        assert file is not None
        with file:
            return file.read()

    with ThreadPoolExecutor(1) as pool, contextlib.closing(other):
        with other.admit(digest_of(body), size=len(body)) as slot:
            assert slot is not None
            path = cache.folder / "cache.db"
            with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as busy:
                busy.execute("BEGIN IMMEDIATE")
                fetched = pool.submit(fetch)
                wait_until(lambda: cache.counters.waits)
                busy.execute("ROLLBACK")
            slot.write_at(body, 0)
            slot.publish().close()
        assert fetched.result(10) == body


def test_who_waits_says_for_whom(
    cache: ArtifactCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The process, the content and its size."""
    monkeypatch.setattr(waiting, "_SAY_SECONDS", 0.05)
    caplog.set_level(logging.INFO, "casartifacts")
    body = b"x" * 1000

    def wait() -> None:
        file = cache.fetch(digest_of(body), size=len(body), fill=lambda slot: pytest.fail("filled"))
        assert file is not None
        with file:
            assert file.read() == body

    with ThreadPoolExecutor(1) as pool:
        with cache.admit(digest_of(body), size=len(body)) as slot:
            assert slot is not None
            waiter = pool.submit(wait)
            wait_until(lambda: f"for process {os.getpid()}" in caplog.text)
            slot.write_at(body, 0)
            slot.publish().close()
        waiter.result(10)
    assert digest_of(body) in caplog.text
    assert "1000 bytes" in caplog.text


def test_who_has_waited_in_vain_fetches_alone(
    cache: ArtifactCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A fetcher that is alive and does nothing holds nobody up for ever; it may publish later."""
    monkeypatch.setattr(waiting, "_PATIENCE_SECONDS", 0.1)
    body = b"x" * 1000
    digest = digest_of(body)
    with cache.admit(digest, size=len(body)) as stuck:
        assert stuck is not None
        file = cache.fetch(digest, size=len(body), fill=lambda slot: slot.write_at(body, 0))
        assert file is not None
        with file:
            assert file.read() == body
        assert f"Process {os.getpid()} has fetched nothing" in caplog.text
        stuck.write_at(body, 0)
        with stuck.publish() as late:
            assert late.read() == body
    again = cache.open(digest)
    assert again is not None
    with again:
        assert again.read() == body
    assert cache.volume() == len(body)


# Going on from what an interrupted fetch left


class Interrupted(Exception):
    """Stands for whatever ends a fetch: a network that fails, Ctrl-C."""


def interrupt(store: ContentStore, artifact_id: str, *, after: int) -> None:
    """Download until so many bytes were reported; then end as Ctrl-C would."""

    def progress(done: int, _: int) -> None:
        if done >= after:
            raise Interrupted

    with pytest.raises(Interrupted):
        store.download(artifact_id, store.cache.folder.parent / "copy", progress=progress)  # type: ignore[union-attr]


def damage(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize("is_far", [True, False], ids=["far away", "near by"])
@pytest.mark.parametrize("spoil", [False, True], ids=["right", "damaged"])
def test_an_interrupted_fetch_goes_on_where_it_stopped(
    place: FarAway, cache: ArtifactCache, tmp_path: Path, *, is_far: bool, spoil: bool
) -> None:
    """Chunk by chunk, each verified: what was damaged meanwhile is fetched again."""
    artifact_id, body = upload(place, 48 * MIB)
    place.remote = is_far
    store = ContentStore(place, cache=cache)
    interrupt(store, artifact_id, after=40 * MIB)
    (left,) = filling(cache)
    if spoil:
        damage(left, 20 * MIB)
    before = place.bytes_read()
    again = ContentStore(place, cache=ArtifactCache(cache.folder, size_limit=2**30))
    again.download(artifact_id, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == body
    fetched = place.bytes_read() - before
    assert fetched <= len(body) - 36 * MIB
    assert (fetched > len(body) - before) == spoil
    assert not filling(cache)
    again.cache.close()  # type: ignore[union-attr]


def test_a_small_rest_is_not_kept(cache: ArtifactCache) -> None:
    """Below a MiB a fetch is one request."""
    with pytest.raises(Interrupted):
        cache.fetch("0" * 64, size=2**19, fill=fill_and_fail)
    assert not filling(cache)


def fill_and_fail(slot: Slot) -> None:
    slot.write_at(bytes(slot.size), 0)
    raise Interrupted


def bring_in(cache: ArtifactCache, body: bytes) -> None:
    digest = digest_of(body)
    file = cache.fetch(digest, size=len(body), fill=lambda slot: slot.write_at(body, 0))
    assert file is not None
    file.close()


def test_what_was_left_goes_when_its_room_is_needed_or_after_a_day(tmp_path: Path) -> None:
    """It goes before any content does."""
    with contextlib.closing(ArtifactCache(tmp_path / "cache", size_limit=4 * MIB)) as cache:
        bring_in(cache, b"kept" * 1000)
        with pytest.raises(Interrupted):
            cache.fetch("0" * 64, size=2 * MIB, fill=fill_and_fail)
        (left,) = filling(cache)
        bring_in(cache, b"x" * MIB)
        assert left.exists()
        os.utime(left, (0, time.time() - 90_000))
        bring_in(cache, b"y" * 1000)
        assert not left.exists()
        with pytest.raises(Interrupted):
            cache.fetch("0" * 64, size=2 * MIB, fill=fill_and_fail)
        bring_in(cache, b"z" * (2 * MIB))
        assert not filling(cache)
        assert cache.counters.evictions == 0
        assert cache.volume() == 4000 + MIB + 1000 + 2 * MIB


# A node under stress


@pytest.mark.parametrize(
    ("seconds", "count"),
    [
        pytest.param(SOAK_SECONDS or 15.0, 40, id="short"),
        pytest.param(SOAK_SECONDS or 600.0, 200, id="long", marks=pytest.mark.slow),
    ],
)
def test_a_node_under_stress_serves_no_wrong_byte_and_keeps_to_its_limit(
    place: FarAway, tmp_path: Path, seconds: float, count: int
) -> None:
    """Eight processes, contents ten times as large as the cache, kills, damage, evictions."""
    seed = int(os.environ.get("CASARTIFACTS_SOAK_SEED", "1"))
    stored = dict(contents(ContentStore(place), count, seed=seed))
    cache = ArtifactCache(tmp_path / "cache", size_limit=sum(stored.values()) // 10)
    folder = tmp_path / "work"
    folder.mkdir()
    job = Soak(backend=place, cache=cache, ids=list(stored), folder=folder)
    node = Node(job, workers=8, seed=seed)
    try:
        node.live(seconds)
    finally:
        node.end()
    node.tally.downloads = sum(path.stat().st_size for path in folder.glob("done-*"))
    told = f"seed {seed}, {len(stored)} contents of {sum(stored.values())} bytes, {node.tally}"
    print(told)  # noqa: T201 -- pytest shows it when the test fails, and with -s
    assert [path.read_text() for path in folder.glob("wrong-*")] == []
    assert node.tally.downloads > 2 * seconds
    assert node.tally.kills > 0 < node.tally.damages
    assert node.tally.samples > 0
    assert node.tally.exceeded == []
    with contextlib.closing(cache):
        cache.clean()
        assert not filling(cache)
        files = list(cache.folder.glob("contents/*/*"))
        assert cache.volume() == sum(path.stat().st_size for path in files)
