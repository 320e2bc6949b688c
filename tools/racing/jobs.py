"""What the sides of a race do: the stores, and the calls on them.

A store is named by where it lies: a folder, or a bucket as `s3://bucket/prefix`, `gs://...`.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import uuid
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from racing.rows import MIB

if TYPE_CHECKING:
    from collections.abc import Callable

    from casartifacts import ContentStore
    from racing.rows import Place, Side

__all__ = [
    "add",
    "add_bytes",
    "add_small",
    "cp",
    "fetch",
    "hash_file",
    "in_processes",
    "optuna_store",
    "own_store",
    "python",
    "write",
    "write_bytes",
    "write_small",
]


def own_store(
    where: Path | str, *, durable: bool = False, cache: Path | None = None
) -> ContentStore:
    """Open our store at a path or URL."""
    from casartifacts import open_store

    # None would be the node's own cache for a bucket.
    return open_store(where, durable=durable, cache=cache or False)


def optuna_store(where: Path | str) -> Any:
    """Make Optuna's own store in a folder or for the bucket of a URL."""
    from optuna.artifacts import Boto3ArtifactStore, FileSystemArtifactStore, GCSArtifactStore
    from optuna.exceptions import ExperimentalWarning

    if isinstance(where, Path):
        where.mkdir(exist_ok=True)
        return FileSystemArtifactStore(where)
    parts = urlsplit(where)
    if parts.scheme == "s3":
        return Boto3ArtifactStore(parts.netloc)
    with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
        return GCSArtifactStore(parts.netloc)


def add(store: ContentStore, file: Path) -> str:
    """Upload a file to our store; return its artifact id."""
    with file.open("rb") as body:
        return store.add(body)


def add_bytes(store: ContentStore, body: bytes) -> str:
    """Upload bytes to our store; return their artifact id."""
    return store.add(io.BytesIO(body))


def write(store: Any, file: Path, *, prefix: str = "") -> str:
    """Upload a file to Optuna's store under a fresh id; return the id."""
    artifact_id = f"{prefix}{uuid.uuid4()}"
    with file.open("rb") as body:
        store.write(artifact_id, body)
    return artifact_id


def write_bytes(store: Any, body: bytes, *, prefix: str = "") -> str:
    """Upload bytes to Optuna's store under a fresh id; return the id."""
    artifact_id = f"{prefix}{uuid.uuid4()}"
    store.write(artifact_id, io.BytesIO(body))
    return artifact_id


def fetch(store: Any, artifact_id: str, file: Path) -> None:
    """Download as Optuna does."""
    from optuna.artifacts import download_artifact

    download_artifact(artifact_store=store, artifact_id=artifact_id, file_path=str(file))


def add_small(store: ContentStore, place: Place) -> list[str]:
    """Upload the small artifacts to our store."""
    return [add_bytes(store, body) for body in place.bodies]


def write_small(store: Any, place: Place) -> list[str]:
    """Upload the small artifacts to Optuna's store."""
    return [write_bytes(store, body) for body in place.bodies]


def cp(place: Place) -> Side:
    """Return a side that copies the file with `cp`."""

    def copying(folder: Path) -> Callable[[], object]:
        return partial(subprocess.run, ["cp", str(place.file), str(folder / "copy")], check=True)

    return copying


def python(code: str) -> Side:
    """Return a side that runs a line of Python."""
    return lambda _: partial(subprocess.run, [sys.executable, "-c", code], check=True)


def hash_file(file: Path) -> None:
    """Hash a file in one pass."""
    from blake3 import blake3

    from casartifacts.buffers import new_buffer

    hasher = blake3()
    buffer = new_buffer(MIB)
    with file.open("rb", buffering=0) as body:
        while count := body.readinto(buffer):
            hasher.update(buffer[:count])
    hasher.hexdigest()


def in_processes(count: int, act: Callable[[], object]) -> Callable[[], None]:
    """Fork so many processes, and return what lets them all do something and waits for them."""
    go, told = os.pipe()
    children = []
    for _ in range(count):
        if child := os.fork():
            children.append(child)
            continue
        code = 1
        try:
            os.close(told)
            os.read(go, 1)  # until nobody can write to it any more
            act()
            code = 0
        finally:
            os._exit(code)
    os.close(go)

    def run() -> None:
        os.close(told)
        # All are waited for, also if one has failed.
        ended = [os.waitpid(child, 0)[1] for child in children]
        if any(ended):
            raise RuntimeError(f"processes ended with {ended}")

    return run
