"""Any object with Optuna's three methods as a place for named bytes.

What such an object promises differs from one to the next, so little is asked of it: that what is
written whole comes back. The rest is made here, by reading:

- What `write` hands on was read to its end before (spooled, on disk above 1 MiB): an error of the
  caller's body touches nothing, and the object may close, rewind and measure what it gets.
- Names are flat, because Optuna's own file store makes no folders: `blobs/aa/x` is `blobs=aa=x`.
- Missing is asked for by opening, before a `remove` too: some objects remove nothing in silence.
- `stat` reads to the end where the reader cannot seek; when it was written nobody knows (0.0).
- There are no listings, so no collection: they raise `io.UnsupportedOperation`.

What cannot be made here is declared: an object that writes in place shows half a body to readers
while it works, and after a crash; two that write the same absent name may both be told that they
did. A `ContentStore` notices the first by size and digest, and is not harmed by the second.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from typing import TYPE_CHECKING, BinaryIO, NoReturn

from casartifacts import errors, names
from casartifacts.bodies import spooled
from casartifacts.buffers import BUFFER_SIZE
from casartifacts.protocols import Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _typeshed import WriteableBuffer

    from casartifacts.protocols import ArtifactStore

__all__ = ["ForeignBackend"]

# `=` stands for `/`: no name of ours contains it, and files, S3, GCS and shells take it as it is.
_LOOKS_FLAT = re.compile(rf"=*(?:{'|'.join(map(re.escape, sorted(names.FOLDERS)))})=", re.DOTALL)


class ForeignBackend:
    """Keeps named bytes in an object that has `open_reader`, `write` and `remove`.

    Args:
        store: The object. It raises `ArtifactNotFound` when it opens what is missing.
    """

    durable = False  # nobody knows
    remote = True  # nobody knows; a question may cost a whole read

    def __init__(self, store: ArtifactStore) -> None:
        self.store = store

    def __repr__(self) -> str:
        return f"ForeignBackend({self.store!r})"

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Open what lies under the flat name, as a reader that has all methods of one."""
        try:
            reader = self.store.open_reader(flat_name(artifact_id))
        except errors.ArtifactNotFound as error:
            raise errors.not_found(artifact_id, self) from error
        if isinstance(reader, io.BufferedReader | io.BytesIO):
            return reader
        return io.BufferedReader(_Forward(reader), BUFFER_SIZE)

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Read the body to its end, then hand a copy on."""
        with spooled(content_body) as spool:
            self.store.write(flat_name(artifact_id), spool)

    def write_if_absent(self, name: str, content_body: BinaryIO) -> bool:
        """Write unless the name is there when asked before."""
        with contextlib.suppress(errors.ArtifactNotFound):
            self.open_reader(name).close()
            return False
        self.write(name, content_body)
        return True

    def remove(self, artifact_id: str) -> None:
        """Remove what can be opened."""
        self.open_reader(artifact_id).close()
        try:
            self.store.remove(flat_name(artifact_id))
        except errors.ArtifactNotFound as error:
            raise errors.not_found(artifact_id, self) from error

    def stat(self, name: str) -> Entry | None:
        """Measure what lies under a name, by reading it unless its reader can seek."""
        with contextlib.suppress(errors.ArtifactNotFound), self.open_reader(name) as reader:
            if reader.seekable():
                return Entry(name, reader.seek(0, os.SEEK_END), 0.0)
            size = 0
            while piece := reader.read(BUFFER_SIZE):
                size += len(piece)
            return Entry(name, size, 0.0)
        return None

    def open_range(self, name: str, start: int, length: int) -> BinaryIO:  # noqa: ARG002 -- it just goes on
        """Open what lies under the flat name and read forward to the range."""
        reader = self.open_reader(name)
        try:
            if reader.seekable():
                reader.seek(start)
            else:
                while start and (passed := len(reader.read(min(start, BUFFER_SIZE)))):
                    start -= passed
        except BaseException:
            reader.close()
            raise
        return reader

    def list(self, prefix: str) -> Iterator[Entry]:
        """Refuse: three methods do not tell what is there."""
        self._refuse_to_list(prefix)

    def list_folders(self, prefix: str) -> Iterator[str]:
        """Refuse: three methods do not tell what is there."""
        self._refuse_to_list(prefix)

    def move(self, source: str, target: str) -> None:
        """Read, write, measure, and only then remove."""
        with self.open_reader(source) as reader:
            if source == target:
                return
            with spooled(reader) as spool:
                size = spool.seek(0, os.SEEK_END)
                spool.seek(0)
                self.store.write(flat_name(target), spool)
        found = self.stat(target)
        if found is None or found.size != size:
            raise OSError(
                f"moving {source!r} to {target!r} in {self!r}: {size} bytes were written, but"
                f" {found} came back; {source!r} stays, try again"
            )
        self.remove(source)

    def _refuse_to_list(self, prefix: str) -> NoReturn:
        raise io.UnsupportedOperation(
            f"{self!r} cannot list what is below {prefix!r}, so nothing can be collected or counted"
            " there: an artifact store has open_reader, write and remove only. Use a backend of"
            " casartifacts on the same folder or bucket."
        )


def flat_name(name: str) -> str:
    """Return the name without folders under which a name of ours is kept.

    What is not in a folder of ours is the id of an artifact that somebody stored before, and is
    looked for as it is, with its own slashes; only if it looks like a flat name, another `=` before
    it keeps the two apart.
    """
    folder, slash, _ = name.partition("/")
    if slash and folder in names.FOLDERS:
        return name.replace("/", "=")
    return f"={name}" if _LOOKS_FLAT.match(name) else name


class _Forward(io.RawIOBase):
    """Makes a whole reader of one that may have nothing but `read` and `close`."""

    def __init__(self, reader: BinaryIO) -> None:
        self._reader = reader

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        room = memoryview(buffer).cast("B")
        piece = self._reader.read(len(room))
        room[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._reader.close()
