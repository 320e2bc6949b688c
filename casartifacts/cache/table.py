"""The table of contents: which contents the folder holds, how old they are, and the text records.

diskcache 5.6.3, tamed: it pickles what it stores, takes settings and paths from its database
(CVE-2025-69872), and evicts by the row. Here it does none of this.

Rule 1: this file is the only one that knows diskcache and speaks SQL.
Rule 2: nothing found in the database is executed or followed: a row holds a digest and the name of
its file, or a name and a text, and whatever else it holds counts as nothing.
Rule 3: it is used under the guard of `database` only.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import stat
from typing import TYPE_CHECKING, Any, NamedTuple

import diskcache
from diskcache.core import ENOVAL, METADATA, MODE_BINARY, MODE_RAW

from casartifacts.cache.folder import (
    TABLE,
    content_names,
    digest_of_content,
    path_of,
    say_changed,
)
from casartifacts.digest import is_digest

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BUSY_SECONDS", "FAILURES", "PAGE", "Row", "Table", "is_record_name", "is_record_text"]

# How long a statement waits for another process: their transactions take about 1 ms.
BUSY_SECONDS = 3

# What says that the table failed, rather than a file.
FAILURES = (sqlite3.Error, diskcache.Timeout)

# Text records in the table; beyond this the oldest go, a hundredth at a time.
_MOST_RECORDS = 100_000

# Rows in a transaction where there are many to do: 10 ms.
PAGE = 1000

_RECORD_NAME = re.compile(r"[ -~]{1,1200}")
_RECORD_TEXT = re.compile(r"[ -~]{0,1200}")

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
_ANY_WRONG_SIZE = (
    "SELECT 1 FROM Cache WHERE filename IS NOT NULL"
    " AND (typeof(size) <> 'integer' OR size NOT BETWEEN 0 AND 1125899906842624) LIMIT 1"
)
# Once in a process, in case the sum in the database is wrong.
_ADD_UP = (
    "UPDATE Settings SET value ="
    " (SELECT COALESCE(SUM(size), 0) FROM Cache WHERE filename IS NOT NULL) WHERE key = 'size'"
)


class Row(NamedTuple):
    """What stands in the row of a content: the name of its file, "" if that is none, and a tag."""

    name: str
    tag: object


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
        if type(key) is str and (is_digest(key) or (key[:1] == "=" and is_record_name(key[1:]))):
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

    def remove(self, file_path: object) -> bool:
        """Delete the file of a content, and tell whether it is gone; what else is named is none."""
        path = path_of(self._directory, file_path)
        if path is None:
            return True
        with contextlib.suppress(OSError):
            os.unlink(path)
        return not os.path.isfile(path)


class Table(diskcache.Cache):  # type: ignore[misc] # diskcache ships no types
    """diskcache without its settings, its patience and its threads.

    One connection serves the process, not one per thread, so that it can be closed before a fork.
    What belongs together is done in `with table.transact():`.
    """

    # The bytes of notes that lie beside it.
    most_noted = 0

    def __init__(self, folder: str) -> None:
        self._connection: sqlite3.Connection | None = None
        # Whether this process has dropped what killed ones left among the contents.
        self.is_swept = False
        try:
            super().__init__(folder, timeout=BUSY_SECONDS, disk=_Names, **_SETTINGS)
            self.sql(_INDEX)
            self._check_sizes()
            self.sql(_ADD_UP)
        except BaseException:
            self.close()
            raise

    def _check_sizes(self) -> None:
        """Raise if a row lies about its size: with it, room is made in vain or not at all.

        A new table takes them from the files.
        """
        if self.sql(_ANY_WRONG_SIZE).fetchone():
            raise sqlite3.DatabaseError("a content has a size that it cannot have")

    def __del__(self) -> None:
        self.close()

    # What diskcache does otherwise

    @property
    def _con(self) -> sqlite3.Connection:
        if self._connection is None:
            connection = sqlite3.connect(
                f"{self._directory}/{TABLE}",
                timeout=BUSY_SECONDS,
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
        # SQLite itself waits for `BUSY_SECONDS`; the original tries again for a minute.
        return self.sql

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

    def sql(self, statement: str, arguments: tuple[object, ...] = ()) -> sqlite3.Cursor:
        """Run one statement."""
        return self._con.execute(statement, arguments)

    # Contents

    def find(self, digest: str) -> Row | None:
        """Return what stands in the row of a content, or None."""
        name, tag = self.get(digest, read=True, tag=True)
        return None if name is None and tag is None else Row(name or "", tag)

    def enter(self, digest: str, name: str, *, size: int, tag: str) -> None:
        """Give a content that lies in its place its row; the file of an earlier one goes."""
        self.set(digest, _Moved(name, size), read=True, tag=tag)

    def refresh(self, digest: str, name: str, *, tag: str, now: float) -> None:
        """Make a content young and note what trusts it."""
        self.sql(
            "UPDATE Cache SET store_time = ?, tag = ? WHERE key = ? AND raw = 1 AND filename = ?",
            (now, tag, digest, name),
        )

    def drop(self, digest: str) -> None:
        """Delete a content and its row."""
        # In a transaction diskcache deletes the file before the row, as `drop_oldest` does.
        with self.transact():
            self.delete(digest)

    def strike(self, digest: str, *, tag: object) -> bool:
        """Delete a row but not its file; tells whether there was one with this tag."""
        statement = "DELETE FROM Cache WHERE key = ? AND raw = 1 AND tag IS ?"
        return bool(self.sql(statement, (digest, tag)).rowcount)

    def bytes_held(self) -> int:
        """Return the bytes of all contents."""
        # diskcache's triggers keep the sum: adding up 100,000 rows for every content takes 30 ms.
        return int(self.reset("size"))

    def drop_oldest(self, excess: int) -> tuple[int, int]:
        """Delete so many bytes of contents, the oldest first.

        Returns:
            How many contents went, and their bytes.
        """
        dropped = freed = kept = 0
        while freed < excess:
            rows = self.sql(
                "SELECT rowid, filename, size FROM Cache WHERE filename IS NOT NULL"
                " ORDER BY store_time LIMIT 64 OFFSET ?",
                (kept,),
            ).fetchall()
            for rowid, name, size in rows:
                if freed >= excess:
                    break
                # The file before its row: a crash between them leaves a row without a file, which
                # is a miss, and not a file without a row, which nobody would find.
                if not self.disk.remove(name):
                    kept += 1
                    continue
                self.sql("DELETE FROM Cache WHERE rowid = ?", (rowid,))
                freed += size if isinstance(size, int) else 0
                dropped += 1
            if not rows:
                break
        return dropped, freed

    def contents_held(self) -> int:
        """Return how many contents there are."""
        return int(self.sql("SELECT COUNT(*) FROM Cache WHERE filename IS NOT NULL").fetchone()[0])

    def digests(self, *, after: str) -> list[str]:
        """Return the digests of a page of contents, those that follow this one."""
        rows = self.sql(
            "SELECT key FROM Cache WHERE key > ? AND raw = 1 AND filename IS NOT NULL"
            " AND typeof(key) = 'text' AND length(key) = 64 AND key NOT GLOB '*[^0-9a-f]*'"
            " ORDER BY key LIMIT ?",
            (after, PAGE),
        )
        return [digest for (digest,) in rows]

    def drop_some(self) -> list[int]:
        """Delete a page of contents; returns their sizes."""
        with self.transact():
            rows = self.sql(
                "SELECT rowid, filename, size FROM Cache WHERE filename IS NOT NULL LIMIT ?",
                (PAGE,),
            ).fetchall()
            gone = [row for row in rows if self.disk.remove(row[1])]
            for rowid, *_ in gone:
                self.sql("DELETE FROM Cache WHERE rowid = ?", (rowid,))
        return [size if isinstance(size, int) else 0 for *_, size in gone]

    def drop_lost(self, *, after: int) -> tuple[int, int] | None:
        """Delete, of the page of rows that follows this one, those whose files are gone or cut.

        Returns how many went, and the last row of the page; None if there is no page.
        """
        with self.transact():
            rows = self.sql(
                "SELECT rowid, key, filename, size FROM Cache WHERE filename IS NOT NULL"
                " AND rowid > ? ORDER BY rowid LIMIT ?",
                (after, PAGE),
            ).fetchall()
            lost = 0
            for rowid, digest, name, size in rows:
                path = path_of(self._directory, name, digest=str(digest))
                if path is None or _size_of(path) != size:
                    self.sql("DELETE FROM Cache WHERE rowid = ?", (rowid,))
                    lost += 1
        return (lost, rows[-1][0]) if rows else None

    def drop_strays(self, *, above: str) -> list[int]:
        """Delete the files in one folder of contents that have no row; returns their sizes."""
        gone = []
        with self.transact():
            for last in os.listdir(f"{self._directory}/{above}"):
                name = f"{above}/{last}"
                path = path_of(self._directory, name)
                if path is None or self._has_row(name):
                    continue
                size = os.lstat(path).st_size
                self.disk.remove(name)
                if not os.path.lexists(path):
                    gone.append(size)
        return gone

    def _has_row(self, name: str) -> bool:
        statement = "SELECT 1 FROM Cache WHERE key = ? AND raw = 1 AND filename = ?"
        return self.sql(statement, (digest_of_content(name), name)).fetchone() is not None

    def sweep(self, *, anew: bool) -> None:
        """Drop the contents without a row, once in a process or anew, in the caller's transaction.

        A file gets its place and its row in one transaction: whoever is inside of another one and
        finds a file without a row knows that its process was killed.
        """
        if self.is_swept and not anew:
            return
        rows = self.sql("SELECT filename FROM Cache WHERE filename IS NOT NULL")
        known = {name for (name,) in rows}
        for name in content_names(self._directory):
            if name not in known:
                self.disk.remove(name)
        self.is_swept = True

    def adopt(self) -> None:
        """Take what lies in the folder into a new table; each is verified before it is served."""
        if self.sql(_ANY_CONTENT).fetchone():
            return
        # The records of the table before are gone.
        say_changed(self._directory)
        with self.transact():
            if self.sql(_ANY_CONTENT).fetchone():
                return
            for name in content_names(self._directory):
                status = os.lstat(f"{self._directory}/{name}")
                if stat.S_ISREG(status.st_mode):
                    self.enter(digest_of_content(name), name, size=status.st_size, tag="")

    # Records

    def record(self, name: str) -> str | None:
        """Return the text of a record, or None."""
        text: str | None = self.get(f"={name}")
        return text if text is not None and is_record_text(text) else None

    def set_record(self, name: str, text: str, *, unless: str | None = None) -> bool:
        """Write a record and return whether one was changed or dropped that others may know.

        One that holds the text `unless` is left as it is.
        """
        with self.transact():
            before = self.get(f"={name}")
            if before is not None and before == unless:
                return False
            changes = before not in {None, text}
            self.set(f"={name}", text)
            if len(self) > _MOST_RECORDS:
                count = "SELECT COUNT(*) FROM Cache WHERE filename IS NULL"
                surplus = self.sql(count).fetchone()[0] - _MOST_RECORDS
                if surplus > 0:
                    self.sql(
                        "DELETE FROM Cache WHERE rowid IN (SELECT rowid FROM Cache"
                        " WHERE filename IS NULL ORDER BY store_time LIMIT ?)",
                        (surplus + _MOST_RECORDS // 100,),
                    )
                    changes = True
        return changes


def is_record_name(name: str) -> bool:
    """Tell whether a record may have this name: 1 to 1,200 characters of printable ASCII."""
    return _RECORD_NAME.fullmatch(name) is not None


def is_record_text(text: str) -> bool:
    """Tell whether a record may hold this: at most 1,200 characters of printable ASCII."""
    return _RECORD_TEXT.fullmatch(text) is not None


def _size_of(path: str) -> int | None:
    """Return the length of a file; None if there is none."""
    with contextlib.suppress(OSError):
        status = os.lstat(path)
        return status.st_size if stat.S_ISREG(status.st_mode) else None
    return None


def _claim(connection: sqlite3.Connection) -> None:
    """Mark a new database as ours; refuse one that is not."""
    # In this order: whoever makes the tables has marked it before.
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (mark,) = connection.execute("PRAGMA application_id").fetchone()
    if not tables and not mark:
        connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
    elif mark != _APPLICATION_ID:
        raise sqlite3.DatabaseError(f"it is marked {mark}, expected {_APPLICATION_ID}")
