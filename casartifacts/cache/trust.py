"""How far bytes in the folder are trusted: a stamp from when they were verified, or a new digest.

Rule 1: an unchanged stamp is enough, but only of this boot and only where nobody else can write.
Rule 2: everything else is hashed again.
Rule 3: what changes after it was found right is noticed before any byte of it is handed out.
Rule 4: of a file that another user can change, what was hashed is not what is read next: only a
copy that was made while it was hashed is.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from casartifacts.buffers import BUFFER_SIZE, new_buffer
from casartifacts.cache.failures import CacheUnavailable, WrongError
from casartifacts.digest import Hasher
from casartifacts.errors import CorruptArtifact

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = [
    "Stamp",
    "Watched",
    "age",
    "boot",
    "is_own",
    "is_private",
    "is_same_but_for_links",
    "is_settled",
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

    For a moment that is enough: who writes to the file sets its mtime, which `settle` has seen to
    be another one.
    """
    return stamp[:4] == other[:4]


class Watched(io.FileIO):
    """A file of which no byte is handed out that was read after somebody had changed it.

    Linux sets the mtime of a file before it writes the first byte, so a look after each read is
    enough; it takes 1 us. `fileno` is the file itself: who reads by it looks again after that, by
    any `read`, as `files.copy` does. Not seen is what is written through an older
    mapping (SECURITY.md, "A link is shared").
    """

    _stamp: Stamp | None = None

    def watch(self, stamp: Stamp) -> None:
        """Raise `CorruptArtifact` from now on if the file is not what it was at this stamp."""
        self._stamp = stamp

    def check(self) -> None:
        """Raise if it is not."""
        stamp = self._stamp
        if stamp is not None and not is_same_but_for_links(
            stamp, stamp_of(os.fstat(self.fileno()))
        ):
            raise CorruptArtifact(
                "Somebody changed a file of the cache while it was read. Nothing wrong was handed"
                " out; read the artifact again, and it is fetched anew."
            )

    def read(self, size: int | None = -1, /) -> bytes:
        """Read so many bytes, or all."""
        got = super().read(-1 if size is None else size)
        self.check()
        return got

    def readall(self) -> bytes:
        """Read all."""
        return self.read()

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill a buffer; what is in it when this raises is not to be used."""
        count = super().readinto(buffer)
        self.check()
        return count


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
    above = os.stat(os.path.dirname(folder)).st_mode
    # Where anybody may rename what lies there, it may be another folder the next moment.
    is_held = not above & stat.S_IWOTH or bool(above & stat.S_ISVTX)
    return is_own(os.stat(folder)) and (is_held or not hasattr(os, "geteuid"))


def is_own(status: os.stat_result) -> bool:
    """Tell whether only this user can have written to a file or folder."""
    if not hasattr(os, "geteuid"):
        return True
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022


def is_settled(stamp: Stamp) -> bool:
    """Tell whether a file was backdated after it was last written to."""
    *_, mtime_ns, ctime_ns = stamp
    return mtime_ns < ctime_ns - 10**8


def verify(
    file: io.FileIO, digest: str, *, copy_to: int | None = None, most: int = 2**63 - 1
) -> None:
    """Read a file from its beginning and go back there; raises if it is not this content.

    Args:
        file: What is read.
        digest: What it must have.
        copy_to: A file of this user's to which each byte is written that was hashed.
        most: How many bytes it may have.
    """
    hasher = Hasher()
    buffer = new_buffer(min(BUFFER_SIZE, os.fstat(file.fileno()).st_size + 1))
    size = 0
    try:
        while count := file.readinto(buffer):
            if size + count > most:
                raise WrongError(f"it grew beyond {most} bytes while it was read")
            hasher.update(buffer[:count])
            if copy_to is not None:
                _write(copy_to, buffer[:count])
            size += count
    except OSError as error:
        raise WrongError(f"its file cannot be read ({error.strerror})") from error
    if (found := hasher.hexdigest()) != digest:
        raise WrongError(f"its {size} bytes have the digest {found}")
    file.seek(0)


def _write(descriptor: int, piece: memoryview) -> None:
    try:
        while piece:
            piece = piece[os.write(descriptor, piece) :]
    except OSError as error:
        raise CacheUnavailable("its files cannot be written") from error
