"""Content-defined chunking: where a content is cut, so that equal stretches become equal chunks.

The algorithm is FastCDC 2020 (Xia et al., "The Design of Fast Content-Defined Chunking for Data
Deduplication Based Storage Systems", IEEE TPDS 31(9)), as pyfastcdc implements it with the gear
table of the authors' reference code. Where its compiled wheel is missing, fixed cuts are used: the
pure Python fallback of pyfastcdc makes 10 MiB/s.

Rule 1: pure; bytes in, lengths out. Files, threads and digests are somebody else's.
Rule 2: where a chunk ends depends on its own bytes, the one or two after it, and the next cut point
alone, not on how the content was handed in. One that the guide knows ends where it did.
Rule 3: a change of the parameters costs sharing with older contents, never a byte: every manifest
carries its own table.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["ChunkerParameters", "Cutter", "Guide", "is_compiled"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ChunkerParameters:
    """How contents are cut; sizes in bytes.

    The mean is about minimum + average, 96 KiB: 36 bytes of chunk table are 0.04 % of it. A part of
    a file has cut points of its own from `minimum` on.
    """

    # What chunk tables alone save of series of files (`tools/savings`; KiB), where it differs:
    #   minimum, average                          16, 32   32, 64   64, 128   128, 256   256, 1024
    #   10 x 256 MiB, 10.2 % new, times the ideal  1.02     1.03      1.07      1.13       1.52
    #   LightGBM continued, %                      70.4     70.4      67.6      67.4       50.6
    #   growing CSV, % (at most 81.8)              81.7     81.6      81.3      80.9       77.9
    #   .npy with inserted rows, %                 86.0     85.2      83.8      80.8       70.2
    #   chunks per MiB                             24       12        6         3          0.8
    #   cut and hash 256 MiB, one thread, ms                169       151       155
    # Without cut points, and with them: a growing history in the file 84.3 and 86.7 %, LoRA in a
    # full state dict 77.8 and 80.1, other file names 73.0 and 74.9. From which size on a part has
    # them, 4 to 256 KiB, makes 0.2 % there; at 4 there are half as many segments again.
    # Normalization 2 and 3 save less for more chunks: 1.04 and 1.07 times the ideal at 16, 64.
    algorithm: str = "fastcdc-2020"
    minimum: int = 32 * 2**10
    average: int = 64 * 2**10
    maximum: int = 2**20
    normalization: int = 1


class Guide(Protocol):
    """Is shown each chunk of a content in order, and may know where the next ones end."""

    def go_on(self, rest: memoryview) -> list[int]:
        """Return the lengths of the chunks that are known to begin these bytes, perhaps none."""

    def note(self, chunk: memoryview) -> bool:
        """Take a chunk that was cut; returns whether it is time to ask how it goes on."""

    def undo(self) -> None:
        """Take back the chunk that came last: it ends elsewhere."""


class Cutter:
    """Cuts one content that is handed in window by window.

    Args:
        parameters: How to cut; a window that is not the last must be longer than its `maximum`.
        guide: Is shown the chunks, and asked for those that it knows.
        points: Offsets in the content, in order, at each of which a chunk ends.
    """

    def __init__(
        self, parameters: ChunkerParameters, guide: Guide, points: Sequence[int] = ()
    ) -> None:
        self._lengths = _fastcdc(parameters) or _fixed(parameters)
        self._guide = guide
        self._points = points
        self._next = 0  # the index of the first point that is still ahead
        self._offset = 0  # where in the content the next window begins

    def cut(self, window: memoryview, *, is_last: bool) -> list[int]:
        """Return the lengths of the chunks at the beginning of this window.

        What follows them is not decided yet: the next window begins with it. The last window is
        cut to its end.
        """
        lengths: list[int] = []
        begin, window_end = self._offset, self._offset + len(window)
        while self._next < len(self._points) and self._points[self._next] <= window_end:
            end = self._points[self._next]
            lengths += self._cut(window[begin - self._offset : end - self._offset])
            begin = end
            self._next += 1
        rest = window[begin - self._offset :]
        if rest:
            lengths += self._cut(rest)
            if not is_last:
                lengths.pop()  # it ends where the window ends, which says nothing
                self._guide.undo()
        self._offset += sum(lengths)
        return lengths

    def _cut(self, piece: memoryview) -> list[int]:
        """Cut all of a piece."""
        lengths: list[int] = []
        at = 0
        while at < len(piece):
            lengths += (known := self._guide.go_on(piece[at:]))
            at += sum(known)
            rest = piece[at:]
            for length in self._lengths(rest) if rest else ():
                lengths.append(length)
                at += length
                if self._guide.note(piece[at - length : at]):
                    break
        return lengths


def is_compiled() -> bool:
    """Tell whether contents are cut by what is in them; else they are cut at fixed offsets."""
    return _compiled_fastcdc() is not None


def _fastcdc(parameters: ChunkerParameters) -> Callable[[memoryview], Iterator[int]] | None:
    make = _compiled_fastcdc()
    if make is None or parameters.algorithm != "fastcdc-2020":
        return None
    # One object is not for concurrent use, so every content has its own.
    chunker = make(
        parameters.average,
        min_size=parameters.minimum,
        max_size=parameters.maximum,
        normalized_chunking=parameters.normalization,
    )
    return lambda window: (chunk.length for chunk in chunker.cut_buf(window))


def _fixed(parameters: ChunkerParameters) -> Callable[[memoryview], Iterator[int]]:
    size = parameters.minimum + parameters.average
    return lambda window: (min(size, len(window) - at) for at in range(0, len(window), size))


@cache
def _compiled_fastcdc() -> Any | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pyfastcdc's own warning; ours says what follows from it
        try:
            from pyfastcdc.cy import FastCDC
        except ImportError:
            _logger.warning(
                "pyfastcdc has no compiled part on this machine: contents are cut at fixed "
                "offsets, so shifted content is not recognised. Equal files still are."
            )
            return None
    return FastCDC
