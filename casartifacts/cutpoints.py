"""Cut points: where the parts of a file begin and end, if its format says so.

Chunks that end at these offsets are the same whatever the file wraps around them: `torch.save`
writes its file's own name in front of every tensor, and without cuts there each of them would lose
a chunk.

Read are the directory of a zip archive (`torch.save`, `.npz`, `.pt2`), the header of a
`.safetensors` or `.npy` file, and the headers of a tar; a large member of a tar is read as a file
of its own, once and no deeper.

Rule 1: pure; bytes come from `read_at`. Nothing is unpickled or decompressed.
Rule 2: what is read is hostile. `_Content` bounds how many bytes are read and how often; no number
in a file sizes anything before it has passed there. Nothing recurs.
Rule 3: a wrong cut point costs sharing, never a byte. On any doubt there are none.
"""

from __future__ import annotations

import re
import struct
from itertools import chain, islice, pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["cut_points"]

# 8 MiB: the directory of a torch.save file with 60,000 tensors, the header of a .safetensors file
# with as many.
_MOST_BYTES = 8 * 2**20
_MOST_READS = 2**14

# So many members of a zip archive have their headers read, 256 bytes of each; where more are large,
# only the larger ones count. That leaves three quarters of the bytes to the directory.
_MOST_MEMBERS = 2**13
_MEMBER_HEAD = 256


def cut_points(read_at: Callable[[int, int], bytes], size: int, *, least: int) -> list[int]:
    """Return the offsets inside a content at which a chunk should end, in order.

    Args:
        read_at: Returns bytes from an offset, at least one unless there are no more.
        size: The bytes of the content.
        least: A part below this many bytes has no cut points of its own: it stays with its
            neighbours. There are at most 5 * size / least of them.
    """
    content = _Content(read_at, size)
    try:
        head = content.read(0, min(_BLOCK, size))
        points = _tar(content, least) if _is_tar(head) else _file(content, head, least)
    except (_Doubt, _Exhausted):
        return []
    return sorted(set(points) - {0, size})


class _Doubt(Exception):
    """The bytes are not what their format says."""


class _Exhausted(Exception):
    """Enough has been read."""


class _Bounds:
    """What may still be read of a content."""

    def __init__(self) -> None:
        self._reads = _MOST_READS
        self._bytes = _MOST_BYTES

    def spend(self, *, reads: int = 0, length: int = 0) -> None:
        """Take so many reads and bytes off, or raise `_Exhausted`."""
        self._reads -= reads
        self._bytes -= length
        if self._reads < 0 or self._bytes < 0:
            raise _Exhausted


