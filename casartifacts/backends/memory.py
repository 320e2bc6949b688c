"""The memory of this process as a place for named bytes: for tests, notebooks and dry runs.

What differs from the contracts: it ends with the process. Pickled and unpickled in the same
process it is the same place; another process refuses to unpickle it, because what it would find
there is not what was stored here.
"""

from __future__ import annotations

import io
import secrets
import time
import weakref
from typing import TYPE_CHECKING, BinaryIO

from casartifacts import errors
from casartifacts.bodies import pieces
from casartifacts.locks import lock_over_forks
from casartifacts.protocols import Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["MemoryArtifactStore"]

_lock = lock_over_forks()


class MemoryArtifactStore:
    """Keeps each artifact as bytes in this process."""

    durable = True  # as durable as the place itself: nothing is lost before the process ends
    remote = False

    def __init__(self) -> None:
        self._token = secrets.token_hex(16)
        self._named: dict[str, tuple[bytes, float]] = {}
        _places[self._token] = self

    def __repr__(self) -> str:
        return "MemoryArtifactStore()"

    def __reduce__(self) -> tuple[object, ...]:
        return _find_place, (self._token,)

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Open the bytes of this artifact."""
        return io.BytesIO(self._find(artifact_id)[0])

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Read the body to its end, then keep it."""
        body = b"".join(pieces(content_body))
        with _lock:
            self._named[artifact_id] = body, time.time()

    def write_if_absent(self, name: str, content_body: BinaryIO) -> bool:
        """Keep the body unless the name is taken."""
        if name in self._named:
            return False
        body = b"".join(pieces(content_body))
        with _lock:
            return self._named.setdefault(name, (body, time.time()))[0] is body

    def remove(self, artifact_id: str) -> None:
        """Forget the bytes of this artifact."""
        with _lock:
            if self._named.pop(artifact_id, None) is None:
                raise errors.not_found(artifact_id, self)

    def stat(self, name: str) -> Entry | None:
        """Look at a name."""
        found = self._named.get(name)
        return found and Entry(name, len(found[0]), found[1])

    def open_range(self, name: str, start: int, length: int) -> BinaryIO:  # noqa: ARG002 -- it just goes on
        """Open the bytes under a name and go to the start of the range."""
        reader = self.open_reader(name)
        reader.seek(start)
        return reader

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield the names below a prefix, in order."""
        with _lock:
            found = sorted(self._named.items())
        for name, (body, modified) in found:
            if name.startswith(prefix):
                yield Entry(name, len(body), modified)

    def list_folders(self, prefix: str) -> Iterator[str]:
        """Yield the next path components below a prefix, in order."""
        below = (entry.name[len(prefix) :].split("/") for entry in self.list(prefix))
        yield from dict.fromkeys(parts[0] for parts in below if len(parts) > 1)

    def move(self, source: str, target: str) -> None:
        """Give the bytes another name."""
        with _lock:
            if source not in self._named:
                raise errors.not_found(source, self)
            self._named[target] = self._named.pop(source)

    def _find(self, name: str) -> tuple[bytes, float]:
        try:
            return self._named[name]
        except KeyError:
            raise errors.not_found(name, self) from None


_places: weakref.WeakValueDictionary[str, MemoryArtifactStore] = weakref.WeakValueDictionary()


def _find_place(token: str) -> MemoryArtifactStore:
    place = _places.get(token)
    if place is None:
        raise RuntimeError(
            "A MemoryArtifactStore lives in the process that made it and cannot be sent to another;"
            " use a folder or a bucket to share artifacts between processes."
        )
    return place
