"""Where contents are cut: golden cut points, and what chunking promises for every content."""

from __future__ import annotations

import importlib.machinery
import os
import shutil
import subprocess
import sys
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pyfastcdc
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st
from pyfastcdc.py import FastCDC as PurePythonFastCDC

from casartifacts.backends.filesystem import FileSystemArtifactStore
from casartifacts.chunking import ChunkerParameters, Cutter
from casartifacts.store import ContentStore
from casartifacts.trail import Trail

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_SUFFIXES = tuple(importlib.machinery.EXTENSION_SUFFIXES)
_PACKAGE = Path(pyfastcdc.__file__).parent

compiled = pytest.mark.skipif(
    not any(path.name.endswith(_SUFFIXES) for path in _PACKAGE.rglob("*")),
    reason="pyfastcdc has no compiled part on this machine",
)

# Small chunks make many of them out of little.
SMALL = ChunkerParameters(minimum=64, average=256, maximum=1024)


def content(seed: bytes, size: int) -> bytes:
    """Return bytes that look random and are the same on every machine."""
    return blake3(seed).digest(length=size)


def cut(
    whole: bytes,
    parameters: ChunkerParameters,
    windows: Iterable[int] = (),
    points: Sequence[int] = (),
) -> list[int]:
    """Cut a content that is handed in by windows of these sizes, the last again and again."""
    cutter = Cutter(parameters, Trail(), points)
    sizes = iter(windows)
    lengths: list[int] = []
    at, size = 0, len(whole)
    while at < len(whole):
        size = next(sizes, size)
        is_last = at + size >= len(whole)
        lengths += cutter.cut(memoryview(whole)[at : at + size], is_last=is_last)
        at = sum(lengths)
    return lengths


def chunks(whole: bytes, lengths: list[int]) -> list[bytes]:
    return [whole[begin:end] for begin, end in pairwise([0, *accumulate(lengths)])]


@compiled
def test_cut_points_are_golden() -> None:
    assert cut(content(b"golden", 2**20), ChunkerParameters()) == [
        71791,
        89804,
        36896,
        71775,
        95052,
        38007,
        117681,
        73470,
        72823,
        83293,
        65149,
        130731,
        64011,
        38093,
    ]
    assert cut(bytes(2_500_000), ChunkerParameters()) == [2**20, 2**20, 402_848]
    assert cut(content(b"golden", 2500), SMALL) == [323, 104, 608, 203, 223, 298, 272, 334, 113, 22]
    # Two cut points, one of them where a chunk ends anyway.
    assert cut(content(b"golden", 2500), SMALL, points=[427, 500])[:5] == [323, 104, 73, 535, 203]


@compiled
@pytest.mark.parametrize("parameters", [ChunkerParameters(), SMALL])
def test_another_implementation_cuts_alike(parameters: ChunkerParameters) -> None:
    """The slow twin of pyfastcdc in pure Python was written apart from the compiled part."""
    whole = content(b"twins", 600_000) + bytes(300_000)
    twin = PurePythonFastCDC(
        parameters.average,
        min_size=parameters.minimum,
        max_size=parameters.maximum,
        normalized_chunking=1,
    )
    assert cut(whole, parameters) == [chunk.length for chunk in twin.cut_buf(whole)]


@compiled
def test_the_mean_is_about_the_minimum_and_the_average() -> None:
    parameters = ChunkerParameters()
    lengths = cut(content(b"mean", 2**25), parameters)
    expected = parameters.minimum + parameters.average
    assert 0.8 * expected < 2**25 / len(lengths) < 1.2 * expected


# Random bytes, stretches of one byte, and repetitions, in any order.
_STRETCHES = st.tuples(st.binary(min_size=1, max_size=8), st.integers(1, 3000), st.booleans())


@st.composite
def contents(draw: st.DrawFn) -> bytes:
    whole = b""
    for seed, size, repeats in draw(st.lists(_STRETCHES, max_size=6)):
        whole += (seed * size)[:size] if repeats else content(seed, size)
    return whole


