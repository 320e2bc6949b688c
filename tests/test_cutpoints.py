"""Where the parts of known formats are found, and that no bytes whatever do more than cost that."""

from __future__ import annotations

import io
import json
import tarfile
import tracemalloc
import zipfile
from functools import partial
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING
from unittest import mock

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from casartifacts.backends.filesystem import FileSystemArtifactStore
from casartifacts.cutpoints import cut_points
from casartifacts.digest import digest_of
from casartifacts.manifest import Manifest
from casartifacts.store import ContentStore

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    Maker = Callable[[Sequence[bytes]], bytes]

# What a cut may cost, as the room says it.
MOST_BYTES, MOST_READS = 8 * 2**20, 2**14


class Reads:
    """A content that counts what is read of it; `piece` bounds how much comes at once."""

    def __init__(self, content: bytes, *, piece: int = 2**62) -> None:
        self.content = content
        self.piece = piece
        self.count = self.bytes = 0

    def __call__(self, offset: int, length: int) -> bytes:
        assert length > 0
        assert 0 <= offset < offset + length <= len(self.content)
        self.count += 1
        found = self.content[offset : offset + min(length, self.piece)]
        self.bytes += len(found)
        return found


def found_in(content: bytes, *, least: int, piece: int = 2**62) -> list[int]:
    """Return the cut points after checking what holds for those of every content."""
    reads = Reads(content, piece=piece)
    points = cut_points(reads, len(content), least=least)
    assert points == sorted(set(points))
    assert all(0 < point < len(content) for point in points)
    assert len(points) <= 5 * len(content) / least
    assert reads.count <= MOST_READS
    assert reads.bytes <= MOST_BYTES
    return points


def truncated(whole: bytes, end: int, offset: int, length: int) -> bytes:
    """Read a content that has become shorter after it was measured."""
    return whole[offset : min(end, offset + length)]


def part(seed: object, size: int) -> bytes:
    """Return bytes that occur nowhere else and are the same on every machine."""
    return blake3(repr(seed).encode()).digest(length=size)


# The formats, written by their own libraries; .safetensors by the words of its specification.


def torch_like(parts: Sequence[bytes], name: str = "model", **options: int) -> bytes:
    """Make a zip archive as `torch.save` does: stored members, whose bytes begin at 64 bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for number, content in enumerate(parts):
            info = zipfile.ZipInfo(f"{name}/data/{number}", (1980, 1, 1, 0, 0, 0))
            info.compress_type = options.get("compression", zipfile.ZIP_STORED)
            behind = file.tell() + 30 + len(info.filename) + 4
            padding = b"Z" * (-behind % 64)
            info.extra = b"FB" + len(padding).to_bytes(2, "little") + padding
            archive.writestr(info, content)
        archive.comment = b"c" * options.get("comment", 0)
    return file.getvalue()


def wide_zip(parts: Sequence[bytes]) -> bytes:
    """Make a zip archive with numbers of 64 bits, which `zipfile` writes from 4 GiB on."""
    with mock.patch.object(zipfile, "ZIP64_LIMIT", 20):
        return torch_like(parts)


def safetensors(parts: Sequence[bytes]) -> bytes:
    at = 0
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    for number, content in enumerate(parts):
        header[f"layer.{number}"] = {
            "dtype": "U8",
            "shape": [len(content)],
            "data_offsets": [at, at + len(content)],
        }
        at += len(content)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(parts)


def npy(content: bytes, version: tuple[int, int] = (1, 0)) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.frombuffer(content, np.uint8), version=version)
    return file.getvalue()


def npz(parts: Sequence[bytes]) -> bytes:
    file = io.BytesIO()
    np.savez(file, *(np.frombuffer(content, np.uint8) for content in parts))
    return file.getvalue()


def tar(
    parts: Sequence[bytes], form: int = tarfile.PAX_FORMAT, *, long_names: bool = True
) -> bytes:
    """Make a tar of files, folders and links, some with names that need a header of their own."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for number, content in enumerate(parts):
            above = tarfile.TarInfo(f"folder-{number}")
            above.type = tarfile.DIRTYPE
            link = tarfile.TarInfo(f"link-{number}")
            link.type, link.linkname = tarfile.SYMTYPE, "elsewhere"
            long = "é" * 120 if long_names and number % 2 else ""
            info = tarfile.TarInfo(f"folder-{number}/{long}file")
            info.size = len(content)
            archive.addfile(above)
            archive.addfile(info, io.BytesIO(content))
            archive.addfile(link)
    return file.getvalue()


def ustar(parts: Sequence[bytes]) -> bytes:
    return tar(parts, tarfile.USTAR_FORMAT, long_names=False)


def gnu_tar(parts: Sequence[bytes]) -> bytes:
    return tar(parts, tarfile.GNU_FORMAT)


