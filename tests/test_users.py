"""A cache for several users, and the folders in which there is none.

Rule 1: the users are real: what acts runs in a process of its own under its own user id, with an
umask that lets nobody else in.
Rule 2: who tampers may do all that the kernel lets a member of the group do.
"""

from __future__ import annotations

import errno
import importlib
import io
import logging
import os
import pickle
import shutil
import signal
import sqlite3
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar, cast

import pytest

from casartifacts import FileSystemArtifactStore, MemoryArtifactStore, opening
from casartifacts.cache import ArtifactCache, CacheUnavailable, mounts, trust
from casartifacts.cache import folder as places
from casartifacts.cache.failures import WrongError
from casartifacts.digest import digest_of
from casartifacts.doctor import machine
from casartifacts.store import ContentStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_T = TypeVar("_T")

# Ids that stand for nobody on this machine; nothing needs a name.
ALICE, BOB, STRANGER = 61_001, 61_002, 61_003
TEAM, STRANGERS = 61_010, 61_011
TWO = (ALICE, BOB)

SMALL = b"a content" * 100
LARGE = bytes(range(256)) * 8_192  # 2 MiB: its private copy is made in the folder
BODIES = [SMALL, LARGE]

pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)


@contextmanager
def process_of(user: int, act: Callable[[], object]) -> Iterator[int]:
    """Run something as another user; yields where its pickled answer comes."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if not child:
        try:
            signal.alarm(120)
            group = STRANGERS if user == STRANGER else TEAM
            os.setgroups([group])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
            os.umask(0o077)
            os.environ["HOME"] = "/nonexistent"
            try:
                answer: object = act()
            except BaseException as error:  # noqa: BLE001 -- handed to the test
                answer = AssertionError(f"as user {user}: {error!r}")
            with io.FileIO(write_end, "w") as file:
                file.write(pickle.dumps(answer))
        finally:
            os._exit(0)
    os.close(write_end)
    try:
        yield read_end
    finally:
        os.close(read_end)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def answer_of(answer_end: int) -> object:
    """Wait for what a process returns."""
    with io.FileIO(answer_end, closefd=False) as file:
        return pickle.loads(file.readall())  # noqa: S301 -- our own


def as_user(user: int, act: Callable[[], _T]) -> _T:
    """Run something as another user and return what it returns."""
    with process_of(user, act) as answer_end:
        answer = answer_of(answer_end)
    if isinstance(answer, AssertionError):
        raise answer
    return cast("_T", answer)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder like /tmp, in which others find one of their team."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root can act as two users; and what is tested are Linux's rights")
    # The first `ArtifactNotFound` loads it, and another user may not be able to.
    importlib.import_module("optuna.artifacts.exceptions")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o1777)
        (folder / "team").mkdir()
        os.chown(folder / "team", 0, TEAM)
        (folder / "team").chmod(0o2770)
        try:
            as_user(ALICE, lambda: list((folder / "team").iterdir()))
        except AssertionError as error:
            pytest.skip(f"other users cannot be had here, or not enter {folder.parent}: {error}")
        yield folder


@pytest.fixture
def folder(place: Path) -> Path:
    """Where the team's cache will be."""
    return place / "team" / "cache"


def keep(cache: ArtifactCache, body: bytes) -> bool:
    with cache.admit(digest_of(body), size=len(body)) as slot:
        if slot is None:
            return False
        slot.write_at(body, 0)
        with slot.publish() as file:
            return file.read() == body


def read(cache: ArtifactCache, digest: str) -> bytes | None:
    file = cache.open(digest)
    if file is None:
        return None
    with file:
        return file.read()


def make_shared(folder: Path, *bodies: bytes) -> Callable[[], bool]:
    def act() -> bool:
        cache = ArtifactCache(folder, shared=True)
        return all([keep(cache, body) for body in bodies] or [cache.volume() == 0])

    return act


def file_of(folder: Path, digest: str) -> Path:
    (path,) = (path for path in folder.glob(f"contents/*/{digest}-*") if path.is_file())
    return path


# What sharing is


def test_two_users_share_a_cache_whatever_their_umask(folder: Path) -> None:
    """Each uses what the other brought in; who comes second says nothing of sharing."""
    assert as_user(ALICE, make_shared(folder, SMALL, LARGE))

    def act_as_bob() -> list[bool]:
        cache = ArtifactCache(folder)
        return [
            *(read(cache, digest_of(body)) == body for body in BODIES),
            cache.counters.hits == 2,
            cache.volume() == len(SMALL) + len(LARGE),
            keep(cache, b"of Bob"),
        ]

    assert as_user(BOB, act_as_bob) == [True] * 5
    assert as_user(ALICE, lambda: read(ArtifactCache(folder), digest_of(b"of Bob"))) == b"of Bob"
    for path in [folder, *folder.rglob("*")]:
        status = path.stat()
        assert status.st_gid == TEAM
        if path.is_dir():
            expected = 0o2770
        elif path.name == "changes":
            expected = 0o660
        else:
            expected = 0o440 if path.parents[1].name == "contents" else 0o640
        assert stat.S_IMODE(status.st_mode) == expected, path
    assert {path.name for path in folder.iterdir()} == {
        *("CACHEDIR.TAG", "changes", "contents", "counters", "damaged", "records", "tmp")
    }
    assert not list(folder.glob("tmp/*"))


def test_all_users_count_and_read_what_all_have_counted(folder: Path) -> None:
    """Each in files of its own, which others can read but not write to, nor take over."""
    assert as_user(ALICE, make_shared(folder, SMALL))

    def hit(times: int) -> Callable[[], tuple[int, int, int]]:
        def act() -> tuple[int, int, int]:
            cache = ArtifactCache(folder)
            assert all(read(cache, digest_of(SMALL)) == SMALL for _ in range(times))
            totals = cache.totals()
            assert cache.stat().totals == totals
            return totals.hits, totals.bytes_served, totals.bytes_fetched

        return act

    assert as_user(BOB, hit(3)) == (3, 3 * len(SMALL), len(SMALL))
    assert as_user(ALICE, hit(2)) == (5, 5 * len(SMALL), len(SMALL))
    assert as_user(BOB, hit(1)) == (6, 6 * len(SMALL), len(SMALL))
    found = sorted((path.name, path.stat().st_uid) for path in folder.glob("counters/*"))
    assert found == [("000", ALICE), ("001", BOB)]
    assert as_user(BOB, lambda: os.access(folder / "counters" / "000", os.W_OK)) is False


def be_huge(path: Path) -> None:
    path.unlink()
    path.touch(0o660)
    os.truncate(path, 2**36)


