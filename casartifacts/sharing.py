"""What a new content shares with others in the same backend, and how that is found.

    this process    the manifests of what it stored or fetched lately
    anybody's       hints: `hints/<aa>/<chunk digest>` holds the digest of a content with that chunk

Rule 1: what is found here costs only sharing when it is wrong or cannot be asked: a hint that leads
nowhere, a manifest that is not whole, a right that is not given. What is leaned on is known to be
live (rule K), blob by blob. Who may write manifests is trusted: one that is whole and lies about
what its blobs hold is noticed only when what leans on it is read.
Rule 2: nothing grows with the store: a few hints per content, asked for in one parallel round.
"""

from __future__ import annotations

import io
import logging
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, ParamSpec, TypeVar

from casartifacts import errors, names, reading, scanning
from casartifacts.digest import is_digest
from casartifacts.errors import CorruptArtifact, StoreMismatch
from casartifacts.latest import Latest
from casartifacts.manifest import Manifest
from casartifacts.matching import samples
from casartifacts.parallel import QUESTIONS, Beside, in_order
from casartifacts.planning import plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import ExitStack

    from casartifacts.bodies import Source
    from casartifacts.chunking import ChunkerParameters
    from casartifacts.manifest import ChunkTable
    from casartifacts.matching import Layout
    from casartifacts.protocols import Backend
    from casartifacts.trail import Cuts

__all__ = ["Sharing"]

_logger = logging.getLogger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")

# A content of which more than this part is new, compared with what is at hand, is looked for
# elsewhere.
_MUCH = 0.5

# Of what this process has at hand, so many are compared with: four contents of 10 GiB take 0.6 s.
_MOST_BASES = 4

# So many are followed while a content is cut: each costs 20 MB and 0.2 s per 10 GiB.
_MOST_TRAILS = 2

# A hint stays where it is if it leads to a content that has this part of a new one; else it leads
# to the new one from then on. So others share with the newest, which is the nearest to what they
# store, and the last to be deleted (after 3 steps that each change a tenth of 256 MiB, another
# process sent 90 MB where hints stayed as they were written first, and 27 so).
_GOOD = 0.9

# A process that stores more than this many samples hardly meets the first ones again.
_MOST_LEADS = 4096

# A hint is the digest of a content; a longer one is none.
_HINT_SIZE = 64

# How many of the contents that are listed beside a new one are compared with it.
_MOST_RELATIVES = 2

# A larger manifest (of about 180 GiB) is not read to lean on: whoever wrote it, memory is ours.
_LARGEST_BASE = 64 * 2**20


class _Hinted(NamedTuple):
    """Contents to lean on, and whether this one was begun before."""

    manifests: list[Manifest]
    was_begun: bool


