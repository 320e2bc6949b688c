"""How a content becomes live: blobs, then its manifest, then the record that leads to it.

What exists never names what does not. A crash leaves at most bytes that no ref reaches, which
garbage collection takes.

Rule 1 (K in the design): a record counts only if, when its write is acknowledged, everything that
it names is known to be live by an answer at most one hour old; older: ask again, send again.
Rule 2: what this process has read as damaged is written anew, whoever needs it next.
"""

from __future__ import annotations

import contextlib
import io
import sys
from functools import partial
from typing import TYPE_CHECKING, BinaryIO, Self, cast

from casartifacts import errors, names, reading, scanning
from casartifacts.bodies import Outgoing
from casartifacts.errors import CasartifactsError, ContentChanged, CorruptArtifact
from casartifacts.manifest import Manifest, smallest_size
from casartifacts.matching import Stretch
from casartifacts.parallel import in_order
from casartifacts.planning import NewBlob, Plan, plan
from casartifacts.protocols import Drafting
from casartifacts.sharing import Sharing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from casartifacts.bodies import Source
    from casartifacts.knowledge import Knowledge
    from casartifacts.progress import Report
    from casartifacts.protocols import Backend, Draft
    from casartifacts.records import StoreRecord
    from casartifacts.scanning import Scan
    from casartifacts.trail import Cuts

__all__ = ["Publishing", "Upload"]

# How often a record is sent again because an hour passed while it was sent. Each takes an hour or
# a clock that jumps: more than a few mean that something is broken.
_MOST_SENDS = 5


class Upload:
    """What one call of `add` carries: the source after its first reading.

    `small` are the bytes of a content up to the small limit, which is read only once.
    """

    def __init__(
        self,
        source: Source,
        record: StoreRecord,
        progress: Report | None,
        *,
        is_new: Callable[[int], bool],
        known: Sequence[Cuts],
    ) -> None:
        self.source = source
        self.record = record
        self.filename: str | None = None
        self.anew = False  # whether what is there is not to be trusted
        self.manifest: Manifest | None = None  # once it has become live by this upload
        self.relatives: Iterable[str] = ()
        self._progress = progress
        self._known = known
        self._stamp = source.stamp()
        size = source.known_size()
        limit = record.small_content_limit
        scan = None
        if size is not None and size > limit and is_new(size):
            scan = self._cut(size)
        if scan is None or scan.size <= limit:
            scan = scanning.read(source, small_limit=limit)
        self.digest, self.size, self.small, self._cuts = scan
        self.check_unchanged()

    def cuts(self) -> Cuts:
        """Return how the content is cut; it is looked for if it is not known yet.

        Raises:
            ContentChanged: The source is not what it was in the first reading.
        """
        if self._cuts is None:
            scan = self._cut(self.size)
            if scan.digest != self.digest:
                raise ContentChanged(
                    "The content changed while it was being uploaded: its first reading gave "
                    f"digest {self.digest}, the second {scan.digest}. Nothing was published; upload"
                    " it again when nobody writes to it."
                )
            self._cuts = scan.cuts
        return cast("Cuts", self._cuts)

    def _cut(self, size: int) -> Scan:
        chunker = self.record.chunker
        return scanning.cut(self.source, size=size, chunker=chunker, known=self._known)

    def check_unchanged(self) -> None:
        """Refuse a file that somebody has written to since the upload began."""
        if self.source.stamp() != self._stamp:
            raise ContentChanged(
                "The file changed while it was being uploaded: its size or modification time is "
                "another one now. Nothing was published; upload it again when nobody writes to it."
            )

    def read_small(self, offset: int, length: int) -> bytes:
        """Read from the bytes of a small content."""
        return (self.small or b"")[offset : offset + length]

    def report(self, done: int) -> None:
        """Say how many bytes are stored."""
        if self._progress is not None:
            self._progress(done, self.size)


class _Drafts:
    """Writes blobs where they are to lie, in the pass in which they are hashed."""

    def __init__(self, backend: Drafting, publish: Callable[[Draft, NewBlob], None]) -> None:
        self._backend = backend
        self._publish = publish
        self._ending = contextlib.ExitStack()
        self._draft: Draft | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.close()

    def write(self, piece: memoryview) -> None:
        """Take the next bytes of the blob, or the first ones."""
        if self._draft is None:
            self._draft = self._ending.enter_context(self._backend.draft())
        self._draft.write(piece)

    def end(self, blob: NewBlob) -> None:
        """Publish the blob."""
        if self._draft is not None:
            self._publish(self._draft, blob)
        self._draft = None
        self._ending.close()