def be_cut(path: Path) -> None:
    body = path.read_bytes()
    path.unlink()
    path.write_bytes(body[:-1])
    path.chmod(0o660)


def be_closed(path: Path) -> None:
    path.unlink()
    path.touch(0)


@pytest.mark.parametrize(
    "spoil",
    [
        be_huge,
        be_cut,
        be_closed,
        lambda path: link_outside(path, path.parents[3] / "outside"),
        lambda path: link_outside(path, Path("/dev/zero")),
        lambda path: be_a_fifo(path, path),
        lambda path: be_a_folder(path, path),
    ],
    ids=["huge", "cut", "closed", "symlink", "device", "FIFO", "folder"],
)
def test_a_counter_that_another_user_planted_counts_as_nothing(
    folder: Path, place: Path, spoil: Callable[[Path], None]
) -> None:
    """Nobody hangs, dies, or writes to it; `clean` takes it out where it can."""
    outside = place / "outside"
    assert as_user(ALICE, make_shared(folder, SMALL))
    outside.write_bytes((folder / "counters" / "000").read_bytes())  # numbers as of ours
    os.chown(outside, ALICE, ALICE)
    assert as_user(ALICE, lambda: read(ArtifactCache(folder), digest_of(SMALL)) == SMALL)
    as_user(BOB, lambda: spoil(folder / "counters" / "000"))

    def act() -> tuple[int, int]:
        signal.alarm(30)  # it dies of that
        cache = ArtifactCache(folder)
        assert [read(cache, digest_of(SMALL)) for _ in range(4)] == [SMALL] * 4
        hits = cache.totals().hits
        cache.clean()
        return hits, cache.totals().hits

    assert as_user(ALICE, act) == (4, 4)
    assert outside.stat().st_size == 68
    if (folder / "counters" / "000").exists():
        assert (folder / "counters" / "000").is_dir()


def test_a_folder_of_counters_that_leads_outside_is_not_counted_in(
    folder: Path, place: Path
) -> None:
    """Nothing is made or deleted where it leads."""
    assert as_user(ALICE, make_shared(folder, SMALL))
    (elsewhere := place / "elsewhere").mkdir()
    (elsewhere / "005").write_bytes(b"somebody's notes")
    os.chown(elsewhere, ALICE, ALICE)
    os.chown(elsewhere / "005", ALICE, ALICE)

    def lead_it_outside() -> None:
        (folder / "counters").rename(folder / "counters before")
        (folder / "counters").symlink_to(elsewhere)

    # While it is in use: who begins to use it then refuses the folder.
    def act() -> bool:
        cache = ArtifactCache(folder)
        assert cache.volume() == len(SMALL)
        child = os.fork()
        if not child:
            lead_it_outside()
            os._exit(0)
        os.waitpid(child, 0)
        hits = [read(cache, digest_of(SMALL)) == SMALL for _ in range(3)]
        cache.clean()
        return all(hits) and cache.totals().hits == 0 and cache.counters.hits == 3

    assert as_user(ALICE, act)
    assert [path.name for path in elsewhere.iterdir()] == ["005"]
    assert (elsewhere / "005").read_bytes() == b"somebody's notes"


def test_a_shared_cache_is_looked_after_by_any_of_its_users(folder: Path) -> None:
    """By what lies there: what is wrong is put aside, what is closed is passed by."""
    bodies = [SMALL, LARGE, b"wrong soon", b"closed soon"]
    assert as_user(ALICE, make_shared(folder, *bodies))
    as_user(ALICE, lambda: flip(file_of(folder, digest_of(bodies[2])), folder))
    as_user(ALICE, lambda: file_of(folder, digest_of(bodies[3])).chmod(0))
    left = folder / "tmp" / f"{'1' * 64}-{'2' * 16}-7-500"
    left.write_bytes(b"x" * 40)
    os.chown(left, ALICE, TEAM)
    left.chmod(0o640)

    def act() -> list[object]:
        cache = ArtifactCache(folder)
        before = cache.stat()
        verified = cache.verify()
        cleaned = cache.clean()
        after = cache.stat()
        everything = cache.clean(everything=True)
        return [
            (before.contents, before.size, before.filling, before.left),
            (verified.contents, verified.size, verified.wrong),
            (cleaned.left_over, cleaned.aside, cleaned.lost, cleaned.strays, cleaned.contents),
            (after.contents, after.aside, after.filling, after.left),
            (everything.contents, cache.volume()),
        ]

    sizes = list(map(len, bodies))
    assert as_user(BOB, act) == [
        (4, sum(sizes), 0, 1),
        (2, sum(sizes[:2]), (digest_of(bodies[2]),)),
        (1, 1, 0, 0, 0),
        (3, 0, 0, 0),
        (3, 0),
    ]
    assert not [*folder.glob("contents/*/*"), *folder.glob("tmp/*"), *folder.glob("damaged/*")]


def test_only_a_file_of_ones_own_is_linked_to(folder: Path, place: Path) -> None:
    """Of another user's there is a private copy; a name in the folder may change its meaning."""
    (place / "all").mkdir()
    (place / "all").chmod(0o1777)
    store = ContentStore(MemoryArtifactStore())
    ids = {name: store.add(io.BytesIO(LARGE + name.encode())) for name in ("alice", "bob")}

    def download(name: str, target: str, link: Literal["hard", "symlink"]) -> tuple[bool, str]:
        ContentStore(store.backend, cache=ArtifactCache(folder)).download(
            ids[name], path := place / "all" / target, link=link
        )
        assert path.read_bytes() == LARGE + name.encode()
        status = path.lstat()
        kind = "symlink" if path.is_symlink() else "hard" if status.st_nlink > 1 else "copy"
        return status.st_uid == os.geteuid(), kind

    assert as_user(ALICE, make_shared(folder))
    assert as_user(ALICE, partial(download, "alice", "1", "hard")) == (True, "hard")
    assert as_user(BOB, partial(download, "alice", "2", "hard")) == (True, "copy")
    assert as_user(BOB, partial(download, "bob", "3", "symlink")) == (True, "copy")
    assert as_user(BOB, partial(download, "bob", "4", "hard")) == (True, "hard")
    assert as_user(ALICE, partial(download, "bob", "5", "hard")) == (True, "copy")


