"""What only a folder can get wrong: paths, syncs, temporary files, answers lost on a network.

What every backend promises is checked by the conformance kit.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import stat
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from optuna.artifacts.exceptions import ArtifactNotFound

from casartifacts import ArtifactCache, open_store
from casartifacts.backends.filesystem import FileSystemArtifactStore
from casartifacts.backends.memory import MemoryArtifactStore
from casartifacts.testing import Body
from casartifacts.testing.expect import read_range

if TYPE_CHECKING:
    from collections.abc import Callable

    from casartifacts.protocols import Backend

    Act = Callable[[FileSystemArtifactStore, str], object]

_PARTS = st.sampled_from(["..", ".", "", "a", "tmp", "TMP", "\0", "C:", "outside", "\\", "é" * 200])
NAMES = st.one_of(st.text(), st.lists(_PARTS, max_size=6).map("/".join))


def read(place: FileSystemArtifactStore, name: str) -> bytes:
    with place.open_reader(name) as reader:
        return reader.read()


ACTS: dict[str, Act] = {
    "open_reader": read,
    "open_range": lambda place, name: read_range(place, name, 0, 9),
    "stat": lambda place, name: place.stat(name),
    "write": lambda place, name: place.write(name, io.BytesIO(b"written")),
    "write_if_absent": lambda place, name: place.write_if_absent(name, io.BytesIO(b"added")),
    "move": lambda place, name: place.move("inside", name),
    "move from": lambda place, name: place.move(name, "inside"),
    "list": lambda place, name: list(place.list(f"{name}/")),
    "list_folders": lambda place, name: list(place.list_folders(f"{name}/")),
    "remove": lambda place, name: place.remove(name),
}


def files_below(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@given(NAMES, st.lists(st.sampled_from(sorted(ACTS)), max_size=4))
@example("../outside", sorted(ACTS))
@example("a/../../outside", sorted(ACTS))
def test_no_name_leads_outside_the_folder_or_into_its_workshop(name: str, acts: list[str]) -> None:
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, "folder")
        place = FileSystemArtifactStore(folder, durable=False)
        place.write("inside", io.BytesIO(b"inside"))
        Path(parent, "outside").write_bytes(b"outside")
        for act in acts:
            # What is refused is a ValueError; what the disk cannot hold is an OSError.
            with contextlib.suppress(ValueError, OSError, ArtifactNotFound):
                assert ACTS[act](place, name) != b"outside"
            assert set(os.listdir(parent)) == {"folder", "outside"}  # noqa: PTH208 -- shorter
            assert Path(parent, "outside").read_bytes() == b"outside"
            assert not files_below(folder / "tmp")


@pytest.mark.parametrize("act", sorted(ACTS))
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/etc/passwd", "absolute"),
        ("a/../b", "'..'"),
        ("..", "'..'"),
        ("a\0b", "NUL"),
        ("tmp/x", "not published yet"),
        ("Tmp/x", "not published yet"),
        (".", "the folder of the store itself"),
    ],
)
def test_a_name_is_refused_with_its_reason(
    tmp_path: Path, act: str, name: str, reason: str
) -> None:
    place = FileSystemArtifactStore(tmp_path)
    place.write("inside", io.BytesIO(b"inside"))
    with pytest.raises(ValueError, match=r"^Invalid artifact_id: ") as caught:
        ACTS[act](place, name)
    assert reason in str(caught.value)
    assert files_below(tmp_path) == {"inside": b"inside"}


def test_an_empty_name_is_refused(tmp_path: Path) -> None:
    for act in ("open_reader", "write", "stat", "remove"):
        with pytest.raises(ValueError, match="not empty"):
            ACTS[act](FileSystemArtifactStore(tmp_path), "")


def test_a_name_too_long_for_a_file_is_missing(tmp_path: Path) -> None:
    place = FileSystemArtifactStore(tmp_path)
    for act in ("open_reader", "open_range", "remove"):
        with pytest.raises(ArtifactNotFound):
            ACTS[act](place, "x" * 300)
    assert place.stat("x" * 300) is None


def test_a_folder_is_no_artifact(tmp_path: Path) -> None:
    place = FileSystemArtifactStore(tmp_path)
    place.write("folder/x", io.BytesIO(b"x"))
    for name in ("folder", "folder/x/y"):
        assert place.stat(name) is None
        for act in ("open_reader", "open_range", "remove"):
            with pytest.raises(ArtifactNotFound, match=name):
                ACTS[act](place, name)
    assert read_range(place, "folder/x", 0, 9) == b"x"


@pytest.mark.parametrize("act", ["write", "write_if_absent"])
def test_a_failing_body_leaves_no_temporary_file(tmp_path: Path, act: str) -> None:
    place = FileSystemArtifactStore(tmp_path)
    with pytest.raises(OSError, match="planned"):
        getattr(place, act)("x", Body(bytes(3 * 2**20), fails_at=2**21))
    assert files_below(tmp_path) == {}


def test_files_can_be_read_by_whom_the_umask_allows(tmp_path: Path) -> None:
    umask = os.umask(0o027)
    try:
        FileSystemArtifactStore(tmp_path).write("a/x", io.BytesIO(b"x"))
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "a" / "x").stat().st_mode) == 0o640


def test_a_listing_passes_over_the_workshop_and_what_is_no_file(tmp_path: Path) -> None:
    place = FileSystemArtifactStore(tmp_path)
    place.write("a/tmp/x", io.BytesIO(b"x"))
    (tmp_path / "tmp" / "unfinished").write_bytes(b"half")
    (tmp_path / "a" / "empty").mkdir()
    (tmp_path / "a" / "dangling").symlink_to("nowhere")
    assert [entry.name for entry in place.list("")] == ["a/tmp/x"]
    assert list(place.list_folders("")) == ["a"]
    assert list(place.list_folders("a/")) == ["tmp"]


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What was synced so far: temporary files as `tmp/*`, and everything else by its name."""
    if sys.platform != "linux":
        pytest.skip("only Linux tells the path behind a descriptor")
    names: list[str] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        path = os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), tmp_path)  # noqa: PTH115
        names.append("tmp/*" if path.startswith("tmp/") else path)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    return names


