"""What lies in the folder of a cache, and the steps in it.

    <folder>/CACHEDIR.TAG                     so that backup programs pass by
    <folder>/cache.db, -wal, -shm             the table of contents (diskcache, SQLite)
    <folder>/contents/<aa>/<digest>-<random>  one file per content, read-only
    <folder>/tmp/<digest>-<random>-<size>     a file being filled; its name reserves its room
    <folder>/damaged/                         what turned out wrong, for inspection: the newest four
    <folder>/changes                          a byte more for what others must be told of a record
    <folder>/counters/<number>                what a process has counted; locked while it lives

Rule 1: this file is the only one that spells a name in the folder.
Rule 2: nothing outside the folder is read, moved or deleted: no symlink is followed, and a name
counts only if it has the form of ours.
Rule 3: nothing here knows what is in the table.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import secrets
import stat
from typing import TYPE_CHECKING, NamedTuple

from casartifacts.cache.failures import WrongError
from casartifacts.cache.trust import Stamp, stamp_of

if TYPE_CHECKING:
    from collections.abc import Iterator

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "READ",
    "TABLE",
    "Aside",
    "Filling",
    "aside",
    "changes",
    "content_folders",
    "content_names",
    "counter_paths",
    "counters",
    "digest_of_content",
    "drop_aside",
    "fillings",
    "is_cache",
    "is_locked",
    "is_named",
    "lock",
    "make",
    "make_filling",
    "move_back",
    "move_in",
    "new_content_name",
    "open_content",
    "open_counter",
    "path_of",
    "put_aside",
    "put_table_aside",
    "say_changed",
]

TABLE = "cache.db"

_CACHEDIR_TAG = b"""Signature: 8a477f597d28d172789f06886806bc55
# This folder is a cache made by casartifacts. It may be deleted at any time.
# What this file is for: https://bford.info/cachedir/
"""

_CONTENT_NAME = re.compile(r"contents/([0-9a-f]{2})/\1[0-9a-f]{62}-[0-9a-f]{16}")
_FILLING_NAME = re.compile(r"[0-9a-f]{64}-[0-9a-f]{16}-([0-9]{1,18})")
_COUNTER_NAME = re.compile(r"[0-9]{3}")
_DAMAGED_CONTENT = re.compile(r"[0-9a-f]{64}-[0-9a-f]{16}")
_DAMAGED_TABLE = re.compile(rf"{re.escape(TABLE)}(-wal|-shm)?-[0-9a-f]{{16}}")

# How many contents that turned out wrong, and files of a broken table, are kept for inspection.
_MOST_DAMAGED = 4

# Processes that count in the folder at once; more count for themselves alone.
_MOST_COUNTERS = 1000

# What opening answers when there is no file of ours in that place: none, a symlink, a FIFO.
_NO_FILE = {errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ENXIO}

# O_NONBLOCK: a FIFO in the place of a content must not hang its reader.
_SAFE = (
    getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)
READ = os.O_RDONLY | _SAFE
_MAKE = os.O_RDWR | os.O_CREAT | os.O_EXCL | _SAFE
_COUNT = os.O_RDWR | _SAFE
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT | _SAFE


def make(folder: str) -> None:
    """Make what is missing of the folder."""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    if not os.listdir(folder):
        _write_new(f"{folder}/CACHEDIR.TAG", _CACHEDIR_TAG)
    for name in ("contents", "tmp", "damaged", "counters"):
        os.makedirs(f"{folder}/{name}", mode=0o700, exist_ok=True)
        if os.path.islink(f"{folder}/{name}"):
            raise NotADirectoryError(f"{folder}/{name} is a symlink; a cache keeps to its folder")
    # One byte, so that the disk has room for more even when it is full.
    _write_new(f"{folder}/changes", b".")


def is_cache(folder: str) -> bool:
    """Tell whether there is a cache in a folder, or what is left of one."""
    return os.path.lexists(f"{folder}/{TABLE}") or os.path.isdir(f"{folder}/contents")


def _write_new(path: str, body: bytes) -> None:
    """Write a file unless there is one."""
    with contextlib.suppress(FileExistsError), open(path, "xb") as file:
        file.write(body)


# That records changed


def changes(folder: str) -> Stamp | None:
    """Return what is another value after `say_changed`; None if it cannot be told."""
    try:
        return stamp_of(os.lstat(f"{folder}/changes"))
    except OSError:
        return None


def say_changed(folder: str) -> None:
    """Make `changes` return another value, in every process."""
    descriptor = os.open(f"{folder}/changes", _APPEND, 0o600)
    try:
        os.write(descriptor, b".")
    finally:
        os.close(descriptor)


# Contents


def new_content_name(digest: str) -> str:
    """Make a name for a file of this content, below the folder."""
    return f"contents/{digest[:2]}/{digest}-{secrets.token_hex(8)}"


def content_folders(folder: str) -> list[str]:
    """Return the names of the folders of contents."""
    found = (f"contents/{above}" for above in os.listdir(f"{folder}/contents"))
    return [above for above in found if os.path.isdir(f"{folder}/{above}")]


def content_names(folder: str) -> Iterator[str]:
    """Yield the names of what lies among the contents."""
    for above in content_folders(folder):
        yield from (f"{above}/{last}" for last in os.listdir(f"{folder}/{above}"))


def path_of(folder: str, name: object, *, digest: str = "") -> str | None:
    """Return where a content lies; None if the name is not its own, or leads out of the folder."""
    if type(name) is not str or _CONTENT_NAME.fullmatch(name) is None:
        return None
    if digest and digest_of_content(name) != digest:
        return None
    if os.path.islink(f"{folder}/contents") or os.path.islink(f"{folder}/{name[:11]}"):
        return None
    return f"{folder}/{name}"


def digest_of_content(name: str) -> str:
    """Return the digest in the name of a content."""
    return name[len("contents/aa/") :][:64]


def open_content(path: str | None) -> io.FileIO:
    """Open a file; raises `WrongError` if there is none in this place."""
    if path is None:
        raise WrongError("its row leads elsewhere")
    try:
        descriptor = os.open(path, READ)
    except OSError as error:
        if error.errno in _NO_FILE:
            raise WrongError(f"its file is gone ({error.strerror})") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise WrongError("something that is no file lies in its place")
    return io.FileIO(descriptor)


# Files being filled


class Filling(NamedTuple):
    """A file being filled, and the bytes that its name reserves."""

    path: str
    size: int


def make_filling(folder: str, digest: str, *, size: int) -> tuple[str, int]:
    """Make a file to be filled, which reserves its room; returns its path and its descriptor."""
    path = f"{folder}/tmp/{digest}-{secrets.token_hex(8)}-{size}"
    return path, os.open(path, _MAKE, 0o600)


def fillings(folder: str) -> Iterator[Filling]:
    """Yield the files being filled by any process, and what killed ones left."""
    for name in os.listdir(f"{folder}/tmp"):
        if match := _FILLING_NAME.fullmatch(name):
            yield Filling(f"{folder}/tmp/{name}", int(match[1]))


def lock(descriptor: int) -> bool | None:
    """Lock a file as long as it is open: False if another one has, None where there are no locks.

    The kernel frees it when its owner dies.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None  # no locks on this file system
    return True


