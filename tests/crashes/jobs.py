"""Uploads and downloads to be interrupted, each in a folder that `prepare` has filled.

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
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from unittest import mock

import casartifacts
from casartifacts import ArtifactCache, ContentStore, FileSystemArtifactStore, chunking, planning
from casartifacts.digest import digest_of
from casartifacts.trail import Trail
from crashes import tracer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import optuna

__all__ = ["DOWNLOADED", "JOBS", "LARGE", "Job", "listed", "open_cache", "open_store", "prepare"]

# Several chunks, and several blobs where these are cut at half a MiB.
LARGE = random.Random(1).randbytes(1_200_000)
NEAR = LARGE[:700_000] + b"something new" + LARGE[700_000:]
SMALL = random.Random(2).randbytes(10_000)

# Room for LARGE and two small ones, so that NEAR and LARGE do not fit both.
_CACHE_LIMIT = len(LARGE) + 2 * len(SMALL)

_STUDY = "study"


def own_id(content: bytes) -> str:
    """Return an id of our own form for a content, always the same."""
    return f"{digest_of(content)}-{0:032x}"


DOWNLOADED = own_id(LARGE)

_STORED = {DOWNLOADED: LARGE, "best": LARGE, own_id(SMALL): SMALL, "kept": SMALL}


@dataclass(frozen=True)
class Job:
    """Something to interrupt, what it begins with, and what it changes.

    Args:
        work: What is done in the folder.
        stored: What the store has before, by id.
        adds: The content that it stores under a fresh id.
        changes: What ids that were there before lead to afterwards, None for nothing.
        cached: What the cache has before; None if it uses none.
        damages: Whether the cached contents are wrong.
        target: What the file to download to holds before.
    """

    work: Callable[[Path], None]
    stored: Mapping[str, bytes] = field(default_factory=lambda: _STORED)
    adds: bytes | None = None
    changes: Mapping[str, bytes | None] = field(default_factory=dict)
    cached: tuple[bytes, ...] | None = None
    damages: bool = False
    target: bytes | None = None

    @property
    def is_download(self) -> bool:
        """Whether it changes nothing in the store."""
        return self.adds is None and not self.changes


def open_store(folder: Path, *, cache: ArtifactCache | None = None) -> ContentStore:
    """Open the store below a folder."""
    return ContentStore(FileSystemArtifactStore(folder / "store"), cache=cache)


def open_cache(folder: Path) -> ArtifactCache:
    """Open the cache below a folder."""
    return ArtifactCache(folder / "cache", size_limit=_CACHE_LIMIT)


def listed(folder: Path) -> list[str]:
    """Return the ids that the study below a folder lists."""
    return [meta.artifact_id for meta in casartifacts.get_all_artifact_meta(_trial(folder))]


def prepare(folder: Path, job: Job) -> None:
    """Lay out what a job begins with."""
    folder.mkdir()
    for artifact_id, content in job.stored.items():
        _write(folder, artifact_id, content)
    for content in job.cached or ():
        cache = open_cache(folder)
        open_store(folder, cache=cache).open_reader(own_id(content)).close()
        cache.close()
    if job.damages:
        for path in (folder / "cache" / "contents").glob("*/*"):
            path.chmod(0o600)
            with path.open("r+b") as file:
                file.write(b"damaged")
    if job.target is not None:
        (folder / "target").write_bytes(job.target)
    if job.work is _upload_to_study:
        _begin_study(folder)


def _begin_study(folder: Path) -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    optuna.create_study(study_name=_STUDY, storage=f"sqlite:///{folder}/study.db").ask()
    (folder / "model.pt").write_bytes(SMALL)


def _trial(folder: Path) -> optuna.Trial:
    import optuna

    study = optuna.load_study(study_name=_STUDY, storage=f"sqlite:///{folder}/study.db")
    return optuna.Trial(study, study.trials[0]._trial_id)


def _upload_to_study(folder: Path) -> None:
    casartifacts.upload_artifact(
        artifact_store=open_store(folder),
        file_path=folder / "model.pt",
        study_or_trial=_trial(folder),
    )


def _write(folder: Path, artifact_id: str | None, content: bytes) -> None:
    with mock.patch.object(planning, "BLOB_LIMIT", 2**19):
        open_store(folder).add(io.BytesIO(content), artifact_id=artifact_id)


def _download(folder: Path) -> None:
    open_store(folder).download(DOWNLOADED, folder / "target")


def _download_over(folder: Path) -> None:
    open_store(folder).download(DOWNLOADED, folder / "target", overwrite=True)


def _download_through_cache(folder: Path) -> None:
    cache = open_cache(folder)
    open_store(folder, cache=cache).download(DOWNLOADED, folder / "target")
    cache.close()


def _link(folder: Path, link: Literal["hard", "symlink"]) -> None:
    cache = open_cache(folder)
    store = open_store(folder, cache=cache)
    store.download(DOWNLOADED, folder / "target", link=link, overwrite=True)
    cache.close()


def _adds(content: bytes, stored: Mapping[str, bytes]) -> Job:
    return Job(lambda folder: _write(folder, None, content), stored=stored, adds=content)


def _overwrites(content: bytes) -> Job:
    return Job(lambda folder: _write(folder, "best", content), changes={"best": content})


JOBS = {
    "first upload": _adds(LARGE, {}),
    "first small upload": _adds(SMALL, {}),
    "upload of a near content": _adds(NEAR, _STORED),
    "upload of a duplicate": _adds(LARGE, _STORED),
    "upload to a study": Job(_upload_to_study, adds=SMALL),
    "overwrite": _overwrites(NEAR),
    "overwrite with a small content": _overwrites(SMALL),
    "remove": Job(lambda folder: open_store(folder).remove("best"), changes={"best": None}),
    "download": Job(_download),
    "download over a file": Job(_download_over, target=SMALL),
    "download, cold cache": Job(_download_through_cache, cached=()),
    "download, warm cache": Job(_download_through_cache, cached=(LARGE,)),
    "download, damaged cache": Job(_download_through_cache, cached=(LARGE,), damages=True),
    "download, full cache": Job(
        _download_through_cache, stored={**_STORED, own_id(NEAR): NEAR}, cached=(SMALL, NEAR)
    ),
    "download, cache with others": Job(_download_through_cache, cached=(SMALL,)),
    "hard link over a file": Job(
        lambda folder: _link(folder, "hard"), target=SMALL, cached=(LARGE,)
    ),
    "symlink over a file": Job(
        lambda folder: _link(folder, "symlink"), target=SMALL, cached=(LARGE,)
    ),
}


def _warm_up() -> None:
    """Import what jobs import late: each child would do it again, in some 20,000 system calls.

    Small contents only: large ones start threads, which a process that forks should not have.
    """
    chunking.Cutter(chunking.ChunkerParameters(), Trail())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _begin_study(folder)
        _upload_to_study(folder)
        with contextlib.suppress(casartifacts.ArtifactNotFound):
            open_store(folder).remove("missing")
        cache = open_cache(folder)
        open_store(folder, cache=cache).open_reader(listed(folder)[0]).close()
        cache.close()
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
        work = functools.partial(JOBS[request["job"]].work, folder)
        kill = request["kill"] and tracer.Kill(*request["kill"])
        _answer(tracer.trace(work, folder=folder, kill=kill))


def _answer(told: object) -> None:
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
