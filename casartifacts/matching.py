"""Matching: which stretches of a content are there already, and how it is put together from them.

    lay_out   for an upload: ranges of blobs that other contents are made of, and fresh blobs
    found     for a download: stretches of contents that lie near this process
    samples   the chunks by which a content is found when nobody knows what to match it against

Rule 1: pure; chunk tables in, values out.
Rule 2: a match is a digest and a length, chunk by chunk; what is laid out is whole chunks in the
order of the content, so that a poor match costs bytes, never a wrong one.
Rule 3: sharing has bounds (`Bounds`). What a content leans on must be asked for before every upload
and read in pieces at every download; beyond the bounds bytes are stored anew, which also mends what
a long chain of small changes has torn into pieces.
Rule 4: the time is linear in the chunks, but for sorting ranges and samples, whatever is in the
tables.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, TypeAlias

from casartifacts.digest import DIGEST_SIZE, Hasher
from casartifacts.manifest import BLOB_LIMIT, Manifest, Segment

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from casartifacts.chunking import ChunkerParameters
    from casartifacts.manifest import ChunkTable

__all__ = ["BOUNDS", "Bounds", "Found", "Layout", "Stretch", "found", "lay_out", "samples"]

# A chunk: length and digest.
_Key: TypeAlias = tuple[int, bytes]

# A segment to be: blob, start, length.
_Part: TypeAlias = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Bounds:
    """How far a content leans on what is there; sizes in bytes.

    The figures are of chains of contents of 256 MiB, each matched against the one before it alone,
    10.2 % new at some random places per step (`chain` in tests/test_matching.py, six seeds; twelve
    steps with real bytes and FastCDC, of up to 8 places, came within 2 %): what all steps stored
    divided by what was new, after 10 and after 30 steps; segments and blobs leaned on at step 30.
    As it is:

         1 place   1.01  1.04    17 segments  14 blobs
         4 places  1.01  1.07    62           16
         8         1.02  1.11   107           16
        16         1.08  1.28   146           14
        64         1.79  2.40   180           12
    """

    blob_limit: int = BLOB_LIMIT
    """No fresh blob is larger."""

    ranges: int = 128
    """How many ranges of other blobs, and repetitions, in a content of up to four times
    `blob_limit`; in proportion beyond.

    Each is a request of a download. The longest stay. With 96 the synthetic series of tools/series
    (13 places) stores 1.07 times the ideal in 10 steps and has 120 segments, with 128 1.04 and 130,
    without a bound 1.04 and 147. With 64 the chain of 8 places has 74 segments but stores 1.05 and
    1.26. What is smaller has as many: with 32 for 64 MiB the chain of 13 places there stores 1.62
    and 2.17, with 128 it is 1.16 and 1.36 (chunks of 96 KiB). Tensors that change again and again
    tear nothing: the places of a real series are the same in every step.
    """

    blobs: int = 16
    """How many other blobs in a content of up to four times `blob_limit`; in proportion beyond.

    A process that knows nothing of them asks for each before it leans on it. The most used stay.
    Unbounded, the chains of 4 and 8 places lean on up to 22 and store 1.05 and 1.10 after 30 steps;
    with 12 it is 1.14 and 1.19. A log of 2 MiB that grows by 1 MiB, 20 times, stores 1.2 times its
    last size; with 8 it was 1.8, with 4 it was 2.7.
    """

    shortest: int = 256 * 2**10
    """No shorter range: it costs a request.

    From 256 MiB on, 64 to 512 KiB store the same within 1 %, with 1 MiB the chain of 8 places is
    1.05 and 1.16. What is smaller loses what it shares in small pieces: 13 places of 16 MiB store
    1.90 and 2.49, with 128 KiB 1.57 and 1.96, with 64 1.48 and 1.79; but then a large content leans
    on a blob or two more, and with 128 another process made 31 requests at step 30, one too many.
    """

    least_of_blob: float = 1 / 8
    """How much of another blob is used at least: it is kept as a whole as long as this content is.

    With a sixteenth (and no bound on blobs) the chain of 8 places leans on up to 25 blobs and
    stores 1.02 and 1.07; with a quarter on up to 15 and stores 1.04 and 1.20.
    """

    least_of_content: float = 1 / 64
    """How much of the content is found at least: 1 MiB in 64, what a few requests are worth."""


BOUNDS = Bounds()


@dataclass(frozen=True, slots=True)
class Stretch:
    """A range of a content, in bytes."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Layout:
    """How a content is put together.

    Attributes:
        leaned: The blobs that are there and are used: digest and size.
        fresh: For each new blob the stretches of the content that it consists of, in order.
        segments: The content; a blob is an index into `leaned`, followed by `fresh`.
    """

    leaned: tuple[tuple[str, int], ...]
    fresh: tuple[tuple[Stretch, ...], ...]
    segments: tuple[Segment, ...]

    @property
    def fresh_size(self) -> int:
        """How many bytes are stored anew."""
        return sum(stretch.length for blob in self.fresh for stretch in blob)

    def manifest(
        self, fresh: Sequence[str], *, digest: str, chunks: ChunkTable, chunker: ChunkerParameters
    ) -> Manifest:
        """Return the manifest of the content, now that the digests of its new blobs are known."""
        sizes = [sum(stretch.length for stretch in blob) for blob in self.fresh]
        blobs = [*self.leaned, *zip(fresh, sizes, strict=True)]
        # Stored anew, bytes may make a blob that is there: it is named once.
        places = {blob: place for place, blob in enumerate(dict.fromkeys(blobs))}
        return Manifest(
            digest=digest,
            size=sum(chunks.lengths),
            blobs=tuple(places),
            segments=tuple(
                Segment(places[blobs[part.blob]], part.start, part.length) for part in self.segments
            ),
            chunks=chunks,
            chunker=chunker,
        )


