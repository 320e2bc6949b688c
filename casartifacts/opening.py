"""`open_store`: from a path or URL to a store, with good defaults."""

from __future__ import annotations

import logging
import os
import re
from functools import cache as once
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from casartifacts.backends.filesystem import FileSystemArtifactStore
from casartifacts.backends.memory import MemoryArtifactStore
from casartifacts.cache import ArtifactCache, mounts, rights
from casartifacts.store import ContentStore

if TYPE_CHECKING:
    from casartifacts.protocols import Backend

__all__ = ["node_cache", "open_backend", "open_store"]

logger = logging.getLogger(__name__)

# What the command line's --cache calls no cache, which the variable shares with it.
_NONE = "none"

_MISTYPED = re.compile("(file|memory|s3|gs):")

_KNOWN = (
    "expected a path, file:///absolute/path, memory://, s3://bucket/prefix or gs://bucket/prefix"
)


def open_store(
    url: str | os.PathLike[str],
    *,
    cache: ArtifactCache | str | os.PathLike[str] | bool | None = None,
    durable: bool = True,
    endpoint_url: str | None = None,
) -> ContentStore:
    """Open the store at a path or URL; it is made at the first upload.

    Args:
        url: A path (`~` is the home folder), `file:///path`, `memory://` for a new store in this
            process, `s3://bucket/prefix` or `gs://bucket/prefix`.
        cache: An `ArtifactCache`, the folder of one, or True for the node's: the folder named by
            `CASARTIFACTS_CACHE`, else one in the scratch folder of the job, else in the user's
            cache folder, unless that is on a network file system. By default buckets have the
            node's cache, and paths none: they are near already. False is none, and so is "none",
            also in the variable.
        durable: For a path: whether an upload returns only after the disk has it.
        endpoint_url: For `s3://`: the server, where no AWS setting names it.

    Raises:
        ValueError: The URL is of a kind that is not known here.
        ImportError: The package for this kind of bucket is not installed; it says which.
    """
    backend = open_backend(url, durable=durable, endpoint_url=endpoint_url)
    if backend.remote:
        from casartifacts.backoff import Backoff

        backend = Backoff(backend)
    if cache is None:
        cache = backend.remote
    if cache is True and os.environ.get("CASARTIFACTS_CACHE") == _NONE:
        cache = False
    if cache is False or cache == _NONE:
        return ContentStore(backend)
    if cache is True:
        cache = node_cache()
        if cache == _users_cache() and _is_far(cache):
            return ContentStore(backend)
    if not isinstance(cache, ArtifactCache):
        cache = ArtifactCache(cache)
    return ContentStore(backend, cache=cache)


def open_backend(
    url: str | os.PathLike[str], *, durable: bool = True, endpoint_url: str | None = None
) -> Backend:
    """Open the place that a path or URL names, as `open_store` does, but without `Backoff`."""
    url = os.fspath(url)
    scheme, separator, _ = url.partition("://")
    if not separator:
        if not url:
            raise ValueError("The path of a store is empty; give a folder such as ./artifacts")
        if _MISTYPED.match(url):
            raise ValueError(f"{url!r} looks like a URL without its two slashes; {_KNOWN}")
        return FileSystemArtifactStore(Path(url).expanduser(), durable=durable)
    parts = urlsplit(url)
    if parts.query or parts.fragment:
        raise ValueError(f"{url!r} has a query or fragment, which no store understands; {_KNOWN}")
    if scheme == "file" and parts.netloc in {"", "localhost"} and parts.path:
        return FileSystemArtifactStore(unquote(parts.path), durable=durable)
    if scheme == "memory" and not parts.path and not parts.netloc:
        return MemoryArtifactStore()
    if scheme in {"s3", "gs"} and parts.netloc:
        return _bucket(scheme, parts.netloc, prefix=parts.path, endpoint_url=endpoint_url)
    raise ValueError(f"{url!r} is no store that can be opened; {_KNOWN}")


def _bucket(scheme: str, bucket: str, *, prefix: str, endpoint_url: str | None) -> Backend:
    if scheme == "s3":
        from casartifacts.backends.boto3 import Boto3ArtifactStore

        return Boto3ArtifactStore(bucket, prefix=prefix, endpoint_url=endpoint_url)
    from casartifacts.backends.gcs import GCSArtifactStore

    return GCSArtifactStore(bucket, prefix=prefix)


def node_cache() -> Path:
    """Return the folder of the node's cache."""
    if folder := os.environ.get("CASARTIFACTS_CACHE"):
        return Path(folder)
    # The scratch of a batch job is near and large; home folders are often neither.
    if folder := os.environ.get("SLURM_TMPDIR") or _scratch_of_job():
        return Path(folder) / "casartifacts"
    return _users_cache()


# What batch systems name their jobs in: Slurm, PBS, LSF, Grid Engine.
_JOBS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID")


def _scratch_of_job() -> str:
    """Return `TMPDIR` if the batch system made it for this job, else "".

    What tells is the number of the job in it, as in /local/slurm.4711 or /tmp/4711.1.all.q: a
    `TMPDIR` that a user sets may be anywhere, and one of all jobs is nobody's own.
    """
    folder = os.environ.get("TMPDIR", "")
    for name in _JOBS:
        number = re.match("[0-9]+", os.environ.get(name, ""))
        if number and re.search(rf"(?<![0-9]){number[0]}(?![0-9])", folder):
            return folder
    return ""


def _users_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "casartifacts"


@once
def _is_far(folder: Path) -> bool:
    """Tell whether a folder is on a network file system, and if so say once what to do."""
    mount = mounts.mount_of(str(folder))
    if mount is None or not mount.is_network:
        return False
    logger.warning(
        "No local cache: %s is on %s (%s), which other machines share. %s",
        str(folder),
        mount.kind,
        mount.point,
        rights.elsewhere(),
    )
    return True
