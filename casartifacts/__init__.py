"""A content-addressed artifact store with a local cache: a drop-in for `optuna.artifacts`.

The map of the house, from the top; each floor imports only what is below it:

    cli               the command line, `python -m casartifacts` too
    studies           the face to Optuna: upload, download, list, remove
    doctor            what a set-up can do, found out by trying it
    opening           `open_store`: from a path or URL to a store
    store             ContentStore: id -> ref -> manifest -> blobs
    publishing        how a content becomes live: blobs, manifest, then the record that leads to it
    sharing           what a new content has in common with others, and how that is found
    planning          the new blobs of a source, in a second reading
    reading           verified bytes out of a backend
    scanning          a source as a digest and chunks, in a first reading
    cache/            ArtifactCache: whole contents near this process; its rooms are in its top
    backoff           Backoff: try again
    backends/         filesystem, boto3, gcs, memory, foreign: places that keep named bytes
    bodies            what callers hand in, as bytes that can be read twice
    parallel          one bounded pool of threads
    knowledge, latest which names are known to be live; which contents came last
    files, progress   steps on local files; telling how far a transfer is
    buffers, locks    memory to read into; locks that a fork does not break
    records, manifest, matching, chunking, trail, cutpoints, names, digest
                      pure: bytes in, values out
    errors, protocols

`testing` stands beside them: the conformance kit for whoever writes a backend.

Every public name is loaded when it is first used: importing this package costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optuna.artifacts import ArtifactMeta
    from optuna.artifacts.exceptions import ArtifactNotFound

    from casartifacts.backends.boto3 import Boto3ArtifactStore
    from casartifacts.backends.filesystem import FileSystemArtifactStore
    from casartifacts.backends.gcs import GCSArtifactStore
    from casartifacts.backends.memory import MemoryArtifactStore
    from casartifacts.backoff import Backoff
    from casartifacts.cache import ArtifactCache
    from casartifacts.errors import CorruptArtifact
    from casartifacts.opening import open_store
    from casartifacts.store import ContentStore
    from casartifacts.studies import (
        download_artifact,
        get_all_artifact_meta,
        remove_artifact,
        upload_artifact,
    )

__version__ = "0.1.0.dev0"

__all__ = [
    "ArtifactCache",
    "ArtifactMeta",
    "ArtifactNotFound",
    "Backoff",
    "Boto3ArtifactStore",
    "ContentStore",
    "CorruptArtifact",
    "FileSystemArtifactStore",
    "GCSArtifactStore",
    "MemoryArtifactStore",
    "download_artifact",
    "get_all_artifact_meta",
    "open_store",
    "remove_artifact",
    "upload_artifact",
]

# Where each public name is defined.
_HOMES = {
    "ArtifactCache": "casartifacts.cache",
    "ArtifactMeta": "optuna.artifacts",
    "ArtifactNotFound": "casartifacts.errors",
    "Backoff": "casartifacts.backoff",
    "Boto3ArtifactStore": "casartifacts.backends.boto3",
    "ContentStore": "casartifacts.store",
    "CorruptArtifact": "casartifacts.errors",
    "FileSystemArtifactStore": "casartifacts.backends.filesystem",
    "GCSArtifactStore": "casartifacts.backends.gcs",
    "MemoryArtifactStore": "casartifacts.backends.memory",
    "download_artifact": "casartifacts.studies",
    "get_all_artifact_meta": "casartifacts.studies",
    "open_store": "casartifacts.opening",
    "remove_artifact": "casartifacts.studies",
    "upload_artifact": "casartifacts.studies",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(importlib.import_module(home), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
