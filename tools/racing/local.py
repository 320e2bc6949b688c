"""Rows on this machine: cp, one BLAKE3 pass, an import, Optuna's file store.

Our side is made with durable=False where nothing else is said, because the others sync nothing.
"""

from __future__ import annotations

import os
import shutil
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from racing.jobs import (
    add,
    add_small,
    cp,
    fetch,
    hash_file,
    in_processes,
    optuna_store,
    own_store,
    python,
    write,
    write_small,
)
from racing.memory import peak
from racing.rows import SMALL_SIZE, Bound, Place, row

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from casartifacts import ContentStore
    from racing.rows import Side

__all__ = ["load"]

# So often per sample: one takes microseconds.
_READS = 2000
_LINKS = 20


@row("first upload", reference="Optuna", bound=Bound(2.6))
def _(place: Place, _: Path) -> tuple[Side, Side]:
    return _first_upload(place, durable=False), _optuna_upload(place)


@row("first upload, durable=True", reference="Optuna")
def _(place: Place, _: Path) -> tuple[Side, Side]:
    return _first_upload(place, durable=True), _optuna_upload(place)


@row("first upload through a study", reference="Optuna")
def _(place: Place, _: Path) -> tuple[Side, Side]:
    import optuna

    import casartifacts

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study()

    def side(upload: Callable[..., object], store: Any) -> Callable[[], object]:
        return partial(
            upload, artifact_store=store, study_or_trial=study, file_path=str(place.file)
        )

    return (
        lambda folder: side(casartifacts.upload_artifact, own_store(folder)),
        lambda folder: side(optuna.artifacts.upload_artifact, optuna_store(folder)),
    )


@row("exact duplicate", reference="a BLAKE3 pass", bound=Bound(1.15))
def _(place: Place, shared: Path) -> tuple[Side, Side]:
    return _duplicate(place, shared), lambda _: partial(hash_file, place.file)


@row("exact duplicate, to an upload", reference="Optuna", bound=Bound(0.75))
def _(place: Place, shared: Path) -> tuple[Side, Side]:
    return _duplicate(place, shared), _optuna_upload(place)


@row("cold download, no cache", reference="cp", bound=Bound(1.5))
def _(place: Place, shared: Path) -> tuple[Side, Side]:
    artifact_id = add(own_store(shared), place.file)

    def ours(folder: Path) -> Callable[[], object]:
        return partial(own_store(shared).download, artifact_id, folder / "copy")

    return ours, cp(place)


@row("cold download into a cache, private copy", reference="cp", bound=Bound(2.5))
def _(place: Place, shared: Path) -> tuple[Side, Side]:
    artifact_id = add(own_store(shared), place.file)

    def ours(folder: Path) -> Callable[[], object]:
        store = own_store(shared, cache=folder / "cache")
        # The cache is there and open, but has nothing.
        if store.cache is None or store.cache.volume():
            raise RuntimeError(f"{store} should have an empty cache")
        return partial(store.download, artifact_id, folder / "copy")

    return ours, cp(place)


@row("warm download, private copy", reference="cp", bound=Bound(1.1))
def _(place: Place, shared: Path) -> tuple[Side, Side]:
    store, artifact_id = _warm_store(shared, place.file)
    return lambda folder: partial(store.download, artifact_id, folder / "copy"), cp(place)


# Deleting the link of the sample before changed the file's times: who opens it next hashes it once.
# That is done before the clock runs.
@row("warm download, hard link", reference="os.link", bound=Bound(plus=0.001), per=_LINKS)
def _(place: Place, shared: Path) -> tuple[Side, Side]:
    return _warm_link(place, shared, "hard"), _plain_link(place, os.link)


@row("warm download, symlink", reference="os.symlink", bound=Bound(plus=0.001), per=_LINKS)
def _(place: Place, shared: Path) -> tuple[Side, Side]:
    return _warm_link(place, shared, "symlink"), _plain_link(place, os.symlink)


@row("hit on 1 KiB", reference="open, read, close", bound=Bound(3), per=_READS)
def _(place: Place, shared: Path) -> tuple[Side, Side]:
    ours, theirs = _hits(place, shared)
    return lambda _: ours, lambda _: theirs


@row("hit on 1 KiB, 8 processes at once", reference="open, read, close", per=8 * _READS)
def _(place: Place, shared: Path) -> tuple[Side, Side]:
    ours, theirs = _hits(place, shared)
    return lambda _: in_processes(8, ours), lambda _: in_processes(8, theirs)


