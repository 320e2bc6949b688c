"""How the table is reached: opened when it is needed, replaced when it is broken, closed at forks.

Rule 1: every error leaves here as `CacheUnavailable`.
Rule 2: a database of ours that is wrong is put aside once in a process, and a new one begun with
the contents that are there.
Rule 3: SQLite is not carried across a fork: a connection of the parent's, even one that is only
closed in the child, makes the child believe that it holds locks (sqlite.org/howtocorrupt, 2.6). So
no thread is inside SQLite at a fork, and no connection is open.
Rule 4: SQLite is used in a folder of this user's own only; elsewhere the folder is its own table. A
folder that changed its owner, its group or its mode is looked at anew.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import stat
import threading
import time
import weakref
from typing import TYPE_CHECKING, TypeVar

from casartifacts.cache import folder as places
from casartifacts.cache import rights, trust
from casartifacts.cache.failures import CacheUnavailable, Pause
from casartifacts.cache.listing import Listing
from casartifacts.cache.table import BUSY_SECONDS, FAILURES, Table

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["AnyTable", "Database", "trouble_with"]

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

AnyTable = Table | Listing

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


class Database:
    """The table in a folder, for all threads of this process."""

    def __init__(self, folder: str, *, shared: bool = False) -> None:
        self._folder = folder
        self._shared = shared
        self._path = f"{folder}/{places.TABLE}"
        self._table: AnyTable | None = None
        # Device and inode of the database that is open: another process may have replaced it.
        self._identity: tuple[int, int] | None = None
        self._rights: tuple[int, ...] | None = None
        self._has_replaced = False
        self._shut = Pause()
        self._unwritable = Pause()
        with _guard:
            _living.add(self)

    def ask(self, act: Callable[[AnyTable], _T], *, writes: bool = False) -> _T:
        """Do something with the table.

        Raises:
            CacheUnavailable: It failed, or it failed lately.
        """
        with _guard:
            self._shut.check()
            if writes:
                self._unwritable.check()
            try:
                table = self._open()
                if writes and isinstance(table, Listing):
                    rights.check_writable(self._folder)
                return act(table)
            except Exception as error:
                if isinstance(error, CacheUnavailable):
                    if self._table is not None:
                        raise
                    raise self._shut.begin(str(error)) from None  # no cache may lie there
                if not self._replace(error):
                    raise self._judge(error, writes=writes) from error
            try:
                return act(self._open())
            except Exception as error:
                raise self._judge(error, writes=writes) from error

    def try_again(self) -> None:
        """Do not leave it alone any longer, if it had failed lately."""
        with _guard:
            self._shut = Pause()
            self._unwritable = Pause()

    def close(self) -> None:
        """Close the connection; the next use opens it again."""
        with _guard:
            if self._table is not None:
                self._table.close()

    def _open(self) -> AnyTable:
        if (
            self._table is None
            or _identity(self._path) != self._identity
            or _rights(self._folder) != self._rights
        ):
            self.close()
            self._table = None
            self._table = self._start()
        return self._table

    def _start(self) -> AnyTable:
        rights.check(self._folder)
        places.make(self._folder, shared=self._shared)
        rights.check(self._folder)
        self._rights = _rights(self._folder)
        self._identity = _identity(self._path)
        if not trust.is_private(self._folder):
            return Listing(self._folder)
        for name in (self._path, f"{self._path}-wal", f"{self._path}-shm"):
            if os.path.lexists(name) and not stat.S_ISREG(os.lstat(name).st_mode):
                raise sqlite3.DatabaseError(f"{name} is no file")
        give_up_at = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                table = Table(self._folder)
                break
            except sqlite3.OperationalError as error:
                # SQLite does not wait while another process makes the database.
                if _code(error) not in _BUSY or time.monotonic() > give_up_at:
                    raise
                time.sleep(0.01)
        self._identity = _identity(self._path)
        table.adopt()
        return table

    def _replace(self, error: Exception) -> bool:
        """Put a broken database aside; returns whether it is worth trying again."""
        if isinstance(error, FileNotFoundError) and not places.is_whole(self._folder):
            self.close()
            self._table = None  # to open it again makes what is missing
            return True
        if isinstance(self._table, Listing):
            return False
        if self._has_replaced or not _is_broken(error, self._path):
            return False
        self._has_replaced = True
        self.close()
        self._table = None
        # Another process may have done so already.
        if self._identity is not None and _identity(self._path) == self._identity:
            with contextlib.suppress(OSError):
                places.put_table_aside(self._folder)
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
        if isinstance(self._table, Listing):
            self._table = None  # the next use makes what is missing of the folder
            if writes:
                lack = rights.to_share(self._folder) if os.path.isdir(self._folder) else ""
                why = "its folder cannot be written"
                return self._unwritable.begin(f"{why}: {lack}" if lack else why)
            return CacheUnavailable("its folder cannot be read")
        if self._table is None or _is_broken(error, self._path):
            return self._shut.begin("its folder or its table cannot be used")
        if isinstance(error, FAILURES):
            if writes:
                return self._unwritable.begin("its table cannot be written")
            return CacheUnavailable("its table cannot be read")
        return CacheUnavailable("its files cannot be used")


def trouble_with(folder: str) -> str:
    """Open the table of a folder as any use does, and read all of it; say what is wrong, or "".

    Unlike a use, nothing is made where there is no table, and a broken one stays where it is.
    """
    try:
        status = os.lstat(f"{folder}/{places.TABLE}")
    except FileNotFoundError:
        return ""
    if not stat.S_ISREG(status.st_mode):
        return "it is no file"
    if not status.st_size:
        return ""  # the next use fills it
    with _guard:
        try:
            with contextlib.closing(Table(folder)) as table:
                (found,) = table.sql("PRAGMA quick_check(1)").fetchone()
        except (*FAILURES, OSError, TypeError, ValueError, AttributeError) as error:
            return str(error) or repr(error)
    return "" if found == "ok" else " ".join(str(found).split())


def _identity(path: str) -> tuple[int, int] | None:
    """Return which file this is, or None if there is none."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _rights(folder: str) -> tuple[int, ...] | None:
    """Return which folder this is, whose, and who can write to it; None if there is none."""
    try:
        status = os.stat(folder)
    except OSError:
        return None
    others = status.st_mode & (stat.S_ISGID | stat.S_IWGRP | stat.S_IWOTH)
    return status.st_dev, status.st_ino, status.st_uid, status.st_gid, others


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


_guard = threading.RLock()
_living: weakref.WeakSet[Database] = weakref.WeakSet()


def _before_fork() -> None:
    _guard.acquire()
    for each in list(_living):
        each.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_guard.release,
        after_in_child=_guard.release,
    )
