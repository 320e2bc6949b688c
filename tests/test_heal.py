"""Whatever becomes of a cache, the store over it delivers the right bytes, says it once, and heals.

Each fault is a real one: files and databases are altered behind the cache's back, a disk is full.
That a read is a hit again is proved by taking the store's folder away.
"""

from __future__ import annotations

import contextlib
import io
import logging
import random
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import pytest

from casartifacts import FileSystemArtifactStore
from casartifacts.cache import ArtifactCache
from casartifacts.store import ContentStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# One blob without a manifest, and a content of many chunks.
SIZES = {"small": 1_000, "large": 1_200_000}


class Place:
    """A store in a folder, with a cache that holds its one artifact."""

    def __init__(
        self, folder: Path, *, size: int, cache: Path | None = None, limit: int = 2**40
    ) -> None:
        self.body = random.Random(size).randbytes(size)
        self.folder = folder
        self.cached = cache or folder / "cache"
        self.limit = limit
        self.backend = FileSystemArtifactStore(folder / "store", durable=False)
        self._begin()
        self.artifact_id = self.store.add(io.BytesIO(self.body))

    def begin_anew(self) -> None:
        """Go on as a process that has just been started."""
        self.cache.close()
        self._begin()

    def _begin(self) -> None:
        self.cache = ArtifactCache(self.cached, size_limit=self.limit)
        self.store = ContentStore(self.backend, cache=self.cache)

    @property
    def kept(self) -> Path:
        (path,) = self.cached.glob("contents/*/*")
        return path

    def read(self, way: str) -> bytes:
        if way == "open_reader":
            with contextlib.closing(self.store.open_reader(self.artifact_id)) as reader:
                return reader.read()
        target = self.folder / "target"
        self.store.download(self.artifact_id, target, overwrite=True)
        return target.read_bytes()

    @contextlib.contextmanager
    def without_store(self) -> Iterator[None]:
        """Take the origin away: what is read now comes from the cache."""
        away = (self.folder / "store").rename(self.folder / "away")
        try:
            yield
        finally:
            away.rename(self.folder / "store")


# The faults


