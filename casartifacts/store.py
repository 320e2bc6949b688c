"""ContentStore: an artifact id leads to a ref, a ref to a content, a content to blobs.

The order of writes is content, ref: how a content becomes live is told in `publishing`, how it is
read in `reading`.

Rule 1: no byte leaves unverified; the cache and the backend are verified in their own rooms.
Rule 2: a failing cache is gone around; it never fails a read.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypedDict, cast

from casartifacts import errors, files, names, reading
from casartifacts.backends.foreign import ForeignBackend
from casartifacts.bodies import take
from casartifacts.buffers import BUFFER_SIZE
from casartifacts.digest import digest_of, is_digest
from casartifacts.errors import CorruptArtifact, StoreMismatch
from casartifacts.knowledge import Knowledge
from casartifacts.parallel import in_order
from casartifacts.publishing import Publishing, Upload
from casartifacts.records import Ref, StoreRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from casartifacts.cache import ArtifactCache, Slot
    from casartifacts.protocols import ArtifactStore, Backend

    Progress = Callable[[int, int], None]

__all__ = ["ContentStore"]

logger = logging.getLogger(__name__)

# A ref is a few hundred bytes; file names and origins are bounded by what callers send.
_LARGEST_REF = 2**20

# What the cache notes of an id that was removed, and what it tells of a note that another user
# wrote, who may have noted anything: ask the backend.
_REMOVED = "removed"
_HEARSAY = ""

# What is read ahead of who reads by lines.
_LINES_SIZE = 2**16

# How often a content is copied from the cache while somebody changes its files there.
_MOST_COPIES = 3

# How many contents near by are looked through for bytes of one that is fetched.
_MOST_NEAR = 2


class ContentStore:
    """An artifact store that keeps equal contents once, over any backend.

    It has the three methods of Optuna's stores and may be given to every function that takes one.

    Args:
        backend: Where the bytes lie; an object that has only the three methods of Optuna's stores
            will do, more slowly and without listings.
        cache: Where contents are kept near this process, so that reading one again costs no
            request; None for none.
    """

    def __init__(
        self, backend: Backend | ArtifactStore, *, cache: ArtifactCache | None = None
    ) -> None:
        self.backend = (
            cast("Backend", backend) if hasattr(backend, "durable") else ForeignBackend(backend)
        )
        self.cache = cache
        self._knowledge = Knowledge()
        self._record: tuple[bytes, StoreRecord] | None = None
        # Whether the store was made here, so that there is nothing yet that could be stored twice.
        self._is_new = False
        self._publishing = Publishing(self.backend, self._knowledge)

    def __repr__(self) -> str:
        cache = "" if self.cache is None else f", cache={self.cache!r}"
        return f"ContentStore({self.backend!r}{cache})"

    def __getstate__(self) -> dict[str, object]:
        # What this process was told is not for another one.
        return {"backend": self.backend, "cache": self.cache}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    # Writing

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Store all that the body still has to give under this id, replacing what it led to."""
        self.add(content_body, artifact_id=artifact_id)

    def add(
        self,
        body: BinaryIO,
        *,
        artifact_id: str | None = None,
        filename: str | None = None,
        mimetype: str | None = None,
        encoding: str | None = None,
        origin: Mapping[str, str] | None = None,
        relatives: Iterable[str] = (),
        progress: Progress | None = None,
    ) -> str:
        """Store a content and the ref that leads to it.

        Args:
            body: A binary stream; it is read from where it stands to its end.
            artifact_id: The id; by default a fresh one.
            filename: The name to list; kept in the ref, as the next three.
            mimetype: A MIME type.
            encoding: A content encoding such as gzip.
            origin: Where the upload comes from, such as the name of a study.
            relatives: Digests of contents that this one may share much with, the likeliest first;
                iterated over only if this process has stored none that it does.
            progress: Called with the bytes that are stored and the bytes in all.

        Returns:
            The artifact id.

        Raises:
            ValueError: The id is refused.
            TypeError: The body is no binary stream.
            ContentChanged: The body changed while it was read; nothing was published.
            StoreMismatch: The backend holds a store of another format, or of other settings.
        """
        if artifact_id is not None:
            names.check_artifact_id(artifact_id)
        sharing = self._publishing.sharing
        source = take(body)
        try:
            record = self._record_for_writing()
            upload = Upload(
                source,
                record,
                progress,
                is_new=lambda size: self._is_new or sharing.is_likely_new(source, size),
                known=sharing.known(filename, record.chunker),
            )
            upload.anew = self._publishing.is_doubted(upload.digest)
            upload.filename = filename
            upload.relatives = relatives
            if artifact_id is None:
                artifact_id = names.new_artifact_id(upload.digest)
            elif names.digest_in(artifact_id) not in {None, upload.digest}:
                raise errors.invalid_artifact_id(
                    artifact_id, f"it names another content than these bytes, {upload.digest}"
                )
            ref = Ref(
                artifact_id=artifact_id,
                digest=upload.digest,
                size=upload.size,
                filename=filename,
                mimetype=mimetype,
                encoding=encoding,
                uploaded_at=datetime.now(UTC).isoformat(timespec="microseconds"),
                origin=None if origin is None else dict(origin),
            )
            encoded = ref.encode()
            if len(encoded) > _LARGEST_REF:
                raise ValueError(
                    f"The ref of {artifact_id} would have {len(encoded)} bytes, at most "
                    f"{_LARGEST_REF} are allowed: give a shorter filename, mimetype or origin"
                )
            name = names.ref(artifact_id)
            with contextlib.ExitStack() as beside:

                def keep() -> tuple[bytes, list[str]]:
                    kept = self._publishing.keep(upload)
                    if upload.manifest is not None:
                        sharing.tell(
                            upload.manifest, upload.cuts(), filename=filename, beside=beside
                        )
                    return encoded, [kept]

                self._publishing.send(keep, lambda body: self._publishing.write(name, body))
            source.finish(upload.size)
        finally:
            source.close()
        self._is_new = False
        if upload.anew:
            self._publishing.trust(upload.digest)
        upload.report(upload.size)
        if self._recall(artifact_id) is not None:
            self._remember(artifact_id, upload.digest)
        return artifact_id

    def is_fresh(self, artifact_id: str) -> bool:
        """Tell whether this process was told within the last hour that the ref is live."""
        return self._knowledge.is_fresh(names.ref(artifact_id))

    def remove(self, artifact_id: str) -> None:
        """Drop the ref of this id; a copy of it waits in the trash until garbage collection.

        The content stays as long as another ref leads to it. An artifact that Optuna stored as a
        plain object is deleted.

        Raises:
            ArtifactNotFound: There is neither a ref nor a plain object.
            ValueError: The id is refused.
        """
        names.check_artifact_id(artifact_id)
        self._read_record()  # it stops at a format that is not known here
        name = names.ref(artifact_id)
        self._knowledge.forget(name)
        self._remember(artifact_id, _REMOVED)
        body = self._read_ref(artifact_id)
        # Before anything is done: whoever may not ask is refused here.
        plain = self.backend.stat(artifact_id)
        if body is not None:
            # A fresh object: its own time in the backend is the time of the removal.
            self.backend.write(names.trashed_ref(artifact_id), io.BytesIO(body))
            self.backend.remove(name)
        if plain is not None:
            self.backend.remove(artifact_id)
        elif body is None:
            raise errors.not_found(artifact_id, self)

    # Reading

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Open the content of this artifact; every byte that it gives is verified.

        Raises:
            ArtifactNotFound: There is no such artifact.
            CorruptArtifact: The stored bytes are wrong; large contents raise it while being read.
            ValueError: The id is refused.
        """
        names.check_artifact_id(artifact_id)
        if (cached := self._open_cached(artifact_id)) is not None:
            return _buffered(cached)
        ref = self._find_ref(artifact_id)
        if ref is None:
            return self.backend.open_reader(artifact_id)  # a plain object of Optuna's
        if (cached := self._fetch(ref, None)) is not None:
            return _buffered(cached)
        pieces = self._pieces(ref)
        if self._is_small(ref):
            return io.BytesIO(next(pieces))
        return io.BufferedReader(reading.PieceReader(pieces), BUFFER_SIZE)

    def download(
        self,
        artifact_id: str,
        file_path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        link: files.Link | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Write an artifact to a file that is whole and verified, or absent.

        By default that is a private, writable copy. A link to the cache's file takes no room and no
        time, but what it leads to is shared by all who have one: it is read-only, and whoever
        writes to it all the same (after a chmod, or as root) changes it under the others. The next
        download notices and brings the right bytes anew; who has a link already keeps what was
        written. A symlink leads nowhere once the cache has evicted the content; a hard link keeps
        it, and its room on the disk, and when it is deleted the next download hashes once.

        Args:
            artifact_id: The id.
            file_path: The file to make; its folder exists.
            overwrite: Whether a file that exists is replaced, at once.
            link: "hard" or "symlink" for a link to the cache's file. Where none can be had (no
                cache, a content that passes it by, another file system, a file that another user
                put there, Windows) it is a private copy, and the log says why (INFO).
            progress: Called with the bytes that are there and the bytes in all.

        Raises:
            ArtifactNotFound: There is no such artifact.
            CorruptArtifact: The stored bytes are wrong.
            FileExistsError: The file exists.
            FileNotFoundError: Its folder does not.
            ValueError: The id is refused, or `link` is.
        """
        names.check_artifact_id(artifact_id)
        files.check_link(link)
        with files.publishing(file_path, overwrite=overwrite) as target:
            ref = None
            for _ in range(_MOST_COPIES):
                reader = self._open_cached(artifact_id)
                if reader is None and ref is None:
                    ref = self._find_ref(artifact_id)
                if reader is None and ref is not None:
                    reader = self._fetch(ref, progress)
                if reader is None:
                    break
                digest = _digest_of(ref) if ref is not None else self._noted_digest(artifact_id)
                try:
                    with reader:
                        if link and self._link(
                            digest, reader, file_path, link, overwrite=overwrite
                        ):
                            target.close()
                            size = os.fstat(reader.fileno()).st_size
                        else:
                            # Its last read tells whether somebody changed the file meanwhile.
                            size = files.copy(reader, target)
                except CorruptArtifact:
                    # The cache puts it aside when it is asked again.
                    target.seek(0)
                    target.truncate()
                    continue
                _report(progress, size, size)
                return
            else:
                ref = ref or self._find_ref(artifact_id)
            if link:
                _say_copied(file_path, link, "the cache does not have it")
            if ref is not None:
                self._bring(ref, files.Target(target), progress)
                return
            done = 0
            with self.backend.open_reader(artifact_id) as plain:
                while piece := plain.read(BUFFER_SIZE):
                    done += files.write(target, piece)
                    _report(progress, done, 0)

    def stat(self, artifact_id: str) -> Ref:
        """Return what is known of an artifact, without its bytes.

        Of one that Optuna stored as a plain object that is its size and its time.

        Raises:
            ArtifactNotFound: There is no such artifact.
            CorruptArtifact: Its ref is damaged.
            ValueError: The id is refused.
        """
        names.check_artifact_id(artifact_id)
        ref = self._find_ref(artifact_id)
        if ref is not None:
            return ref
        plain = self.backend.stat(artifact_id)
        if plain is None:
            raise errors.not_found(artifact_id, self)
        return Ref(
            artifact_id=artifact_id,
            digest=None,
            size=plain.size,
            filename=None,
            mimetype=None,
            encoding=None,
            uploaded_at=datetime.fromtimestamp(plain.modified, UTC).isoformat(),
        )

    def refs(self, *, damaged: Callable[[CorruptArtifact], None] | None = None) -> Iterator[Ref]:
        """Yield the ref of every artifact, in no order; each costs a request.

        What is uploaded or removed meanwhile may be missing. Artifacts that Optuna stored as plain
        objects have no ref.

        Args:
            damaged: Called for each ref that is damaged, instead of raising the first of them.

        Raises:
            CorruptArtifact: A ref is damaged.
            StoreMismatch: The store, or a ref, is of another format.
            UnsupportedOperation: The backend cannot list what it has (the class of `io`).
        """
        self._read_record()  # it stops at a format that is not known here
        for found in in_order(
            self._listed_ref, (entry.name for entry in self.backend.list(names.REFS))
        ):
            if isinstance(found, Ref):
                yield found
            elif found is not None:
                if damaged is None:
                    raise found
                damaged(found)

    # How a content is found

    def _where(self, ref: Ref) -> _Where:
        return {"digest": _digest_of(ref), "size": ref.size, "is_small": self._is_small(ref)}

    def _is_small(self, ref: Ref) -> bool:
        record = self._record[1] if self._record else self._read_record()
        limit = (record or StoreRecord(durable=True)).small_content_limit
        return ref.size <= limit

    def _bring(
        self,
        ref: Ref,
        target: reading.Target,
        progress: Progress | None,
        *,
        near: Iterable[reading.Near] = (),
    ) -> None:
        """Write a content to a file; it is verified when this returns."""
        with self._doubting(ref):
            manifest = reading.bring(
                self.backend,
                target,
                **self._where(ref),
                report=lambda done: _report(progress, done, ref.size),
                near=near,
            )
        if manifest is not None:
            self._publishing.sharing.note(manifest, filename=ref.filename)

    def _pieces(self, ref: Ref) -> Iterator[memoryview]:
        """Yield a content in order, verified."""
        with self._doubting(ref):
            yield from reading.content(self.backend, **self._where(ref))

    @contextlib.contextmanager
    def _doubting(self, ref: Ref) -> Iterator[None]:
        """Note which content reads wrong: to find its bytes live is no reason not to send them."""
        try:
            yield
        except CorruptArtifact:
            self._publishing.doubt(_digest_of(ref))
            raise

    def _find_ref(self, artifact_id: str) -> Ref | None:
        body = self._read_ref(artifact_id)
        if body is None:
            return None
        ref = Ref.decode(body, artifact_id, self.backend)
        if names.digest_in(artifact_id) not in {None, ref.digest}:
            raise CorruptArtifact(
                f"The ref of artifact {artifact_id!r} in {self.backend!r} leads to another content,"
                f" {ref.digest}. Nothing was delivered."
            )
        return ref

    def _listed_ref(self, name: str) -> Ref | CorruptArtifact | None:
        """Read what lies under a name in refs/; None if it was removed since it was listed."""
        where = f"{name} in {self.backend!r}"
        try:
            body = reading.record(self.backend, name, most=_LARGEST_REF)
            ref = Ref.decode_any(body, where)
        except errors.ArtifactNotFound:
            return None
        except CorruptArtifact as error:
            return error
        if names.ref(ref.artifact_id) != name:
            return CorruptArtifact(f"{where} says that it belongs to {ref.artifact_id!r}")
        if names.digest_in(ref.artifact_id) not in {None, ref.digest}:
            return CorruptArtifact(f"{where} leads to another content, {ref.digest}")
        return ref

    def _read_ref(self, artifact_id: str) -> bytes | None:
        try:
            return reading.record(self.backend, names.ref(artifact_id), most=_LARGEST_REF)
        except errors.ArtifactNotFound:
            return None

    # The cache

    def _open_cached(self, artifact_id: str) -> BinaryIO | None:
        """Open what the cache has for an id, without asking the backend."""
        digest = self._noted_digest(artifact_id)
        return None if self.cache is None or digest is None else self.cache.open(digest)

    def _noted_digest(self, artifact_id: str) -> str | None:
        """Return to which content an id leads if that is known here, without asking the backend."""
        if self.cache is None:
            return None
        # Where no note is known, the backend is asked, or the content is the one that the id names.
        # Of a removal that must be told at once; of anything else it is right anyway.
        noted = self._recall(artifact_id, exact=False)
        digest = names.digest_in(artifact_id) or noted
        return None if noted in {_REMOVED, _HEARSAY} else digest

    def _link(
        self,
        digest: str | None,
        reader: BinaryIO,
        file_path: str | os.PathLike[str],
        link: files.Link,
        *,
        overwrite: bool,
    ) -> bool:
        """Make the target a link to what was opened in the cache; False if none can be had."""
        try:
            if self.cache is None or digest is None:
                raise FileNotFoundError("the cache does not have it any more")
            self.cache.link(
                digest,
                reader,
                Path(file_path),
                symbolic=link == "symlink",
                overwrite=overwrite,
            )
        except FileExistsError:
            raise
        except OSError as error:
            _say_copied(file_path, link, error.strerror or str(error))
            return False
        return True

    def _fetch(self, ref: Ref, progress: Progress | None) -> BinaryIO | None:
        """Bring a content into the cache and open it there; None if the cache cannot have it."""
        if self.cache is None:
            return None
        digest = _digest_of(ref)
        # Looked for once, or else it counts as two misses.
        was_asked = self._noted_digest(ref.artifact_id) == digest
        reader = None if was_asked else self.cache.open(digest)
        if reader is None:
            reader = self.cache.fetch(
                digest,
                size=ref.size,
                fill=lambda slot: self._bring(ref, slot, progress, near=self._near(ref, slot)),
            )
            if reader is None:
                return None
            if not self._is_small(ref):
                self.cache.remember(_latest_of(ref), digest, at_once=False)
        noted = self._recall(ref.artifact_id)
        if noted != digest and (noted or names.digest_in(ref.artifact_id) is None):
            # Another process may have removed it after its ref was read here: that note stays.
            self._remember(ref.artifact_id, digest, at_once=False, unless=_REMOVED)
        return reader

    def _near(self, ref: Ref, slot: Slot) -> Iterator[reading.Near]:
        """Yield what lies near by and may have bytes of a content that is about to be fetched."""
        for left in slot.leftovers():
            yield reading.Near(left.read_at, extents=left.extents)
        if self.cache is None or self._is_small(ref):
            return
        known = {kept.digest: kept for kept in self._publishing.sharing.noted(ref.filename)}
        noted = self.cache.recall(_latest_of(ref))
        for digest in islice(dict.fromkeys([*known, *filter(None, [noted])]), _MOST_NEAR):
            file = None
            if digest != ref.digest and is_digest(digest):
                file = self.cache.open(digest, counted=False)
            if file is not None:
                with file:
                    manifest = known.get(digest) or self._publishing.sharing.read_manifest(digest)
                    if manifest is not None:
                        yield reading.Near(partial(_read_near, file), manifest.chunks)

    def _recall(self, artifact_id: str, *, exact: bool = True) -> str | None:
        if self.cache is None or not names.is_written_once(artifact_id):
            return None
        return self.cache.recall(names.ref(artifact_id), exact=exact)

    def _remember(
        self, artifact_id: str, note: str, *, at_once: bool = True, unless: str | None = None
    ) -> None:
        if self.cache is not None and names.is_written_once(artifact_id):
            self.cache.remember(names.ref(artifact_id), note, at_once=at_once, unless=unless)

    # The store's own record

    def _record_for_writing(self) -> StoreRecord:
        """Return what this store was made with, making it if there is none yet."""
        if self._record is not None and self.backend.remote:
            record: StoreRecord | None = self._record[1]
        else:
            record = self._read_record()
        if record is None:
            made = StoreRecord(durable=self.backend.durable).encode()
            self._is_new = self.backend.write_if_absent(names.STORE_RECORD, io.BytesIO(made))
            record = self._read_record()
        if record is None:
            raise StoreMismatch(
                f"{names.STORE_RECORD} was written to {self.backend!r} but cannot be read back; "
                "nothing is stored in a place that loses what it acknowledged."
            )
        if record.durable and not self.backend.durable:
            raise StoreMismatch(
                f"The store in {self.backend!r} promises that what was acknowledged survives a "
                "power cut; open it without durable=False, or make another one."
            )
        return record

    def _read_record(self) -> StoreRecord | None:
        try:
            body = reading.record(self.backend, names.STORE_RECORD, most=_LARGEST_REF)
        except errors.ArtifactNotFound:
            return None
        if self._record is None or self._record[0] != body:
            self._record = body, StoreRecord.decode(body, self.backend)
        return self._record[1]