FORMATS: list[Maker] = [torch_like, wide_zip, npz, safetensors, ustar, gnu_tar, tar]


def test_cut_points_are_golden() -> None:
    parts = [part(1, 70_000), part(2, 100), part(3, 65_536), part(4, 200_000), part(5, 65_535)]
    golden = {
        torch_like: [64, 70_064, 70_336, 135_872, 135_936, 335_936],
        wide_zip: [84, 70_084, 70_356, 135_892, 136_020, 336_020],
        safetensors: [432, 70_432, 70_532, 136_068, 336_068],
        ustar: [1024, 71_024, 74_752, 140_288, 141_824, 341_824],
        gnu_tar: [1024, 71_024, 75_776, 141_312, 143_872, 343_872],
        tar: [1024, 71_024, 75_776, 141_312, 143_872, 343_872],
    }
    for make, expected in golden.items():
        assert found_in(make(parts), least=2**16) == expected, make
    assert found_in(npy(part(1, 70_000)), least=2**16) == [128]


@st.composite
def parts(draw: st.DrawFn) -> list[bytes]:
    sizes = draw(st.lists(st.integers(0, 40) | st.integers(0, 3000), max_size=12))
    seed = draw(st.integers(0, 2**32))
    # A first byte that is no digit of JSON, no magic and no NUL, so that nothing is found twice.
    return [b"\xff" * min(size, 1) + part((seed, n), size)[1:] for n, size in enumerate(sizes)]


def edges(whole: bytes, inside: Sequence[bytes], least: int) -> set[int]:
    """Find where large parts begin and end by looking for their bytes."""
    begins = [(whole.index(content), len(content)) for content in inside if len(content) >= least]
    return {point for begin, size in begins for point in (begin, begin + size)} - {0, len(whole)}


@pytest.mark.parametrize("make", FORMATS)
@given(parts=parts(), least=st.integers(16, 2000), piece=st.integers(200, 5000))
def test_every_large_part_begins_and_ends_a_chunk(
    make: Maker, parts: list[bytes], least: int, piece: int
) -> None:
    inside = [content for content in parts if len(content) > 16 or make is not npz]
    whole = make(inside)
    expected = edges(whole, inside, least)
    if make is npz:  # whose members begin with the header of their array
        expected |= edges(whole, [npy(content) for content in inside], least)
    assert found_in(whole, least=least, piece=piece) == sorted(expected)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_an_array_begins_behind_its_header(version: tuple[int, int]) -> None:
    whole = npy(part(version, 5000), version)
    assert found_in(whole, least=5000) == [len(whole) - 5000]
    assert found_in(whole, least=5001) == []


@pytest.mark.parametrize("make", [torch_like, npz, safetensors])
def test_a_large_member_of_a_tar_is_cut_as_if_it_were_alone(make: Maker) -> None:
    member = make([part(1, 3000), part(2, 40), part(3, 5000)])
    whole = tar([part(4, 2000), member, part(5, 2000)])
    begin = whole.index(member)
    inner = [begin + point for point in found_in(member, least=1000)]
    assert len(inner) >= 3
    assert found_in(whole, least=1000) == sorted(
        {*inner, *edges(whole, [part(4, 2000), member, part(5, 2000)], 1000)}
    )
    # No deeper: a tar in a tar is bytes.
    outer = tar([whole])
    assert found_in(outer, least=1000) == sorted(edges(outer, [whole], 1000))


def test_packed_members_and_an_archive_with_a_comment_are_cut_too() -> None:
    text = [b"\xff" + part(n, 500).hex().encode() for n in range(3)]
    packed = torch_like(text, compression=zipfile.ZIP_DEFLATED, comment=2000)
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        sizes = [info.compress_size for info in archive.infolist()]
    points = found_in(packed, least=100)
    assert [end - begin for begin, end in zip(points[::2], points[1::2], strict=True)] == sizes


def test_the_largest_members_are_cut_where_there_are_too_many() -> None:
    sizes = [1 + 2 * (number % 3 == 0) for number in range(9000)]
    whole = torch_like([b"\xff" * size for size in sizes])
    points = found_in(whole, least=1)
    assert [end - begin for begin, end in zip(points[::2], points[1::2], strict=True)] == [3] * 3000


@pytest.mark.parametrize("is_pax", [True, False])
def test_a_member_of_more_than_8_gib_is_found(is_pax: bool) -> None:
    size = 9 * 2**30 + 5
    info = tarfile.TarInfo("large")
    info.size = size
    header = info.tobuf(tarfile.PAX_FORMAT if is_pax else tarfile.GNU_FORMAT)
    whole = len(header) + size + 1019

    def read_at(offset: int, length: int) -> bytes:
        return header[offset : offset + length].ljust(length, b"\0")

    assert cut_points(read_at, whole, least=2**16) == [len(header), len(header) + size]