@pytest.mark.parametrize("act", ["write", "write_if_absent"])
def test_a_durable_write_syncs_file_folder_and_new_parents(
    tmp_path: Path, synced: list[str], act: str
) -> None:
    place = FileSystemArtifactStore(tmp_path)
    ACTS[act](place, "a/b/x")
    assert synced.index("tmp/*") < synced.index("a/b"), "the file before its name"
    assert set(synced) == {".", "tmp/*", "a", "a/b"}
    assert synced[-1] == "a/b"
    synced.clear()
    ACTS[act](place, "a/b/y")
    assert synced == ["tmp/*", "a/b"]


def test_removals_and_moves_are_synced(tmp_path: Path, synced: list[str]) -> None:
    place = FileSystemArtifactStore(tmp_path)
    place.write("a/x", io.BytesIO(b"x"))
    synced.clear()
    place.move("a/x", "b/x")
    assert set(synced) == {".", "a", "b"}
    assert synced[-2:] == ["b", "a"]
    synced.clear()
    place.remove("b/x")
    assert synced == ["b"]


def test_what_somebody_else_wrote_a_moment_ago_is_synced_before_it_counts(
    tmp_path: Path, synced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = FileSystemArtifactStore(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_bytes(b"x")
    assert place.stat("a/x")
    assert synced == ["a/x", "a"]
    assert not place.write_if_absent("a/x", io.BytesIO(b"x"))
    assert synced == ["a/x", "a"] * 2
    monkeypatch.setattr(time, "time", lambda now=time.time: now() + 61)
    assert place.stat("a/x")
    assert synced == ["a/x", "a"] * 2


def test_nothing_is_synced_where_nothing_need_be_durable(tmp_path: Path, synced: list[str]) -> None:
    place = FileSystemArtifactStore(tmp_path, durable=False)
    place.write("a/x", io.BytesIO(b"x"))
    place.write_if_absent("a/y", io.BytesIO(b"y"))
    assert place.stat("a/x")
    place.move("a/x", "a/z")
    place.remove("a/z")
    assert synced == []


def lose_the_answer(
    monkeypatch: pytest.MonkeyPatch, method: str, error: Exception
) -> Callable[[], bool]:
    """Let a call on paths act, then fail as its second try on NFS does; returns whether it was."""
    act = getattr(Path, method)
    lost: list[Path] = []

    def acting(self: Path, other: Path) -> None:
        act(self, other)
        lost.append(self)
        raise error

    monkeypatch.setattr(Path, method, acting)
    return lambda: bool(lost)


def test_a_rename_whose_answer_was_lost_has_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = FileSystemArtifactStore(tmp_path)
    was_lost = lose_the_answer(monkeypatch, "replace", FileNotFoundError(2, "planned"))
    place.write("a/x", io.BytesIO(b"x"))
    assert was_lost()
    assert files_below(tmp_path) == {"a/x": b"x"}


def test_a_link_whose_answer_was_lost_has_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = FileSystemArtifactStore(tmp_path)
    was_lost = lose_the_answer(monkeypatch, "hardlink_to", FileExistsError(17, "planned"))
    assert place.write_if_absent("a/x", io.BytesIO(b"x"))
    assert was_lost()
    assert files_below(tmp_path) == {"a/x": b"x"}


def test_a_rename_that_failed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = FileSystemArtifactStore(tmp_path)
    place.write("x", io.BytesIO(b"old"))

    def fail(self: Path, other: Path) -> None:
        raise FileNotFoundError(2, "planned")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(FileNotFoundError, match="planned"):
        place.write("x", io.BytesIO(b"new"))
    assert files_below(tmp_path) == {"x": b"old"}


def test_two_links_of_one_file_become_one_name_when_moved(tmp_path: Path) -> None:
    place = FileSystemArtifactStore(tmp_path)
    place.write("x", io.BytesIO(b"x"))
    (tmp_path / "y").hardlink_to(tmp_path / "x")
    place.move("x", "y")
    assert files_below(tmp_path) == {"y": b"x"}


def test_a_store_shows_where_it_is(tmp_path: Path) -> None:
    here = str(Path("x").absolute())
    assert repr(FileSystemArtifactStore("x")) == f"FileSystemArtifactStore({here!r})"
    assert repr(FileSystemArtifactStore("x", durable=False)) == (
        f"FileSystemArtifactStore({here!r}, durable=False)"
    )


def test_a_relative_path_means_the_same_wherever_the_process_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hydra, for one, changes the folder for each job; else two stores would share one name."""
    (tmp_path / "job").mkdir()
    monkeypatch.chdir(tmp_path)
    place = FileSystemArtifactStore("store")
    sent = pickle.dumps(place)
    place.write("one", io.BytesIO(b"before"))
    monkeypatch.chdir(tmp_path / "job")
    place.write("two", io.BytesIO(b"after"))
    for each in (place, pickle.loads(sent)):  # noqa: S301 -- made in this test
        assert [read(each, name) for name in ("one", "two")] == [b"before", b"after"]
    assert not list((tmp_path / "job").iterdir())


def test_a_tilde_is_the_home_folder_and_a_url_without_slashes_is_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    store = open_store("~/store", cache="~/cache")
    store.open_reader(store.add(io.BytesIO(b"body"))).close()
    monkeypatch.setenv("CASARTIFACTS_CACHE", "~/cache")
    for same in (ArtifactCache("~/cache"), open_store("~/store", cache=True).cache):
        assert same is not None
        assert same.folder == tmp_path / "home" / "cache"
    for mistyped in ("s3:/bucket/runs", "gs:bucket", "file:/store"):
        with pytest.raises(ValueError, match="without its two slashes"):
            open_store(mistyped)
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    assert {path.name for path in (tmp_path / "home").iterdir()} == {"store", "cache"}


@pytest.mark.parametrize("place", [FileSystemArtifactStore, lambda _: MemoryArtifactStore()])
def test_a_stream_that_has_nothing_yet_is_not_taken_for_a_short_one(
    place: Callable[[Path], Backend], tmp_path: Path
) -> None:
    class NotYet(io.RawIOBase):
        def __init__(self) -> None:
            self.told = iter([b"half", None])

        def read(self, size: int = -1) -> bytes | None:
            return next(self.told, b"")

    for write in ("write", "write_if_absent"):
        backend = place(tmp_path)
        with pytest.raises(TypeError, match="wait for its bytes"):
            getattr(backend, write)("name", NotYet())
        assert not list(backend.list(""))
