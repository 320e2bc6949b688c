"""What lies in the folder of a cache, and the steps in it.

    <folder>/CACHEDIR.TAG             so that backup programs pass by
    <folder>/cache.db, -wal, -shm     the table of contents (diskcache, SQLite)
    <folder>/contents/<aa>/<digest>-<random>
                                      one file per content, read-only
    <folder>/tmp/<digest>-<random>-<process>-<size>
                                      a file being filled; its name reserves its room
    <folder>/damaged/                 what turned out wrong, for inspection: the newest four
    <folder>/changes                  a byte more for what others must be told of a record
    <folder>/counters/<number>        what a process has counted; locked while it lives

Where others can write to the folder there is no table (`listing` says why), but

    <folder>/records/<digest of its name>     a text record

Rule 1: this file is the only one that spells a name in the folder.
Rule 2: nothing outside the folder is read, moved or deleted: no symlink is followed, and a name
counts only if it has the form of ours.
Rule 3: nothing here knows what is in the table.
Rule 4: what is made has the rights of the folder that it is made in, whatever the umask: in one
that its group can write to, the group can write to folders and read files.
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
from casartifacts.cache.trust import Stamp, Watched, is_own, is_private, stamp_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "MOST_COUNTERS",
    "MOST_IN_RECORD",
    "READ",
    "TABLE",
    "Aside",
    "Filling",
    "aside",
    "bound_records",
    "changes",
    "close_content",
    "content_folders",
    "content_names",
    "content_names_in",
    "content_names_of",
    "counter_names",
    "counters",
    "delete",
    "delete_content",
    "digest_of_content",
    "drop_aside",
    "drop_counter",
    "extents",
    "fillings",
    "is_cache",
    "is_counter",
    "is_locked",
    "is_whole",
    "lock",
    "make",
    "make_filling",
    "may_use",
    "move_back",
    "move_in",
    "new_content_name",
    "open_content",
    "open_counter",
    "path_of",
    "put_aside",
    "put_table_aside",
    "read_record",
    "rename_content",
    "say_changed",
    "write_record",
]

TABLE = "cache.db"

_CACHEDIR_TAG = b"""Signature: 8a477f597d28d172789f06886806bc55
# This folder is a cache made by casartifacts. It may be deleted at any time.
# What this file is for: https://bford.info/cachedir/
"""

_CONTENT_NAME = re.compile(r"contents/([0-9a-f]{2})/\1[0-9a-f]{62}-[0-9a-f]{16}")
_FILLING_NAME = re.compile(r"([0-9a-f]{64})-[0-9a-f]{16}-([0-9]{1,10})-([0-9]{1,18})")
_COUNTER_NAME = re.compile(r"[0-9]{3}")
_DAMAGED_CONTENT = re.compile(r"[0-9a-f]{64}-[0-9a-f]{16}")
_DAMAGED_TABLE = re.compile(rf"{re.escape(TABLE)}(-wal|-shm)?-[0-9a-f]{{16}}")

_RECORD_FILE = re.compile(r"[0-9a-f]{64}(-[0-9a-f]{16})?")

# A record holds at most 1,200 characters; what is longer is none.
MOST_IN_RECORD = 1_300

# How many contents that turned out wrong, and files of a broken table, are kept for inspection.
_MOST_DAMAGED = 4

# Processes that count in the folder at once; more count for themselves alone.
MOST_COUNTERS = 1000

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
_APPEND = os.O_WRONLY | os.O_APPEND | _SAFE
_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | _SAFE

# Windows has no descriptors of folders, nor other users who could swap one.
_HAS_DIR_FD = {os.open, os.rename, os.stat, os.unlink} <= os.supports_dir_fd

_PRIVATE = 0o700
_SHARED = 0o2770


def make(folder: str, *, shared: bool = False) -> None:
    """Make what is missing of the folder, for this user alone or for all of a group."""
    shared = shared and hasattr(os, "geteuid")
    if not os.path.isdir(folder):
        _make_folder(folder, mode=_SHARED if shared else _PRIVATE)
    elif shared and not os.listdir(folder) and os.stat(folder).st_uid == os.geteuid():
        os.chmod(folder, _SHARED)
    is_shared = bool(_group_rights(folder))
    if not os.listdir(folder):
        _write_new(f"{folder}/CACHEDIR.TAG", _CACHEDIR_TAG, mode=0o640 if is_shared else 0o600)
    for name in _parts(folder):
        if not os.path.isdir(f"{folder}/{name}"):
            _make_below(f"{folder}/{name}")
        if os.path.islink(f"{folder}/{name}"):
            raise NotADirectoryError(f"{folder}/{name} is a symlink; a cache keeps to its folder")
    _make_changes(folder)


def is_cache(folder: str) -> bool:
    """Tell whether there is a cache in a folder, or what is left of one."""
    return os.path.lexists(f"{folder}/{TABLE}") or os.path.isdir(f"{folder}/contents")


def is_whole(folder: str) -> bool:
    """Tell whether nothing of what `make` makes is missing in a folder."""
    with contextlib.suppress(FileNotFoundError):
        return all(os.path.isdir(f"{folder}/{name}") for name in _parts(folder))
    return False


def _parts(folder: str) -> list[str]:
    names = ["contents", "tmp", "damaged", "counters"]
    return names if is_private(folder) else [*names, "records"]


def _group_rights(folder: str) -> int:
    """Return the bits of a folder's mode that say what its group can do, 0 if not write."""
    if not hasattr(os, "geteuid"):
        return 0
    mode = os.stat(folder).st_mode
    return mode & (stat.S_ISGID | stat.S_IRWXG) if mode & stat.S_IWGRP else 0


