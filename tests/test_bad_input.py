"""Bad input and bad places: a clear error each, nothing stored by halves, nothing lost.

In every test an artifact that was there before is there afterwards.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import threading
from typing import TYPE_CHECKING, BinaryIO

import pytest
from blake3 import blake3
from optuna.artifacts.exceptions import ArtifactNotFound

from casartifacts import names
from casartifacts.backends.filesystem import FileSystemArtifactStore
from casartifacts.backends.memory import MemoryArtifactStore
from casartifacts.digest import digest_of
from casartifacts.errors import ContentChanged, StoreMismatch
from casartifacts.records import StoreRecord
from casartifacts.store import ContentStore
from casartifacts.testing import Body, Fault, Plan
from casartifacts.testing.expect import read_range

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from casartifacts.protocols import Backend, Draft, Entry

    Tiny = Callable[[Backend], ContentStore]

ID = "0f8fad5b-d9cb-469f-a165-70867728950e"
BEFORE = "before"
SMALL = b"a small content"
LARGE = blake3(b"bad input").digest(length=50_000)
BOTH = pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])


def get(store: ContentStore, artifact_id: str) -> bytes:
    with store.open_reader(artifact_id) as reader:
        return reader.read()


@contextlib.contextmanager
def nothing_happens(store: ContentStore) -> Iterator[None]:
    """Check that a block publishes nothing, loses nothing and leaves nothing unfinished.

    Blobs may be left, and a manifest whose blobs are all there: garbage collection takes them.
    """
    store.write(BEFORE, io.BytesIO(b"before"))
    refs = listing(store, "refs/", "trash/")
    yield
    assert listing(store, "refs/", "trash/") == refs
    assert get(ContentStore(store.backend), BEFORE) == b"before"
    assert isinstance(store.backend, FileSystemArtifactStore)
    assert not list(store.backend._base_path.glob("tmp/*"))
    for entry in store.backend.list("blobs/"):
        body = read_range(store.backend, entry.name, 0, entry.size)
        assert entry.name == names.blob(digest_of(body)), "half of a blob has a name"
    for entry in store.backend.list("manifests/"):
        head = json.loads(read_range(store.backend, entry.name, 0, entry.size).split(b"\n")[0])
        assert {names.blob(digest) for digest, _ in head["blobs"]} <= listing(store, "blobs/")


def listing(store: ContentStore, *prefixes: str) -> set[str]:
    return {entry.name for prefix in prefixes for entry in store.backend.list(prefix)}


@pytest.fixture
def store(tiny: Tiny, tmp_path: Path) -> ContentStore:
    return tiny(FileSystemArtifactStore(tmp_path / "store"))


# Bodies


def test_a_file_in_text_mode_is_refused(store: ContentStore, tmp_path: Path) -> None:
    for text in ("", "text"):
        (tmp_path / "file").write_text(text)
        with (
            nothing_happens(store),
            (tmp_path / "file").open() as file,
            pytest.raises(TypeError, match=r"binary mode"),
        ):
            store.write(ID, file)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "body", [b"bytes", "a path", None, object()], ids=["bytes", "path", "None", "object"]
)
def test_an_object_without_read_is_refused_by_name(store: ContentStore, body: BinaryIO) -> None:
    with nothing_happens(store), pytest.raises(TypeError) as caught:
        store.write(ID, body)
    assert repr(body) in str(caught.value)


def test_a_file_that_is_open_for_writing_only_is_refused(
    store: ContentStore, tmp_path: Path
) -> None:
    for buffering in (0, -1):
        with (
            nothing_happens(store),
            (tmp_path / "file").open("wb", buffering=buffering) as file,
            pytest.raises(TypeError, match="opened for reading"),
        ):
            store.write(ID, file)


def test_a_closed_file_is_refused(store: ContentStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with (tmp_path / "file").open("rb") as file:
        pass
    with nothing_happens(store), pytest.raises(ValueError, match="closed"):
        store.write(ID, file)


@pytest.mark.parametrize("seekable", [True, False])
@pytest.mark.parametrize("fails_at", [0, 10, 30_000, len(LARGE) - 1, len(LARGE)])
def test_an_error_of_the_body_reaches_the_caller(
    store: ContentStore, fails_at: int, *, seekable: bool
) -> None:
    body = Body(LARGE, most=900, fails_at=fails_at, seekable=seekable)
    with nothing_happens(store), pytest.raises(OSError, match="planned: this stream fails"):
        store.write(ID, body)


def test_an_error_of_the_body_in_its_second_reading_reaches_the_caller(
    store: ContentStore,
) -> None:
    class SecondTime(io.BytesIO):
        readings = 0

        def read(self, size: int | None = -1, /) -> bytes:
            self.readings += self.tell() == 0
            if self.readings > 1 and self.tell() > 20_000:
                raise OSError("planned: the disk behind it fails")
            return super().read(min(size or 0, 700))

    with nothing_happens(store), pytest.raises(OSError, match="planned: the disk behind it"):
        store.write(ID, SecondTime(LARGE))


@BOTH
def test_a_body_that_is_interrupted_stores_nothing(store: ContentStore, content: bytes) -> None:
    body = Body(content, most=7, fails_at=10, failure=KeyboardInterrupt)
    with nothing_happens(store), pytest.raises(KeyboardInterrupt):
        store.write(ID, body)


@BOTH
def test_progress_that_raises_cancels_the_upload(store: ContentStore, content: bytes) -> None:
    class CancelledError(Exception):
        pass

    def cancel(_done: int, _total: int) -> None:
        raise CancelledError

    if content == LARGE:
        with nothing_happens(store), pytest.raises(CancelledError):
            store.add(io.BytesIO(content), artifact_id=ID, progress=cancel)


# Ids

REFUSED = {
    "": "it is empty",
    "/absolute": "absolute",
    "C:\\absolute": "absolute",
    "a/../b": "'..'",
    "a\\..\\b": "'..'",
    "a\0b": "NUL",
    "x" * 1025: "1025 bytes",
    "refs": "'refs' is the name of a folder",
    "a/BLOBS/b": "'BLOBS' is the name of a folder",
    "casartifacts.json": "'casartifacts.json' is the name of a folder",
    "a//b": "empty or '.'",
    "\ud800": "Unicode",
}


@pytest.mark.parametrize("artifact_id", REFUSED, ids=ascii)
def test_a_refused_id_is_refused_before_the_body_is_read(
    store: ContentStore, tmp_path: Path, artifact_id: str
) -> None:
    acts: list[Callable[[], object]] = [
        lambda: store.add(Body(b"", fails_at=0), artifact_id=artifact_id),
        lambda: store.write(artifact_id, Body(b"", fails_at=0)),
        lambda: store.open_reader(artifact_id),
        lambda: store.stat(artifact_id),
        lambda: store.download(artifact_id, tmp_path / "target"),
        lambda: store.remove(artifact_id),
    ]
    for act in acts:
        with (
            nothing_happens(store),
            pytest.raises(ValueError, match=r"^Invalid artifact_id: ") as e,
        ):
            act()
        assert repr(artifact_id) in str(e.value)
        assert REFUSED[artifact_id] in str(e.value)
    assert not (tmp_path / "target").exists()


@BOTH
def test_an_id_of_our_own_form_with_another_digest_is_refused(
    store: ContentStore, content: bytes
) -> None:
    artifact_id = names.new_artifact_id(digest_of(b"another content"))
    with (
        nothing_happens(store),
        pytest.raises(ValueError, match=r"^Invalid artifact_id: ") as caught,
    ):
        store.write(artifact_id, io.BytesIO(content))
    assert artifact_id in str(caught.value)
    assert digest_of(content) in str(caught.value)


def test_a_ref_too_large_to_be_read_is_refused(store: ContentStore) -> None:
    with nothing_happens(store), pytest.raises(ValueError, match="give a shorter filename"):
        store.add(io.BytesIO(SMALL), artifact_id=ID, filename="x" * 2**20)


# Files that change


class Meddled(FileSystemArtifactStore):
    """A folder where something happens at the n-th call that begins so."""

    def __init__(self, base_path: Path) -> None:
        super().__init__(base_path, durable=False)
        self._lock = threading.Lock()
        self.call, self.left = "", 0
        self.meddle: Callable[[], object] = lambda: None

    def _note(self, call: str) -> None:
        with self._lock:
            if self.left and call.startswith(self.call):
                self.left -= 1
                if not self.left:
                    self.meddle()

    def stat(self, name: str) -> Entry | None:
        self._note(f"stat {name}")
        return super().stat(name)

    @contextlib.contextmanager
    def draft(self) -> Iterator[Draft]:
        with super().draft() as draft:
            yield MeddledDraft(draft, self._note)


class MeddledDraft:
    """A draft that tells when it is named."""

    def __init__(self, draft: Draft, note: Callable[[str], None]) -> None:
        self._draft = draft
        self._note = note

    def write(self, piece: bytes | memoryview) -> None:
        self._draft.write(piece)

    def publish(self, name: str, *, replace: bool = False) -> bool:
        self._note(f"add {name}")
        published = self._draft.publish(name, replace=replace)
        self._note(f"added {name}")
        return published


def overwrite_its_end(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-3, os.SEEK_END)
        file.write(b"\0\0\0")


def overwrite_all(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 5)


def truncate_to_nothing(path: Path) -> None:
    os.truncate(path, 0)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


CHANGES = [overwrite_its_end, overwrite_all, truncate, truncate_to_nothing, grow]

# When it changes, and whether all of it has been read for the last time by then.
MOMENTS = [
    (SMALL, "1 stat blobs/", True),
    (SMALL, "1 add blobs/", True),
    (SMALL, "1 added blobs/", True),
    (LARGE, "1 stat manifests/", False),
    (LARGE, "1 add blobs/", False),
    (LARGE, "5 added blobs/", False),
    (LARGE, "1 add manifests/", True),
]


@pytest.mark.parametrize("hides", [False, True])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize(
    ("content", "moment", "has_been_read"),
    MOMENTS,
    ids=lambda value: str(value if isinstance(value, str) else ""),
)
def test_a_file_that_changes_while_it_is_uploaded_is_an_error(
    tiny: Tiny,
    tmp_path: Path,
    content: bytes,
    moment: str,
    change: Callable[[Path], None],
    *,
    has_been_read: bool,
    hides: bool,
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    backend = Meddled(tmp_path / "store")
    store = tiny(backend)

    def meddle() -> None:
        before = path.stat()
        change(path)
        moved_on = 0 if hides else 10**9
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + moved_on))

    backend.meddle = meddle

    def upload() -> None:
        number, backend.call = moment.split(" ", 1)
        backend.left = int(number)
        with path.open("rb") as file:
            store.write(ID, file)

    if has_been_read and hides and change in {overwrite_its_end, overwrite_all}:
        # As if the change came after the upload: what was read is stored.
        upload()
        assert get(store, ID) == content
    else:
        with nothing_happens(store), pytest.raises(ContentChanged, match="Nothing was published"):
            upload()
    assert backend.left == 0, "the file was not changed"


def test_a_file_that_a_thread_writes_to_is_refused_or_stored_as_it_was_at_one_moment(
    tmp_path: Path,
) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(3_000_000))
    store = ContentStore(FileSystemArtifactStore(tmp_path / "store", durable=False))
    ended = threading.Event()

    def write() -> None:
        with path.open("r+b", buffering=0) as file:
            for number in range(1, 10**9):
                # First the last byte, then the first: at no moment is the first ahead.
                for position in (2_999_992, 0):
                    file.seek(position)
                    file.write(number.to_bytes(8, "big"))
                if ended.wait(0.002):
                    return

    writer = threading.Thread(target=write)
    writer.start()
    refused = 0
    try:
        for number in range(20):
            try:
                with path.open("rb") as file:
                    store.write(f"{number}", file)
            except ContentChanged:
                refused += 1
                assert f"refs/{number}" not in listing(store, "refs/")
            else:
                found = get(store, f"{number}")
                assert len(found) == 3_000_000
                assert int.from_bytes(found[-8:], "big") - int.from_bytes(found[:8], "big") in {
                    0,
                    1,
                }
    finally:
        ended.set()
        writer.join()
    assert refused
    with path.open("rb") as file:
        store.write(ID, file)
    assert get(store, ID) == path.read_bytes()


@pytest.mark.parametrize("keeps", [30_000, len(LARGE)])
def test_a_stream_that_gives_other_bytes_the_second_time_is_refused(
    store: ContentStore, keeps: int
) -> None:
    class Shifting(io.BytesIO):
        readings = 0

        def read(self, size: int | None = -1, /) -> bytes:
            self.readings += self.tell() == 0
            if self.readings == 2:
                self.readings += 1
                self.getbuffer()[40_000] ^= 1
                self.truncate(keeps)
            return super().read(size)

    with nothing_happens(store), pytest.raises(ContentChanged, match="Nothing was published"):
        store.write(ID, Shifting(LARGE))


@pytest.mark.parametrize("place", [FileSystemArtifactStore, lambda _: MemoryArtifactStore()])
def test_a_content_of_one_blob_that_changes_between_readings_is_refused(
    place: Callable[[Path], Backend], tmp_path: Path
) -> None:
    """Whichever of its readings gives other bytes; where there are none left, all is well."""
    size = 3 * 2**20
    refused = []
    for changed in range(2, 9):

        class Shifting(io.BytesIO):
            readings = 0

            def read(self, size: int | None = -1, /) -> bytes:
                self.readings += self.tell() == 0
                if self.readings == changed:  # noqa: B023 -- used in this turn only
                    self.readings += 100
                    self.getbuffer()[40_000] ^= 1
                return super().read(size)

        store = ContentStore(place(tmp_path / str(changed)))
        body = os.urandom(size)
        store.write("before", io.BytesIO(os.urandom(size)))
        try:
            store.write(ID, Shifting(body))
        except ContentChanged:
            refused.append(changed)
            with pytest.raises(ArtifactNotFound):
                store.open_reader(ID)
        else:
            assert get(store, ID) == body
    assert refused == [*range(2, 2 + len(refused))]
    assert refused


# Targets


def test_targets_that_cannot_be_are_refused_before_anything_is_asked(
    store: ContentStore, tmp_path: Path
) -> None:
    """The artifact is missing too, but nobody has looked for it yet."""
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    file.write_bytes(b"old")
    with pytest.raises(FileExistsError, match=f"{file}"):
        store.download("missing", file)
    with pytest.raises(FileExistsError, match=f"{folder}"):
        store.download("missing", folder)
    with pytest.raises(IsADirectoryError, match=f"{folder} is a folder"):
        store.download("missing", folder, overwrite=True)
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/none does not exist; make it"):
        store.download("missing", tmp_path / "none" / "target")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "store"]
    assert file.read_bytes() == b"old"
    with pytest.raises(ArtifactNotFound, match="'missing'"):
        store.download("missing", file, overwrite=True)
    assert file.read_bytes() == b"old"


# Full disks

PAGE = 4096


def fill(disk: Path, *, but: int) -> None:
    """Fill a disk but for some bytes."""
    status = os.statvfs(disk)
    (disk / "filler").write_bytes(bytes(status.f_bavail * status.f_frsize - but))


@pytest.mark.parametrize("size", [5_000_000, 500_000])
def test_an_upload_to_a_full_disk_stores_nothing_by_halves(small_disk: Path, size: int) -> None:
    store = ContentStore(FileSystemArtifactStore(small_disk / "store"))
    with nothing_happens(store):
        fill(small_disk, but=size // 5)
        with pytest.raises(OSError, match="No space left") as caught:
            store.write(ID, io.BytesIO(os.urandom(size)))
        assert caught.value.errno == errno.ENOSPC
    (small_disk / "filler").unlink()
    for blob in store.backend.list("blobs/"):
        store.backend.remove(blob.name)
    store.write(ID, io.BytesIO(b"x" * 500_000))
    assert get(store, ID) == b"x" * 500_000


def test_a_disk_that_is_full_at_any_step_stores_all_or_nothing(small_disk: Path) -> None:
    outcomes = []
    for pages in range(14):
        store = ContentStore(FileSystemArtifactStore(small_disk / f"store{pages}"))
        store.write(BEFORE, io.BytesIO(b"before"))
        fill(small_disk, but=pages * PAGE)
        with contextlib.ExitStack() as stack:
            try:
                store.write(ID, io.BytesIO(bytes(6 * PAGE)))
            except OSError as error:
                outcomes.append(error.errno)
                (small_disk / "filler").unlink()
                stack.enter_context(nothing_happens(store))
            else:
                outcomes.append(0)
                (small_disk / "filler").unlink()
                assert get(store, ID) == bytes(6 * PAGE)
        assert not list((small_disk / f"store{pages}" / "tmp").iterdir())
    assert outcomes[0] == errno.ENOSPC
    assert outcomes[-1] == 0
    assert set(outcomes) == {0, errno.ENOSPC}


@pytest.mark.parametrize("kind", ["plain", "small", "large"])
def test_a_download_to_a_full_disk_leaves_nothing(
    small_disk: Path, tmp_path: Path, kind: str
) -> None:
    """The last piece matters most: the kernel may take a part of it without an error."""
    content = os.urandom({"plain": 2**20, "small": 2**19, "large": 2**20}[kind] + 10 * PAGE + 1)
    backend = FileSystemArtifactStore(tmp_path / "store")
    (backend if kind == "plain" else ContentStore(backend)).write(ID, io.BytesIO(content))
    store = ContentStore(backend)
    for missing in (PAGE, 5 * PAGE, 11 * PAGE, len(content) // PAGE * PAGE):
        fill(small_disk, but=len(content) + PAGE - len(content) % PAGE - missing)
        with pytest.raises(OSError, match="No space left"):
            store.download(ID, small_disk / "target")
        assert [path.name for path in small_disk.iterdir()] == ["filler"]
        (small_disk / "filler").unlink()
    fill(small_disk, but=len(content) + PAGE - len(content) % PAGE)
    store.download(ID, small_disk / "target")
    assert (small_disk / "target").read_bytes() == content


# Permissions


def test_an_upload_to_a_folder_that_may_not_be_written_says_which(
    without_privileges: Path,
) -> None:
    folder = without_privileges / "store"
    store = ContentStore(FileSystemArtifactStore(folder))
    with nothing_happens(store):
        for path in [*folder.rglob("*"), folder]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        for artifact_id in (ID, BEFORE):
            with pytest.raises(PermissionError, match=f"Permission denied: '{folder}"):
                store.write(artifact_id, io.BytesIO(LARGE))
        with pytest.raises(PermissionError, match=f"Permission denied: '{folder}"):
            store.remove(BEFORE)


def test_a_store_that_may_not_be_made_says_where(without_privileges: Path) -> None:
    without_privileges.chmod(0o555)
    store = ContentStore(FileSystemArtifactStore(without_privileges / "store"))
    with pytest.raises(PermissionError, match=f"Permission denied: '{without_privileges}/store"):
        store.write(ID, io.BytesIO(SMALL))
    assert not list(without_privileges.iterdir())


def test_a_store_that_may_not_be_read_is_not_taken_for_an_empty_one(
    without_privileges: Path,
) -> None:
    folder = without_privileges / "store"
    store = ContentStore(FileSystemArtifactStore(folder))
    store.write(ID, io.BytesIO(SMALL))
    (folder / "refs").chmod(0)
    with pytest.raises(PermissionError, match=f"Permission denied: '{folder}/refs/{ID}'"):
        store.open_reader(ID)
    (folder / "refs").chmod(0o755)
    (folder / "blobs").chmod(0)
    with pytest.raises(PermissionError, match=f"Permission denied: '{folder}/blobs/"):
        store.open_reader(ID)


def test_a_download_to_a_folder_that_may_not_be_written_says_which(
    without_privileges: Path,
) -> None:
    store = ContentStore(FileSystemArtifactStore(without_privileges / "store"))
    store.write(ID, io.BytesIO(SMALL))
    folder = without_privileges / "sealed"
    folder.mkdir(mode=0o555)
    with pytest.raises(PermissionError, match=f"Permission denied: '{folder}"):
        store.download(ID, folder / "target")
    assert not list(folder.iterdir())


def test_a_file_in_the_place_of_the_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "store").write_bytes(b"a file")
    store = ContentStore(FileSystemArtifactStore(tmp_path / "store"))
    with pytest.raises(NotADirectoryError, match=f"{tmp_path}/store"):
        store.write(ID, io.BytesIO(SMALL))
    with pytest.raises(ArtifactNotFound, match=ID):
        store.open_reader(ID)
    assert (tmp_path / "store").read_bytes() == b"a file"


# Stores of another kind


def seal(store: ContentStore, body: bytes) -> ContentStore:
    """Give a store another record, and open it anew."""
    store.backend.write(names.STORE_RECORD, io.BytesIO(body))
    return ContentStore(store.backend)


def test_a_store_of_an_unknown_format_is_left_alone(store: ContentStore, tmp_path: Path) -> None:
    right = StoreRecord(durable=True, small_content_limit=1000)
    newer = StoreRecord(durable=True, small_content_limit=1000, format=2)
    damaged = right.encode().replace(b"1000", b"1001")
    with nothing_happens(seal(store, right.encode())):
        before = listing(store, "")
        for body, message in (
            (newer.encode(), r"is of format 2; this version knows format 1\. .*upgrade"),
            (damaged, "is damaged .*nothing is read or written. Restore it"),
        ):
            acts: list[Callable[[ContentStore], object]] = [
                lambda store: store.write(ID, io.BytesIO(SMALL)),
                lambda store: store.open_reader(BEFORE),
                lambda store: store.download(BEFORE, tmp_path / "target"),
                lambda store: store.remove(BEFORE),
            ]
            for act in acts:
                with pytest.raises(StoreMismatch, match=message) as caught:
                    act(seal(store, body))
                assert f"{names.STORE_RECORD} in {store.backend!r}" in str(caught.value)
        assert listing(store, "") == before
        assert not (tmp_path / "target").exists()
        seal(store, right.encode())


def test_a_ref_of_an_unknown_format_is_left_alone(store: ContentStore, tmp_path: Path) -> None:
    store.backend.write(names.ref(ID), io.BytesIO(b'{"format":2}'))
    acts: list[Callable[[], object]] = [
        lambda: store.open_reader(ID),
        lambda: store.stat(ID),
        lambda: store.download(ID, tmp_path / "target"),
    ]
    for act in acts:
        with nothing_happens(store), pytest.raises(StoreMismatch, match=r"format 2; .*upgrade"):
            act()


def test_a_durable_store_is_not_written_to_without_syncing(tmp_path: Path) -> None:
    with nothing_happens(ContentStore(FileSystemArtifactStore(tmp_path))):
        hasty = ContentStore(FileSystemArtifactStore(tmp_path, durable=False))
        with pytest.raises(StoreMismatch, match="open it without durable=False") as caught:
            hasty.write(ID, io.BytesIO(SMALL))
        assert str(tmp_path) in str(caught.value)
        assert get(hasty, BEFORE) == b"before"


def test_a_hasty_store_may_be_written_to_with_syncing(tmp_path: Path) -> None:
    ContentStore(FileSystemArtifactStore(tmp_path, durable=False)).write(ID, io.BytesIO(SMALL))
    ContentStore(FileSystemArtifactStore(tmp_path)).write(ID, io.BytesIO(b"new"))
    assert get(ContentStore(FileSystemArtifactStore(tmp_path)), ID) == b"new"


def test_a_place_that_loses_what_it_acknowledges_gets_nothing(tmp_path: Path) -> None:
    backend = FileSystemArtifactStore(tmp_path)
    with Plan(Fault("forget", on="write_if_absent", names=names.STORE_RECORD)) as plan:
        store = ContentStore(plan.around(backend))
        with pytest.raises(StoreMismatch, match="cannot be read back"):
            store.write(ID, io.BytesIO(SMALL))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
