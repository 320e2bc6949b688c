"""What the cache says of itself: what happened in this process, and in its folder by all processes.

Each process has a small file of numbers in the folder, which it overwrites in place at each change.
It is locked as long as its owner lives; whose owner is dead is taken over by the next process that
needs one, which counts on from what stands there. So a hit waits for nobody, nothing is counted
twice or lost when a process is killed, and there are no more files than processes lived at once.

Rule 1: each process counts its own, from zero after a fork.
Rule 2: what cannot be noted in the folder is counted in the process all the same; it fails nothing.
Rule 3: a file that is no whole record of ours counts as nothing, and is not written to; nor is one
of another user's, which is added up as he left it.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
import threading
import time
import weakref
import zlib
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from casartifacts.cache import folder as places
from casartifacts.cache.trust import is_own

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MOST_BYTES", "Counters", "Counting", "drop_broken", "totals"]


@dataclass
class Counters:
    """What happened, since a cache object was made or since a folder was.

    Attributes:
        hits: Contents that were found here.
        misses: Contents that were not; one that somebody else then brought in is a hit, too.
        bytes_served: Bytes of the hits.
        bytes_fetched: Bytes of the contents that came in.
        waits: How often somebody else's fetch of a content was waited for.
        evictions: Contents that went to make room.
        heals: Contents that turned out wrong and were put aside.
    """

    hits: int = 0
    misses: int = 0
    bytes_served: int = 0
    bytes_fetched: int = 0
    waits: int = 0
    evictions: int = 0
    heals: int = 0

    def add(self, more: Counters) -> None:
        """Count what happened besides."""
        # Spelled out: it takes part in each hit, and a loop over the names takes 2 us.
        self.hits += more.hits
        self.misses += more.misses
        self.bytes_served += more.bytes_served
        self.bytes_fetched += more.bytes_fetched
        self.waits += more.waits
        self.evictions += more.evictions
        self.heals += more.heals


# Mark and numbers, then a CRC-32 of both: 68 bytes. Another set of counters needs another mark.
_RECORD = struct.Struct(f"<8s{len(fields(Counters))}Q")
_MARK = b"casCnt1\n"
_RECORD_SIZE = _RECORD.size + 4

# What the files of all processes can take.
MOST_BYTES = places.MOST_COUNTERS * _RECORD_SIZE

# Larger numbers are of somebody who wants the sum to overflow.
_LARGEST = 2**56

# A record that is read while it is overwritten may be half old and half new.
_READS = 3

# So often a process looks whether its file still has its name, or tries to get one.
_LOOK_SECONDS = 1


class Counting:
    """The counters of one cache object.

    `with counting as counters:` yields counters at zero; what they are set to is added. It keeps
    other threads out.
    """

    def __init__(self, folder: str) -> None:
        self._ledger = _ledger_of(folder)
        self.begin_anew()
        _living.add(self)

    def begin_anew(self) -> None:
        """Count from zero."""
        self.counters = Counters()
        self._more = Counters()

    def close(self) -> None:
        """Let go of the file; the next count opens one again."""
        with self._ledger.lock:
            self._ledger.close()

    def __enter__(self) -> Counters:
        self._ledger.lock.acquire()
        return self._more

    def __exit__(self, *_: object) -> None:
        more, self._more = self._more, Counters()
        try:
            self.counters.add(more)
            self._ledger.add(more)
        finally:
            self._ledger.lock.release()


class _Ledger:
    """The numbers of this process in one folder, for all its cache objects there."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._name = ""
        self._descriptor = -1
        self.begin_anew()

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        # At the end of the interpreter nothing else of this module may be there any more.
        if self._descriptor >= 0:
            close(self._descriptor)

    def begin_anew(self) -> None:
        """Count from zero, in another file, whoever held the lock."""
        self.lock = threading.Lock()
        self.close()

    def close(self) -> None:
        """Let go of the file; who takes it over counts on from what stands in it."""
        descriptor, self._descriptor = self._descriptor, -1
        self._numbers = Counters()
        self._look_at = 0.0
        if descriptor >= 0:
            # In a forked child this leaves the lock to the parent.
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def add(self, more: Counters) -> None:
        """Count what happened besides; the caller has the lock."""
        now = time.monotonic()
        if now >= self._look_at:
            self._look()
            self._look_at = now + _LOOK_SECONDS
        self._numbers.add(more)
        if self._descriptor >= 0:
            # All numbers each time: what could not be written today is written tomorrow.
            with contextlib.suppress(OSError):
                os.pwrite(self._descriptor, _encode(self._numbers), 0)

    def _look(self) -> None:
        """See to it that there is a file, in the folder that is there now."""
        if self._descriptor >= 0 and not self._has_file():
            # The folder was deleted, and what it had counted with it.
            self.close()
        if self._descriptor < 0:
            with contextlib.suppress(OSError):
                self._take_file()

    def _has_file(self) -> bool:
        return places.is_counter(self._folder, self._name, self._descriptor)

    def _take_file(self) -> None:
        """Find a file whose owner is dead, or make one."""
        for name in places.counter_names():
            descriptor = places.open_counter(self._folder, name, writes=True)
            if descriptor is None:
                continue
            if (numbers := _taken(self._folder, name, descriptor)) is not None:
                numbers.add(self._numbers)
                self._name, self._descriptor, self._numbers = name, descriptor, numbers
                return
            os.close(descriptor)