class _Content:
    """A content, or a range of one, that is read within bounds.

    Args:
        read_at: Returns bytes from an offset of the content.
        size: The bytes of the range.
        start: Where in the content the range begins.
        bounds: Those of the content.
    """

    def __init__(
        self,
        read_at: Callable[[int, int], bytes],
        size: int,
        *,
        start: int = 0,
        bounds: _Bounds | None = None,
    ) -> None:
        self._read_at = read_at
        self._start = start
        self._bounds = bounds or _Bounds()
        self.size = size

    def range(self, begin: int, end: int) -> _Content:
        """Return a range of it, which shares its bounds."""
        start = self._start + begin
        return _Content(self._read_at, end - begin, start=start, bounds=self._bounds)

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly these bytes; raise `_Doubt` if they are not there, or `_Exhausted`."""
        if not 0 <= offset <= offset + length <= self.size:
            raise _Doubt
        self._bounds.spend(length=length)
        found = b""
        while len(found) < length:
            self._bounds.spend(reads=1)
            at = self._start + offset + len(found)
            piece = self._read_at(at, length - len(found))
            if not piece:
                raise _Doubt
            found += piece
        return found


def _large(ranges: Iterable[tuple[int, int]], size: int, least: int) -> list[tuple[int, int]]:
    """Return those ranges, (begin, end), that have at least `least` bytes, in order.

    Of ranges that overlap, which `_in_order` refuses, not more are kept than would fit if they
    did not.
    """
    large = ((begin, end) for begin, end in ranges if end - begin >= least)
    found = sorted(islice(large, size // least + 1))
    _in_order(list(chain(*found)), size)
    return found


def _in_order(points: list[int], size: int) -> list[int]:
    """Return the points, or raise `_Doubt` if they go back or outside."""
    if any(before > after for before, after in pairwise([0, *points, size])):
        raise _Doubt
    return points


def _file(content: _Content, head: bytes, least: int) -> list[int]:
    """Return the cut points of what is no tar; `head` are its first bytes."""
    if head.startswith(_MEMBER):
        return _zip(content, least)
    if array := _npy_array(head):
        return [array] if content.size - array >= least else []
    return _safetensors(content, head, least)


# .safetensors: 8 bytes length of the header, {"name": {"data_offsets": [begin, end], ...}, ...},
# data.

# By pattern: nested lists make 30 bytes of objects out of one byte of JSON.
_DATA_OFFSETS = re.compile(rb'"data_offsets"\s*:\s*\[\s*([0-9]{1,19})\s*,\s*([0-9]{1,19})\s*\]')


def _safetensors(content: _Content, head: bytes, least: int) -> list[int]:
    length = int.from_bytes(head[:8], "little")
    if head[8:9] != b"{" or length > content.size - 8:
        return []
    base = 8 + length
    found = _DATA_OFFSETS.finditer(content.read(8, length))
    ranges = ((base + int(tensor[1]), base + int(tensor[2])) for tensor in found)
    return list(chain(*_large(ranges, content.size, least)))


# .npy: magic, 2 bytes version, 2 (version 1) or 4 bytes length of the header, {...}, data.

_NPY_LENGTHS = {b"\x93NUMPY\1\0": 2, b"\x93NUMPY\2\0": 4, b"\x93NUMPY\3\0": 4}


def _npy_array(head: bytes) -> int:
    """Return where the array begins in a .npy file that begins so; 0 if it is none."""
    width = _NPY_LENGTHS.get(head[:8], 0)
    if not width or head[8 + width : 9 + width] != b"{":
        return 0
    return 8 + width + int.from_bytes(head[8 : 8 + width], "little")


# zip: members, each behind a header; the directory; where the directory is.

_MEMBER = b"PK\3\4"
_HEADER = struct.Struct("<4s22x2H")  # magic, length of the name, of the extra fields
_ENTRY = struct.Struct("<4s16x2L3H8xL")  # magic, packed and true size, three lengths, offset
_WIDE_END = struct.Struct("<4s36x2Q")  # magic, size and offset of the directory
_WIDE_END_PLACE = struct.Struct("<4s4xQ4x")  # magic, offset of the above
_END = struct.Struct("<4s8x2LH")  # magic, size and offset of the directory, length of a comment
_TOO_WIDE = 2**32 - 1  # "see the extra field of 64 bits"


def _zip(content: _Content, least: int) -> list[int]:
    begin, end = _directory(content)
    places = _large(_entries(content.read(begin, end - begin)), begin, least)
    while len(places) > _MOST_MEMBERS:
        least *= 2
        places = _large(places, begin, least)
    points = []
    for place, behind in places:
        head = content.read(place, min(_MEMBER_HEAD, begin - place))
        magic, name, extra = _HEADER.unpack_from(head.ljust(_HEADER.size, b"\0"))
        if magic != _MEMBER:
            raise _Doubt
        shift = _HEADER.size + name + extra
        points.append(place + shift)
        # The arrays of a .npz are .npy files.
        array = _npy_array(head[shift:])
        if array and behind - place - array >= least:
            points.append(place + shift + array)
        points.append(behind + shift)
    return _in_order(points, begin)


def _directory(content: _Content) -> tuple[int, int]:
    """Return where the directory begins and ends."""
    # At most a comment of 65,535 bytes follows the last record.
    begin = max(0, content.size - _END.size - (2**16 - 1) - _WIDE_END_PLACE.size)
    tail = content.read(begin, content.size - begin)
    at = tail.rfind(b"PK\5\6")
    if at < 0 or at + _END.size > len(tail):
        raise _Doubt
    _, length, offset, comment = _END.unpack_from(tail, at)
    end = begin + at
    if at + _END.size + comment != len(tail):
        raise _Doubt
    if at >= _WIDE_END_PLACE.size:
        magic, place = _WIDE_END_PLACE.unpack_from(tail, at - _WIDE_END_PLACE.size)
        if magic == b"PK\6\7":
            magic, length, offset = _WIDE_END.unpack(content.read(place, _WIDE_END.size))
            end = place
            if magic != b"PK\6\6":
                raise _Doubt
    if offset + length != end:
        raise _Doubt
    return offset, end


def _entries(directory: bytes) -> Iterator[tuple[int, int]]:
    """Yield where the header of each member begins, and the same plus the member's bytes."""
    at = 0
    while at < len(directory):
        if at + _ENTRY.size > len(directory):
            raise _Doubt
        magic, packed, true, name, extra, comment, offset = _ENTRY.unpack_from(directory, at)
        if magic != b"PK\1\2":
            raise _Doubt
        at += _ENTRY.size + name
        if _TOO_WIDE in (packed, true, offset):
            wide = _wide_numbers(directory[at : at + extra])
            # In this order, and only those that are too wide.
            _, packed, offset = (
                next(wide, number) if number == _TOO_WIDE else number
                for number in (true, packed, offset)
            )
        at += extra + comment
        yield offset, offset + packed


