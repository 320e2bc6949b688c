"""Doing a few things at once: one bounded pool of threads for the whole process.

Hashing, chunking, file and network calls release the GIL; what is in flight is bounded, so memory
is bounded by the pool and not by the file.

Rule 1: what is done in parallel never starts anything in parallel itself: the pool would wait for
itself.
Rule 2: when a call leaves, nothing of it is still running: files may be closed behind it.
"""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["WORKERS", "in_order", "start"]

# 4-8 threads saturate boto3, which costs 2 ms of CPU per request under the GIL.
WORKERS = max(4, min(8, os.cpu_count() or 1))

# What hashes beside the workers that send; it must never wait for them.
_HASHERS = 2

_In = TypeVar("_In")
_Out = TypeVar("_Out")


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(WORKERS + _HASHERS, thread_name_prefix="casartifacts")


if hasattr(os, "register_at_fork"):
    # The child of a fork has the pool but not its threads.
    os.register_at_fork(after_in_child=_pool.cache_clear)


def start(function: Callable[[], _Out]) -> Future[_Out]:
    """Start one thing; the caller must wait for it."""
    return _pool().submit(function)


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
                running.append(_pool().submit(function, item))
                continue
            result = running.popleft().result()
            running.append(_pool().submit(function, item))
            yield result
        while running:
            yield running.popleft().result()
    finally:
        for future in running:
            future.cancel()
        for future in running:
            if not future.cancelled():
                future.exception()
