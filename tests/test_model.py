"""One model for all: whatever is done in whatever order, a store agrees with a dict.

Writes, duplicates, overwrites, reads, downloads, removals, uploads that break off, plain objects as
Optuna stored them earlier, evicted and damaged cache files, and stores opened anew: on a folder, in
memory and over Optuna's own file store, each with and without a cache.

What the dict does not know: an id of our own form names its content, so a cache that holds that
content serves it without asking. Only the cache through which it was removed knows better.
"""

from __future__ import annotations

import io
import pickle
import random
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, cast
from unittest import mock

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from optuna.artifacts import FileSystemArtifactStore as OptunaFileStore

from casartifacts import (
    ArtifactCache,
    ArtifactNotFound,
    ContentStore,
    FileSystemArtifactStore,
    MemoryArtifactStore,
    names,
    planning,
)
from casartifacts.backends.foreign import ForeignBackend
from casartifacts.chunking import ChunkerParameters
from casartifacts.digest import digest_of
from casartifacts.records import StoreRecord
from casartifacts.testing import OnlyRead

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import BinaryIO

    from casartifacts.protocols import Backend
    from casartifacts.testing import Stream

# A store whose contents are large from 1,000 bytes on, so that small ones take all the ways.
RECORD = StoreRecord(
    durable=False,
    small_content_limit=1_000,
    chunker=ChunkerParameters(minimum=64, average=256, maximum=1024),
)
BLOB_LIMIT = 4_096
CACHE_LIMIT = 20_000

LARGE = random.Random(0).randbytes(9_000)

CONTENTS = [
    b"",
    b"x",
    LARGE[:1_000],
    LARGE[:1_001],
    LARGE,
    LARGE[:5_000] + b"something new" + LARGE[5_000:],
    bytes(9_000),
]

IDS = [
    "best",
    "a name/of our users",
    "8c7f3d9a-0c1e-4f7a-9b3e-2d5a6c4b1e0f",
    "optuna/1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed",
    *(f"{digest_of(content)}-{0:032x}" for content in CONTENTS[:5]),
]

contents = st.sampled_from(CONTENTS)


class Broken(Exception):
    """The stream broke off."""


class Breaking(io.BytesIO):
    """A body whose reading fails where its bytes end."""

    def read(self, size: int | None = -1, /) -> bytes:
        piece = super().read(size)
        if not piece:
            raise Broken
        return piece


def _unseekable(body: io.BytesIO) -> BinaryIO:
    return cast("BinaryIO", OnlyRead(cast("Stream", body)))


def _fits(artifact_id: str, content: bytes) -> bool:
    """Tell whether an id does not name another content."""
    return names.digest_in(artifact_id) in {None, digest_of(content)}


