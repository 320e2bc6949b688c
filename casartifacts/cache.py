"""Whole contents near this process: bytes that may vanish at any moment without harm.

    <folder>/CACHEDIR.TAG                     so that backup programs pass by
    <folder>/cache.db, -wal, -shm             the table of contents (diskcache, SQLite)
    <folder>/contents/<aa>/<digest>-<random>  one file per content, read-only
    <folder>/tmp/<digest>-<random>-<size>     a file being filled; its name reserves its room
    <folder>/damaged/                         what turned out wrong, for inspection: the newest four
    <folder>/changes                          a byte more for each record that changed or went

Rule 1: a failing cache never fails a read. It says so once per kind of failure and is gone around;
only a `Slot` raises, and only `CacheUnavailable`.
Rule 2: what lies here is trusted only as far as a stamp goes that was taken when its bytes were
verified. Another stamp, another boot, a folder that others can write to: it is hashed again. What
is wrong is put aside and counts as a miss, so it heals.
Rule 3: nothing found in the folder is executed, and nothing outside it is read, moved or deleted:
no pickle, no setting and no path is taken from the database (diskcache 5.6.3, CVE-2025-69872).
Rule 4: correctness rests on no lock: a file name of its own, verified, renamed into place.
Rule 5: room is made before a content comes in, exact to the byte and reserved for all processes.
"""

# Paths are strings here: pathlib took 40 us of a look-up (now 100) and 90 of a put (now 660).
# ruff: noqa: PTH100, PTH103, PTH104, PTH108, PTH110, PTH112, PTH114, PTH116, PTH119, PTH120, PTH123
# ruff: noqa: PTH208
# The folder's own tmp/ is meant, not the system's.
# ruff: noqa: S108

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import re
import secrets
import shutil
import sqlite3
import stat
import threading
import time
import weakref
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeVar

import diskcache
from diskcache.core import DBNAME, ENOVAL, METADATA, MODE_BINARY, MODE_RAW

from casartifacts.digest import BUFFER_SIZE, Hasher, is_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["ArtifactCache", "CacheUnavailable", "Counters", "Slot"]

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

# Device, inode, size, mtime_ns, ctime_ns: what changes when somebody writes to a file, cuts it,
# links it or puts another one in its place.
_Stamp = tuple[int, int, int, int, int]

# By default a tenth of the file system, but no more than this.
_MOST_BY_DEFAULT = 100 * 2**30

# One part in twenty of the file system stays free, whatever the limit.
_FREE_PARTS = 20

# What the table may grow by while a content comes in, and the last block of its file.
_SLACK = 2**16

# How long a statement waits for another process: their transactions take about 1 ms.
_BUSY_SECONDS = 3

# How long a cache that failed is left alone before it is tried again.
_PAUSE_SECONDS = 60

# A hit makes its content young again only this often: so nearly every hit writes nothing and takes
# no lock (8 processes: 171k hits/s against 16k when each is a transaction).
_REFRESH_SECONDS = 600

# Contents that a process found right, 0.5 KiB each: these are opened without SQLite.
_MOST_KNOWN = 16_384

# Text records in the table; beyond this the oldest go, a hundredth at a time.
_MOST_RECORDS = 100_000

# How many contents that turned out wrong, and files of a broken table, are kept for inspection.
_MOST_DAMAGED = 4

# A file in tmp/ belongs to a killed process if nobody has it locked and nobody wrote to it for a
# minute (a lock may do nothing on some file systems), or for a day where locks cannot be had.
_QUIET_SECONDS = 60
_FORGOTTEN_SECONDS = 86_400

_CACHEDIR_TAG = b"""Signature: 8a477f597d28d172789f06886806bc55
# This folder is a cache made by casartifacts. It may be deleted at any time.
# What this file is for: https://bford.info/cachedir/
"""

# Our mark in the header of the database: the rows of somebody else's are not ours to evict.
_APPLICATION_ID = 0x63617331  # "cas1"

# All settings come from here and none from the database. cull_limit: diskcache would drop ten rows
# whatever their size. mmap_size: a mapped file that somebody cuts short kills with SIGBUS.
_SETTINGS = {
    "cull_limit": 0,
    "disk_min_file_size": 0,
    "disk_pickle_protocol": 0,
    "eviction_policy": "least-recently-stored",
    "size_limit": 2**62,
    "sqlite_auto_vacuum": 0,
    "sqlite_cache_size": 512,
    "sqlite_journal_mode": "wal",
    "sqlite_mmap_size": 0,
    "sqlite_synchronous": 1,
    "statistics": 0,
    "tag_index": 0,
}
_PRAGMAS = (
    "PRAGMA trusted_schema = OFF",
    "PRAGMA cell_size_check = ON",
    "PRAGMA cache_size = 512",
    "PRAGMA mmap_size = 0",
    "PRAGMA synchronous = 1",
    "PRAGMA journal_mode = wal",
)

# Contents by age, without the text records in the same table.
_INDEX = (
    "CREATE INDEX IF NOT EXISTS Contents_by_age ON Cache (store_time) WHERE filename IS NOT NULL"
)
_ANY_CONTENT = "SELECT 1 FROM Cache WHERE filename IS NOT NULL LIMIT 1"
# Once in a process, in case the sum in the database is wrong.
_ADD_UP = (
    "UPDATE Settings SET value ="
    " (SELECT COALESCE(SUM(size), 0) FROM Cache WHERE filename IS NOT NULL) WHERE key = 'size'"
)

