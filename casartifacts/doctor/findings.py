"""What is found, and in which words; and how long anybody waits for it."""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Finding", "amount", "classes_of", "told", "within"]

_T = TypeVar("_T")

# A server that needs longer for a few kilobytes is of no use to anybody who waits for it.
_PATIENCE_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found out about one thing, and what to do if it is not fine.

    A `warning` costs something; with what is `wrong`, something does not work.
    """

    about: str
    state: Literal["fine", "warning", "wrong"]
    found: str
    advice: str = ""


def within(call: Callable[[], _T]) -> _T:
    """Return what a call returns; raises `TimeoutError` if that takes too long."""
    answers: queue.SimpleQueue[tuple[_T, None] | tuple[None, BaseException]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put((call(), None))
        except BaseException as error:  # noqa: BLE001 -- raised again where it is waited for
            answers.put((None, error))

    # A daemon: what hangs in it does not keep the process.
    threading.Thread(target=run, name="doctor", daemon=True).start()
    try:
        answer, error = answers.get(timeout=_PATIENCE_SECONDS)
    except queue.Empty:
        raise TimeoutError(f"no answer in {_PATIENCE_SECONDS:g} s") from None
    if error is not None:
        raise error
    return answer  # type: ignore[return-value]


def told(error: BaseException) -> str:
    """Say in one line what an error says."""
    parts = [str(error) or type(error).__name__, *getattr(error, "__notes__", [])]
    return " ".join(" ".join(parts).split())


def classes_of(error: BaseException) -> set[str]:
    """Name the classes of an error."""
    return {parent.__name__ for parent in type(error).__mro__}


def amount(size: float) -> str:
    """Write a number of bytes for people."""
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:  # noqa: PLR2004 -- what makes the next unit
        del units[0]
        size /= 1024
    # Three digits, or all that there are before the point.
    return f"{size:.0f} {units[0]}" if size >= 10 else f"{size:.3g} {units[0]}"  # noqa: PLR2004
