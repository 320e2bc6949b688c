"""The cache keeps to its limit, serves only what is right, and never fails.

Rule 1: what is wrong is made wrong for real: files and rows are altered behind the cache's back.
Rule 2: sizes are measured on the real folder.
"""

from __future__ import annotations

import os
import pickle
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diskcache
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from node import soak

from casartifacts import cache as cache_module
from casartifacts.cache import (
    ArtifactCache,
    CacheUnavailable,
    Counters,
    Slot,
    database,
    failures,
    mounts,
    room,
    trust,
)
from casartifacts.cache import folder as places
from casartifacts.cache import table as table_module
from casartifacts.digest import digest_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LIMIT = 10_000


def keep(cache: ArtifactCache, body: bytes) -> bool:
    """Bring a content in as the store does; tell whether the cache took it."""
    with cache.admit(digest_of(body), size=len(body)) as slot:
        if slot is None:
            return False
        slot.write_at(body, 0)
        with slot.publish() as file:
            assert file.read() == body
        return True


def read(cache: ArtifactCache, digest: str) -> bytes | None:
    file = cache.open(digest)
    if file is None:
        return None
    with file:
        return file.read()


def file_of(folder: Path, digest: str) -> Path:
    (path,) = filter(Path.is_file, folder.glob(f"contents/*/{digest}-*"))
    return path


def overwrite(path: Path, body: bytes | bytearray) -> None:
    """Write into a file where it lies, as a disk or a program gone wrong does."""
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.write(body)
        file.truncate()


def bytes_in(folder: Path) -> int:
    """Add up what the limit is about: contents, files being filled, contents put aside."""
    files = [
        *folder.glob("contents/*/*"),
        *folder.glob("tmp/*"),
        *(path for path in folder.glob("damaged/*") if not path.name.startswith("cache.db")),
    ]
    return sum(path.lstat().st_size for path in files if path.is_file() and not path.is_symlink())


@contextmanager
def rows(folder: Path) -> Iterator[sqlite3.Connection]:
    """Open the database behind the cache's back."""
    with closing(sqlite3.connect(folder / "cache.db", isolation_level=None)) as connection:
        yield connection


def quick_folder() -> tempfile.TemporaryDirectory[str]:
    """Make a folder in memory where that can be had: a new database costs 30 ms of fsync."""
    memory = Path("/dev/shm")  # noqa: S108 -- a fresh folder in it
    return tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


# Contents against a model


class Contents(RuleBasedStateMachine):
    """A cache in a folder that is tampered with agrees with a dict: the same hits, the same room.

    `held` has the contents by age. `wrong` says of a tampered one how many bytes its file has, or
    None if it has no file that can be put aside. `aside` has the sizes of what was put aside.
    """

    shared = False

    def __init__(self) -> None:
        super().__init__()
        self.place = quick_folder()
        self.folder = Path(self.place.name, "cache")
        self.cache = ArtifactCache(self.folder, size_limit=LIMIT, shared=self.shared)
        self.bodies: dict[str, bytes] = {}
        self.held: dict[str, int] = {}
        self.wrong: dict[str, int | None] = {}
        self.aside: list[int] = []

    def teardown(self) -> None:
        self.cache.close()
        self.place.cleanup()

    def note_wrong(self, digest: str, size: int | None) -> None:
        """Note that a content was made wrong, and what its file has now."""
        self.wrong[digest] = size

    def pick(self, choice: int) -> str | None:
        """Choose a content that is held and right."""
        right = sorted(self.held.keys() - self.wrong)
        return right[choice % len(right)] if right else None

    @initialize(sizes=st.lists(st.integers(1, 4_000), min_size=1, max_size=5))
    def begin(self, sizes: list[int]) -> None:
        for seed, size in enumerate(sizes):
            self.keep(size, seed)

    @rule(size=st.integers(0, 5_000) | st.integers(5_000, LIMIT + 1), seed=st.integers(0, 3))
    def keep(self, size: int, seed: int) -> None:
        body = random.Random(f"{size} {seed}").randbytes(size)
        digest = digest_of(body)
        self.bodies.pop(digest, None)
        self.bodies[digest] = body
        is_kept = size <= LIMIT
        assert keep(self.cache, body) is is_kept
        if not is_kept:
            return
        excess = sum(self.held.values()) + sum(self.aside) + size - LIMIT
        while excess > 0 and self.aside:
            excess -= self.aside.pop(0)
        while excess > 0:
            oldest = next(iter(self.held))
            excess -= self.held.pop(oldest)
            self.wrong.pop(oldest, None)
        self.held.pop(digest, None)
        self.wrong.pop(digest, None)
        self.held[digest] = size

    @rule(choice=st.integers(0))
    def open(self, choice: int) -> None:
        # The younger ones more often: most of the others are gone.
        digest = list(self.bodies)[-1 - choice % min(len(self.bodies), 6)]
        is_hit = digest in self.held and digest not in self.wrong
        assert read(self.cache, digest) == (self.bodies[digest] if is_hit else None)
        if digest in self.wrong:
            del self.held[digest]
            if (size := self.wrong.pop(digest)) is not None:
                self.aside = [*self.aside, size][-4:]

    @rule(choice=st.integers(0))
    def forget(self, choice: int) -> None:
        digest = list(self.bodies)[choice % len(self.bodies)]
        self.cache.forget(digest)
        self.held.pop(digest, None)
        self.wrong.pop(digest, None)

    @rule()
    def reopen(self) -> None:
        self.cache.close()
        self.cache = pickle.loads(pickle.dumps(self.cache))  # noqa: S301 -- our own

    @rule(choice=st.integers(0), where=st.integers(0))
    def corrupt(self, choice: int, where: int) -> None:
        digest = self.pick(choice)
        if digest is None or not self.held[digest]:
            return
        body = bytearray(self.bodies[digest])
        body[where % len(body)] ^= 1
        overwrite(file_of(self.folder, digest), body)
        self.note_wrong(digest, len(body))

    @rule(choice=st.integers(0), left=st.integers(0))
    def truncate(self, choice: int, left: int) -> None:
        digest = self.pick(choice)
        if digest is None or not self.held[digest]:
            return
        left %= self.held[digest]
        overwrite(file_of(self.folder, digest), self.bodies[digest][:left])
        self.note_wrong(digest, left)

    @rule(choice=st.integers(0), instead=st.sampled_from(["nothing", "symlink", "folder", "fifo"]))
    def replace(self, choice: int, instead: str) -> None:
        digest = self.pick(choice)
        if digest is None:
            return
        path = file_of(self.folder, digest)
        path.rename(target := self.folder.with_name("elsewhere"))
        if instead == "symlink":
            path.symlink_to(target)
        elif instead == "folder":
            path.mkdir()
        elif instead == "fifo":
            os.mkfifo(path)
        # What is neither file nor folder counts for nothing and stays until its row goes.
        self.note_wrong(digest, None)

    @rule(choice=st.integers(0), is_copied=st.booleans())
    def touch(self, choice: int, is_copied: bool) -> None:
        digest = self.pick(choice)
        if digest is None:
            return
        path = file_of(self.folder, digest)
        if is_copied:
            copy = shutil.copy(path, self.folder.with_name("copy"))
            path.unlink()
            Path(copy).rename(path)
        else:
            os.utime(path)
        # Verified again when it is next opened, and young from then on.
        assert read(self.cache, digest) == self.bodies[digest]
        self.held[digest] = self.held.pop(digest)

    @invariant()
    def keeps_to_its_limit(self) -> None:
        assert self.cache.volume() == sum(self.held.values())
        assert bytes_in(self.folder) <= LIMIT
        assert not self.folder.exists() or not list(self.folder.glob("tmp/*"))
        put_aside = self.folder.glob("damaged/*")
        assert sorted(self.aside) == sorted(path.lstat().st_size for path in put_aside)