# What SQLite answers when the file is wrong; the rest (FULL, CANTOPEN) lies in its place.
_BROKEN = {
    sqlite3.SQLITE_ERROR,  # such as no such column
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_MISMATCH,
    sqlite3.SQLITE_NOTADB,
}
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}

# What opening answers when there is no file of ours in that place: none, a symlink, a FIFO.
_NO_FILE = {errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ENXIO}

_CONTENT_NAME = re.compile(r"contents/([0-9a-f]{2})/\1[0-9a-f]{62}-[0-9a-f]{16}")
_SLOT_NAME = re.compile(r"[0-9a-f]{64}-[0-9a-f]{16}-([0-9]{1,18})")
_DAMAGED_CONTENT = re.compile(r"[0-9a-f]{64}-[0-9a-f]{16}")
_DAMAGED_TABLE = re.compile(rf"{re.escape(DBNAME)}(-wal|-shm)?-[0-9a-f]{{16}}")
_RECORD_NAME = re.compile(r"[ -~]{1,1200}")
_RECORD_VALUE = re.compile(r"[ -~]{0,1200}")

# O_NONBLOCK: a FIFO in the place of a content must not hang its reader.
_SAFE = (
    getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)
_READ = os.O_RDONLY | _SAFE
_MAKE = os.O_RDWR | os.O_CREAT | os.O_EXCL | _SAFE


class CacheUnavailable(Exception):
    """The cache cannot do this now (full disk, broken database, no permission): go around it."""


class _WrongError(Exception):
    """What a row leads to is not the content that it names."""


@dataclass
class Counters:
    """What happened in this process since the cache object was made."""

    hits: int = 0
    misses: int = 0
    bytes_served: int = 0
    evictions: int = 0
    heals: int = 0


class _Known(NamedTuple):
    """A content that this process found right: its file, as what, and when to refresh its row."""

    name: str
    path: str
    stamp: _Stamp
    refresh_at: float


class _Moved(NamedTuple):
    """A content that lies in its place already, on its way into the table."""

    name: str
    size: int


class _Names(diskcache.Disk):  # type: ignore[misc] # diskcache ships no types
    """What may stand in a row: a digest and the name of its file, or `=` and a name, and a text.

    It never pickles, opens nothing, and removes only files of our own pattern in our own folder.
    """

    def __init__(self, directory: str, **_settings: object) -> None:
        self._directory = directory

    def put(self, key: object) -> tuple[str, bool]:
        """Pass the name of a row as it stands in the table."""
        if type(key) is str and (
            is_digest(key) or (key[:1] == "=" and _RECORD_NAME.fullmatch(key, 1))
        ):
            return key, True
        raise ValueError(f"Neither a digest nor the name of a record: {key!r}")

    def get(self, key: object, raw: object) -> object:
        """Refuse: nothing reads the name of a row back, and the original unpickles it."""
        raise NotImplementedError("the names of rows are not read back")

    def store(self, value: object, _read: object, **_key: object) -> tuple[object, ...]:
        """Return size, mode, file name and value for a row."""
        if isinstance(value, _Moved):
            return value.size, MODE_BINARY, value.name, None
        if type(value) is str:
            return 0, MODE_RAW, None, value
        raise TypeError(f"Neither a content nor a text: {value!r}")

    def fetch(self, mode: object, filename: object, value: object, read: object) -> str | None:
        """Return the name of a content's file, or a text; None for a row that we never wrote."""
        found = filename if read else value
        is_ours = mode == (MODE_BINARY if read else MODE_RAW)
        return found if is_ours and type(found) is str else None

    def filename(self, key: object = None, value: object = None) -> tuple[str, str]:
        """Refuse: files get their names where they are moved in."""
        raise NotImplementedError("contents are moved in, not written")

    def remove(self, file_path: object) -> None:
        """Delete the file of a content; whatever else is named is left alone."""
        path = _path(self._directory, file_path)
        if path is not None:
            with contextlib.suppress(OSError):
                os.unlink(path)


