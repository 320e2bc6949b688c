"""Series of files as training leaves them: the same on every run, written by the real libraries.

    from series import SERIES

    for series in SERIES:
        for path in series.files(folder, scale=1 / 32):
            ...    # path.name is the name that a user would upload it under

A file may be overwritten by the next one: what is to be kept is read before the next step.

checkpoints     torch.save and .safetensors       forests     scikit-learn and LightGBM
tables          growing logs, arrays with inserted rows, and random bytes that move

Rule 1: what trains changes in every element, by a real step of a real optimizer; only the gradients
are made up.
Rule 2: a library is loaded by the series that needs it. torch, safetensors, scikit-learn and
LightGBM come with the dependency group `series`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from series import checkpoints, forests, tables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["SERIES", "Series"]


@dataclass(frozen=True)
class Series:
    """One series of files.

    Args:
        name: What it is called in tables.
        ceiling: The share of its bytes at scale 1 that is saved where every byte that was there
            before costs nothing; None if nobody can tell.
        bar: The share at scale 1 that storing it must save.
        make: Writes the files.
        apart: Whether files of another name come from another process.
    """

    name: str
    make: Callable[[Path, float], Iterator[Path]]
    ceiling: float | None = None
    bar: float = 0.0
    apart: bool = False

    def files(self, folder: Path, *, scale: float = 1.0) -> Iterator[Path]:
        """Write one file after the other into a folder, and yield where it is.

        At scale 1 a model has 23 million parameters and the synthetic series 256 MiB a file; the
        rest is of the same order. Sizes are about in proportion to the scale.
        """
        yield from self.make(folder, scale)


SERIES = (
    Series("frozen backbone", checkpoints.frozen_backbone, ceiling=0.870, bar=0.86),
    Series("growing history", checkpoints.growing_history, bar=0.84),
    Series("last layers trained", checkpoints.last_layers),
    Series("LoRA, full state dict", checkpoints.lora_full, bar=0.79),
    Series("LoRA, merged", checkpoints.lora_merged),
    Series("everything trained", checkpoints.everything),
    Series("other file names", checkpoints.other_names, ceiling=0.75, bar=0.74),
    Series("two studies, one backbone", checkpoints.two_studies, apart=True),
    Series("warm-started forests", forests.warm_started),
    Series("LightGBM continued", forests.continued),
    Series("growing CSV", tables.growing_csv, ceiling=1 - 10 / 55, bar=0.80),
    Series("array with inserted rows", tables.inserted_rows),
    # At most 1.05 times what is new.
    Series("synthetic", tables.synthetic, ceiling=1 - 490 / 2560, bar=1 - 1.05 * 490 / 2560),
)
