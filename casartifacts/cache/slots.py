"""A content on its way in: a file to fill, beside the contents, that publishes itself or is gone.

Rule 1: correctness rests on no lock: a file name of its own, verified, renamed into place. Its lock
only tells others that its owner lives.
Rule 2: whoever fills a slot learns what goes wrong, as `CacheUnavailable`.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING, BinaryIO

from casartifacts.cache import folder as places
from casartifacts.cache.failures import CacheUnavailable
from casartifacts.cache.trust import settle

if TYPE_CHECKING:
    import io
    from collections.abc import Callable

__all__ = ["Slot"]


class Slot:
    """Room for one content: a file to fill, which publishes itself or is gone.

    Made by `ArtifactCache.admit`. Several threads may write to it.
    """

    def __init__(
        self, folder: str, *, digest: str, size: int, take_in: Callable[[Slot], io.FileIO]
    ) -> None:
        self._folder = folder
        self.digest = digest
        self.size = size
        self._take_in = take_in
        # No write may fall on a descriptor that was closed and given to another file meanwhile.
        self._lock = threading.Lock()
        self.path, self._descriptor = places.make_filling(folder, digest, size=size)
        places.lock(self._descriptor)

    def fileno(self) -> int:
        """Return the descriptor of the file, for reading and writing."""
        if self._descriptor < 0:
            raise ValueError("The slot is closed: it was published, or its block has ended")
        return self._descriptor

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
                settle(self.fileno())
            except OSError as error:
                raise CacheUnavailable("its files cannot be written") from error
            file = self._take_in(self)
        self.close()
        return file

    def close(self) -> None:
        """Delete the file unless it was published."""
        with self._lock:
            descriptor, self._descriptor = self._descriptor, -1
            if descriptor >= 0:
                os.close(descriptor)
                with contextlib.suppress(OSError):
                    os.unlink(self.path)
