"""What a new content shares with others in the same backend, and how that is found.

    this process    the manifests of what it stored or fetched lately
    anybody's       hints: `hints/<aa>/<chunk digest>` holds the digest of a content with that chunk

Rule 1: what is found here costs only sharing when it is wrong: a hint that leads nowhere, a
manifest that is not whole. What is leaned on is known to be live (rule K), blob by blob.
Rule 2: nothing grows with the store: a few hints per content, asked for in one parallel round.
"""

from __future__ import annotations

import io
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from casartifacts import errors, names, reading, scanning
from casartifacts.digest import is_digest
from casartifacts.errors import CorruptArtifact, StoreMismatch
from casartifacts.latest import Latest
from casartifacts.manifest import Manifest
from casartifacts.matching import samples
from casartifacts.parallel import Beside, in_order
from casartifacts.planning import plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import ExitStack

    from casartifacts.bodies import Source
    from casartifacts.knowledge import Knowledge
    from casartifacts.manifest import ChunkTable
    from casartifacts.matching import Layout
    from casartifacts.protocols import Backend

__all__ = ["Sharing"]

# A content of which more than this part is new, compared with what is at hand, is looked for
# elsewhere.
_MUCH = 0.5

# A hint is the digest of a content; a longer one is none.
_HINT_SIZE = 64

# How many of the contents that are listed beside a new one are compared with it.
_MOST_RELATIVES = 2


class Sharing:
    """Finds what contents share.

    Args:
        backend: Where they lie.
        knowledge: What is known to be live there.
        is_live: Asks whether a blob (digest and size in bytes) is live, if that is not known.
        doubted: Digests of contents that read wrong: nothing leans on them.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        knowledge: Knowledge,
        is_live: Callable[[tuple[str, int]], bool],
        doubted: set[str],
    ) -> None:
        self._backend = backend
        self._knowledge = knowledge
        self._is_live = is_live
        self._doubted = doubted
        self._latest = Latest()

    def is_likely_new(self, source: Source, size: int) -> bool:
        """Tell whether a source is none of the contents noted last; False if none were."""
        known = self._latest.like(None)
        return bool(known) and not any(
            kept.size == size and scanning.agrees(source, kept.chunks) for kept in known
        )

    def lay_out(
        self, chunks: ChunkTable, *, filename: str | None, relatives: Iterable[str] = ()
    ) -> Layout:
        """Lay out a content; whatever it leans on is known to be live.

        Args:
            chunks: The chunks of the content.
            filename: The name of its file, as it is listed.
            relatives: Digests of contents that are listed beside it; asked for only if need be.
        """
        size = sum(chunks.lengths)
        bases = self._latest.like(filename)
        layout = plan(chunks, bases)
        for more in (partial(self._read_some, relatives), partial(self._hinted, chunks)):
            if layout.fresh_size <= size * _MUCH:
                break
            if found := more():
                bases += found
                layout = plan(chunks, bases)
        while layout.leaned:
            asked = zip(layout.leaned, in_order(self._is_live, layout.leaned), strict=True)
            dead = {blob for blob, is_live in asked if not is_live}
            if not dead:
                break
            bases = [base for base in bases if dead.isdisjoint(base.blobs)]
            layout = plan(chunks, bases)
        return layout

    def tell(self, manifest: Manifest, *, filename: str | None, beside: ExitStack) -> None:
        """Let others find a content that has just become live; what begins ends with `beside`."""
        self.note(manifest, filename=filename)
        for sample in samples(manifest.chunks, manifest.size):
            name = names.hint(sample)
            # One that leads to a content which is there stays. Any other leads here from now on:
            # the newest content is the one that is shared most and kept longest.
            if not self._knowledge.is_fresh(name):
                telling: Beside[object] = beside.enter_context(Beside())
                # If it fails, that costs sharing; the block ends all the same.
                telling.begin(partial(self._write_hint, name, manifest.digest))

    def note(self, manifest: Manifest, *, filename: str | None) -> None:
        """Take a content for one that the next is likely to share with."""
        self._latest.add(manifest, filename=filename)

    def noted(self, filename: str | None) -> list[Manifest]:
        """Return the manifests that were noted last, those of the same file name first."""
        return self._latest.like(filename)

    def forget(self, digest: str) -> None:
        """Lean no more on a content."""
        self._latest.forget(digest)

    def _read_some(self, digests: Iterable[str]) -> list[Manifest]:
        """Read the manifests of the first few of these contents."""
        known = {manifest.digest for manifest in self._latest.like(None)}
        chosen = list(islice((each for each in digests if each not in known), _MOST_RELATIVES))
        return [found for found in in_order(self.read_manifest, chosen) if found is not None]

    def _hinted(self, chunks: ChunkTable) -> list[Manifest]:
        """Read the manifests of contents that others say have chunks of this one."""
        wanted = samples(chunks, sum(chunks.lengths))
        told = list(in_order(self._read_hint, wanted))
        # Those that several chunks lead to first.
        digests = sorted(filter(None, dict.fromkeys(told)), key=told.count, reverse=True)
        found = dict(zip(digests, in_order(self.read_manifest, digests), strict=True))
        for sample, digest in zip(wanted, told, strict=True):
            if digest is not None and found[digest] is None:
                self._knowledge.forget(names.hint(sample))
        return [manifest for manifest in found.values() if manifest is not None]

    def _read_hint(self, sample: bytes) -> str | None:
        name = names.hint(sample)
        asked_at = self._knowledge.now()
        try:
            digest = reading.record(self._backend, name, most=_HINT_SIZE).decode("ascii", "replace")
        except errors.ArtifactNotFound:
            return None
        if not is_digest(digest):
            return None
        self._knowledge.learn(name, asked_at=asked_at)
        return digest

    def _write_hint(self, name: str, digest: str) -> None:
        asked_at = self._knowledge.now()
        self._backend.write(name, io.BytesIO(digest.encode()))
        self._knowledge.learn(name, asked_at=asked_at)

    def read_manifest(self, digest: str) -> Manifest | None:
        """Read a manifest to lean on; None if it is not there, or not to be trusted."""
        if digest in self._doubted:
            return None
        try:
            body = reading.record(self._backend, names.manifest(digest))
            return Manifest.decode(body, digest=digest)
        except (errors.ArtifactNotFound, CorruptArtifact, StoreMismatch):
            return None
