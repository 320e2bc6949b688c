"""Rows on checkpoints that are nearly the same, against hf_xet, the peer that does this best.

Both store in a folder, sync nothing and verify what they read. The series is the synthetic one of
tools/series: 10.2 % of each file is new, in 13 places, and everything is shifted.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from array import array
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from series.tables import synthetic

from casartifacts import planning, scanning
from casartifacts.digest import FINGERPRINT_SIZE
from casartifacts.manifest import ChunkTable
from casartifacts.trail import Cuts
from racing.jobs import own_store
from racing.rows import MIB, Bound, Place, Skipped, row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casartifacts import ContentStore
    from casartifacts.bodies import Source
    from racing.rows import Side

__all__ = ["load"]

_NAME = "model.ckpt"

_UNCUT = 4 * MIB


@row("first of a series", reference="hf_xet", bound=Bound(0.4))
def _(place: Place, shared: Path) -> tuple[Side, Side]:
    return _first(place, shared, durable=False)


@row("first of a series, durable=True", reference="hf_xet")
def _(place: Place, shared: Path) -> tuple[Side, Side]:
    return _first(place, shared, durable=True)


@row("next of a series", reference="hf_xet", bound=Bound(0.6))
def _(place: Place, shared: Path) -> tuple[Side, Side]:
    return _next(place, shared, durable=False)


@row("next of a series, durable=True", reference="hf_xet")
def _(place: Place, shared: Path) -> tuple[Side, Side]:
    return _next(place, shared, durable=True)


@row("exact duplicate, to hf_xet", reference="hf_xet", bound=Bound(0.3))
def _(place: Place, shared: Path) -> tuple[Side, Side]:
    [first] = _series(place, shared, count=1)
    store = own_store(shared / "ours")
    _add(store, first)
    _put(first, shared / "theirs")
    return (
        lambda _: partial(_add, store, first),
        lambda _: partial(_put, first, shared / "theirs"),
    )


@row("cold get of the next one", reference="hf_xet", bound=Bound(0.4))
def _(place: Place, shared: Path) -> tuple[Side, Side]:
    store = own_store(shared / "ours")
    for file in _series(place, shared, count=2):
        artifact_id = _add(store, file)
        told = _put(file, shared / "theirs")

    def ours(folder: Path) -> Callable[[], object]:
        return partial(own_store(shared / "ours").download, artifact_id, folder / "copy")

    def theirs(folder: Path) -> Callable[[], object]:
        return partial(_get, told, shared / "theirs", folder / "copy")

    return ours, theirs


@row("stored after 10 steps", reference="what is new", bound=Bound(1.05), unit="MiB")
def _(place: Place, _: Path) -> tuple[Side, Side]:
    # 256 MiB, and nine times 13 places of 2 MiB.
    new = 490 / 256 * _size(place) / MIB
    return _stored(place, _add_to), lambda _: lambda: new


@row("stored after 10 steps, to hf_xet", reference="hf_xet", unit="MiB")
def _(place: Place, _: Path) -> tuple[Side, Side]:
    return _stored(place, _add_to), _stored(place, lambda folder: partial(_put, folder=folder))


def _stored(place: Place, begin: Callable[[Path], Callable[[Path], object]]) -> Side:
    """Return a side that stores ten steps in a folder and returns what they take there, in MiB."""

    def steps(folder: Path) -> float:
        keep = begin(folder / "store")
        for file in _series(place, folder, count=10):
            keep(file)
        return _mib_in(folder / "store")

    return lambda folder: partial(steps, folder)


def _add_to(folder: Path) -> Callable[[Path], object]:
    return partial(_add, own_store(folder))


@row("all is new, to not cut", reference="not cut", bound=Bound(1.25))
def _(place: Place, shared: Path) -> tuple[Side, Side]:
    """Every weight was trained: what it costs to have looked for what is shared."""
    other = shared / "other"
    with other.open("xb") as file:
        for _ in range(_size(place) // MIB):
            file.write(os.urandom(MIB))

    def ours(folder: Path) -> Callable[[], object]:
        store = own_store(folder)
        _add(store, place.file)
        return partial(_add, store, other)

    def not_cut(folder: Path) -> Callable[[], object]:
        store = own_store(folder)
        _add(store, place.file)

        def add() -> None:
            with (
                mock.patch.object(scanning, "cut", _read_only),
                mock.patch.object(planning.Plan, "_read", _read_unverified),
            ):
                _add(store, other)

        return add

    return ours, not_cut


def _read_only(source: Source, *, size: int, **_: object) -> scanning.Scan:
    """Stand in for cutting: the digest alone, and chunks as long as blobs."""
    found = scanning.read(source, small_limit=0)
    lengths = [min(_UNCUT, size - at) for at in range(0, size, _UNCUT)]
    digests = b"".join(b"%032d" % number for number in range(len(lengths)))
    chunks = ChunkTable(array("I", lengths), digests)
    return found._replace(cuts=Cuts(chunks, bytes(FINGERPRINT_SIZE * len(lengths))))


def _read_unverified(self: planning.Plan, buffer: memoryview, first: int, last: int) -> memoryview:
    offset = self._offsets[first]
    window = buffer[: self._offsets[last] - offset]
    filled = 0
    while filled < len(window):
        filled += self._source.read_into(window[filled:], offset + filled)
    return window


def load(place: Place, folder: Path) -> None:
    """Do everything once: the first call imports what it needs and starts threads."""
    with contextlib.suppress(Skipped):
        _put(place.file, folder / "xet")


def _first(place: Place, shared: Path, *, durable: bool) -> tuple[Side, Side]:
    [first] = _series(place, shared, count=1)
    return (
        lambda folder: partial(_add, own_store(folder, durable=durable), first),
        lambda folder: partial(_put, first, folder),
    )


def _next(place: Place, shared: Path, *, durable: bool) -> tuple[Side, Side]:
    files = [
        Path(shutil.copy(file, shared / name))
        for file, name in zip(_series(place, shared, count=2), ("first", "second"), strict=True)
    ]

    def ours(folder: Path) -> Callable[[], object]:
        store = own_store(folder, durable=durable)
        _add(store, files[0])
        return partial(_add, store, files[1])

    def theirs(folder: Path) -> Callable[[], object]:
        _put(files[0], folder)
        return partial(_put, files[1], folder)

    return ours, theirs


def _size(place: Place) -> int:
    return place.file.stat().st_size


def _series(place: Place, folder: Path, *, count: int) -> Iterator[Path]:
    """Yield the first files of the series, each in the place of the one before."""
    return islice(synthetic(folder, _size(place) / (256 * MIB)), count)


def _mib_in(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / MIB


def _add(store: ContentStore, file: Path) -> str:
    with file.open("rb") as body:
        return store.add(body, filename=_NAME)


def _xet() -> Any:
    try:
        import hf_xet
    except ImportError as error:
        raise Skipped("hf_xet is not installed: pip install hf_xet==1.8.0") from error
    return hf_xet


def _put(file: Path, folder: Path) -> Any:
    """Store a file with hf_xet; return what its reader wants to know."""
    folder.mkdir(exist_ok=True)
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        [told] = _xet().upload_files(
            [str(file)], f"local://{folder}", None, None, None, None, skip_sha256=True
        )
    return told


def _get(told: Any, folder: Path, target: Path) -> None:
    xet = _xet()
    wanted = xet.PyXetDownloadInfo(str(target), told.hash, told.file_size)
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        xet.download_files([wanted], f"local://{folder}", None, None, None)
