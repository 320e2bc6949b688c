"""Uploads and downloads that are interrupted: each works in a folder that `prepare` has filled.

Run as a program, it says why processes cannot be traced here, or null, then reads requests
`{"job", "folder", "kill"}` and answers each with the steps that the job took, in a process of its
own, until it ended or was killed, and which of the two.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import random
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import casartifacts
from casartifacts import ArtifactCache, ContentStore, FileSystemArtifactStore, chunking, planning
from casartifacts.digest import digest_of
from crashes import tracer

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

__all__ = ["DOWNLOADED", "JOBS", "LARGE", "NEAR", "SMALL", "STUDY", "own_id", "prepare", "store"]

# Several chunks, and several blobs when these are cut at half a MiB.
LARGE = random.Random(1).randbytes(1_200_000)
NEAR = LARGE[:700_000] + b"something new" + LARGE[700_000:]
SMALL = random.Random(2).randbytes(10_000)

# What a cache of this size holds beside LARGE.
_TWO_CONTENTS = len(LARGE) + 2 * len(SMALL)

STUDY = "study"


def own_id(content: bytes) -> str:
    """Return an id of our own form for a content, always the same."""
    return f"{digest_of(content)}-{0:032x}"


DOWNLOADED = own_id(LARGE)


def store(folder: Path, *, cache: ArtifactCache | None = None) -> ContentStore:
    """Open the store below a folder."""
    return ContentStore(FileSystemArtifactStore(folder / "store"), cache=cache)


def prepare(folder: Path, job: str) -> None:
    """Lay out what a job begins with."""
    folder.mkdir()
    if job in {"first upload", "first small upload"}:
        return
    with _small_blobs():
        for artifact_id in (DOWNLOADED, "best"):
            store(folder).write(artifact_id, io.BytesIO(LARGE))
        for artifact_id in (own_id(SMALL), "kept"):
            store(folder).write(artifact_id, io.BytesIO(SMALL))
    if job == "download over a file":
        (folder / "target").write_bytes(SMALL)
    if job in {"download, warm cache", "download, damaged cache"}:
        _fill_cache(folder, DOWNLOADED)
    if job == "download, full cache":
        _fill_cache(folder, own_id(SMALL))
        store(folder).write(own_id(NEAR), io.BytesIO(NEAR))
        _fill_cache(folder, own_id(NEAR))
    if job == "download, damaged cache":
        (content,) = (folder / "cache" / "contents").rglob(f"{digest_of(LARGE)}-*")
        content.chmod(0o600)
        with content.open("r+b") as file:
            file.write(b"damaged")
    if job == "upload to a study":
        _begin_study(folder)


def _begin_study(folder: Path) -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    optuna.create_study(study_name=STUDY, storage=_storage(folder)).ask()
    (folder / "model.pt").write_bytes(SMALL)


def _fill_cache(folder: Path, artifact_id: str) -> None:
    cache = open_cache(folder)
    store(folder, cache=cache).open_reader(artifact_id).close()
    cache.close()


def open_cache(folder: Path) -> ArtifactCache:
    """Open the cache below a folder."""
    return ArtifactCache(folder / "cache", size_limit=_TWO_CONTENTS)


def _storage(folder: Path) -> str:
    return f"sqlite:///{folder / 'study.db'}"


def _small_blobs() -> AbstractContextManager[object]:
    return mock.patch.object(planning, "BLOB_LIMIT", 2**19)


def _add(content: bytes) -> Callable[[Path], None]:
    def job(folder: Path) -> None:
        with _small_blobs():
            store(folder).add(io.BytesIO(content))

    return job


def _overwrite(content: bytes) -> Callable[[Path], None]:
    def job(folder: Path) -> None:
        with _small_blobs():
            store(folder).write("best", io.BytesIO(content))

    return job


def _remove(folder: Path) -> None:
    store(folder).remove("best")


def _upload_to_study(folder: Path) -> None:
    import optuna

    study = optuna.load_study(study_name=STUDY, storage=_storage(folder))
    trial = optuna.Trial(study, study.trials[0]._trial_id)
    casartifacts.upload_artifact(
        artifact_store=store(folder), file_path=folder / "model.pt", study_or_trial=trial
    )


def _download(*, overwrite: bool = False, through_cache: bool = False) -> Callable[[Path], None]:
    def job(folder: Path) -> None:
        cache = open_cache(folder) if through_cache else None
        place = store(folder, cache=cache)
        place.download(DOWNLOADED, folder / "target", overwrite=overwrite)
        if cache is not None:
            cache.close()

    return job


JOBS: dict[str, Callable[[Path], None]] = {
    "first upload": _add(LARGE),
    "first small upload": _add(SMALL),
    "upload of a near content": _add(NEAR),
    "upload of a duplicate": _add(LARGE),
    "overwrite": _overwrite(NEAR),
    "overwrite with a small content": _overwrite(SMALL),
    "remove": _remove,
    "upload to a study": _upload_to_study,
    "download": _download(),
    "download over a file": _download(overwrite=True),
    "download, cold cache": _download(through_cache=True),
    "download, warm cache": _download(through_cache=True),
    "download, full cache": _download(through_cache=True),
    "download, damaged cache": _download(through_cache=True),
}


def _warm_up() -> None:
    """Import what jobs import late: each child would do it again, in some 20,000 system calls.

    Small contents only: large ones start threads, which a process that forks should not have.
    """
    chunking.Cutter(chunking.ChunkerParameters())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _begin_study(folder)
        _upload_to_study(folder)
        place = store(folder)
        place.write("small", io.BytesIO(SMALL))
        with contextlib.suppress(casartifacts.ArtifactNotFound):
            place.remove("missing")
        _fill_cache(folder, "small")
    if threading.active_count() > 1:
        raise RuntimeError(f"there are threads before the first fork: {threading.enumerate()}")


def main() -> None:
    """Tell whether processes can be traced here; then do what is asked for."""
    _warm_up()
    try:
        tracer.trace(lambda: None, folder=".")
    except OSError as error:
        _answer(str(error))
        return
    _answer(None)
    for line in sys.stdin:
        request = json.loads(line)
        folder = Path(request["folder"])
        work = functools.partial(JOBS[request["job"]], folder)
        kill = request["kill"] and tracer.Kill(*request["kill"])
        _answer(tracer.trace(work, folder=folder, kill=kill))


def _answer(told: object) -> None:
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
