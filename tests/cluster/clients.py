"""Many threads in many processes that upload at once, and a task for pools of processes."""

from __future__ import annotations

import io
import json
import logging
import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING
from unittest import mock

from casartifacts import ContentStore, planning

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from multiprocessing.synchronize import Barrier
    from pathlib import Path

__all__ = ["Clients", "carry", "content", "contents", "do", "take", "upload_at_once"]

BLOB_LIMIT = 2**19

_PATIENCE_SECONDS = 300.0


def content(number: int, *, size: int) -> bytes:
    """Make a content; the first halves of two neighbours are the same."""
    shared = random.Random(f"{number // 2} {size}").randbytes(size // 2)
    return shared + random.Random(f"{number} {size} own").randbytes(size - size // 2)


def contents() -> list[bytes]:
    """Make what all clients upload: small contents, and large ones of several blobs."""
    small = [content(number, size=500 + 3_000 * number) for number in range(24)]
    return small + [content(number, size=2**21) for number in range(8)]


@dataclass(frozen=True, kw_only=True)
class Clients:
    """The clients of one process; what they uploaded is in `told`, as pairs of id and number."""

    environment: Mapping[str, str]
    store: ContentStore
    threads: int
    uploads: int
    seed: int
    told: Path


def upload_at_once(clients: Clients, together: Barrier) -> None:
    """Upload from all threads of all processes, beginning at the same moment."""
    os.environ.update(clients.environment)
    logging.getLogger("casartifacts").setLevel(logging.ERROR)  # retries are meant
    bodies = contents()
    here = threading.Barrier(clients.threads)

    def client(number: int) -> list[tuple[str, int]]:
        chosen = random.Random(clients.seed * 1000 + number).sample(
            range(len(bodies)), clients.uploads
        )
        here.wait(_PATIENCE_SECONDS)
        return [(clients.store.add(io.BytesIO(bodies[index])), index) for index in chosen]

    together.wait(_PATIENCE_SECONDS)
    with (
        mock.patch.object(planning, "BLOB_LIMIT", BLOB_LIMIT),
        ThreadPoolExecutor(clients.threads) as pool,
    ):
        done = [pair for pairs in pool.map(client, range(clients.threads)) for pair in pairs]
    clients.told.write_text(json.dumps(done))


def carry(store: ContentStore, folder: Path, number: int) -> tuple[int, list[str]]:
    """Upload a content of this task's own and one that every task has; download both.

    Returns the id of the process and those of the two artifacts.
    """
    uploaded = []
    for name, body in (
        (f"own-{number}", content(number, size=1_500_000)),
        (f"shared-{number}", content(1_000, size=1_500_000)),
    ):
        uploaded.append(store.add(io.BytesIO(body)))
        store.download(uploaded[-1], folder / name)
        if (folder / name).read_bytes() != body:
            raise ValueError(f"{name} came back as something else")
    return os.getpid(), uploaded


_taken: list[Callable[[int], object]] = []


def take(task: Callable[[int], object]) -> None:
    """Keep the task that this process was begun with; after a fork it was never pickled."""
    _taken.append(task)


def do(number: int) -> object:
    """Do what was taken."""
    return _taken[-1](number)
