"""Any object with Optuna's three methods as a place; `test_conformance` has what it can promise."""

from __future__ import annotations

import io
import uuid
from typing import TYPE_CHECKING, BinaryIO, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.artifacts import FileSystemArtifactStore as OptunaFileStore

from casartifacts import errors, names
from casartifacts.backends.foreign import ForeignBackend, flat_name
from casartifacts.backends.memory import MemoryArtifactStore
from casartifacts.errors import CorruptArtifact
from casartifacts.store import ContentStore
from casartifacts.testing import Fault, Plan, Stream
from casartifacts.testing.expect import read_range

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CONTENT = bytes(range(256)) * 100

# What a ContentStore calls the things that it keeps, and ids of artifacts that lie there plainly.
ours = st.builds(
    "{}/{}".format,
    st.sampled_from(sorted(names.FOLDERS)),
    st.text("ab0_~.-/", min_size=1).map(lambda text: text.replace("//", "/0/")),
)
plain = st.text("ab0_~.-/=é", min_size=1) | st.builds(
    "{}{}={}".format,
    st.text("=", max_size=2),
    st.sampled_from(sorted(names.FOLDERS)),
    st.text("a/="),
)


@given(ours | plain)
def test_different_names_are_kept_under_different_flat_names(name: str) -> None:
    flat = flat_name(name)
    assert flat == name or flat_name(flat) != flat  # else the name `flat` would be kept there too


@given(ours)
def test_what_is_ours_lies_in_no_folder(name: str) -> None:
    assert "/" not in flat_name(name)


@given(st.uuids(version=4).map(str), st.sampled_from(["", "optuna/", "a/b/", "lr=1/", "=", "~"]))
def test_the_id_of_a_plain_artifact_is_left_as_it_is(artifact_id: str, before: str) -> None:
    assert flat_name(before + artifact_id) == before + artifact_id


class Noted(MemoryArtifactStore):
    """Keeps anything under any name, and notes what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        self.sizes.append(content_body.seek(0, io.SEEK_END))
        content_body.seek(0)
        super().write(artifact_id, content_body)


class Dumb:
    """Has nothing but `read` and `close`."""

    def __init__(self, content: bytes, most: int) -> None:
        self.stream = Stream(content, most=most, seekable=False)

    def read(self, size: int, /) -> bytes:
        return self.stream.read(size)

    def close(self) -> None:
        self.stream.close()


class DumbReaders(MemoryArtifactStore):
    most = 100

    def open_reader(self, artifact_id: str) -> BinaryIO:
        self.last = Dumb(super().open_reader(artifact_id).read(), self.most)
        return cast("BinaryIO", self.last)


@given(
    content=st.binary(max_size=300),
    most=st.integers(1, 50),
    start=st.integers(0, 310),
    length=st.integers(0, 310),
)
def test_ranges_and_sizes_are_right_over_readers_that_only_read(
    content: bytes, most: int, start: int, length: int
) -> None:
    store = DumbReaders()
    store.most = most
    backend = ForeignBackend(store)
    backend.write("blobs/a", io.BytesIO(content))
    assert read_range(backend, "blobs/a", start, length) == content[start : start + length]
    found = backend.stat("blobs/a")
    assert found is not None
    assert (found.name, found.size, found.modified) == ("blobs/a", len(content), 0.0)


def test_a_range_far_from_the_beginning_is_reached_by_reading_on() -> None:
    store = DumbReaders()
    store.most = 2**20
    content = CONTENT * 100
    ForeignBackend(store).write("a", io.BytesIO(content))
    assert read_range(ForeignBackend(store), "a", 2_345_678, 9) == content[2_345_678:][:9]


def test_a_reader_that_only_reads_becomes_a_whole_one_and_is_closed() -> None:
    store = DumbReaders()
    backend = ForeignBackend(store)
    backend.write("a", io.BytesIO(b"one\ntwo\nthree"))
    with backend.open_reader("a") as reader:
        buffer = bytearray(2)
        assert reader.readable()
        assert not reader.seekable()
        assert reader.readinto(buffer) == 2  # type: ignore[attr-defined]
        assert reader.readline() == b"e\n"
        assert [*reader] == [b"two\n", b"three"]
        assert not store.last.stream.closed
    assert store.last.stream.closed


def test_the_store_gets_a_body_that_can_seek_and_measure_whatever_the_caller_handed_in() -> None:
    store = Noted()
    body = Stream(CONTENT, start=600, most=100, seekable=False)
    ForeignBackend(store).write("a", body)
    assert store.sizes == [len(CONTENT) - 600]
    assert not body.closed


def test_an_artifact_that_optuna_stored_is_read_and_removed_through_the_content_store(
    tmp_path: Path,
) -> None:
    optuna_store, artifact_id = OptunaFileStore(tmp_path), str(uuid.uuid4())
    optuna_store.write(artifact_id, io.BytesIO(CONTENT))
    store = ContentStore(ForeignBackend(optuna_store))
    with store.open_reader(artifact_id) as reader:
        assert reader.read() == CONTENT
    store.remove(artifact_id)
    assert not (tmp_path / artifact_id).exists()


def test_half_a_blob_left_by_a_crash_is_replaced_by_the_next_upload(tmp_path: Path) -> None:
    store = ContentStore(ForeignBackend(OptunaFileStore(tmp_path)))
    store.write("first", io.BytesIO(CONTENT))
    (blob,) = tmp_path.glob("blobs=*")
    blob.write_bytes(CONTENT[:1000])
    with pytest.raises(CorruptArtifact):
        store.open_reader("first")
    another_process = ContentStore(ForeignBackend(OptunaFileStore(tmp_path)))
    another_process.write("second", io.BytesIO(CONTENT))
    for artifact_id in ("first", "second"):
        with store.open_reader(artifact_id) as reader:
            assert reader.read() == CONTENT


@pytest.mark.parametrize(
    "call", [lambda backend: backend.list("blobs/"), lambda backend: backend.list_folders("")]
)
def test_a_listing_is_refused_at_once(call: Callable[[ForeignBackend], object]) -> None:
    with pytest.raises(io.UnsupportedOperation, match=r"ForeignBackend\(.*cannot list"):
        call(ForeignBackend(MemoryArtifactStore()))


def test_a_remove_of_what_is_missing_is_loud_and_does_not_reach_a_store_that_keeps_silent() -> None:
    class Silent(MemoryArtifactStore):
        def remove(self, artifact_id: str) -> None:
            raise AssertionError("was asked to remove what is missing")

    with pytest.raises(errors.ArtifactNotFound, match="'refs/a' was not found in ForeignBackend"):
        ForeignBackend(Silent()).remove("refs/a")


@pytest.mark.parametrize("kind", ["lose the last byte", "forget"])
def test_a_move_keeps_its_source_when_the_target_came_out_wrong(kind: str) -> None:
    memory = MemoryArtifactStore()
    memory.write(flat_name("blobs/a"), io.BytesIO(CONTENT))
    with Plan(Fault(kind, on="write")) as plan:  # type: ignore[arg-type]
        backend = ForeignBackend(plan.around(memory))
        with pytest.raises(OSError, match=r"moving 'blobs/a' to 'trash/1/a' .* 25600 bytes"):
            backend.move("blobs/a", "trash/1/a")
    assert read_range(backend, "blobs/a", 0, 10**6) == CONTENT


def test_it_prints_itself_as_the_code_that_makes_it() -> None:
    assert repr(ForeignBackend(MemoryArtifactStore())) == "ForeignBackend(MemoryArtifactStore())"
