"""Telling how far a transfer is: a bar, the caller's own function, or nothing.

Rule 1: tqdm is loaded only when somebody asks for its bar.
Rule 2: an error that the caller's function raises ends the transfer; that is how one cancels it.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Counted", "Report", "reporting"]

Report = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all, or 0 where nobody knows that."""


@contextlib.contextmanager
def reporting(progress: bool | Report | None, *, label: str) -> Iterator[Report | None]:  # noqa: FBT001 -- it is the caller's `progress=`, passed on
    """Yield the function to tell how far it is, None if nobody wants to know.

    Raises:
        TypeError: `progress` is neither True, False, None nor a function.
    """
    if progress is None or progress is False:
        yield None
    elif callable(progress):
        yield progress
    elif progress is True:
        from tqdm.auto import tqdm

        with tqdm(desc=label, unit="B", unit_scale=True, unit_divisor=1024) as bar:

            def report(done: int, total: int) -> None:
                bar.total = total or None
                # A retry that begins again takes the bar back with it.
                bar.update(done - bar.n)

            yield report
    else:
        raise TypeError(
            f"progress must be True (a bar), a function (bytes done, bytes in all) or None, "
            f"got {progress!r}"
        )


class Counted(io.RawIOBase):
    """A body that reports how much of it was read, for stores that cannot tell themselves.

    Wrap it in an `io.BufferedReader`; closing that leaves the body open.
    """

    def __init__(self, body: BinaryIO, *, report: Report, total: int) -> None:
        self._body = body
        self._report = report
        self._total = total
        self._done = 0

    def readable(self) -> bool:
        """Say yes."""
        return True

    def seekable(self) -> bool:
        """Tell whether the body can seek."""
        return self._body.seekable()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a position of the body, which is how far it is from then on."""
        self._done = self._body.seek(offset, whence)
        return self._done

    def tell(self) -> int:
        """Return the position in the body."""
        return self._body.tell()

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override] # any buffer, says typeshed
        """Read the next bytes and report them."""
        piece = self._body.read(len(buffer))
        buffer[: len(piece)] = piece
        self._done += len(piece)
        self._report(self._done, self._total)
        return len(piece)