@dataclass(frozen=True, slots=True)
class Found:
    """`length` bytes of a content, from `offset`, are there in the nearby content `which`."""

    offset: int
    length: int
    which: int
    there: int


def found(chunks: ChunkTable, near: Sequence[ChunkTable]) -> list[Found]:
    """Return where stretches of a content lie in nearby ones, in the order of the content.

    Earlier ones are preferred. Whether what lies there is what its table says, the caller verifies.
    """
    offsets = _offsets(chunks)
    theirs = [_offsets(table) for table in near]
    return [
        Found(
            offset=offsets[run.first],
            length=offsets[run.first + run.count] - offsets[run.first],
            which=run.table,
            there=theirs[run.table][run.there],
        )
        for run in _runs(_keys(chunks), near)
    ]


# Each sample is an object in the backend and a request of every upload of new content. Two contents
# that share 90, 68, 39 and 20 % of their bytes have one in common, of 300 seeded pairs of 64 MiB:
#     with 1 sample  0.80, 0.58, 0.26, 0.10    with 4  1.00, 0.99, 0.80, 0.45
#     with 2         0.98, 0.86, 0.51, 0.19    with 8  1.00, 1.00, 0.97, 0.75
_MOST_SAMPLES = 4

# Below 16 MiB there is none: a single one would miss the half of what shares two thirds, and would
# be a fourth name beside ref, manifest and blob. What the same process, trial or study stored
# before needs no samples.
_SAMPLED = 16 * 2**20

# Headers of records are equal in contents that share nothing, and fill the places of the smallest.
_SHORTEST_SAMPLE = 64 * 2**10