TestContents = Contents.TestCase
TestContents.settings = settings(max_examples=60, stateful_step_count=30)


class SharedContents(Contents):
    """The same, where others can write: what counts is the file, not what a row says of it."""

    shared = True

    def note_wrong(self, digest: str, size: int | None) -> None:
        del self.held[digest]
        if size is not None:
            # It was written to just now, which makes it the youngest.
            self.held[digest] = size
            self.wrong[digest] = size

    @invariant()
    def lets_the_clock_go_on(self) -> None:
        # The clock of a file system stands still for up to 10 ms; of one age any may go first.
        time.sleep(0.012)
        assert not self.folder.exists() or self.folder.stat().st_mode & 0o7777 == 0o2770
        assert not (self.folder / "cache.db").exists()


TestSharedContents = SharedContents.TestCase
TestSharedContents.settings = settings(max_examples=20, stateful_step_count=20)


# Room


def test_room_is_made_before_a_content_comes_in(folder: Path) -> None:
    """What must go has gone when the slot is handed out, and two slots never share room."""
    cache = ArtifactCache(folder, size_limit=1_000)
    neighbour = ArtifactCache(folder, size_limit=1_000)
    for body in (b"a" * 400, b"b" * 400):
        assert keep(cache, body)
    with cache.admit(digest_of(b"c" * 500), size=500) as slot:
        assert slot is not None
        assert bytes_in(folder) + 500 <= 1_000
        assert read(cache, digest_of(b"b" * 400)) is not None
        # 500 reserved, 400 held: 600 more can never fit, so that nothing is evicted for them.
        for other in (cache, neighbour):
            with other.admit(digest_of(b"d" * 600), size=600) as refused:
                assert refused is None
        assert read(neighbour, digest_of(b"b" * 400)) is not None
        assert keep(neighbour, b"e" * 500)
        assert read(cache, digest_of(b"b" * 400)) is None
        slot.write_at(b"c" * 500, 0)
        slot.publish().close()
    assert bytes_in(folder) == cache.volume() == 1_000
    assert cache.counters.evictions == neighbour.counters.evictions == 1


def test_a_content_as_large_as_the_limit_is_held_and_a_larger_one_passes_by(folder: Path) -> None:
    """What passes by evicts nothing, and a cache without room holds nothing."""
    cache = ArtifactCache(folder, size_limit=1_000)
    assert keep(cache, b"a" * 1_000)
    assert not keep(cache, b"b" * 1_001)
    assert read(cache, digest_of(b"a" * 1_000)) == b"a" * 1_000
    assert not keep(ArtifactCache(folder, size_limit=0), b"c")
    assert keep(ArtifactCache(folder, size_limit=0), b"") is True


@pytest.mark.parametrize("shared", [False, True], ids=["private", "shared"])
@pytest.mark.parametrize("step", ["once in its place", "once it has its row", "as one is dropped"])
def test_a_content_that_a_killed_process_left_counts_for_those_who_live_on(
    folder: Path, step: str, *, shared: bool
) -> None:
    """They need no new process to find it: its room is theirs at their next content."""
    cache = ArtifactCache(folder, size_limit=1_000, shared=shared)
    for letter in (b"a", b"b", b"c", b"d"):
        assert keep(cache, letter * 200)
    process = os.fork()
    if not process:
        table = type(cache._database._table)
        owner, name, acts = {
            "once in its place": (places, "move_in", True),
            "once it has its row": (table, "enter", True),
            "as one is dropped": (table_module._Names, "remove", False),
        }[step]
        act: Any = getattr(owner, name)

        def die(*arguments: Any, **options: Any) -> None:
            if acts:
                act(*arguments, **options)
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(owner, name, die)
        if acts:
            keep(cache, b"killed" * 33)
        cache.forget(digest_of(b"a" * 200))
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert status == (0 if shared and step == "as one is dropped" else -signal.SIGKILL)
    for number in range(8):
        assert keep(cache, bytes([number]) * 150)
        assert bytes_in(folder) <= 1_000
    assert cache.volume() == bytes_in(folder)
    assert not list(folder.glob("tmp/*"))


