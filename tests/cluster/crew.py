"""The workers' processes: started, sampled, killed with -9, replaced.

Rule: only processes that were started here are signalled, by their ids.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from casartifacts import ArtifactCache, ContentStore
from cluster.training import NOTES, work

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerProcess

    from cluster.training import Job

__all__ = ["CONTEXT", "Crew", "resident_bytes"]

# What takes seconds to import is imported once, by a process without threads that then forks: a
# killed worker is replaced at once.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["boto3", "casartifacts.studies", "numpy", "optuna", "optuna.artifacts", "sqlalchemy"]
)

_PATIENCE_SECONDS = 180.0


def resident_bytes(pid: int) -> int:
    """Return how much memory a process has, of which some may be shared."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


class Crew:
    """So many workers, each on a node (with a cache) of its own.

    Args:
        job: What each is given, but for its folder, seed and cache.
        size: How many.
    """

    def __init__(self, job: Job, *, size: int) -> None:
        self._job = job
        self._launched = 0
        self.workers: list[ForkServerProcess] = []
        for node in range(size):
            self.workers.append(self._launch(node))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            if worker.exitcode is None:
                worker.kill()
            worker.join()
            worker.close()

    def check(self) -> None:
        """Raise if a worker has ended, which none does by itself; its own error is above."""
        ended = [worker.exitcode for worker in self.workers if worker.exitcode is not None]
        if ended:
            raise RuntimeError(f"a worker ended: {ended}")

    def noted(self, node: int) -> int:
        """Return a figure that grows whenever the worker of a node begins an upload."""
        notes = self._job.folder / self.workers[node].name / NOTES
        return notes.stat().st_size if notes.exists() else 0

    def kill(self, node: int) -> None:
        """End the worker of a node with SIGKILL and put another in its place."""
        self.check()
        worker = self.workers[node]
        worker.kill()
        worker.join()
        worker.close()
        self.workers[node] = self._launch(node)

    def stop(self) -> None:
        """Let all workers end after their trials, well."""
        self._job.stop.touch()
        deadline = time.monotonic() + _PATIENCE_SECONDS
        for worker in self.workers:
            worker.join(max(deadline - time.monotonic(), 0))
        codes = [worker.exitcode for worker in self.workers]
        if any(codes) or None in codes:
            raise RuntimeError(f"not all workers ended well: {codes}")

    def uploaded(self) -> dict[str, str]:
        """Return the SHA-256 of every content that a worker was about to upload, by its digest."""
        noted = {}
        for path in self._job.folder.glob(f"*/{NOTES}"):
            for line in path.read_text().splitlines():
                with contextlib.suppress(ValueError):  # a line that a kill has cut
                    digest, told = line.split(" ")
                    noted[digest] = told
        return noted

    def _launch(self, node: int) -> ForkServerProcess:
        folder = self._job.folder / f"worker-{self._launched}"
        folder.mkdir()
        cache = ArtifactCache(self._job.folder / f"cache-{node}", size_limit=2**24)
        job = replace(
            self._job,
            folder=folder,
            seed=self._job.seed * 1000 + self._launched,
            store=ContentStore(self._job.store.backend, cache=cache),
        )
        self._launched += 1
        worker = CONTEXT.Process(target=work, args=(job,), name=folder.name)
        worker.start()
        return worker