def test_one_user_evicts_what_another_brought_in_the_oldest_first(folder: Path) -> None:
    """A hit makes young again also what belongs to somebody else."""
    bodies = [bytes([number]) * 300 for number in range(3)]
    for body in bodies:
        assert as_user(ALICE, make_shared(folder, body))
        time.sleep(0.02)

    def act_as_bob(young: bytes) -> tuple[bool, int, list[bool]]:
        from casartifacts import cache as module

        module._REFRESH_SECONDS = 0
        cache = ArtifactCache(folder, size_limit=1_000)
        assert read(cache, digest_of(young)) == young
        is_kept = keep(cache, b"d" * 500)
        there = [read(cache, digest_of(body)) is not None for body in bodies]
        return is_kept, cache.counters.evictions, there

    assert as_user(BOB, lambda: act_as_bob(bodies[0])) == (True, 2, [True, False, False])
    assert sum(path.stat().st_size for path in folder.glob("contents/*/*")) == 800


def test_a_private_copy_has_its_room_and_gives_it_back(folder: Path) -> None:
    """It counts while its reader is open; where there is no room for it there is no hit."""
    assert as_user(ALICE, make_shared(folder, LARGE))

    def act_as_bob(limit: int) -> tuple[bool, int, int]:
        cache = ArtifactCache(folder, size_limit=limit)
        file = cache.open(digest_of(LARGE))
        if file is None:
            return False, 0, 0
        promised = sum(filling.size for filling in places.fillings(str(folder)))
        with file:
            is_right = file.read() == LARGE
        return is_right, promised, len(list(places.fillings(str(folder))))

    size = len(LARGE)
    assert as_user(BOB, lambda: act_as_bob(2 * size)) == (True, size, 0)
    assert as_user(BOB, lambda: act_as_bob(size - 1)) == (False, 0, 0)


def test_a_private_copy_that_fails_gives_its_room_back(folder: Path) -> None:
    """Also if it fails for want of a descriptor, which its slot has already."""
    assert as_user(ALICE, make_shared(folder, LARGE))

    def act_as_bob() -> tuple[bool, int]:
        def fail(_: int) -> int:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        cache = ArtifactCache(folder)
        os.dup = fail
        return cache.open(digest_of(LARGE)) is None, len(list(folder.glob("tmp/*")))

    assert as_user(BOB, act_as_bob) == (True, 0)


@pytest.mark.parametrize("is_slow", [False, True])
def test_a_content_is_counted_while_it_gets_another_name(folder: Path, *, is_slow: bool) -> None:
    """Who makes it young and who lists the folder do not meet."""
    assert as_user(ALICE, make_shared(folder, LARGE, SMALL))

    def act_as_bob() -> list[int]:
        listing = ArtifactCache(folder)._database.ask(lambda table: table)
        other = ArtifactCache(folder)._database.ask(lambda table: table)
        assert other is not listing
        digest = digest_of(LARGE)
        found = other.find(digest)
        assert found is not None
        names_in = places.content_names_in

        def rename_meanwhile(folder: str, above: str) -> list[str]:
            names = names_in(folder, above)
            if is_slow and above.endswith(digest[:2]):
                thread.start()
                thread.join(0.3)
            return names

        thread = threading.Thread(
            target=lambda: other.refresh(digest, found.name, tag="", now=0), daemon=True
        )
        places.content_names_in = rename_meanwhile
        with listing.transact():
            return [listing.bytes_held()]

    assert as_user(BOB, act_as_bob) == [len(LARGE) + len(SMALL)]


def test_what_a_killed_neighbour_left_gives_its_room_back(folder: Path) -> None:
    """What a living one fills is not touched, although it can only be read."""

    def fill_as_alice() -> None:
        with ArtifactCache(folder, shared=True).admit("0" * 64, size=800) as slot:
            assert slot is not None
            slot.write_at(b"b" * 100, 0)
            time.sleep(100)

    def keep_as_bob() -> bool:
        return keep(ArtifactCache(folder, size_limit=1_000), b"c" * 500)

    with process_of(ALICE, fill_as_alice):
        give_up_at = time.monotonic() + 60
        while not [path for path in folder.glob("tmp/*") if path.stat().st_size]:
            assert time.monotonic() < give_up_at
            time.sleep(0.01)
        (left,) = folder.glob("tmp/*")
        os.utime(left, (0, 0))
        assert not as_user(BOB, keep_as_bob)
        assert left.exists()
    os.utime(left, (0, 0))
    assert as_user(BOB, keep_as_bob)
    assert not left.exists()


@pytest.mark.parametrize("kind", ["symlink", "folder", "fifo"])
def test_what_is_no_file_holds_no_room(folder: Path, kind: str) -> None:
    """Whoever may write there could else close the cache to all by a name."""
    assert as_user(ALICE, make_shared(folder, SMALL))
    path = folder / "tmp" / f"{'0' * 64}-{'0' * 16}-1-{10**17}"

    def plant() -> None:
        if kind == "symlink":
            path.symlink_to("nothing")
        else:
            path.mkdir() if kind == "folder" else os.mkfifo(path)

    as_user(ALICE, plant)
    assert as_user(BOB, lambda: keep(ArtifactCache(folder), LARGE))
    assert os.path.lexists(path) is (kind == "folder")


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_a_team_shares_a_store_in_a_folder_whatever_their_umask(place: Path, umask: int) -> None:
    """Its mode says that it is shared: each stores beside the others, and reads and removes all."""
    folder = place / "team" / "store"
    contents = {user: [b"%d %d" % (user, number) * 9 for number in range(40)] for user in TWO}
    contents[ALICE].append(LARGE)

    def store_all(user: int) -> list[str]:
        os.umask(umask)
        store = ContentStore(FileSystemArtifactStore(folder))
        return [store.add(io.BytesIO(body)) for body in contents[user]]

    def read_and_remove(ids: list[str]) -> list[bytes]:
        os.umask(umask)
        store = ContentStore(FileSystemArtifactStore(folder))
        found = []
        for each in ids:
            with store.open_reader(each) as reader:
                found.append(reader.read())
            store.remove(each)
        return found

    def make() -> None:
        folder.mkdir()
        folder.chmod(0o2770)

    as_user(ALICE, make)
    ids = {user: as_user(user, partial(store_all, user)) for user in TWO}
    modes = {path.stat().st_mode & 0o7070 for path in folder.rglob("*") if path.is_dir()}
    assert modes == {0o2070}
    for user, other in (TWO, TWO[::-1]):
        assert as_user(user, partial(read_and_remove, ids[other])) == contents[other]
    refused = as_user(STRANGER, lambda: os.access(folder, os.R_OK))
    assert refused is False


