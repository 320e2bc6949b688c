"""What a real store saves of a series: each file is uploaded, fetched back and compared."""

from __future__ import annotations

import filecmp
import tempfile
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from casartifacts import ContentStore, FileSystemArtifactStore
from series.checkpoints import two_studies

if TYPE_CHECKING:
    from series import Series

__all__ = ["Stored", "found_by_hints", "store"]


@dataclass
class Stored:
    """What was uploaded and what it took, in bytes; and the most names that one file took."""

    size: int = 0
    taken: int = 0
    most_names: int = 0

    @property
    def saved(self) -> float:
        """The share that was saved."""
        return 1 - self.taken / self.size


def store(series: Series, *, scale: float) -> Stored:
    """Store a series in a folder, from one process, or from one for each file name."""
    stored = Stored()
    with tempfile.TemporaryDirectory(prefix="casartifacts-savings-") as name:
        folder = Path(name)
        (folder / "files").mkdir()
        stores: dict[str, ContentStore] = {}
        names = 0
        for path in series.files(folder / "files", scale=scale):
            place = stores.setdefault(path.name if series.apart else "", _open(folder))
            with path.open("rb") as body:
                artifact_id = place.add(body, filename=path.name)
            _open(folder).download(artifact_id, folder / "copy", overwrite=True)
            if not filecmp.cmp(path, folder / "copy", shallow=False):
                raise AssertionError(f"{path.name} of {series.name} came back as other bytes")
            stored.size += path.stat().st_size
            stored.taken, before = _taken(folder / "store"), names
            names = sum(each.is_file() for each in (folder / "store").rglob("*"))
            stored.most_names = max(stored.most_names, names - before)
    return stored


def found_by_hints(*, scale: float, trials: int = 10) -> int:
    """Return in how many trials another process finds the backbone of a study that is new to it."""
    found = 0
    for seed in range(trials):
        with tempfile.TemporaryDirectory(prefix="casartifacts-savings-") as name:
            folder = Path(name)
            (folder / "files").mkdir()
            sizes = []
            first, _, _, second = islice(_kept(folder, scale, seed), 4)
            for path in (first, second):
                with path.open("rb") as body:
                    _open(folder).add(body, filename=path.name)
                sizes.append(_taken(folder / "store"))
            found += sizes[1] - sizes[0] < second.stat().st_size / 2
    return found


def _kept(folder: Path, scale: float, seed: int) -> list[Path]:
    """Write the files of two studies, each under a name of its own."""
    kept = []
    for number, path in enumerate(islice(two_studies(folder / "files", scale, seed=seed), 4)):
        kept.append(path.rename(folder / f"{number}-{path.name}"))
    return kept


def _open(folder: Path) -> ContentStore:
    return ContentStore(FileSystemArtifactStore(folder / "store", durable=False))


def _taken(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
