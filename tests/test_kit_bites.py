"""Every check of the conformance kit has been seen to fail on a place broken in its way."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import secrets
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casartifacts import errors
from casartifacts.backends.memory import MemoryArtifactStore
from casartifacts.protocols import Backend, Entry
from casartifacts.testing import (
    Body,
    Check,
    ContractBroken,
    Fault,
    FaultNeverHit,
    Kind,
    OnlyRead,
    Plan,
    Stream,
    checks,
)
from casartifacts.testing.expect import read_range

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class Folder:
    """A backend in thirty lines: it passes, and each class below breaks one thing in it."""

    durable: bool = False
    remote: bool = False

    def __init__(self, path: Path) -> None:
        self.path = path

    def at(self, name: str) -> Path:
        return self.path / name.replace("/", "=")

    @contextlib.contextmanager
    def written(self, body: BinaryIO) -> Iterator[Path]:
        tmp = self.path.parent / secrets.token_hex(8)
        try:
            with tmp.open("wb") as file:
                while piece := body.read(65_536):
                    file.write(piece)
            yield tmp
        finally:
            tmp.unlink(missing_ok=True)

    def open_reader(self, artifact_id: str) -> BinaryIO:
        try:
            return self.at(artifact_id).open("rb")
        except FileNotFoundError as error:
            raise errors.not_found(artifact_id, self) from error

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        with self.written(content_body) as tmp:
            tmp.replace(self.at(artifact_id))

    def write_if_absent(self, name: str, content_body: BinaryIO) -> bool:
        with self.written(content_body) as tmp, contextlib.suppress(FileExistsError):
            self.at(name).hardlink_to(tmp)
            return True
        return False

    def remove(self, artifact_id: str) -> None:
        self.open_reader(artifact_id).close()
        self.at(artifact_id).unlink()

    def stat(self, name: str) -> Entry | None:
        return next((entry for entry in self.list("") if entry.name == name), None)

    def open_range(self, name: str, start: int, length: int) -> BinaryIO:
        reader = self.open_reader(name)
        reader.seek(start)
        return reader

    def list(self, prefix: str) -> Iterator[Entry]:
        for path in self.path.iterdir():
            if (name := path.name.replace("=", "/")).startswith(prefix):
                yield Entry(name, path.stat().st_size, path.stat().st_mtime)

    def list_folders(self, prefix: str) -> Iterator[str]:
        below = (entry.name.removeprefix(prefix).split("/") for entry in self.list(prefix))
        yield from {parts[0] for parts in below if len(parts) > 1}

    def move(self, source: str, target: str) -> None:
        self.open_reader(source).close()
        self.at(source).replace(self.at(target))


# The table: which class breaks what which check looks for, and what the check meets.
BROKEN: list[tuple[str, type[Folder], type[BaseException]]] = []


def breaks(
    *names: str, meets: type[BaseException] = ContractBroken
) -> Callable[[type[Folder]], type[Folder]]:
    def enter(place: type[Folder]) -> type[Folder]:
        BROKEN.extend((name, place, meets) for name in names)
        return place

    return enter


def size_claimed_by(body: BinaryIO) -> int:
    position = body.tell()
    size = body.seek(0, os.SEEK_END) - position
    body.seek(position)
    return size


@breaks("bodies_of_every_size_come_back_whole")
class KeepsNothingEmpty(Folder):
    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        if content := content_body.read():
            super().write(artifact_id, io.BytesIO(content))


@breaks("a_large_body_comes_back_whole")
class LosesTheSecondPart(Folder):
    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        super().write(artifact_id, io.BytesIO(content_body.read()[: 8 * 2**20]))


@breaks("an_overwrite_replaces_the_whole_body")
class LeavesTheTailOfALongerBody(Folder):
    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        content, path = content_body.read(), self.at(artifact_id)
        old = path.read_bytes() if path.exists() else b""
        super().write(artifact_id, io.BytesIO(content + old[len(content) :]))


@breaks("ids_are_kept_apart")
class MergesIds(Folder):
    def at(self, name: str) -> Path:
        return super().at(name.replace("_", "-"))


@breaks("an_id_behind_a_folder_is_kept")
class ForgetsTheFolderOfAnId(Folder):
    def at(self, name: str) -> Path:
        return super().at(name.removeprefix("optuna/"))


@breaks(
    "nobody_sees_a_body_before_it_is_whole",
    "a_body_that_fails_at_once_publishes_nothing",
    "a_reader_never_mixes_two_bodies",
    "threads_that_share_a_name_see_whole_bodies",
)
class WritesInPlace(Folder):
    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        with self.at(artifact_id).open("wb") as file:
            while piece := content_body.read(65_536):
                file.write(piece)
                time.sleep(0.0001)


@breaks("nobody_sees_a_body_before_it_is_whole")
class KeepsReadersWaiting(Folder):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.lock = threading.Lock()

    def open_reader(self, artifact_id: str) -> BinaryIO:
        with self.lock:
            return super().open_reader(artifact_id)

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        with self.lock:
            super().write(artifact_id, content_body)


class PublishesWhatCame(Folder):
    """Takes an error for the end, if it comes as late as `enough` bytes."""

    enough = 1

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        pieces = []
        try:
            while piece := content_body.read(65_536):
                pieces.append(piece)
        except BaseException as error:
            if sum(map(len, pieces)) >= self.enough or isinstance(error, KeyboardInterrupt):
                super().write(artifact_id, io.BytesIO(b"".join(pieces)))
            raise
        super().write(artifact_id, io.BytesIO(b"".join(pieces)))


BROKEN.append(("a_body_that_fails_midway_publishes_nothing", PublishesWhatCame, ContractBroken))


@breaks("a_body_that_fails_on_its_last_piece_publishes_nothing")
class ContentWithAlmostAll(PublishesWhatCame):
    enough = 199_000


@breaks("an_interrupted_write_publishes_nothing")
class PublishesWhenInterrupted(PublishesWhatCame):
    enough = 10**9


@breaks("a_body_that_fails_midway_publishes_nothing")
class HidesTheErrorOfTheBody(Folder):
    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        try:
            super().write(artifact_id, content_body)
        except ValueError as error:
            raise OSError("the upload failed") from error


@breaks(
    "a_body_that_fails_instead_of_its_end_publishes_nothing",
    "a_body_longer_than_it_claims_arrives_whole",
)
class ReadsNoFurtherThanClaimed(Folder):
    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        content = content_body.read(size_claimed_by(content_body))
        super().write(artifact_id, io.BytesIO(content))


@breaks("a_body_shorter_than_it_claims_arrives_whole")
class PadsToTheClaim(Folder):
    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        size = size_claimed_by(content_body) if content_body.seekable() else 0
        super().write(artifact_id, io.BytesIO(content_body.read().ljust(size, b"\0")))


@breaks("the_same_bytes_may_be_written_again", meets=FileExistsError)
class WritesOnce(Folder):
    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        with self.at(artifact_id).open("xb") as file:
            file.write(content_body.read())


@breaks("missing_is_loud_at_open")
class IsMissingOnlyWhenRead(Folder):
    def open_reader(self, artifact_id: str) -> BinaryIO:
        if self.at(artifact_id).exists():
            return super().open_reader(artifact_id)
        return Stream(b"", fails_at=0, failure=lambda: errors.not_found(artifact_id, self))


@breaks("missing_is_loud_at_open")
class DoesNotSayWhatIsMissing(Folder):
    def open_reader(self, artifact_id: str) -> BinaryIO:
        try:
            return super().open_reader(artifact_id)
        except errors.ArtifactNotFound:
            raise errors.ArtifactNotFound("not found") from None


@breaks("removed_is_gone")
class OnlySaysRemoved(Folder):
    def remove(self, artifact_id: str) -> None:
        self.open_reader(artifact_id).close()


@breaks("removed_is_gone")
class RemovesAll(Folder):
    def remove(self, artifact_id: str) -> None:
        super().remove(artifact_id)
        for path in self.path.iterdir():
            path.unlink()


@breaks("what_is_missing_cannot_be_removed")
class RemovesNothingInSilence(Folder):
    def remove(self, artifact_id: str) -> None:
        self.at(artifact_id).unlink(missing_ok=True)


class Pauses(io.BytesIO):
    turns = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.turns += 1
        return b"" if self.turns == 3 else super().read(size)


@breaks("readers_go_forward_to_the_only_end")
class GivesNothingInBetween(Folder):
    def open_reader(self, artifact_id: str) -> BinaryIO:
        with super().open_reader(artifact_id) as reader:
            return Pauses(reader.read())


class Overflows(io.BytesIO):
    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(size + 1 if size and size > 1 else size)


@breaks("readers_go_forward_to_the_only_end")
class GivesMoreThanAskedFor(Folder):
    def open_reader(self, artifact_id: str) -> BinaryIO:
        with super().open_reader(artifact_id) as reader:
            return Overflows(reader.read())


@breaks("the_body_is_left_open")
class ClosesTheBody(Folder):
    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        with content_body:
            super().write(artifact_id, content_body)


@breaks("the_body_is_left_open")
class ClosesTheBodyInSilence(Folder):
    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        super().write(artifact_id, content_body)
        with contextlib.suppress(ContractBroken):
            content_body.close()


@breaks("a_body_is_read_from_where_it_stands")
class RewindsTheBody(Folder):
    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        if content_body.seekable():
            content_body.seek(0)
        super().write(artifact_id, content_body)


@breaks("a_dribbling_body_arrives_whole")
class TakesAShortReadForTheEnd(Folder):
    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        pieces = [content_body.read(65_536)]
        while len(pieces[-1]) == 65_536:
            pieces.append(content_body.read(65_536))
        super().write(artifact_id, io.BytesIO(b"".join(pieces)))


@breaks("a_body_that_cannot_seek_arrives_whole", meets=io.UnsupportedOperation)
class AsksWhereTheBodyStands(Folder):
    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        content_body.tell()
        super().write(artifact_id, content_body)


@breaks("a_body_with_nothing_but_read_arrives_whole", meets=AttributeError)
class AsksWhetherTheBodyCanSeek(Folder):
    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        content_body.seekable()
        super().write(artifact_id, content_body)


@breaks("a_pickled_store_is_the_same_place")
class MovesWhenPickled(Folder):
    def __reduce__(self) -> tuple[object, ...]:
        (self.path / "copy").mkdir()
        return type(self), (self.path / "copy",)


@breaks("a_pickled_store_is_the_same_place", meets=TypeError)
class CannotBePickled(Folder):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.lock = threading.Lock()


@breaks("a_spawned_process_reads_and_writes")
class BelongsToItsProcess(Folder):
    at_home: dict[str, bytes] = {}  # noqa: RUF012 -- shared by all copies in this process

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        self.at_home[artifact_id] = content_body.read()

    def open_reader(self, artifact_id: str) -> BinaryIO:
        return io.BytesIO(self.at_home[artifact_id])


@breaks("a_forked_process_reads_and_writes")
class HoldsALockWhileItReads(Folder):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.lock = threading.Lock()

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        with self.lock:
            super().write(artifact_id, content_body)


@breaks("a_forked_process_reads_and_writes")
class DiesInAChild(Folder):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.process = os.getpid()

    def open_reader(self, artifact_id: str) -> BinaryIO:
        if os.getpid() != self.process:
            os._exit(3)
        return super().open_reader(artifact_id)


@breaks("threads_with_names_of_their_own_do_not_meet", meets=Exception)
class RemembersOneName(Folder):
    name = ""

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        self.name = artifact_id
        time.sleep(0.001)
        super().write(self.name, content_body)


@breaks("it_has_every_ability")
class DoesNotSayWhetherDurable(Folder):
    durable = None  # type: ignore[assignment]


@breaks("it_has_every_ability")
class LacksAMethod(Folder):
    list_folders = None  # type: ignore[assignment]


@breaks("stat_tells_the_size")
class RemembersTheFirstSize(Folder):
    first: Entry | None = None

    def stat(self, name: str) -> Entry | None:
        self.first = self.first or super().stat(name)
        return self.first


@breaks("stat_tells_the_size")
class HasASizeForWhatIsMissing(Folder):
    def stat(self, name: str) -> Entry | None:
        return super().stat(name) or Entry(name, 0, 0.0)


@breaks("stat_tells_when_it_was_written")
class TellsTheTimeSinceTheStart(Folder):
    def list(self, prefix: str) -> Iterator[Entry]:
        for entry in super().list(prefix):
            yield Entry(entry.name, entry.size, time.monotonic())


@breaks("stat_tells_when_it_was_written")
class ListsAnotherTime(Folder):
    def list(self, prefix: str) -> Iterator[Entry]:
        for entry in super().list(prefix):
            yield Entry(entry.name, entry.size, time.time())


@breaks("ranges_are_exact")
class EndsTheRangeWhereItIsLong(Folder):
    def open_range(self, name: str, start: int, length: int) -> BinaryIO:
        with super().open_range(name, start, length) as reader:
            return io.BytesIO(reader.read(max(length - start, 0)))


@breaks("ranges_are_exact")
class BeginsTheRangeAtTheBeginning(Folder):
    def open_range(self, name: str, start: int, length: int) -> BinaryIO:
        return super().open_range(name, 0, length)


@breaks("ranges_are_exact", meets=EOFError)
class RefusesRangesBeyondTheEnd(Folder):
    def open_range(self, name: str, start: int, length: int) -> BinaryIO:
        with self.open_reader(name) as reader:
            if start >= len(reader.read()):
                raise EOFError("416: range not satisfiable")
        return super().open_range(name, start, length)


@breaks("a_range_of_what_is_missing_is_loud")
class ReadsNothingFromWhatIsMissing(Folder):
    def open_range(self, name: str, start: int, length: int) -> BinaryIO:
        with contextlib.suppress(errors.ArtifactNotFound):
            return super().open_range(name, start, length)
        return io.BytesIO()


@breaks("write_if_absent_writes_what_is_absent", "write_if_absent_of_the_same_bytes_keeps_them")
class OnlySaysWrittenIfAbsent(Folder):
    def write_if_absent(self, name: str, content_body: BinaryIO) -> bool:
        return True


@breaks("write_if_absent_takes_a_body_with_nothing_but_read", meets=AttributeError)
class AsksWhereTheBodyToKeepStands(Folder):
    def write_if_absent(self, name: str, content_body: BinaryIO) -> bool:
        content_body.tell()
        return super().write_if_absent(name, content_body)


@breaks("write_if_absent_writes_what_is_absent")
class DoesNotSayWhetherWritten(Folder):
    def write_if_absent(self, name: str, content_body: BinaryIO) -> bool:
        super().write_if_absent(name, content_body)
        return None  # type: ignore[return-value]


@breaks(
    "write_if_absent_leaves_what_is_there",
    "write_if_absent_has_one_winner",
)
class OverwritesWhatIsThere(Folder):
    def write_if_absent(self, name: str, content_body: BinaryIO) -> bool:
        self.write(name, content_body)
        return True


@breaks("write_if_absent_has_one_winner")
class AsksFirst(Folder):
    def write_if_absent(self, name: str, content_body: BinaryIO) -> bool:
        if self.stat(name):
            return False
        self.write(name, content_body)
        return True


@breaks("write_if_absent_publishes_nothing_of_a_failing_body")
class TakesTheNameBeforeTheBody(Folder):
    def write_if_absent(self, name: str, content_body: BinaryIO) -> bool:
        with contextlib.suppress(FileExistsError), self.at(name).open("xb") as file:
            while piece := content_body.read(65_536):
                file.write(piece)
            return True
        return False


@breaks("a_failed_write_leaves_no_name")
class LeavesItsTemporaryFile(Folder):
    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        tmp = self.path / f"{artifact_id.replace('/', '=')}.tmp"
        with tmp.open("wb") as file:
            while piece := content_body.read(65_536):
                file.write(piece)
        tmp.replace(self.at(artifact_id))


@breaks("list_yields_what_is_below_a_prefix")
class ListsWhatBeginsAlike(Folder):
    def list(self, prefix: str) -> Iterator[Entry]:
        return super().list(prefix.rstrip("/"))


@breaks("list_goes_on_after_a_page")
class ListsOnePage(Folder):
    def list(self, prefix: str) -> Iterator[Entry]:
        return itertools.islice(super().list(prefix), 1000)


@breaks("list_folders_yields_each_folder_once")
class NamesAFolderPerName(Folder):
    def list_folders(self, prefix: str) -> Iterator[str]:
        below = (entry.name.removeprefix(prefix).split("/") for entry in self.list(prefix))
        yield from (parts[0] for parts in below if len(parts) > 1)


@breaks("list_folders_yields_each_folder_once")
class NamesWhatIsNoFolder(Folder):
    def list_folders(self, prefix: str) -> Iterator[str]:
        yield from {entry.name.removeprefix(prefix).split("/")[0] for entry in self.list(prefix)}


@breaks("list_folders_yields_each_folder_once")
class RemembersFolders(Folder):
    def remove(self, artifact_id: str) -> None:
        super().remove(artifact_id)
        self.emptied = artifact_id.split("/")[-2]

    def list_folders(self, prefix: str) -> Iterator[str]:
        yield from super().list_folders(prefix)
        if emptied := getattr(self, "emptied", None):
            yield emptied


@breaks("move_gives_another_name")
class Copies(Folder):
    def move(self, source: str, target: str) -> None:
        with self.open_reader(source) as reader:
            self.write(target, reader)


@breaks("move_gives_another_name", meets=FileExistsError)
class MovesOverNothing(Folder):
    def move(self, source: str, target: str) -> None:
        self.open_reader(source).close()
        self.at(target).hardlink_to(self.at(source))
        self.at(source).unlink()


@breaks("move_onto_itself_loses_nothing")
class CopiesAndRemoves(Folder):
    def move(self, source: str, target: str) -> None:
        with self.open_reader(source) as reader:
            self.write(target, reader)
        self.remove(source)


@breaks("a_missing_name_cannot_be_moved")
class MakesRoomFirst(Folder):
    def move(self, source: str, target: str) -> None:
        self.at(target).unlink(missing_ok=True)
        super().move(source, target)


ALL = {str(check): check for check in checks(backend=True)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


@pytest.mark.parametrize("check", ALL.values(), ids=str)
def test_a_backend_in_thirty_lines_keeps_the_contracts(check: Check, folder: Path) -> None:
    check(Folder(folder))


@pytest.mark.parametrize(
    ("name", "place", "meets"),
    BROKEN,
    ids=[f"{place.__name__}-{name}" for name, place, _ in BROKEN],
)
def test_each_check_fails_on_a_place_that_is_broken_in_its_way(
    name: str,
    place: type[Folder],
    meets: type[BaseException],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("casartifacts.testing.expect.PATIENCE", 1.0)
    with pytest.raises(ContractBroken, match=name) as caught:
        ALL[name](place(folder))
    assert isinstance(caught.value.__cause__, meets)


def test_no_check_is_missing_from_the_table() -> None:
    assert {name for name, _, _ in BROKEN} == set(ALL)


def test_every_check_says_what_it_promises_in_one_sentence() -> None:
    for check in ALL.values():
        sentence = check.run.__doc__ or ""
        assert sentence.endswith("."), check
        assert "\n" not in sentence, check


class ThreeMethods:
    def __init__(self, path: Path) -> None:
        self.path = path

    def open_reader(self, artifact_id: str) -> BinaryIO:
        return Folder(self.path).open_reader(artifact_id)

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        Folder(self.path).write(artifact_id, content_body)

    def remove(self, artifact_id: str) -> None:
        Folder(self.path).remove(artifact_id)


@pytest.mark.parametrize("check", checks(backend=False), ids=str)
def test_a_store_with_three_methods_gets_only_the_checks_of_three_methods(
    check: Check, folder: Path
) -> None:
    check(ThreeMethods(folder))


def test_a_declared_deviation_passes_only_while_it_is_true(folder: Path) -> None:
    name = "the_body_is_left_open"
    (declared,) = (
        check for check in checks(backend=True, deviations={name: "why"}) if str(check) == name
    )
    declared(ClosesTheBody(folder))
    with pytest.raises(ContractBroken, match=r"declared as a deviation \(why\), but it passes"):
        declared(Folder(folder))


def test_a_race_that_is_declared_may_go_either_way(folder: Path) -> None:
    name = "threads_that_share_a_name_see_whole_bodies"
    (declared,) = (
        check for check in checks(backend=False, deviations={name: "why"}) if str(check) == name
    )
    for place in (WritesInPlace(folder), Folder(folder)):
        declared(place)


def test_a_deviation_from_no_check_is_refused() -> None:
    with pytest.raises(ValueError, match="no_such_check"):
        checks(backend=True, deviations={"no_such_check": "why"})


def test_using_the_kit_loads_no_test_framework() -> None:
    code = "import casartifacts.testing, sys; print({'pytest', 'hypothesis'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# What stands above a backend is tested with places that go wrong as planned.

HERE, THERE = b"what is here", b"something else is there"


@pytest.fixture
def memory() -> MemoryArtifactStore:
    place = MemoryArtifactStore()
    place.write("a/here", io.BytesIO(HERE))
    place.write("a/there", io.BytesIO(THERE))
    return place


def read(place: Backend, name: str) -> bytes:
    with place.open_reader(name) as reader:
        return reader.read()


def everything_in(place: Backend) -> dict[str, bytes]:
    return {entry.name: read(place, entry.name) for entry in place.list("")}


CALLS: dict[str, Callable[[Backend], object]] = {
    "open_reader": lambda place: read(place, "a/here"),
    "open_range": lambda place: read_range(place, "a/here", 0, 100),
    "write": lambda place: place.write("new", io.BytesIO(b"new")),
    "write_if_absent": lambda place: place.write_if_absent("new", io.BytesIO(b"new")),
    "remove": lambda place: place.remove("a/here"),
    "move": lambda place: place.move("a/here", "new"),
    "stat": lambda place: place.stat("a/here"),
    "list": lambda place: [entry.name for entry in place.list("a/")],
    "list_folders": lambda place: list(place.list_folders("")),
}


@pytest.mark.parametrize("method", CALLS)
def test_a_place_fails_before_it_acts(method: str, memory: MemoryArtifactStore) -> None:
    before = everything_in(memory)
    with Plan(Fault("fail", on=method)) as plan, pytest.raises(ConnectionResetError):
        CALLS[method](plan.around(memory))
    assert everything_in(memory) == before


def test_a_place_fails_at_every_kth_call_and_so_often_as_planned(
    memory: MemoryArtifactStore,
) -> None:
    failed = []
    with Plan(Fault("fail", on="stat", names="a/", every=3, times=2)) as plan:
        place = plan.around(memory)
        for turn in range(1, 15):
            place.stat("elsewhere")
            try:
                place.stat("a/here")
            except ConnectionResetError:
                failed.append(turn)
    assert failed == [3, 6]


@pytest.mark.parametrize("method", ["write", "write_if_absent", "remove", "move"])
def test_a_place_loses_its_answer_after_it_acted(method: str, memory: MemoryArtifactStore) -> None:
    before = everything_in(memory)
    with Plan(Fault("lose the answer")) as plan, pytest.raises(ConnectionResetError):
        CALLS[method](plan.around(memory))
    assert everything_in(memory) != before


@pytest.mark.parametrize(("method", "answer"), [("write", None), ("write_if_absent", True)])
def test_a_place_says_written_and_has_nothing(
    method: str, answer: object, memory: MemoryArtifactStore
) -> None:
    before = everything_in(memory)
    with Plan(Fault("forget")) as plan:
        assert CALLS[method](plan.around(memory)) is answer
    assert everything_in(memory) == before


@pytest.mark.parametrize(
    ("kind", "here", "new"),
    [("lose the last byte", HERE[:-1], b"ne"), ("flip a bit", b"what i\x72 here", b"ndw")],
)
def test_a_place_bends_what_is_read_and_what_is_written(
    kind: Kind, here: bytes, new: bytes, memory: MemoryArtifactStore
) -> None:
    for method in ("open_reader", "open_range"):
        with Plan(Fault(kind, on=method, names="a/h")) as plan:
            assert CALLS[method](plan.around(memory)) == here
    for method in ("write", "write_if_absent"):
        with Plan(Fault(kind, on=method)) as plan:
            CALLS[method](plan.around(memory))
        assert read(memory, "new") == new
        memory.remove("new")


@pytest.mark.parametrize("method", ["open_reader", "open_range"])
def test_a_place_answers_with_the_bytes_of_another_name(
    method: str, memory: MemoryArtifactStore
) -> None:
    with Plan(Fault("another name", other="a/there")) as plan:
        assert CALLS[method](plan.around(memory)) == THERE


def test_a_reader_dies_midway(memory: MemoryArtifactStore) -> None:
    with Plan(Fault("die midway", on="open_reader")) as plan:
        reader = plan.around(memory).open_reader("a/here")
        assert reader.read(100) == HERE[:6]
        with pytest.raises(ConnectionResetError):
            reader.read(1)


def test_a_listing_dies_midway(memory: MemoryArtifactStore) -> None:
    with Plan(Fault("die midway", on="list")) as plan:
        entries = plan.around(memory).list("a/")
        assert next(entries).name == "a/here"
        with pytest.raises(ConnectionResetError):
            next(entries)


def test_short_reads_give_all_in_the_end(memory: MemoryArtifactStore) -> None:
    with Plan(Fault("short reads")) as plan, plan.around(memory).open_reader("a/here") as reader:
        pieces = [*iter(lambda: reader.read(100), b"")]
    assert len(pieces) >= 6
    assert b"".join(pieces) == HERE


def test_a_planned_fault_that_was_never_hit_fails_the_test(memory: MemoryArtifactStore) -> None:
    plan = Plan(
        Fault("fail", on="remove"),
        Fault("flip a bit", names="b/"),
        Fault("short reads", every=2),
    )
    with pytest.raises(FaultNeverHit, match=r"remove.*'b/'.*short reads"), plan:
        read(plan.around(memory), "a/here")


@pytest.mark.parametrize(
    "fault",
    [
        Fault("flip a bit", on="write"),
        Fault("lose the last byte", on="write"),
        Fault("die midway", on="open_reader"),
    ],
    ids=str,
)
def test_a_fault_that_changed_nothing_was_not_hit(
    fault: Fault, memory: MemoryArtifactStore
) -> None:
    plan = Plan(fault)
    place = plan.around(memory)
    with pytest.raises(FaultNeverHit), plan:
        place.write("empty", io.BytesIO(b""))
    with pytest.raises(FaultNeverHit), plan:
        place.open_reader("a/here").close()


def test_an_error_of_the_test_is_not_hidden_by_a_fault_that_was_never_hit() -> None:
    with pytest.raises(KeyError), Plan(Fault("fail")):
        raise KeyError


def test_a_fault_that_cannot_strike_is_refused() -> None:
    with pytest.raises(ValueError, match="'forget' strikes one of"):
        Fault("forget", on="remove")
    with pytest.raises(ValueError, match="other="):
        Fault("another name")


def test_a_body_counts_who_closes_it() -> None:
    body = Body(b"12")
    with pytest.raises(ContractBroken, match="closed"):
        body.close()
    assert body.closings == 1
    assert body.read() == b"12"


@given(
    content=st.binary(max_size=200),
    start=st.integers(0, 200),
    most=st.none() | st.integers(1, 9),
    claims=st.none() | st.integers(0, 300),
    sizes=st.lists(st.integers(1, 50), min_size=1),
)
def test_a_stream_gives_all_from_where_it_stands_whatever_it_claims(
    content: bytes, start: int, most: int | None, claims: int | None, sizes: list[int]
) -> None:
    stream = Stream(content, start=start, most=most, claims=claims)
    here = stream.tell()
    assert stream.seek(0, io.SEEK_END) == (len(content) if claims is None else claims)
    stream.seek(here)
    found = b""
    for size in itertools.cycle(sizes):
        piece = stream.read(size)
        assert len(piece) <= min(size, most or size)
        found += piece
        if not piece:
            break
    assert found == content[start:]


@given(content=st.binary(max_size=100), fails_at=st.integers(0, 100))
def test_a_stream_that_fails_gives_what_lies_before(content: bytes, fails_at: int) -> None:
    fails_at = min(fails_at, len(content))
    stream = OnlyRead(Stream(content, fails_at=fails_at, seekable=False))
    found = b"".join(stream.read(7) for _ in range(0, fails_at, 7))
    assert found == content[:fails_at]
    with pytest.raises(OSError, match="planned"):
        stream.read(7)