def test_an_upload_cuts_there(tmp_path: Path) -> None:
    parts = [part(number, 700_000) for number in range(3)]
    whole = torch_like(parts)
    store = ContentStore(FileSystemArtifactStore(tmp_path))
    store.write("model", io.BytesIO(whole))
    [place] = (path for path in tmp_path.glob("manifests/*/*") if path.is_file())
    manifest = Manifest.decode(place.read_bytes(), digest=digest_of(whole), size=len(whole))
    assert {*accumulate(manifest.chunks.lengths)} > edges(whole, parts, 2**16)


# Hostile contents


@pytest.mark.parametrize(
    ("make", "right", "wrong"),
    [
        (torch_like, b"PK\3\4", b"PK\3\5"),
        (torch_like, b"PK\1\2", b"PK\1\3"),
        (ustar, b"0000644", b"0000645"),  # which makes the checksum another
        (ustar, b"ustar", b"ustax"),
        (safetensors, b'{"__metadata__"', b'["__metadata__"'),
        (safetensors, b"[3000, 6000]", b"[2999, 6000]"),  # into the first tensor
        (safetensors, b"[3000, 6000]", b"[3000, 6001]"),  # behind the end
    ],
)
def test_one_wrong_byte_where_it_matters_is_a_doubt(
    make: Maker, right: bytes, wrong: bytes
) -> None:
    whole = make([part(1, 3000), part(2, 3000)])
    assert len(found_in(whole, least=2000)) >= 2
    at = whole.rindex(right)
    assert found_in(whole[:at] + wrong + whole[at + len(right) :], least=2000) == []


def test_a_directory_that_does_not_end_where_it_should_is_a_doubt() -> None:
    whole = torch_like([part(1, 3000), part(2, 3000)])
    length = len(whole) - 22 - whole.index(b"PK\1\2")
    told = whole[-10:-6]
    assert told == length.to_bytes(4, "little")
    last = len(whole) - 22 - whole.rindex(b"PK\1\2")
    shorter = whole[:-10] + (length - last).to_bytes(4, "little") + whole[-6:]
    assert found_in(shorter, least=2000) == []


def test_a_member_that_is_not_what_it_begins_like_is_a_member_still() -> None:
    broken = torch_like([part(1, 3000)])[:-1]
    whole = tar([broken, part(2, 2000)])
    assert found_in(whole, least=1000) == sorted(edges(whole, [broken, part(2, 2000)], 1000))


def test_a_link_has_no_bytes_whatever_size_it_tells() -> None:
    """Older tars tell the size of the file that a hard link leads to."""
    link = tarfile.TarInfo("link")
    link.type, link.linkname, link.size = tarfile.LNKTYPE, "file", 5000
    whole = link.tobuf(tarfile.USTAR_FORMAT) + ustar([part(1, 3000)])
    assert found_in(whole, least=1000) == sorted(edges(whole, [part(1, 3000)], 1000))


def test_a_source_that_gives_one_byte_at_a_time_is_given_up() -> None:
    whole = safetensors([part(number, 100) for number in range(1000)])
    assert len(found_in(whole, least=100)) > 900
    reads = Reads(whole, piece=1)
    assert cut_points(reads, len(whole), least=100) == []
    assert reads.count == MOST_READS


@pytest.mark.parametrize("size", [0, 64 * 2**10])
def test_a_tar_without_an_end_is_read_no_further_than_the_bound(size: int) -> None:
    """2**60 bytes in which every place holds a header."""
    info = tarfile.TarInfo("again")
    info.size = size
    header = info.tobuf(tarfile.USTAR_FORMAT)
    reads = []

    def read_at(offset: int, length: int) -> bytes:
        reads.append(length)
        return header[offset % 512 :][:length]

    points = cut_points(read_at, 2**60, least=2**16)
    assert len(reads) == MOST_READS
    assert sum(reads) <= MOST_BYTES
    assert (len(points) > 2**13) is (size > 0)


@pytest.mark.parametrize("length", [MOST_BYTES, 2**40, 2**63 - 1])
def test_a_header_longer_than_the_bound_is_not_read(length: int) -> None:
    reads = []

    def read_at(_: int, wanted: int) -> bytes:
        reads.append(wanted)
        return (length.to_bytes(8, "little") + b'{"').ljust(wanted)

    assert cut_points(read_at, 2**63 + 2**20, least=2**16) == []
    assert reads == [512]


