"""Manifests of format 1: golden bytes, and nothing but whole and consistent ones is accepted."""

from __future__ import annotations

import json
import struct
from array import array
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from casartifacts.chunking import ChunkerParameters
from casartifacts.errors import CorruptArtifact, StoreMismatch
from casartifacts.manifest import BLOB_LIMIT, ChunkTable, Manifest, Segment, smallest_size

ONE, OTHER, CONTENT = (blake3(word).hexdigest() for word in (b"one", b"other", b"content"))
CHUNKS = [blake3(word).digest() for word in (b"1", b"2", b"3")]

# The second half of a blob that another content brought, then a blob of its own, then a repetition.
MANIFEST = Manifest(
    digest=CONTENT,
    size=800_000,
    blobs=((ONE, 500_000), (OTHER, 400_000)),
    segments=(Segment(0, 200_000, 300_000), Segment(1, 0, 400_000), Segment(0, 200_000, 100_000)),
    chunks=ChunkTable(array("I", [300_000, 400_000, 100_000]), b"".join(CHUNKS)),
    chunker=ChunkerParameters(),
)
GOLDEN_HEAD = (
    b'{"blobs":'
    b'[["d33fb48ab5adff269ae172b29a6913ff04f6f266207a7a8e976f2ecd571d4492",500000],'
    b'["3f796163ebf94718de1cd7582655c012f995c06f1e6970ea2bdc15bcd88a324a",400000]],'
    b'"chunker":{"algorithm":"fastcdc-2020","average":65536,"maximum":1048576,"minimum":32768,'
    b'"normalization":1},'
    b'"chunks":3,"codec":null,'
    b'"digest":"3fba5250be9ac259c56e7250c526bc83bacb4be825f2799d3d59e5b4878dd74e",'
    b'"format":1,'
    b'"segments":[[0,200000,300000],[1,0,400000],[0,200000,100000]],'
    b'"size":800000}\n'
)
GOLDEN_TABLE = bytes.fromhex(
    "e0930400801a0600a0860100"  # 300,000, 400,000 and 100,000, little-endian
    "d63bd9a826af91c1fea371965a64e11ee20f13e46b5f52c59901136605b3a487"
    "813e9b729141e7f385afa0a2d0df3e6c3789e427ffe4aeef566a565bc8f2fe3d"
    "58d6fd3dc609068615d66b6a2616cce521e6bd49bbcd7854e3f2573b142c6637"
)
GOLDEN_CHECKSUM = bytes.fromhex("9867c12fb64e9e6ee9d17fbf4d81af12412a3bace0854b6c7c7f86a7757c7130")
GOLDEN = GOLDEN_HEAD + GOLDEN_TABLE + GOLDEN_CHECKSUM


def decode(body: bytes) -> Manifest:
    return Manifest.decode(body, digest=CONTENT, size=MANIFEST.size)


def sealed(head: object, table: bytes = GOLDEN_TABLE) -> bytes:
    """Make the bytes of a manifest by the words of its specification, not by its code."""
    body = json.dumps(head, sort_keys=True, separators=(",", ":")).encode() + b"\n" + table
    return body + blake3(body).digest()


def test_a_manifest_has_golden_bytes() -> None:
    assert MANIFEST.encode() == GOLDEN
    assert decode(GOLDEN) == MANIFEST


def test_the_golden_bytes_are_as_specified() -> None:
    assert struct.pack("<3I", 300_000, 400_000, 100_000) + b"".join(CHUNKS) == GOLDEN_TABLE
    assert sealed(json.loads(GOLDEN_HEAD)) == GOLDEN
    assert [MANIFEST.chunks[index] for index in range(len(MANIFEST.chunks))] == [
        (300_000, CHUNKS[0]),
        (400_000, CHUNKS[1]),
        (100_000, CHUNKS[2]),
    ]


def test_every_changed_byte_is_refused() -> None:
    changed = bytearray(GOLDEN)
    for position, right in enumerate(GOLDEN):
        for wrong in {right ^ 1 << bit for bit in range(8)} | {0, 32, 48, 255} - {right}:
            changed[position] = wrong
            with pytest.raises((CorruptArtifact, StoreMismatch), match=CONTENT):
                decode(bytes(changed))
        changed[position] = right


