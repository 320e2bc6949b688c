"""The manifests of what this process stored or fetched lately: what the next one shares most with.

Rule 1: no I/O. What is here says nothing about whether it is still live.
Rule 2: never pickled; a few, and of bounded size, whatever was stored.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from casartifacts.manifest import Manifest

__all__ = ["Latest"]

# Checkpoints of one trial, and what is stored beside them: optimizer, log, the best one.
_MOST = 8

# A million chunks are about 40 MB and 180 GiB of contents.
_MOST_CHUNKS = 2**20


class Latest:
    """The manifests of the contents that came last; may be used by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[str | None, Manifest]] = {}

    def add(self, manifest: Manifest, *, filename: str | None) -> None:
        """Take the manifest of what came just now, under this file name."""
        with self._lock:
            self._kept.pop(manifest.digest, None)
            self._kept[manifest.digest] = filename, manifest
            while len(self._kept) > 1 and (
                len(self._kept) > _MOST
                or sum(len(kept.chunks) for _, kept in self._kept.values()) > _MOST_CHUNKS
            ):
                del self._kept[next(iter(self._kept))]

    def like(self, filename: str | None) -> list[Manifest]:
        """Return all: those of the same file name first, the newest before the older ones."""
        with self._lock:
            kept = list(self._kept.values())
        kept.reverse()
        kept.sort(key=lambda entry: entry[0] != filename)
        return [manifest for _, manifest in kept]

    def forget(self, digest: str) -> None:
        """Drop the manifest of this content."""
        with self._lock:
            self._kept.pop(digest, None)