class _Table(diskcache.Cache):  # type: ignore[misc] # diskcache ships no types
    """The table of contents: diskcache without its settings, its patience and its threads.

    One connection serves the process, not one per thread: it is used under `_guard` only, and so
    can be closed before a fork.
    """

    def __init__(self, folder: str) -> None:
        self._connection: sqlite3.Connection | None = None
        # Whether this process has dropped what killed ones left among the contents.
        self.is_swept = False
        try:
            super().__init__(folder, timeout=_BUSY_SECONDS, disk=_Names, **_SETTINGS)
            self.sql(_INDEX)
            self.sql(_ADD_UP)
        except BaseException:
            self.close()
            raise

    def __del__(self) -> None:
        self.close()

    @property
    def _con(self) -> sqlite3.Connection:
        if self._connection is None:
            connection = sqlite3.connect(
                f"{self._directory}/{DBNAME}",
                timeout=_BUSY_SECONDS,
                isolation_level=None,
                check_same_thread=False,
            )
            try:
                _claim(connection)
                for pragma in _PRAGMAS:
                    connection.execute(pragma).fetchall()
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    @property
    def _sql_retry(self) -> Callable[..., sqlite3.Cursor]:
        # SQLite itself waits for `_BUSY_SECONDS`; the original tries again for a minute.
        return self.sql

    def sql(self, statement: str, arguments: tuple[object, ...] = ()) -> sqlite3.Cursor:
        """Run one statement."""
        return self._con.execute(statement, arguments)

    def reset(self, key: str, value: object = ENOVAL, update: bool = True) -> Any:  # noqa: FBT001, FBT002 -- as diskcache has it
        """Set what diskcache wants to know from `_SETTINGS`, whatever the database says."""
        if key in METADATA:
            return super().reset(key, value, update)
        if key in _SETTINGS:
            setattr(self, key, _SETTINGS[key])
        return value

    def close(self) -> None:
        """Close the connection, and with it a transaction that failed halfway."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


class _Database:
    """How the table is reached: opened when it is needed, replaced when it is broken.

    Every error leaves here as `CacheUnavailable`.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._path = f"{folder}/{DBNAME}"
        self._table: _Table | None = None
        # Device and inode of the database that is open: another process may have replaced it.
        self._identity: tuple[int, int] | None = None
        self._has_replaced = False
        self._shut = _Pause()
        self._unwritable = _Pause()

    def ask(self, act: Callable[[_Table], _T], *, writes: bool = False) -> _T:
        """Do something with the table; a broken one is replaced, once in a process."""
        with _guard:
            self._shut.check()
            if writes:
                self._unwritable.check()
            try:
                return act(self._open())
            except Exception as error:
                if not self._replace(error):
                    raise self._judge(error, writes=writes) from error
            try:
                return act(self._open())
            except Exception as error:
                raise self._judge(error, writes=writes) from error

    def close(self) -> None:
        """Close the connection; the next use opens it again."""
        with _guard:
            if self._table is not None:
                self._table.close()

    def _open(self) -> _Table:
        if self._table is None or _identity(self._path) != self._identity:
            self.close()
            self._table = None
            self._table = self._start()
        return self._table

    def _start(self) -> _Table:
        _make_folders(self._folder)
        self._identity = _identity(self._path)
        for name in (self._path, f"{self._path}-wal", f"{self._path}-shm"):
            if os.path.lexists(name) and not stat.S_ISREG(os.lstat(name).st_mode):
                raise sqlite3.DatabaseError(f"{name} is no file")
        give_up_at = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                table = _Table(self._folder)
                break
            except sqlite3.OperationalError as error:
                # SQLite does not wait while another process makes the database.
                if _code(error) not in _BUSY or time.monotonic() > give_up_at:
                    raise
                time.sleep(0.01)
        self._identity = _identity(self._path)
        _adopt(table, self._folder)
        return table

    def _replace(self, error: Exception) -> bool:
        """Put a broken database aside; returns whether it is worth trying again."""
        if self._has_replaced or not _is_broken(error, self._path):
            return False
        self._has_replaced = True
        self.close()
        self._table = None
        # Another process may have done so already.
        if self._identity is not None and _identity(self._path) == self._identity:
            random = secrets.token_hex(8)
            with contextlib.suppress(OSError):
                for suffix in ("-wal", "-shm", ""):
                    if os.path.lexists(self._path + suffix):
                        _put_aside(self._folder, self._path + suffix, f"{DBNAME}{suffix}-{random}")
            logger.warning(
                "The table of the cache in %s was broken (%s); it is in damaged/ now, and a new "
                "one was begun with the contents that are there",
                self._folder,
                repr(error),
            )
        return True

    def _judge(self, error: Exception, *, writes: bool) -> CacheUnavailable:
        """Say in which way the cache fails, and leave that alone for a while."""
        self.close()
        if self._table is None or _is_broken(error, self._path):
            return self._shut.begin("its folder or its table cannot be used")
        if isinstance(error, sqlite3.Error | diskcache.Timeout):
            if writes:
                return self._unwritable.begin("its table cannot be written")
            return CacheUnavailable("its table cannot be read")
        return CacheUnavailable("its files cannot be used")


class _Pause:
    """A while in which something is not tried, and why."""

    def __init__(self) -> None:
        self._until = 0.0
        self._why = ""

    def begin(self, why: str) -> CacheUnavailable:
        self._until = time.monotonic() + _PAUSE_SECONDS
        self._why = why
        return CacheUnavailable(why)

    def check(self) -> None:
        if time.monotonic() < self._until:
            raise CacheUnavailable(self._why)


