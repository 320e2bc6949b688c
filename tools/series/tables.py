"""Logs and arrays that grow, and random bytes that move."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["growing_csv", "inserted_rows", "synthetic"]


def growing_csv(folder: Path, scale: float) -> Iterator[Path]:
    """Append to a log of losses, 4 MB at a time at scale 1, ten times."""
    random = np.random.default_rng(1)
    path = folder / "log.csv"
    path.write_text("step,loss,accuracy,learning_rate,seconds\n", encoding="ascii")
    count = max(100, int(80_000 * scale))
    for save in range(10):
        rows = random.random((count, 3))
        with path.open("a", encoding="ascii") as file:
            for step, (loss, accuracy, seconds) in enumerate(rows.tolist(), save * count):
                file.write(f"{step},{loss:.9f},{accuracy:.6f},{1e-3:.1e},{seconds:.9f}\n")
        yield path


def inserted_rows(folder: Path, scale: float) -> Iterator[Path]:
    """Insert a hundredth of new rows into an array of 64 MB, in ten places, eight times."""
    random = np.random.default_rng(2)
    count = max(1000, int(62_500 * scale))
    rows = random.random((count, 256), dtype=np.float32)
    path = folder / "features.npy"
    for _ in range(8):
        np.save(path, rows)
        yield path
        for place in random.integers(0, len(rows), 10):
            new = random.random((count // 1000, 256), dtype=np.float32)
            rows = np.insert(rows, [place] * len(new), new, axis=0)


def synthetic(folder: Path, scale: float) -> Iterator[Path]:
    """Write 256 MiB ten times; each time 13 places of 2 MiB are new, and 1 KiB moves the rest.

    So 10.2 % of each file is new, and 490 MiB of all ten.
    """
    random = np.random.default_rng(3)
    size, new = int(256 * 2**20 * scale), int(2 * 2**20 * scale)
    content = bytearray(random.bytes(size))
    path = folder / "random.bin"
    for _ in range(10):
        path.write_bytes(content)
        yield path
        content[:0] = random.bytes(2**10)
        del content[size:]
        shift = int(random.integers(0, new))
        for slot in random.choice(127, 13, replace=False).tolist():
            begin = shift + slot * new
            content[begin : begin + new] = random.bytes(new)