class Sharing:
    """Finds what contents share.

    Args:
        backend: Where they lie.
        is_live: Asks whether a blob (digest and size in bytes) is live, if that is not known.
        doubted: Digests of contents that read wrong, and of their blobs: nothing leans on them.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        is_live: Callable[[tuple[str, int]], bool],
        doubted: set[str],
    ) -> None:
        self._backend = backend
        self._is_live = is_live
        self._doubted = doubted
        self._latest = Latest()
        self._has_warned = False
        # Where hints lead, as far as this process was told.
        self._leads: dict[str, str] = {}

    def is_likely_new(self, source: Source, size: int) -> bool:
        """Tell whether a source is none of the contents noted last; False if none were."""
        known = self.noted(None)
        return bool(known) and not any(
            kept.size == size and scanning.agrees(source, kept.chunks) for kept in known
        )

    def known(self, filename: str | None, chunker: ChunkerParameters) -> list[Cuts]:
        """Return what was cut in this way by this process, what is likeliest to go on first."""
        like = self._latest.like(filename)
        # A log is not to pay for the model beside it.
        cut = [
            (kept.filename, kept.cuts)
            for kept in like
            if kept.cuts is not None and kept.manifest.chunker == chunker
        ]
        named = [each for each in cut if each[0] == filename]
        return [cuts for _, cuts in (named or cut)[:_MOST_TRAILS]]

    def lay_out(
        self,
        chunks: ChunkTable,
        *,
        digest: str,
        filename: str | None,
        relatives: Iterable[str] = (),
    ) -> tuple[Layout, bool]:
        """Lay out a content, and tell whether an earlier attempt may have stored some of it.

        Whatever it leans on is known to be live.

        Args:
            chunks: The chunks of the content.
            digest: Its digest.
            filename: The name of its file, as it is listed.
            relatives: Digests of contents that are listed beside it; asked for only if need be.
        """
        most = sum(chunks.lengths) * _MUCH
        bases = self.noted(filename)[:_MOST_BASES]
        layout = plan(chunks, bases)
        if layout.fresh_size > most and (found := self._asked(self._read_some, relatives)):
            bases += found
            layout = plan(chunks, bases)
        was_begun = False
        if layout.fresh_size > most:
            found, was_begun = self._hinted(chunks, digest)
            if found:
                bases += found
                layout = plan(chunks, bases)
        while layout.leaned:
            asked = zip(
                layout.leaned,
                in_order(self._is_right, layout.leaned, ahead=QUESTIONS),
                strict=True,
            )
            dead = {blob for blob, is_live in asked if not is_live}
            if not dead:
                break
            bases = [base for base in bases if dead.isdisjoint(base.blobs)]
            layout = plan(chunks, bases)
        return layout, was_begun

    def tell(
        self, manifest: Manifest, cuts: Cuts, *, filename: str | None, beside: ExitStack
    ) -> None:
        """Let others find a content that has just become live; what begins ends with `beside`."""
        leads = {
            name: self._leads.get(name)
            for name in map(names.hint, samples(manifest.chunks, manifest.size))
        }
        good = {
            kept.digest
            for kept in self.noted(filename)
            if kept.digest in leads.values()
            and _shared(manifest.chunks, kept.chunks) >= _GOOD * manifest.size
        }
        self.note(manifest, filename=filename, cuts=cuts)
        for name, digest in leads.items():
            if digest not in {*good, manifest.digest}:
                telling = beside.enter_context(Beside())
                # If it fails, that costs sharing; the block ends all the same.
                telling.begin(partial(self._write_hint, name, manifest.digest, replace=True))

    def note(self, manifest: Manifest, *, filename: str | None, cuts: Cuts | None = None) -> None:
        """Take a content for one that the next is likely to share with."""
        self._latest.add(manifest, filename=filename, cuts=cuts)

    def noted(self, filename: str | None) -> list[Manifest]:
        """Return the manifests that were noted last, those of the same file name first."""
        return [kept.manifest for kept in self._latest.like(filename)]

    def forget(self, digest: str) -> list[str]:
        """Lean no more on a content; returns the digests of its blobs, as far as it can be read."""
        self._latest.forget(digest)
        manifest = self.read_manifest(digest)
        return [] if manifest is None else [blob for blob, _ in manifest.blobs]

    def _read_some(self, digests: Iterable[str]) -> list[Manifest]:
        """Read the manifests of the first few of these contents."""
        known = {manifest.digest for manifest in self.noted(None)}
        chosen = list(islice((each for each in digests if each not in known), _MOST_RELATIVES))
        return [found for found in in_order(self.read_manifest, chosen) if found is not None]

    def _hinted(self, chunks: ChunkTable, digest: str) -> _Hinted:
        """Read the manifests of contents that others say have chunks of this one.

        Where nobody says so yet, this content does: a request for each sample, whether anything is
        found or not. Until it is live, such a hint leads nowhere, which costs only sharing.
        """
        wanted = samples(chunks, sum(chunks.lengths))
        told = list(in_order(lambda sample: self._asked(self._claim, sample, digest), wanted))
        # Those that several chunks lead to first.
        others = sorted(set(filter(None, told)) - {digest}, key=told.count, reverse=True)
        found = dict(zip(others, in_order(self.read_manifest, others), strict=True))
        for sample, other in zip(wanted, told, strict=True):
            if other in found and found[other] is None:
                self._asked(self._write_hint, names.hint(sample), digest, replace=True)
        manifests = [manifest for manifest in found.values() if manifest is not None]
        for manifest in reversed(manifests):
            self.note(manifest, filename=None)
        return _Hinted(manifests, was_begun=digest in told or not wanted)

    def _claim(self, sample: bytes, digest: str) -> str | None:
        """Return which content is said to have a chunk; if none was, None, and now it is this."""
        name = names.hint(sample)
        if self._write_hint(name, digest):
            return None
        with suppress(errors.ArtifactNotFound):
            told = reading.record(self._backend, name, most=_HINT_SIZE).decode("ascii", "replace")
            if is_digest(told):
                self._note_lead(name, told)
                return told
        self._write_hint(name, digest, replace=True)
        return None

    def _write_hint(self, name: str, digest: str, *, replace: bool = False) -> bool:
        """Say that a content has a chunk, unless another one is said to; returns whether it is."""
        body = io.BytesIO(digest.encode())
        if replace:
            self._backend.write(name, body)
        elif not self._backend.write_if_absent(name, body):
            return False
        self._note_lead(name, digest)
        return True

    def _note_lead(self, name: str, digest: str) -> None:
        if len(self._leads) >= _MOST_LEADS:
            self._leads.clear()
        self._leads[name] = digest

    def _is_right(self, blob: tuple[str, int]) -> bool:
        return blob[0] not in self._doubted and self._is_live(blob)

    def _asked(self, ask: Callable[_P, _T], *given: _P.args, **named: _P.kwargs) -> _T | None:
        """Ask what only saves bytes: that it cannot be asked never fails an upload."""
        try:
            return ask(*given, **named)
        except Exception as error:  # noqa: BLE001 -- said once, and gone around
            if not self._has_warned:
                self._has_warned = True
                _logger.warning(
                    "What contents share is not found in %r, so more is stored: %r",
                    self._backend,
                    error,
                )
            return None

    def read_manifest(self, digest: str) -> Manifest | None:
        """Read a manifest to lean on; None if it is not there, or not to be trusted."""
        if digest in self._doubted:
            return None
        return self._asked(self._read_manifest, digest)

    def _read_manifest(self, digest: str) -> Manifest | None:
        try:
            body = reading.record(self._backend, names.manifest(digest), most=_LARGEST_BASE)
            return Manifest.decode(body, digest=digest)
        except (errors.ArtifactNotFound, CorruptArtifact, StoreMismatch):
            return None


def _shared(chunks: ChunkTable, others: ChunkTable) -> int:
    """Return how many bytes of a content are in chunks that another one has."""
    there = {others[index][1] for index in range(len(others))}
    return sum(length for index, length in enumerate(chunks.lengths) if chunks[index][1] in there)