class Publishing:
    """Makes contents live in a backend.

    Args:
        backend: Where.
        knowledge: What is known to be live there.
    """

    def __init__(self, backend: Backend, knowledge: Knowledge) -> None:
        self._backend = backend
        self._knowledge = knowledge
        # Contents that read wrong here, and their blobs: the next upload of one writes it anew.
        self._doubted: set[str] = set()
        self.sharing = Sharing(
            backend,
            # No method of this object's: it is to go as soon as nobody holds it.
            is_live=partial(_is_live_blob, backend, knowledge),
            doubted=self._doubted,
        )

    def is_doubted(self, digest: str) -> bool:
        """Tell whether a content, or a blob of it, read wrong and was not written anew since."""
        if digest in self._doubted:
            return True
        # Where nothing is doubted, as nearly always, nothing is asked.
        manifest = self.sharing.read_manifest(digest) if self._doubted else None
        return manifest is not None and any(blob in self._doubted for blob, _ in manifest.blobs)

    def trust(self, digest: str) -> None:
        """Note that a content was written anew."""
        self._doubted.discard(digest)

    def doubt(self, digest: str) -> None:
        """Note that a content reads wrong: any of its blobs may be what is wrong."""
        self._doubted.update(self.sharing.forget(digest))
        self._doubted.add(digest)

    def keep(self, upload: Upload) -> str:
        """See to it that a content is live, and return the name by which it is."""
        if upload.small is not None:
            name = names.blob(upload.digest)
            if upload.anew or not self._is_live(name, _exactly(upload.size)):
                blob = NewBlob((Stretch(0, upload.size),), upload.size, upload.digest)
                self._send_blob(blob, upload.read_small, anew=upload.anew)
        else:
            name = names.manifest(upload.digest)
            sizes = range(smallest_size(upload.size, upload.record.chunker), sys.maxsize)
            is_there = not upload.anew and self._is_live(name, sizes)
            if not (is_there and self._has_its_blobs(upload.digest)):
                anew = upload.anew or is_there
                self.send(
                    lambda: self._keep_blobs(upload),
                    lambda body: self._publish(name, body, sizes, anew=anew),
                )
        upload.check_unchanged()
        return name

    def _has_its_blobs(self, digest: str) -> bool:
        """Tell whether what a manifest names is there; taken for granted where asking costs.

        Who deletes or cuts files in a folder is met more often than who does in a bucket.
        """
        if self._backend.remote:
            return True
        try:
            body = reading.record(self._backend, names.manifest(digest))
            manifest = Manifest.decode(body, digest=digest)
        except (errors.ArtifactNotFound, CorruptArtifact):
            return False
        return all(self._is_live(names.blob(blob), _exactly(size)) for blob, size in manifest.blobs)

    def _keep_blobs(self, upload: Upload) -> tuple[bytes, list[str]]:
        """Store what is new of a content as blobs; return its manifest and what that names."""
        backend = self._backend
        cuts = upload.cuts()
        chunks = cuts.chunks
        if upload.anew:
            layout, was_begun = plan(chunks, []), False
        else:
            layout, was_begun = self.sharing.lay_out(
                chunks,
                digest=upload.digest,
                filename=upload.filename,
                relatives=upload.relatives,
            )
        kept = [names.blob(digest) for digest, _ in layout.leaned]
        fresh: list[str] = []
        done = upload.size - layout.fresh_size
        with contextlib.ExitStack() as ending:
            sink = None
            if isinstance(backend, Drafting):
                publish = partial(self._publish_draft, anew=upload.anew)
                sink = ending.enter_context(_Drafts(backend, publish))
            blobs = Plan(upload.source, digest=upload.digest, cuts=cuts, layout=layout, sink=sink)
            for blob in blobs if sink is not None else self._sent(blobs, upload, asks=was_begun):
                fresh.append(blob.digest)
                done += blob.length
                upload.report(done)
        upload.check_unchanged()
        upload.manifest = layout.manifest(
            fresh, digest=upload.digest, chunks=chunks, chunker=upload.record.chunker
        )
        return upload.manifest.encode(), [*kept, *map(names.blob, fresh)]

    def _sent(self, blobs: Plan, upload: Upload, *, asks: bool) -> Iterator[NewBlob]:
        """Send blobs beside the pass over the file that makes them."""

        def missing() -> Iterator[tuple[NewBlob, bool]]:
            # An upload that was interrupted goes on where it stopped: each blob is asked for, until
            # one is missing. The others are sent unasked, which costs no request more than it must.
            asking = asks
            for blob in blobs:
                asking = (
                    asking
                    and blob.digest not in self._doubted
                    and self._is_live(names.blob(blob.digest), _exactly(blob.length))
                )
                yield blob, asking

        def keep(asked: tuple[NewBlob, bool]) -> NewBlob:
            blob, is_live = asked
            if not is_live:
                self._send_blob(blob, upload.source.read_at, anew=upload.anew)
            return blob

        return in_order(keep, missing())

    def _publish_draft(self, draft: Draft, blob: NewBlob, *, anew: bool) -> None:
        """Name a draft; a blob of another size, which a crash has cut, is replaced."""
        name = names.blob(blob.digest)
        anew = anew or blob.digest in self._doubted
        asked_at = self._knowledge.now()
        if not draft.publish(name, replace=anew) and not self._is_live(name, _exactly(blob.length)):
            draft.publish(name, replace=True)
        self._knowledge.learn(name, asked_at=asked_at)
        self._doubted.discard(blob.digest)

    def _send_blob(
        self, blob: NewBlob, read_at: Callable[[int, int], bytes], *, anew: bool
    ) -> None:
        body = Outgoing(
            partial(blob.read_at, read_at), start=0, length=blob.length, digest=blob.digest
        )
        name, sizes = names.blob(blob.digest), _exactly(blob.length)
        anew = anew or blob.digest in self._doubted
        self._publish(name, cast("BinaryIO", body), sizes, anew=anew)
        self._doubted.discard(blob.digest)

    def _is_live(self, name: str, sizes: range) -> bool:
        return _is_live(self._backend, self._knowledge, name, sizes)

    def _publish(self, name: str, body: BinaryIO, sizes: range, *, anew: bool) -> None:
        """Write what is the same whoever writes it; what is there stays, unless it is wrong.

        Wrong is what has another size, or, with `anew`, belongs to a content that read wrong.
        """
        if anew:
            self.write(name, body)
            return
        asked_at = self._knowledge.now()
        if self._backend.write_if_absent(name, body):
            self._knowledge.learn(name, asked_at=asked_at)
        elif not self._is_live(name, sizes):
            body.seek(0)
            self.write(name, body)

    def write(self, name: str, body: BinaryIO) -> None:
        """Write under a name; what is there is replaced."""
        asked_at = self._knowledge.now()
        self._backend.write(name, body)
        self._knowledge.learn(name, asked_at=asked_at)

    def send(
        self,
        prepare: Callable[[], tuple[bytes, list[str]]],
        send: Callable[[BinaryIO], None],
    ) -> None:
        """Send a record by rule K; `prepare` makes live what the record names and returns both."""
        for _ in range(_MOST_SENDS):
            body, needed = prepare()
            try:
                send(_Vouched(body, needed, self._knowledge))
            except _StaleError:
                continue
            if all(map(self._knowledge.is_fresh, needed)):
                return
        raise CasartifactsError(
            f"A record was sent {_MOST_SENDS} times to {self._backend!r}, and each time more than "
            "an hour passed before it was acknowledged: what it names may have been collected "
            "since. Mend the connection or the clock and upload again."
        )


