"""`stat`, `verify` and `clean` say what is there, take out what is of no use, and nothing else."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path

import pytest

from casartifacts.cache import ArtifactCache, CacheUnavailable, Counters
from casartifacts.cache import table as table_module
from casartifacts.digest import digest_of

BODIES = [bytes([number]) * (1_000 + number) for number in range(12)]


def keep(cache: ArtifactCache, body: bytes) -> None:
    with cache.admit(digest_of(body), size=len(body)) as slot:
        assert slot is not None
        slot.write_at(body, 0)
        slot.publish().close()


def read(cache: ArtifactCache, digest: str) -> bytes | None:
    if (file := cache.open(digest)) is None:
        return None
    with file:
        return file.read()


def file_of(cache: ArtifactCache, body: bytes) -> Path:
    (path,) = cache.folder.glob(f"contents/*/{digest_of(body)}-*")
    return path


def write_over(path: Path, body: bytes) -> None:
    path.chmod(0o600)
    path.write_bytes(body)


@pytest.fixture(params=[3, 1000], ids=["pages of 3", "one page"])
def cache(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> ArtifactCache:
    monkeypatch.setattr(table_module, "PAGE", request.param)
    cache = ArtifactCache(tmp_path / "cache", size_limit=100_000)
    for body in BODIES:
        keep(cache, body)
    return cache


def test_a_folder_without_a_cache_is_left_alone(tmp_path: Path) -> None:
    """Whoever mistypes its name makes none."""
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine").write_bytes(b"x")
    for name in ("nothing", "notes"):
        cache = ArtifactCache(tmp_path / name)
        for act in (cache.stat, cache.verify, cache.clean):
            with pytest.raises(FileNotFoundError, match="no cache in"):
                act()
        assert cache.totals() == Counters()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["mine", "notes"]


def test_stat_says_what_is_there(cache: ArtifactCache) -> None:
    """Contents, room, what is on its way in, what was put aside, and what all have counted."""
    write_over(file_of(cache, BODIES[0]), b"wrong")
    assert read(cache, digest_of(BODIES[0])) is None
    with cache.admit("0" * 64, size=700) as slot:
        assert slot is not None
        found = ArtifactCache(cache.folder, size_limit=5).stat()
    size = sum(map(len, BODIES[1:]))
    assert (found.folder, found.size_limit) == (str(cache.folder), 5)
    assert (found.contents, found.size) == (len(BODIES) - 1, size)
    assert (found.filling, found.filling_size) == (1, 700)
    assert (found.aside, found.aside_size) == (1, 5)
    assert found.totals == cache.totals() == cache.counters
    assert found.totals.bytes_fetched == sum(map(len, BODIES))
    disk = os.statvfs(cache.folder)
    assert found.floor == disk.f_blocks * disk.f_frsize // 20
    assert abs(found.free - disk.f_bavail * disk.f_frsize) < 2**30


def test_verify_hashes_what_every_stamp_would_pass(cache: ArtifactCache) -> None:
    """Also what a process knows to be right; what is right keeps its age and its stamp."""
    wrong, gone, touched = BODIES[3], BODIES[5], BODIES[7]
    path = file_of(cache, wrong)
    write_over(path, b"?" * len(wrong))
    with closing(sqlite3.connect(cache.folder / "cache.db", isolation_level=None)) as rows:
        # As if a disk had lost what it had acknowledged: nothing but the bytes is different.
        status = path.stat()
        tag = ":".join(
            map(
                str,
                (
                    status.st_dev,
                    status.st_ino,
                    status.st_size,
                    status.st_mtime_ns,
                    status.st_ctime_ns,
                ),
            )
        )
        boot = Path("/proc/sys/kernel/random/boot_id")
        tag += f":{boot.read_text().strip() if boot.exists() else ''}"
        rows.execute(
            "UPDATE Cache SET tag = ? || substr(tag, instr(tag, ' ')) WHERE key = ?",
            (tag, digest_of(wrong)),
        )
        file_of(cache, gone).unlink()
        os.utime(file_of(cache, touched))
        order = "SELECT key FROM Cache WHERE filename IS NOT NULL ORDER BY store_time"
        before = [key for (key,) in rows.execute(order)]
        assert read(ArtifactCache(cache.folder), digest_of(wrong)) == b"?" * len(wrong)
        found = cache.verify()
        after = [key for (key,) in rows.execute(order)]
    assert sorted(found.wrong) == sorted(map(digest_of, (wrong, gone)))
    right = [body for body in BODIES if body not in (wrong, gone)]
    assert (found.contents, found.size) == (len(right), sum(map(len, right)))
    lasting = [key for key in before if key not in (*found.wrong, digest_of(touched))]
    assert after == [*lasting, digest_of(touched)]
    assert len(list(cache.folder.glob("damaged/*"))) == 1
    assert cache.counters.heals == 2
    for body in BODIES:
        assert read(cache, digest_of(body)) == (body if body in right else None)
    assert cache.verify().wrong == ()


def test_clean_takes_out_what_leads_nowhere_and_nothing_else(cache: ArtifactCache) -> None:
    """Files without rows, rows without files, left-overs, what was put aside; not what is open."""
    stray, lost, wrong = BODIES[:3]
    with closing(sqlite3.connect(cache.folder / "cache.db", isolation_level=None)) as rows:
        rows.execute("DELETE FROM Cache WHERE key = ?", (digest_of(stray),))
        rows.execute(
            "UPDATE Cache SET filename = '../../../etc/passwd' WHERE key = ?",
            (digest_of(BODIES[4]),),
        )
    file_of(cache, lost).unlink()
    write_over(file_of(cache, wrong), b"wrong")
    assert read(cache, digest_of(wrong)) is None
    foreign = cache.folder / "contents" / "00" / "notes"
    foreign.parent.mkdir(exist_ok=True)
    foreign.write_bytes(b"not of this cache")
    damaged = cache.folder / "damaged" / f"cache.db-{'3' * 16}"
    damaged.write_bytes(b"x" * 7)
    with cache.admit("4" * 64, size=300) as slot:
        assert slot is not None
        # After the slot was made: whoever makes room takes left-overs away.
        left = cache.folder / "tmp" / f"{'1' * 64}-{'2' * 16}-7-500"
        left.write_bytes(b"x" * 40)
        os.utime(left, (0, 0))
        os.utime(slot.path, (0, 0))
        open_file = cache.open(digest_of(BODIES[11]))
        assert open_file is not None
        gone = ArtifactCache(cache.folder).clean()
        assert Path(slot.path).exists()
        # The file whose row led elsewhere has no row that leads to it.
        assert (gone.strays, gone.lost, gone.left_over) == (2, 2, 1)
        assert (gone.aside, gone.contents) == (2, 0)
        assert gone.size == len(stray) + len(BODIES[4]) + 40 + len(b"wrong") + 7
        assert foreign.exists()
        right = [body for body in BODIES if body not in (*BODIES[:3], BODIES[4])]
        for body in right:
            assert read(cache, digest_of(body)) == body
        assert cache.volume() == sum(map(len, right))
        gone = ArtifactCache(cache.folder).clean(everything=True)
        assert (gone.contents, gone.size) == (len(right), sum(map(len, right)))
        assert (gone.strays, gone.lost, gone.left_over, gone.aside) == (0, 0, 0, 0)
        with open_file:
            assert open_file.read() == BODIES[11]
        slot.write_at(b"s" * 300, 0)
        slot.publish().close()
    assert cache.volume() == 300
    assert len([path for path in cache.folder.glob("contents/*/*") if path != foreign]) == 1
    keep(cache, BODIES[0])
    assert read(cache, digest_of(BODIES[0])) == BODIES[0]


def test_what_cannot_be_done_is_said(cache: ArtifactCache) -> None:
    """Unlike a read, which goes around a broken cache, these are for people who want to know."""
    cache.close()
    for path in cache.folder.glob("cache.db*"):
        path.unlink()
    (cache.folder / "cache.db").mkdir()
    (cache.folder / "damaged").rmdir()
    (cache.folder / "damaged").write_bytes(b"")
    broken = ArtifactCache(cache.folder)
    for act in (broken.stat, broken.verify, broken.clean):
        with pytest.raises((CacheUnavailable, OSError), match=r"damaged|table"):
            act()


PROGRAM = """
import random, sys, time
from casartifacts.cache import ArtifactCache
from casartifacts.digest import digest_of
from casartifacts.cache import database, listing, table
for module in (database, listing, table):
    module.BUSY_SECONDS = 60  # a machine that stalls is not what is tried here