def _make_below(path: str) -> None:
    """Make a folder that has the rights of the one above it."""
    _make_folder(path, mode=_PRIVATE | _group_rights(os.path.dirname(path)))


def _make_folder(path: str, *, mode: int) -> None:
    """Make a folder, and what is missing above it; it appears with the mode that it shall have."""
    if mode == _PRIVATE:
        os.makedirs(path, mode=mode, exist_ok=True)
        return
    above = os.path.dirname(path)
    if not os.path.isdir(above):
        _make_folder(above, mode=mode)
    beside = f"{path}.{secrets.token_hex(8)}"
    os.mkdir(beside, _PRIVATE)
    try:
        # By a descriptor: somebody may have put a symlink there meanwhile.
        descriptor = os.open(beside, _FOLDER)
        try:
            os.fchmod(descriptor, mode)
        finally:
            os.close(descriptor)
        os.rename(beside, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.rmdir(beside)
        if not os.path.isdir(path):
            raise


def _write_new(path: str, body: bytes, *, mode: int) -> None:
    """Write a file unless there is one."""
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(path, _MAKE, 0o600)
        try:
            if mode != 0o600:  # noqa: PLR2004 -- as it was made
                os.fchmod(descriptor, mode)
            os.write(descriptor, body)
        finally:
            os.close(descriptor)


# That records changed


def changes(folder: str) -> Stamp | None:
    """Return what is another value after `say_changed`; None if it cannot be told."""
    try:
        return stamp_of(os.lstat(f"{folder}/changes"))
    except OSError:
        return None


def say_changed(folder: str) -> None:
    """Make `changes` return another value, in every process."""
    if not os.path.lexists(f"{folder}/changes"):
        _make_changes(folder)
    descriptor = os.open(f"{folder}/changes", _APPEND)
    try:
        os.write(descriptor, b".")
    finally:
        os.close(descriptor)


def _make_changes(folder: str) -> None:
    # One byte, so that the disk has room for more even when it is full.
    _write_new(f"{folder}/changes", b".", mode=0o660 if _group_rights(folder) else 0o600)


# Contents


def new_content_name(digest: str) -> str:
    """Make a name for a file of this content, below the folder."""
    return f"contents/{digest[:2]}/{digest}-{secrets.token_hex(8)}"


def content_folders(folder: str) -> list[str]:
    """Return the names of the folders of contents."""
    with os.scandir(f"{folder}/contents") as found:
        return [f"contents/{each.name}" for each in found if each.is_dir(follow_symlinks=False)]


def content_names(folder: str) -> Iterator[str]:
    """Yield the names of what lies in the places of contents."""
    for above in content_folders(folder):
        yield from content_names_in(folder, above)


def content_names_in(folder: str, above: str) -> list[str]:
    """Return the names of what lies in a folder of contents."""
    if _leads_out(folder, above):
        return []
    with contextlib.suppress(PermissionError):  # another user's, who closed it
        names = (f"{above}/{last}" for last in os.listdir(f"{folder}/{above}"))
        return list(filter(_CONTENT_NAME.fullmatch, names))
    return []


def content_names_of(folder: str, digest: str) -> list[str]:
    """Return the names of what may be a file of this content, and can be put aside."""
    above = f"contents/{digest[:2]}"
    if not may_use(f"{folder}/{above}"):
        return []
    names = content_names_in(folder, above)
    return sorted(name for name in names if digest_of_content(name) == digest)


def delete_content(folder: str, name: str) -> bool:
    """Delete a content; tells whether it was there and is gone."""
    return _in_place(folder, name, lambda last, at: os.unlink(last, dir_fd=at))


def rename_content(folder: str, name: str, new_name: str) -> bool:
    """Give the file of a content another name of the same content, which makes it young."""
    new = new_name.rpartition("/")[2]
    return _in_place(
        folder, name, lambda last, at: os.rename(last, new, src_dir_fd=at, dst_dir_fd=at)
    )


def delete(folder: str, path: str) -> None:
    """Delete a file in a folder of ours below the folder, which is reached without any symlink."""
    if not _is_swappable(folder):
        os.unlink(path)
        return
    above, _, last = path[len(folder) + 1 :].rpartition("/")
    with _held(folder, above) as at:
        os.unlink(last, dir_fd=at)


def _is_swappable(folder: str) -> bool:
    """Tell whether another user could put a symlink in the place of a folder of ours."""
    return _HAS_DIR_FD and not is_private(folder)


def _in_place(folder: str, name: str, act: Callable[[str, int | None], None]) -> bool:
    """Do something with a content, in its folder, which is reached without any symlink."""
    if path_of(folder, name) is None:
        return False
    above, _, last = name.rpartition("/")
    try:
        with _held(folder, above) as at:
            act(last, at)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _held(folder: str, name: str) -> Iterator[int]:
    """Open a folder of ours below the folder, which no symlink can replace meanwhile."""
    with contextlib.ExitStack() as stack:
        at = os.open(folder, os.O_RDONLY)
        stack.callback(os.close, at)
        for each in name.split("/"):
            at = os.open(each, _FOLDER, dir_fd=at)
            stack.callback(os.close, at)
        yield at


def path_of(folder: str, name: object, *, digest: str = "") -> str | None:
    """Return where a content lies; None if the name is not its own, or leads out of the folder."""
    if type(name) is not str or _CONTENT_NAME.fullmatch(name) is None:
        return None
    if digest and digest_of_content(name) != digest:
        return None
    return None if _leads_out(folder, name[: len("contents/aa")]) else f"{folder}/{name}"


def _leads_out(folder: str, above: str) -> bool:
    """Tell whether the way to a folder of contents is by a symlink."""
    return os.path.islink(f"{folder}/contents") or os.path.islink(f"{folder}/{above}")


def digest_of_content(name: str) -> str:
    """Return the digest in the name of a content."""
    return name[len("contents/aa/") :][:64]


def open_content(path: str | None) -> Watched:
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
    return Watched(descriptor)


def may_use(folder: str | os.PathLike[str]) -> bool:
    """Tell whether this user may read, write and enter a folder."""
    effective = os.access in os.supports_effective_ids
    return os.access(folder, os.R_OK | os.W_OK | os.X_OK, effective_ids=effective)


def close_content(descriptor: int, folder: str) -> None:
    """Take from a finished file the right to be written."""
    os.fchmod(descriptor, 0o440 if _group_rights(folder) else 0o400)


# Files being filled


class Filling(NamedTuple):
    """A file being filled: with which content, by which process, and the bytes that it reserves."""

    path: str
    digest: str
    process: int
    size: int


def make_filling(folder: str, digest: str, *, size: int) -> tuple[str, int]:
    """Make a file to be filled, which reserves its room; returns its path and its descriptor."""
    path = f"{folder}/tmp/{digest}-{secrets.token_hex(8)}-{os.getpid()}-{size}"
    descriptor = os.open(path, _MAKE, 0o600)
    if _group_rights(folder):
        os.fchmod(descriptor, 0o640)  # so that others see whether its owner lives
    return path, descriptor


def fillings(folder: str) -> Iterator[Filling]:
    """Yield the files being filled by any process, and what dead ones left."""
    for name in os.listdir(f"{folder}/tmp"):
        if match := _FILLING_NAME.fullmatch(name):
            yield Filling(f"{folder}/tmp/{name}", match[1], int(match[2]), int(match[3]))


def extents(descriptor: int) -> Iterator[tuple[int, int]]:
    """Yield where in a file something was written, as begin and end in bytes."""
    end = 0
    length = os.fstat(descriptor).st_size
    if not hasattr(os, "SEEK_DATA"):
        yield 0, length
        return
    while end < length:
        try:
            begin = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError:
            return  # nothing but a hole, or the file was cut
        end = os.lseek(descriptor, begin, os.SEEK_HOLE)
        yield begin, end


def lock(descriptor: int) -> bool | None:
    """Lock a file as long as it is open: False if another one has, None where there are no locks.

    The kernel frees it when its owner dies.
    """
    return _flock(descriptor, "LOCK_EX")


def is_locked(descriptor: int) -> bool | None:
    """Tell whether another one has locked a file; None where there are no locks.

    Who asks for it holds a lock of its own, for a moment, that others who ask do not meet.
    """
    got = _flock(descriptor, "LOCK_SH")
    if got:
        _flock(descriptor, "LOCK_UN")
    return None if got is None else not got


def _flock(descriptor: int, kind: str) -> bool | None:
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, getattr(fcntl, kind) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None  # no locks on this file system
    return True


def move_in(path: str, descriptor: int, *, to: str) -> Watched:
    """Give a finished file its place, and open it there."""
    above = os.path.dirname(to)
    if not os.path.isdir(above):
        _make_below(above)
    if os.path.islink(above) or os.path.islink(os.path.dirname(above)):
        raise NotADirectoryError(f"{above} is reached through a symlink")
    os.rename(path, to)
    file = Watched(os.open(to, READ))
    if stamp_of(os.fstat(file.fileno())) != stamp_of(os.fstat(descriptor)):
        file.close()
        raise FileNotFoundError(f"somebody put another file in the place of {to}")
    return file


def move_back(path: str, *, to: str) -> None:
    """Take a file out of its place again, if it got there."""
    with contextlib.suppress(OSError):
        os.rename(path, to)


# Records, where there is no table


def read_record(folder: str, name: str) -> tuple[str, bool] | None:
    """Return the text of a record, and whether this user wrote it; None if there is none."""
    try:
        descriptor = os.open(f"{folder}/records/{name}", READ)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        return "", False
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        return "", False
    with io.FileIO(descriptor) as file:
        text = (file.read(MOST_IN_RECORD) or b"").decode("ascii", errors="replace")
        return text, is_own(status)


def write_record(folder: str, name: str, text: str) -> None:
    """Write a record, at once."""
    path = f"{folder}/records/{name}"
    beside = f"{path}-{secrets.token_hex(8)}"
    _write_new(beside, text.encode("ascii"), mode=0o640 if _group_rights(folder) else 0o600)
    try:
        os.rename(beside, path)
    except OSError:
        os.unlink(beside)
        raise


def bound_records(folder: str, most: int) -> bool:
    """Drop a quarter of the records, the oldest, if there are more than this."""
    place = f"{folder}/records"
    names = list(filter(_RECORD_FILE.fullmatch, os.listdir(place)))
    if len(names) <= most:
        return False
    found = []
    for name in names:
        with contextlib.suppress(OSError):
            found.append((os.lstat(f"{place}/{name}").st_ctime_ns, name))
    for _, name in sorted(found)[: len(found) - most * 3 // 4]:
        with contextlib.suppress(OSError):
            os.unlink(f"{place}/{name}")
    return True


# Counters


def counter_names() -> Iterator[str]:
    """Yield under which names processes may count, whether there is a file or not."""
    for number in range(MOST_COUNTERS):
        yield f"{number:03}"


def counters(folder: str) -> list[str]:
    """Return the names under which processes have counted."""
    with contextlib.suppress(OSError), _counters(folder) as (_, at):
        found = os.listdir(f"{folder}/counters" if at is None else at)
        return sorted(filter(_COUNTER_NAME.fullmatch, found))
    return []


def open_counter(folder: str, name: str, *, writes: bool = False) -> int | None:
    """Open a file of numbers, or with `writes` make it; None if what is there is not for us."""
    with contextlib.suppress(OSError), _counters(folder) as (above, at):
        try:
            return os.open(f"{above}{name}", _COUNT if writes else READ, dir_fd=at)
        except FileNotFoundError:
            if not writes:
                return None
        descriptor = os.open(f"{above}{name}", _MAKE, 0o600, dir_fd=at)
        if _group_rights(folder):
            os.fchmod(descriptor, 0o640)  # so that others can add it up
        return descriptor
    return None


def drop_counter(folder: str, name: str) -> None:
    """Delete a file of numbers, or what lies in its place."""
    with contextlib.suppress(OSError):
        delete(folder, f"{folder}/counters/{name}")


def is_counter(folder: str, name: str, descriptor: int) -> bool:
    """Tell whether a name still leads to an open file."""
    with contextlib.suppress(OSError), _counters(folder) as (above, at):
        status = os.stat(f"{above}{name}", dir_fd=at, follow_symlinks=False)
        return os.path.samestat(status, os.fstat(descriptor))
    return False


@contextlib.contextmanager
def _counters(folder: str) -> Iterator[tuple[str, int | None]]:
    """Yield what goes before the name of a counter, and in which folder, where one can be held."""
    if _is_swappable(folder):
        with _held(folder, "counters") as at:
            yield "", at
    elif not os.path.islink(f"{folder}/counters"):
        yield f"{folder}/counters/", None
    else:
        raise NotADirectoryError(f"{folder}/counters is a symlink")


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
        with contextlib.suppress(OSError):
            delete(folder, entry.path)
            gone.append(entry)
    return gone


def put_aside(folder: str, path: str) -> None:
    """Move a content to where it can be inspected; what is no file is deleted."""
    if _HAS_DIR_FD:
        above, _, last = path[len(folder) + 1 :].rpartition("/")
        with _held(folder, above) as at, _held(folder, "damaged") as to:
            if stat.S_ISREG(os.stat(last, dir_fd=at, follow_symlinks=False).st_mode):
                os.rename(last, last, src_dir_fd=at, dst_dir_fd=to)
            else:
                os.unlink(last, dir_fd=at)
        _bound_aside(folder)
    elif stat.S_ISREG(os.lstat(path).st_mode):
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
    _bound_aside(folder)


def _bound_aside(folder: str) -> None:
    for pattern in (_DAMAGED_CONTENT, _DAMAGED_TABLE):
        for entry in _aside(folder, pattern)[:-_MOST_DAMAGED]:
            delete(folder, entry.path)


def _aside(folder: str, pattern: re.Pattern[str]) -> list[Aside]:
    found = []
    for name in filter(pattern.fullmatch, os.listdir(f"{folder}/damaged")):
        path = f"{folder}/damaged/{name}"
        with contextlib.suppress(FileNotFoundError):
            status = os.lstat(path)
            if stat.S_ISREG(status.st_mode):
                found.append((status.st_ctime_ns, Aside(path, status.st_size)))
    return [entry for _, entry in sorted(found)]
