"""ContentStore over a folder and over memory: equal contents once, every id its own, nothing lost.

The contracts of `write`, `open_reader` and `remove` are checked by the conformance kit.
"""

from __future__ import annotations

import io
import os
import pickle
import re
import tempfile
import threading
from contextlib import ExitStack, closing, nullcontext
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

import optuna.artifacts
import pytest
from blake3 import blake3
from hypothesis import example, given, settings
from hypothesis import strategies as st
from optuna.artifacts.exceptions import ArtifactNotFound

from casartifacts import names, sharing
from casartifacts.backends.filesystem import FileSystemArtifactStore
from casartifacts.backends.foreign import ForeignBackend
from casartifacts.backends.memory import MemoryArtifactStore
from casartifacts.backoff import Backoff
from casartifacts.cache import ArtifactCache
from casartifacts.cache.trust import Watched
from casartifacts.digest import digest_of
from casartifacts.errors import CorruptArtifact
from casartifacts.manifest import BLOB_LIMIT, Manifest
from casartifacts.records import SMALL_CONTENT_LIMIT, Ref
from casartifacts.store import ContentStore
from casartifacts.testing.expect import read_range

if TYPE_CHECKING:
    from collections.abc import Callable

    from casartifacts.protocols import Backend

    Tiny = Callable[[Backend], ContentStore]

SIZES = [0, 1, SMALL_CONTENT_LIMIT - 1, SMALL_CONTENT_LIMIT, SMALL_CONTENT_LIMIT + 1, 5_000_000]
TINY_SIZES = [0, 1, 999, 1000, 1001, 2000, 3000, 4096, 4097, 20_000]

DIGEST = digest_of(b"abc")
UUID4 = "0f8fad5b-d9cb-469f-a165-70867728950e"


def content_of(size: int, seed: bytes = b"store") -> bytes:
    return blake3(seed).digest(length=size) if size else b""


