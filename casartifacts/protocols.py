"""The contracts between the floors, each stated once, here.

An `ArtifactStore` is what Optuna knows: three methods. Every store, backend and wrapper of ours
MUST keep these eight contracts; `casartifacts.testing` checks each of them, but for durability.

1. Whole or nothing. A reader sees all of a written body, or `ArtifactNotFound` when it is opened;
   once it is open it goes on in that body, or fails aloud. An overwrite that fails leaves the old
   body.
2. Read your write, from every process, as soon as `write` returns. On a file system it is durable
   too (the file, its folder and the parents of new folders are synced) unless made otherwise.
3. Writing the same bytes again under the same name is not an error.
4. Missing is loud and early: `open_reader` itself raises `ArtifactNotFound`, naming the id and the
   place.
5. Readers go forward; only `b""` is the end; a short read is not, and None is refused
   (`bodies.pieces`).
6. The body stays the caller's: it is read from where it stands to its end and never closed; a
   retry starts where the caller's stream stood; a body that cannot seek is spooled once. An error
   that the body raises, in any `read`, reaches the caller, and nothing is published.
7. Gone is gone: after `remove`, `open_reader` and a second `remove` raise `ArtifactNotFound` (but a
   `remove` that was retried after a lost answer has succeeded).
8. Threads and processes may use it at once, also after `fork` and through `pickle`.

A `Backend` keeps named bytes for a `ContentStore` and can do a little more. It knows nothing of
digests. Names are relative paths with forward slashes, of `[0-9A-Za-z._~-]` and `/`; others are
refused before the body is touched (`names.check_name`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

__all__ = ["ArtifactStore", "Backend", "Draft", "Drafting", "Entry"]


class ArtifactStore(Protocol):
    """The three methods of `optuna.artifacts`; the parameter names are API."""

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Open the artifact for reading; raises `ArtifactNotFound`."""
        ...

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Store all that `content_body` still has to give, replacing what was there."""
        ...

    def remove(self, artifact_id: str) -> None:
        """Remove the artifact; raises `ArtifactNotFound`."""
        ...


@dataclass(frozen=True, slots=True)
class Entry:
    """A name in a backend: its size in bytes and when it was last written.

    `modified` is in seconds since the epoch by the backend's clock; only a place without a server
    uses the machine's. A write sets it; a `write_if_absent` that wrote nothing does not.
    """

    name: str
    size: int
    modified: float


@runtime_checkable
class Backend(ArtifactStore, Protocol):
    """A place that keeps named bytes: what `ContentStore` stands on.

    `durable` tells whether an acknowledged write survives a power cut. `remote` tells whether a
    call costs a request: there, an answer is remembered for a while; elsewhere one asks again.
    """

    @property
    def durable(self) -> bool:
        """Whether an acknowledged write survives a crash of the machine."""
        ...

    @property
    def remote(self) -> bool:
        """Whether every call costs a round trip."""
        ...

    def stat(self, name: str) -> Entry | None:
        """Return what is under this name, or None; what is reported is as durable as a write."""
        ...

    def open_range(self, name: str, start: int, length: int) -> BinaryIO:
        """Open what is under a name to read `length` bytes from `start`; raises `ArtifactNotFound`.

        The reader ends earlier only where the bytes do. What it gives beyond `length` bytes is not
        said: ask for no more.
        """
        ...

    def write_if_absent(self, name: str, content_body: BinaryIO) -> bool:
        """Like `write`, but leave what is there alone; returns whether this call wrote it.

        If not, what is there is as durable as a write, and the body need not have been read.
        A backend that cannot tell may overwrite: callers only use it for names whose bytes are
        the same whoever writes them.
        """
        ...

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield all names that begin with `prefix` (`""` or ending in `/`), as they come.

        A remote place yields them in their order, so that a listing that broke off can go on.
        """
        ...

    def list_folders(self, prefix: str) -> Iterator[str]:
        """Yield the distinct next path components below `prefix` that have names below them."""
        ...

    def move(self, source: str, target: str) -> None:
        """Give the bytes another name, on the server's side; raises `ArtifactNotFound`.

        The target is whole before the source goes; an existing target is replaced.
        """
        ...


class Draft(Protocol):
    """Bytes that lie in a backend already and have no name yet."""

    def write(self, piece: bytes | memoryview) -> None:
        """Add bytes at the end."""
        ...

    def publish(self, name: str, *, replace: bool = False) -> bool:
        """Give the bytes a name, at once and as durably as a write; returns whether they got it.

        Without `replace`, a name that is taken is left alone, as by `write_if_absent`.
        """
        ...


@runtime_checkable
class Drafting(Protocol):
    """A backend, near by, that takes bytes before their name is known.

    So a content is cut, hashed and stored in one pass. Elsewhere a name comes first.
    """

    def draft(self) -> AbstractContextManager[Draft]:
        """Begin a draft; what was not published when the block ends is gone."""
        ...