class _StaleError(Exception):
    """What a record names is not known to be live any more."""


class _Vouched(io.BytesIO):
    """A record on its way out: each attempt to send it first asks whether it still may be sent."""

    def __init__(self, body: bytes, needed: list[str], knowledge: Knowledge) -> None:
        super().__init__(body)
        self._needed = needed
        self._knowledge = knowledge

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell() == 0 and not all(map(self._knowledge.is_fresh, self._needed)):
            raise _StaleError
        return super().read(size)


def _is_live(backend: Backend, knowledge: Knowledge, name: str, sizes: range) -> bool:
    """Tell whether something of one of these sizes (bytes) is live under a name."""
    # Where a question costs nothing it is asked: somebody may have deleted the whole folder.
    if backend.remote and knowledge.is_fresh(name):
        return True
    asked_at = knowledge.now()
    found = backend.stat(name)
    if found is None or found.size not in sizes:
        knowledge.forget(name)
        return False
    knowledge.learn(name, asked_at=asked_at)
    return True


def _is_live_blob(backend: Backend, knowledge: Knowledge, blob: tuple[str, int]) -> bool:
    digest, size = blob
    return _is_live(backend, knowledge, names.blob(digest), _exactly(size))


def _exactly(size: int) -> range:
    return range(size, size + 1)
