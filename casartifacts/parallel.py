"""Doing a few things at once: one bounded pool of threads for the whole process.

Hashing, chunking, file and network calls release the GIL; what is in flight is bounded, so memory
is bounded by the pool and not by the file.

Rule 1: what is done in parallel never starts anything in parallel itself: the pool would wait for
itself.
Rule 2: when a call leaves, nothing of it is still running: files may be closed behind it.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache, partial
from typing import TYPE_CHECKING, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["QUESTIONS", "THREADS", "WORKERS", "Beside", "in_order"]

_VARIABLE = "CASARTIFACTS_WORKERS"
_MOST_WORKERS = 256


def _workers() -> int:
    """Return how many transfers of one process are under way at once.

    4-8 threads saturate boto3, which costs 2 ms of CPU per request under the GIL; who has a faster
    link or many processes on a node says another number.
    """
    given = os.environ.get(_VARIABLE)
    if not given:
        return max(4, min(8, os.cpu_count() or 1))
    if not given.isdecimal() or not 1 <= int(given) <= _MOST_WORKERS:
        raise ValueError(f"{_VARIABLE} must be a number from 1 to {_MOST_WORKERS}, got {given!r}")
    return int(given)


WORKERS = _workers()

# What hashes beside the workers that send; it must never wait for them.
_HASHERS = 2

QUESTIONS = 16
"""How many questions are asked at once: they wait for a round trip and move next to nothing."""

THREADS = max(WORKERS, QUESTIONS) + _HASHERS
"""How many threads the pool has at most."""

_here = threading.local()

_In = TypeVar("_In")
_Out = TypeVar("_Out")


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(
        THREADS,
        thread_name_prefix="casartifacts",
        initializer=lambda: setattr(_here, "is_worker", True),
    )


def _begin(function: Callable[[], _Out]) -> Future[_Out]:
    """Let the pool do it; in the last moments of a process, when no thread begins, do it here."""
    try:
        return _pool().submit(function)
    except RuntimeError as error:
        if "cannot schedule" not in str(error):
            raise  # no thread could be made, but what waits in the pool may do it yet
        # The pool did not take it: this is an upload in an `atexit` handler.
        done: Future[_Out] = Future()
        try:
            done.set_result(function())
        except BaseException as failure:  # noqa: BLE001 -- raised by who asks for the result
            done.set_exception(failure)
        return done


def _wait(futures: Iterable[Future[_Out]]) -> None:
    """Wait for what has begun; not in the pool itself.

    There the garbage collector may close a generator that somebody dropped, in the midst of a task
    that this would wait for.
    """
    begun = [future for future in futures if not future.cancel()]
    if not getattr(_here, "is_worker", False):
        wait(begun)


if hasattr(os, "register_at_fork"):
    # The child of a fork has the pool but not its threads.
    os.register_at_fork(after_in_child=_pool.cache_clear)


class Beside:
    """One thing after another, beside the caller; when the block ends, nothing is under way."""

    def __init__(self) -> None:
        self._running: Future[object] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._running is not None and not getattr(_here, "is_worker", False):
            wait([self._running])

    def begin(self, function: Callable[[], object]) -> None:
        """Begin the next thing when the one before has ended."""
        self.end()
        self._running = _begin(function)

    def end(self) -> None:
        """Wait for what was begun last, and raise what it raised."""
        if self._running is None:
            return
        # An exception of a signal handler may end the waiting: what runs is noted until it ends.
        wait([self._running])
        running, self._running = self._running, None
        running.result()


def in_order(
    function: Callable[[_In], _Out], items: Iterable[_In], *, ahead: int = WORKERS
) -> Iterator[_Out]:
    """Yield `function(item)` for each item in order, working on at most `ahead` at once.

    That many are under way while a generator of items makes the next, and while a result is used.
    The first error (of an item or of the items) is raised after everything that was started has
    ended.
    """
    running: deque[Future[_Out]] = deque()
    try:
        for item in items:
            if len(running) < ahead:
                running.append(_begin(partial(function, item)))
                continue
            wait([running[0]])
            result = running.popleft().result()
            running.append(_begin(partial(function, item)))
            yield result
        while running:
            wait([running[0]])
            yield running.popleft().result()
    finally:
        _wait(running)
