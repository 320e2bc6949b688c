"""How contents are put together from what is there: by actual bytes, within bounds, in chains.

Chunks are drawn as numbers: equal numbers are equal chunks, and 0 is a chunk of zeros.
"""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
import time
from array import array
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from casartifacts import planning, scanning
from casartifacts.bodies import Source
from casartifacts.chunking import ChunkerParameters
from casartifacts.manifest import ChunkTable, Manifest, Segment
from casartifacts.matching import BOUNDS, Bounds, Layout, Stretch, found, lay_out, samples

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MIB = 2**20
CHUNKER = ChunkerParameters()

# Nothing is too little to be shared.
BOUNDLESS = Bounds(
    blob_limit=300, ranges=1200, blobs=10**6, shortest=1, least_of_blob=0, least_of_content=0
)


# Contents of small chunks, with their bytes


@cache
def chunk(number: int) -> bytes:
    if not number:
        return bytes(24)
    return blake3(number.to_bytes(8, "big")).digest(length=1 + number * 7 % 40)


def joined(numbers: Sequence[int]) -> bytes:
    return b"".join(map(chunk, numbers))


def table(numbers: Sequence[int]) -> ChunkTable:
    return ChunkTable(
        array("I", [len(chunk(number)) for number in numbers]),
        b"".join(blake3(chunk(number)).digest() for number in numbers),
    )


