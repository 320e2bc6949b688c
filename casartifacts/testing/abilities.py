"""Checks of what a `Backend` can do beyond Optuna's three methods.

Rule: names are such as a `ContentStore` gives to what it keeps.
"""

from __future__ import annotations

import contextlib
import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, BinaryIO, cast

from casartifacts.protocols import Backend, Entry
from casartifacts.testing.bodies import Body, OnlyRead
from casartifacts.testing.expect import (
    FAILING_SIZE,
    at_once,
    brief,
    expect,
    expect_body,
    expect_failure,
    expect_gone,
    expect_missing,
    expect_open,
    put,
    read_range,
    some_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Callable

CHECKS: list[Callable[[Backend], None]] = []

_NAME = "blobs/0f/0f8fad5bd9cb469fa16570867728950e"
_OTHER_NAME = "trash/7c9e6679/blobs/0f/0f8fad5bd9cb469fa16570867728950e"

# One more than a page of a listing on S3 and GCS.
_MORE_THAN_A_PAGE = 1001

_YEAR_SECONDS = 365 * 86_400


def _check(run: Callable[[Backend], None]) -> Callable[[Backend], None]:
    CHECKS.append(run)
    return run


@_check
def it_has_every_ability(backend: Backend) -> None:
    """A `Backend` has all its methods; `durable` and `remote` are True or False."""
    expect(isinstance(backend, Backend), "every method of Backend", type(backend))
    for ability in (backend.durable, backend.remote):
        expect(isinstance(ability, bool), "durable and remote to be True or False", repr(ability))


@_check
def stat_tells_the_size(backend: Backend) -> None:
    """`stat` tells name and size of what is there, and None of what is missing or removed."""
    expect(backend.stat(_NAME) is None, "None", backend.stat(_NAME))
    for size in (0, 100_000, 7):
        put(backend, _NAME, some_bytes(size))
        found = backend.stat(_NAME)
        right = isinstance(found, Entry) and (found.name, found.size) == (_NAME, size)
        expect(right, f"an Entry of {_NAME!r} with {size} bytes", found)
    backend.remove(_NAME)
    expect(backend.stat(_NAME) is None, "None after remove", backend.stat(_NAME))


@_check
def stat_tells_when_it_was_written(backend: Backend) -> None:
    """`stat` tells the time of the last write in seconds since the epoch, and `list` the same."""
    put(backend, _NAME, b"1")
    found = backend.stat(_NAME)
    # A backend's clock may well be off by an hour.
    near = found is not None and abs(found.modified - time.time()) < _YEAR_SECONDS
    expect(near, f"a time near {time.time()}", found)
    listed = list(backend.list(""))
    expect(listed == [found], f"{found} from list too", listed)


@_check
def ranges_are_exact(backend: Backend) -> None:
    """`open_range` gives the bytes asked for, fewer only at the end."""
    body = some_bytes(100_000)
    put(backend, _NAME, body)
    put(backend, _OTHER_NAME, b"")
    inside = [(0, 1), (0, 100_000), (1, 99_999), (50_000, 7), (99_999, 1), (0, 0), (7, 0)]
    beyond = [(99_999, 2), (0, 100_001), (100_000, 1), (100_000, 0), (200_000, 10)]
    for start, length in inside + beyond:
        found, right = read_range(backend, _NAME, start, length), body[start : start + length]
        expect(found == right, f"{brief(right)} for {start}, {length}", brief(found))
    found = read_range(backend, _OTHER_NAME, 0, 10)
    expect(found == b"", "nothing from an empty body", brief(found))


@_check
def a_range_of_what_is_missing_is_loud(backend: Backend) -> None:
    """`open_range` raises `ArtifactNotFound`."""
    expect_missing(lambda: read_range(backend, _NAME, 0, 1))
    expect_missing(lambda: read_range(backend, _NAME, 0, 0))


@_check
def write_if_absent_writes_what_is_absent(backend: Backend) -> None:
    """`write_if_absent` returns True when the name was free, and keeps contract 6."""
    for size in (0, 100_000):
        body = Body(b"?" + some_bytes(size), start=1, most=50_000, claims=size + 100)
        written = backend.write_if_absent(f"{_NAME}{size}", body)
        expect(written is True, "True", repr(written))
        expect_open(body)
        expect_body(backend, f"{_NAME}{size}", some_bytes(size))


@_check
def write_if_absent_takes_a_body_with_nothing_but_read(backend: Backend) -> None:
    """Contract 6: a body need have no other method than `read`, here too."""
    body = cast("BinaryIO", OnlyRead(Body(some_bytes(100_000), most=30_000)))
    written = backend.write_if_absent(_NAME, body)
    expect(written is True, "True", repr(written))
    expect_body(backend, _NAME, some_bytes(100_000))


@_check
def write_if_absent_of_the_same_bytes_keeps_them(backend: Backend) -> None:
    """`write_if_absent` of what is there already may answer either way."""
    for _ in range(3):
        written = backend.write_if_absent(_NAME, io.BytesIO(some_bytes(1000)))
        expect(isinstance(written, bool), "True or False", repr(written))
        expect_body(backend, _NAME, some_bytes(1000))


@_check
def write_if_absent_leaves_what_is_there(backend: Backend) -> None:
    """`write_if_absent` returns False when the name was taken, and leaves its body alone."""
    put(backend, _NAME, b"first")
    written = backend.write_if_absent(_NAME, io.BytesIO(b"second"))
    expect(written is False, "False", repr(written))
    expect_body(backend, _NAME, b"first")


@_check
def write_if_absent_has_one_winner(backend: Backend) -> None:
    """Of many that call `write_if_absent` at once, one is told True, and its body is there."""
    # They meet in their bodies: who asks before it sends, and only then, has asked by now.
    meeting = threading.Barrier(4)
    told: dict[bytes, bool] = {}

    def meet() -> None:
        with contextlib.suppress(threading.BrokenBarrierError):
            meeting.wait(0.5)

    def work(thread: int) -> None:
        content = str(thread).encode() * 1000
        body = Body(content, on_read=meet)
        told[content] = backend.write_if_absent(_NAME, body)

    at_once(work, 4)
    winners = [content for content, won in told.items() if won]
    expect(len(winners) == 1, "one winner", f"{len(winners)} winners")
    expect_body(backend, _NAME, winners[0])


@_check
def write_if_absent_publishes_nothing_of_a_failing_body(backend: Backend) -> None:
    """Contracts 1, 6: an error of the body reaches the caller, and the name stays free."""
    for fails_at in (0, FAILING_SIZE - 1, FAILING_SIZE):
        expect_failure(backend.write_if_absent, _NAME, fails_at=fails_at)
        expect_gone(backend, _NAME)


def _expect_listing(backend: Backend, prefix: str, right: dict[str, int]) -> None:
    found = sorted((entry.name, entry.size) for entry in backend.list(prefix))
    expect(found == sorted(right.items()), f"{right} below {prefix!r}", found)


@_check
def a_failed_write_leaves_no_name(backend: Backend) -> None:
    """Contract 1: after a write that failed, a listing shows what it showed before."""
    put(backend, _NAME, b"old")
    for fails_at in (FAILING_SIZE // 2, FAILING_SIZE - 1):
        expect_failure(backend.write, _NAME, fails_at=fails_at)
        expect_failure(backend.write, _OTHER_NAME, fails_at=fails_at)
    _expect_listing(backend, "", {_NAME: 3})


@_check
def list_yields_what_is_below_a_prefix(backend: Backend) -> None:
    """`list` yields each name below the prefix with its size, and nothing beside it."""
    _expect_listing(backend, "", {})
    sizes = {"blobs/00/0": 0, "blobs/00/~1": 1, "blobs/01/2": 2, "blobs.json": 3, "blob/4": 4}
    for name, size in sizes.items():
        put(backend, name, some_bytes(size))
    for prefix in ("", "blobs/", "blobs/00/", "blob/", "blobs/02/", "b/"):
        below = {name: size for name, size in sizes.items() if name.startswith(prefix)}
        _expect_listing(backend, prefix, below)
    backend.remove("blobs/00/0")
    _expect_listing(backend, "blobs/00/", {"blobs/00/~1": 1})


@_check
def list_goes_on_after_a_page(backend: Backend) -> None:
    """`list` yields all names, also where a server gives them in pages."""
    _expect_listing(backend, "hints/", {})
    names = [f"hints/{i % 7}/{i}" for i in range(_MORE_THAN_A_PAGE)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: backend.write(name, io.BytesIO(b"1")), names))
    found = [entry.name for entry in backend.list("hints/")]
    expect(sorted(found) == sorted(names), f"{len(names)} names", f"{len(found)} names")
    expect(not backend.remote or found == sorted(found), "names in order", found[:9])


@_check
def list_folders_yields_each_folder_once(backend: Backend) -> None:
    """`list_folders` yields the next components that have names below them, each once."""
    for name in ("trash/1/a", "trash/1/b/c", "trash/2/a", "trash/started", "blobs/0/1"):
        put(backend, name, b"")
    expected = {"": ["blobs", "trash"], "trash/": ["1", "2"], "trash/1/": ["b"], "refs/": []}
    for prefix, right in expected.items():
        found = sorted(backend.list_folders(prefix))
        expect(found == right, f"{right} below {prefix!r}", found)
    backend.remove("trash/2/a")
    found = sorted(backend.list_folders("trash/"))
    expect(found == ["1"], "no folder that has become empty", found)


@_check
def move_gives_another_name(backend: Backend) -> None:
    """`move` takes the whole body to its new name, also over a body that was there."""
    for name in (_NAME, f"{_NAME}2"):
        put(backend, name, name.encode())
        backend.move(name, _OTHER_NAME)
        expect_body(backend, _OTHER_NAME, name.encode())
        expect_gone(backend, name)
        expect(backend.stat(name) is None, "None for the old name", backend.stat(name))


@_check
def move_onto_itself_loses_nothing(backend: Backend) -> None:
    """`move` of a name to the same name leaves its body there."""
    put(backend, _NAME, b"here")
    backend.move(_NAME, _NAME)
    expect_body(backend, _NAME, b"here")


@_check
def a_missing_name_cannot_be_moved(backend: Backend) -> None:
    """`move` raises `ArtifactNotFound`, and leaves the target alone."""
    put(backend, _OTHER_NAME, b"target")
    expect_missing(lambda: backend.move(_NAME, _OTHER_NAME))
    expect_body(backend, _OTHER_NAME, b"target")