cache = ArtifactCache(sys.argv[1], size_limit=50_000)
chance = random.Random(sys.argv[2])
until = time.monotonic() + 6
number = 0
while time.monotonic() < until or number <= 10:
    body = random.Random(chance.randrange(20)).randbytes(4_000)
    digest = digest_of(body)
    file = cache.open(digest)
    if file is not None:
        with file:
            assert file.read() == body
        continue
    number += 1
    with cache.admit(digest, size=len(body)) as slot:
        if slot is not None:
            slot.write_at(body[:2000], 0)
            slot.write_at(body[2000:], 2000)
            with slot.publish() as file:
                assert file.read() == body
print(number)
"""


def test_others_go_on_using_it_meanwhile(tmp_path: Path) -> None:
    """No file in flight is lost, no right content is found wrong, and nothing strays."""
    folder = tmp_path / "cache"
    keep(ArtifactCache(folder, size_limit=50_000), b"first")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(folder), str(number)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    chance = random.Random(3)
    cache = ArtifactCache(folder, size_limit=50_000)
    while any(process.poll() is None for process in processes):
        with suppress(CacheUnavailable):  # busy for too long
            assert cache.verify().wrong == ()
            gone = cache.clean(everything=chance.random() < 0.3)
            assert (gone.strays, gone.lost, gone.left_over) == (0, 0, 0)
            assert cache.stat().size <= 50_000
    for process in processes:
        out, error = process.communicate()
        assert error == ""
        assert int(out) > 10
    held = [path.stat().st_size for path in folder.glob("contents/*/*")]
    assert cache.volume() == sum(held)