def test_every_truncation_and_extension_is_refused() -> None:
    truncated = [GOLDEN[:end] for end in range(len(GOLDEN))]
    extended = [GOLDEN + more for more in (b"\n", b"\0", bytes(32), GOLDEN)]
    for wrong in [*truncated, *extended, b"\n" + GOLDEN, b" " + GOLDEN]:
        with pytest.raises(CorruptArtifact, match=CONTENT):
            decode(wrong)


@pytest.mark.parametrize("body", [b"", b"\n", b"null\n", b"[]\n", b"7\n", b'"format"\n', b"{}\n"])
def test_what_is_no_manifest_is_refused(body: bytes) -> None:
    for wrong in (body, body + blake3(body).digest()):
        with pytest.raises(CorruptArtifact, match=CONTENT):
            decode(wrong)


@pytest.mark.parametrize("number", [0, 2, -1, 10**6])
def test_another_format_says_which_it_is_and_what_to_do(number: int) -> None:
    message = rf"format {number}; this version knows format 1\. .*upgrade"
    head = json.loads(GOLDEN_HEAD) | {"format": number}
    for body in (sealed(head), sealed(head, b"another table"), sealed({"format": number})):
        with pytest.raises(StoreMismatch, match=message):
            decode(body)


@pytest.mark.parametrize(
    "change",
    [
        {"codec": "zstd"},
        {"unknown": 1},
        {"chunker": {"algorithm": "another", "window": 48}},
        {"chunks": 2},
        {"chunks": -3},
    ],
    ids=str,
)
def test_what_is_whole_but_not_understood_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(StoreMismatch, match=r"not understood.*upgrade"):
        decode(sealed(json.loads(GOLDEN_HEAD) | change))


def test_a_missing_entry_is_refused() -> None:
    head = json.loads(GOLDEN_HEAD)
    for missing in head:
        left = {name: entry for name, entry in head.items() if name != missing}
        with pytest.raises((CorruptArtifact, StoreMismatch), match=CONTENT):
            decode(sealed(left))


def test_the_manifest_of_another_content_is_refused() -> None:
    for digest, size in ((ONE, MANIFEST.size), (CONTENT, MANIFEST.size + 1)):
        with pytest.raises(CorruptArtifact, match="belongs to content") as caught:
            Manifest.decode(GOLDEN, digest=digest, size=size)
        assert f"{digest} ({size} bytes)" in str(caught.value)
        assert f"{CONTENT} ({MANIFEST.size} bytes)" in str(caught.value)


@pytest.mark.parametrize(
    "segments",
    [
        [],
        [[2, 0, 800_000]],
        [[-1, 0, 400_000], [1, 0, 400_000]],
        [[0, 0, 500_001], [1, 0, 299_999]],
        [[0, 300_000, 300_000], [1, 0, 400_000], [0, 0, 100_000]],
        [[0, -1, 400_000], [1, 0, 400_000]],
        [[0, 0, 500_000], [1, 0, 300_000], [1, 0, 0]],
        [[0, 0, 500_000], [1, 0, 400_000], [0, 0, -100_000]],
        [[0, 0, 500_000], [1, 0, 400_000]],
    ],
)
def test_segments_outside_their_blobs_or_of_another_sum_are_refused(
    segments: list[list[int]],
) -> None:
    with pytest.raises(StoreMismatch, match="not understood"):
        decode(sealed(json.loads(GOLDEN_HEAD) | {"segments": segments}))


@pytest.mark.parametrize(
    "blob", [[ONE[:-1], 500_000], [ONE.upper(), 500_000], [ONE, BLOB_LIMIT + 1], [ONE, 0], [ONE]]
)
def test_impossible_blobs_are_refused(blob: list[object]) -> None:
    head = json.loads(GOLDEN_HEAD)
    with pytest.raises(StoreMismatch, match="not understood"):
        decode(sealed(head | {"blobs": [blob, head["blobs"][1]]}))


@pytest.mark.parametrize("lengths", [(300_000, 400_000, 100_001), (400_000, 400_000, 0)])
def test_chunks_of_another_sum_or_of_nothing_are_refused(lengths: tuple[int, ...]) -> None:
    table = struct.pack("<3I", *lengths) + b"".join(CHUNKS)
    with pytest.raises(StoreMismatch, match="not understood"):
        decode(sealed(json.loads(GOLDEN_HEAD), table))


