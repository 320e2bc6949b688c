"""Every place and every wrapper keeps the contracts, or says where it does not."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO, cast

import pytest
from optuna.artifacts import FileSystemArtifactStore as OptunaFileStore

from casartifacts import errors
from casartifacts.backends.filesystem import FileSystemArtifactStore
from casartifacts.backends.foreign import ForeignBackend
from casartifacts.backends.memory import MemoryArtifactStore
from casartifacts.backoff import Backoff
from casartifacts.cache import ArtifactCache
from casartifacts.store import ContentStore
from casartifacts.testing import Check, Fault, Plan, checks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from casartifacts.protocols import ArtifactStore, Backend


class Blunt(OptunaFileStore):
    """All that a foreign store may do, at once: Optuna's stores do each of these somewhere."""

    def open_reader(self, artifact_id: str) -> BinaryIO:
        return BluntReader(super().open_reader(artifact_id))  # type: ignore[return-value]

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        content_body.seek(0)  # as its Backoff does
        with content_body:  # as its S3 client does with small bodies
            super().write(artifact_id, io.BytesIO(content_body.read()))

    def remove(self, artifact_id: str) -> None:
        try:  # noqa: SIM105 -- as it does on S3
            super().remove(artifact_id)
        except errors.ArtifactNotFound:
            pass


class BluntReader:
    """Only reads, in short pieces, and closes."""

    def __init__(self, reader: BinaryIO) -> None:
        self.reader = reader

    def read(self, size: int = -1) -> bytes:
        return self.reader.read(min(size, 1000))

    def close(self) -> None:
        self.reader.close()


@dataclass(frozen=True)
class Place:
    open: Callable[[Path], ArtifactStore]
    backend: bool = False
    deviations: Mapping[str, str] = field(default_factory=dict)


IN_PLACE = {
    "a_reader_never_mixes_two_bodies": "it overwrites files in place",
    "threads_that_share_a_name_see_whole_bodies": "it overwrites files in place",
}
NO_FOLDERS = {"an_id_behind_a_folder_is_kept": "Optuna's file store makes no folders"}
THREE_METHODS = {
    **IN_PLACE,
    **NO_FOLDERS,
    "stat_tells_when_it_was_written": "three methods do not tell the time",
    "write_if_absent_has_one_winner": "it asks first, then writes",
    "a_failed_write_leaves_no_name": "three methods cannot list",
    "list_yields_what_is_below_a_prefix": "three methods cannot list",
    "list_goes_on_after_a_page": "three methods cannot list",
    "list_folders_yields_each_folder_once": "three methods cannot list",
}
ONE_PROCESS = {
    "a_spawned_process_reads_and_writes": "memory belongs to one process",
    "a_forked_process_reads_and_writes": "memory belongs to one process",
}
NOT_PICKLED = {
    "a_pickled_store_is_the_same_place": "a plan counts in one process",
    "a_spawned_process_reads_and_writes": "a plan counts in one process",
}


def optuna_files(folder: Path) -> OptunaFileStore:
    folder.mkdir()
    return OptunaFileStore(folder)


def blunt_files(folder: Path) -> Blunt:
    folder.mkdir()
    return Blunt(folder)


def flaky_behind_backoff(folder: Path) -> Backoff:
    # Not remove: after a fault nobody can tell whether what is missing was there (contract 7).
    methods = ("open_reader", "write", "stat", "open_range", "write_if_absent", "move")
    plan = Plan(*(Fault("fail", on=method, every=3) for method in methods))
    place = plan.around(FileSystemArtifactStore(folder, durable=False))
    return Backoff(place, min_delay=0.0001, max_delay=0.001)


BACKENDS = {
    "filesystem": Place(FileSystemArtifactStore, backend=True),
    "filesystem-not-durable": Place(
        lambda folder: FileSystemArtifactStore(folder, durable=False), backend=True
    ),
    "memory": Place(lambda _: MemoryArtifactStore(), backend=True, deviations=ONE_PROCESS),
    "foreign": Place(
        lambda folder: ForeignBackend(optuna_files(folder)), backend=True, deviations=THREE_METHODS
    ),
    "blunt": Place(
        lambda folder: ForeignBackend(blunt_files(folder)), backend=True, deviations=THREE_METHODS
    ),
    "backoff": Place(flaky_behind_backoff, backend=True, deviations=NOT_PICKLED),
    "short-reads": Place(
        lambda folder: Plan(Fault("short reads")).around(FileSystemArtifactStore(folder)),
        backend=True,
        deviations=NOT_PICKLED,
    ),
}


REFS_IN_PLACE = {
    "threads_that_share_a_name_see_whole_bodies": "a ref is overwritten in place; half of it is"
    " noticed, and a CorruptArtifact"
}


def content_over(name: str, deviations: Mapping[str, str], *, cached: bool = False) -> Place:
    def open_in(folder: Path) -> ContentStore:
        cache = ArtifactCache(folder.parent / "cache") if cached else None
        store = ContentStore(cast("Backend", BACKENDS[name].open(folder)), cache=cache)
        if deviations is REFS_IN_PLACE:
            # The first use makes the record of the store: in place, too, so that of several who
            # come first at once one may see half of it. No check can tell that from a failure.
            store.write("first-use", io.BytesIO(b"first use"))
        return store

    return Place(open_in, deviations=deviations)


PLACES = {
    **BACKENDS,
    "content-filesystem": content_over("filesystem-not-durable", {}),
    "content-memory": content_over("memory", ONE_PROCESS),
    "content-foreign": content_over("foreign", REFS_IN_PLACE),
    "content-short-reads": content_over("short-reads", NOT_PICKLED),
    "cached-filesystem": content_over("filesystem-not-durable", {}, cached=True),
    "cached-memory": content_over("memory", ONE_PROCESS, cached=True),
    "cached-foreign": content_over("foreign", REFS_IN_PLACE, cached=True),
    "optuna-files": Place(
        optuna_files,
        deviations={
            **IN_PLACE,
            **NO_FOLDERS,
            "missing_is_loud_at_open": "its message does not say what is missing",
            **dict.fromkeys(
                (
                    "nobody_sees_a_body_before_it_is_whole",
                    "a_body_that_fails_at_once_publishes_nothing",
                    "a_body_that_fails_midway_publishes_nothing",
                    "a_body_that_fails_on_its_last_piece_publishes_nothing",
                    "a_body_that_fails_instead_of_its_end_publishes_nothing",
                    "an_interrupted_write_publishes_nothing",
                ),
                "it writes files in place",
            ),
        },
    ),
}


@pytest.mark.parametrize(
    ("place", "check"),
    [
        pytest.param(place, check, id=f"{name}-{check}")
        for name, place in PLACES.items()
        for check in checks(backend=place.backend, deviations=place.deviations)
    ],
)
def test_every_place_keeps_the_contracts(place: Place, check: Check, tmp_path: Path) -> None:
    check(place.open(tmp_path / "place"))