@pytest.mark.parametrize("shared", [False, True], ids=["private", "shared"])
def test_what_processes_count_and_note_fits_beside_contents_that_fill_the_cache(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, shared: bool
) -> None:
    """As much of it as there can be, and not one byte of the limit is left unused."""
    # By real files; a shared cache of this many notes would be large by half a GB only.
    monkeypatch.setattr(room, "_LARGE", 2)
    beside = 68_000 + (6_500_000 if shared else 0)
    limit = 2 * beside
    cache = ArtifactCache(folder, size_limit=limit, shared=shared)
    most = limit - beside
    assert not keep(cache, bytes(most + 1))
    for number in range(1, 4):
        assert keep(cache, bytes([number]) * (most // 3))
    assert keep(cache, b"x" * (most % 3))
    assert cache.counters.evictions == 0
    # What 999 processes more leave, and notes up to the bound.
    for number in range(1, 1_000):
        shutil.copy(folder / "counters" / "000", folder / "counters" / f"{number:03}")
    for number in range(3_990 * shared):
        places.write_record(str(folder), digest_of(b"%d" % number), "x" * 1_200)
    noted = set()
    for number in range(100):
        cache.remember(f"name {number}", "x" * 1_200)
        noted.add(len(list(folder.glob("records/*"))))
        assert soak.bytes_in(folder) <= limit
    assert cache.totals().bytes_fetched == 1_000 * most
    assert (4_000 <= max(noted) < 5_000 and min(noted) == 3_000) if shared else noted == {0}
    assert shared or soak.bytes_in(folder) == limit
    assert cache.volume() == most
    assert keep(cache, b"y")
    assert cache.counters.evictions == 1


def test_a_cache_so_small_that_it_would_be_felt_is_so_for_contents_alone(folder: Path) -> None:
    """A hundred times what lies beside them is large."""
    for limit, most in ((6_799_999, 6_799_999), (6_800_000, 6_732_000)):
        cache = ArtifactCache(folder, size_limit=limit)
        assert not keep(cache, bytes(most + 1))
        assert keep(cache, bytes(most))


def test_what_cannot_be_deleted_makes_no_room(without_privileges: Path) -> None:
    """It stays counted, and what can be deleted goes instead."""
    folder = without_privileges / "cache"
    cache = ArtifactCache(folder, size_limit=1_000)
    for letter in (b"a", b"b", b"c"):
        assert keep(cache, letter * 300)
    stuck = file_of(folder, digest_of(b"a" * 300))
    stuck.parent.chmod(0o500)
    try:
        assert not keep(cache, b"d" * 800)
        assert cache.volume() == bytes_in(folder) == 300
        assert keep(cache, b"e" * 700)
        assert cache.volume() == bytes_in(folder) == 1_000
        assert cache.clean(everything=True).contents == 1
        assert cache.volume() == bytes_in(folder) == 300
    finally:
        stuck.parent.chmod(0o700)
    assert keep(cache, b"f" * 1_000)
    assert bytes_in(folder) == 1_000


def test_a_row_that_cannot_be_written_leaves_no_file_uncounted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the commit fails, after which the file lies in its place."""
    cache = ArtifactCache(folder, size_limit=1_000)
    neighbour = ArtifactCache(folder, size_limit=1_000)
    assert keep(cache, b"a" * 100)
    assert keep(neighbour, b"b" * 100)
    digest = digest_of(b"c" * 500)

    def fail(table: Any, statement: str, *arguments: Any) -> Any:
        if statement == "COMMIT" and list(folder.glob(f"contents/*/{digest}-*")):
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error
        return table._con.execute(statement, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(table_module.Table, "_sql", property(lambda table: partial(fail, table)))
        with pytest.raises(CacheUnavailable):
            keep(cache, b"c" * 500)
    assert bytes_in(folder) == 700
    assert keep(neighbour, b"d" * 900)
    assert bytes_in(folder) <= 1_000


def test_an_interrupt_before_a_fetch_begins_gives_its_room_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the slot and its filling a large file may be hashed, and people lose patience."""
    cache = ArtifactCache(folder, size_limit=1_000)
    assert keep(cache, b"a" * 100)

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cache, "_look_up", interrupt)
        with pytest.raises(KeyboardInterrupt):
            cache.fetch("0" * 64, size=900, fill=lambda _: None)
    assert not list(folder.glob("tmp/*"))
    assert keep(ArtifactCache(folder, size_limit=1_000), b"b" * 900)


def test_a_forked_child_leaves_what_its_parent_fills_to_it(folder: Path) -> None:
    """Its lock ends with the parent, and the child deletes nothing."""
    cache = ArtifactCache(folder, size_limit=1_000)
    assert keep(cache, b"a" * 100)
    ends = os.pipe()
    parent = os.fork()
    if not parent:
        signal.alarm(60)
        with cache.admit("0" * 64, size=900) as slot:
            child = os.fork()
            signal.alarm(60)
            if not child:
                assert slot is not None
                slot.close()
            os.write(ends[1], (child or os.getpid()).to_bytes(8, "little"))
            signal.pause()
        os._exit(0)
    # Both say who the child is, the child when it has closed what it has of the slot.
    child, same = (int.from_bytes(os.read(ends[0], 8), "little") for _ in range(2))
    try:
        assert child == same
        is_there = len(list(folder.glob("tmp/*"))) == 1
        is_taken = not keep(cache, b"b" * 900)
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        assert is_there
        assert is_taken
        assert keep(cache, b"b" * 900)
    finally:
        os.kill(child, signal.SIGKILL)
        for end in ends:
            os.close(end)


def test_the_oldest_go_first_and_a_hit_makes_young_once_in_ten_minutes(folder: Path) -> None:
    """A hit on a row that was made young lately writes nothing; on an older one it does."""
    bodies = [bytes([number]) * 300 for number in range(3)]
    digests = [digest_of(body) for body in bodies]
    for body in bodies:
        assert keep(ArtifactCache(folder, size_limit=1_000), body)

    def look() -> list[tuple[float, str]]:
        with rows(folder) as table:
            return table.execute(
                "SELECT store_time, tag FROM Cache WHERE key = ?", (digests[0],)
            ).fetchall()

    before = look()
    assert read(ArtifactCache(folder, size_limit=1_000), digests[0]) == bodies[0]
    assert look() == before
    ((_, tag),) = before
    stamp, _, seconds = tag.partition(" ")
    with rows(folder) as table:
        older = f"{stamp} {int(seconds) - 601}"
        table.execute("UPDATE Cache SET tag = ? WHERE key = ?", (older, digests[0]))
    cache = ArtifactCache(folder, size_limit=1_000)
    assert read(cache, digests[0]) == bodies[0]
    assert look() > before
    assert keep(cache, b"d" * 300)
    assert [read(cache, digest) for digest in digests] == [bodies[0], None, bodies[2]]


def test_a_hit_makes_young_again_in_a_process_that_runs_for_long(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only the first hit of a process counts."""
    monkeypatch.setattr(cache_module, "_REFRESH_SECONDS", 0)
    cache = ArtifactCache(folder, size_limit=1_000)
    for body in (b"a" * 500, b"b" * 500):
        assert keep(cache, body)
    assert read(cache, digest_of(b"a" * 500)) == b"a" * 500
    assert keep(cache, b"c" * 500)
    assert read(cache, digest_of(b"a" * 500)) == b"a" * 500


def test_without_a_limit_it_is_a_tenth_of_the_file_system(small_disk: Path) -> None:
    """Asking for it makes no folder."""
    cache = ArtifactCache(small_disk / "not" / "there")
    assert cache.size_limit == shutil.disk_usage(small_disk).total // 10
    assert not list(small_disk.iterdir())
    assert ArtifactCache("/").size_limit <= 100 * 2**30


def test_what_a_killed_process_left_gives_its_room_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is being filled is not touched however old it looks, until its owner is dead."""
    cache = ArtifactCache(folder, size_limit=1_000)
    assert keep(cache, b"a" * 100)
    program = (
        "import sys, time\n"
        "from casartifacts.cache import ArtifactCache\n"
        "cache = ArtifactCache(sys.argv[1], size_limit=1_000)\n"
        "with cache.admit('0' * 64, size=800) as slot:\n"
        "    slot.write_at(b'b' * 100, 0)\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        (left,) = folder.glob("tmp/*")
        os.utime(left, (0, 0))
        assert not keep(cache, b"c" * 500)
        process.send_signal(signal.SIGKILL)
    assert left.exists()
    os.utime(left)
    with monkeypatch.context() as without_locks:
        without_locks.setattr(room, "is_locked", lambda _: False)
        assert not keep(cache, b"c" * 500), "it may still be written to where locks do nothing"
    assert left.exists()
    assert keep(cache, b"c" * 500)
    assert not left.exists()


# Slots


def test_a_slot_that_is_not_published_leaves_nothing(folder: Path) -> None:
    """Neither when the block ends, nor when it dies."""
    cache = ArtifactCache(folder, size_limit=1_000)
    with pytest.raises(KeyError), cache.admit("0" * 64, size=10) as slot:  # noqa: PT012
        assert slot is not None
        slot.write_at(b"abc", 0)
        assert len(list(folder.glob("tmp/*"))) == 1
        raise KeyError
    assert slot is not None
    with pytest.raises(ValueError, match="closed"):
        slot.fileno()
    with pytest.raises(ValueError, match="closed"):
        slot.write_at(b"abc", 0)
    assert bytes_in(folder) == cache.volume() == 0
    assert not list(folder.glob("tmp/*"))


def test_a_slot_takes_pieces_in_any_order_and_only_whole_contents(folder: Path) -> None:
    """Its length is what was announced: no byte less, and none more while it is filled."""
    cache = ArtifactCache(folder, size_limit=1_000)
    with cache.admit(digest_of(b"abcdef"), size=6) as slot:
        assert slot is not None
        slot.write_at(memoryview(b"def"), 3)
        slot.write_at(bytearray(b"abc"), 0)
        for offset in (1, -1):
            with pytest.raises(CacheUnavailable, match="longer"):
                slot.write_at(b"abcdef", offset)
        assert os.pread(slot.fileno(), 10, 0) == b"abcdef"
        with slot.publish() as file:
            assert (file.read(), os.fstat(file.fileno()).st_size) == (b"abcdef", 6)
    with cache.admit("0" * 64, size=6) as slot:
        assert slot is not None
        slot.write_at(b"abc", 0)
        with pytest.raises(CacheUnavailable, match="whole"):
            slot.publish()
    assert cache.open("0" * 64) is None
    assert bytes_in(folder) == 6


# What lies there is never executed, and nothing outside is touched


class Bomb:
    """What is left of an attacker: unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.path,)


_watching: list[tuple[str, str]] | None = None
_FILE_EVENTS = {"open", "os.rename", "os.remove", "os.chmod", "os.utime", "os.rmdir", "os.truncate"}


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching is None or event not in {*_FILE_EVENTS, "pickle.find_class"}:
        return
    paths = arguments[:2] if event in {"os.rename", "pickle.find_class"} else arguments[:1]
    _watching.extend((event, os.fspath(path)) for path in paths if not isinstance(path, int))


sys.addaudithook(_watch)


@contextmanager
def watched() -> Iterator[list[tuple[str, str]]]:
    """Note every file that Python opens, moves or deletes, and every class that it unpickles."""
    global _watching  # noqa: PLW0603 -- an audit hook cannot be taken out again
    noted: list[tuple[str, str]] = []
    _watching = noted
    try:
        yield noted
    finally:
        _watching = None


BODY = b"a content" * 100
DIGEST = digest_of(BODY)
NAME = "record"

# Settings that diskcache would take from the database.
SETTINGS = {
    "a setting of the disk": "INSERT INTO Settings VALUES ('disk_x', ?)",
    "a setting of SQLite": "INSERT INTO Settings VALUES ('sqlite_mmap_size = 1000000 --', ?)",
    "a setting that is a method": "INSERT INTO Settings VALUES ('transact', ?)",
    "another policy": "UPDATE Settings SET value = ? WHERE key = 'eviction_policy'",
    "statistics": "UPDATE Settings SET value = 1 WHERE key = 'statistics' AND ? NOT NULL",
    "a cull": "UPDATE Settings SET value = 10 WHERE key = 'cull_limit' AND ? NOT NULL",
}

# What another user of the folder could write into the database: {outside} is a path outside the
# folder, {above} the same as a relative one; ? is a pickle.
TAMPERED = {
    "a pickle as value": "UPDATE Cache SET mode = 4, filename = NULL, value = ?",
    "a pickle as text": "UPDATE Cache SET mode = 1, filename = NULL, value = ?",
    "a pickle in the file": "UPDATE Cache SET mode = 4, value = NULL WHERE ? NOT NULL",
    "a pickle as name": "UPDATE Cache SET key = ?, raw = 0 WHERE rowid = 1",
    "a pickle as tag": "UPDATE Cache SET tag = ?",
    "an absolute path": "UPDATE Cache SET filename = '{outside}' WHERE ? NOT NULL",
    "a relative path": "UPDATE Cache SET filename = '{above}', mode = 2 WHERE ? NOT NULL",
    "a path as text": "UPDATE Cache SET filename = '{above}', mode = 3 WHERE ? NOT NULL",
    "a path in a blob": "UPDATE Cache SET filename = CAST('{above}' AS BLOB) WHERE ? NOT NULL",
    "a path that is ours at first": (
        "UPDATE Cache SET filename = filename || '/../../../{above}' WHERE ? NOT NULL"
    ),
    "the row of another content": (
        "UPDATE Cache SET (filename, tag) = (SELECT filename, tag FROM Cache WHERE rowid = 2)"
        " WHERE rowid = 1 AND ? NOT NULL"
    ),
    "no text": "UPDATE Cache SET value = CAST(x'ff' AS TEXT), tag = 1.5 WHERE ? NOT NULL",
    "a size that is none": "UPDATE Cache SET size = 'much' WHERE ? NOT NULL",
    "a negative size": "UPDATE Cache SET size = -1000000 WHERE ? NOT NULL",
    "a setting without a text as name": "INSERT INTO Settings VALUES (?, 1)",
    "a sum that is none": "UPDATE Settings SET value = ? WHERE key = 'size'",
    "a trigger": (
        "CREATE TRIGGER nasty AFTER DELETE ON Cache BEGIN SELECT RAISE(ABORT, 'no'); END"
    ),
    "other columns": "ALTER TABLE Cache RENAME COLUMN tag TO label",
    "no table": "DROP TABLE Cache",
    "nothing": "SELECT ?",
}


@pytest.mark.parametrize("statement", TAMPERED.values(), ids=TAMPERED.keys())
def test_a_tampered_database_is_neither_executed_nor_followed(
    tmp_path: Path, folder: Path, statement: str
) -> None:
    """No pickle, path or setting is taken from it, and the cache goes on with right bytes."""
    outside = tmp_path / "outside"
    outside.write_bytes(BODY)
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"))
    cache = ArtifactCache(folder, size_limit=3_000)
    assert keep(cache, BODY)
    assert keep(cache, bomb)
    cache.remember(NAME, DIGEST)
    cache.close()
    with rows(folder) as table:
        statement = statement.format(outside=outside, above="../outside")
        table.execute(statement, (bomb,) * statement.count("?"))
    with watched() as noted:
        fresh = ArtifactCache(folder, size_limit=3_000)
        for each in (fresh, cache):
            assert read(each, DIGEST) in {BODY, None}
            assert each.recall(NAME) in {DIGEST, None}
            assert read(each, digest_of(bomb)) in {bomb, None}
        keep(fresh, b"b" * 1_500)
        keep(fresh, b"c" * 3_000)
        keep(fresh, BODY)
        fresh.remember(NAME, "other")
        fresh.forget(digest_of(b"c" * 3_000))
        fresh.volume()
        assert read(fresh, DIGEST) == BODY
        assert fresh.recall(NAME) == "other"
        for look_after in (fresh.stat, fresh.verify, fresh.clean):
            with suppress(CacheUnavailable):
                look_after()
        assert read(fresh, DIGEST) == BODY
        with suppress(CacheUnavailable):
            fresh.clean(everything=True)
    strayed = [
        (event, path)
        for event, path in noted
        if not os.path.realpath(path).startswith(f"{folder}{os.sep}")
        and path not in {str(folder), "/proc/sys/kernel/random/boot_id", mounts.MOUNTINFO}
    ]
    assert noted
    assert not strayed
    assert outside.read_bytes() == BODY
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("size", [-(10**6), 2**60, "much", 1.5])
def test_a_row_that_lies_about_its_size_makes_no_room(folder: Path, size: object) -> None:
    """Neither more than there is, nor in vain: the sizes are taken from the files again."""
    bodies = [bytes([number]) * 900 for number in range(3)]
    for body in bodies[:2]:
        assert keep(ArtifactCache(folder, size_limit=2_000), body)
    with rows(folder) as table:
        table.execute("UPDATE Cache SET size = ? WHERE key = ?", (size, digest_of(bodies[0])))
    fresh = ArtifactCache(folder, size_limit=2_000)
    assert keep(fresh, bodies[2])
    assert bytes_in(folder) == fresh.volume() == 1_800
    assert read(fresh, digest_of(bodies[2])) == bodies[2]


@pytest.mark.parametrize("statement", SETTINGS.values(), ids=SETTINGS.keys())
def test_no_setting_is_taken_from_the_database(folder: Path, statement: str) -> None:
    """It is not even an obstacle: what is there is found."""
    cache = ArtifactCache(folder, size_limit=len(BODY) + 20)
    assert keep(cache, BODY)
    cache.remember(NAME, DIGEST)
    cache.close()
    with rows(folder) as table:
        table.execute(statement, (b"nasty",) * statement.count("?"))
    fresh = ArtifactCache(folder, size_limit=len(BODY) + 20)
    assert fresh.recall(NAME) == DIGEST
    assert read(fresh, DIGEST) == BODY
    for number in range(20):
        assert keep(fresh, bytes([number]))
    opened = fresh._database._open()
    assert isinstance(opened, table_module.Table)
    assert opened.sql("PRAGMA mmap_size").fetchone() in {None, (0,)}
    assert fresh.volume() == len(BODY) + 20
    assert not list(folder.glob("damaged/*"))


def link(path: Path, target: Path) -> None:
    path.symlink_to(target)


def make_folder(path: Path, _target: Path) -> None:
    path.mkdir()


def make_fifo(path: Path, _target: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("put", [link, make_folder, make_fifo])
@pytest.mark.parametrize("is_known", [True, False])
def test_what_is_no_file_is_no_content(
    tmp_path: Path, folder: Path, put: Callable[[Path, Path], None], is_known: bool
) -> None:
    """Even if it leads to the right bytes, or would hang who opens it."""
    cache = ArtifactCache(folder)
    assert keep(cache, BODY)
    path = file_of(folder, DIGEST)
    path.rename(tmp_path / "outside")
    put(path, tmp_path / "outside")
    signal.alarm(10)
    try:
        assert (cache if is_known else ArtifactCache(folder)).open(DIGEST) is None
    finally:
        signal.alarm(0)
    assert (tmp_path / "outside").read_bytes() == BODY
    assert not list(folder.glob("damaged/*"))
    assert keep(cache, BODY)
    assert read(cache, DIGEST) == BODY


@pytest.mark.parametrize(
    "act",
    [
        lambda cache: read(cache, DIGEST),
        lambda cache: cache.forget(DIGEST),
        lambda cache: keep(cache, b"c" * 3_000),
        lambda cache: keep(cache, BODY),
        lambda cache: cache.verify(),
        lambda cache: cache.clean(),
        lambda cache: cache.clean(everything=True),
    ],
    ids=["hit", "forget", "evict", "replace", "verify", "clean", "clean all"],
)
@pytest.mark.parametrize("is_known", [True, False])
def test_a_symlink_in_the_place_of_a_value_leads_nobody_outside(
    tmp_path: Path, folder: Path, act: Callable[[ArtifactCache], object], is_known: bool
) -> None:
    """What it leads to is neither served, nor moved, nor deleted, nor given other rights."""
    cache = ArtifactCache(folder, size_limit=3_000)
    assert keep(cache, BODY)
    path = file_of(folder, DIGEST)
    outside = path.rename(tmp_path / "outside")
    path.symlink_to(outside)
    before = outside.stat()
    each = cache if is_known else ArtifactCache(folder, size_limit=3_000)
    found = act(each)
    assert found is None or not isinstance(found, bytes)
    after = outside.stat()
    assert trust.stamp_of(after) == trust.stamp_of(before)
    assert after.st_mode == before.st_mode
    assert outside.read_bytes() == BODY
    assert not any(entry.samefile(outside) for entry in folder.rglob("*") if entry.is_file())


def test_a_symlink_inside_the_folder_is_not_followed(tmp_path: Path, folder: Path) -> None:
    """Neither in the place of a content, nor in that of a folder above it."""
    cache = ArtifactCache(folder, size_limit=3_000)
    assert keep(cache, BODY)
    above = file_of(folder, DIGEST).parent
    outside = above.rename(tmp_path / "outside")
    above.symlink_to(outside)
    (kept,) = outside.iterdir()
    fresh = ArtifactCache(folder, size_limit=3_000)
    assert read(fresh, DIGEST) is None
    with pytest.raises(CacheUnavailable):
        keep(fresh, BODY)
    fresh.forget(DIGEST)
    assert not keep(fresh, b"c" * 3_001)
    assert keep(fresh, b"c" * 3_000)
    assert list(outside.iterdir()) == [kept]
    assert kept.read_bytes() == BODY


@pytest.mark.parametrize("name", ["contents", "tmp", "damaged"])
def test_a_folder_of_ours_that_is_a_symlink_is_not_used(
    tmp_path: Path, folder: Path, name: str
) -> None:
    """The cache is gone around until somebody removes it."""
    (outside := tmp_path / "outside").mkdir()
    folder.mkdir()
    (folder / name).symlink_to(outside)
    cache = ArtifactCache(folder, size_limit=1_000)
    assert not keep(cache, BODY)
    assert cache.open(DIGEST) is None
    assert not list(outside.iterdir())


# Trust


def restamp(folder: Path, digest: str) -> None:
    """Forge the row of a content: as if its bytes of now had been verified."""
    stamp = trust.stamp_of(file_of(folder, digest).stat())
    with rows(folder) as table:
        tag = trust.tag(stamp, time.time())
        table.execute("UPDATE Cache SET tag = ? WHERE key = ?", (tag, digest))


@pytest.mark.parametrize(
    ("mode", "is_trusted"), [(0o700, True), (0o755, True), (0o770, False), (0o2770, False)]
)
def test_a_stamp_is_enough_where_only_this_user_can_write(
    folder: Path, mode: int, is_trusted: bool
) -> None:
    """Elsewhere no stamp is noted that somebody could forge, and the bytes are hashed."""
    cache = ArtifactCache(folder, size_limit=10_000)
    folder.mkdir()
    folder.chmod(mode)
    assert keep(cache, BODY)
    assert read(cache, DIGEST) == BODY
    forged = b"A" + BODY[1:]
    overwrite(file_of(folder, DIGEST), forged)
    if is_trusted:
        restamp(folder, DIGEST)
    assert (folder / "cache.db").exists() is is_trusted
    assert read(ArtifactCache(folder), DIGEST) == (forged if is_trusted else None)
    if not is_trusted:
        assert cache.open(DIGEST) is None


def test_a_stamp_of_an_earlier_boot_is_not_trusted(folder: Path) -> None:
    """What a power cut lost may come back as zeros under the same stamp; then it is seen."""
    keep(ArtifactCache(folder), BODY)
    keep(ArtifactCache(folder), b"other")
    for digest, body in ((DIGEST, bytes(len(BODY))), (digest_of(b"other"), b"other")):
        overwrite(file_of(folder, digest), body)
        restamp(folder, digest)
    with rows(folder) as table:
        table.execute("UPDATE Cache SET tag = replace(tag, ?, 'before')", (trust.boot(),))
    cache = ArtifactCache(folder)
    assert read(cache, DIGEST) is None
    assert read(cache, digest_of(b"other")) == b"other"
    with rows(folder) as table:
        ((tag,),) = table.execute("SELECT tag FROM Cache").fetchall()
    assert trust.boot() in tag


def test_a_write_in_the_very_moment_of_publishing_is_seen(folder: Path) -> None:
    """The clock of a file system stands still for milliseconds; the stamp notices all the same."""
    cache = ArtifactCache(folder)
    for number in range(50):
        body = bytes([number]) * 100
        with cache.admit(digest_of(body), size=100) as slot:
            assert slot is not None
            slot.write_at(body, 0)
            descriptor = os.dup(slot.fileno())
            slot.publish().close()
        os.pwrite(descriptor, bytes([number + 1]), 50)
        os.close(descriptor)
        assert cache.open(digest_of(body)) is None
    assert cache.counters.heals == 50
    assert len(list(folder.glob("damaged/*"))) == 4


def test_the_moment_of_publishing_is_told_from_the_clock(folder: Path) -> None:
    """Whatever the clock of the file system: a later write cannot set this time of modification."""
    assert keep(ArtifactCache(folder), BODY)
    status = file_of(folder, DIGEST).stat()
    assert status.st_mtime_ns < status.st_ctime_ns - 10**8


def test_a_hit_takes_no_lock(folder: Path) -> None:
    """A process that hangs within a transaction does not keep others from their hits."""
    cache = ArtifactCache(folder)
    assert keep(cache, BODY)
    cache.remember(NAME, DIGEST)
    fresh = ArtifactCache(folder)
    fresh.volume()
    with rows(folder) as table:
        table.execute("BEGIN IMMEDIATE")
        begun = time.monotonic()
        for each in (cache, fresh):
            assert each.recall(NAME) == DIGEST
            assert read(each, DIGEST) == BODY
        assert time.monotonic() - begun < table_module.BUSY_SECONDS


# Failing


def test_a_database_that_stays_locked_is_waited_for_once_a_minute(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Then writes are left alone, with one log line."""
    monkeypatch.setattr(table_module, "BUSY_SECONDS", 0.5)
    cache = ArtifactCache(folder)
    assert keep(cache, BODY)
    with rows(folder) as table:
        table.execute("BEGIN IMMEDIATE")
        begun = time.monotonic()
        for number in range(20):
            assert not keep(cache, b"%d" % number)
            cache.remember(f"name {number}", "value")
        assert 0.4 < time.monotonic() - begun < 10  # 20 if each had waited
        assert read(cache, DIGEST) == BODY
    assert len(caplog.records) == 1
    monkeypatch.setattr(failures, "_PAUSE_SECONDS", 0)
    assert keep(ArtifactCache(folder), b"later")


def spoil_header(path: Path) -> None:
    path.write_bytes(b"not a database, but long enough to be taken for one" * 100)


def spoil_pages(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4_096)
        file.write(os.urandom(path.stat().st_size - 4_096))


def be_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def be_a_link(path: Path) -> None:
    path.rename(target := path.parent.with_name("elsewhere.db"))
    path.symlink_to(target)


def be_foreign(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE Cache (something INTEGER)")


SPOILED = [spoil_header, spoil_pages, Path.unlink, be_a_folder, be_a_link, be_foreign]


@pytest.mark.parametrize("spoil", SPOILED)
@pytest.mark.parametrize("is_open", [False, True])
def test_a_broken_database_is_put_aside_and_the_contents_are_kept(
    folder: Path,
    spoil: Callable[[Path], None],
    is_open: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A new one adopts the files that are there; each is verified before it is served."""
    cache = ArtifactCache(folder)
    for body in (BODY, b"wrong soon", b"deleted soon"):
        assert keep(cache, body)
    if not is_open:
        cache.close()
    wrong = file_of(folder, digest_of(b"wrong soon"))
    overwrite(wrong, b"WRONG soon")
    file_of(folder, digest_of(b"deleted soon")).unlink()
    spoil(folder / "cache.db")
    fresh = ArtifactCache(folder)
    for each in (fresh, cache):
        assert read(each, DIGEST) == BODY
        assert each.open(digest_of(b"wrong soon")) is None
        assert each.open(digest_of(b"deleted soon")) is None
        assert keep(each, b"new")
        assert read(each, digest_of(b"new")) == b"new"
        assert each.volume() == len(BODY) + len(b"new")
    assert bytes_in(folder) == len(BODY) + len(b"new") + len(b"wrong soon")
    about_database = [record for record in caplog.records if "table" in record.message]
    assert len(about_database) == (spoil is not Path.unlink)
    assert len(caplog.records) <= len(about_database) + 2


@settings(max_examples=40)
@given(st.data())
def test_no_flipped_bit_of_the_database_makes_it_fail(data: st.DataObject) -> None:
    """Whatever it says then: right bytes or none, and new contents come in."""
    bodies = [bytes([number]) * 700 for number in range(4)]
    with quick_folder() as name:
        folder = Path(name)
        cache = ArtifactCache(folder)
        for body in bodies:
            assert keep(cache, body)
            cache.remember(digest_of(body), digest_of(body))
        cache.close()
        path = folder / "cache.db"
        old = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 3))):
            old[data.draw(st.integers(0, len(old) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        cut = data.draw(st.none() | st.integers(0, len(old)))
        path.write_bytes(old[:cut])
        for fresh in (ArtifactCache(folder), ArtifactCache(folder)):
            for body in bodies:
                assert read(fresh, digest_of(body)) in {body, None}
                note = fresh.recall(digest_of(body))
                assert note is None or len(note) <= 1_200
            fresh.volume()
            assert keep(fresh, b"new")
            assert read(fresh, digest_of(b"new")) == b"new"
            fresh.close()


def test_a_database_that_breaks_again_and_again_is_left_alone(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is replaced once in a process; then the cache is gone around, with one log line."""
    cache = ArtifactCache(folder)
    assert keep(cache, BODY)
    for _ in range(3):
        cache.close()
        spoil_header(folder / "cache.db")
        cache.volume()
    for _ in range(20):
        assert cache.open(digest_of(b"none")) is None
        assert not keep(cache, b"new")
    assert len(caplog.records) == 2
    assert read(cache, DIGEST) == BODY, "this needs no database"


def test_what_a_slot_could_not_do_is_said_once(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The store goes around it without a word."""
    cache = ArtifactCache(folder)
    for _ in range(3):
        with pytest.raises(CacheUnavailable), cache.admit(DIGEST, size=3) as slot:  # noqa: PT012
            assert slot is not None
            slot.publish()
    (record,) = caplog.records
    assert "expected 3 bytes, 0 were written" in record.message


def test_a_folder_that_is_deleted_while_in_use_is_made_anew(folder: Path) -> None:
    """What was open stays readable, everything else is a miss, and the next content is kept."""
    cache = ArtifactCache(folder)
    assert keep(cache, BODY)
    cache.remember(NAME, DIGEST)
    file = cache.open(DIGEST)
    assert file is not None
    with file, cache.admit("0" * 64, size=3) as slot:
        assert slot is not None
        shutil.rmtree(folder)
        slot.write_at(b"abc", 0)
        with pytest.raises(CacheUnavailable):
            slot.publish()
        assert cache.open(DIGEST) is None
        assert cache.recall(NAME) is None
        assert file.read() == BODY
    assert keep(cache, BODY)
    assert read(cache, DIGEST) == BODY


def test_another_program_loses_nothing_by_sharing_the_folder(folder: Path) -> None:
    """Its database is put aside, unread; its files are neither adopted nor evicted."""
    with diskcache.Cache(str(folder)) as other:
        other.set("name", b"v" * 100_000)
    theirs = [path for path in folder.glob("??/*/*") if path.is_file()]
    cache = ArtifactCache(folder, size_limit=1_000)
    for number in range(5):
        assert keep(cache, bytes([number]) * 900)
    assert [path for path in theirs if path.exists()] == theirs != []
    assert len(list(folder.glob("damaged/cache.db-*"))) == 1
    assert not (folder / "CACHEDIR.TAG").exists()


def test_a_folder_without_permission_is_gone_around(
    without_privileges: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Read-only, unreadable or no folder at all: misses, and one log line for each."""
    folder = without_privileges / "cache"
    assert keep(ArtifactCache(folder), BODY)
    in_use = ArtifactCache(folder)
    assert read(in_use, DIGEST) == BODY
    for path in [*folder.rglob("*"), folder]:
        path.chmod(0o500 if path.is_dir() else 0o400)
    (without_privileges / "file").write_bytes(b"")
    caplog.clear()
    assert read(in_use, DIGEST) == BODY
    refused = [
        ArtifactCache(folder),
        ArtifactCache(folder / "below"),
        ArtifactCache(without_privileges / "file" / "below"),
        ArtifactCache("/proc/cannot/be/made"),
    ]
    for number, cache in enumerate(refused, 1):
        for _ in range(3):
            assert cache.open(digest_of(b"none")) is None
            assert not keep(cache, b"new")
            assert cache.recall(NAME) is None
            cache.remember(NAME, "value")
            cache.forget(DIGEST)
            assert cache.volume() == 0
        assert len(caplog.records) == number
    assert file_of(folder, DIGEST).read_bytes() == BODY


def test_the_last_twentieth_of_a_disk_stays_free(small_disk: Path) -> None:
    """Contents make room for each other rather than fill it, whatever the limit says."""
    cache = ArtifactCache(small_disk / "cache", size_limit=2**40)
    floor = shutil.disk_usage(small_disk).total // 20
    for number in range(40):
        assert keep(cache, bytes([number]) * 100_000)
        assert shutil.disk_usage(small_disk).free >= floor
    assert cache.counters.evictions > 20
    # A neighbour fills the disk.
    (small_disk / "neighbour").write_bytes(bytes(shutil.disk_usage(small_disk).free - floor // 2))
    held = cache.volume()
    assert not keep(cache, b"x" * (held + 100_000))
    assert cache.volume() == held, "evicting all of it would have been in vain"
    cache.close()


def test_a_full_disk_is_gone_around(small_disk: Path) -> None:
    """It fails the content that comes in, and no hit; afterwards all is as before."""
    folder = small_disk / "cache"
    cache = ArtifactCache(folder, size_limit=2**40)
    assert keep(cache, BODY)
    cache.remember(NAME, DIGEST)
    body = os.urandom(500_000)
    filler = small_disk / "filler"
    with cache.admit(digest_of(body), size=len(body)) as slot:
        assert slot is not None
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(2**16))
        assert shutil.disk_usage(small_disk).free < len(body)
        with pytest.raises(CacheUnavailable, match="written"):
            slot.write_at(body, 0)
    assert not list(folder.glob("tmp/*"))
    for each in (cache, ArtifactCache(folder)):
        assert not keep(each, b"new")
        each.remember("another", "value")
        assert each.recall(NAME) in {DIGEST, None}
        assert read(each, DIGEST) in {BODY, None}
        each.close()
    assert read(cache, DIGEST) == BODY
    assert cache.recall(NAME) == DIGEST
    cache.close()
    filler.unlink()
    with closing(ArtifactCache(folder, size_limit=2**40)) as fresh:
        assert keep(fresh, body)
        assert read(fresh, DIGEST) == BODY


# Records

PRINTABLE = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=5)


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.integers(0, 1), st.integers(0, 1), PRINTABLE | st.text(max_size=3), st.text())
        | st.tuples(st.integers(0, 1), st.integers(0, 1), PRINTABLE, PRINTABLE),
        max_size=12,
    )
)
def test_records_agree_with_a_dict_in_every_cache_object_on_the_folder(
    steps: list[tuple[int, int, str, str]],
) -> None:
    """What one remembers all recall at once, also who had recalled something else before."""
    model: dict[str, str] = {}
    with quick_folder() as folder:
        caches = [ArtifactCache(folder), ArtifactCache(folder)]
        for writer, reader, name, value in steps:
            caches[writer].remember(name, value)
            if name and (name + value).isascii() and (name + value).isprintable():
                model[name] = value
            for known in [*model, name]:
                assert caches[reader].recall(known, exact=False) == model.get(known)
                assert caches[reader].recall(known) == model.get(known)
        for cache in caches:
            assert {name: cache.recall(name) for name in model} == model
            cache.close()


@settings(max_examples=150)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["remember", "recall", "recall", "begin anew"]),
            st.integers(0, 1),
            st.sampled_from("xy"),
            st.sampled_from("ab"),
            st.booleans(),
        ),
        min_size=12,
        max_size=25,
    )
)
def test_none_may_be_out_of_date_for_who_asks_so_and_nothing_else_may(
    steps: list[tuple[str, int, str, str, bool]],
) -> None:
    """Until some record changes, or one is to be known at once; what was recalled never is."""
    model: dict[str, str] = {}
    times_said = 0
    told_none: list[dict[str, int]] = [{}, {}]  # how often something had been said by then
    with quick_folder() as folder:
        caches = [ArtifactCache(folder), ArtifactCache(folder)]
        # An empty table would say something each time it is opened.
        assert keep(caches[0], BODY)
        assert caches[1].volume() == len(BODY)
        for act, number, written, text, flag in steps:
            if act == "begin anew":
                caches[number].close()
                caches[number] = ArtifactCache(folder)
                told_none[number] = {}
            elif act == "remember":
                caches[number].remember(written, text, at_once=flag)
                times_said += flag or model.get(written, text) != text
                model[written] = text
                told_none[number].pop(written, None)
            else:
                for name in "xy":
                    told = caches[number].recall(name, exact=flag)
                    then = told_none[number].pop(name, None)
                    may_be_late = not flag and then == times_said
                    assert told == model.get(name) or (told is None and may_be_late)
                    if told is None:
                        told_none[number][name] = times_said
        for cache in caches:
            assert {name: cache.recall(name) for name in model} == model
            cache.close()


def test_that_there_is_no_record_is_known_only_from_the_table(
    without_privileges: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table that cannot be read says nothing: when it can, the record is there."""
    monkeypatch.setattr(failures, "_PAUSE_SECONDS", 0)
    folder = without_privileges / "cache"
    with closing(ArtifactCache(folder)) as cache:
        assert keep(cache, BODY)
        cache.remember(NAME, "removed")
    fresh = ArtifactCache(folder)
    (folder / "cache.db").chmod(0)
    assert fresh.recall(NAME, exact=False) is None
    (folder / "cache.db").chmod(0o600)
    assert fresh.recall(NAME, exact=False) == "removed"
    fresh.close()


def test_who_was_killed_before_it_said_so_is_spoken_for_by_the_next(folder: Path) -> None:
    """A removal that is tried again reaches also those who know that there is no record."""
    cache, killed, reading = ArtifactCache(folder), ArtifactCache(folder), ArtifactCache(folder)
    assert keep(cache, BODY)
    for each in (killed, reading):
        assert each.recall(NAME, exact=False) is None
    killed._database.ask(lambda table: table.set_record(NAME, "removed"), writes=True)
    assert reading.recall(NAME, exact=False) is None
    cache.remember(NAME, "removed")
    assert reading.recall(NAME, exact=False) == "removed"


def test_a_hit_on_an_id_without_a_record_asks_no_table(folder: Path) -> None:
    """That there is none is remembered, too, until another cache object remembers something."""
    cache = ArtifactCache(folder)
    assert keep(cache, BODY)
    assert cache.recall(NAME, exact=False) is None
    cache.close()
    assert cache.recall(NAME, exact=False) is None
    assert read(cache, DIGEST) == BODY
    table = cache._database._table
    assert isinstance(table, table_module.Table)
    assert table._connection is None
    ArtifactCache(folder).remember(NAME, "removed")
    assert cache.recall(NAME, exact=False) == "removed"


@pytest.mark.parametrize("loss", ["dropped", "lost with the table", "changed"])
def test_what_was_recalled_does_not_outlive_its_record(
    folder: Path, monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    """An id that one process removes is removed for all on the folder, whatever came between."""
    monkeypatch.setattr(table_module, "_MOST_RECORDS", 10)
    removing, reading = ArtifactCache(folder), ArtifactCache(folder)
    removing.remember("id", "digest")
    assert reading.recall("id") == "digest"
    if loss == "dropped":
        for number in range(20):
            removing.remember(f"name {number}", "value")
        assert removing.recall("id") is None
    elif loss == "lost with the table":
        removing.close()
        (folder / "cache.db").unlink()
        assert removing.volume() == 0
    removing.remember("id", "removed")
    assert reading.recall("id") == "removed"


def test_a_record_is_as_long_as_an_id_and_no_longer(folder: Path) -> None:
    """What does not fit is not kept, which is no failure."""
    cache = ArtifactCache(folder)
    for length, is_kept in ((1_200, True), (1_201, False)):
        cache.remember("n" * length, "short")
        cache.remember("short", "v" * length)
        assert (cache.recall("n" * length) is not None) is is_kept
        assert (cache.recall("short") == "v" * length) is is_kept
    # A record cannot be taken for a content, nor a content for a record.
    cache.remember(DIGEST, "record")
    assert cache.open(DIGEST) is None
    assert keep(cache, BODY)
    assert cache.recall(DIGEST) == "record"


def test_the_oldest_records_go_and_no_contents(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are bounded, and take no room from contents."""
    monkeypatch.setattr(table_module, "_MOST_RECORDS", 100)
    cache = ArtifactCache(folder, size_limit=len(BODY))
    assert keep(cache, BODY)
    for number in range(250):
        cache.remember(f"name {number}", "value" * 20)
    with rows(folder) as table:
        ((count,),) = table.execute("SELECT COUNT(*) FROM Cache WHERE filename IS NULL")
    assert 90 <= count <= 100
    fresh = ArtifactCache(folder)
    assert fresh.recall("name 249") == "value" * 20
    assert fresh.recall("name 0") is None
    assert read(fresh, DIGEST) == BODY
    assert fresh.volume() == len(BODY)


# Many at once


def hammer(cache: ArtifactCache, seed: int, steps: int) -> None:
    """Bring in and open random contents; every byte that comes back is right."""
    chance = random.Random(seed)
    for _ in range(steps):
        body = random.Random(chance.randrange(30)).randbytes(1_500)
        if read(cache, digest_of(body)) not in {body, None}:
            raise AssertionError("wrong bytes")
        if chance.random() < 0.5:
            keep(cache, body)
        name = f"{chance.randrange(5)}"
        cache.remember(name, name * chance.randrange(1, 3))
        if cache.recall(name) not in {name, name * 2}:
            raise AssertionError("wrong record")


def test_threads_share_a_cache(folder: Path) -> None:
    """One object, right bytes for all, and the limit is kept at every moment."""
    cache = ArtifactCache(folder, size_limit=LIMIT)
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            hammer(cache, seed, 100)
        except BaseException as error:  # noqa: BLE001 -- handed to the test
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        # Files that move while they are added up may count twice, never less than they are.
        with database._guard:
            assert bytes_in(folder) <= LIMIT
        time.sleep(0.01)
    assert not failures
    assert cache.volume() == bytes_in(folder) <= LIMIT
    assert cache.counters.hits + cache.counters.misses == 600
    assert cache.counters.evictions


def fork_and(act: Callable[[], None]) -> int:
    """Run something in a forked process and return its id."""
    if child := os.fork():
        return child
    code = 1
    try:
        signal.alarm(60)
        act()
        code = 0
    finally:
        os._exit(code)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_processes_share_a_cache_also_after_a_fork_amid_threads(folder: Path) -> None:
    """Children of a process whose threads are busy with the cache use it on, and stay whole."""
    cache = ArtifactCache(folder, size_limit=LIMIT)
    assert keep(cache, BODY)
    is_over = threading.Event()
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            while not is_over.is_set():
                hammer(cache, seed, 5)
        except BaseException as error:  # noqa: BLE001 -- handed to the test
            failures.append(error)

    def act_as_child() -> None:
        assert cache.counters.hits == 0
        hammer(cache, os.getpid(), 20)
        assert cache.counters.hits + cache.counters.misses == 20

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            children = [fork_and(act_as_child) for _ in range(4)]
            for child in children:
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    assert not failures
    assert cache.volume() == bytes_in(folder) <= LIMIT
    with rows(folder) as table:
        assert table.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        ((size,),) = table.execute("SELECT SUM(size) FROM Cache")
    assert size == cache.volume()


def test_processes_start_together_on_an_empty_folder(folder: Path) -> None:
    """Nobody takes the database that another one is making for a broken one."""
    program = (
        "import logging, sys\n"
        "from casartifacts.cache import ArtifactCache\n"
        "from casartifacts.digest import digest_of\n"
        "logging.raiseExceptions = True\n"
        "from casartifacts.cache import database, listing, table\n"
        "for module in (database, listing, table):\n"
        "    module.BUSY_SECONDS = 60  # a machine that stalls is not what is tried here\n"
        "body = sys.argv[2].encode()\n"
        "cache = ArtifactCache(sys.argv[1])\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "with cache.admit(digest_of(body), size=len(body)) as slot:\n"
        "    slot.write_at(body, 0)\n"
        "    slot.publish().close()\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(folder), f"body {number}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(8)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        assert process.communicate()[1] == ""
    cache = ArtifactCache(folder)
    for number in range(8):
        assert read(cache, digest_of(b"body %d" % number)) == b"body %d" % number
    assert not list(folder.glob("damaged/*"))


# The object


def test_making_one_touches_nothing_and_first_use_makes_a_private_folder(folder: Path) -> None:
    """It says itself that backups may leave it out."""
    old = os.umask(0)
    try:
        cache = ArtifactCache(folder)
        assert not folder.exists()
        assert cache.open(DIGEST) is None
    finally:
        os.umask(old)
    assert folder.stat().st_mode & 0o777 == 0o700
    tag = (folder / "CACHEDIR.TAG").read_bytes()
    assert tag.startswith(b"Signature: 8a477f597d28d172789f06886806bc55\n")
    assert cache.counters == Counters(misses=1)


@pytest.mark.parametrize("size_limit", [None, 0, 12_345])
def test_its_repr_is_code_and_it_can_be_pickled(folder: Path, size_limit: int | None) -> None:
    """A copy has the folder and the limit, and nothing of what this process knows."""
    cache = ArtifactCache(folder, size_limit=size_limit)
    keep(cache, b"")
    for copy in (pickle.loads(pickle.dumps(cache)), eval(repr(cache))):  # noqa: S307, S301
        assert repr(copy) == repr(cache)
        assert copy.folder == folder
        assert copy.size_limit == cache.size_limit
        assert copy.counters == Counters()
        assert read(copy, digest_of(b"")) == b""


def test_a_relative_folder_stays_where_it_was(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the working directory is later."""
    folder.mkdir()
    monkeypatch.chdir(folder)
    cache = ArtifactCache("here")
    monkeypatch.chdir("/")
    assert keep(cache, BODY)
    assert cache.folder == folder / "here"
    assert file_of(folder / "here", DIGEST).read_bytes() == BODY


def test_what_is_no_digest_or_size_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """These are mistakes of the caller, and never become a path."""
    cache = ArtifactCache(folder)
    for digest in ("", "../../etc/passwd", DIGEST.upper(), DIGEST + "\n", "=name"):
        for act in (cache.open, cache.forget):
            with pytest.raises(ValueError, match="digest"):
                act(digest)
        with pytest.raises(ValueError, match="digest"), cache.admit(digest, size=1):
            pass
    with pytest.raises(ValueError, match="bytes"), cache.admit(DIGEST, size=-1):
        pass
    with pytest.raises(ValueError, match="bytes"):
        ArtifactCache(folder, size_limit=-1)
    monkeypatch.setenv("SCRATCH", "/elsewhere")
    with pytest.raises(ValueError, match="expandvars"):
        ArtifactCache("$SCRATCH/cache")
    assert not folder.exists()


def test_counters_say_what_happened(folder: Path) -> None:
    """In this process, since this object was made."""
    cache = ArtifactCache(folder, size_limit=1_000)
    for body in (b"a" * 600, b"b" * 700):
        assert keep(cache, body)
    assert read(cache, digest_of(b"a" * 600)) is None
    assert read(cache, digest_of(b"b" * 700)) is not None
    overwrite(file_of(folder, digest_of(b"b" * 700)), b"")
    assert read(cache, digest_of(b"b" * 700)) is None
    assert cache.counters == Counters(
        hits=1, misses=2, bytes_served=700, bytes_fetched=1_300, evictions=1, heals=1
    )


def test_slots_are_for_sizes_that_were_announced(folder: Path) -> None:
    """An empty content is one, too."""
    cache = ArtifactCache(folder)
    with cache.admit(digest_of(b""), size=0) as slot:
        assert isinstance(slot, Slot)
        with slot.publish() as file:
            assert file.read() == b""
    assert read(cache, digest_of(b"")) == b""