def test_a_folder_that_is_writable_for_another_group_opens_nothing_to_ones_own(
    place: Path,
) -> None:
    """Without setgid what is made belongs to the group of who makes it, who may not mean it."""
    folder = place / "store"
    folder.mkdir()
    os.chown(folder, ALICE, TEAM)
    folder.chmod(0o770)

    def act() -> None:
        os.umask(0o077)
        ContentStore(FileSystemArtifactStore(folder)).add(io.BytesIO(b"abc"))

    as_user(ALICE, act)
    below = [path.stat() for path in folder.rglob("*")]
    assert {status.st_gid for status in below} == {ALICE}
    assert not [status for status in below if status.st_mode & 0o077]


@pytest.mark.parametrize(("mode", "below"), [(0o777, 0o777), (0o1777, 0o755), (0o755, 0o755)])
def test_what_is_stored_in_a_folder_of_everybody_is_for_all_unless_it_is_like_tmp(
    place: Path, mode: int, below: int
) -> None:
    folder = place / "store"
    folder.mkdir()
    os.chown(folder, ALICE, TEAM)
    folder.chmod(mode)

    def act() -> None:
        os.umask(0o022)
        ContentStore(FileSystemArtifactStore(folder)).add(io.BytesIO(b"abc"))

    as_user(ALICE, act)
    folders = [path.stat().st_mode for path in folder.rglob("*") if path.is_dir()]
    assert {stat.S_IMODE(each) for each in folders} == {below}


def test_an_empty_folder_becomes_shared_and_a_used_one_stays_what_it_is(tmp_path: Path) -> None:
    """The mode of a folder that is in use says what it is, whoever says what else."""
    (tmp_path / "empty").mkdir()
    assert ArtifactCache(tmp_path / "empty", shared=True).volume() == 0
    assert keep(ArtifactCache(tmp_path / "used"), SMALL)
    assert read(ArtifactCache(tmp_path / "used", shared=True), digest_of(SMALL)) == SMALL
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("empty", "used")]
    assert modes == [0o2770, 0o700]
    cache = ArtifactCache(tmp_path / "new" / "cache", size_limit=5, shared=True)
    assert keep(cache, b"")
    assert repr(pickle.loads(pickle.dumps(cache))) == repr(cache)  # noqa: S301 -- our own
    assert repr(cache).endswith("/new/cache', size_limit=5, shared=True)")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o2770