class _Where(TypedDict):
    """What `reading` wants to know of a content."""

    digest: str
    size: int
    is_small: bool


def _say_copied(file_path: str | os.PathLike[str], link: files.Link, why: str) -> None:
    kind = "a symlink" if link == "symlink" else "a hard link"
    logger.info("%s is a private copy, not %s: %s", os.fspath(file_path), kind, why)


def _buffered(file: BinaryIO) -> BinaryIO:
    """Return a reader of a file of the cache that looks at it once for many lines, not for each."""
    return io.BufferedReader(cast("io.RawIOBase", file), _LINES_SIZE)


def _read_near(file: BinaryIO, buffer: memoryview, offset: int) -> int:
    """Read at an offset of a content near by; nothing if somebody has changed its file."""
    try:
        return files.read_at(file, buffer, offset)
    except CorruptArtifact:
        return 0


def _report(progress: Progress | None, done: int, size: int) -> None:
    if progress is not None:
        progress(done, size)


def _latest_of(ref: Ref) -> str:
    """Name what a cache notes of a file name: the content that came in last under it."""
    return f"latest/{digest_of(str(ref.filename).encode('utf-8', 'surrogatepass'))}"


def _digest_of(ref: Ref) -> str:
    if ref.digest is None:
        raise TypeError(f"{ref} is of a plain object and leads to no content")
    return ref.digest