@st.composite
def contents_with_points(draw: st.DrawFn) -> tuple[bytes, list[int]]:
    whole = draw(contents())
    if len(whole) < 2:
        return whole, []
    # Some of them close together, as the header of a tensor between two of them makes them.
    inside = st.integers(1, len(whole) - 1)
    points = draw(st.sets(inside | inside.map(lambda point: point // 100 or 1), max_size=30))
    return whole, sorted(points)


@given(contents_with_points(), st.lists(st.integers(SMALL.maximum + 1, 5000), max_size=5))
def test_cuts_do_not_depend_on_how_the_content_was_handed_in(
    given_: tuple[bytes, list[int]], windows: list[int]
) -> None:
    whole, points = given_
    at_once = cut(whole, SMALL, [len(whole)], points)
    assert cut(whole, SMALL, [*windows, 1500], points) == at_once
    # As if every stretch between cut points were a content of its own.
    stretches = [whole[begin:end] for begin, end in pairwise([0, *points, len(whole)])]
    assert at_once == [length for part in stretches for length in cut(part, SMALL, [len(part)])]


@given(contents_with_points(), st.integers(SMALL.maximum + 1, 5000))
def test_a_window_decides_something_unless_it_is_the_last(
    given_: tuple[bytes, list[int]], window: int
) -> None:
    """What is handed in again is never all of it: the loop around a cutter comes to its end."""
    whole, points = given_
    cutter = Cutter(SMALL, Trail(), points)
    at = 0
    while at + window < len(whole):
        lengths = cutter.cut(memoryview(whole)[at : at + window], is_last=False)
        assert lengths
        at += sum(lengths)


@given(contents_with_points())
def test_chunks_cover_the_content_within_their_bounds(given_: tuple[bytes, list[int]]) -> None:
    whole, points = given_
    lengths = cut(whole, SMALL, [len(whole)], points)
    ends = [*accumulate(lengths)]
    assert sum(lengths) == len(whole)
    assert set(points) <= set(ends)
    assert all(0 < length <= SMALL.maximum for length in lengths)
    last = {*points, len(whole)}
    assert all(
        length >= SMALL.minimum
        for length, end in zip(lengths, ends, strict=True)
        if end not in last
    )


@compiled
@given(st.binary(max_size=8), st.integers(0, 200_000), st.binary(min_size=1, max_size=300))
def test_an_insertion_changes_only_few_chunks(seed: bytes, place: int, inserted: bytes) -> None:
    before = content(seed, 200_000)
    after = before[:place] + inserted + before[place:]
    known = set(chunks(before, cut(before, SMALL, [2**16])))
    assert len(known) > 500
    new = [chunk for chunk in chunks(after, cut(after, SMALL, [2**16])) if chunk not in known]
    assert len(new) <= 24


_WITHOUT = """
import sys
from casartifacts.backends.filesystem import FileSystemArtifactStore
from casartifacts.chunking import ChunkerParameters, Cutter
from casartifacts.store import ContentStore
from casartifacts.trail import Trail

for size in (1_000_000, 0):
    print(Cutter(ChunkerParameters(), Trail()).cut(memoryview(bytes(size)), is_last=True))
with open(sys.argv[2], "rb") as file:
    ContentStore(FileSystemArtifactStore(sys.argv[1])).write("fixed", file)
"""


def test_without_the_compiled_part_cuts_are_fixed_and_one_warning_says_so(tmp_path: Path) -> None:
    def ignore(folder: str, names: list[str]) -> set[str]:
        return {name for name in names if name.endswith(_SUFFIXES) or name == "__pycache__"}

    shutil.copytree(_PACKAGE, tmp_path / "path" / "pyfastcdc", ignore=ignore)
    file_path = tmp_path / "file"
    file_path.write_bytes(content(b"fixed", 2_000_000))
    ran = subprocess.run(
        [sys.executable, "-c", _WITHOUT, str(tmp_path / "store"), str(file_path)],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "path")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == f"{[98_304] * 10 + [16_960]}\n[]\n"
    [warning] = ran.stderr.splitlines()
    assert warning.startswith("pyfastcdc has no compiled part on this machine")
    # What was stored so is read and recognised by everybody: a manifest carries its own table.
    store = ContentStore(FileSystemArtifactStore(tmp_path / "store"))
    with store.open_reader("fixed") as reader:
        assert reader.read() == file_path.read_bytes()
    stored = sorted(path for path in tmp_path.rglob("store/[bm]*/*/*") if path.is_file())
    with file_path.open("rb") as file:
        store.write("again", file)
    assert sorted(path for path in tmp_path.rglob("store/[bm]*/*/*") if path.is_file()) == stored
    assert len(stored) == 2