def test_what_this_process_verified_in_a_file_of_its_own_is_known(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing else is: of another user's file each delivery is hashed."""
    hashed = 0

    def act() -> list[int]:
        from casartifacts.cache import trust

        verify = trust.verify

        def counting(*arguments: object, **options: object) -> None:
            nonlocal hashed
            hashed += 1
            verify(*arguments, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(trust, "verify", counting)
        counts = []
        cache = ArtifactCache(folder)
        for _ in range(3):
            assert read(cache, digest_of(SMALL)) == SMALL
            counts.append(hashed)
        return counts

    assert as_user(ALICE, make_shared(folder, SMALL))
    assert as_user(ALICE, act) == [1, 1, 1]
    assert as_user(BOB, act) == [1, 2, 3]


def test_a_content_that_two_bring_in_is_there_once(folder: Path) -> None:
    """The later file stays, whosever the earlier one was."""
    assert as_user(ALICE, make_shared(folder, SMALL))
    assert as_user(BOB, make_shared(folder, SMALL))
    assert file_of(folder, digest_of(SMALL)).stat().st_uid == BOB


def test_junk_beside_a_file_of_this_users_own_is_not_even_looked_at(folder: Path) -> None:
    """Whatever its name sorts before."""
    assert as_user(ALICE, make_shared(folder, SMALL))
    as_user(BOB, lambda: leave_junk_beside(file_of(folder, digest_of(SMALL)), folder))

    def act_as_alice() -> tuple[bytes | None, int]:
        cache = ArtifactCache(folder)
        return read(cache, digest_of(SMALL)), cache.counters.heals

    assert as_user(ALICE, act_as_alice) == (SMALL, 0)


# Who tampers


def flip(path: Path, _outside: Path) -> None:
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    replace(path, bytes(body))


def truncate(path: Path, _outside: Path) -> None:
    replace(path, path.read_bytes()[:-1])


def grow(path: Path, _outside: Path) -> None:
    replace(path, path.read_bytes() + b"more")


def replace(path: Path, body: bytes) -> None:
    """Write a file where it lies if this user may, else put another one there."""
    try:
        path.chmod(0o660)
        path.write_bytes(body)
    except PermissionError:
        path.unlink()
        path.write_bytes(body)
        path.chmod(0o660)


def link_outside(path: Path, outside: Path) -> None:
    path.unlink()
    path.symlink_to(outside)


def hard_link(path: Path, _outside: Path) -> None:
    """Keep a name of a file outside of the cache, to change it later."""
    (mine := path.parents[3] / "mine").write_bytes(b"X" * path.stat().st_size)
    mine.chmod(0o660)
    path.unlink()
    path.hardlink_to(mine)


def be_a_fifo(path: Path, _outside: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o660)


def be_a_folder(path: Path, _outside: Path) -> None:
    path.unlink()
    path.mkdir()


def close_it(path: Path, _outside: Path) -> None:
    body = path.read_bytes()
    path.unlink()
    path.write_bytes(body)
    path.chmod(0)


def close_its_folder(path: Path, _outside: Path) -> None:
    path.parent.rename(path.parent.with_name(f"{path.parent.name} before"))
    path.parent.mkdir()
    path.write_bytes(b"junk")
    path.chmod(0o664)
    path.parent.chmod(0o755)


def be_another_content(path: Path, _outside: Path) -> None:
    other = next(each for each in path.parents[1].glob("*/*") if each != path)
    other.replace(path)


def lead_the_folder_outside(path: Path, outside: Path) -> None:
    path.parent.rename(path.parent.with_name(f"{path.parent.name} before"))
    path.parent.symlink_to(outside.parent / "copies")


def leave_junk_beside(path: Path, _outside: Path) -> None:
    for number in range(3):
        junk = path.with_name(f"{path.name[:64]}-{number:016x}")
        junk.write_bytes(b"junk")
        junk.chmod(0o660)


ACTS = [
    *(flip, truncate, grow, link_outside, hard_link, be_a_fifo, be_a_folder, close_it),
    *(close_its_folder, be_another_content, lead_the_folder_outside, leave_junk_beside),
]


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("fetcher", [ALICE, BOB])
def test_nobody_is_served_what_another_user_made_of_a_content(
    folder: Path, place: Path, act: Callable[[Path, Path], None], fetcher: int
) -> None:
    """Neither of a file of one's own nor of the other's; right bytes come in again."""
    outside = place / "outside"
    (place / "copies").mkdir()
    for path in (outside, place / "copies" / f"{digest_of(SMALL)}-{0:016x}"):
        path.write_bytes(SMALL)
        os.chown(path, ALICE, ALICE)
    os.chown(place / "copies", ALICE, ALICE)
    assert as_user(fetcher, make_shared(folder, *BODIES))

    def tamper() -> None:
        for path in [file_of(folder, digest_of(body)) for body in BODIES]:
            if path.exists():
                act(path, outside)

    def look(cache: ArtifactCache) -> list[bool]:
        return [read(cache, digest_of(body)) in {body, None} for body in BODIES]

    def act_as_alice() -> list[bool]:
        known, fresh = ArtifactCache(folder), ArtifactCache(folder)
        before = look(known)
        as_bob = os.read(answer, 1)
        after = [*look(known), *look(fresh), *look(known)]
        kept = [suppressed_keep(fresh, body) for body in BODIES]
        return [*before, as_bob == b"x", *after, *kept, *look(known), *look(fresh)]

    answer, told = os.pipe()
    with closing_both(answer, told), process_of(ALICE, act_as_alice) as answer_end:
        time.sleep(0.2)
        as_user(BOB, tamper)
        os.write(told, b"x")
        results = answer_of(answer_end)
    assert isinstance(results, list), results
    assert all(results), results
    assert outside.read_bytes() == SMALL
    (copy,) = (place / "copies").iterdir()
    assert copy.read_bytes() == SMALL


def suppressed_keep(cache: ArtifactCache, body: bytes) -> bool:
    """Bring a content in, or be told that the cache cannot; what it hands out is right."""
    try:
        keep(cache, body)
    except CacheUnavailable:
        return True
    return read(cache, digest_of(body)) in {body, None}


@contextmanager
def closing_both(*descriptors: int) -> Iterator[None]:
    try:
        yield
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


@pytest.mark.parametrize("body", BODIES)
def test_who_keeps_changing_a_file_while_it_is_delivered_changes_nothing(
    folder: Path, body: bytes
) -> None:
    """What was hashed is what is read: the bytes are right long after they were handed out."""
    assert as_user(BOB, make_shared(folder, body))
    wrong = b"X" * len(body)

    def keep_changing() -> None:
        path = file_of(folder, digest_of(body))
        path.chmod(0o660)
        while True:
            # Right for long enough to be found right, then wrong.
            for content in (body, wrong):
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o660)
                os.fchmod(descriptor, 0o660)
                os.write(descriptor, content)
                os.close(descriptor)
                time.sleep(0.003 if len(body) < 2**20 else 0.02)

    def act_as_alice() -> tuple[int, int]:
        served = false = 0
        give_up_at = time.monotonic() + 60
        while served < 20 and time.monotonic() < give_up_at:
            file = ArtifactCache(folder).open(digest_of(body))
            if file is not None:
                with file:
                    time.sleep(0.01)
                    served += 1
                    false += file.read() != body
        return served, false

    with process_of(BOB, keep_changing):
        served, false = as_user(ALICE, act_as_alice)
    assert not false
    assert served


def test_a_folder_that_becomes_a_symlink_again_and_again_leads_nobody_outside(
    folder: Path, place: Path
) -> None:
    """Not even in the instant after it was looked at is anything outside deleted or moved."""
    body = b"b" * 100
    above = f"contents/{digest_of(body)[:2]}"
    assert as_user(ALICE, make_shared(folder, body))
    name = file_of(folder, digest_of(body)).name
    theirs = place / "theirs"
    theirs.mkdir()
    (theirs / name).write_bytes(body)
    for path in (theirs, theirs / name):
        os.chown(path, ALICE, ALICE)

    def keep_swapping() -> None:
        link, true = folder / "contents" / "link", folder / "contents" / "true"
        link.symlink_to(theirs)
        while True:
            (folder / above).rename(true)
            link.rename(folder / above)
            (folder / above).rename(link)
            true.rename(folder / above)

    def act_as_alice() -> int:
        tried = 0
        until = time.monotonic() + 2
        while time.monotonic() < until:
            for _ in range(50):
                tried += places.delete_content(str(folder), f"{above}/{name}")
                with suppress(OSError):
                    places.put_aside(str(folder), f"{folder}/{above}/{name}")
            with suppress(CacheUnavailable):
                keep(ArtifactCache(folder), body)
        return tried

    with process_of(BOB, keep_swapping):
        as_user(ALICE, act_as_alice)
    assert [path.name for path in theirs.iterdir()] == [name]


def plant_a_journal(database: Path, victim: Path) -> None:
    """Leave what SQLite takes for a transaction of several databases that somebody did not end."""
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS Cache (something)")
    magic = bytes.fromhex("d9d505f920a163d7")
    name = str(victim).encode()
    pages = database.stat().st_size // 4096
    head = (magic + struct.pack(">5I", 0, 0, pages, 512, 4096)).ljust(512, b"\0")
    end = struct.pack(">I", 2**30 // 4096 + 1) + name + struct.pack(">2I", len(name), sum(name))
    Path(f"{database}-journal").write_bytes(head + end + magic)


def test_sqlite_would_delete_a_file_that_a_planted_journal_names(tmp_path: Path) -> None:
    """Why there is none of it where others can write; if this fails one day, there may be."""
    (victim := tmp_path / "victim").write_text("months of work\n")
    plant_a_journal(tmp_path / "cache.db", victim)
    with closing(sqlite3.connect(tmp_path / "cache.db")) as connection:
        connection.execute("SELECT * FROM Cache").fetchall()
    assert not victim.exists()


def test_sqlite_would_die_of_a_log_index_that_somebody_cuts_short(tmp_path: Path) -> None:
    """With SIGBUS, which no handler turns into a miss."""
    program = (
        "import os, sqlite3, sys\n"
        "connection = sqlite3.connect(sys.argv[1])\n"
        "connection.execute('PRAGMA journal_mode = wal')\n"
        "connection.execute('CREATE TABLE Cache (something)')\n"
        "os.truncate(sys.argv[1] + '-shm', 0)\n"
        "connection.execute('SELECT * FROM Cache').fetchall()\n"
    )
    ran = subprocess.run([sys.executable, "-c", program, tmp_path / "cache.db"], check=False)
    assert ran.returncode == -signal.SIGBUS


def test_a_database_that_somebody_plants_is_neither_opened_nor_believed(
    folder: Path, place: Path
) -> None:
    """No row, no journal, no log: there is no table where others can write."""
    (victim := place / "victim").write_text("months of work\n")
    (empty := place / "empty").touch()
    for path in (victim, empty):
        os.chown(path, ALICE, ALICE)
    assert as_user(ALICE, make_shared(folder, *BODIES))
    bomb = b"cos\nsystem\n(S'touch %s'\ntR." % str(folder / "exploded").encode()

    def plant() -> None:
        database = folder / "cache.db"
        plant_a_journal(database, victim)
        with closing(sqlite3.connect(folder / "other.db")) as connection:
            connection.execute("CREATE TABLE Cache (key, raw, tag, size, mode, filename, value)")
            for row in (
                (digest_of(SMALL), 1, "x", -(10**12), 4, f"../../{victim.name}", bomb),
                (digest_of(LARGE), 1, bomb, "much", 4, str(victim), None),
            ):
                connection.execute("INSERT INTO Cache VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            connection.commit()
        (folder / "other.db").replace(database)
        (folder / "cache.db-wal").symlink_to(victim)
        (folder / "cache.db-shm").symlink_to(empty)

    def act_as_alice() -> list[bool]:
        cache = ArtifactCache(folder, size_limit=len(LARGE) + len(SMALL))
        found = [read(cache, digest_of(body)) == body for body in BODIES]
        cache.remember("name", "text")
        return [
            *found,
            cache.recall("name") == "text",
            keep(cache, b"c" * 2_000),
            cache.volume() <= len(LARGE) + len(SMALL),
        ]

    as_user(BOB, plant)
    assert as_user(ALICE, act_as_alice) == [True] * 5
    assert victim.read_text() == "months of work\n"
    assert empty.read_bytes() == b""
    assert not (folder / "exploded").exists()
    assert (folder / "cache.db-journal").exists()


def test_a_size_that_no_disk_has_evicts_and_promises_and_breaks_nothing(folder: Path) -> None:
    """Files that say they are huge, and names that reserve what there is not."""
    assert as_user(ALICE, make_shared(folder, SMALL))

    def tamper() -> None:
        path = folder / "contents" / "ab"
        path.mkdir()
        path.chmod(0o770)
        with (path / f"ab{'0' * 62}-{'0' * 16}").open("wb") as file:
            file.truncate(2**40)
        for size in ("9" * 18, "-5", "1e9", "x"):
            (folder / "tmp" / f"{'0' * 64}-{'0' * 16}-1-{size}").touch()

    def act_as_alice() -> tuple[bytes | None, bool, bool]:
        cache = ArtifactCache(folder, size_limit=10_000)
        served = read(cache, digest_of(SMALL))
        is_kept = keep(cache, b"x" * 5_000)
        for path in folder.glob("tmp/*"):
            path.unlink()
        return served, is_kept, keep(cache, b"x" * 5_000)

    as_user(BOB, tamper)
    assert as_user(ALICE, act_as_alice) == (SMALL, False, True)
    held = [path.stat().st_size for path in folder.glob("contents/*/*") if path.is_file()]
    assert sum(held) <= 10_000


def test_the_limit_holds_also_if_a_neighbour_keeps_contents_from_being_deleted(
    folder: Path,
) -> None:
    """What cannot be evicted makes no room."""
    assert as_user(BOB, make_shared(folder, b"a" * 600))

    def close() -> None:
        file_of(folder, digest_of(b"a" * 600)).parent.chmod(0o755)

    as_user(BOB, close)
    cache = partial(ArtifactCache, folder, size_limit=1_000)
    assert as_user(ALICE, lambda: keep(cache(), b"b" * 500)) is False
    assert as_user(ALICE, lambda: keep(cache(), b"b" * 400)) is True


def test_a_file_that_grows_while_it_is_copied_takes_no_more_room_than_it_had(
    tmp_path: Path,
) -> None:
    """The copy ends where the file ended when its room was made."""
    (tmp_path / "grows").write_bytes(SMALL * 2)
    with (
        io.FileIO(tmp_path / "grows") as file,
        io.FileIO(tmp_path / "copy", "w") as copy,
        pytest.raises(WrongError, match="grew beyond"),
    ):
        trust.verify(file, digest_of(SMALL), copy_to=copy.fileno(), most=len(SMALL))
    assert (tmp_path / "copy").stat().st_size <= len(SMALL)


# Notes


def test_what_another_user_noted_of_an_id_is_not_believed_but_asked_for(folder: Path) -> None:
    """A note that leads an id to other bytes costs a request; a removal is known to all."""
    backend = MemoryArtifactStore()
    store = ContentStore(backend)
    ids = [str(uuid.UUID(int=number, version=4)) for number in range(2)]
    for artifact_id, body in zip(ids, (b"right", b"other"), strict=True):
        store.write(artifact_id, io.BytesIO(body))

    def get(store: ContentStore, artifact_id: str) -> bytes:
        with store.open_reader(artifact_id) as reader:
            return reader.read()

    def act_as_bob() -> None:
        cache = ArtifactCache(folder, shared=True)
        for artifact_id in ids:
            get(ContentStore(backend, cache=cache), artifact_id)
        for body in (b"right", b"other"):
            keep(cache, body)
        # Now each record of Bob's names the content of the other.
        first, second = sorted(folder.glob("records/*"))
        swapped = second.read_bytes(), first.read_bytes()
        for path, text in zip((first, second), swapped, strict=True):
            path.write_bytes(text)

    def act_as_alice() -> list[object]:
        cache = ArtifactCache(folder)
        stores = [ContentStore(backend, cache=cache) for _ in range(2)]
        found: list[object] = [get(each, ids[0]) for each in (*stores, *stores)]
        found.append(cache.counters.hits > 0)
        return found

    as_user(BOB, act_as_bob)
    assert len(list(folder.glob("records/*"))) == 2
    assert as_user(ALICE, act_as_alice) == [b"right"] * 4 + [True]


def test_a_large_shared_cache_is_looked_through_only_where_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever others did meanwhile: each process sees the same, and the oldest go first."""
    from casartifacts.cache import listing

    now = time.time()
    folder = tmp_path / "cache"
    bodies = [b"%d" % number * 50 for number in range(400)]
    with closing(ArtifactCache(folder, shared=True)) as cache:
        for body in bodies:
            assert keep(cache, body)
    path = {body: next(folder.glob(f"contents/*/{digest_of(body)}-*")) for body in bodies}
    looked: list[str] = []
    names_in = places.content_names_in

    def count(folder: str, above: str) -> list[str]:
        looked.append(above)
        return names_in(folder, above)

    def look(cache: ArtifactCache) -> tuple[int, int]:
        looked.clear()
        return cache.volume(), cache.stat().contents

    monkeypatch.setattr(places, "content_names_in", count)
    clock = SimpleNamespace(time=lambda: now, monotonic=time.monotonic, sleep=time.sleep)
    monkeypatch.setattr(listing, "time", clock)
    with closing(ArtifactCache(folder)) as cache:
        # Another change within 10 ms might leave the ctime as it is.
        held = look(cache)
        folders = len({path.parent for path in path.values()})
        assert (look(cache), len(looked)) == (held, 3 * folders)
        now = time.time() + 3
        assert (look(cache), len(looked)) == (held, folders)
        assert (look(cache), looked) == (held, [])

        # What comes, what goes, what is put aside, and what another program does.
        steps: list[Callable[[ArtifactCache], object]] = [
            lambda other: keep(other, b"new"),
            lambda _: path[bodies[7]].unlink(),
            lambda _: path[bodies[8]].rename(tmp_path / "elsewhere"),
            lambda _: path[bodies[9]].chmod(0o600),
            lambda _: path[bodies[9]].write_bytes(b"wrong"),
            lambda other: read(other, digest_of(bodies[9])),
            lambda _: shutil.rmtree(path[bodies[10]].parent),
            lambda other: keep(other, bodies[10]),
        ]
        for step in steps:
            with closing(ArtifactCache(folder)) as other:
                step(other)
            found = look(cache)
            if step in steps[3:5]:
                assert looked == []
                # Its folder did not change; once in a minute it is looked into all the same.
                now += 61
                found = look(cache)
                assert len(looked) >= folders - 1
            else:
                assert set(looked) <= {
                    "contents/" + digest_of(b)[:2] for b in (b"new", *bodies[7:11])
                }
            with closing(ArtifactCache(folder)) as other:
                assert found == look(other)


def test_records_are_bounded_and_one_of_this_user_is_recalled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest go, and whoever recalled one of them is told."""
    from casartifacts.cache import listing

    monkeypatch.setattr(listing, "_MOST_RECORDS", 20)
    monkeypatch.setattr(listing, "_ONE_SEES_TO_IT_IN", 1)
    cache = ArtifactCache(tmp_path / "cache", shared=True)
    other = ArtifactCache(tmp_path / "cache")
    cache.remember("first", "text", at_once=False)
    assert other.recall("first") == "text"
    for number in range(30):
        time.sleep(0.005)
        cache.remember(f"name {number}", "text", at_once=False)
    assert other.recall("first") is None
    assert other.recall("name 29") == "text"
    cache.remember("name 29", "other", unless="text")
    assert other.recall("name 29") == "text"
    assert 15 <= len(list((tmp_path / "cache").glob("records/*"))) <= 20


def test_a_record_of_another_user_says_only_that_it_is_there(folder: Path) -> None:
    """Also one that is no file, or is closed; and who wrote `unless` first is left alone."""

    def act_as_alice() -> None:
        cache = ArtifactCache(folder, shared=True)
        for name in ("right", "closed", "fifo", "removed"):
            cache.remember(name, "removed" if name == "removed" else "of Alice")

    def act_as_bob() -> list[str | None]:
        cache = ArtifactCache(folder)
        path = {name: folder / "records" / digest_of(name.encode()) for name in ("closed", "fifo")}
        path["closed"].unlink()
        path["closed"].mkdir()
        path["fifo"].unlink()
        os.mkfifo(path["fifo"], 0o666)
        cache.remember("removed", "of Bob", unless="removed")
        names = ("right", "closed", "fifo", "removed", "none")
        return [cache.recall(name) for name in names]

    as_user(ALICE, act_as_alice)
    assert as_user(BOB, act_as_bob) == ["", "", "", "", None]
    assert as_user(ALICE, lambda: ArtifactCache(folder).recall("removed")) == "removed"


# Where there is no cache


class Refused(NamedTuple):
    """What came of using a cache: whether it kept, and what was logged."""

    kept: bool
    said: list[str]


def refused(folder: Path) -> Callable[[], Refused]:
    """Use a cache in every way, twice, and return what is said of it."""

    def act() -> Refused:
        said: list[str] = []
        handler = logging.Handler(logging.WARNING)
        handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("casartifacts").addHandler(handler)
        cache = ArtifactCache(folder)
        for _ in range(2):
            kept = keep(cache, SMALL)
            assert (read(cache, digest_of(SMALL)) is not None) is kept
            cache.remember("name", "text")
            cache.recall("name")
            cache.forget(digest_of(SMALL))
            cache.volume()
        return Refused(kept, said)

    return act


def test_a_folder_that_anybody_can_write_to_is_refused(place: Path) -> None:
    """With what to do; a folder of one's own below it is fine, and nobody else gets in."""
    (place / "open").mkdir()
    (place / "open").chmod(0o777)
    for folder in (place, place / "open"):
        kept, (said,) = as_user(ALICE, refused(folder))
        assert not kept
        assert f"anybody may write to {folder}" in said
        # In one like /tmp that would be bad advice.
        assert (f"own below it, or close it: chmod o-w {folder}" in said) is (folder != place)
        assert as_user(ALICE, refused(folder / "mine")) == (True, [])
        assert stat.S_IMODE((folder / "mine").stat().st_mode) == 0o700
        assert (folder / "mine" / "cache.db").exists() is (folder == place)
    assert not list(place.glob("*.db"))
    assert refused(place)().kept is False, "nor may root"


def test_a_folder_of_somebody_else_is_refused(place: Path, folder: Path) -> None:
    """A private one to everybody but root, a shared one to who is not in its group."""
    assert as_user(ALICE, lambda: keep(ArtifactCache(place / "private"), SMALL))
    (place / "private").chmod(0o755)
    kept, (said,) = as_user(BOB, refused(place / "private"))
    assert not kept
    assert f"belongs to user {ALICE} alone" in said
    assert "shared=True" in said
    assert as_user(ALICE, make_shared(place / "shared", SMALL))
    kept, (said,) = as_user(STRANGER, refused(place / "shared"))
    assert not kept
    assert f"and group {ALICE}, of which this user is no member" in said
    assert not (place / "private" / "cache.db-wal").exists()


def test_root_reads_a_private_cache_of_another_user_and_writes_nothing_there(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What it wrote there, its owner could neither count nor delete."""
    folder = place / "private"
    assert as_user(ALICE, lambda: keep(ArtifactCache(folder), SMALL))
    cache = ArtifactCache(folder)
    assert read(cache, digest_of(SMALL)) == SMALL
    assert cache.stat().contents == len([SMALL])
    with cache.admit(digest_of(LARGE), size=len(LARGE)) as slot:
        assert slot is None
    assert f"{folder} belongs to user {ALICE} alone: act as that user" in caplog.text
    with pytest.raises(CacheUnavailable, match=f"belongs to user {ALICE} alone"):
        cache.clean()
    assert {path.stat().st_uid for path in folder.glob("contents/**")} == {ALICE}
    assert as_user(ALICE, lambda: keep(ArtifactCache(folder), LARGE))
    assert as_user(ALICE, lambda: ArtifactCache(folder).clean(everything=True)).contents == 2
    assert not [*folder.glob("contents/*/*"), *folder.glob("tmp/*")]


def test_a_folder_that_its_group_can_write_to_but_has_no_setgid_is_told_of(place: Path) -> None:
    """What the first user makes in it is not for the others: they are told what to do."""
    folder = place / "cache"
    folder.mkdir()
    os.chown(folder, ALICE, TEAM)
    folder.chmod(0o770)
    assert as_user(ALICE, lambda: keep(ArtifactCache(folder), SMALL))
    kept, said = as_user(BOB, refused(folder))
    assert not kept
    assert "it has no setgid bit" in said[0]
    assert f"chgrp -R {TEAM} {folder}" in said[0]

    def examine() -> str:
        return " ".join(found.advice for found in machine.cache_in(folder))

    assert "no setgid bit" in as_user(ALICE, examine)


def test_a_symlink_that_another_user_planted_is_not_followed(place: Path) -> None:
    """One's own and root's are."""
    for name, user in (("bob's", BOB), ("alice's", ALICE), ("root's", 0)):
        (home := place / f"home of {name}").mkdir()
        os.chown(home, ALICE, ALICE)
        home.chmod(0o700)
        (place / name).symlink_to(home)
        os.chown(place / name, user, user, follow_symlinks=False)
        for folder in (place / name, place / name / "cache"):
            kept, said = as_user(ALICE, refused(folder))
            assert kept is (user != BOB)
            assert len(said) == (user == BOB)
            assert all("is a symlink that another user put" in each for each in said)
        assert bool(list(home.iterdir())) is (user != BOB)


@pytest.fixture
def on_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    text = tmp_path / "mountinfo"
    text.write_text(
        "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"
        f"2 1 0:50 / {tmp_path}/home rw shared:1 - nfs4 server:/home rw\n"
    )
    monkeypatch.setattr(mounts, "MOUNTINFO", str(text))
    return tmp_path / "home"


def test_a_folder_on_a_network_file_system_is_refused(on_a_network: Path) -> None:
    """Before anything is made there."""
    kept, (said,) = refused(on_a_network / "cache")()
    assert not kept
    assert f"is on nfs4 ({on_a_network}), which other machines share" in said
    assert "CASARTIFACTS_CACHE to a folder of your own on a local disk, such as /" in said
    assert not on_a_network.exists()


def test_a_folder_whose_rights_change_while_it_is_used_is_looked_at_anew(tmp_path: Path) -> None:
    """What was a private cache is no longer one, and back."""
    folder = tmp_path / "cache"
    cache = ArtifactCache(folder)
    assert keep(cache, SMALL)
    folder.chmod(0o777)
    assert cache.volume() == 0
    folder.chmod(0o770)
    cache = ArtifactCache(folder)
    assert cache.volume() == len(SMALL)
    shutil.rmtree(folder / "contents")
    assert cache.volume() == 0
    assert keep(cache, SMALL)


# Where the node's cache lies


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"CASARTIFACTS_CACHE": "/named", "SLURM_TMPDIR": "/slurm"}, "/named"),
        ({"SLURM_TMPDIR": "/slurm", "TMPDIR": "/local/1", "SLURM_JOB_ID": "1"}, "/slurm/*"),
        ({"TMPDIR": "/local/slurm.4711", "SLURM_JOB_ID": "4711"}, "/local/slurm.4711/*"),
        ({"TMPDIR": "/local/4711.1.all.q", "JOB_ID": "4711"}, "/local/4711.1.all.q/*"),
        ({"TMPDIR": "/local/pbs.12.host", "PBS_JOBID": "12.host"}, "/local/pbs.12.host/*"),
        ({"TMPDIR": "/local/12.tmpdir", "LSB_JOBID": "12"}, "/local/12.tmpdir/*"),
        ({"TMPDIR": "/local/4711", "SLURM_JOB_ID": "471"}, "/xdg/*"),
        ({"TMPDIR": "/local", "SLURM_JOB_ID": "4711"}, "/xdg/*"),
        ({"TMPDIR": "/local/undefined", "JOB_ID": "undefined"}, "/xdg/*"),
        ({"TMPDIR": "/home/me/tmp4711"}, "/xdg/*"),
        ({}, "/xdg/*"),
    ],
)
def test_the_cache_of_a_node_lies_in_the_scratch_of_the_job(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str
) -> None:
    """`TMPDIR` only if the batch system made it: then the number of the job is in it."""
    for name in ("CASARTIFACTS_CACHE", "SLURM_TMPDIR", "TMPDIR", *opening._JOBS):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"XDG_CACHE_HOME": "/xdg", **environment}.items():
        monkeypatch.setenv(name, value)
    assert str(opening.node_cache()) == expected.replace("*", "casartifacts")


def test_none_is_no_cache_for_python_as_for_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert opening.open_store(tmp_path, cache="none").cache is None
    monkeypatch.setenv("CASARTIFACTS_CACHE", "none")
    assert opening.open_store(tmp_path, cache=True).cache is None
    assert opening.open_store(tmp_path, cache=tmp_path / "none").cache is not None


def test_a_users_cache_on_a_network_file_system_is_done_without_and_said_once(
    on_a_network: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One that was named is refused by the cache itself, which says so too."""
    for name in ("CASARTIFACTS_CACHE", "SLURM_TMPDIR", *opening._JOBS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(on_a_network))
    for _ in range(2):
        assert opening.open_store(tmp_path / "store", cache=True).cache is None
    (record,) = caplog.records
    assert "nfs4" in record.message
    assert "CASARTIFACTS_CACHE to a folder of your own on a local disk" in record.message
    monkeypatch.setenv("CASARTIFACTS_CACHE", str(on_a_network / "named"))
    store = opening.open_store(tmp_path / "store", cache=True)
    assert store.cache is not None
    assert store.cache.volume() == 0
    assert len(caplog.records) == 2
