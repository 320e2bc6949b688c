"""Contents that are nearly the same cost what differs, whoever stored the other one.

Rule 1: what is stored and fetched is measured on the real folder and in the backend's own notes.
Rule 2: whatever is found to share with, the bytes are right.
"""

from __future__ import annotations

import contextlib
import errno
import io
import random
from typing import TYPE_CHECKING, Any, BinaryIO

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from node.place import FarAway

from casartifacts import (
    ArtifactCache,
    ContentStore,
    FileSystemArtifactStore,
    MemoryArtifactStore,
    files,
    knowledge,
    matching,
    names,
    upload_artifact,
)
from casartifacts.chunking import ChunkerParameters
from casartifacts.errors import CorruptArtifact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from casartifacts.protocols import Backend

MIB = 2**20


def bytes_in(backend: Backend, prefix: str = "blobs/") -> int:
    return sum(entry.size for entry in backend.list(prefix))


def fetched(store: ContentStore, artifact_id: str) -> bytes:
    with store.open_reader(artifact_id) as reader:
        return reader.read()


def next_of(body: bytes, *, share: float = 0.1, seed: int = 0) -> bytes:
    """Change one stretch, and shift everything."""
    chance = random.Random(seed)
    length = int(len(body) * share)
    at = chance.randrange(len(body) - length)
    return chance.randbytes(1000) + body[:at] + chance.randbytes(length) + body[at + length :]