class Shelf:
    """Blobs by their digests, and contents that are put together from them."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}

    def keep(self, blob: bytes) -> tuple[str, int]:
        digest = blake3(blob).hexdigest()
        self.blobs[digest] = blob
        return digest, len(blob)

    def put(
        self, numbers: Sequence[int], bases: Sequence[Manifest], bounds: Bounds
    ) -> tuple[Layout, Manifest]:
        """Store a content as it is laid out."""
        whole = joined(numbers)
        chunks = table(numbers)
        layout = lay_out(chunks, bases=bases, bounds=bounds)
        for digest, size in layout.leaned:
            assert len(self.blobs[digest]) == size
        fresh = [
            self.keep(b"".join(whole[at.offset : at.offset + at.length] for at in blob))[0]
            for blob in layout.fresh
        ]
        digest = blake3(whole).hexdigest()
        manifest = layout.manifest(fresh, digest=digest, chunks=chunks, chunker=CHUNKER)
        assert Manifest.decode(manifest.encode(), digest=digest, size=len(whole)) == manifest
        assert self.read(manifest) == whole
        return layout, manifest

    def scatter(self, numbers: Sequence[int], cuts: Sequence[int], seed: int) -> Manifest:
        """Store a content in pieces that end anywhere, several to a blob, as nobody would."""
        whole = joined(numbers)
        ends = sorted({cut % (len(whole) + 1) for cut in cuts} | {0, len(whole)})
        spans = list(pairwise(ends))
        blobs: list[tuple[str, int]] = []
        segments: dict[int, Segment] = {}
        order = random.Random(seed).sample(range(len(spans)), len(spans))
        for some in (order[at : at + 3] for at in range(0, len(order), 3)):
            start = 0
            for span in some:
                begin, end = spans[span]
                segments[span] = Segment(len(blobs), start, end - begin)
                start += end - begin
            blobs.append(self.keep(b"".join(whole[slice(*spans[span])] for span in some)))
        manifest = Manifest(
            digest=blake3(whole).hexdigest(),
            size=len(whole),
            blobs=tuple(blobs),
            segments=tuple(segments[span] for span in range(len(spans))),
            chunks=table(numbers),
            chunker=CHUNKER,
        )
        manifest.check()
        assert self.read(manifest) == whole
        return manifest

    def read(self, manifest: Manifest) -> bytes:
        """Put a content together without anything of ours."""
        return b"".join(
            self.blobs[manifest.blobs[part.blob][0]][part.start : part.start + part.length]
            for part in manifest.segments
        )


def in_proportion(most: int, size: int, bounds: Bounds) -> float:
    return max(most, most * size / (4 * bounds.blob_limit))


def check_bounds(
    layout: Layout, numbers: Sequence[int], bases: Sequence[Manifest], bounds: Bounds
) -> None:
    """Check what is promised of every layout."""
    size = len(joined(numbers))
    there = {blob for base in bases for blob in base.blobs}
    assert set(layout.leaned) <= there
    assert len(set(layout.leaned)) == len(layout.leaned)
    assert len(layout.leaned) <= in_proportion(bounds.blobs, size, bounds)
    leaned = [part for part in layout.segments if part.blob < len(layout.leaned)]
    most_ranges = in_proportion(bounds.ranges, size, bounds)
    assert len(leaned) + _repetitions(layout) <= most_ranges
    # Ranges and repetitions, what is fresh between them, and where one fresh blob follows another.
    assert len(layout.segments) <= 2 * most_ranges + 1 + len(layout.fresh)
    assert all(part.length >= bounds.shortest for part in leaned)
    for place, (_, blob_size) in enumerate(layout.leaned):
        used = sum(part.length for part in leaned if part.blob == place)
        assert used >= max(1, bounds.least_of_blob * blob_size)
    assert not leaned or sum(part.length for part in leaned) >= bounds.least_of_content * size
    borders = {0, *accumulate(len(chunk(number)) for number in numbers)}
    for blob in layout.fresh:
        assert sum(at.length for at in blob) <= bounds.blob_limit
        assert all({at.offset, at.offset + at.length} <= borders for at in blob)
        assert all(left.offset + left.length < right.offset for left, right in pairwise(blob))
    for left, right in pairwise(layout.segments):
        assert (left.blob, left.start + left.length) != (right.blob, right.start)


def _repetitions(layout: Layout) -> int:
    """Count the segments that lead back to what a fresh blob had already."""
    count = 0
    filled = (-1, 0)
    for part in layout.segments:
        if part.blob >= len(layout.leaned):
            count += (part.blob, part.start) < filled
            filled = max(filled, (part.blob, part.start + part.length))
    return count


numbers_of = st.lists(st.integers(0, 30), max_size=60)
bounds_of = st.builds(
    Bounds,
    blob_limit=st.integers(40, 600),
    ranges=st.integers(1, 12),
    blobs=st.integers(1, 6),
    shortest=st.integers(1, 120),
    least_of_blob=st.floats(0, 0.5),
    least_of_content=st.floats(0, 0.3),
)
EDITS = ["insert", "delete", "overwrite", "move", "truncate", "duplicate"]
edits_of = st.lists(
    st.tuples(st.sampled_from(EDITS), st.integers(0, 60), st.integers(0, 30), st.integers(0, 60)),
    min_size=1,
    max_size=4,
)


def edited(numbers: list[int], edits: list[tuple[str, int, int, int]], salt: int) -> list[int]:
    """Apply edits to a content; what is new is numbered from `salt`."""
    for edit, place, count, other in edits:
        piece = numbers[place : place + count]
        new = list(range(salt, salt + count))
        salt += count
        match edit:
            case "insert":
                numbers = numbers[:place] + new + numbers[place:]
            case "delete":
                numbers = numbers[:place] + numbers[place + count :]
            case "overwrite":
                numbers = numbers[:place] + new + numbers[place + count :]
            case "move":
                numbers = numbers[:place] + numbers[place + count :]
                numbers = numbers[:other] + piece + numbers[other:]
            case "truncate":
                numbers = numbers[:place]
            case "duplicate":
                numbers = numbers[:other] + piece + numbers[other:]
    return numbers


@settings(max_examples=300)
@given(
    numbers_of | st.integers(0, 200).map(lambda count: list(range(100, 100 + count))),
    st.lists(edits_of, min_size=1, max_size=5),
    bounds_of | st.just(BOUNDLESS),
    st.integers(1, 3),
    st.booleans(),
)
def test_any_series_of_edits_is_put_together_byte_for_byte_and_within_the_bounds(
    numbers: list[int],
    series: list[list[tuple[str, int, int, int]]],
    bounds: Bounds,
    depth: int,
    newest_first: bool,
) -> None:
    shelf = Shelf()
    layout, manifest = shelf.put(numbers, [], bounds)
    check_bounds(layout, numbers, [], bounds)
    manifests = [manifest]
    for generation, edits in enumerate(series, 1):
        numbers = edited(numbers, edits, generation * 1000)
        bases = manifests[-depth:]
        if newest_first:
            bases.reverse()
        layout, manifest = shelf.put(numbers, bases, bounds)
        check_bounds(layout, numbers, bases, bounds)
        assert lay_out(table(numbers), bases=bases, bounds=bounds) == layout
        manifests.append(manifest)


@given(
    st.lists(st.tuples(numbers_of, st.lists(st.integers(0, 2000), max_size=12)), max_size=3),
    edits_of,
    bounds_of | st.just(BOUNDLESS),
    st.integers(),
)
def test_bases_may_be_put_together_in_any_way(
    contents: list[tuple[list[int], list[int]]],
    edits: list[tuple[str, int, int, int]],
    bounds: Bounds,
    seed: int,
) -> None:
    """Their segments may end inside chunks, repeat, and share blobs with each other."""
    shelf = Shelf()
    bases = [shelf.scatter(numbers, cuts, seed) for numbers, cuts in contents]
    numbers = edited([number for numbers, _ in contents for number in numbers], edits, 1000)
    layout, _ = shelf.put(numbers, bases, bounds)
    check_bounds(layout, numbers, bases, bounds)


@given(st.lists(numbers_of, max_size=3), numbers_of)
def test_without_bounds_only_what_is_nowhere_yet_is_stored_and_once(
    contents: list[list[int]], numbers: list[int]
) -> None:
    shelf = Shelf()
    bases = [shelf.put(content, [], BOUNDLESS)[1] for content in contents]
    layout, _ = shelf.put(numbers, bases, BOUNDLESS)
    new = set(numbers).difference(*contents)
    assert sum(at.length for blob in layout.fresh for at in blob) == len(joined(list(new)))


@given(numbers_of)
def test_the_same_content_again_is_taken_whole(numbers: list[int]) -> None:
    shelf = Shelf()
    _, base = shelf.put(numbers, [], BOUNDLESS)
    layout, manifest = shelf.put(numbers, [base], BOUNDLESS)
    assert layout.fresh == ()
    assert len(manifest.blobs) == len(base.blobs)


@given(numbers_of, numbers_of)
def test_contents_without_a_chunk_in_common_share_nothing(one: list[int], two: list[int]) -> None:
    two = [number + 100 for number in two]
    _, base = Shelf().put(one, [], BOUNDLESS)
    assert lay_out(table(two), bases=[base], bounds=BOUNDLESS) == lay_out(
        table(two), bases=[], bounds=BOUNDLESS
    )


@pytest.fixture(scope="module")
def small_blobs() -> Iterator[int]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "BLOB_LIMIT", 4096)
        patch.setattr(scanning, "_WINDOW_SIZE", 3000)
        yield 4096


@given(size=st.integers(1, 30_000), seed=st.binary(max_size=8))
def test_without_bases_a_content_is_cut_into_blobs_as_large_as_may_be(
    small_blobs: int, size: int, seed: bytes
) -> None:
    whole = blake3(seed).digest(length=size)
    chunker = ChunkerParameters(minimum=64, average=256, maximum=1024)
    cuts = scanning.cut(Source(io.BytesIO(whole)), size=size, chunker=chunker).cuts
    assert cuts is not None
    chunks = cuts.chunks
    layout = lay_out(chunks, bases=[], bounds=Bounds(blob_limit=small_blobs))
    expected = []
    begin = end = 0
    for length in chunks.lengths:
        if end + length - begin > small_blobs:
            expected.append((Stretch(begin, end - begin),))
            begin = end
        end += length
    assert layout.fresh == (*expected, (Stretch(begin, end - begin),))
    assert layout.segments == tuple(
        Segment(index, 0, blob[0].length) for index, blob in enumerate(layout.fresh)
    )


# Which of several possibilities is taken


def only(layout: Layout) -> Segment:
    assert layout.fresh == ()
    [segment] = layout.segments
    return segment


def test_earlier_bases_are_preferred() -> None:
    shelf = Shelf()
    one = shelf.put([1, 2, 3], [], BOUNDLESS)[1]
    two = shelf.put([2, 3, 1, 2], [], BOUNDLESS)[1]
    for bases in ([one, two], [two, one]):
        assert shelf.put([2], bases, BOUNDLESS)[0].leaned == bases[0].blobs


def test_a_repeated_chunk_goes_with_its_neighbours() -> None:
    """Of the places of 0 the one is taken that makes one range of it."""
    shelf = Shelf()
    base = shelf.put([1, 0, 0, 2, 3], [], replace(BOUNDLESS, ranges=1))[1]
    again = shelf.put([4, 0, 0, 5, 0, 0, 0, 6], [], replace(BOUNDLESS, ranges=1))[1]
    for numbers in ([1, 0, 0, 2], [0, 2, 3], [0, 0, 2], [1, 0]):
        only(shelf.put(numbers, [base], BOUNDLESS)[0])
    for numbers in ([0, 0], [5, 0], [0, 0, 0, 6], [0, 6], [0, 5], [4, 0, 0, 5, 0]):
        only(shelf.put(numbers, [again], BOUNDLESS)[0])


def test_ranges_that_another_content_tore_are_joined() -> None:
    shelf = Shelf()
    first = shelf.put([1, 2, 3, 4], [], BOUNDLESS)[1]
    torn = shelf.put([1, 2, 9, 3, 4], [first], BOUNDLESS)[1]
    assert len(torn.segments) == 3
    # Nothing shorter than the whole of it would do.
    bounds = replace(BOUNDLESS, shortest=len(joined([1, 2, 3, 4])))
    assert only(shelf.put([1, 2, 3, 4], [torn], bounds)[0]) == first.segments[0]


def test_a_long_range_of_a_useless_blob_takes_no_place_of_a_useful_one() -> None:
    bounds = replace(BOUNDLESS, blob_limit=2000, ranges=1, least_of_blob=0.5)
    shelf = Shelf()
    bases = [shelf.put(numbers, [], bounds)[1] for numbers in (range(1, 30), [50])]
    layout, _ = shelf.put([1, 2, 3, 99, 50], bases, bounds)
    assert layout.leaned == bases[1].blobs


def test_repetitions_take_what_is_left_of_the_ranges() -> None:
    bounds = replace(BOUNDLESS, blob_limit=480, ranges=18)
    shelf = Shelf()
    base = shelf.put(range(16, 0, -1), [], bounds)[1]
    numbers = [number for at in range(1, 17) for number in (at, 1000 + at)] + [0] * 70
    layout, _ = shelf.put(numbers, [base], bounds)
    check_bounds(layout, numbers, [base], bounds)
    most = int(in_proportion(18, len(joined(numbers)), bounds))
    leaned = sum(part.blob < len(layout.leaned) for part in layout.segments)
    assert leaned == 16 < most
    assert leaned + _repetitions(layout) == most


def test_a_blob_that_is_stored_anew_is_named_once() -> None:
    """What the bounds drop may come out as a blob that is there and used elsewhere."""
    layout = Layout(
        leaned=(("aa" * 32, 20),),
        fresh=((Stretch(0, 20),), (Stretch(40, 20),)),
        segments=(Segment(1, 0, 20), Segment(0, 0, 20), Segment(2, 0, 20)),
    )
    manifest = layout.manifest(
        ["bb" * 32, "aa" * 32],
        digest="cc" * 32,
        chunks=ChunkTable(array("I", [20] * 3), bytes(96)),
        chunker=CHUNKER,
    )
    manifest.check()
    assert manifest.blobs == (("aa" * 32, 20), ("bb" * 32, 20))
    assert manifest.segments == (Segment(1, 0, 20), Segment(0, 0, 20), Segment(0, 0, 20))


def test_an_equal_digest_of_another_length_is_no_match() -> None:
    shelf = Shelf()
    base = shelf.put([1, 2, 3], [], BOUNDLESS)[1]
    lengths = array("I", base.chunks.lengths)
    lengths[1] += 1
    lying = ChunkTable(lengths, base.chunks.digests)
    layout = lay_out(lying, bases=[base], bounds=BOUNDLESS)
    assert layout.fresh == ((Stretch(lengths[0], lengths[1]),),)
    assert [run.length for run in found(lying, [base.chunks])] == [lengths[0], lengths[2]]


def test_long_repetitions_are_stored_once() -> None:
    zeros = ChunkTable(array("I", [MIB] * 1000), blake3(bytes(MIB)).digest() * 1000)
    layout = lay_out(zeros, bases=[])
    assert layout.fresh_size == 2 * MIB
    assert len(layout.segments) <= in_proportion(BOUNDS.ranges, 1000 * MIB, BOUNDS)


# Downloads


@given(st.lists(numbers_of, max_size=3), numbers_of)
def test_what_lies_nearby_is_found_where_it_is(near: list[list[int]], numbers: list[int]) -> None:
    whole = joined(numbers)
    places = [joined(content) for content in near]
    left = bytearray(b"?" * len(whole))
    end = 0
    for run in found(table(numbers), [table(content) for content in near]):
        piece = places[run.which][run.there : run.there + run.length]
        assert run.offset >= end
        assert run.length == len(piece) > 0
        end = run.offset + run.length
        left[run.offset : end] = piece
    known = set().union(*near)
    expected = [chunk(n) if n in known else b"?" * len(chunk(n)) for n in numbers]
    assert bytes(left) == b"".join(expected)


def test_a_stretch_that_lies_nearby_is_one_run() -> None:
    [run] = found(table([1, 2, 0, 3]), [table([5, 6]), table([0, 0, 1, 2, 0, 3, 4])])
    assert (run.which, run.offset, run.there) == (1, 0, 48)
    assert run.length == len(joined([1, 2, 0, 3]))


# Chains of contents, as tables


@dataclass(frozen=True)
class Step:
    """What a step of a chain came to; sizes in bytes."""

    stored: int
    new: int
    segments: int
    leaned: int
    names: int


def random_chunks(rng: random.Random, size: int) -> list[tuple[int, bytes]]:
    """Draw chunks of 64 KiB to 1 MiB, 192 KiB on average: FastCDC with our parameters."""
    chunks = []
    while size:
        length = min(MIB, 2**16 + int(rng.expovariate(1 / 2**17)), size)
        chunks.append((length, rng.randbytes(32)))
        size -= length
    return chunks


def overwritten(
    rng: random.Random, chunks: list[tuple[int, bytes]], length: int
) -> list[tuple[int, bytes]]:
    """Overwrite a random stretch: the chunks at its ends are lost, and sometimes one more."""
    ends = list(accumulate(chunk[0] for chunk in chunks))
    begin = rng.randrange(ends[-1] - length)
    first = next(at for at, end in enumerate(ends) if end > begin)
    last = next(at for at, end in enumerate(ends) if end >= begin + length)
    last = min(last + (rng.random() < 0.4), len(chunks) - 1)
    size = ends[last] - ends[first] + chunks[first][0]
    return [*chunks[:first], *random_chunks(rng, size), *chunks[last + 1 :]]


def packed(chunks: list[tuple[int, bytes]]) -> ChunkTable:
    return ChunkTable(array("I", [each[0] for each in chunks]), b"".join(c[1] for c in chunks))


def chain(
    places: int, *, steps: int, seed: int, size: int = 256 * MIB, bounds: Bounds = BOUNDS
) -> Iterator[Step]:
    """Store a content that is overwritten at some places per step, 10.2 % of it in all."""
    rng = random.Random(seed)
    chunks = random_chunks(rng, size)
    manifests: list[Manifest] = []
    new = size
    for _ in range(steps):
        if manifests:
            new = int(0.102 * size)
            for _ in range(places):
                chunks = overwritten(rng, chunks, new // places)
        yield _stored(packed(chunks), manifests, rng, new, bounds)


def growing(start: int, *, by: int, steps: int, seed: int) -> Iterator[Step]:
    """Store a log that grows: its last chunk changes, and there are some after it."""
    rng = random.Random(seed)
    chunks = random_chunks(rng, start)
    manifests: list[Manifest] = []
    for step in range(steps):
        if step:
            length, _ = chunks.pop()
            chunks += random_chunks(rng, length + by)
        yield _stored(packed(chunks), manifests, rng, by if step else start, BOUNDS)


def _stored(
    chunks: ChunkTable, manifests: list[Manifest], rng: random.Random, new: int, bounds: Bounds
) -> Step:
    layout = lay_out(chunks, bases=manifests[-1:], bounds=bounds)
    size = sum(chunks.lengths)
    manifest = layout.manifest(
        [rng.randbytes(32).hex() for _ in layout.fresh],
        digest=rng.randbytes(32).hex(),
        chunks=chunks,
        chunker=CHUNKER,
    )
    manifest.check()
    manifests.append(manifest)
    return Step(
        stored=sum(at.length for blob in layout.fresh for at in blob),
        new=new,
        segments=len(layout.segments),
        leaned=len(layout.leaned),
        names=2 + len(layout.fresh) + len(samples(chunks, size)),
    )


def ratio(steps: Sequence[Step]) -> float:
    return sum(step.stored for step in steps) / sum(step.new for step in steps)


@pytest.mark.parametrize(
    ("places", "most", "segments"), [(1, 1.08, 25), (4, 1.12, 75), (8, 1.17, 130)]
)
def test_the_next_checkpoint_costs_what_is_new(places: int, most: float, segments: int) -> None:
    """30 steps of 256 MiB; a few figures stand beside the bounds."""
    for seed in (1, 2, 3):
        steps = list(chain(places, steps=30, seed=seed))
        assert ratio(steps[:10]) <= 1.05
        assert ratio(steps) <= most
        assert max(step.leaned for step in steps) <= 16
        assert max(step.segments for step in steps) <= segments
        assert max(step.names for step in steps[1:]) <= 12


def test_many_small_changes_tear_nothing_beyond_the_bounds() -> None:
    steps = list(chain(64, steps=12, seed=1))
    assert max(step.segments for step in steps) <= 2 * BOUNDS.ranges
    assert ratio(steps[1:]) < 5


@pytest.mark.parametrize(("size", "most"), [(64, 1.4), (128, 1.2)])
def test_what_is_smaller_may_have_as_many_ranges(size: int, most: float) -> None:
    """With a bound in proportion to the size, ten steps of 64 MiB stored 1.66 times what is new."""
    for seed in (1, 2, 3):
        assert ratio(list(chain(13, steps=10, seed=seed, size=size * MIB))) <= most


@pytest.mark.parametrize(("start", "by"), [(2 * MIB, MIB), (2 * MIB, 2**18), (100 * MIB, 3 * MIB)])
def test_a_log_that_grows_costs_what_it_grew(start: int, by: int) -> None:
    steps = list(growing(start, by=by, steps=20, seed=1))
    whole = sum(step.new for step in steps)
    assert sum(step.stored for step in steps) <= 2 * whole
    assert max(step.leaned for step in steps) <= 16


_REPEAT = """
import sys
sys.path.insert(0, sys.argv[1])
import test_matching
print(list(test_matching.chain(8, steps=6, seed=5, size=64 * 2**20)))
"""


def test_a_layout_does_not_depend_on_the_process() -> None:
    """Hashes of bytes differ from process to process."""
    printed = {
        subprocess.run(
            [sys.executable, "-c", _REPEAT, str(Path(__file__).parent)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(printed) == 1


def test_the_time_is_linear_whatever_the_tables_hold() -> None:
    """It takes seconds; one that was quadratic anywhere would take minutes."""
    count = 20_000
    one, other, third = (blake3(word).digest() for word in (b"1", b"2", b"3"))
    rows = [
        one * count,
        (one + other) * (count // 2),
        b"".join(random.Random(1).choices([one, other, third], k=count)),
    ]
    tables = [ChunkTable(array("I", [100] * count), row) for row in rows]
    began = time.monotonic()
    for chunks in tables:
        layout = lay_out(chunks, bases=[])
        blobs = [blake3(bytes([at])).hexdigest() for at in range(len(layout.fresh))]
        base = layout.manifest(blobs, digest=blobs[0], chunks=chunks, chunker=CHUNKER)
        tiny = replace(BOUNDS, blob_limit=10_000, shortest=1)
        # One segment per 50 bytes: every chunk lies across a border.
        torn = replace(base, segments=tuple(Segment(0, 0, 50) for _ in range(2 * count)))
        for other_chunks in tables:
            lay_out(other_chunks, bases=[base, torn], bounds=tiny)
            found(other_chunks, [chunks])
    assert time.monotonic() - began < 60


# Samples


def two_contents(shared: float, seed: int, size: int) -> list[list[tuple[int, bytes]]]:
    rng = random.Random(seed)
    common = random_chunks(rng, int(shared * size))
    return [common + random_chunks(rng, size - int(shared * size)) for _ in range(2)]


@pytest.mark.parametrize(("shared", "least"), [(0.9, 1), (0.68, 0.95), (0.39, 0.7), (0.0, 0)])
def test_contents_that_share_much_have_samples_in_common(shared: float, least: float) -> None:
    size = 64 * MIB
    hits = 0
    for seed in range(60):
        one, two = (
            set(samples(packed(chunks), size)) for chunks in two_contents(shared, seed, size)
        )
        assert len(one) == len(two) == 4
        hits += not one.isdisjoint(two)
    assert hits >= least * 60
    assert shared or not hits


@pytest.mark.parametrize(
    ("size", "count"),
    [(MIB, 0), (16 * MIB - 1, 0), (16 * MIB, 1), (63 * MIB, 3), (64 * MIB, 4), (300 * MIB, 4)],
)
def test_there_is_a_sample_per_16_mib_and_four_at_most(size: int, count: int) -> None:
    chunks = random_chunks(random.Random(size), size)
    digests = sorted(digest for length, digest in chunks if length >= 2**16)
    assert samples(packed(chunks), size) == digests[:count]


def test_chunks_that_say_nothing_are_no_samples() -> None:
    """Zeros, what the content has twice, and what is short; none is left, then there are fewer."""
    rng = random.Random(1)
    twice = (2**18, bytes(31) + b"1")
    short = (2**16 - 1, bytes(31) + b"2")
    zeros = [(length, blake3(bytes(length)).digest()) for length in (2**16, 2**17, MIB, 999_999)]
    good = [(2**16, b"\xff" * 32), (MIB, b"\xfe" * 32), (2**17, b"\xfd" * 32)]
    chunks = [twice, short, *zeros, *good, twice]
    rng.shuffle(chunks)
    assert samples(packed(chunks), 64 * MIB) == [b"\xfd" * 32, b"\xfe" * 32, b"\xff" * 32]