def samples(chunks: ChunkTable, size: int) -> list[bytes]:
    """Return the digests of the chunks that stand for a content of `size` bytes.

    Contents that share much have samples in common: the smallest digests. Chunks that say nothing
    are passed over: those that occur twice, and zeros.
    """
    wanted = min(_MOST_SAMPLES, size // _SAMPLED)
    times = Counter(key[1] for key in _keys(chunks))
    candidates = sorted(
        (digest, length)
        for length, digest in _keys(chunks)
        if length >= _SHORTEST_SAMPLE and times[digest] == 1
    )
    chosen: list[bytes] = []
    for digest, length in candidates:
        if len(chosen) == wanted:
            break
        if digest != Hasher(bytes(length)).digest():
            chosen.append(digest)
    return chosen


def lay_out(
    chunks: ChunkTable, *, bases: Sequence[Manifest], bounds: Bounds | None = None
) -> Layout:
    """Decide what of a content is taken from the blobs of `bases`, and what is stored anew.

    Earlier bases are preferred. Without bases, and without long repetitions, the content is cut
    into blobs as it stands.
    """
    bounds = bounds or BOUNDS
    keys = _keys(chunks)
    offsets = _offsets(chunks)
    size = offsets[-1]
    runs = _runs(keys, [base.chunks for base in bases])
    ranges = _guarded(_joined(_ranges(runs, bases)), size, bounds)
    leaned = {blob: place for place, blob in enumerate(dict.fromkeys(it.blob for it in ranges))}
    packer = _Packer(
        bounds,
        number=len(leaned),
        repetitions=_in_proportion(bounds.ranges, size, bounds) - len(ranges),
    )
    parts: list[_Part] = []
    done = 0
    for it in ranges:
        parts += packer.take(keys[done : it.first], offsets[done])
        parts.append((leaned[it.blob], it.start, it.length))
        done = it.first + it.count
    parts += packer.take(keys[done:], offsets[done])
    return Layout(leaned=tuple(leaned), fresh=packer.blobs(), segments=_segments(parts))


@dataclass(frozen=True, slots=True)
class _Run:
    """`count` chunks of a content, from chunk `first`, lie in a table from its chunk `there`."""

    first: int
    count: int
    table: int
    there: int


def _runs(keys: list[_Key], tables: Sequence[ChunkTable]) -> list[_Run]:
    """Find the chunks of a content in tables, in runs as long as they go on there."""
    known = _Known(tables)
    places = known.places(keys)
    runs: list[_Run] = []
    begin = 0
    for index in range(1, len(places) + 1):
        if index < len(places) and places[index] == places[index - 1] + 1 != 0:
            continue
        if places[begin] >= 0:
            table, there = known.table(places[begin])
            runs.append(_Run(begin, index - begin, table, there))
        begin = index
    return runs


class _Known:
    """The chunks of tables in a row; a place is an index into it, -1 is nowhere.

    A chunk goes on where the one before it was, else it is looked up, the first table first. Where
    that table has it several times (zeros, repetitions), the chunk after it decides, if it can.
    """

    def __init__(self, tables: Sequence[ChunkTable]) -> None:
        # None after each table, so that nothing goes on into the next one, and at place -1.
        self._row: list[_Key | None] = []
        self._begins: list[int] = []
        self._first: dict[_Key, int] = {}
        self._repeated: set[_Key] = set()
        for table in tables:
            begin = len(self._row)
            self._begins.append(begin)
            for place, key in enumerate(_keys(table), begin):
                self._row.append(key)
                if begin <= self._first.setdefault(key, place) < place:
                    self._repeated.add(key)
            self._row.append(None)
        self._row.append(None)

    def table(self, place: int) -> tuple[int, int]:
        """Return which table this is in, and where in it."""
        table = bisect_right(self._begins, place) - 1
        return table, place - self._begins[table]

    def places(self, keys: list[_Key]) -> list[int]:
        """Return where each chunk is."""
        row, first, repeated = self._row, self._first, self._repeated
        places: list[int] = []
        place = -1
        for key in keys:
            if row[place] != key:
                place = -1 if key in repeated else first.get(key, -1)
            places.append(place)
            place += place >= 0
        if repeated:
            self._settle(keys, places)
        return places

    def _settle(self, keys: list[_Key], places: list[int]) -> None:
        """Give repeated chunks a place: that before the next chunk, or else the first that fits."""
        row = self._row
        for index in range(len(keys) - 2, -1, -1):
            after = places[index + 1]
            if places[index] < 0 < after and row[after - 1] == keys[index]:
                places[index] = after - 1
        place = -1
        for index, key in enumerate(keys):
            if places[index] < 0 and key in self._repeated:
                places[index] = place if row[place] == key else self._first[key]
            place = places[index]
            place += place >= 0


@dataclass(frozen=True, slots=True)
class _Range:
    """`count` chunks, from chunk `first`, are `length` bytes of a blob, from `start`."""

    first: int
    count: int
    blob: tuple[str, int]
    start: int
    length: int


def _ranges(runs: list[_Run], bases: Sequence[Manifest]) -> Iterator[_Range]:
    """Yield what runs are in terms of blobs.

    A chunk across a border of the segments of its base is left out: where we write them there is
    none, because they end where chunks end.
    """
    offsets = [_offsets(base.chunks) for base in bases]
    begins = [[*accumulate((it.length for it in base.segments), initial=0)] for base in bases]
    for run in runs:
        base, its_offsets, its_begins = bases[run.table], offsets[run.table], begins[run.table]
        at, end = run.there, run.there + run.count
        while at < end:
            index = bisect_right(its_begins, its_offsets[at]) - 1
            segment = base.segments[index]
            # As many chunks as end in it.
            to = bisect_right(its_offsets, its_begins[index + 1], at, end + 1) - 1
            if to > at:
                yield _Range(
                    first=run.first + at - run.there,
                    count=to - at,
                    blob=base.blobs[segment.blob],
                    start=segment.start + its_offsets[at] - its_begins[index],
                    length=its_offsets[to] - its_offsets[at],
                )
            at = max(to, at + 1)


def _joined(ranges: Iterator[_Range]) -> list[_Range]:
    """Join what goes on in the content and in the blob: other contents may have torn it."""
    joined: list[_Range] = []
    for it in ranges:
        last = joined[-1] if joined else None
        if (
            last is not None
            and last.blob == it.blob
            and last.first + last.count == it.first
            and last.start + last.length == it.start
        ):
            joined[-1] = replace(last, count=last.count + it.count, length=last.length + it.length)
        else:
            joined.append(it)
    return joined


def _in_proportion(most: int, size: int, bounds: Bounds) -> int:
    """Return a bound on numbers for a content of `size` bytes."""
    return max(most, most * size // (4 * bounds.blob_limit))


def _guarded(ranges: list[_Range], size: int, bounds: Bounds) -> list[_Range]:
    """Leave out what goes beyond the bounds; nothing that is left out brings another one back."""
    ranges = [it for it in ranges if it.length >= bounds.shortest]
    ranges = _of_useful_blobs(ranges, size, bounds)
    most = _in_proportion(bounds.ranges, size, bounds)
    longest = sorted(ranges, key=lambda it: -it.length)[:most]
    ranges = sorted(longest, key=lambda it: it.first)
    # Some blobs may have lost ranges.
    ranges = _of_useful_blobs(ranges, size, bounds)
    if sum(it.length for it in ranges) < bounds.least_of_content * size:
        return []
    return ranges


def _of_useful_blobs(ranges: list[_Range], size: int, bounds: Bounds) -> list[_Range]:
    used: dict[tuple[str, int], int] = defaultdict(int)
    for it in ranges:
        used[it.blob] += it.length
    enough = [blob for blob in used if used[blob] >= bounds.least_of_blob * blob[1]]
    enough.sort(key=lambda blob: -used[blob])
    useful = set(enough[: _in_proportion(bounds.blobs, size, bounds)])
    return [it for it in ranges if it.blob in useful]


class _Packer:
    """Packs chunks into fresh blobs; a long repetition leans on its first occurrence.

    Args:
        bounds: A repetition is so long that repetitions alone stay within the bound on ranges.
        number: The number of the first blob.
        repetitions: How many there may be.
    """

    def __init__(self, bounds: Bounds, *, number: int, repetitions: int) -> None:
        self._limit = bounds.blob_limit
        self._shortest = -(-4 * bounds.blob_limit // bounds.ranges)
        self._number = number
        self._left = repetitions
        # For each blob the offset and the length of its stretches.
        self._blobs: list[list[list[int]]] = []
        self._filled = self._limit
        # What was stored, in order: chunk, blob, start; and where in this list a chunk is first.
        self._stored: list[tuple[_Key, int, int]] = []
        self._first: dict[_Key, int] = {}

    def blobs(self) -> tuple[tuple[Stretch, ...], ...]:
        """Return what each blob consists of."""
        return tuple(tuple(Stretch(*part) for part in blob) for blob in self._blobs)

    def take(self, keys: list[_Key], offset: int) -> Iterator[_Part]:
        """Take the next chunks that are not there, which begin at an offset of the content."""
        at = 0
        while at < len(keys):
            place, count, length = self._repeated(keys, at)
            if length >= self._shortest and self._left > 0:
                self._left -= 1
                _, blob, start = self._stored[place]
                yield blob, start, length
                offset += length
                at += count
                continue
            # All of a repetition that is too short, or else it would be looked at again and again.
            for key in keys[at : at + max(count, 1)]:
                yield self._store(key, offset)
                offset += key[0]
                at += 1

    def _repeated(self, keys: list[_Key], at: int) -> tuple[int, int, int]:
        """Return where in what was stored these chunks are, how many are, and their length."""
        place = self._first.get(keys[at], len(self._stored))
        most = min(len(self._stored) - place, len(keys) - at)
        count = length = 0
        while count < most:
            key, blob, _ = self._stored[place + count]
            if key != keys[at + count] or blob != self._stored[place][1]:
                break
            count += 1
            length += key[0]
        return place, count, length

    def _store(self, key: _Key, offset: int) -> _Part:
        length = key[0]
        if self._filled + length > self._limit:
            self._blobs.append([])
            self._filled = 0
        stretches = self._blobs[-1]
        if stretches and stretches[-1][0] + stretches[-1][1] == offset:
            stretches[-1][1] += length
        else:
            stretches.append([offset, length])
        blob, start = self._number + len(self._blobs) - 1, self._filled
        self._first.setdefault(key, len(self._stored))
        self._stored.append((key, blob, start))
        self._filled += length
        return blob, start, length


def _segments(parts: Iterable[_Part]) -> tuple[Segment, ...]:
    """Join what goes on in the same blob."""
    joined: list[list[int]] = []
    end = -1, 0
    for blob, start, length in parts:
        if (blob, start) == end:
            joined[-1][2] += length
        else:
            joined.append([blob, start, length])
        end = blob, start + length
    return tuple(Segment(*part) for part in joined)


def _keys(chunks: ChunkTable) -> list[_Key]:
    digests = chunks.digests
    return [
        (length, digests[at : at + DIGEST_SIZE])
        for length, at in zip(chunks.lengths, range(0, len(digests), DIGEST_SIZE), strict=True)
    ]


def _offsets(chunks: ChunkTable) -> list[int]:
    """Return where each chunk begins, and where the last one ends."""
    return [*accumulate(chunks.lengths, initial=0)]
