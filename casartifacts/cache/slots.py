"""A content on its way in: a file to fill, beside the contents, that publishes itself or is gone.

Rule 1: correctness rests on no lock: a file name of its own, verified, renamed into place. Its lock
only tells others that its owner lives.
Rule 2: whoever fills a slot learns what goes wrong, as `CacheUnavailable`.
Rule 3: what an interrupted one had filled is for the next one to copy from, chunk by chunk, after
verifying it. It is never gone on with in its place: its owner may live after all.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from typing import TYPE_CHECKING, BinaryIO

from casartifacts.cache import folder as places
from casartifacts.cache.failures import CacheUnavailable, WrongError
from casartifacts.cache.trust import settle

if TYPE_CHECKING:
    import io
    from collections.abc import Callable, Iterator

    from casartifacts.cache.trust import Stamp

__all__ = ["LEAST_KEPT", "Leftover", "Slot", "marked"]

# What an interrupted attempt has filled is kept from this size on: below, a fetch is one request.
LEAST_KEPT = 2**20

_LOCK_TRIES = 100


class Leftover:
    """What was filled with the same content before, by somebody who did not get to its end."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self.extents = tuple(places.extents(file.fileno()))
        """Where something was written, as begin and end in bytes; none of it is verified."""

    def read_at(self, buffer: memoryview, offset: int) -> int:
        """Read into a buffer; returns how much there was."""
        return os.preadv(self._file.fileno(), [buffer], offset)


class Slot:
    """Room for one content: a file to fill, which publishes itself or is gone.

    Made by `ArtifactCache.admit`. Several threads may write to it.
    """

    def __init__(
        self,
        folder: str,
        leftovers: list[str],
        *,
        digest: str,
        size: int,
        take_in: Callable[[Slot], io.FileIO],
    ) -> None:
        self._folder = folder
        self.digest = digest
        self.size = size
        self._leftovers = leftovers
        self._take_in = take_in
        # No write may fall on a descriptor that was closed and given to another file meanwhile.
        self._lock = threading.Lock()
        # What it is when it is published.
        self.stamp: Stamp | None = None
        self.path, self._descriptor = _make_locked(folder, digest, size=size)
        _living.add(self)

    def fileno(self) -> int:
        """Return the descriptor of the file, for reading and writing."""
        if self._descriptor < 0:
            raise ValueError("The slot is closed: it was published, or its block has ended")
        return self._descriptor

    def leftovers(self) -> Iterator[Leftover]:
        """Yield what is left of earlier attempts; each is deleted when the next one is asked for.

        Raises:
            CacheUnavailable: The disk fails.
        """
        while self._leftovers:
            path = self._leftovers.pop()
            try:
                with places.open_content(path) as file:
                    yield Leftover(file)
                os.unlink(path)
            except (WrongError, FileNotFoundError):
                pass  # somebody made room
            except OSError as error:
                raise CacheUnavailable("its files cannot be read") from error

    def write_at(self, piece: bytes | bytearray | memoryview, offset: int) -> None:
        """Write all of a piece at an offset.

        Raises:
            CacheUnavailable: The disk is full, or the piece is outside the room that was made.
        """
        with memoryview(piece).cast("B") as rest, self._lock:
            if offset < 0 or offset + len(rest) > self.size:
                raise CacheUnavailable("a content was longer than announced") from ValueError(
                    f"{len(rest)} bytes at {offset} do not fit into {self.size} bytes"
                )
            done = 0
            try:
                while done < len(rest):
                    done += os.pwrite(self.fileno(), rest[done:], offset + done)
            except OSError as error:
                raise CacheUnavailable("its files cannot be written") from error

    def read_at(self, buffer: memoryview, offset: int) -> int:
        """Read what was written back into a buffer; returns how much there was.

        Raises:
            CacheUnavailable: The disk fails.
        """
        with self._lock:
            try:
                return os.preadv(self.fileno(), [buffer], offset)
            except OSError as error:
                raise CacheUnavailable("its files cannot be read") from error

    def publish(self) -> BinaryIO:
        """Make the content, which the caller has verified, part of the cache, and open it.

        Raises:
            CacheUnavailable: It is not whole, or the cache cannot take it.
        """
        with self._lock:
            try:
                length = os.fstat(self.fileno()).st_size
                if length != self.size:
                    raise CacheUnavailable("a content was not written whole") from ValueError(
                        f"expected {self.size} bytes, {length} were written"
                    )
                places.close_content(self.fileno(), self._folder)
                self.stamp = settle(self.fileno())
            except OSError as error:
                raise CacheUnavailable("its files cannot be written") from error
            file = self._take_in(self)
        self.close()
        for path in self._leftovers:
            with contextlib.suppress(OSError):
                os.unlink(path)
        return file

    def let_go(self) -> None:
        """Leave the file to the process that made it, with its lock, after a fork."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def close(self, *, keep: bool = False) -> None:
        """Delete the file unless it was published, or is worth going on from and is to be kept."""
        with self._lock:
            descriptor, self._descriptor = self._descriptor, -1
            if descriptor >= 0:
                with contextlib.suppress(OSError):
                    if not keep or os.fstat(descriptor).st_size < LEAST_KEPT:
                        os.unlink(self.path)
                os.close(descriptor)


@contextlib.contextmanager
def marked(folder: str, digest: str, path: str) -> Iterator[None]:
    """Leave an empty file of a dead process's if the block does not get to its end.

    Whoever makes room next knows by it that a file may lie in this path, among the contents, that
    has no row. It is entered in a transaction, as a slot is made in one, and left after that.
    """
    mark, descriptor = _make_locked(folder, digest, size=0)
    is_done = False
    try:
        yield
        is_done = True
    finally:
        if is_done or not os.path.lexists(path):
            with contextlib.suppress(OSError):
                os.unlink(mark)
        os.close(descriptor)


def _make_locked(folder: str, digest: str, *, size: int) -> tuple[str, int]:
    path, descriptor = places.make_filling(folder, digest, size=size)
    # Who asks whether a file is locked holds it for some microseconds.
    for _ in range(_LOCK_TRIES):
        if places.lock(descriptor) is not False:
            break
        time.sleep(0.001)
    return path, descriptor


_living: weakref.WeakSet[Slot] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    # Else the lock would last as long as the child, and who has died would seem to live.
    for slot in list(_living):
        slot.let_go()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