def move_in(path: str, descriptor: int, *, to: str) -> io.FileIO:
    """Give a finished file its place, and open it there."""
    above = os.path.dirname(to)
    if not os.path.isdir(above):
        os.makedirs(above, mode=0o700, exist_ok=True)
    if os.path.islink(above) or os.path.islink(os.path.dirname(above)):
        raise NotADirectoryError(f"{above} is reached through a symlink")
    os.rename(path, to)
    file = io.FileIO(os.open(to, READ))
    if stamp_of(os.fstat(file.fileno())) != stamp_of(os.fstat(descriptor)):
        file.close()
        raise FileNotFoundError(f"somebody put another file in the place of {to}")
    return file


def move_back(path: str, *, to: str) -> None:
    """Take a file out of its place again, if it got there."""
    with contextlib.suppress(OSError):
        os.rename(path, to)


# Counters


def counter_paths(folder: str) -> Iterator[str]:
    """Yield where processes may count, whether there is a file or not."""
    if os.path.islink(f"{folder}/counters"):
        return
    for number in range(_MOST_COUNTERS):
        yield f"{folder}/counters/{number:03}"


def counters(folder: str) -> list[str]:
    """Return where processes have counted."""
    if os.path.islink(f"{folder}/counters"):
        return []
    try:
        found = os.listdir(f"{folder}/counters")
    except OSError:
        return []
    return [f"{folder}/counters/{name}" for name in found if _COUNTER_NAME.fullmatch(name)]


def open_counter(path: str) -> int | None:
    """Open a file to count in, or make it; None if what is there is not for this user."""
    try:
        return os.open(path, _COUNT)
    except FileNotFoundError:
        with contextlib.suppress(FileExistsError):
            return os.open(path, _MAKE, 0o600)
    except OSError:
        pass
    return None


def is_named(path: str, descriptor: int) -> bool:
    """Tell whether a path still leads to an open file."""
    with contextlib.suppress(OSError):
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    return False


def is_locked(path: str) -> bool:
    """Tell whether somebody, also this process, has a file locked."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, READ)
        try:
            return lock(descriptor) is False
        finally:
            os.close(descriptor)
    return False


# What turned out wrong


class Aside(NamedTuple):
    """A file that was put aside."""

    path: str
    size: int


def aside(folder: str) -> list[Aside]:
    """Return the contents that were put aside, the oldest first."""
    return _aside(folder, _DAMAGED_CONTENT)


def drop_aside(folder: str) -> list[Aside]:
    """Delete what was put aside, files of tables too; returns what went."""
    gone = []
    for entry in (*aside(folder), *_aside(folder, _DAMAGED_TABLE)):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(entry.path)
            gone.append(entry)
    return gone


def put_aside(folder: str, path: str) -> None:
    """Move a content to where it can be inspected; what is no file is deleted."""
    if stat.S_ISREG(os.lstat(path).st_mode):
        _put_aside(folder, path, os.path.basename(path))
    else:
        os.unlink(path)


def put_table_aside(folder: str) -> None:
    """Move the files of the table to where they can be inspected."""
    random = secrets.token_hex(8)
    for name in (f"{TABLE}-wal", f"{TABLE}-shm", TABLE):
        if os.path.lexists(f"{folder}/{name}"):
            _put_aside(folder, f"{folder}/{name}", f"{name}-{random}")


def _put_aside(folder: str, path: str, name: str) -> None:
    """Move what lies here, and drop the oldest of its kind there."""
    os.rename(path, f"{folder}/damaged/{name}")
    for pattern in (_DAMAGED_CONTENT, _DAMAGED_TABLE):
        for entry in _aside(folder, pattern)[:-_MOST_DAMAGED]:
            os.unlink(entry.path)


def _aside(folder: str, pattern: re.Pattern[str]) -> list[Aside]:
    found = []
    for name in filter(pattern.fullmatch, os.listdir(f"{folder}/damaged")):
        path = f"{folder}/damaged/{name}"
        with contextlib.suppress(FileNotFoundError):
            status = os.lstat(path)
            if stat.S_ISREG(status.st_mode):
                found.append((status.st_ctime_ns, Aside(path, status.st_size)))
    return [entry for _, entry in sorted(found)]
