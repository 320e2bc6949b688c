"""What this process stored or fetched lately: what the next one shares most with.

Rule 1: no I/O. What is here says nothing about whether it is still live.
Rule 2: never pickled; a few, and of bounded size, whatever was stored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from casartifacts.locks import lock_over_forks

if TYPE_CHECKING:
    from casartifacts.manifest import Manifest
    from casartifacts.trail import Cuts

__all__ = ["Latest"]

_lock = lock_over_forks()

# Checkpoints of one trial, and what is stored beside them: optimizer, log, the best one.
_MOST = 8

# A million chunks are about 50 MB and 90 GiB of contents.
_MOST_CHUNKS = 2**20


class Kept(NamedTuple):
    """What is kept of a content; its cuts only if it was cut here."""

    manifest: Manifest
    filename: str | None
    cuts: Cuts | None


class Latest:
    """What is known of the contents that came last; may be used by several threads."""

    def __init__(self) -> None:
        self._kept: dict[str, Kept] = {}

    def add(self, manifest: Manifest, *, filename: str | None, cuts: Cuts | None = None) -> None:
        """Take what came just now, under this file name; None leaves the one that it had."""
        with _lock:
            before = self._kept.pop(manifest.digest, None)
            if before is not None:
                filename = before.filename if filename is None else filename
                cuts = cuts or before.cuts
            self._kept[manifest.digest] = Kept(manifest, filename, cuts)
            while len(self._kept) > 1 and (
                len(self._kept) > _MOST
                or sum(len(kept.manifest.chunks) for kept in self._kept.values()) > _MOST_CHUNKS
            ):
                del self._kept[next(iter(self._kept))]

    def like(self, filename: str | None) -> list[Kept]:
        """Return all: those of the same file name first, the newest before the older ones."""
        with _lock:
            kept = list(self._kept.values())
        kept.reverse()
        kept.sort(key=lambda each: each.filename != filename)
        return kept

    def forget(self, digest: str) -> None:
        """Drop what is kept of this content."""
        with _lock:
            self._kept.pop(digest, None)
