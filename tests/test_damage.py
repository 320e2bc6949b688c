"""Somebody writes to the cache's files while they are delivered: nobody gets a byte of that."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import pytest

from casartifacts import CorruptArtifact, FileSystemArtifactStore, files
from casartifacts.cache import ArtifactCache, trust
from casartifacts.cache import folder as places
from casartifacts.store import ContentStore

if TYPE_CHECKING:
    from collections.abc import Callable

BODY = random.Random(11).randbytes(3_000_000)


class Place:
    """A store with a cache, and one artifact in both."""

    def __init__(self, folder: Path, body: bytes = BODY) -> None:
        self.cache = ArtifactCache(folder / "cache", size_limit=2**30)
        self.store = ContentStore(
            FileSystemArtifactStore(folder / "store", durable=False), cache=self.cache
        )
        self.artifact_id = self.store.add(io.BytesIO(body))
        self.target = folder / "target"
        self.download()

    def download(self) -> bytes:
        self.store.download(self.artifact_id, self.target, overwrite=True)
        return self.target.read_bytes()

    def open(self) -> BinaryIO:
        return self.store.open_reader(self.artifact_id)

    @property
    def kept(self) -> Path:
        (path,) = self.cache.folder.glob("contents/*/*")
        return path


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def flip(path: Path) -> None:
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(bytes([BODY[-1] ^ 1]))


def cut(path: Path) -> None:
    path.chmod(0o600)
    os.truncate(path, len(BODY) - 1)


def grow(path: Path) -> None:
    path.chmod(0o600)
    with path.open("ab") as file:
        file.write(b"more")


CHANGES = [flip, cut, grow]


def readinto(reader: BinaryIO) -> bytes:
    buffer = bytearray(len(BODY))
    return bytes(buffer[: reader.readinto(buffer)])  # type: ignore[attr-defined]


WAYS: dict[str, Callable[[BinaryIO], bytes]] = {
    "read": lambda reader: reader.read(),
    "read some": lambda reader: reader.read(2**20),
    "readinto": readinto,
    "readline": lambda reader: reader.readline(),
    "iteration": lambda reader: next(iter(reader)),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("is_cold", [True, False], ids=["cold", "warm"])
def test_a_reader_gives_nothing_that_it_read_after_a_change(
    place: Place, change: Callable[[Path], None], way: Callable[[BinaryIO], bytes], is_cold: bool
) -> None:
    """Whichever way it is read, and whether it came in just now; the next one gets it all.

    What was read ahead before the change is right, and may be given.
    """
    if is_cold:
        place.cache.forget(place.artifact_id[:64])
    with place.open() as reader:
        given = bytearray(reader.read(1000))
        change(place.kept)
        with pytest.raises(CorruptArtifact, match="read the artifact again"):
            deque(map(given.extend, iter(lambda: way(reader), b"")))
    assert len(given) < len(BODY) / 2
    assert given == BODY[: len(given)]
    with place.open() as reader:
        assert reader.read() == BODY
    assert place.cache.counters.heals == 1


def test_what_changes_on_its_way_in_is_not_taken_in(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Between being verified and getting its place: then it goes around the cache."""
    place.cache.forget(place.artifact_id[:64])
    original = places.move_in

    def move_in(path: str, descriptor: int, *, to: str) -> trust.Watched:
        flip(Path(path))
        return original(path, descriptor, to=to)

    monkeypatch.setattr(places, "move_in", move_in)
    assert place.download() == BODY
    assert "changed a content on its way in" in caplog.text
    assert not [*place.cache.folder.glob("contents/*/*"), *place.cache.folder.glob("tmp/*")]
    assert place.cache.volume() == 0
    monkeypatch.undo()
    assert place.download() == BODY
    assert place.cache.volume() == len(BODY)


def test_a_reader_does_not_mind_links_evictions_and_others_who_verify(
    place: Place, tmp_path: Path
) -> None:
    """None of these changes a byte."""
    with place.open() as reader:
        (link := tmp_path / "link").hardlink_to(place.kept)
        assert reader.read(1000) == BODY[:1000]
        assert ArtifactCache(place.cache.folder).verify().contents == 1
        assert reader.read(1000) == BODY[1000:2000]
        link.unlink()
        place.cache.clean(everything=True)
        assert reader.read() == BODY[2000:]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("times", [1, 99])
@pytest.mark.parametrize("way", ["ranges of files", "reads"])
def test_a_download_is_right_whenever_the_file_changes(  # noqa: PLR0917 -- pytest hands them in
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], None],
    when: str,
    times: int,
    way: str,
) -> None:
    """Once: then the content comes in anew. Always: then it goes around the cache."""
    original = files.write if way == "reads" else os.copy_file_range
    if way == "reads":
        monkeypatch.delattr(os, "copy_file_range")
    changed = 0

    def act(*given: object) -> int:
        nonlocal changed
        is_now = changed < times and any(place.cache.folder.glob("contents/*/*"))
        changed += is_now
        if is_now and when == "before":
            change(place.kept)
        count = original(*given)  # type: ignore[arg-type]
        if is_now and when == "after":
            change(place.kept)
        return count

    if way == "reads":
        monkeypatch.setattr(files, "write", act)
    else:
        monkeypatch.setattr(os, "copy_file_range", act)
    assert place.download() == BODY
    assert changed >= min(times, 2)
    assert {path.name for path in place.target.parent.iterdir()} == {"cache", "store", "target"}
    monkeypatch.undo()
    assert place.download() == BODY


# Flips a bit in a file of the cache, again and again, until it is killed.
PROGRAM = """
import contextlib, os, pathlib, random, sys, time
chance = random.Random(int(sys.argv[2]))
print(flush=True)
while True:
    for path in pathlib.Path(sys.argv[1]).glob("contents/*/*"):
        with contextlib.suppress(FileNotFoundError):
            path.chmod(0o600)
            with path.open("r+b") as file:
                at = chance.randrange(max(os.fstat(file.fileno()).st_size, 1))
                (byte,) = os.pread(file.fileno(), 1, at)
                os.pwrite(file.fileno(), bytes([byte ^ 1 << chance.randrange(8)]), at)
    time.sleep(chance.expovariate(200))
"""


@pytest.mark.parametrize("size", [1000, len(BODY)])
def test_no_wrong_byte_while_a_real_process_flips_bits(tmp_path: Path, size: int) -> None:
    """Of thousands of reads many meet a file that is being damaged."""
    body = BODY[:size]
    place = Place(tmp_path, body)
    damaging = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(place.cache.folder), "5"], stdout=subprocess.PIPE
    )
    noticed = whole = 0
    try:
        assert damaging.stdout is not None
        damaging.stdout.readline()
        began = time.monotonic()
        # On a starved machine it takes longer until each has happened a few times.
        while (took := time.monotonic() - began) < 4 or (
            took < 120 and not (place.cache.counters.heals > 10 < whole and noticed)
        ):
            assert place.download() == body
            for _ in range(5):
                try:
                    with place.open() as reader:
                        done = 0
                        while piece := reader.read(max(size // 16, 1)):
                            assert piece == body[done : done + len(piece)]
                            done += len(piece)
                        assert done == size
                        whole += 1
                except CorruptArtifact:
                    noticed += 1
    finally:
        damaging.kill()
        damaging.communicate()
    assert place.cache.counters.heals > 10
    assert whole > 10
    assert noticed > 0
