"""Checks of the eight contracts, for everything that has Optuna's three methods.

Rule: ids are such as Optuna and its clients make, and no other methods are called.
"""

from __future__ import annotations

import itertools
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from casartifacts.testing.bodies import Body, OnlyRead
from casartifacts.testing.expect import (
    FAILING_SIZE,
    PATIENCE,
    Interrupt,
    at_once,
    brief,
    elsewhere,
    expect,
    expect_body,
    expect_failure,
    expect_gone,
    expect_missing,
    expect_open,
    in_time,
    look,
    put,
    some_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from casartifacts.protocols import ArtifactStore

CHECKS: list[Callable[[ArtifactStore], None]] = []

# Those of them in which threads meet by chance: a store that breaks the promise may get by.
RACES: list[Callable[[ArtifactStore], None]] = []

_ID = "0f8fad5b-d9cb-469f-a165-70867728950e"
_OTHER_ID = "7c9e6679-7425-40de-944b-e07fc1f90ae7"

# Above the sizes from which clients cut a body into parts by themselves: 8 MiB in boto3 and GCS.
_LARGE = 9 * 2**20 + 1

# Seconds for which threads race, and how often each acts at least, however late it begins.
_RACE = 0.25
_LEAST_TURNS = 10


def _check(run: Callable[[ArtifactStore], None]) -> Callable[[ArtifactStore], None]:
    CHECKS.append(run)
    return run


def _race(run: Callable[[ArtifactStore], None]) -> Callable[[ArtifactStore], None]:
    RACES.append(run)
    return _check(run)


# ---------------------------------------------------------------- contract 1: whole or nothing


@_check
def bodies_of_every_size_come_back_whole(store: ArtifactStore) -> None:
    """Contract 1: a reader sees all of a written body."""
    sizes = (0, 1, 255, 65_536, 2**20 + 1)
    for size in sizes:
        put(store, f"{_ID}-{size}", some_bytes(size))
    for size in sizes:
        expect_body(store, f"{_ID}-{size}", some_bytes(size))


@_check
def a_large_body_comes_back_whole(store: ArtifactStore) -> None:
    """Contract 1: a reader sees all of a body that clients cut into parts."""
    put(store, _ID, some_bytes(_LARGE))
    expect_body(store, _ID, some_bytes(_LARGE))


@_check
def an_overwrite_replaces_the_whole_body(store: ArtifactStore) -> None:
    """Contract 1: nothing of a longer or shorter body that was there before is left."""
    for size in (10, 3, 100_000, 0, 5):
        put(store, _ID, some_bytes(size))
        expect_body(store, _ID, some_bytes(size))


@_check
def ids_are_kept_apart(store: ArtifactStore) -> None:
    """Contract 1: each of several similar ids leads to its own body."""
    ids = ("0", "0-0", "0_0", "00", "~0", "0.0", "a" * 120)
    for each in ids:
        put(store, each, each.encode())
    for each in ids:
        expect_body(store, each, each.encode())


@_check
def an_id_behind_a_folder_is_kept(store: ArtifactStore) -> None:
    """Contract 1: a body is also kept under an id with a folder, as some clients make them."""
    put(store, _ID, b"before a folder")
    put(store, f"optuna/{_ID}", b"behind a folder")
    expect_body(store, _ID, b"before a folder")
    expect_body(store, f"optuna/{_ID}", b"behind a folder")


@_check
def nobody_sees_a_body_before_it_is_whole(store: ArtifactStore) -> None:
    """Contract 1: while a body is written, a reader sees the one before it, or nothing."""
    seen: list[bytes | None] = []

    def look_around() -> None:
        seen.append(in_time(lambda: look(store, _ID)))

    before = None
    for after in (some_bytes(300_000), some_bytes(300_001)):
        put(store, _ID, after, on_read=look_around, most=100_000)
        for each in seen:
            expect(each == before, f"{brief(before)} during the write", brief(each))
        expect_body(store, _ID, after)
        before = after
        seen.clear()


def _expect_nothing_published(
    store: ArtifactStore, *, fails_at: int, error: BaseException | None = None
) -> None:
    expect_failure(store.write, _ID, fails_at=fails_at, error=error)
    expect_gone(store, _ID)
    put(store, _ID, b"old")
    expect_failure(store.write, _ID, fails_at=fails_at, error=error)
    expect_body(store, _ID, b"old")


@_check
def a_body_that_fails_at_once_publishes_nothing(store: ArtifactStore) -> None:
    """Contracts 1, 6: an error in the first `read` reaches the caller; what was there stays."""
    _expect_nothing_published(store, fails_at=0)


@_check
def a_body_that_fails_midway_publishes_nothing(store: ArtifactStore) -> None:
    """Contracts 1, 6: an error midway reaches the caller; what was there stays."""
    _expect_nothing_published(store, fails_at=FAILING_SIZE // 2)


@_check
def a_body_that_fails_on_its_last_piece_publishes_nothing(store: ArtifactStore) -> None:
    """Contracts 1, 6: so a body is withheld whose bytes prove wrong: its last piece never comes."""
    _expect_nothing_published(store, fails_at=FAILING_SIZE - 1)


@_check
def a_body_that_fails_instead_of_its_end_publishes_nothing(store: ArtifactStore) -> None:
    """Contracts 1, 6: an error in the `read` that would have found the end is an error too."""
    _expect_nothing_published(store, fails_at=FAILING_SIZE)


@_check
def an_interrupted_write_publishes_nothing(store: ArtifactStore) -> None:
    """Contracts 1, 6: a KeyboardInterrupt reaches the caller; what was there stays."""
    _expect_nothing_published(store, fails_at=FAILING_SIZE // 2, error=Interrupt("planned"))


@_check
def a_reader_never_mixes_two_bodies(store: ArtifactStore) -> None:
    """Contract 1: an open reader of a name that is overwritten goes on, or gives up loudly."""
    old, new = some_bytes(2**20), some_bytes(2**20)[::-1]
    put(store, _ID, old)
    with store.open_reader(_ID) as reader:
        found = reader.read(10)
        put(store, _ID, new)
        try:
            found += b"".join(iter(lambda: reader.read(65_536), b""))
        except Exception:  # noqa: BLE001 -- loud is allowed, whatever the error
            return
    expect(found == old, f"the body that was opened, {brief(old)}", brief(found))


# ------------------------------------------- contracts 2, 3, 4, 7: written, missing, removed, gone


@_check
def the_same_bytes_may_be_written_again(store: ArtifactStore) -> None:
    """Contract 3: writing the same bytes again under the same name is no error."""
    for _ in range(3):
        put(store, _ID, some_bytes(1000))
        expect_body(store, _ID, some_bytes(1000))


@_check
def missing_is_loud_at_open(store: ArtifactStore) -> None:
    """Contract 4: `open_reader` itself raises `ArtifactNotFound`, naming the id."""
    for missing in (_ID, f"optuna/{_ID}"):
        error = expect_gone(store, missing)
        expect(missing in str(error), f"a message that names {missing!r}", repr(error))


@_check
def removed_is_gone(store: ArtifactStore) -> None:
    """Contract 7: after `remove` the artifact is missing, others stay, and it may come back."""
    put(store, _ID, b"first")
    put(store, _OTHER_ID, b"other")
    store.remove(_ID)
    expect_gone(store, _ID)
    expect_body(store, _OTHER_ID, b"other")
    put(store, _ID, b"second")
    expect_body(store, _ID, b"second")


@_check
def what_is_missing_cannot_be_removed(store: ArtifactStore) -> None:
    """Contract 7: `remove` of what was never there, or is gone, raises `ArtifactNotFound`."""
    expect_missing(lambda: store.remove(_ID))
    put(store, _ID, b"first")
    store.remove(_ID)
    expect_missing(lambda: store.remove(_ID))


# ---------------------------------------------------------- contracts 5, 6: readers and bodies


@_check
def readers_go_forward_to_the_only_end(store: ArtifactStore) -> None:
    """Contract 5: reads of any size give the body in order, then `b""` for ever."""
    body = some_bytes(200_000)
    put(store, _ID, body)
    with store.open_reader(_ID) as reader, store.open_reader(_ID) as other:
        found = b""
        for size in itertools.cycle((1, 7, 1000, 70_000)):
            piece = reader.read(size)
            expect(len(piece) <= size, f"at most {size} bytes", brief(piece))
            found += piece
            if not piece:
                break
        expect(found == body, brief(body), brief(found))
        for size in (1, 1000, -1):
            expect(reader.read(size) == b"", "nothing after the end", "more bytes")
        found = other.read()
        expect(found == body, f"{brief(body)} from read() of another reader", brief(found))
    reader.close()  # a second time


@_check
def the_body_is_left_open(store: ArtifactStore) -> None:
    """Contract 6: the body is never closed."""
    for size in (0, 1, 100_000):
        body = Body(some_bytes(size))
        store.write(_ID, body)
        expect_open(body)


def _expect_arrival(store: ArtifactStore, content: bytes, *, start: int = 0, **ways: Any) -> None:
    put(store, _ID, content, start=start, **ways)
    expect_body(store, _ID, content[start:])


@_check
def a_body_is_read_from_where_it_stands(store: ArtifactStore) -> None:
    """Contract 6: what lies before the position of the body is not the body."""
    _expect_arrival(store, some_bytes(20_000), start=5_000)


@_check
def a_dribbling_body_arrives_whole(store: ArtifactStore) -> None:
    """Contract 6: a `read` may give fewer bytes than it was asked for."""
    _expect_arrival(store, some_bytes(20_000), most=97)


@_check
def a_body_that_cannot_seek_arrives_whole(store: ArtifactStore) -> None:
    """Contract 6: a body need not seek or tell."""
    _expect_arrival(store, some_bytes(100_000), start=1_000, seekable=False)


@_check
def a_body_with_nothing_but_read_arrives_whole(store: ArtifactStore) -> None:
    """Contract 6: a body need have no other method than `read`."""
    store.write(_ID, cast("BinaryIO", OnlyRead(Body(some_bytes(100_000), most=30_000))))
    expect_body(store, _ID, some_bytes(100_000))


@_check
def a_body_longer_than_it_claims_arrives_whole(store: ArtifactStore) -> None:
    """Contract 6: a body goes to its `b""`, not to where `seek` says that it ends."""
    _expect_arrival(store, some_bytes(20_000), claims=19_000)


@_check
def a_body_shorter_than_it_claims_arrives_whole(store: ArtifactStore) -> None:
    """Contract 6: a body ends at its `b""`, not where `seek` says that it ends."""
    _expect_arrival(store, some_bytes(20_000), claims=21_000)


# ------------------------------------------------------- contracts 2, 8: threads and processes


@_check
def a_pickled_store_is_the_same_place(store: ArtifactStore) -> None:
    """Contract 8: what one copy of a store writes, the other reads."""
    copy = pickle.loads(pickle.dumps(store))  # noqa: S301 -- it was made one call ago
    put(store, _ID, b"by the original")
    put(copy, _OTHER_ID, b"by the copy")
    expect_body(copy, _ID, b"by the original")
    expect_body(store, _OTHER_ID, b"by the copy")


@_check
def a_spawned_process_reads_and_writes(store: ArtifactStore) -> None:
    """Contracts 2, 8: a process that got the store through `pickle` reads this one's writes."""
    put(store, _ID, b"desserts")
    elsewhere("spawn", store, _ID, _OTHER_ID)
    expect_body(store, _OTHER_ID, b"stressed")


@_check
def a_forked_process_reads_and_writes(store: ArtifactStore) -> None:
    """Contracts 2, 8: so does a fork, even one made while a thread of the parent writes."""
    put(store, _ID, b"desserts")
    under_way, forked = threading.Event(), threading.Event()

    def wait() -> None:
        under_way.set()
        forked.wait(2 * PATIENCE)

    slow = f"{_ID}-slow"
    body = Body(some_bytes(100_000), on_read=wait)
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(store.write, slow, body)
        try:
            under_way.wait(PATIENCE)
            elsewhere("fork", store, _ID, _OTHER_ID)
        finally:
            forked.set()
        writing.result()
    expect_body(store, slow, some_bytes(100_000))
    expect_body(store, _OTHER_ID, b"stressed")


@_race
def threads_with_names_of_their_own_do_not_meet(store: ArtifactStore) -> None:
    """Contract 8: threads write, read and remove different names at once."""
    until = time.monotonic() + _RACE

    def work(thread: int) -> None:
        for turn in itertools.count():
            name, body = f"{_ID}-{thread}-{turn % 3}", some_bytes(thread * 1000 + turn)
            put(store, name, body)
            expect_body(store, name, body)
            if turn % 3 == 0:
                store.remove(name)
                expect_gone(store, name)
            if time.monotonic() > until:
                return

    at_once(work, 6)


@_race
def threads_that_share_a_name_see_whole_bodies(store: ArtifactStore) -> None:
    """Contracts 1, 8: of many that write one name at once, each reader sees one whole body."""
    bodies = [bytes([letter]) * 200_000 for letter in b"abcd"]
    put(store, _ID, bodies[0])
    until = time.monotonic() + _RACE

    def work(thread: int) -> None:
        turns = itertools.count()
        while next(turns) < _LEAST_TURNS or time.monotonic() < until:
            if thread < len(bodies):
                put(store, _ID, bodies[thread], most=100_000)
            else:
                found = look(store, _ID)
                expect(found in bodies, "one of the bodies, whole", brief(found))

    at_once(work, 2 * len(bodies))
