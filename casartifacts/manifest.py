r"""The manifest: how one content is put together (format 1, byte for byte).

    <head>                one line of canonical JSON (sorted names, no spaces, ASCII) and "\n":
        {"blobs": [[<digest>, <size>], ...],         the blobs that are used, sizes in bytes
         "chunker": {...},                           the parameters of records.ChunkerParameters
         "chunks": <number of chunks>,
         "codec": null,                              room for compression; null is "as they are"
         "digest": <digest of the content>,
         "format": 1,
         "segments": [[<index of blob>, <start>, <length>], ...],    in the order of the content
         "size": <size of the content>}
    <lengths>             4 bytes per chunk, unsigned, little-endian
    <digests>             32 bytes per chunk
    <checksum>            32 bytes: BLAKE3-256 of everything before

36 bytes per chunk and about 22 per segment: below 40 per chunk. The head alone, read with
`head -n 1 | jq`, puts a content together without this software.

Rule 1: pure; bytes in, values out.
Rule 2: what comes from a backend is believed only after checksum, sums and bounds agree; numbers
in it never size an allocation before that.
"""

from __future__ import annotations

import json
import sys
from array import array
from dataclasses import asdict, dataclass

from casartifacts.chunking import ChunkerParameters
from casartifacts.digest import DIGEST_SIZE, Hasher, is_digest
from casartifacts.errors import CorruptArtifact, StoreMismatch

__all__ = ["BLOB_LIMIT", "FORMAT", "ChunkTable", "Manifest", "Segment", "smallest_size"]

FORMAT = 1

# 64 MiB: one PUT, which can be retried blindly; larger objects want multipart uploads, which
# cost money when they are left unfinished.
BLOB_LIMIT = 64 * 2**20

_LENGTH_SIZE = 4


@dataclass(frozen=True, slots=True)
class Segment:
    """A range of a blob: `length` bytes from `start`; `blob` is an index into the blobs."""

    blob: int
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class ChunkTable:
    """The chunks of a content in order: `lengths` in bytes, and their binary digests in a row."""

    lengths: array[int]
    digests: bytes

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> tuple[int, bytes]:
        return self.lengths[index], self.digests[index * DIGEST_SIZE : (index + 1) * DIGEST_SIZE]


@dataclass(frozen=True, slots=True)
class Manifest:
    """How a content is put together; `blobs` are pairs of digest and size in bytes."""

    digest: str
    size: int
    blobs: tuple[tuple[str, int], ...]
    segments: tuple[Segment, ...]
    chunks: ChunkTable
    chunker: ChunkerParameters

    def encode(self) -> bytes:
        """Return the manifest as it lies in a backend."""
        head = {
            "blobs": self.blobs,
            "chunker": asdict(self.chunker),
            "chunks": len(self.chunks),
            "codec": None,
            "digest": self.digest,
            "format": FORMAT,
            "segments": [(part.blob, part.start, part.length) for part in self.segments],
            "size": self.size,
        }
        body = b"".join(
            (_canonical(head), _little_endian(self.chunks.lengths), self.chunks.digests)
        )
        return body + Hasher(body).digest()

    @classmethod
    def decode(cls, body: bytes, *, digest: str, size: int | None = None) -> Manifest:
        """Read the manifest of the content with this digest and, if it is known, this size.

        Raises:
            CorruptArtifact: It is damaged, or belongs to another content.
            StoreMismatch: It is of another format.
        """
        where = f"the manifest of content {digest}"
        line_end = body.find(b"\n") + 1
        try:
            head = json.loads(body[:line_end])
            form = head["format"]
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise CorruptArtifact(f"{where} has no readable head: {error!r}") from error
        if form != FORMAT and isinstance(form, int):
            raise StoreMismatch(
                f"{where} is of format {form}; this version knows format {FORMAT}. "
                "A newer casartifacts wrote it: upgrade."
            )
        if Hasher(memoryview(body)[:-DIGEST_SIZE]).digest() != body[-DIGEST_SIZE:]:
            raise CorruptArtifact(f"{where} does not agree with its checksum")
        try:
            found = cls._of_head(head, body[line_end:-DIGEST_SIZE])
        except (ValueError, LookupError, TypeError) as error:
            raise StoreMismatch(
                f"{where} is whole but not understood ({error!r}). "
                "A newer casartifacts wrote it: upgrade."
            ) from error
        if found.digest != digest or size not in {None, found.size}:
            raise CorruptArtifact(
                f"{where} ({size} bytes) belongs to content {found.digest} ({found.size} bytes)"
            )
        return found

    @classmethod
    def _of_head(cls, head: dict[str, object], table: bytes) -> Manifest:
        match head:
            case {
                "blobs": list(blobs),
                "chunker": dict(chunker),
                "chunks": int(count),
                "codec": None,
                "digest": str(digest),
                "format": 1,
                "segments": list(segments),
                "size": int(size),
            } if len(head) == 8:  # noqa: PLR2004 -- the eight entries above and no other
                pass
            case _:
                raise ValueError(f"unknown entries: {sorted(head)}")
        if len(table) != count * (_LENGTH_SIZE + DIGEST_SIZE):
            raise ValueError(f"a table of {len(table)} bytes for {count} chunks")
        lengths = array("I", table[: count * _LENGTH_SIZE])
        if sys.byteorder == "big":
            lengths.byteswap()
        found = cls(
            digest=digest,
            size=size,
            blobs=tuple((digest, size) for digest, size in blobs),
            segments=tuple(Segment(*part) for part in segments),
            chunks=ChunkTable(lengths, table[count * _LENGTH_SIZE :]),
            chunker=ChunkerParameters(**chunker),
        )
        found.check()
        return found

    def check(self) -> None:
        """Raise ValueError unless sizes, ranges and sums agree with each other."""
        for digest, size in self.blobs:
            if not is_digest(digest) or type(size) is not int or not 0 < size <= BLOB_LIMIT:
                raise ValueError(f"a blob {digest} of {size} bytes")
        for part in self.segments:
            if (
                {type(part.blob), type(part.start), type(part.length)} != {int}
                or not 0 <= part.blob < len(self.blobs)
                or part.start < 0
                or part.length <= 0
                or part.start + part.length > self.blobs[part.blob][1]
            ):
                raise ValueError(f"{part} lies outside its blob")
        if sum(part.length for part in self.segments) != self.size:
            raise ValueError(f"segments that do not make {self.size} bytes")
        if sum(self.chunks.lengths) != self.size or 0 in self.chunks.lengths:
            raise ValueError(f"chunks that do not make {self.size} bytes")
        if max(self.chunks.lengths, default=0) > BLOB_LIMIT:
            # Buffers are made by it.
            raise ValueError(f"a chunk of {max(self.chunks.lengths)} bytes")
        if len(self.chunks.digests) != len(self.chunks) * DIGEST_SIZE:
            raise ValueError("another number of chunk digests than of chunks")


def smallest_size(size: int, chunker: ChunkerParameters) -> int:
    """Return how many bytes the manifest of a content of `size` bytes has at the very least.

    A shorter one was cut off by a crash of a file system that was told not to be durable.
    """
    return -(-size // chunker.maximum) * (_LENGTH_SIZE + DIGEST_SIZE) + DIGEST_SIZE


def _canonical(head: dict[str, object]) -> bytes:
    return json.dumps(head, sort_keys=True, separators=(",", ":")).encode("ascii") + b"\n"


def _little_endian(lengths: array[int]) -> bytes:
    if sys.byteorder == "big":
        lengths = lengths[:]
        lengths.byteswap()
    return lengths.tobytes()
