"""The races: both sides of a row take turns, and what the table and the JSON say of it."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from racing.rows import Passed, Skipped

if TYPE_CHECKING:
    from racing.rows import Place, Row, Side

__all__ = ["race"]


def race(row: Row, place: Place, *, repeat: int) -> dict[str, Any]:
    """Let both sides of a row take turns; return what the table and the JSON say of it."""
    samples: tuple[list[Any], list[Any]] = ([], [])
    result: dict[str, Any] = {"row": row.name, "reference": row.reference, "unit": row.unit}
    with tempfile.TemporaryDirectory(dir=place.folder) as shared:
        try:
            sides = row.sides(place, Path(shared))
            for turn in range(repeat if row.unit == "s" else 1):
                for side in (0, 1) if turn % 2 == 0 else (1, 0):
                    samples[side].append(_sample(row, sides[side], place))
        except Skipped as skipped:
            return {**result, "skipped": str(skipped)}
    if row.unit == "requests":
        return {**result, **_counted(row, *samples[0], *samples[1])}
    ours, theirs = map(statistics.median, samples)
    result |= {"ours": ours, "theirs": theirs, "ratio": ours / theirs if theirs else None}
    if row.bound is not None:
        result |= {"bound": row.bound.text(row.unit), "ok": row.bound.holds(ours, theirs)}
    return {**result, "samples": {"ours": samples[0], "theirs": samples[1]}}


def _counted(row: Row, ours: Passed, theirs: Passed) -> dict[str, Any]:
    result: dict[str, Any] = {"ours": asdict(ours), "theirs": asdict(theirs)}
    if row.bound is not None:
        result |= {"bound": row.bound.text(row.unit), "ok": row.bound.holds_for(ours)}
    return result


def _sample(row: Row, side: Side, place: Place) -> float | Passed:
    with tempfile.TemporaryDirectory(dir=place.folder) as folder:
        job = side(Path(folder))
        os.sync()
        begun = time.perf_counter()
        returned = job()
        seconds = time.perf_counter() - begun
    return seconds / row.per if row.unit == "s" else cast("float | Passed", returned)
