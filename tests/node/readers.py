"""Processes that download the same artifact at the same moment."""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from unittest import mock

from casartifacts.cache import folder as places
from casartifacts.cache import room

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.context import ForkServerProcess
    from multiprocessing.synchronize import Barrier
    from pathlib import Path

    from casartifacts import ContentStore

__all__ = ["CONTEXT", "Download", "digest_of_file", "downloading", "end", "start"]

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["casartifacts.store", "casartifacts.cache", "optuna.artifacts"])


@dataclass(frozen=True, kw_only=True)
class Download:
    """What each process does; its copy gets its number as its name."""

    store: ContentStore
    artifact_id: str
    folder: Path
    without_locks: bool = False


def start(job: Download, *, processes: int) -> tuple[list[ForkServerProcess], Barrier]:
    """Start processes that begin to download when all of them, and the caller, have come."""
    together = CONTEXT.Barrier(processes + 1)
    running = [
        CONTEXT.Process(target=_download, args=(job, number, together))
        for number in range(processes)
    ]
    for process in running:
        process.start()
    return running, together


def end(running: list[ForkServerProcess]) -> None:
    """Wait for processes to end, and end those that do not."""
    for process in running:
        process.join(600)
        if process.is_alive():
            process.kill()
            process.join()


@contextmanager
def downloading(job: Download, *, processes: int) -> Iterator[list[ForkServerProcess]]:
    """Yield processes that have just begun to download, all at once."""
    running, together = start(job, processes=processes)
    try:
        together.wait(60)
        yield running
    finally:
        end(running)


def _download(job: Download, number: int, together: Barrier) -> None:
    logging.getLogger("casartifacts").setLevel(logging.ERROR)
    with ExitStack() as changed:
        if job.without_locks:
            # A file system on which flock says yes and does nothing.
            for module in (places, room):
                changed.enter_context(
                    mock.patch.multiple(module, lock=lambda _: True, is_locked=lambda _: False)
                )
        together.wait(60)
        job.store.download(job.artifact_id, job.folder / str(number))


def digest_of_file(path: Path) -> str:
    """Hash a file with another algorithm than the house's."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