def _wide_numbers(extra: bytes) -> Iterator[int]:
    """Yield the numbers of 64 bits among the extra fields of a member."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        field = extra[at + 4 : at + 4 + length]
        if kind == 1:
            yield from (number for (number,) in struct.iter_unpack("<Q", field[: length & ~7]))
            return
        at += 4 + length


# tar: headers of 512 bytes, the bytes of each member behind its header, filled up to 512; zeros.

_BLOCK = 512
_WITH_BYTES = b"07\0"  # files
_ABOUT_OTHERS = b"xgLK"  # PAX records and GNU's long names, about what follows
_WITHOUT_BYTES = b"123456"  # links, devices, folders
_PAX_SIZE = re.compile(rb"(?:\A|\n)[0-9]+ size=([0-9]{1,19})\n")


def _is_tar(head: bytes) -> bool:
    return head[257:262] == b"ustar"


def _tar(content: _Content, least: int) -> list[int]:
    points: list[int] = []
    at, told_size = 0, None
    try:
        while at < content.size:
            header = content.read(at, _BLOCK)
            if not any(header):
                break
            kind, length = _tar_header(header)
            at += _BLOCK
            if kind in _WITHOUT_BYTES:
                length, told_size = 0, None
            elif kind in _WITH_BYTES:
                length, told_size = length if told_size is None else told_size, None
                points += _tar_member(content, at, length, least)
            elif kind == ord("x"):
                found = _PAX_SIZE.search(content.read(at, length))
                told_size = int(found[1]) if found else None
            at += -(-length // _BLOCK) * _BLOCK
    except _Exhausted:
        pass  # what was found so far is right
    return _in_order(points, content.size)


def _tar_header(header: bytes) -> tuple[int, int]:
    """Return the type of a member and its bytes."""
    checksum = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    kind = header[156]
    if (
        not _is_tar(header)
        or _tar_number(header[148:156]) != checksum
        or kind not in _WITH_BYTES + _ABOUT_OTHERS + _WITHOUT_BYTES
    ):
        raise _Doubt
    return kind, _tar_number(header[124:136])


def _tar_number(field: bytes) -> int:
    if field[0] == 0x80:  # GNU: what follows is binary  # noqa: PLR2004 -- named here
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0") or b"0"
    if not re.fullmatch(rb"[0-7]+", digits):
        raise _Doubt
    return int(digits, 8)


def _tar_member(content: _Content, begin: int, length: int, least: int) -> list[int]:
    if begin + length > content.size:
        raise _Doubt
    if length < least:
        return []
    member = content.range(begin, begin + length)
    try:
        inside = _file(member, member.read(0, min(_BLOCK, length)), least)
    except _Doubt:
        inside = []
    return [begin, *(begin + point for point in inside), begin + length]