class Model(RuleBasedStateMachine):
    """A store beside two dicts: what its ids lead to, and plain objects, which ids hide."""

    make_backend: Callable[[Path], Backend]
    with_cache: bool

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.blobs = mock.patch.object(planning, "BLOB_LIMIT", BLOB_LIMIT)
        self.blobs.start()
        self.cache = ArtifactCache(self.folder / "cache", size_limit=CACHE_LIMIT)
        backend = type(self).make_backend(self.folder / "store")
        backend.write(names.STORE_RECORD, io.BytesIO(RECORD.encode()))
        self.store = ContentStore(backend, cache=self.cache if self.with_cache else None)
        self.stored: dict[str, bytes] = {}
        self.plain: dict[str, bytes] = {}
        self.ids = list(IDS)
        self.noted: set[str] = set()  # what the cache knows to be removed

    def teardown(self) -> None:
        try:
            for artifact_id in self.ids:
                self._read(artifact_id)
        finally:
            self.blobs.stop()
            self.cache.close()
            if self.store.cache is not None:
                self.store.cache.close()
            shutil.rmtree(self.folder)

    def _expected(self, artifact_id: str) -> bytes | None:
        return self.stored.get(artifact_id, self.plain.get(artifact_id))

    def _is_right(self, artifact_id: str, got: bytes | None) -> bool:
        expected = self._expected(artifact_id)
        if expected is None and got is not None and artifact_id not in self.noted:
            return self.with_cache and names.digest_in(artifact_id) == digest_of(got)
        return got == expected

    def _id(self, place: int) -> str:
        return self.ids[place % len(self.ids)]

    @rule(place=st.integers(0, 99), content=contents, before=st.integers(0, 9), seeks=st.booleans())
    def write(self, place: int, content: bytes, before: int, seeks: bool) -> None:
        """Write or overwrite, from where the body stands."""
        body = io.BytesIO(bytes(before) + content)
        body.seek(before)
        artifact_id = self._id(place)
        if not _fits(artifact_id, content):
            with pytest.raises(ValueError, match="Invalid artifact_id"):
                self.store.write(artifact_id, body)
            return
        self.store.write(artifact_id, body if seeks else _unseekable(body))
        assert body.read() == b""
        self.stored[artifact_id] = content

    @rule(content=contents)
    def add(self, content: bytes) -> None:
        """Write under a fresh id."""
        artifact_id = self.store.add(io.BytesIO(content), filename="model.pt")
        assert artifact_id not in self.ids
        self.ids.append(artifact_id)
        self.stored[artifact_id] = content

    @rule(place=st.integers(0, 99), content=contents, seeks=st.booleans())
    def break_off(self, place: int, content: bytes, seeks: bool) -> None:
        """Break off an upload; nothing of it is to be seen."""
        body = Breaking(content)
        with pytest.raises(Broken):
            self.store.write(self._id(place), body if seeks else _unseekable(body))

    @rule(place=st.integers(0, 99), content=contents)
    def store_plainly(self, place: int, content: bytes) -> None:
        """Store as Optuna alone does."""
        artifact_id = self._id(place)
        if names.digest_in(artifact_id) is not None:
            return  # Optuna makes no such ids
        self.store.backend.write(artifact_id, io.BytesIO(content))
        self.plain[artifact_id] = content

    @rule(place=st.integers(0, 99))
    def read(self, place: int) -> None:
        self._read(self._id(place))

    def _read(self, artifact_id: str) -> None:
        try:
            with self.store.open_reader(artifact_id) as reader:
                got: bytes | None = b"".join(iter(lambda: reader.read(700), b""))
        except ArtifactNotFound:
            got = None
        assert self._is_right(artifact_id, got)

    @rule(place=st.integers(0, 99), exists=st.booleans(), overwrite=st.booleans())
    def download(self, place: int, exists: bool, overwrite: bool) -> None:
        target = self.folder / "target"
        if exists:
            target.write_bytes(b"before")
        expected = self._expected(self._id(place))
        try:
            self.store.download(self._id(place), target, overwrite=overwrite)
        except FileExistsError:
            assert exists
            assert not overwrite
        except ArtifactNotFound:
            assert expected is None
            assert target.exists() == exists
        else:
            assert overwrite or not exists
            assert self._is_right(self._id(place), target.read_bytes())
        assert not list(self.folder.glob(".casartifacts-*"))
        target.unlink(missing_ok=True)

    @rule(place=st.integers(0, 99))
    def stat(self, place: int) -> None:
        expected = self._expected(self._id(place))
        if expected is None:
            with pytest.raises(ArtifactNotFound):
                self.store.stat(self._id(place))
        else:
            assert self.store.stat(self._id(place)).size == len(expected)

    @rule(place=st.integers(0, 99))
    def remove(self, place: int) -> None:
        artifact_id = self._id(place)
        if self._expected(artifact_id) is None:
            with pytest.raises(ArtifactNotFound):
                self.store.remove(artifact_id)
        else:
            self.store.remove(artifact_id)
        self.noted.add(artifact_id)
        self.stored.pop(artifact_id, None)
        self.plain.pop(artifact_id, None)

    @rule(fresh=st.booleans())
    def reopen(self, fresh: bool) -> None:
        """Go on with another object on the same place, as another process would."""
        if self.store.cache is not None:
            self.store.cache.close()
        if fresh:
            cache = self.store.cache and ArtifactCache(self.cache.folder, size_limit=CACHE_LIMIT)
            self.store = ContentStore(self.store.backend, cache=cache)
        else:
            self.store = pickle.loads(pickle.dumps(self.store))  # noqa: S301 -- our own

    @rule(content=contents)
    def evict(self, content: bytes) -> None:
        self.cache.forget(digest_of(content))

    @rule()
    def lose_the_cache(self) -> None:
        shutil.rmtree(self.cache.folder, ignore_errors=True)
        self.noted.clear()

    @rule(place=st.integers(0, 99), at=st.integers(0, 9_999), cut=st.booleans())
    def damage_the_cache(self, place: int, at: int, cut: bool) -> None:
        """Flip a byte of a cached file, or cut it there."""
        held = sorted(self.cache.folder.glob("contents/*/*"))
        if held:
            path = held[place % len(held)]
            content = bytearray(path.read_bytes())
            path.chmod(0o600)
            if cut or not content:
                path.write_bytes(content[:at] if at < len(content) else content + b"more")
            else:
                content[at % len(content)] ^= 0xFF
                path.write_bytes(content)


def _on_a_folder(folder: Path) -> Backend:
    return FileSystemArtifactStore(folder, durable=False)


def _in_memory(folder: Path) -> Backend:
    return MemoryArtifactStore()


def _over_optuna_s_file_store(folder: Path) -> Backend:
    # It makes no folders.
    for artifact_id in IDS:
        (folder / artifact_id).parent.mkdir(parents=True, exist_ok=True)
    return ForeignBackend(OptunaFileStore(folder))


@pytest.mark.parametrize("caching", [False, True], ids=["no cache", "a cache"])
@pytest.mark.parametrize("make", [_on_a_folder, _in_memory, _over_optuna_s_file_store])
def test_a_store_agrees_with_a_dict(make: Callable[[Path], Backend], caching: bool) -> None:
    class Here(Model):
        make_backend = staticmethod(make)
        with_cache = caching

    run_state_machine_as_test(Here, settings=settings(max_examples=20, stateful_step_count=40))