@row("small artifacts up", reference="Optuna")
def _(place: Place, _: Path) -> tuple[Side, Side]:
    return (
        lambda folder: partial(add_small, own_store(folder), place),
        lambda folder: partial(write_small, optuna_store(folder), place),
    )


@row("small artifacts down", reference="Optuna")
def _(place: Place, shared: Path) -> tuple[Side, Side]:
    own, other = own_store(shared / "ours"), optuna_store(shared / "optuna")
    added, written = add_small(own, place), write_small(other, place)

    def ours(folder: Path) -> None:
        store = own_store(shared / "ours")
        for number, artifact_id in enumerate(added):
            store.download(artifact_id, folder / str(number))

    def theirs(folder: Path) -> None:
        for number, artifact_id in enumerate(written):
            fetch(other, artifact_id, folder / str(number))

    return lambda folder: partial(ours, folder), lambda folder: partial(theirs, folder)


@row("import casartifacts", reference="import optuna", bound=Bound(1, plus=0.15))
def _(_place: Place, _: Path) -> tuple[Side, Side]:
    return python("import casartifacts"), python("import optuna")


@row("import both and what an upload uses", reference="import optuna", bound=Bound(1, plus=0.15))
def _(_place: Place, _: Path) -> tuple[Side, Side]:
    used = "import optuna; from casartifacts import ContentStore, open_store, upload_artifact"
    return python(used), python("import optuna")


@row("peak memory, large file up", reference="Optuna", bound=Bound(plus=64), unit="MiB")
def _(place: Place, _: Path) -> tuple[Side, Side]:
    return (
        lambda folder: partial(peak, "up", place.large, folder),
        lambda folder: partial(peak, "up-optuna", place.large, folder),
    )


@row("peak memory, large file down", reference="Optuna", bound=Bound(plus=64), unit="MiB")
def _(place: Place, shared: Path) -> tuple[Side, Side]:
    artifact_id = add(own_store(shared / "ours"), place.large)
    # Optuna's store keeps a file as it is, so that one copy less is needed.
    return (
        lambda folder: partial(peak, "down", folder / "copy", shared / "ours", artifact_id),
        lambda folder: partial(
            peak, "down-optuna", folder / "copy", place.folder, place.large.name
        ),
    )


def load(place: Place, folder: Path) -> None:
    """Do everything once: the first call imports what it needs and starts threads."""
    _warm_store(folder, place.file)
    write(optuna_store(folder), place.file)
    hash_file(place.file)


def _warm_store(shared: Path, file: Path) -> tuple[ContentStore, str]:
    """Make a store whose cache has the file, and delete what is behind the cache."""
    store = own_store(shared / "store", cache=shared / "cache")
    artifact_id = add(store, file)
    store.download(artifact_id, shared / "copy")
    (shared / "copy").unlink()
    shutil.rmtree(shared / "store")
    return store, artifact_id


def _warm_link(place: Place, shared: Path, link: Literal["hard", "symlink"]) -> Side:
    store, artifact_id = _warm_store(shared, place.file)

    def side(folder: Path) -> Callable[[], object]:
        store.open_reader(artifact_id).close()

        def ours() -> None:
            for number in range(_LINKS):
                store.download(artifact_id, folder / str(number), link=link)

        return ours

    return side


def _plain_link(place: Place, make: Callable[[Path, Path], None]) -> Side:
    def side(folder: Path) -> Callable[[], object]:
        def theirs() -> None:
            for number in range(_LINKS):
                make(place.file, folder / str(number))

        return theirs

    return side


def _hits(place: Place, shared: Path) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return what reads 1 KiB from the cache, often, and what reads a plain file."""
    file = shared / "file"
    file.write_bytes(place.file.read_bytes()[:SMALL_SIZE])
    store, artifact_id = _warm_store(shared, file)

    def ours() -> None:
        for _ in range(_READS):
            with store.open_reader(artifact_id) as reader:
                reader.read()

    def theirs() -> None:
        for _ in range(_READS):
            with file.open("rb") as reader:
                reader.read()

    return ours, theirs


def _first_upload(place: Place, *, durable: bool) -> Side:
    return lambda folder: partial(add, own_store(folder, durable=durable), place.file)


def _duplicate(place: Place, shared: Path) -> Side:
    add(own_store(shared), place.file)
    return lambda _: partial(add, own_store(shared), place.file)


def _optuna_upload(place: Place) -> Side:
    return lambda folder: partial(write, optuna_store(folder), place.file)
