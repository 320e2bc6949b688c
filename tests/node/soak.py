"""A node under stress: workers that download what they like, kills, damage, a cache too small.

Rule 1: the only thing that a worker may see is right bytes; what it saw wrong it writes down.
Rule 2: all is stopped while the folder is measured, so that what is measured was there at once.
Rule 3: only processes that were started here are signalled, by their ids.
"""

from __future__ import annotations

import io
import logging
import os
import random
import signal
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from casartifacts import ArtifactCache, ContentStore
from casartifacts.digest import digest_of
from casartifacts.errors import CorruptArtifact
from node.readers import CONTEXT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.context import ForkServerProcess

    from casartifacts import FileSystemArtifactStore

__all__ = ["Node", "Soak", "Tally", "bytes_in", "contents"]


# How likely the place of one who was killed is taken at each step.
_LAUNCHES = 0.2


def contents(store: ContentStore, count: int, *, seed: int) -> Iterator[tuple[str, int]]:
    """Store contents of 1 KiB to 64 MiB; yields their ids and sizes."""
    chance = random.Random(seed)
    for _ in range(count):
        size = int(2 ** chance.uniform(10, 26))
        yield store.add(io.BytesIO(chance.randbytes(size))), size


def bytes_in(folder: Path) -> int:
    """Return the bytes of everything in the folder of a cache but its table."""
    found = 0
    for above, _, names in os.walk(folder):
        for name in names:
            if Path(above) != folder:
                with suppress(FileNotFoundError):
                    found += os.lstat(f"{above}/{name}").st_size
    return found


@dataclass(frozen=True, kw_only=True)
class Soak:
    """What each worker does."""

    backend: FileSystemArtifactStore
    cache: ArtifactCache
    ids: list[str]
    folder: Path


@dataclass
class Tally:
    """What happened."""

    downloads: int = 0
    kills: int = 0
    damages: int = 0
    samples: int = 0
    fullest: int = 0
    exceeded: list[int] = field(default_factory=list)


class Node:
    """So many workers, and what befalls them."""

    def __init__(self, job: Soak, *, workers: int, seed: int) -> None:
        self._job = job
        self._chance = random.Random(seed)
        self._launched = 0
        self.tally = Tally()
        self._workers = [self._launch() for _ in range(workers)]

    def _launch(self) -> ForkServerProcess:
        self._launched += 1
        process = CONTEXT.Process(target=_work, args=(self._job, self._launched))
        process.start()
        return process

    def live(self, seconds: float) -> None:
        """Let them work, and do to them what happens on nodes."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(self._chance.uniform(0.02, 0.3))
            self._chance.choice([self._kill, self._damage, self._damage, self._measure])()
            for index, worker in enumerate(self._workers):
                # Killed, or failed: then it has written it down. Not at once: what a new process
                # sets right as it starts, the others must do, too.
                if worker.exitcode is not None and self._chance.random() < _LAUNCHES:
                    self._workers[index] = self._launch()

    def end(self) -> None:
        """Let them finish what they do, and stop."""
        (self._job.folder / "stop").touch()
        for worker in self._workers:
            worker.join(60)
            if worker.is_alive():
                worker.kill()
                worker.join()

    def _kill(self) -> None:
        worker = self._chance.choice(self._workers)
        worker.kill()
        worker.join()
        self.tally.kills += 1

    def _damage(self) -> None:
        """Do to a file what disks and people do."""
        files = list(self._job.cache.folder.glob("contents/*/*"))
        if not files:
            return
        path = self._chance.choice(files)
        how = self._chance.choice(["flip", "cut", "delete", "other"])
        with suppress(FileNotFoundError):
            if how == "delete":
                path.unlink()
            else:
                path.chmod(0o600)
                with path.open("r+b") as file:
                    size = os.fstat(file.fileno()).st_size
                    at = self._chance.randrange(size)
                    if how == "cut":
                        file.truncate(at)
                    elif how == "flip":
                        (byte,) = os.pread(file.fileno(), 1, at) or b"\0"
                        os.pwrite(file.fileno(), bytes([byte ^ 1]), at)
                    else:
                        os.pwrite(file.fileno(), self._chance.randbytes(min(size, 4096)), 0)
                        file.truncate(size)
            self.tally.damages += 1

    def _measure(self) -> None:
        for worker in self._workers:
            _signal(worker, signal.SIGSTOP)
        try:
            for worker in self._workers:
                _until_stopped(worker)
            found = bytes_in(self._job.cache.folder)
        finally:
            for worker in self._workers:
                _signal(worker, signal.SIGCONT)
        self.tally.samples += 1
        self.tally.fullest = max(self.tally.fullest, found)
        if found > self._job.cache.size_limit:
            self.tally.exceeded.append(found)


def _signal(worker: ForkServerProcess, number: int) -> None:
    if worker.exitcode is None and worker.pid is not None:
        os.kill(worker.pid, number)


def _until_stopped(worker: ForkServerProcess) -> None:
    while worker.exitcode is None:
        with suppress(FileNotFoundError):
            state = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[0]
            if state in "TtZX":
                return
        time.sleep(0.001)


def _work(job: Soak, number: int) -> None:
    logging.getLogger("casartifacts").setLevel(logging.CRITICAL)
    chance = random.Random(number)
    store = ContentStore(job.backend, cache=job.cache)
    try:
        while not (job.folder / "stop").exists():
            _read_one(store, chance.choice(job.ids), chance, job.folder / f"copy-{number}")
            with (job.folder / f"done-{number}").open("a") as done:
                done.write(".")
    except BaseException:
        (job.folder / f"wrong-{number}").write_text(traceback.format_exc())
        raise


class _CancelledError(Exception):
    pass


def _read_one(store: ContentStore, artifact_id: str, chance: random.Random, copy: Path) -> None:
    digest = artifact_id[:64]
    how = chance.choice(["download", "download", "read", "cancel"])
    if how == "read":
        # Who damages a file while it is read may be told of, and met again by who reads anew.
        for attempt in range(5):
            with suppress(CorruptArtifact), store.open_reader(artifact_id) as reader:
                if (found := digest_of(reader.read())) != digest:
                    raise AssertionError(f"{artifact_id} was read as {found}")
                return
            time.sleep(attempt / 100)
        raise AssertionError(f"{artifact_id} could not be read in five attempts")
    copy.unlink(missing_ok=True)
    cancel_at = chance.random()

    def progress(done: int, size: int) -> None:
        if how == "cancel" and done >= size * cancel_at:
            raise _CancelledError

    with suppress(_CancelledError):
        store.download(artifact_id, copy, progress=progress)
        if (found := digest_of(copy.read_bytes())) != digest:
            raise AssertionError(f"{artifact_id} was delivered as {found}")
