"""Whatever a caller hands in: what is stored is what reading it gives, and the stream stays his."""

from __future__ import annotations

import gzip
import io
import os
import random
import socket
import tempfile
import threading
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from casartifacts.backends.memory import MemoryArtifactStore
from casartifacts.bodies import Outgoing, take
from casartifacts.digest import digest_of
from casartifacts.errors import ContentChanged
from casartifacts.store import ContentStore
from casartifacts.testing import Body, OnlyRead, Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LIMIT = 2**20
SIZES = [0, 1, LIMIT - 1, LIMIT, LIMIT + 1, 2 * LIMIT + 12_345]


def content_of(size: int) -> bytes:
    return blake3(b"bodies").digest(length=size) if size else b""


def memory(content: bytes, folder: Path) -> BinaryIO:
    return io.BytesIO(content)


def memory_at_an_offset(content: bytes, folder: Path) -> BinaryIO:
    body = io.BytesIO(b"before" + content)
    body.seek(6)
    return body


def dribbling(content: bytes, folder: Path) -> BinaryIO:
    return Body(b"before" + content, start=6, most=50_000)


def claiming_to_be_shorter(content: bytes, folder: Path) -> BinaryIO:
    return Body(content, claims=len(content) // 2)


def claiming_to_be_longer(content: bytes, folder: Path) -> BinaryIO:
    return Body(content, claims=len(content) * 2 + 1)


def not_seekable(content: bytes, folder: Path) -> BinaryIO:
    return Body(b"before" + content, start=6, seekable=False, most=50_000)


def nothing_but_read(content: bytes, folder: Path) -> BinaryIO:
    return cast("BinaryIO", OnlyRead(Body(content, most=50_000)))


def file(content: bytes, folder: Path) -> BinaryIO:
    (folder / "file").write_bytes(content)
    return (folder / "file").open("rb")


def unbuffered_file(content: bytes, folder: Path) -> BinaryIO:
    (folder / "file").write_bytes(b"before" + content)
    body = (folder / "file").open("rb", buffering=0)
    body.read(6)
    return body


def file_at_an_offset_that_has_read_ahead(content: bytes, folder: Path) -> BinaryIO:
    (folder / "file").write_bytes(b"before" + content)
    body = (folder / "file").open("rb")
    body.read(4)
    body.peek(100)
    body.read(2)
    return body


def file_with_unflushed_writes(content: bytes, folder: Path) -> BinaryIO:
    """What was written lies in the buffer, which seeking inside of it does not flush."""
    (folder / "file").write_bytes(bytes(len(content)))
    body = (folder / "file").open("r+b")
    body.seek(6)
    body.write(content[6:])
    body.seek(0)
    body.read(1)
    body.seek(0)
    body.write(content[:6])
    body.seek(0)
    if len(content) > 6:
        assert (folder / "file").read_bytes()[:6] == bytes(6), "nothing is left unflushed"
    return body


def appended_file(content: bytes, folder: Path) -> BinaryIO:
    (folder / "file").write_bytes(content[:3])
    body = (folder / "file").open("a+b")
    body.write(content[3:])
    body.seek(0)
    return body


def temporary_file(content: bytes, folder: Path) -> BinaryIO:
    body = tempfile.NamedTemporaryFile(dir=folder)  # noqa: SIM115 -- closed by the test
    body.write(content)
    body.seek(0)
    return cast("BinaryIO", body)


def spooled_file(content: bytes, folder: Path) -> BinaryIO:
    body = tempfile.SpooledTemporaryFile(max_size=1000)  # noqa: SIM115 -- as above
    body.write(content)
    body.seek(0)
    return cast("BinaryIO", body)


def gzip_file(content: bytes, folder: Path) -> BinaryIO:
    """Its `fileno()` is that of the compressed file."""
    (folder / "file.gz").write_bytes(gzip.compress(content, 1))
    return cast("BinaryIO", gzip.open(folder / "file.gz"))


def member_of_a_zip(content: bytes, folder: Path) -> BinaryIO:
    with zipfile.ZipFile(folder / "zip", "w") as archive:
        archive.writestr("member", content)
    return cast("BinaryIO", zipfile.ZipFile(folder / "zip").open("member"))


def pipe(content: bytes, folder: Path) -> BinaryIO:
    reading, writing = os.pipe()

    def feed() -> None:
        with open(writing, "wb") as end:  # noqa: PTH123 -- a descriptor has no path
            end.write(content)

    threading.Thread(target=feed).start()
    return open(reading, "rb")  # noqa: PTH123 -- as above


def connection(content: bytes, folder: Path) -> BinaryIO:
    ours, theirs = socket.socketpair()

    def feed() -> None:
        with theirs:
            theirs.sendall(content)

    threading.Thread(target=feed).start()
    with ours:
        return ours.makefile("rb")


def buffered_memory(content: bytes, folder: Path) -> BinaryIO:
    return io.BufferedReader(Stream(content, most=3000))


def of_another_store(content: bytes, folder: Path) -> BinaryIO:
    store = ContentStore(MemoryArtifactStore())
    return store.open_reader(store.add(io.BytesIO(content)))


KINDS: list[Callable[[bytes, Path], BinaryIO]] = [
    memory,
    memory_at_an_offset,
    dribbling,
    claiming_to_be_shorter,
    claiming_to_be_longer,
    not_seekable,
    nothing_but_read,
    file,
    unbuffered_file,
    file_at_an_offset_that_has_read_ahead,
    file_with_unflushed_writes,
    appended_file,
    temporary_file,
    spooled_file,
    gzip_file,
    member_of_a_zip,
    pipe,
    connection,
    buffered_memory,
    of_another_store,
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_what_is_stored_is_what_reading_gives(
    kind: Callable[[bytes, Path], BinaryIO], tmp_path: Path
) -> None:
    store = ContentStore(MemoryArtifactStore())
    for size in SIZES:
        content = content_of(size)
        body = kind(content, tmp_path)
        artifact_id = store.add(body)
        with store.open_reader(artifact_id) as reader:
            assert reader.read() == content
        assert store.stat(artifact_id).size == len(content)
        # The stream stays the caller's, at its end.
        assert not body.read(1)
        if not isinstance(body, Body | OnlyRead):
            assert not body.closed
            body.close()


class Generous(io.BytesIO):
    """Gives more than it was asked for, against the rules of `read`."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(-1)


@pytest.mark.parametrize("size", [1000, 2 * LIMIT, 9 * LIMIT])
def test_a_body_that_gives_more_than_it_was_asked_for_is_stored_right(size: int) -> None:
    store = ContentStore(MemoryArtifactStore())
    artifact_id = store.add(Generous(content_of(size)))
    with store.open_reader(artifact_id) as reader:
        assert reader.read() == content_of(size)


@given(
    content=st.binary(max_size=300),
    start=st.integers(0, 50),
    ranges=st.lists(st.tuples(st.integers(0, 300), st.integers(1, 300)), max_size=10),
    seekable=st.booleans(),
)
def test_a_source_reads_anywhere_again_and_again(
    content: bytes, start: int, ranges: list[tuple[int, int]], *, seekable: bool
) -> None:
    start = min(start, len(content))
    body = Body(content, start=start, most=20, seekable=seekable)
    source = take(body)
    for offset, length in ranges:
        piece = source.read_at(offset, length)
        right = content[start + offset : start + offset + length]
        assert right.startswith(piece)
        assert bool(piece) == bool(right)
    source.finish(len(content) - start)
    source.close()
    assert body.read() == b""


def outgoing(content: bytes | bytearray, planned: bytes, start: int, length: int) -> Outgoing:
    whole = memoryview(content)
    return Outgoing(
        lambda offset, wanted: bytes(whole[offset : offset + wanted]),
        start=start,
        length=length,
        digest=digest_of(planned[start : start + length]),
    )


CONTENT = random.Random(1).randbytes(100)
_READS = st.lists(st.integers(1, 60), min_size=1, max_size=5)


def read_in(body: Outgoing, sizes: list[int]) -> Iterator[bytes]:
    """Read a body to its end in pieces of these sizes, over and over."""
    while True:
        for size in sizes:
            if not (piece := body.read(size)):
                return
            yield piece


@given(st.integers(0, 100), st.integers(0, 100), _READS, st.integers(0, 100))
def test_a_range_goes_out_whole_and_again_from_its_beginning(
    start: int, length: int, sizes: list[int], given_up_after: int
) -> None:
    length = min(length, len(CONTENT) - start)
    body = outgoing(CONTENT, CONTENT, start, length)
    body.read(given_up_after)
    body.seek(0)
    assert b"".join(read_in(body, sizes)) == CONTENT[start : start + length]
    assert body.read(1) == body.read() == b""
    # Clients measure a body like this.
    assert (body.seek(0, os.SEEK_END), body.tell(), len(body)) == (length, length, length)
    assert (body.seek(0), io.BufferedReader(body).read()) == (0, CONTENT[start : start + length])


@given(st.integers(0, 99), st.integers(1, 100), _READS, st.data())
def test_the_last_piece_of_a_changed_range_is_withheld_until_it_is_right_again(
    start: int, length: int, sizes: list[int], data: st.DataObject
) -> None:
    length = min(length, len(CONTENT) - start)
    now = bytearray(CONTENT)
    changed = data.draw(st.integers(start, start + length - 1))
    now[changed] ^= data.draw(st.integers(1, 255))
    body = outgoing(now, CONTENT, start, length)
    out: list[bytes] = []
    with pytest.raises(ContentChanged, match=f"bytes {start} to {start + length} "):
        out.extend(read_in(body, sizes))
    assert sum(map(len, out)) < length
    now[changed] = CONTENT[changed]
    body.seek(0)
    assert b"".join(read_in(body, sizes)) == CONTENT[start : start + length]


@given(st.integers(0, 99), _READS)
def test_a_range_that_ends_early_never_goes_out_whole(left: int, sizes: list[int]) -> None:
    body = outgoing(CONTENT[:left], CONTENT, 0, len(CONTENT))
    with pytest.raises(ContentChanged):
        list(read_in(body, sizes))


def test_a_body_on_its_way_out_is_not_read_from_the_middle() -> None:
    body = outgoing(CONTENT, CONTENT, 0, len(CONTENT))
    body.seek(10)
    with pytest.raises(io.UnsupportedOperation, match="from its beginning"):
        body.read(1)


NO_BODIES: list[Any] = [None, 7, "text", b"bytes", Path("x"), object(), io.StringIO("text")]


@pytest.mark.parametrize("body", NO_BODIES, ids=lambda body: type(body).__name__)
def test_what_is_no_binary_stream_is_refused_by_type(body: Any) -> None:
    with pytest.raises(TypeError, match="content_body must be"):
        ContentStore(MemoryArtifactStore()).add(body)
