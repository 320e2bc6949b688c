"""How far bytes in the folder are trusted: a stamp from when they were verified, or a new digest.

Rule 1: an unchanged stamp is enough, but only of this boot and only where nobody else can write.
Rule 2: everything else is hashed again.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from casartifacts.cache.failures import WrongError
from casartifacts.digest import BUFFER_SIZE, Hasher

if TYPE_CHECKING:
    import io

__all__ = [
    "Stamp",
    "age",
    "boot",
    "is_private",
    "is_same_but_for_links",
    "settle",
    "stamp_of",
    "tag",
    "verify",
]

# Device, inode, size, mtime_ns, ctime_ns: what changes when somebody writes to a file, cuts it,
# links it or puts another one in its place.
Stamp = tuple[int, int, int, int, int]


def stamp_of(status: os.stat_result) -> Stamp:
    """Return the stamp of a file."""
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def is_same_but_for_links(stamp: Stamp, other: Stamp) -> bool:
    """Tell whether two stamps differ at most in what making a link changes, the ctime.

    For the moment of making one that is enough: who writes to the file sets its mtime, which
    `settle` has seen to be another one.
    """
    return stamp[:4] == other[:4]


def settle(descriptor: int) -> Stamp:
    """Backdate a file that was written just now, and return its stamp.

    The clock of a file system stands still for up to 10 ms: a write right after this moment could
    leave the times as they are. It cannot set the time of a second ago. An older file keeps its
    time: it may be somebody's, by a hard link.
    """
    now = time.time_ns()
    if os.fstat(descriptor).st_mtime_ns > now - 10**9:
        with contextlib.suppress(PermissionError):
            os.utime(descriptor, ns=(now, now - 10**9))
    return stamp_of(os.fstat(descriptor))


@cache
def boot() -> str:
    """Return what changes when the machine starts again, where that can be told.

    What had not reached the disk at a power cut can come back as zeros under the old size and
    times; fsync would cost 0.3 s/GiB for every content, hashing it again half of that for some.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def tag(stamp: Stamp, now: float) -> str:
    """Return what a row notes: the stamp, and when its content was last made young."""
    return f"{_text(stamp)} {int(now)}"


def age(tag: object, stamp: Stamp) -> float | None:
    """Return for how many seconds a row has noted this stamp; None if it has not."""
    noted, _, seconds = tag.partition(" ") if isinstance(tag, str) else ("", "", "")
    if noted != _text(stamp) or re.fullmatch("[0-9]{1,12}", seconds) is None:
        return None
    return abs(time.time() - int(seconds))


def _text(stamp: Stamp) -> str:
    return ":".join([*map(str, stamp), boot()])


def is_private(folder: str) -> bool:
    """Tell whether only this user can have written to the folder, so that stamps say all."""
    if not hasattr(os, "geteuid"):
        return True
    status = os.stat(folder)
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022


def verify(file: io.FileIO, digest: str) -> None:
    """Read a file from its beginning and go back there; raises if it is not this content."""
    hasher = Hasher()
    buffer = memoryview(bytearray(min(BUFFER_SIZE, os.fstat(file.fileno()).st_size + 1)))
    size = 0
    try:
        while count := file.readinto(buffer):
            hasher.update(buffer[:count])
            size += count
    except OSError as error:
        raise WrongError(f"its file cannot be read ({error.strerror})") from error
    if (found := hasher.hexdigest()) != digest:
        raise WrongError(f"its {size} bytes have the digest {found}")
    file.seek(0)