class ArtifactCache:
    """A folder near this process that keeps contents by their digests.

    It may be shared by threads and processes, pickled, used on after a fork, and deleted while it
    is in use. Nothing on the disk is touched before its first use.

    Args:
        folder: Where; made for this user alone at first use. On a local file system.
        size_limit: The most bytes of contents; by default a tenth of the file system, at most
            100 GiB. Whatever the limit, 5 % of the file system stay free.
    """

    def __init__(self, folder: str | os.PathLike[str], *, size_limit: int | None = None) -> None:
        self.folder = Path(os.path.abspath(folder))
        self._folder = str(self.folder)
        if os.path.expandvars(self._folder) != self._folder:
            # diskcache would expand it, and keep its table elsewhere.
            raise ValueError(
                f"The folder {str(folder)!r} holds a variable; give os.path.expandvars() of it"
            )
        if size_limit is not None and size_limit < 0:
            raise ValueError(f"size_limit is a number of bytes, at least 0; got {size_limit}")
        self.counters = Counters()
        self._size_limit = size_limit
        self._database = _Database(self._folder)
        self._known: dict[str, _Known] = {}
        self._recalled: dict[str, tuple[_Stamp, str]] = {}
        self._warned: set[str] = set()
        _living.add(self)

    def __repr__(self) -> str:
        limit = "" if self._size_limit is None else f", size_limit={self._size_limit}"
        return f"ArtifactCache({self._folder!r}{limit})"

    def __getstate__(self) -> dict[str, object]:
        return {"folder": self.folder, "size_limit": self._size_limit}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @property
    def size_limit(self) -> int:
        """The most bytes of contents."""
        if self._size_limit is not None:
            return self._size_limit
        place = self._folder
        while not os.path.exists(place):
            place = os.path.dirname(place)
        return min(shutil.disk_usage(place).total // 10, _MOST_BY_DEFAULT)

    def close(self) -> None:
        """Close the database; the next use opens it again."""
        self._database.close()

    # Contents out

    def open(self, digest: str) -> BinaryIO | None:
        """Open a content, verified, at its beginning; None if the cache does not have it."""
        known = self._known.get(digest)
        if known is not None:
            # No lock and no SQLite: an unchanged stamp says that these are the verified bytes.
            try:
                descriptor = os.open(known.path, _READ)
            except OSError:
                pass  # evicted by another process, most likely: the table knows
            else:
                if _stamp(os.fstat(descriptor)) == known.stamp:
                    if time.monotonic() > known.refresh_at:
                        self._mark(digest, known.name, known.stamp)
                    self._count_hit(known.stamp)
                    return io.FileIO(descriptor)
                os.close(descriptor)
            self._known.pop(digest, None)
        _check_digest(digest)
        file = self._look_up(digest)
        if file is None:
            with _counting:
                self.counters.misses += 1
        return file

    def forget(self, digest: str) -> None:
        """Drop a content."""
        _check_digest(digest)
        self._known.pop(digest, None)
        self._try(lambda table: table.delete(digest), writes=True)

    def volume(self) -> int:
        """Return the bytes of contents held; 0 if the cache cannot tell."""
        return self._try(_volume) or 0

    # Contents in

    @contextlib.contextmanager
    def admit(self, digest: str, *, size: int) -> Iterator[Slot | None]:
        """Make room for a content and yield where to write it; None if the cache passes it by.

        That is when it is larger than the limit, when there is no room even after eviction, and
        when the cache is broken. What is not published when the block ends is gone.

        Args:
            digest: The digest of the content.
            size: Its length in bytes.
        """
        _check_digest(digest)
        if size < 0:
            raise ValueError(f"The size of a content is a number of bytes, at least 0; got {size}")
        slot = None
        if self._size_limit is None or size <= self._size_limit:
            slot = self._try(lambda table: self._reserve(table, digest, size), writes=True)
        try:
            yield slot
        except CacheUnavailable as error:
            self._warn(str(error), error.__cause__)
            raise
        finally:
            if slot is not None:
                slot.close()

    # Records

    def recall(self, name: str) -> str | None:
        """Return the text that was remembered under this name, or None."""
        changes = _changes(self._folder)
        recalled = self._recalled.get(name)
        if recalled is not None and recalled[0] == changes:
            # No lock and no SQLite: no record has been changed since this one was read.
            return recalled[1]
        if _RECORD_NAME.fullmatch(name) is None:
            return None
        text: str | None = self._try(lambda table: table.get(f"={name}"))
        if text is None or _RECORD_VALUE.fullmatch(text) is None:
            return None
        if changes is not None:
            _put_bounded(self._recalled, name, (changes, text))
        return text

    def remember(self, name: str, value: str) -> None:
        """Keep a short text under a name, for a while.

        Both are printable ASCII of at most 1,200 characters; what is not is not kept.
        """
        if not _RECORD_NAME.fullmatch(name) or not _RECORD_VALUE.fullmatch(value):
            return
        if self.recall(name) != value:
            changed = self._try(lambda table: _set_record(table, name, value), writes=True)
            self._recalled.pop(name, None)
            if changed is not False:
                self._try(lambda _: _say_changed(self._folder))

    # How a content is found right

    def _look_up(self, digest: str) -> io.FileIO | None:
        row = self._try(lambda table: table.get(digest, read=True, tag=True))
        if row is None or row == (None, None):
            return None
        name, tag = row
        file = None
        try:
            file = _open_content(_path(self._folder, name, digest))
            self._verify(file, digest, name, tag)
        except _WrongError as error:
            why = str(error)
            self._try(lambda table: self._expel(table, digest, row, why), writes=True)
        except OSError as error:
            self._warn("its files cannot be used", error)
        else:
            return file
        if file is not None:
            file.close()
        return None

    def _verify(self, file: io.FileIO, digest: str, name: str, tag: object) -> None:
        """Find an open file right, by its stamp or by hashing it."""
        stamp = _stamp(os.fstat(file.fileno()))
        if not self._is_private():
            _hash(file, digest)
        elif (age := _age(tag, stamp)) is None:
            stamp = _settle(file.fileno())
            _hash(file, digest)
            self._mark(digest, name, stamp)
        elif age > _REFRESH_SECONDS:
            self._mark(digest, name, stamp)
        else:
            self._know(digest, name, stamp, age=age)
        self._count_hit(stamp)

    def _is_private(self) -> bool:
        """Tell whether only this user can have written to the folder, so that stamps say all."""
        if not hasattr(os, "geteuid"):
            return True
        status = os.stat(self._folder)
        return status.st_uid == os.geteuid() and not status.st_mode & 0o022

    def _mark(self, digest: str, name: str, stamp: _Stamp) -> None:
        """Note that a file is right and in use: its content is young again."""
        now = time.time()
        self._know(digest, name, stamp, age=0)
        self._try(
            lambda table: table.sql(
                "UPDATE Cache SET store_time = ?, tag = ?"
                " WHERE key = ? AND raw = 1 AND filename = ?",
                (now, _tag(stamp, now), digest, name),
            ),
            writes=True,
        )

    def _know(self, digest: str, name: str, stamp: _Stamp, *, age: float) -> None:
        refresh_at = time.monotonic() + _REFRESH_SECONDS - age
        known = _Known(name, f"{self._folder}/{name}", stamp, refresh_at)
        _put_bounded(self._known, digest, known)

    def _expel(self, table: _Table, digest: str, row: tuple[str | None, object], why: str) -> None:
        """Drop the row of a content that turned out wrong, and put its file aside."""
        name, tag = row
        with table.transact():
            # The tag says which row was seen: another process may have put a right one there.
            dropped = table.sql(
                "DELETE FROM Cache WHERE key = ? AND raw = 1 AND tag IS ?", (digest, tag)
            ).rowcount
            path = _path(self._folder, name, digest)
            if dropped and path is not None:
                with contextlib.suppress(OSError):
                    if stat.S_ISREG(os.lstat(path).st_mode):
                        _put_aside(self._folder, path, os.path.basename(path))
                    else:
                        os.unlink(path)
        if dropped:
            with _counting:
                self.counters.heals += 1
            logger.warning("Content %s in %s is to be fetched anew: %s", digest, repr(self), why)

    def _count_hit(self, stamp: _Stamp) -> None:
        with _counting:
            self.counters.hits += 1
            self.counters.bytes_served += stamp[2]

    # How a content comes in

    def _reserve(self, table: _Table, digest: str, size: int) -> Slot | None:
        """Evict what must go for a content of this size and make its file; None if in vain."""
        limit = self.size_limit
        if size > limit or not hasattr(os, "pwrite"):
            return None
        with contextlib.ExitStack() as stack:
            with table.transact():
                if not table.is_swept:
                    _sweep(table, self._folder)
                    table.is_swept = True
                aside = _aside(self._folder)
                can_go = _volume(table) + sum(entry.size for entry in aside)
                promised, unwritten = _promised(self._folder)
                excess = max(
                    can_go + promised + size - limit,
                    unwritten + size + _SLACK - _room(self._folder),
                )
                if excess > can_go:
                    return None
                if excess > 0:
                    self._evict(table, aside, excess)
                path = f"{self._folder}/tmp/{digest}-{secrets.token_hex(8)}-{size}"
                slot = Slot(path, size=size, take_in=self._take_in)
                stack.callback(slot.close)
            # What was evicted may share its blocks with other files: see what came of it.
            if excess > 0 and unwritten + size > _room(self._folder):
                return None
            stack.pop_all()
            return slot

    def _evict(self, table: _Table, aside: list[_Moved], excess: int) -> None:
        """Delete at least so many bytes: what was put aside, then contents, the oldest first."""
        for entry in aside:
            if excess <= 0:
                return
            with contextlib.suppress(FileNotFoundError):
                os.unlink(entry.name)
            excess -= entry.size
        while excess > 0:
            rows = table.sql(
                "SELECT rowid, filename, size FROM Cache WHERE filename IS NOT NULL"
                " ORDER BY store_time LIMIT 64"
            ).fetchall()
            for rowid, name, size in rows:
                if excess <= 0:
                    return
                # The file before its row: a crash between them leaves a row without a file, which
                # is a miss, and not a file without a row, which nobody would find.
                table.disk.remove(name)
                table.sql("DELETE FROM Cache WHERE rowid = ?", (rowid,))
                excess -= size if isinstance(size, int) else 0
                with _counting:
                    self.counters.evictions += 1
            if not rows:
                return

    def _take_in(self, slot: Slot) -> io.FileIO:
        """Give a finished file its place and its row, and open it there."""
        digest = os.path.basename(slot.path)[:64]
        name = f"contents/{digest[:2]}/{digest}-{secrets.token_hex(8)}"
        path = f"{self._folder}/{name}"

        def move_in(table: _Table) -> tuple[io.FileIO, _Stamp]:
            with contextlib.ExitStack() as stack:
                stack.callback(_move_back, path, slot.path)
                # One transaction, so that nobody takes the file for one that has no row.
                with table.transact():
                    file = stack.enter_context(_move(slot, path))
                    # After the rename, which changes the ctime.
                    stamp = _stamp(os.fstat(file.fileno()))
                    tag = _tag(stamp, time.time())
                    table.set(digest, _Moved(name, slot.size), read=True, tag=tag)
                stack.pop_all()
                return file, stamp

        file, stamp = self._database.ask(move_in, writes=True)
        with contextlib.suppress(OSError):
            if self._is_private():
                self._know(digest, name, stamp, age=0)
        return file

    # How it fails

    def _try(self, act: Callable[[_Table], _T], *, writes: bool = False) -> _T | None:
        """Do something with the table; None, and one warning, if the cache cannot."""
        try:
            return self._database.ask(act, writes=writes)
        except CacheUnavailable as error:
            self._warn(str(error), error.__cause__)
            return None

    def _warn(self, what: str, error: BaseException | None) -> None:
        if what not in self._warned:
            self._warned.add(what)
            # Texts, not objects: a log record may be kept, and what it names with it.
            logger.warning("%s is gone around: %s (%s)", repr(self), what, repr(error))


class Slot:
    """Room for one content: a file to fill, which publishes itself or is gone.

    Made by `ArtifactCache.admit`. Several threads may write to it.
    """

    def __init__(self, path: str, *, size: int, take_in: Callable[[Slot], io.FileIO]) -> None:
        self.path = path
        self.size = size
        self._take_in = take_in
        # No write may fall on a descriptor that was closed and given to another file meanwhile.
        self._lock = threading.Lock()
        self._descriptor = os.open(path, _MAKE, 0o600)
        if fcntl is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def fileno(self) -> int:
        """Return the descriptor of the file, for reading and writing."""
        if self._descriptor < 0:
            raise ValueError("The slot is closed: it was published, or its block has ended")
        return self._descriptor

    def write_at(self, piece: bytes | bytearray | memoryview, offset: int) -> None:
        """Write all of a piece at an offset.

        Raises:
            CacheUnavailable: The disk is full, or the piece is outside the room that was made.
        """
        with memoryview(piece).cast("B") as rest, self._lock:
            if offset < 0 or offset + len(rest) > self.size:
                raise CacheUnavailable("a content was longer than announced") from ValueError(
                    f"{len(rest)} bytes at {offset} do not fit into {self.size} bytes"
                )
            done = 0
            try:
                while done < len(rest):
                    done += os.pwrite(self.fileno(), rest[done:], offset + done)
            except OSError as error:
                raise CacheUnavailable("its files cannot be written") from error

    def publish(self) -> BinaryIO:
        """Make the content, which the caller has verified, part of the cache, and open it.

        Raises:
            CacheUnavailable: It is not whole, or the cache cannot take it.
        """
        with self._lock:
            try:
                length = os.fstat(self.fileno()).st_size
                if length != self.size:
                    raise CacheUnavailable("a content was not written whole") from ValueError(
                        f"expected {self.size} bytes, {length} were written"
                    )
                os.fchmod(self.fileno(), 0o400)
                _settle(self.fileno())
            except OSError as error:
                raise CacheUnavailable("its files cannot be written") from error
            file = self._take_in(self)
        self.close()
        return file

    def close(self) -> None:
        """Delete the file unless it was published."""
        with self._lock:
            descriptor, self._descriptor = self._descriptor, -1
            if descriptor >= 0:
                os.close(descriptor)
                with contextlib.suppress(OSError):
                    os.unlink(self.path)


# Steps in the folder


def _make_folders(folder: str) -> None:
    os.makedirs(folder, mode=0o700, exist_ok=True)
    if not os.listdir(folder):
        _write_new(f"{folder}/CACHEDIR.TAG", _CACHEDIR_TAG)
    for name in ("contents", "tmp", "damaged"):
        os.makedirs(f"{folder}/{name}", mode=0o700, exist_ok=True)
        if os.path.islink(f"{folder}/{name}"):
            raise NotADirectoryError(f"{folder}/{name} is a symlink; a cache keeps to its folder")
    # One byte, so that the disk has room for more even when it is full.
    _write_new(f"{folder}/changes", b".")


def _write_new(path: str, body: bytes) -> None:
    """Write a file unless there is one."""
    with contextlib.suppress(FileExistsError), open(path, "xb") as file:
        file.write(body)


def _changes(folder: str) -> _Stamp | None:
    """Return what is another value after a record changed or went; None if it cannot be told."""
    try:
        return _stamp(os.lstat(f"{folder}/changes"))
    except OSError:
        return None


def _say_changed(folder: str) -> None:
    descriptor = os.open(f"{folder}/changes", os.O_WRONLY | os.O_APPEND | os.O_CREAT | _SAFE, 0o600)
    try:
        os.write(descriptor, b".")
    finally:
        os.close(descriptor)


def _open_content(path: str | None) -> io.FileIO:
    """Open a file; raises `_WrongError` if there is none in this place."""
    if path is None:
        raise _WrongError("its row leads elsewhere")
    try:
        descriptor = os.open(path, _READ)
    except OSError as error:
        if error.errno in _NO_FILE:
            raise _WrongError(f"its file is gone ({error.strerror})") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _WrongError("something that is no file lies in its place")
    return io.FileIO(descriptor)


def _move(slot: Slot, path: str) -> io.FileIO:
    """Give a finished file its place, and open it there."""
    above = os.path.dirname(path)
    if not os.path.isdir(above):
        os.makedirs(above, mode=0o700, exist_ok=True)
    if os.path.islink(above) or os.path.islink(os.path.dirname(above)):
        raise NotADirectoryError(f"{above} is reached through a symlink")
    os.rename(slot.path, path)
    file = io.FileIO(os.open(path, _READ))
    if _stamp(os.fstat(file.fileno())) != _stamp(os.fstat(slot.fileno())):
        file.close()
        raise FileNotFoundError(f"somebody put another file in the place of {path}")
    return file


def _move_back(path: str, slot_path: str) -> None:
    with contextlib.suppress(OSError):
        os.rename(path, slot_path)


def _path(folder: str, name: object, digest: str = "") -> str | None:
    """Return where a content lies; None if the name is not its own, or leads out of the folder."""
    if type(name) is not str or _CONTENT_NAME.fullmatch(name) is None:
        return None
    if not name.startswith(digest, len("contents/aa/")):
        return None
    if os.path.islink(f"{folder}/contents") or os.path.islink(f"{folder}/{name[:11]}"):
        return None
    return f"{folder}/{name}"


def _room(folder: str) -> int:
    """Return the bytes that may still be written; the floor of the file system is left."""
    disk = shutil.disk_usage(folder)
    return disk.free - disk.total // _FREE_PARTS


def _promised(folder: str) -> tuple[int, int]:
    """Return the bytes reserved by files being filled, and how many are not on the disk yet."""
    promised = unwritten = 0
    for name in os.listdir(f"{folder}/tmp"):
        match = _SLOT_NAME.fullmatch(name)
        if match is None:
            continue
        path = f"{folder}/tmp/{name}"
        with contextlib.suppress(FileNotFoundError):
            status = os.lstat(path)
            if _is_left_over(path, status):
                with contextlib.suppress(OSError):
                    os.unlink(path)
                continue
            size = int(match[1])
            promised += size
            unwritten += max(0, size - status.st_blocks * 512)
    return promised, unwritten


def _is_left_over(path: str, status: os.stat_result) -> bool:
    """Tell whether whoever filled this file is dead."""
    age = time.time() - status.st_mtime
    if age < _QUIET_SECONDS or not stat.S_ISREG(status.st_mode):
        return False
    if fcntl is not None:
        try:
            with open(path, "r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass  # no locks on this file system
        else:
            return True
    return age > _FORGOTTEN_SECONDS


def _aside(folder: str, pattern: re.Pattern[str] = _DAMAGED_CONTENT) -> list[_Moved]:
    """Return the files of this kind that were put aside, the oldest first."""
    found = []
    for name in filter(pattern.fullmatch, os.listdir(f"{folder}/damaged")):
        path = f"{folder}/damaged/{name}"
        with contextlib.suppress(FileNotFoundError):
            status = os.lstat(path)
            if stat.S_ISREG(status.st_mode):
                found.append((status.st_ctime_ns, _Moved(path, status.st_size)))
    return [entry for _, entry in sorted(found)]


def _put_aside(folder: str, path: str, name: str) -> None:
    """Move what lies here to where it can be inspected, and drop the oldest of its kind there."""
    os.rename(path, f"{folder}/damaged/{name}")
    for pattern in (_DAMAGED_CONTENT, _DAMAGED_TABLE):
        for entry in _aside(folder, pattern)[:-_MOST_DAMAGED]:
            os.unlink(entry.name)


def _sweep(table: _Table, folder: str) -> None:
    """Drop the contents without a row, in a transaction of the caller.

    A file gets its place and its row in one transaction: whoever is inside of another one and finds
    a file without a row knows that its process was killed.
    """
    known = {name for (name,) in table.sql("SELECT filename FROM Cache WHERE filename IS NOT NULL")}
    for name in _content_names(folder):
        if name not in known:
            table.disk.remove(name)


def _content_names(folder: str) -> Iterator[str]:
    """Yield the names of what lies among the contents."""
    for above in os.listdir(f"{folder}/contents"):
        if os.path.isdir(f"{folder}/contents/{above}"):
            for last in os.listdir(f"{folder}/contents/{above}"):
                yield f"contents/{above}/{last}"


def _adopt(table: _Table, folder: str) -> None:
    """Take what lies in the folder into a new table; each is verified before it is served."""
    if table.sql(_ANY_CONTENT).fetchone():
        return
    # The records of the table before are gone.
    _say_changed(folder)
    with table.transact():
        if table.sql(_ANY_CONTENT).fetchone():
            return
        for name in _content_names(folder):
            path = _path(folder, name)
            if path is not None and stat.S_ISREG((status := os.lstat(path)).st_mode):
                digest = os.path.basename(name)[:64]
                table.set(digest, _Moved(name, status.st_size), read=True, tag="")


# Stamps


def _stamp(status: os.stat_result) -> _Stamp:
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def _settle(descriptor: int) -> _Stamp:
    """Backdate a file and return its stamp.

    The clock of a file system stands still for up to 10 ms: a write right after this moment could
    leave the times as they are. It cannot set the time of a second ago.
    """
    with contextlib.suppress(PermissionError):
        now = time.time_ns()
        os.utime(descriptor, ns=(now, now - 10**9))
    return _stamp(os.fstat(descriptor))


@cache
def _boot() -> str:
    """Return what changes when the machine starts again, where that can be told.

    What had not reached the disk at a power cut can come back as zeros under the old size and
    times; fsync would cost 0.3 s/GiB for every content, hashing it again half of that for some.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _text(stamp: _Stamp) -> str:
    return ":".join([*map(str, stamp), _boot()])


def _tag(stamp: _Stamp, now: float) -> str:
    """Return what a row notes: the stamp, and when its content was last made young."""
    return f"{_text(stamp)} {int(now)}"


def _age(tag: object, stamp: _Stamp) -> float | None:
    """Return for how many seconds a row has noted this stamp; None if it has not."""
    noted, _, seconds = tag.partition(" ") if isinstance(tag, str) else ("", "", "")
    if noted != _text(stamp) or re.fullmatch("[0-9]{1,12}", seconds) is None:
        return None
    return abs(time.time() - int(seconds))


def _hash(file: io.FileIO, digest: str) -> None:
    """Read a file from its beginning and go back there; raises if it is not this content."""
    hasher = Hasher()
    buffer = memoryview(bytearray(min(BUFFER_SIZE, os.fstat(file.fileno()).st_size + 1)))
    size = 0
    try:
        while count := file.readinto(buffer):
            hasher.update(buffer[:count])
            size += count
    except OSError as error:
        raise _WrongError(f"its file cannot be read ({error.strerror})") from error
    if (found := hasher.hexdigest()) != digest:
        raise _WrongError(f"its {size} bytes have the digest {found}")
    file.seek(0)


def _check_digest(digest: str) -> None:
    if not is_digest(digest):
        raise ValueError(f"Not a digest (64 characters of 0-9 and a-f): {digest!r}")


# Steps in the table


def _claim(connection: sqlite3.Connection) -> None:
    """Mark a new database as ours; refuse one that is not."""
    # In this order: whoever makes the tables has marked it before.
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (mark,) = connection.execute("PRAGMA application_id").fetchone()
    if not tables and not mark:
        connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
    elif mark != _APPLICATION_ID:
        raise sqlite3.DatabaseError(f"it is marked {mark}, expected {_APPLICATION_ID}")


def _volume(table: _Table) -> int:
    # diskcache's triggers keep the sum: adding up 100,000 rows for every content takes 30 ms.
    return int(table.reset("size"))


def _put_bounded(memory: dict[str, _T], name: str, value: _T) -> None:
    if len(memory) >= _MOST_KNOWN:
        memory.clear()
    memory[name] = value


def _set_record(table: _Table, name: str, value: str) -> bool:
    """Write a record and return whether one was changed or dropped that others may know."""
    with table.transact():
        changes = table.get(f"={name}") not in {None, value}
        table.set(f"={name}", value)
        if len(table) > _MOST_RECORDS:
            count = "SELECT COUNT(*) FROM Cache WHERE filename IS NULL"
            surplus = table.sql(count).fetchone()[0] - _MOST_RECORDS
            if surplus > 0:
                table.sql(
                    "DELETE FROM Cache WHERE rowid IN (SELECT rowid FROM Cache"
                    " WHERE filename IS NULL ORDER BY store_time LIMIT ?)",
                    (surplus + _MOST_RECORDS // 100,),
                )
                changes = True
    return changes


def _identity(path: str) -> tuple[int, int] | None:
    """Return which file this is, or None if there is none."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _code(error: BaseException) -> int | None:
    """Return the primary result code of SQLite, if it gave one."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _is_broken(error: Exception, path: str) -> bool:
    """Tell whether the database itself is wrong, rather than the place where it lies."""
    if not isinstance(error, sqlite3.DatabaseError):
        # Settings and rows that we never wrote.
        return isinstance(error, TypeError | ValueError | AttributeError)
    code = _code(error)
    if code == sqlite3.SQLITE_READONLY:
        # A wrong byte in its header says so, too.
        return os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids)
    return code is None or code in _BROKEN


# Fork. SQLite must not be carried across it: a connection of the parent's, even one that is only
# closed in the child, makes the child believe that it holds locks (sqlite.org/howtocorrupt, 2.6).
# So no thread is inside SQLite at a fork, and no connection is open.

_guard = threading.RLock()
_counting = threading.Lock()
_living: weakref.WeakSet[ArtifactCache] = weakref.WeakSet()


def _before_fork() -> None:
    _guard.acquire()
    _counting.acquire()
    for each in list(_living):
        each.close()


def _after_fork() -> None:
    _counting.release()
    _guard.release()


def _after_fork_in_child() -> None:
    _after_fork()
    for each in list(_living):
        each.counters = Counters()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork,
        after_in_child=_after_fork_in_child,
    )
