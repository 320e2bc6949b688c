"""What happened in a cache is counted by all processes, whatever becomes of them."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import closing, suppress
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casartifacts.cache import ArtifactCache, Counters, counters
from casartifacts.cache import folder as places
from casartifacts.digest import digest_of

if TYPE_CHECKING:
    from collections.abc import Callable

BODY = b"a content" * 100
DIGEST = digest_of(BODY)


def keep(cache: ArtifactCache, body: bytes = BODY) -> None:
    with cache.admit(digest_of(body), size=len(body)) as slot:
        assert slot is not None
        slot.write_at(body, 0)
        slot.publish().close()


def hit(cache: ArtifactCache, times: int = 1) -> None:
    for _ in range(times):
        file = cache.open(DIGEST)
        assert file is not None
        file.close()


@pytest.fixture
def cache(tmp_path: Path) -> ArtifactCache:
    cache = ArtifactCache(tmp_path / "cache")
    keep(cache)
    return cache


# Hits until it is killed; says how many there were by then at least.
PROGRAM = """
import sys
from casartifacts.cache import ArtifactCache
cache = ArtifactCache(sys.argv[1])
number = 0
while True:
    cache.open(sys.argv[2]).close()
    number += 1
    print(number, flush=True)
"""


def start(cache: ArtifactCache) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(cache.folder), DIGEST],
        stdout=subprocess.PIPE,
        text=True,
    )


def test_the_dead_and_the_living_are_counted_once_each(cache: ArtifactCache) -> None:
    """Killed at any moment, and its file taken over: not one hit more or less."""
    before = 0
    for round_number in range(3):
        processes = [start(cache) for _ in range(2)]
        for process in processes:
            assert process.stdout is not None
            while int(process.stdout.readline()) < 50:
                pass
        assert cache.totals().hits >= before + 100, "it can be read while they run"
        hits = 0
        for process in processes:
            process.send_signal(signal.SIGKILL)
            assert process.stdout is not None
            # What it could not say any more was one hit at most.
            hits += max(int(line) for line in process.stdout.read().split() or ["50"])
            process.stdout.close()
            process.wait()
        total = cache.totals()
        assert before + hits <= total.hits <= before + hits + len(processes)
        assert total.bytes_served == total.hits * len(BODY)
        before = total.hits
        assert len(list(cache.folder.glob("counters/*"))) == 3, round_number
    hit(cache, 7)
    assert cache.totals().hits == before + 7
    assert cache.counters == Counters(hits=7, bytes_served=7 * len(BODY), bytes_fetched=len(BODY))


def test_objects_threads_and_forked_children_add_up(cache: ArtifactCache) -> None:
    """Objects of one process share a file, also one after the other; a child has its own."""
    others = [ArtifactCache(cache.folder) for _ in range(3)]
    threads = [threading.Thread(target=hit, args=(each, 50)) for each in (cache, *others)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [each.counters.hits for each in others] == [50, 50, 50]
    assert cache.totals().hits == 200
    assert len(list(cache.folder.glob("counters/*"))) == 1
    del threads, others
    if hasattr(os, "fork"):
        for _ in range(3):
            if not (child := os.fork()):
                try:
                    hit(cache, 10)
                finally:
                    os._exit(cache.counters.hits)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 10
        hit(cache)
        assert cache.totals().hits == 231
        assert len(list(cache.folder.glob("counters/*"))) == 2
    for _ in range(20):
        with closing(ArtifactCache(cache.folder)) as another:
            hit(another)
    folder = cache.folder
    del cache, another
    hit(again := ArtifactCache(folder))
    assert again.totals().misses == 0
    assert len(list(folder.glob("counters/*"))) <= 2


def test_a_file_is_let_go_with_the_last_object(tmp_path: Path) -> None:
    """A process that makes many caches keeps no descriptor of those that are gone."""
    gc.collect()  # stores of other tests, each with its cache
    open_files = Path("/proc/self/fd")
    before = len(list(open_files.glob("*")))
    for number in range(30):
        with closing(ArtifactCache(tmp_path / str(number))) as cache:
            keep(cache)
        assert cache.totals().bytes_fetched == len(BODY)
    del cache
    assert len(counters._ledgers) <= 1
    assert len(list(open_files.glob("*"))) <= before + 3


def replace_by_symlink(path: Path, outside: Path) -> None:
    path.unlink()
    path.symlink_to(outside)


def replace_by_hard_link(path: Path, outside: Path) -> None:
    path.unlink()
    path.hardlink_to(outside)


def replace_by_fifo(path: Path, _: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_by_folder(path: Path, _: Path) -> None:
    path.unlink()
    path.mkdir()


def flip_a_bit(path: Path, _: Path) -> None:
    old = bytearray(path.read_bytes())
    old[20] ^= 1
    path.write_bytes(old)


def cut(path: Path, _: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path: Path, _: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def be_foreign(path: Path, _: Path) -> None:
    path.write_bytes(b"somebody's notes")


BROKEN = [
    replace_by_symlink,
    replace_by_hard_link,
    replace_by_fifo,
    replace_by_folder,
    flip_a_bit,
    cut,
    lengthen,
    be_foreign,
]


@pytest.mark.parametrize("spoil", BROKEN)
def test_a_broken_or_foreign_file_counts_as_nothing_and_is_not_written_to(
    tmp_path: Path, spoil: Callable[[Path, Path], None]
) -> None:
    """Whoever finds it takes another one, and `clean` takes it out."""
    # As a record of ours, so that only its being outside can tell.
    (outside := tmp_path / "outside").write_bytes(counters._encode(Counters(hits=1000)))
    folder = tmp_path / "cache"
    keep(ArtifactCache(folder))
    path = folder / "counters" / "000"
    spoil(path, outside)
    before = path.read_bytes() if path.is_file() else b""
    cache = ArtifactCache(folder)
    signal.alarm(20)
    hit(cache, 3)
    # What another name leads to is read, as numbers are by anybody, but not taken over.
    linked = 1000 if spoil is replace_by_hard_link else 0
    assert cache.totals().hits == 3 + linked
    assert not path.is_file() or path.read_bytes() == before
    cache.clean()
    signal.alarm(0)
    assert os.path.lexists(path) == (spoil in {replace_by_hard_link, replace_by_folder})
    assert outside.read_bytes() == counters._encode(Counters(hits=1000))
    assert cache.totals().hits == 3 + linked


@pytest.mark.parametrize("spoil", [*BROKEN[:4], Path.unlink])
def test_who_loses_its_file_counts_on_in_another_one(
    cache: ArtifactCache, tmp_path: Path, spoil: Callable[..., None]
) -> None:
    """What was counted until then is gone with the file, and what lies there is not its own."""
    (outside := tmp_path / "outside").write_bytes(b"somebody's notes")
    hit(cache, 5)
    path = cache.folder / "counters" / "000"
    spoil(path) if spoil is Path.unlink else spoil(path, outside)
    cache._counting._ledger._look_at = 0  # a second later
    hit(cache, 3)
    assert cache.totals().hits == 3
    assert outside.read_bytes() == b"somebody's notes"


def test_a_folder_that_is_deleted_while_in_use_is_counted_anew(cache: ArtifactCache) -> None:
    """What is counted from then on is in the folder that is there then."""
    hit(cache, 5)
    shutil.rmtree(cache.folder)
    assert cache.totals() == Counters()
    assert cache.open(DIGEST) is None
    keep(cache)
    cache._counting._ledger._look_at = 0  # a second later
    hit(cache, 2)
    assert cache.totals().hits == 2
    assert cache.counters.hits == 7


@pytest.mark.parametrize("fault", ["no locks", "locks do nothing"])
def test_without_locks_no_file_is_taken_over(
    cache: ArtifactCache, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Its owner may live: so nothing is overwritten, and each process makes its own."""
    hit(cache, 5)
    answer = None if fault == "no locks" else True
    monkeypatch.setattr(places, "lock", lambda _: answer)
    monkeypatch.setattr(places, "is_locked", lambda _: None if answer is None else False)
    folder = cache.folder
    other = ArtifactCache(folder)
    other._counting._ledger = counters._Ledger(str(folder))
    hit(other, 3)
    assert cache.totals().hits == 8
    hit(cache)
    assert cache.totals().hits == 9
    assert len(list(folder.glob("counters/*"))) == 2