def flip_a_bit(place: Place) -> None:
    old = bytearray(place.body)
    old[len(old) // 2] ^= 1
    write_over(place, old)


def cut(place: Place) -> None:
    write_over(place, place.body[:-1])


def be_foreign(place: Place) -> None:
    write_over(place, b"nothing that anybody stored")


def write_over(place: Place, body: bytes | bytearray) -> None:
    place.kept.chmod(0o600)
    place.kept.write_bytes(body)


def be_replaced(place: Place) -> None:
    """Another file under its name, which was never written to in its place."""
    other = place.folder / "other"
    other.write_bytes(bytes(len(place.body)))
    other.rename(place.kept)


def delete_the_file(place: Place) -> None:
    place.kept.unlink()


def delete_the_database(place: Place) -> None:
    for path in place.cached.glob("cache.db*"):
        path.unlink()


def spoil_the_database(place: Place) -> None:
    for path in place.cached.glob("cache.db*"):
        path.write_bytes(b"no database, but long enough to be taken for one" * 1000)


def delete_the_folder(place: Place) -> None:
    shutil.rmtree(place.cached)


def delete_all_but_the_database(place: Place) -> None:
    for path in place.cached.iterdir():
        if path.is_dir():
            shutil.rmtree(path)


def flip_a_bit_where_nothing_can_be_put_aside(place: Place) -> None:
    flip_a_bit(place)
    shutil.rmtree(place.cached / "damaged")


def delete_the_file_and_the_workshop(place: Place) -> None:
    place.kept.unlink()
    shutil.rmtree(place.cached / "tmp")


@dataclass(frozen=True)
class Fault:
    """What is done, and what then lies in `damaged/` and is said, where the cache looks at all.

    Attributes:
        is_seen: Whether a process sees it that found the content right before.
    """

    act: Callable[[Place], None]
    aside: str = ""
    says: int = 0
    is_seen: bool = True


FAULTS = {
    "a bit flip": Fault(flip_a_bit, aside="content", says=1),
    "a truncated file": Fault(cut, aside="content", says=1),
    "foreign bytes": Fault(be_foreign, aside="content", says=1),
    "another file": Fault(be_replaced, aside="content", says=1),
    "a deleted file": Fault(delete_the_file, says=1),
    "a deleted database": Fault(delete_the_database, is_seen=False),
    "a corrupt database": Fault(spoil_the_database, aside="table", says=1, is_seen=False),
    "a deleted folder": Fault(delete_the_folder),
    "all deleted but the database": Fault(delete_all_but_the_database, says=1),
    "a bit flip, no damaged/": Fault(
        flip_a_bit_where_nothing_can_be_put_aside, aside="if it was made again", says=1
    ),
    "a deleted file, no tmp/": Fault(delete_the_file_and_the_workshop, says=1),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
@pytest.mark.parametrize("way", ["download", "open_reader"])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("is_new", [False, True], ids=["in use", "new process"])
def test_a_fault_costs_a_fetch_at_most(  # noqa: PLR0917 -- pytest gives them by name
    tmp_path: Path,
    fault: Fault,
    way: str,
    size: int,
    is_new: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Right bytes, one line in the log, what was wrong is put aside, and the next read is a hit."""
    place = Place(tmp_path, size=size)
    place.read("open_reader")
    if is_new:
        place.cache.close()
        place.begin_anew()
    else:
        with place.without_store():
            assert place.read(way) == place.body
    fault.act(place)
    is_seen = fault.is_seen or is_new
    assert place.read(way) == place.body
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * (
        fault.says * is_seen
    )
    put_aside = [path.name for path in place.cached.glob("damaged/*")]
    if fault.aside == "content":
        assert [name[:64] for name in put_aside] == [place.artifact_id[:64]]
    elif fault.aside == "if it was made again":
        assert len(put_aside) == is_new
    else:
        assert bool(put_aside) == (fault.aside == "table" and is_seen)
    assert len(list(place.cached.glob("contents/*/*"))) == 1
    with place.without_store():
        assert place.read(way) == place.body
        place.cache.close()
        place.begin_anew()
        assert place.read(way) == place.body
    if is_seen:
        assert len(caplog.records) == fault.says


def test_what_goes_wrong_again_and_again_is_kept_four_times(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The newest four; each is said, and healed."""
    place = Place(tmp_path, size=1_000)
    place.read("download")
    for number in range(7):
        write_over(place, b"%d" % number)
        assert place.read("download") == place.body
    kept = sorted(path.read_bytes() for path in place.cached.glob("damaged/*"))
    assert kept == [b"3", b"4", b"5", b"6"]
    assert len(caplog.records) == place.cache.counters.heals == 7


@pytest.mark.parametrize("way", ["download", "open_reader"])
@pytest.mark.parametrize("is_new", [False, True], ids=["in use", "new process"])
@pytest.mark.parametrize("is_wrong", [False, True], ids=["right", "wrong"])
def test_a_read_only_database_heals_nothing_and_delivers_all(
    without_privileges: Path,
    way: str,
    is_new: bool,
    is_wrong: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is gone around, with one line however often it is read."""
    place = Place(without_privileges, size=1_200_000)
    place.read(way)
    place.cache.close()
    if is_new:
        place.begin_anew()
    if is_wrong:
        flip_a_bit(place)
    for path in place.cached.glob("cache.db*"):
        path.chmod(0o400)
    for _ in range(3):
        assert place.read(way) == place.body
    assert len(caplog.records) <= 1
    assert caplog.records or not (is_new or is_wrong)


class Filling(FileSystemArtifactStore):
    """A store that fills another disk in the middle of a fetch, as a neighbour may."""

    filler: Path | None = None

    def _fill(self) -> None:
        if self.filler is not None:
            filler, self.filler = self.filler, None
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(2**12))

    def open_reader(self, artifact_id: str) -> BinaryIO:
        reader = super().open_reader(artifact_id)
        if artifact_id.startswith("blobs/"):
            self._fill()
        return reader

    def open_range(self, name: str, start: int, length: int) -> BinaryIO:
        self._fill()
        return super().open_range(name, start, length)


@pytest.mark.parametrize("way", ["download", "open_reader"])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
def test_a_disk_that_fills_up_during_a_fetch_costs_no_read(
    tmp_path: Path, small_disk: Path, way: str, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Said once, nothing half-made is left, and when there is room it is kept again."""
    place = Place(tmp_path, size=size, cache=small_disk / "cache")
    place.backend = Filling(tmp_path / "store", durable=False)
    place.begin_anew()
    assert place.cache.volume() == 0  # which makes the folder
    place.backend.filler = small_disk / "filler"
    assert place.read(way) == place.body
    assert place.backend.filler is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert not list(place.cached.glob("tmp/*"))
    assert not list(place.cached.glob("contents/*/*"))
    assert place.read(way) == place.body
    assert len(caplog.records) == 1
    (small_disk / "filler").unlink()
    place.cache.close()
    place.begin_anew()
    assert place.read(way) == place.body
    with place.without_store():
        assert place.read(way) == place.body
    assert len(caplog.records) == 1
    place.cache.close()