_NUMBERS = st.integers() | st.floats(0, 10**6) | st.booleans()
_JSON = st.recursive(
    st.none() | _NUMBERS | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


def _places(part: Any) -> list[tuple[Any, Any]]:
    """List every place in nested JSON as (container, index)."""
    inside: list[tuple[Any, Any]] = []
    if isinstance(part, dict | list):
        for index in part if isinstance(part, dict) else range(len(part)):
            inside += [(part, index), *_places(part[index])]
    return inside


@given(st.data())
def test_a_sealed_manifest_with_anything_in_its_place_is_refused_or_consistent(
    data: st.DataObject,
) -> None:
    head = json.loads(GOLDEN_HEAD)
    container, index = data.draw(st.sampled_from(_places(head)))
    right = container[index]
    alike = st.just(float(right)) if isinstance(right, int) else st.just(str(right))
    container[index] = data.draw(alike | _JSON)
    try:
        found = decode(sealed(head))
    except (CorruptArtifact, StoreMismatch):
        return
    numbers = [number for part in found.segments for number in (part.blob, part.start, part.length)]
    numbers += [found.size, *(size for _, size in found.blobs)]
    assert all(isinstance(number, int) for number in numbers)
    assert sum(part.length for part in found.segments) == sum(found.chunks.lengths) == found.size
    for part in found.segments:
        assert 0 <= part.start < part.start + part.length <= found.blobs[part.blob][1]


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    """Make a manifest in which blobs, segments and chunks agree."""
    sizes = draw(st.lists(st.integers(1, BLOB_LIMIT), min_size=1, max_size=5))
    segments = []
    for index in draw(st.lists(st.integers(0, len(sizes) - 1), min_size=1, max_size=8)):
        start = draw(st.integers(0, sizes[index] - 1))
        segments.append(Segment(index, start, draw(st.integers(1, sizes[index] - start))))
    size = sum(part.length for part in segments)
    cuts = draw(st.sets(st.integers(1, size - 1), max_size=8)) if size > 1 else set()
    lengths = [end - begin for begin, end in pairwise([0, *sorted(cuts), size])]
    seed = draw(st.binary(max_size=4))
    return Manifest(
        digest=blake3(seed).hexdigest(),
        size=size,
        blobs=tuple(
            (blake3(seed + bytes([number])).hexdigest(), blob) for number, blob in enumerate(sizes)
        ),
        segments=tuple(segments),
        chunks=ChunkTable(array("I", lengths), blake3(seed).digest(length=32 * len(lengths))),
        chunker=draw(
            st.builds(ChunkerParameters, algorithm=st.text(max_size=9), maximum=st.integers())
        ),
    )


@given(manifests())
def test_every_consistent_manifest_comes_back(manifest: Manifest) -> None:
    found = Manifest.decode(manifest.encode(), digest=manifest.digest, size=manifest.size)
    assert found == manifest
    assert [length for length, _ in map(found.chunks.__getitem__, range(len(found.chunks)))] == [
        *manifest.chunks.lengths
    ]


@given(manifests(), st.integers(1, 2**32))
def test_no_manifest_is_shorter_than_the_least_that_is_expected_of_it(
    manifest: Manifest, longest: int
) -> None:
    longest = max(longest, *manifest.chunks.lengths, 1)
    chunker = replace(manifest.chunker, maximum=longest)
    body = replace(manifest, chunker=chunker).encode()
    assert len(body) >= smallest_size(manifest.size, chunker)


def test_a_manifest_costs_at_most_40_bytes_per_chunk() -> None:
    size = 2**30
    ends = [*accumulate([BLOB_LIMIT - 100_000] * 16), size]
    blobs = [
        (blake3(bytes([number])).hexdigest(), end - begin)
        for number, (begin, end) in enumerate(pairwise([0, *ends]))
    ]
    lengths = array("I", [96 * 1024] * (size // (96 * 1024)))
    lengths.append(size - sum(lengths))
    manifest = Manifest(
        digest=CONTENT,
        size=size,
        blobs=tuple(blobs),
        segments=tuple(Segment(index, 0, length) for index, (_, length) in enumerate(blobs)),
        chunks=ChunkTable(lengths, blake3().digest(length=32 * len(lengths))),
        chunker=ChunkerParameters(),
    )
    body = manifest.encode()
    assert Manifest.decode(body, digest=CONTENT, size=size) == manifest
    assert len(body) <= 40 * len(lengths)
