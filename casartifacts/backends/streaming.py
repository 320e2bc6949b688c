"""What the buckets have in common: names below a prefix, bodies for an SDK, streams as readers."""

from __future__ import annotations

import contextlib
import io
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from casartifacts import errors, names, parallel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casartifacts.bodies import Range
    from casartifacts.protocols import Backend

__all__ = [
    "CONNECTIONS",
    "Guarded",
    "Placed",
    "VersionedReader",
    "byte_range",
    "credentials_stay",
    "empty_range",
    "stream_reader",
]

CONNECTIONS = parallel.THREADS + 16
"""How many connections a client keeps: one for each thread of the pool, and some for the caller's.

What an SDK opens beyond its number it drops after one request, and opens anew for the next.
"""

# Small, so that larger reads go straight into the buffer of whoever reads.
_BUFFER_SIZE = 2**16

# 256 KiB: an SDK makes new memory for each read, which costs page faults above that.
_READ_SIZE = 2**18


@dataclass(frozen=True, slots=True)
class Placed:
    """Names below a prefix, which is empty or has no slash at its ends."""

    prefix: str

    def full_name(self, name: str) -> str:
        """Return what a name is called in the bucket; refuses what cannot be a name."""
        names.check_name(name)
        return self.below(name)

    def below(self, prefix: str) -> str:
        """Return what a prefix of names is called in the bucket."""
        return f"{self.prefix}/{prefix}" if self.prefix else prefix

    def name(self, full_name: str) -> str:
        """Return the name of what is called so in the bucket."""
        return full_name[len(self.prefix) + 1 :] if self.prefix else full_name


class Guarded(io.RawIOBase):
    """A body for an SDK, which may close it, and which wraps the errors that it raises.

    `len()` is the length of the body, so that it can be announced; `raised` is its own last error.
    """

    def __init__(self, body: Range) -> None:
        self._body = body
        self.raised: BaseException | None = None

    def __len__(self) -> int:
        return len(self._body)

    def readable(self) -> bool:
        """Say yes."""
        return True

    def seekable(self) -> bool:
        """Say yes."""
        return True

    def tell(self) -> int:
        """Return the position in the body."""
        return self._body.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a position of the body."""
        return self._body.seek(offset, whence)

    def read(self, size: int | None = -1) -> bytes:
        """Read from the body, keeping the error that it raises."""
        try:
            return self._body.read(size)
        except BaseException as error:
            self.raised = error
            raise

    def read_all(self) -> bytes:
        """Read what is left of the body."""
        return b"".join(iter(self.read, b""))

    @contextlib.contextmanager
    def errors_as_they_are(self) -> Iterator[None]:
        """Raise what the body raised, instead of what the SDK made of it."""
        try:
            yield
        except BaseException as error:
            if self.raised is not None and error is not self.raised:
                raise self.raised from error
            raise


def credentials_stay(backend: Backend) -> TypeError:
    """Make the error of a pickle that would come out with another identity."""
    return TypeError(
        f"{backend!r} cannot be pickled: its client was handed in, with other credentials than the "
        "settings of this machine give, and credentials do not travel. Set them in the environment "
        "or a profile, or make the store in the other process, as open_store does."
    )


def empty_range(backend: Backend, name: str) -> BinaryIO:
    """Open no bytes of an object, for which HTTP has no words; raises `ArtifactNotFound`."""
    if backend.stat(name) is None:
        raise errors.not_found(name, backend)
    return io.BytesIO()


def byte_range(start: int, end: int | None) -> str:
    """Return the HTTP header that asks for the bytes before `end`, or up to the last one."""
    return f"bytes={start}-" if end is None else f"bytes={start}-{end - 1}"


class VersionedReader(io.BufferedReader):
    """A forward reader that knows which version of its object it reads."""

    version: str | None


def stream_reader(stream: Any, version: str | None) -> BinaryIO:
    """Make a forward reader of a stream that has `read` and `close`."""
    reader = VersionedReader(_Forward(stream), _BUFFER_SIZE)
    reader.version = version
    return reader


class _Forward(io.RawIOBase):
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        piece = self._stream.read(min(len(buffer), _READ_SIZE))
        buffer[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()
