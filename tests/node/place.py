"""A backend far away: each byte takes its time, and what is asked for is written down."""

from __future__ import annotations

import io
import json
import os
import time
from typing import TYPE_CHECKING, BinaryIO

from casartifacts import FileSystemArtifactStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["FarAway"]


class FarAway(FileSystemArtifactStore):
    """A folder that behaves as a bucket does.

    Args:
        base_path: The folder.
        log: Where each stretch of a blob that is asked for is written down, by any process.
        seconds_per_mib: How long a MiB takes.
    """

    def __init__(
        self, base_path: str | os.PathLike[str], *, log: Path, seconds_per_mib: float = 0.0
    ) -> None:
        super().__init__(base_path, durable=False)
        self.remote = True
        self.log = log
        self.seconds_per_mib = seconds_per_mib

    def open_range(self, name: str, start: int, length: int) -> BinaryIO:
        """Open a stretch of a blob."""
        reader = super().open_range(name, start, length)
        return io.BufferedReader(_Slow(self, name, (start, length), reader), 2**18)

    def asked(self) -> Iterator[tuple[str, int, int]]:
        """Yield what was read of blobs, by any process: name, where it begins, bytes."""
        if self.log.exists():
            for line in self.log.read_text().splitlines():
                name, start, length = json.loads(line)
                yield name, start, length

    def bytes_read(self) -> int:
        """Return how many bytes of blobs were read, by all processes."""
        return sum(length for _, _, length in self.asked())

    def note(self, name: str, start: int, length: int) -> None:
        """Write down what was read: appends of a line are whole."""
        descriptor = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(descriptor, json.dumps([name, start, length]).encode() + b"\n")
        finally:
            os.close(descriptor)


class _Slow(io.RawIOBase):
    def __init__(
        self, place: FarAway, name: str, stretch: tuple[int, int], reader: BinaryIO
    ) -> None:
        self._place = place
        self._name = name
        self._at, self._left = stretch
        self._reader = reader

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        piece = self._reader.read(min(len(buffer), self._left))
        self._left -= len(piece)
        buffer[: len(piece)] = piece
        self._place.note(self._name, self._at, len(piece))
        self._at += len(piece)
        time.sleep(self._place.seconds_per_mib * len(piece) / 2**20)
        return len(piece)

    def close(self) -> None:
        self._reader.close()
        super().close()