def body_of(size: int, *, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.fixture
def place(tmp_path: Path) -> FarAway:
    return FarAway(tmp_path / "store", log=tmp_path / "log")


# Uploads


Edit = tuple[str, float, float, int]

EDITS = st.lists(
    st.tuples(
        st.sampled_from(["insert", "delete", "overwrite", "move", "cut", "repeat", "zeros"]),
        st.floats(0, 1),
        st.floats(0, 1),
        st.integers(0, 2**32),
    ),
    min_size=1,
    max_size=4,
)


def edited(body: bytes, edit: Edit) -> bytes:  # noqa: PLR0911 -- one for each kind
    what, where, much, seed = edit
    at = int(len(body) * where)
    length = int(len(body) * much * 0.3)
    stretch, rest = body[at : at + length], body[at + length :]
    match what:
        case "insert":
            return body[:at] + random.Random(seed).randbytes(length) + body[at:]
        case "delete":
            return body[:at] + rest
        case "overwrite":
            return body[:at] + random.Random(seed).randbytes(len(stretch)) + rest
        case "move":
            return rest + body[:at] + stretch
        case "repeat":
            return body[:at] + stretch + stretch + rest
        case "zeros":
            return body[:at] + bytes(len(stretch)) + rest
        case _:
            return body[:at]


class TestEdits:
    """In a class, so that the tiny store is made once."""

    @settings(max_examples=120)
    @given(st.integers(0, 20_000), st.lists(EDITS, max_size=5), st.data())
    def test_any_series_of_edits_comes_back(
        self,
        tiny: Callable[[Backend], ContentStore],
        size: int,
        series: list[list[Edit]],
        data: Any,
    ) -> None:
        """Whichever process stored what before, and whatever hints say."""
        backend = MemoryArtifactStore()
        store = tiny(backend)
        body = body_of(size)
        stored = [(store.add(io.BytesIO(body)), body)]
        for edits in series:
            for edit in edits:
                body = edited(body, edit)
            if data.draw(st.booleans(), "another process"):
                store = ContentStore(backend)
            hints = [entry.name for entry in backend.list("hints/")]
            if hints and data.draw(st.booleans(), "a hint lies"):
                name = data.draw(st.sampled_from(hints), "which")
                said = data.draw(
                    st.sampled_from([*(each[:64].encode() for each, _ in stored), b"0" * 64])
                    | st.binary(max_size=70),
                    "what",
                )
                backend.write(name, io.BytesIO(said))
            stored.append((store.add(io.BytesIO(body), filename="a"), body))
        reader = ContentStore(backend)
        for artifact_id, expected in stored:
            assert fetched(reader, artifact_id) == expected


@pytest.mark.parametrize("backend", ["near", "far"])
def test_the_next_checkpoint_costs_what_is_new(
    place: FarAway, tmp_path: Path, backend: str
) -> None:
    """In a chain as well: a tenth of each is new, and everything is shifted."""
    store = ContentStore(place if backend == "far" else FileSystemArtifactStore(tmp_path / "near"))
    body = body_of(24 * MIB)
    stored = [(store.add(io.BytesIO(body), filename="model.pt"), body)]
    for step in range(1, 5):
        before = bytes_in(store.backend)
        body = next_of(body, seed=step)
        stored.append((store.add(io.BytesIO(body), filename="model.pt"), body))
        assert bytes_in(store.backend) - before < 2.4 * MIB + 2 * MIB
    reader = ContentStore(store.backend)
    for artifact_id, expected in stored:
        assert fetched(reader, artifact_id) == expected
        reader.download(artifact_id, tmp_path / "copy", overwrite=True)
        assert (tmp_path / "copy").read_bytes() == expected


def test_another_process_finds_it_through_hints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under another name, and without any list of what is stored; nine times out of ten."""
    monkeypatch.setattr(matching, "_SAMPLED", 4 * MIB)  # as many samples as a large content has
    found = 0
    for seed in range(10):
        backend = FileSystemArtifactStore(tmp_path / str(seed), durable=False)
        body = body_of(16 * MIB, seed=seed)
        ContentStore(backend).add(io.BytesIO(body), filename="backbone.pt")
        before = bytes_in(backend)
        other = next_of(body, share=0.3, seed=seed)
        artifact_id = ContentStore(backend).add(io.BytesIO(other), filename="other.pt")
        found += bytes_in(backend) - before < 0.5 * len(body)
        assert fetched(ContentStore(backend), artifact_id) == other
    assert found >= 9


def test_another_process_finds_what_the_trial_lists(place: FarAway, tmp_path: Path) -> None:
    """Also where a content is too small for hints."""
    study = optuna.create_study()
    trial = study.ask()
    body = body_of(8 * MIB)
    path = tmp_path / "model.pt"
    path.write_bytes(body)
    upload_artifact(artifact_store=ContentStore(place), file_path=path, study_or_trial=trial)
    assert not list(place.list("hints/"))
    before = bytes_in(place)
    path.write_bytes(next_of(body))
    upload_artifact(artifact_store=ContentStore(place), file_path=path, study_or_trial=trial)
    assert bytes_in(place) - before < 3 * MIB


@pytest.mark.parametrize("lost", ["blob", "manifest"])
def test_what_is_not_live_any_more_is_not_leaned_on(place: FarAway, lost: str) -> None:
    """Rule K, where knowledge is an hour old: what is named is asked for, and sent again."""
    clock = [0.0]
    store = ContentStore(place)
    store._knowledge.now = lambda: clock[0]
    body = body_of(20 * MIB)
    first = store.add(io.BytesIO(body), filename="model.pt")
    clock[0] += knowledge.MAX_AGE_SECONDS + 1
    if lost == "blob":
        for entry in list(place.list("blobs/")):
            place.remove(entry.name)
    else:
        place.remove(names.manifest(first[:64]))
    other = next_of(body)
    artifact_id = store.add(io.BytesIO(other), filename="model.pt")
    assert fetched(ContentStore(place), artifact_id) == other


def test_a_dead_hint_leads_to_the_next_content(place: FarAway) -> None:
    """An uploader that meets one says where the chunk is now."""
    body = body_of(20 * MIB)
    first = ContentStore(place).add(io.BytesIO(body))
    hints = [entry.name for entry in place.list("hints/")]
    assert hints
    for prefix in ("blobs/", "manifests/", "refs/"):
        for entry in list(place.list(prefix)):
            place.remove(entry.name)
    second = ContentStore(place).add(io.BytesIO(body + b"more"))
    assert first[:64] != second[:64]
    for name in hints:
        with place.open_reader(name) as reader:
            assert reader.read() == second[:64].encode()


def test_nothing_leans_on_a_content_that_read_wrong(place: FarAway) -> None:
    """Its blobs are not to be trusted; the next one is stored whole."""
    store = ContentStore(place)
    body = body_of(20 * MIB)
    first = store.add(io.BytesIO(body), filename="model.pt")
    (blob,) = place.list("blobs/")
    place.write(blob.name, io.BytesIO(bytes(blob.size)))
    with pytest.raises(CorruptArtifact):
        fetched(store, first)
    other = next_of(body)
    artifact_id = store.add(io.BytesIO(other), filename="model.pt")
    assert fetched(ContentStore(place), artifact_id) == other


@pytest.mark.parametrize("kind", ["folder", "far away"])
@pytest.mark.parametrize("through", ["its beginning", "another content"])
def test_a_blob_that_may_be_damaged_is_written_anew_by_whoever_needs_it(
    place: FarAway, tmp_path: Path, kind: str, through: str
) -> None:
    """Also by another content than the one that read wrong, which begins with the same blob."""
    backend = place if kind == "far away" else FileSystemArtifactStore(tmp_path / "near")
    store = ContentStore(backend)
    body = body_of(70 * MIB)
    first = store.add(io.BytesIO(body), filename="model.pt")
    if through == "another content":
        store.add(io.BytesIO(body + b"more"), filename="model.pt")
    blob = max(backend.list("blobs/"), key=lambda entry: entry.size)
    backend.write(blob.name, io.BytesIO(bytes(blob.size)))
    with pytest.raises(CorruptArtifact):
        fetched(store, first)
    other = body + body_of(8 * MIB, seed=1)
    artifact_id = store.add(io.BytesIO(other), filename="model.pt")
    assert fetched(ContentStore(backend), artifact_id) == other
    assert fetched(ContentStore(backend), first) == body, "and so the first is whole again"


@pytest.mark.parametrize("kind", ["folder", "far away"])
def test_a_duplicate_of_what_leans_on_a_blob_that_may_be_damaged_is_written_anew(
    place: FarAway, tmp_path: Path, kind: str
) -> None:
    """Although its manifest is live, and it has not been read itself."""
    backend = place if kind == "far away" else FileSystemArtifactStore(tmp_path / "near")
    store = ContentStore(backend)
    body = body_of(20 * MIB)
    first = store.add(io.BytesIO(body), filename="model.pt")
    other = next_of(body)
    store.add(io.BytesIO(other), filename="model.pt")
    blob = max(backend.list("blobs/"), key=lambda entry: entry.size)
    backend.write(blob.name, io.BytesIO(bytes(blob.size)))
    with pytest.raises(CorruptArtifact):
        fetched(store, first)
    artifact_id = store.add(io.BytesIO(other), filename="model.pt")
    assert fetched(ContentStore(backend), artifact_id) == other


class Closed(MemoryArtifactStore):
    """A bucket in which some names may not be touched."""

    def __init__(self, *, closed: str) -> None:
        super().__init__()
        self.closed = closed

    def _check(self, name: str) -> None:
        if self.closed and name.startswith(self.closed):
            raise PermissionError(f"{name}: 403")

    def open_reader(self, name: str) -> BinaryIO:
        self._check(name)
        return super().open_reader(name)

    def write(self, name: str, content_body: BinaryIO) -> None:
        self._check(name)
        super().write(name, content_body)

    def write_if_absent(self, name: str, content_body: BinaryIO) -> bool:
        self._check(name)
        return super().write_if_absent(name, content_body)


def test_where_hints_may_not_be_touched_uploads_go_on_and_say_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    backend = Closed(closed="hints/")
    store = ContentStore(backend)
    for seed in range(3):
        body = body_of(17 * MIB, seed=seed)
        assert fetched(store, store.add(io.BytesIO(body))) == body
    assert ["hints/" in record.getMessage() for record in caplog.records] == [True]


def test_a_manifest_that_may_not_be_read_is_not_leaned_on() -> None:
    backend = Closed(closed="")
    body = body_of(17 * MIB)
    first = ContentStore(backend).add(io.BytesIO(body))
    backend.closed = names.manifest(first[:64])
    other = next_of(body)
    artifact_id = ContentStore(backend).add(io.BytesIO(other))
    assert fetched(ContentStore(backend), artifact_id) == other


# Downloads


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[ArtifactCache]:
    with contextlib.closing(ArtifactCache(tmp_path / "cache", size_limit=2**30)) as cache:
        yield cache


def test_what_was_stored_is_followed_whatever_was_fetched_since(tmp_path: Path) -> None:
    store = ContentStore(FileSystemArtifactStore(tmp_path / "store"))
    fetched_ids = [
        ContentStore(store.backend).add(
            io.BytesIO(body_of(2 * MIB, seed=seed)), filename="model.pt"
        )
        for seed in range(1, 4)
    ]
    store.add(io.BytesIO(body_of(2 * MIB)), filename="model.pt")
    for artifact_id in fetched_ids:
        store.download(artifact_id, tmp_path / artifact_id)
    sharing = store._publishing.sharing
    assert len(sharing.known("model.pt", ChunkerParameters())) == 1
    # A hint that leads to it does not take its name.
    [manifest] = sharing.noted("model.pt")[-1:]
    sharing.note(manifest, filename=None)
    assert sharing.noted("model.pt")[0].digest == manifest.digest


@pytest.mark.parametrize("who", ["the same process", "another process"])
@pytest.mark.parametrize("spoil", [False, True], ids=["right", "damaged"])
def test_what_a_cached_content_has_is_not_fetched(
    place: FarAway, cache: ArtifactCache, tmp_path: Path, who: str, *, spoil: bool
) -> None:
    """Each chunk is verified: what is damaged there is fetched after all."""
    uploader = ContentStore(place)
    body = body_of(24 * MIB)
    other = next_of(body)
    first = uploader.add(io.BytesIO(body), filename="model.pt")
    second = uploader.add(io.BytesIO(other), filename="model.pt")
    store = ContentStore(place, cache=cache)
    store.download(first, tmp_path / "first")
    before = place.bytes_read()
    if spoil:
        (path,) = cache.folder.glob("contents/*/*")
        path.chmod(0o600)
        path.write_bytes(bytes(len(body)))
    if who == "another process":
        store = ContentStore(place, cache=ArtifactCache(cache.folder))
    store.download(second, tmp_path / "second")
    assert (tmp_path / "second").read_bytes() == other
    assert store.cache is not None
    assert store.cache.counters.hits == 0  # what was only looked into was not asked for
    if spoil:
        assert place.bytes_read() - before == len(other)
    else:
        assert place.bytes_read() - before < 4 * MIB
    store.cache.close()


def test_a_cached_content_that_cannot_be_read_is_gone_around(
    place: FarAway, cache: ArtifactCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fails there costs a fetch."""
    uploader = ContentStore(place)
    body = body_of(8 * MIB)
    first = uploader.add(io.BytesIO(body), filename="model.pt")
    second = uploader.add(io.BytesIO(next_of(body)), filename="model.pt")
    store = ContentStore(place, cache=cache)
    store.download(first, tmp_path / "first")
    monkeypatch.setattr(files, "read_at", fail)
    store.download(second, tmp_path / "second")
    assert (tmp_path / "second").read_bytes() == next_of(body)


def fail(*_: object) -> int:
    raise OSError(errno.EIO, "planned")
