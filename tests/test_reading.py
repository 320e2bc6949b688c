"""Nothing wrong ever leaves: every stored byte is changed in turn, and every file damaged."""

from __future__ import annotations

import io
from dataclasses import replace
from itertools import combinations, cycle
from typing import TYPE_CHECKING, BinaryIO

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st
from optuna.artifacts.exceptions import ArtifactNotFound

from casartifacts import names
from casartifacts.backends.filesystem import FileSystemArtifactStore
from casartifacts.backends.memory import MemoryArtifactStore
from casartifacts.digest import digest_of
from casartifacts.errors import CorruptArtifact, StoreMismatch
from casartifacts.manifest import Manifest
from casartifacts.store import ContentStore
from casartifacts.testing import Fault, Plan

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from casartifacts.protocols import Backend
    from casartifacts.testing import Kind

    Tiny = Callable[[Backend], ContentStore]
    Damage = Callable[[bytes], bytes | None]

ID = "0f8fad5b-d9cb-469f-a165-70867728950e"
SMALL = b"a small content"
LARGE = blake3(b"reading").digest(length=12_000)

DAMAGES: dict[str, Damage] = {
    "its first byte flipped": lambda body: bytes([body[0] ^ 1]) + body[1:],
    "a byte flipped": lambda body: (
        body[: len(body) // 2] + bytes([body[len(body) // 2] ^ 128]) + body[len(body) // 2 + 1 :]
    ),
    "its last byte flipped": lambda body: body[:-1] + bytes([body[-1] ^ 1]),
    "its last byte lost": lambda body: body[:-1],
    "its second half lost": lambda body: body[: len(body) // 2],
    "its second half zero": lambda body: body[: len(body) // 2] + bytes(len(body) - len(body) // 2),
    "all of it lost": lambda _body: b"",
    "one byte more": lambda body: body + b"\n",
    "itself once more": lambda body: body + body,
    "been deleted": lambda _body: None,
}


def names_in(backend: Backend) -> list[str]:
    """Return what a download reads: hints say what to share with, and no more."""
    return [entry.name for entry in backend.list("") if not entry.name.startswith("hints/")]


def bytes_of(backend: Backend, name: str) -> bytes:
    with backend.open_reader(name) as reader:
        return reader.read()


def get(store: ContentStore) -> bytes:
    with store.open_reader(ID) as reader:
        return reader.read()


def expect_right_or_loud(store: ContentStore, content: bytes) -> bool:
    """Read the artifact; returns whether it came. Nothing but errors of ours may be raised."""
    try:
        found = get(store)
    except (CorruptArtifact, StoreMismatch, ArtifactNotFound):
        return False
    assert found == content
    return True


@pytest.mark.parametrize("content", [SMALL, LARGE[:3000]], ids=["small", "large"])
def test_every_changed_byte_of_every_stored_object_is_noticed(tiny: Tiny, content: bytes) -> None:
    backend = MemoryArtifactStore()
    tiny(backend).write(ID, io.BytesIO(content))
    for name in names_in(backend):
        body = bytes_of(backend, name)
        for position in range(len(body)):
            changed = bytearray(body)
            changed[position] ^= 1 << position % 8
            backend.write(name, io.BytesIO(changed))
            with pytest.raises((CorruptArtifact, StoreMismatch)):
                get(ContentStore(backend))
        backend.write(name, io.BytesIO(body))
    assert get(ContentStore(backend)) == content


def expected(name: str, damage: str, content: bytes) -> type[Exception] | None:
    """Return what reading must raise; None where the right bytes come all the same."""
    if name == names.STORE_RECORD:
        return StoreMismatch
    if name.startswith("refs/") and damage == "been deleted":
        return ArtifactNotFound
    if name.startswith("blobs/") and content == LARGE and "more" in damage:
        return None  # only ranges are read, and they are whole
    return CorruptArtifact


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
def test_every_damaged_file_is_noticed_and_nothing_is_left_of_a_download(
    tiny: Tiny, tmp_path: Path, content: bytes, damage: str
) -> None:
    backend = FileSystemArtifactStore(tmp_path / "store", durable=False)
    tiny(backend).write(ID, io.BytesIO(content))
    target = tmp_path / "out" / "target"
    target.parent.mkdir()
    stored = names_in(backend)
    assert len(stored) == (3 if content == SMALL else 7)
    for name in stored:
        body = bytes_of(backend, name)
        damaged = DAMAGES[damage](body)
        if damaged is not None:
            backend.write(name, io.BytesIO(damaged))
        elif name != names.STORE_RECORD:
            backend.remove(name)
        else:
            continue
        error = expected(name, damage, content)
        if error is None:
            assert get(ContentStore(backend)) == content
            ContentStore(backend).download(ID, target)
            assert target.read_bytes() == content
        else:
            with pytest.raises(error) as caught:
                get(ContentStore(backend))
            subjects = {name, digest_of(content)} | ({repr(ID)} if "refs/" in name else set())
            assert any(subject in str(caught.value) for subject in subjects)
            with pytest.raises(error):
                ContentStore(backend).download(ID, target)
            assert not target.exists()
            target.write_bytes(b"old")
            with pytest.raises(error):
                ContentStore(backend).download(ID, target, overwrite=True)
            assert target.read_bytes() == b"old"
        target.unlink()
        assert not list(target.parent.iterdir())
        backend.write(name, io.BytesIO(body))
    assert get(ContentStore(backend)) == content


def test_a_store_that_lost_its_record_is_read_as_every_other_store(tiny: Tiny) -> None:
    backend = MemoryArtifactStore()
    for content in (SMALL, LARGE):
        tiny(backend).write(ID, io.BytesIO(content))
        backend.remove(names.STORE_RECORD)
        # 12,000 bytes are a small content elsewhere: there is no such blob.
        assert expect_right_or_loud(ContentStore(backend), content) == (content == SMALL)


class Swapped(MemoryArtifactStore):
    """A place in which each of two objects lies under the name of the other."""

    def swap(self, one: str, other: str) -> None:
        self._named[one], self._named[other] = self._named[other], self._named[one]


def test_what_lies_under_another_name_is_noticed(tiny: Tiny) -> None:
    backend = Swapped()
    for artifact_id, content in ((ID, LARGE), ("other", LARGE[::-1]), ("third", SMALL)):
        tiny(backend).write(artifact_id, io.BytesIO(content))
    needed = {names.ref(ID), names.manifest(digest_of(LARGE)), names.STORE_RECORD}
    for one, other in combinations(names_in(backend), 2):
        backend.swap(one, other)
        came = expect_right_or_loud(ContentStore(backend), LARGE)
        assert not (came and needed & {one, other})
        backend.swap(one, other)


def test_a_ref_of_our_own_form_that_leads_to_another_content_is_noticed(tiny: Tiny) -> None:
    """The checksum of a ref is no signature: the id itself says which content it is of."""
    backend = MemoryArtifactStore()
    store = tiny(backend)
    artifact_id = store.add(io.BytesIO(SMALL))
    store.add(io.BytesIO(LARGE))
    forged = replace(store.stat(artifact_id), digest=digest_of(LARGE), size=len(LARGE))
    backend.write(names.ref(artifact_id), io.BytesIO(forged.encode()))
    for read in (store.open_reader, store.stat):
        with pytest.raises(CorruptArtifact, match="leads to another content"):
            read(artifact_id)


def test_a_manifest_whose_chunks_make_another_content_is_noticed(tiny: Tiny) -> None:
    """Each of its chunks is as it says, but together they are not what its name says."""
    backend = MemoryArtifactStore()
    store = tiny(backend)
    store.write(ID, io.BytesIO(LARGE))
    store.write("other", io.BytesIO(LARGE[::-1]))
    digest, other = digest_of(LARGE), digest_of(LARGE[::-1])
    body = bytes_of(backend, names.manifest(other))
    forged = replace(Manifest.decode(body, digest=other, size=len(LARGE)), digest=digest)
    backend.write(names.manifest(digest), io.BytesIO(forged.encode()))
    with pytest.raises(CorruptArtifact, match="its manifest is wrong"):
        get(ContentStore(backend))


def flip(backend: Backend, position: int) -> None:
    """Change one byte of the large content where it is stored."""
    body = bytes_of(backend, names.manifest(digest_of(LARGE)))
    manifest = Manifest.decode(body, digest=digest_of(LARGE), size=len(LARGE))
    for part in manifest.segments:
        if position < part.length:
            name = names.blob(manifest.blobs[part.blob][0])
            blob = bytearray(bytes_of(backend, name))
            blob[part.start + position] ^= 1
            backend.write(name, io.BytesIO(blob))
            return
        position -= part.length


@given(position=st.integers(0, len(LARGE) - 1), sizes=st.lists(st.integers(1, 900), min_size=1))
def test_what_leaves_before_an_error_is_a_right_beginning_and_the_error_stays(
    tiny: Tiny, position: int, sizes: list[int]
) -> None:
    backend = MemoryArtifactStore()
    tiny(backend).write(ID, io.BytesIO(LARGE))
    flip(backend, position)
    with ContentStore(backend).open_reader(ID) as reader:
        found = read_until(reader, CorruptArtifact, sizes)
        assert LARGE.startswith(found)
        assert len(found) <= position
        for _ in range(3):
            with pytest.raises(CorruptArtifact, match=r"^Bytes \d+ to \d+ of content"):
                reader.read(1)


def read_until(reader: BinaryIO, error: type[Exception], sizes: list[int]) -> bytes:
    """Read in pieces of these sizes until an error comes; returns what came before it."""
    found = b""
    try:
        for size in cycle(sizes):
            piece = reader.read(size)
            if not piece:
                break
            found += piece
    except error:
        return found
    pytest.fail("the content came to an end as if it were whole")


@pytest.mark.parametrize("kind", ["flip a bit", "lose the last byte"])
@pytest.mark.parametrize("prefix", ["blobs/", "manifests/"])
def test_what_reads_wrong_once_is_read_again(tiny: Tiny, prefix: str, kind: Kind) -> None:
    backend = MemoryArtifactStore()
    tiny(backend).write(ID, io.BytesIO(LARGE))
    with Plan(Fault(kind, names=prefix, times=1)) as plan:
        assert get(ContentStore(plan.around(backend))) == LARGE
    with Plan(Fault(kind, names=prefix)) as plan, pytest.raises(CorruptArtifact):
        get(ContentStore(plan.around(backend)))


@pytest.mark.parametrize("prefix", ["refs/", "blobs/", "manifests/", "casartifacts.json"])
def test_an_error_of_the_place_reaches_the_reader(tiny: Tiny, prefix: str) -> None:
    backend = MemoryArtifactStore()
    tiny(backend).write(ID, io.BytesIO(LARGE))
    with Plan(Fault("fail", names=prefix)) as plan:
        store = ContentStore(plan.around(backend))
        with pytest.raises(ConnectionResetError, match="planned"):
            get(store)


def test_an_error_of_the_place_is_no_end_of_the_content(tiny: Tiny) -> None:
    backend = MemoryArtifactStore()
    tiny(backend).write(ID, io.BytesIO(LARGE))
    with Plan(Fault("fail", on="open_range", names="blobs/", every=6)) as plan:
        store = ContentStore(plan.around(backend))
        with store.open_reader(ID) as reader:
            assert LARGE.startswith(read_until(reader, ConnectionResetError, [500]))
            with pytest.raises(ConnectionResetError, match="planned"):
                reader.read(500)


def test_a_reader_of_a_large_content_tells_what_it_cannot_do(tiny: Tiny) -> None:
    """Its file descriptor is asked for by servers that send files themselves."""
    backend = MemoryArtifactStore()
    tiny(backend).write(ID, io.BytesIO(LARGE))
    with ContentStore(backend).open_reader(ID) as reader:
        assert reader.readable()
        assert not reader.seekable()
        with pytest.raises(io.UnsupportedOperation):
            reader.fileno()