def huge_directory(entry: bytes) -> bytes:
    """Make an archive of 4 MiB whose directory is that entry again and again."""
    count = 4 * 2**20 // len(entry)
    directory, begin = entry * count, 2**20
    end = b"PK\5\6" + bytes(8) + len(directory).to_bytes(4, "little") + begin.to_bytes(4, "little")
    return b"PK\3\4".ljust(begin, b"\0") + directory + end + bytes(2)


def test_what_repeats_a_million_times_costs_bounded_memory() -> None:
    entry = b"PK\1\2" + bytes(16) + (2**16).to_bytes(4, "little") * 2 + bytes(18)
    tensor = b'"data_offsets":[0,65536],'
    header = b"{" + tensor * (7 * 2**20 // len(tensor)) + b"}"
    nested = b"{" * 2**22
    for hostile in (
        huge_directory(entry),
        huge_directory(entry.replace((2**16).to_bytes(4, "little"), bytes(4))),
        len(header).to_bytes(8, "little") + header + bytes(2**20),
        len(nested).to_bytes(8, "little") + nested + bytes(2**20),
    ):
        tracemalloc.start()
        try:
            assert found_in(hostile, least=2**16) == []
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        # What was read, once more while it is put together, and little beside.
        assert peak <= 3 * MOST_BYTES


_NUMBERS = st.sampled_from(
    [
        number.to_bytes(width, "little")
        for width in (1, 2, 4, 8)
        for number in (0, 1, 2**8 - 1, 2**16 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
        if number < 2 ** (8 * width)
    ]
)
_WORDS = [
    *(b"PK\3\4", b"PK\1\2", b"PK\5\6", b"PK\6\6", b"PK\6\7", b"ustar", b"\x93NUMPY"),
    *(b'"data_offsets":[9,', b"999999999999999999", b"-", b"{"),
    *(b"77777777777", b" size=9\n", b"x", b"L", b"\x80"),
]
_PIECES = _NUMBERS | st.binary(max_size=20) | st.sampled_from(_WORDS)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A file of a known format, or what begins like one, with some of its bytes replaced."""
    inside = draw(parts())
    make = draw(st.none() | st.sampled_from(FORMATS))
    whole = make(inside) if make else npy(b"".join(inside))
    if draw(st.booleans()):
        whole = tar([whole])
    for _ in range(draw(st.integers(0, 5))):
        begin = draw(st.integers(0, len(whole)) | st.integers(0, min(600, len(whole))))
        if draw(st.booleans()):
            begin = len(whole) - begin
        end = min(len(whole), begin + draw(st.integers(0, 9) | st.integers(0, 3000)))
        piece = draw(_PIECES)
        if draw(st.booleans()):
            end = begin + len(piece)  # nothing moves
        whole = whole[:begin] + piece + whole[end:]
    return whole


@given(damaged(), st.integers(1, 2000), st.integers(1, 5000))
def test_whatever_the_bytes_points_are_inside_in_order_and_few(
    whole: bytes, least: int, piece: int
) -> None:
    found_in(whole, least=least, piece=piece)


@given(damaged(), st.integers(0, 2**31))
def test_a_content_that_ends_early_has_no_points_or_those_of_what_was_read(
    whole: bytes, end: int
) -> None:
    read_at = partial(truncated, whole, end % (len(whole) + 1))
    points = cut_points(read_at, len(whole), least=16)
    assert all(before < after for before, after in pairwise([0, *points, len(whole) + 1]))


def test_a_tar_that_ends_early_is_a_doubt_wherever_it_ends() -> None:
    whole = ustar([part(1, 600)])
    needed = 6 * 512  # folder, file and its two blocks, link, zeros
    for end in range(needed + 1):
        points = cut_points(partial(truncated, whole, end), len(whole), least=600)
        assert points == ([] if end < needed else [1024, 1624])


@given(st.sampled_from(FORMATS), parts(), st.integers(1, 99))
def test_what_stands_before_or_behind_an_archive_is_a_doubt(
    make: Maker, inside: list[bytes], more: int
) -> None:
    """Formats that say where they begin and end, and files that do not keep to it."""
    whole = make(inside)
    assert found_in(b"\xee" * more + whole, least=16) == []
    if make in {torch_like, wide_zip, npz}:
        assert found_in(whole + b"\xee" * more, least=16) == []


def test_reading_errors_are_the_callers() -> None:
    def read_at(offset: int, length: int) -> bytes:
        raise OSError(f"no sector at {offset} to {length}")

    with pytest.raises(OSError, match="no sector"):
        cut_points(read_at, 2**20, least=2**16)


def test_a_plain_file_costs_one_small_read() -> None:
    for whole in (b"", b"x", b"step,loss\n" * 9000, bytes(2**20), part("random", 2**20)):
        reads = Reads(whole)
        assert cut_points(reads, len(whole), least=2**16) == []
        assert reads.count <= 1
        assert reads.bytes <= 512
