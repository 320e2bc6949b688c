"""A content that goes on as a known one is cut as if nothing were known, but hardly looked at."""

from __future__ import annotations

import io
from array import array
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from casartifacts import scanning
from casartifacts.bodies import Source
from casartifacts.chunking import ChunkerParameters, Cutter
from casartifacts.digest import fingerprint
from casartifacts.manifest import ChunkTable
from casartifacts.trail import Cuts, Trail

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

SMALL = ChunkerParameters(minimum=64, average=256, maximum=1024)

# Random bytes, and repetitions, of which a chunk alone does not say where it is.
pieces_of = st.builds(
    lambda seed, size: blake3(bytes([seed])).digest(length=size) if seed else bytes(size),
    st.integers(0, 9),
    st.integers(1, 6000),
)
contents_of = st.lists(pieces_of, max_size=5).map(b"".join)
edits_of = st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 3000), pieces_of), max_size=3)
points_of = st.sets(st.integers(1, 20_000), max_size=5).map(sorted)


class Counting(Trail):
    """Counts the chunks that had to be cut."""

    cut = 0

    def note(self, chunk: memoryview) -> bool:
        self.cut += 1
        return super().note(chunk)


def edited(whole: bytes, edits: Sequence[tuple[int, int, bytes]]) -> bytes:
    for place, gone, new in edits:
        at = place % (len(whole) + 1)
        whole = whole[:at] + new + whole[at + gone :]
    return whole


def cut(
    whole: bytes,
    known: Sequence[Cuts] = (),
    *,
    windows: Sequence[int] = (10**6,),
    points: Sequence[int] = (),
) -> tuple[Cuts, int]:
    """Cut a content that is handed in by windows; count the chunks whose end was looked for."""
    trail = Counting(known)
    cutter = Cutter(SMALL, trail, [point for point in points if point < len(whole)])
    lengths: list[int] = []
    at = 0
    sizes = iter([*windows, *[windows[-1]] * (1 + len(whole) // windows[-1] * 8)])
    while at < len(whole):
        window = memoryview(whole)[at : at + next(sizes)]
        is_last = at + len(window) == len(whole)
        new = cutter.cut(window, is_last=is_last)
        lengths += new
        at += sum(new)
    digests = b"".join(blake3(chunk).digest() for chunk in chunks_of(whole, lengths))
    return trail.cuts(ChunkTable(array("I", lengths), digests)), trail.cut


def chunks_of(whole: bytes, lengths: Iterable[int]) -> list[bytes]:
    return [whole[begin:end] for begin, end in pairwise(accumulate(lengths, initial=0))]


def check_right(cuts: Cuts, whole: bytes) -> None:
    chunks = chunks_of(whole, cuts.chunks.lengths)
    assert b"".join(chunks) == whole
    assert [cuts.fingerprint(at) for at in range(len(chunks))] == [
        fingerprint(memoryview(chunk)) for chunk in chunks
    ]


@given(
    st.lists(st.tuples(contents_of, edits_of), max_size=3),
    edits_of,
    st.lists(st.integers(SMALL.maximum + 1, 5000), min_size=1, max_size=4),
)
def test_whatever_is_known_the_chunks_are_those_of_the_content(
    before: list[tuple[bytes, list[tuple[int, int, bytes]]]],
    edits: list[tuple[int, int, bytes]],
    windows: list[int],
) -> None:
    known = [each for whole, more in before for each in (whole, edited(whole, more))]
    whole = edited(b"".join(known[:2]), edits)
    there = [cut(each)[0] for each in known]
    check_right(cut(whole, there)[0], whole)
    check_right(cut(whole, there, windows=windows)[0], whole)


@given(contents_of, points_of, edits_of, points_of)
def test_other_cut_points_cost_only_sharing(
    before: bytes, points: list[int], edits: list[tuple[int, int, bytes]], others: list[int]
) -> None:
    whole = edited(before, edits)
    cuts, _ = cut(whole, [cut(before, points=points)[0]], points=others)
    check_right(cuts, whole)
    assert {at for at in others if at < len(whole)} <= {*accumulate(cuts.chunks.lengths)}


@pytest.mark.parametrize("change", [0, 1, 2000])
def test_only_in_what_is_new_are_ends_looked_for(change: int) -> None:
    before = blake3(b"run").digest(length=2**20)
    known, every = cut(before)
    at = 2**19
    after = b"moved" + before[:at] + bytes(change) + before[at + change // 2 :]
    cuts, looked_for = cut(after, [known])
    check_right(cuts, after)
    # One begins in the change; where it ends may depend on the byte after it.
    plain = cut(after)[0].chunks.lengths
    assert len({*accumulate(plain)} ^ {*accumulate(cuts.chunks.lengths)}) <= 4
    assert looked_for < every / 20
    # Where a window ends a chunk is cut in vain, and once more if it was not known where.
    again, looked_for_again = cut(after, [known], windows=[20_000])
    assert again == cuts
    assert looked_for_again < looked_for + 1.1 * len(after) / 20_000


def test_a_log_that_grew_is_not_cut_where_it_ended() -> None:
    log = blake3(b"log").digest(length=50_000)
    known = cut(log[:30_000])[0]
    assert cut(log, [known])[0] == cut(log)[0]
    # The same content again: its first chunk and its last one.
    assert cut(log[:30_000], [known]) == (known, 2)


def test_a_source_that_is_scanned_again_gives_the_same() -> None:
    """Large enough for several windows and two threads."""
    chunker = ChunkerParameters()
    before = blake3(b"source").digest(length=20 * 2**20)
    after = before[:5_000_000] + b"new" * 100_000 + before[5_000_000:]
    known = scanning.cut(Source(io.BytesIO(before)), size=len(before), chunker=chunker).cuts
    assert known is not None
    plain, followed = (
        scanning.cut(Source(io.BytesIO(after)), size=len(after), chunker=chunker, known=each)
        for each in ([], [known])
    )
    assert followed == plain
    assert followed.cuts is not None
    check_right(followed.cuts, after)
    assert followed.digest == blake3(after).hexdigest()
    chunks = chunks_of(after, followed.cuts.chunks.lengths)
    assert followed.cuts.chunks.digests == b"".join(blake3(chunk).digest() for chunk in chunks)