def test_an_empty_file_is_taken_unless_somebody_has_it(tmp_path: Path) -> None:
    """Whoever made it was killed before it wrote, or is about to."""
    folder = tmp_path / "counters"
    folder.mkdir()
    (folder / "000").touch()
    with (folder / "000").open("rb") as file:
        assert places.lock(file.fileno())
        counters._Ledger(str(tmp_path)).add(Counters(hits=1))
        assert (folder / "000").read_bytes() == b""
    counters._Ledger(str(tmp_path)).add(Counters(hits=2))
    assert len(list(folder.iterdir())) == 2
    assert counters.totals(str(tmp_path)).hits == 3
    assert (folder / "000").read_bytes() == counters._encode(Counters(hits=2))


def test_there_are_no_more_files_than_the_bound(
    cache: ArtifactCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who finds no place counts for itself alone."""
    monkeypatch.setattr(places, "MOST_COUNTERS", 2)
    hit(cache)
    ledgers = [counters._Ledger(str(cache.folder)) for _ in range(3)]
    for ledger in ledgers:
        ledger.add(Counters(hits=10))
    assert len(list(cache.folder.glob("counters/*"))) == 2
    assert cache.totals().hits == 11
    # When one ends, its place is free, and what waited is noted there.
    del ledgers[0], ledger
    ledgers[0]._look_at = 0
    ledgers[0].add(Counters(hits=1))
    assert cache.totals().hits == 22


def test_on_a_full_disk_a_process_counts_for_itself_and_notes_it_later(small_disk: Path) -> None:
    """No hit fails for it."""
    cache = ArtifactCache(small_disk / "cache", size_limit=2**40)
    keep(cache)
    hit(cache, 2)
    cache._counting.close()
    (cache.folder / "counters" / "000").unlink()
    filler = small_disk / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(2**12))
    hit(cache, 3)
    assert cache.counters.hits == 5
    assert cache.totals() == Counters()
    filler.unlink()
    hit(cache)
    assert cache.totals().hits == 4
    cache.close()


NUMBERS = st.builds(Counters, *[st.integers(0, 2**40)] * 7)


@given(NUMBERS, NUMBERS)
def test_a_record_reads_as_it_was_written(
    tmp_path_factory: Any, one: Counters, two: Counters
) -> None:
    """And is the sum of what was added."""
    path = tmp_path_factory.getbasetemp() / "record"
    both = Counters()
    both.add(one)
    both.add(two)
    assert astuple(both) == tuple(map(sum, zip(astuple(one), astuple(two), strict=True)))
    path.write_bytes(counters._encode(both))
    with path.open("rb") as file:
        assert counters._read(file.fileno()) == both


def test_the_record_has_its_golden_bytes() -> None:
    """Processes of several versions may share a folder: another form needs another mark."""
    assert counters._encode(Counters(1, 2, 3, 4, 5, 6, 7)) == bytes.fromhex(
        "636173436e74310a"
        "0100000000000000020000000000000003000000000000000400000000000000"
        "050000000000000006000000000000000700000000000000"
        "2765d04b"
    )