def totals(folder: str) -> Counters:
    """Add up what all processes have counted in a folder, the living and the dead."""
    total = Counters()
    for name in places.counters(folder):
        descriptor = places.open_counter(folder, name)
        if descriptor is not None:
            with contextlib.suppress(OSError):
                total.add(_read(descriptor) or Counters())
            os.close(descriptor)
    return total


def drop_broken(folder: str) -> None:
    """Delete what is no record of ours in the places of counters."""
    for name in places.counters(folder):
        descriptor = places.open_counter(folder, name)
        if descriptor is None:
            # A symlink, or another user's, who closed it: then nobody else can count there.
            places.drop_counter(folder, name)
            continue
        with contextlib.suppress(OSError):
            if places.lock(descriptor) is not False and _read(descriptor) is None:
                places.drop_counter(folder, name)
        os.close(descriptor)


def _taken(folder: str, name: str, descriptor: int) -> Counters | None:
    """Lock a file, and return what stands in it; None if it is not for us."""
    status = os.fstat(descriptor)
    is_ours = (
        stat.S_ISREG(status.st_mode)
        # Another name of it may be somebody's document.
        and status.st_nlink == 1
        and is_own(status)
    )
    is_locked = is_ours and places.lock(descriptor)
    # Before it was locked its owner may have died, or somebody may have deleted it.
    if is_locked is False or not places.is_counter(folder, name, descriptor):
        return None
    if not os.fstat(descriptor).st_size:
        return Counters()
    # Where locks do nothing, it may have a living owner.
    return _read(descriptor) if is_locked and _is_seen_locked(folder, name) else None


def _is_seen_locked(folder: str, name: str) -> bool:
    """Tell whether who opens a file that is locked sees that it is."""
    descriptor = places.open_counter(folder, name)
    if descriptor is None:
        return False
    try:
        return places.is_locked(descriptor) is True
    finally:
        os.close(descriptor)


def _encode(numbers: Counters) -> bytes:
    body = _RECORD.pack(
        _MARK,
        numbers.hits,
        numbers.misses,
        numbers.bytes_served,
        numbers.bytes_fetched,
        numbers.waits,
        numbers.evictions,
        numbers.heals,
    )
    return body + zlib.crc32(body).to_bytes(4, "little")


def _read(descriptor: int) -> Counters | None:
    """Read a record; None if it is none."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        return None
    for _ in range(_READS):
        found = os.pread(descriptor, _RECORD_SIZE + 1, 0)
        body, check = found[: _RECORD.size], found[_RECORD.size :]
        if len(found) == _RECORD_SIZE and zlib.crc32(body).to_bytes(4, "little") == check:
            mark, *numbers = _RECORD.unpack(body)
            return Counters(*numbers) if mark == _MARK and max(numbers) <= _LARGEST else None
    return None


_guard = threading.Lock()
_ledgers: weakref.WeakValueDictionary[str, _Ledger] = weakref.WeakValueDictionary()
_living: weakref.WeakSet[Counting] = weakref.WeakSet()


def _ledger_of(folder: str) -> _Ledger:
    with _guard:
        ledger = _ledgers.get(folder)
        if ledger is None:
            ledger = _ledgers[folder] = _Ledger(folder)
        return ledger


def _after_fork_in_child() -> None:
    # A thread that is not there any more may have held a lock.
    global _guard  # noqa: PLW0603 -- the child's own
    _guard = threading.Lock()
    for ledger in list(_ledgers.values()):
        ledger.begin_anew()
    for counting in list(_living):
        counting.begin_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