@pytest.fixture(params=["folder", "memory"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    if request.param == "folder":
        return FileSystemArtifactStore(tmp_path / "store", durable=False)
    return MemoryArtifactStore()


def put(store: ContentStore, content: bytes, artifact_id: str | None = None) -> str:
    return store.add(io.BytesIO(content), artifact_id=artifact_id)


def get(store: ContentStore, artifact_id: str) -> bytes:
    with store.open_reader(artifact_id) as reader:
        return reader.read()


def stored(backend: Backend, prefix: str = "") -> dict[str, int]:
    return {entry.name: entry.size for entry in backend.list(prefix)}


def contents_in(backend: Backend) -> dict[str, int]:
    return stored(backend, "blobs/") | stored(backend, "manifests/")


def check_life(store: ContentStore, artifact_id: str, content: bytes, target: Path) -> None:
    """Read, look at, download and remove an artifact that is there."""
    assert get(store, artifact_id) == content
    ref = store.stat(artifact_id)
    assert (ref.artifact_id, ref.digest, ref.size) == (
        artifact_id,
        digest_of(content),
        len(content),
    )
    store.download(artifact_id, target)
    assert target.read_bytes() == content
    target.unlink()
    store.remove(artifact_id)
    check_gone(store, artifact_id, target)


def check_gone(store: ContentStore, artifact_id: str, target: Path) -> None:
    acts: list[Callable[[], object]] = [
        lambda: store.open_reader(artifact_id),
        lambda: store.stat(artifact_id),
        lambda: store.remove(artifact_id),
        lambda: store.download(artifact_id, target),
    ]
    for act in acts:
        with pytest.raises(ArtifactNotFound, match=re.escape(repr(artifact_id))):
            act()
    assert not target.exists()


# Round trips


@pytest.mark.parametrize("size", SIZES)
def test_a_content_of_any_size_has_a_whole_life(
    backend: Backend, size: int, tmp_path: Path
) -> None:
    content = content_of(size)
    store = ContentStore(backend)
    artifact_id = put(store, content)
    assert re.fullmatch(rf"{digest_of(content)}-[0-9a-f]{{32}}", artifact_id)
    assert bool(stored(backend, "manifests/")) == (size > SMALL_CONTENT_LIMIT)
    check_life(ContentStore(backend), artifact_id, content, tmp_path / "target")


@given(content=st.binary(max_size=30) | st.sampled_from(TINY_SIZES).map(content_of))
def test_a_content_of_many_blobs_has_a_whole_life(tiny: Tiny, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for backend in (
            FileSystemArtifactStore(folder / "store", durable=False),
            MemoryArtifactStore(),
        ):
            store = tiny(backend)
            artifact_id = put(store, content)
            check_blobs(backend, content, small_limit=1000, blob_limit=4096)
            check_life(ContentStore(backend), artifact_id, content, folder / "target")


def check_blobs(backend: Backend, content: bytes, *, small_limit: int, blob_limit: int) -> None:
    """Check what one content is stored as, by the words of the format."""
    digest = digest_of(content)
    blobs = stored(backend, "blobs/")
    for name, size in blobs.items():
        assert name == names.blob(digest_of(read_range(backend, name, 0, size)))
    if len(content) <= small_limit:
        assert blobs == {names.blob(digest): len(content)}
        assert stored(backend, "manifests/") == {}
        return
    assert max(blobs.values()) <= blob_limit
    [(name, size)] = stored(backend, "manifests/").items()
    assert name == names.manifest(digest)
    found = Manifest.decode(read_range(backend, name, 0, size), digest=digest, size=len(content))
    assert {names.blob(blob) for blob, _ in found.blobs} == set(blobs)
    assert content == b"".join(
        read_range(backend, names.blob(found.blobs[part.blob][0]), part.start, part.length)
        for part in found.segments
    )
    chunk_ends = [*accumulate(found.chunks.lengths)]
    for index, end in enumerate(chunk_ends):
        length, chunk = found.chunks[index]
        assert blake3(content[end - length : end]).digest() == chunk
    # No chunk lies in two blobs.
    assert set(accumulate(part.length for part in found.segments)) <= set(chunk_ends)


def test_a_real_content_of_more_than_64_mib_has_a_whole_life(tmp_path: Path) -> None:
    content = content_of(BLOB_LIMIT + 3_000_000)
    (tmp_path / "file").write_bytes(content)
    backend = FileSystemArtifactStore(tmp_path / "store", durable=False)
    with (tmp_path / "file").open("rb") as file:
        artifact_id = ContentStore(backend).add(file)
    assert len(stored(backend, "blobs/")) == 2
    check_blobs(backend, content, small_limit=SMALL_CONTENT_LIMIT, blob_limit=BLOB_LIMIT)
    check_life(ContentStore(backend), artifact_id, content, tmp_path / "target")


# Equal contents


@given(
    st.lists(st.sampled_from([*TINY_SIZES]).map(content_of) | st.binary(max_size=2), max_size=8),
    st.booleans(),
)
def test_equal_contents_are_kept_once_and_others_apart(
    tiny: Tiny, contents: list[bytes], in_memory: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        backend = (
            MemoryArtifactStore() if in_memory else FileSystemArtifactStore(folder, durable=False)
        )
        store = tiny(backend)
        ids: dict[str, bytes] = {}
        kept: dict[str, int] = {}
        for number, content in enumerate(contents):
            artifact_id = put(store, content)
            if content in contents[:number]:
                assert contents_in(backend) == kept
            kept = contents_in(backend)
            assert artifact_id not in ids
            ids[artifact_id] = content
        assert len({store.stat(artifact_id).digest for artifact_id in ids}) == len(set(contents))
        assert set(stored(backend, "refs/")) == {names.ref(artifact_id) for artifact_id in ids}
        small = {content for content in contents if len(content) <= 1000}
        assert len(stored(backend, "manifests/")) == len(set(contents) - small)
        assert {names.blob(digest_of(content)) for content in small} <= set(kept)
        for artifact_id, content in ids.items():
            assert get(store, artifact_id) == content


@pytest.mark.parametrize("size", [100, 3_000_000])
def test_a_duplicate_writes_a_ref_and_nothing_else(size: int, tmp_path: Path) -> None:
    store = ContentStore(FileSystemArtifactStore(tmp_path, durable=False))
    put(store, content_of(size), "first")

    def seen() -> dict[Path, tuple[int, int]]:
        return {
            path: (path.stat().st_ino, path.stat().st_mtime_ns)
            for path in tmp_path.rglob("*")
            if path.is_file()
        }

    before = seen()
    put(store, content_of(size), "second")
    after = seen()
    assert after.pop(tmp_path / "refs" / "second")
    assert after == before


def test_an_upload_that_was_interrupted_goes_on_where_it_stopped(
    tiny: Tiny, tmp_path: Path
) -> None:
    store = tiny(FileSystemArtifactStore(tmp_path, durable=False))
    content = content_of(50_000)

    class StopError(Exception):
        pass

    def stop(done: int, _total: int) -> None:
        if done > 30_000:
            raise StopError

    with pytest.raises(StopError):
        store.add(io.BytesIO(content), progress=stop)
    kept = {path.name: path.stat().st_ino for path in tmp_path.glob("blobs/*/*")}
    assert len(kept) > 7
    assert not list(tmp_path.glob("manifests/*/*"))
    assert not list(tmp_path.glob("refs/*"))
    artifact_id = put(store, content)
    for path in tmp_path.glob("blobs/*/*"):
        assert kept.pop(path.name, path.stat().st_ino) == path.stat().st_ino
    assert not kept
    assert get(store, artifact_id) == content


def test_threads_that_store_equal_and_other_contents_at_once_keep_each_once(
    tiny: Tiny, backend: Backend
) -> None:
    store = tiny(backend)
    contents = [content_of(20_000), content_of(20_000, b"other"), content_of(500)]
    together = threading.Barrier(9)
    ids: list[tuple[str, bytes]] = []

    def upload(content: bytes) -> None:
        together.wait(10)
        ids.append((put(store, content), content))

    threads = [threading.Thread(target=upload, args=(content,)) for content in contents * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(ids) == 9
    for artifact_id, content in ids:
        assert get(ContentStore(backend), artifact_id) == content
    alone = tiny(MemoryArtifactStore())
    for content in contents:
        put(alone, content)
    assert contents_in(backend) == contents_in(alone.backend)


# Ids

_PARTS = st.sampled_from(
    [
        *names.FOLDERS,
        "REFS",
        "Blobs",
        "TMP",
        "..",
        ".",
        "",
        "C:",
        "a",
        "ä",
        "x" * 300,
        "~",
        "=",
        UUID4,
    ]
)
IDS = st.text(max_size=10) | st.lists(_PARTS, max_size=5).flatmap(
    lambda parts: st.sampled_from("/\\").map(lambda separator: separator.join(parts))
)


@given(IDS)
@example("../sentinel")
@example("a\\..\\..\\sentinel")
@example("\ud800")
@example("casartifacts.json")
def test_any_id_is_refused_everywhere_or_its_life_stays_inside_the_folder(artifact_id: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        parent = Path(name)
        (parent / "sentinel").write_bytes(b"sentinel")
        (parent / "out").mkdir()
        target = parent / "out" / "target"
        for backend in (
            FileSystemArtifactStore(parent / "store", durable=False),
            MemoryArtifactStore(),
        ):
            store = ContentStore(backend)
            refused = check_refusal(store, artifact_id, target)
            assert list(stored(backend, "refs/")) == []
            if not refused:
                check_gone(store, artifact_id, target)
                store.write(artifact_id, io.BytesIO(b"content"))
                assert list(stored(backend, "refs/")) == [names.ref(artifact_id)]
                check_life(store, artifact_id, b"content", target)
            assert not [path for path in parent.glob("store/tmp/*") if path.is_file()]
        assert {path.name for path in parent.iterdir()} <= {"sentinel", "out", "store"}
        assert (parent / "sentinel").read_bytes() == b"sentinel"
        allowed = {"refs", "blobs", "trash", "tmp", "casartifacts.json"}
        assert {path.name for path in parent.glob("store/*")} <= allowed


def check_refusal(store: ContentStore, artifact_id: str, target: Path) -> bool:
    """Check that all methods accept or all refuse; returns whether they refuse."""
    try:
        names.check_artifact_id(artifact_id)
    except ValueError:
        pass
    else:
        return False
    acts: list[Callable[[], object]] = [
        lambda: store.write(artifact_id, io.BytesIO(b"x")),
        lambda: store.open_reader(artifact_id),
        lambda: store.stat(artifact_id),
        lambda: store.download(artifact_id, target),
        lambda: store.remove(artifact_id),
    ]
    for act in acts:
        with pytest.raises(ValueError, match=r"^Invalid artifact_id: "):
            act()
    return True


def test_an_id_of_our_own_form_is_accepted_for_its_content(backend: Backend) -> None:
    store = ContentStore(backend)
    artifact_id = names.new_artifact_id(DIGEST)
    assert put(store, b"abc", artifact_id) == artifact_id
    assert get(store, artifact_id) == b"abc"


def test_an_id_that_is_written_again_leads_to_the_new_content(backend: Backend) -> None:
    store = ContentStore(backend)
    for content in (b"first", content_of(2_000_000), b"", b"first"):
        put(store, content, "best-model")
        assert get(store, "best-model") == content
        assert store.stat("best-model").size == len(content)


# What is listed


def test_a_ref_keeps_what_it_was_given(backend: Backend) -> None:
    store = ContentStore(backend)
    before = datetime.now(UTC)
    artifact_id = store.add(
        io.BytesIO(b"abc"),
        filename="größe 1.pt",
        mimetype="application/octet-stream",
        encoding="gzip",
        origin={"study": "mnist"},
    )
    ref = ContentStore(backend).stat(artifact_id)
    assert (ref.artifact_id, ref.digest, ref.size) == (artifact_id, DIGEST, 3)
    assert (ref.filename, ref.mimetype, ref.encoding) == (
        "größe 1.pt",
        "application/octet-stream",
        "gzip",
    )
    assert ref.origin == {"study": "mnist"}
    uploaded_at = datetime.fromisoformat(ref.uploaded_at)
    assert uploaded_at.utcoffset() == timedelta(0)
    assert before <= uploaded_at <= datetime.now(UTC)


@pytest.mark.parametrize("size", [0, 500, 50_000])
def test_progress_goes_up_to_the_size(tiny: Tiny, size: int, tmp_path: Path) -> None:
    store = tiny(MemoryArtifactStore())
    told: list[tuple[int, int]] = []
    artifact_id = store.add(io.BytesIO(content_of(size)), progress=lambda *now: told.append(now))
    expect_progress(told, size)
    told.clear()
    store.download(artifact_id, tmp_path / "target", progress=lambda *now: told.append(now))
    expect_progress(told, size)


def expect_progress(told: list[tuple[int, int]], size: int) -> None:
    assert told == sorted(told)
    assert {total for _, total in told} == {size}
    assert told[-1] == (size, size)
    assert len(told) > size / 10_000


def test_a_store_shows_its_nest() -> None:
    store = ContentStore(FileSystemArtifactStore("/x"))
    assert repr(store) == "ContentStore(FileSystemArtifactStore('/x'))"


def test_a_pickled_store_leads_to_the_same_place(backend: Backend) -> None:
    artifact_id = put(ContentStore(backend), b"abc")
    copy = pickle.loads(pickle.dumps(ContentStore(backend)))  # noqa: S301 -- made in this line
    assert get(copy, artifact_id) == b"abc"


# Removing


def test_a_removed_ref_waits_in_the_trash_and_what_others_need_stays(backend: Backend) -> None:
    store = ContentStore(backend)
    one, other = put(store, content_of(3_000_000)), put(store, content_of(3_000_000))
    body = read_range(backend, names.ref(one), 0, 9999)
    kept = contents_in(backend)
    store.remove(one)
    assert list(stored(backend, "refs/")) == [names.ref(other)]
    assert list(stored(backend, "trash/")) == [names.trashed_ref(one)]
    assert read_range(backend, names.trashed_ref(one), 0, 9999) == body
    store.remove(other)
    assert contents_in(backend) == kept, "only collection takes contents"


SHARED = [b"one", b"two"]
SHARED_IDS = [f"{digest_of(SHARED[0])}-{0:032x}", "00000000-0000-4000-8000-000000000000"]


def check_shared(store: ContentStore, artifact_id: str, model: dict[str, bytes | None]) -> None:
    """Read an artifact: it is what was written last, or gone if that was removed."""
    try:
        got = get(store, artifact_id)
    except ArtifactNotFound:
        assert model.get(artifact_id) is None
    else:
        # An id of our own form may lead to its content although nobody stored it.
        is_named = names.digest_in(artifact_id) == digest_of(got)
        assert got == model[artifact_id] if artifact_id in model else is_named


@settings(max_examples=100)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 1),
            st.sampled_from(["write", "open", "open", "open", "remove", "forget", "begin anew"]),
            st.sampled_from(SHARED_IDS),
            st.sampled_from(SHARED),
        ),
        min_size=15,
        max_size=30,
    )
)
# Who was told that there is no note does not take that for certain when it overwrites.
@example(
    [
        (0, "open", SHARED_IDS[1], b"one"),
        (1, "write", SHARED_IDS[1], b"one"),
        (1, "open", SHARED_IDS[1], b"one"),
        (0, "write", SHARED_IDS[1], b"two"),
        (1, "open", SHARED_IDS[1], b"two"),
    ]
)
def test_stores_that_share_a_cache_agree_with_a_dict(
    steps: list[tuple[int, str, str, bytes]],
) -> None:
    """What one writes, overwrites or removes is so for the other at once, whatever both recall."""
    backend = MemoryArtifactStore()
    model: dict[str, bytes | None] = {}  # None: removed
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:

        def begin_anew() -> ArtifactCache:
            return stack.enter_context(closing(ArtifactCache(folder)))

        caches = [begin_anew(), begin_anew()]
        # An empty table would say something each time it is opened.
        put(ContentStore(backend, cache=caches[0]), b"other", SHARED_IDS[1][:-1] + "1")
        get(ContentStore(backend, cache=caches[0]), SHARED_IDS[1][:-1] + "1")
        for number, act, artifact_id, content in steps:
            store = ContentStore(backend, cache=caches[number])
            if act == "write" and names.digest_in(artifact_id) in {None, digest_of(content)}:
                put(store, content, artifact_id)
                model[artifact_id] = content
            elif act == "open":
                check_shared(store, artifact_id, model)
            elif act == "remove":
                is_there = model.get(artifact_id) is not None
                with nullcontext() if is_there else pytest.raises(ArtifactNotFound):
                    store.remove(artifact_id)
                model[artifact_id] = None
            elif act == "forget":
                caches[number].forget(digest_of(content))
            elif act == "begin anew":
                caches[number] = begin_anew()
        for cache in caches:
            for artifact_id in SHARED_IDS:
                check_shared(ContentStore(backend, cache=cache), artifact_id, model)


def test_a_reader_goes_on_after_its_artifact_was_removed(tiny: Tiny, backend: Backend) -> None:
    store = tiny(backend)
    content = content_of(50_000)
    artifact_id = put(store, content)
    with store.open_reader(artifact_id) as reader:
        found = reader.read(10)
        store.remove(artifact_id)
        assert found + reader.read() == content


# The trash


def to_trash(backend: Backend, run: str) -> None:
    for name in contents_in(backend):
        backend.move(name, names.trashed(run, name))


@pytest.mark.parametrize("size", [500, 50_000])
def test_what_lies_in_the_trash_is_read_there_in_place(
    tiny: Tiny, backend: Backend, size: int, tmp_path: Path
) -> None:
    content = content_of(size)
    artifact_id = put(tiny(backend), content)
    backend.write(names.trashed("6", "started"), io.BytesIO())
    to_trash(backend, "7")
    before = stored(backend)
    store = ContentStore(backend)
    assert get(store, artifact_id) == content
    store.download(artifact_id, tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == content
    assert stored(backend) == before, "readers write nothing"


@pytest.mark.parametrize("size", [500, 50_000])
def test_what_lies_only_in_the_trash_is_stored_anew(
    tiny: Tiny, backend: Backend, size: int
) -> None:
    content = content_of(size)
    store = tiny(backend)
    put(store, content)
    kept = contents_in(backend)
    to_trash(backend, "7")
    artifact_id = put(store, content)
    assert contents_in(backend) == kept
    for name in stored(backend, "trash/"):
        backend.remove(name)
    assert get(ContentStore(backend), artifact_id) == content


def test_a_content_half_live_and_half_in_the_trash_of_two_runs_is_read(
    tiny: Tiny, backend: Backend
) -> None:
    content = content_of(50_000)
    artifact_id = put(tiny(backend), content)
    for number, name in enumerate(contents_in(backend)):
        if number % 3:
            backend.move(name, names.trashed(str(number % 3), name))
    assert get(ContentStore(backend), artifact_id) == content


def test_a_folder_that_cannot_be_written_is_read_trash_included(
    tiny: Tiny, without_privileges: Path
) -> None:
    backend = FileSystemArtifactStore(without_privileges / "store")
    contents = [content_of(500), content_of(50_000)]
    ids = [put(tiny(backend), content) for content in contents]
    for place in ("live", "trash"):
        if place == "trash":
            for path in [backend._base_path, *backend._base_path.rglob("*")]:
                path.chmod(0o755)
            to_trash(backend, "7")
        for path in [*backend._base_path.rglob("*"), backend._base_path]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        with pytest.raises(PermissionError):
            backend.write("x", io.BytesIO(b"x"))
        store = ContentStore(FileSystemArtifactStore(without_privileges / "store"))
        for artifact_id, content in zip(ids, contents, strict=True):
            assert get(store, artifact_id) == content
            target = without_privileges / "target"
            store.download(artifact_id, target, overwrite=True)
            assert target.read_bytes() == content, place


# What Optuna stored as plain objects


@pytest.mark.parametrize("prefix", ["", "optuna/"])
@pytest.mark.parametrize("size", [0, 100, 3_000_000])
def test_a_plain_artifact_of_optuna_has_a_whole_life(
    prefix: str, size: int, tmp_path: Path
) -> None:
    content, artifact_id = content_of(size), f"{prefix}{uuid4()}"
    folder = tmp_path / "store"
    (folder / prefix).mkdir(parents=True)
    theirs = optuna.artifacts.FileSystemArtifactStore(folder)
    theirs.write(artifact_id, io.BytesIO(content))
    store = ContentStore(FileSystemArtifactStore(folder))
    assert get(store, artifact_id) == content
    ref = store.stat(artifact_id)
    assert (ref.artifact_id, ref.digest, ref.size) == (artifact_id, None, size)
    assert abs(datetime.fromisoformat(ref.uploaded_at) - datetime.now(UTC)) < timedelta(minutes=5)
    told: list[tuple[int, int]] = []
    store.download(artifact_id, tmp_path / "target", progress=lambda *now: told.append(now))
    assert (tmp_path / "target").read_bytes() == content
    (tmp_path / "target").unlink()
    assert not size or told[-1][0] == size
    store.remove(artifact_id)
    assert not (folder / artifact_id).exists()
    check_gone(store, artifact_id, tmp_path / "target")


def test_a_ref_goes_before_a_plain_artifact_and_both_are_removed(tmp_path: Path) -> None:
    theirs = optuna.artifacts.FileSystemArtifactStore(tmp_path)
    theirs.write(UUID4, io.BytesIO(b"plain"))
    store = ContentStore(FileSystemArtifactStore(tmp_path))
    store.write(UUID4, io.BytesIO(b"content"))
    assert (tmp_path / UUID4).read_bytes() == b"plain"
    assert get(store, UUID4) == b"content"
    assert store.stat(UUID4).size == 7
    store.remove(UUID4)
    check_gone(store, UUID4, tmp_path / "target")
    with pytest.raises(ArtifactNotFound):
        theirs.open_reader(UUID4)


# The refs of a store


def test_every_ref_is_listed_until_it_is_removed(backend: Backend) -> None:
    """Whatever its id looks like; with what `stat` tells of it."""
    store = ContentStore(backend)
    ids = ["verbatim", "With Capitals", "a/b", UUID4, "é" * 100]
    ids += [put(store, content_of(size)) for size in SIZES]
    for artifact_id in ids[:5]:
        put(store, b"abc", artifact_id)
    assert sorted(ref.artifact_id for ref in store.refs()) == sorted(ids)
    assert all(store.stat(ref.artifact_id) == ref for ref in store.refs())
    for removed in ids[1::2]:
        store.remove(removed)
    assert sorted(ref.artifact_id for ref in ContentStore(backend).refs()) == sorted(ids[::2])


def test_a_ref_that_goes_while_they_are_listed_is_left_out(backend: Backend) -> None:
    store = ContentStore(backend)
    ids = {put(store, b"abc") for _ in range(50)}
    refs = store.refs()
    found = {next(refs).artifact_id}
    for artifact_id in ids - found:
        store.remove(artifact_id)
    found |= {ref.artifact_id for ref in refs}
    assert found < ids
    assert [ref.artifact_id in found for ref in store.refs()] == [True]


def test_a_ref_that_is_wrong_stops_the_listing_or_is_told(backend: Backend) -> None:
    store = ContentStore(backend)
    good, other = (put(store, content) for content in (b"abc", b"xyz"))
    body = read_range(backend, names.ref(other), 0, 10_000)
    misplaced = {
        "refs/damaged": body.replace(b"xyz", b"xyZ").replace(b'"size":3', b'"size":4'),
        "refs/elsewhere": body,
        "refs/~folder/x": body,
    }
    for name, wrong in misplaced.items():
        backend.write(name, io.BytesIO(wrong))
    # An id of our own form that leads to another content.
    liar = names.new_artifact_id(digest_of(b"something else"))
    lie = Ref(liar, digest_of(b"xyz"), 3, None, None, None, "2026-11-01T12:00:00+00:00")
    backend.write(names.ref(liar), io.BytesIO(lie.encode()))
    told: list[str] = []
    found = store.refs(damaged=lambda error: told.append(str(error)))
    assert {ref.artifact_id for ref in found} == {good, other}
    assert len(told) == 4
    for name in [*misplaced, names.ref(liar)]:
        assert sum(f"{name} in {backend!r}" in message for message in told) == 1
    with pytest.raises(CorruptArtifact):
        list(store.refs())


def test_a_store_of_optunas_is_a_place_too(tmp_path: Path) -> None:
    files = optuna.artifacts.FileSystemArtifactStore(str(tmp_path))
    places: list[Any] = [files, optuna.artifacts.Backoff(files), Backoff(cast("Any", files))]
    for number, place in enumerate(places):
        content = content_of(3_000_000 + number)
        assert get(ContentStore(place), put(ContentStore(place), content)) == content


def test_a_body_that_is_refused_makes_no_store(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="binary mode"):
        ContentStore(FileSystemArtifactStore(tmp_path / "store")).add("no stream")  # type: ignore[arg-type]  # on purpose
    assert not (tmp_path / "store").exists()


def test_lines_of_a_cached_artifact_are_read_from_few_pieces(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of every file: with a read for each byte, a log of 100 MB took four minutes."""
    store = ContentStore(backend, cache=ArtifactCache(tmp_path / "cache"))
    lines = [b"%d\n" % number for number in range(100_000)]
    artifact_id = put(store, b"".join(lines))
    looks = 0
    check = Watched.check

    def look(file: Watched) -> None:
        nonlocal looks
        looks += 1
        check(file)

    monkeypatch.setattr(Watched, "check", look)
    for _ in range(2):
        with store.open_reader(artifact_id) as reader:
            assert list(reader) == lines
    assert 0 < looks < 100


def test_a_place_that_cannot_list_says_so() -> None:
    store = ContentStore(ForeignBackend(MemoryArtifactStore()))
    put(store, b"abc")
    with pytest.raises(io.UnsupportedOperation, match=r"ForeignBackend\(.*cannot list"):
        next(store.refs())


# What a crash left


@pytest.mark.parametrize("size", [500, 20_000])
def test_an_upload_heals_what_a_crash_cut_short(tiny: Tiny, backend: Backend, size: int) -> None:
    content = content_of(size)
    artifact_id = put(tiny(backend), content)
    for name, length in contents_in(backend).items():
        body = read_range(backend, name, 0, length)
        is_manifest = name.startswith("manifests/")
        backend.write(name, io.BytesIO(body[: 500 if is_manifest else -1]))
        if size > 1000 and not is_manifest:
            # Without its manifest an upload looks at the blobs.
            backend.remove(names.manifest(digest_of(content)))
        put(ContentStore(backend), content)
        assert read_range(backend, name, 0, length + 1) == body
        assert get(ContentStore(backend), artifact_id) == content


@pytest.mark.parametrize("size", [500, 20_000])
@pytest.mark.parametrize("by", ["download", "open_reader"])
def test_what_read_wrong_is_written_anew_by_the_next_upload(
    tiny: Tiny, backend: Backend, size: int, by: str, tmp_path: Path
) -> None:
    """That it is there, in its right size, is no reason to leave it."""
    store = tiny(backend)
    content = content_of(size)
    artifact_id = put(store, content)
    read: Callable[[], object] = partial(get, store, artifact_id)
    if by == "download":
        read = partial(store.download, artifact_id, tmp_path / "target")
    for name, length in contents_in(backend).items():
        wrong = bytearray(read_range(backend, name, 0, length))
        wrong[length // 2] ^= 1
        backend.write(name, io.BytesIO(wrong))
        with pytest.raises(CorruptArtifact):
            read()
        put(store, content)
        assert get(ContentStore(backend), artifact_id) == content


@pytest.mark.parametrize("size", [500, 20_000])
@pytest.mark.parametrize("harm", ["deleted", "cut"])
def test_what_is_deleted_or_cut_is_written_anew_by_the_next_upload_of_any_process(
    tiny: Tiny, backend: Backend, size: int, harm: str
) -> None:
    """Nobody has read it since: that the manifest is there is no reason to leave the blobs."""
    content = content_of(size)
    artifact_id = put(tiny(backend), content)
    for name, length in contents_in(backend).items():
        backend.remove(name)
        if harm == "cut":
            backend.write(name, io.BytesIO(bytes(length - 1)))
        put(tiny(backend), content)
        assert get(tiny(backend), artifact_id) == content


def test_a_content_too_large_to_lean_on_is_a_duplicate_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "_LARGEST_BASE", 100)
    content = content_of(3_000_000)
    put(ContentStore(FileSystemArtifactStore(tmp_path)), content)
    files = {path: path.stat().st_ino for path in tmp_path.glob("[bm]*/*/*")}
    put(ContentStore(FileSystemArtifactStore(tmp_path)), content)
    assert files == {path: path.stat().st_ino for path in files}
    assert len(files) == 2


@pytest.mark.parametrize(
    "artifact_id",
    [None, "0f8fad5b-d9cb-469f-a165-70867728950e", "best"],
    ids=["ours", "uuid", "word"],
)
def test_a_delivery_is_one_hit_or_one_miss(
    backend: Backend, tmp_path: Path, artifact_id: str | None
) -> None:
    store = ContentStore(backend, cache=ArtifactCache(tmp_path / "cache"))
    made = store.add(io.BytesIO(content_of(3_000_000)), artifact_id=artifact_id)
    for number, (hits, misses) in enumerate([(0, 1), (1, 1), (2, 1)]):
        store.download(made, tmp_path / str(number))
        assert store.cache is not None
        assert (store.cache.counters.hits, store.cache.counters.misses) == (hits, misses)


def test_the_folder_of_a_store_may_be_moved(tmp_path: Path) -> None:
    artifact_id = put(ContentStore(FileSystemArtifactStore(tmp_path / "old")), b"abc")
    os.rename(tmp_path / "old", tmp_path / "new")  # noqa: PTH104 -- as `mv` does
    assert get(ContentStore(FileSystemArtifactStore(tmp_path / "new")), artifact_id) == b"abc"


def test_an_artifact_that_is_removed_while_it_is_fetched_is_not_served_again(
    backend: Backend, tmp_path: Path
) -> None:
    """The note of its removal stays, whatever the fetcher learned of it before."""
    one, other = (ContentStore(backend, cache=ArtifactCache(tmp_path / "cache")) for _ in range(2))
    for artifact_id in (one.add(io.BytesIO(b"ours")), str(uuid4())):
        one.write(artifact_id, io.BytesIO(b"ours"))

        todo = [artifact_id]

        def remove(_done: int, _size: int, todo: list[str] = todo) -> None:
            while todo:
                other.remove(todo.pop())

        one.download(artifact_id, tmp_path / artifact_id, progress=remove)
        for store in (one, other):
            with pytest.raises(ArtifactNotFound):
                store.open_reader(artifact_id)
