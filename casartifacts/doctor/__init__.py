"""What a set-up can do, found out by trying it: one finding for each thing, and what to do.

    this file   `examine`: all of it, in order
    machine     programs, temporary files, the cache's folder
    place       the store: each right, what a server does differently, its record
    disks       where a folder lies
    findings    `Finding`, words, patience

Rule 1: nothing is left behind, no store and no cache is made.
Rule 2: a question is asked once, and is answered within some seconds or not at all.
Rule 3: nothing is printed here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from casartifacts.doctor import machine
from casartifacts.doctor.findings import Finding, within
from casartifacts.doctor.place import not_opened, store_in
from casartifacts.opening import node_cache, open_backend

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Finding", "examine"]


def examine(url: str, *, cache: str | bool | None = None) -> Iterator[Finding]:
    """Examine a set-up and yield what is found, as it is found.

    Args:
        url: The store, as for `open_store`.
        cache: The folder of the cache, True for the node's, False for none; by default what
            `open_store` makes of it.

    Raises:
        ValueError: The URL is of a kind that is not known here.
    """
    backend, failure = None, None
    try:
        backend = within(lambda: open_backend(url))
    except Exception as error:  # noqa: BLE001 -- whatever it is, it is a finding
        failure = not_opened(url, error)
    yield from machine.programs()
    yield from machine.temporary_files()
    if failure is not None:
        yield failure
    if backend is not None:
        yield from store_in(backend, url=url)
    if cache is None:
        cache = backend.remote if backend is not None else True
    yield from machine.cache_in(node_cache() if cache is True else cache)
