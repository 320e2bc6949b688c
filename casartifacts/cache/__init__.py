"""Whole contents near this process: bytes that may vanish at any moment without harm.

    this file   ArtifactCache: contents out and in, and text records
    room        what must go for a content that comes in
    slots       a content on its way in
    waiting     for another one that brings the same content in
    database    how the table is reached, replaced, and kept from forks
    table       which contents there are (diskcache, SQLite)
    listing     the same, where others can write to the folder
    rights      in which folders no cache may lie
    folder      what lies in the folder, and the steps in it
    trust       stamps: what need not be hashed again
    mounts      on which file system a folder lies
    counters    what happened
    upkeep      what people ask of a cache: what is in it, and to clean it
    failures    `CacheUnavailable`

Rule 1: a failing cache never fails a read. It says so once per kind of failure and is gone around;
only a `Slot` raises, and only `CacheUnavailable`.
Rule 2: what lies here is trusted only as far as a stamp goes that was taken when its bytes were
verified, and each read looks at it again. Another stamp, another boot: it is hashed again. A file
that another user can change is hashed at each delivery, while a private copy of it is made, and
that copy is handed out. What is wrong is put aside and counts as a miss, so it heals.
Rule 3: nothing found in the folder is executed, and nothing outside it is read, moved or deleted:
no pickle, no setting and no path is taken from the database (diskcache 5.6.3, CVE-2025-69872).
Rule 4: correctness rests on no lock, and no hit waits for another process.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import secrets
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, TypeVar, overload

from casartifacts import files
from casartifacts.cache import folder as places
from casartifacts.cache import rights, room, trust, upkeep
from casartifacts.cache.counters import Counters, Counting, totals
from casartifacts.cache.database import AnyTable, Database
from casartifacts.cache.failures import CacheUnavailable, WrongError
from casartifacts.cache.folder import Filling
from casartifacts.cache.slots import Slot, marked
from casartifacts.cache.table import Row, is_record_name, is_record_text
from casartifacts.cache.trust import Stamp, Watched, stamp_of
from casartifacts.cache.upkeep import Cleaned, Stat, Verified
from casartifacts.cache.waiting import wait_for
from casartifacts.digest import is_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "ArtifactCache",
    "CacheUnavailable",
    "Cleaned",
    "Counters",
    "Leftover",
    "Slot",
    "Stat",
    "Verified",
]

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

# A hit makes its content young again only this often: so nearly every hit writes nothing and takes
# no lock (8 processes: 171k hits/s against 16k when each is a transaction).
_REFRESH_SECONDS = 600

# A private copy of at most this many bytes is made in memory; of more, in the folder.
_MOST_IN_MEMORY = 2**20

# Contents that a process found right, 0.5 KiB each: these are opened without SQLite.
_MOST_KNOWN = 16_384


class _Known(NamedTuple):
    """A content that this process found right: its file, as what, and when to refresh its row."""

    name: str
    path: str
    stamp: Stamp
    refresh_at: float


class ArtifactCache:
    """A folder near this process that keeps contents by their digests.

    It may be shared by threads and processes, pickled, used on after a fork, and deleted while it
    is in use. Nothing on the disk is touched before its first use.

    Args:
        folder: Where (`~` is the home folder); made at first use. On a local file system.
        size_limit: The most bytes of the folder but its table (and broken ones put aside):
            contents, those on their way in, those put aside, and what is counted and noted beside
            them, for which 68 kB are kept free, 6.6 MB where others may write. In a cache under a
            hundred times that, these come on top. By default a tenth of the file system, at most
            100 GiB. One that is smaller than what is there holds from the next content on.
        min_free: The bytes of the file system that stay free, whatever the limit; by default 5 %.
        shared: Whether the folder, if there is none yet or an empty one, is made for all of its
            group, which is that of the folder above if that has the setgid bit, else the user's
            own. Who finds it made needs to say nothing: its mode (2770) does. Otherwise it is made
            for this user alone.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        size_limit: int | None = None,
        min_free: int | None = None,
        shared: bool = False,
    ) -> None:
        self.folder = Path(os.path.abspath(os.path.expanduser(folder)))
        self._folder = str(self.folder)
        if "\0" in self._folder:
            raise ValueError(f"The folder {str(folder)!r} holds a NUL, which no path can")
        if os.path.expandvars(self._folder) != self._folder:
            # diskcache would expand it, and keep its table elsewhere.
            raise ValueError(
                f"The folder {str(folder)!r} holds a variable; give os.path.expandvars() of it"
            )
        for name, size in (("size_limit", size_limit), ("min_free", min_free)):
            if size is not None and size < 0:
                raise ValueError(f"{name} is a number of bytes, at least 0; got {size}")
        self._size_limit = size_limit
        self._min_free = min_free
        self._counting = Counting(self._folder)
        self._shared = shared
        self._database = Database(self._folder, shared=shared)
        self._known: dict[str, _Known] = {}
        self._recalled: dict[str, tuple[Stamp, str | None]] = {}
        self._warned: set[str] = set()

    def __repr__(self) -> str:
        said = [
            f", {name}={value}" for name, value in self._settings().items() if value is not None
        ]
        return f"ArtifactCache({self._folder!r}{''.join(said)})"

    def _settings(self) -> dict[str, object]:
        return {
            "size_limit": self._size_limit,
            "min_free": self._min_free,
            "shared": self._shared or None,
        }

    def __getstate__(self) -> dict[str, object]:
        return {"folder": self.folder, **self._settings(), "shared": self._shared}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @property
    def counters(self) -> Counters:
        """What happened in this process since this object was made."""
        return self._counting.counters

    def totals(self) -> Counters:
        """What happened in this folder in all processes, the living and the dead, until now."""
        return totals(self._folder)

    @property
    def size_limit(self) -> int:
        """The most bytes of contents."""
        if self._size_limit is not None:
            return self._size_limit
        return room.default_limit(self._folder)

    def close(self) -> None:
        """Close the files that it has open; the next use opens them again."""
        self._database.close()
        self._counting.close()

    # Contents out

    def open(self, digest: str, *, counted: bool = True) -> BinaryIO | None:
        """Open a content, verified, at its beginning; None if the cache does not have it.

        It counts as a hit or a miss, unless it is only looked into for the sake of another content.
        """
        known = self._known.get(digest)
        if known is not None:
            # No lock and no SQLite: an unchanged stamp says that these are the verified bytes.
            try:
                descriptor = os.open(known.path, places.READ)
            except OSError:
                pass  # evicted by another process, most likely: the table knows
            else:
                if stamp_of(os.fstat(descriptor)) == known.stamp:
                    if time.monotonic() > known.refresh_at:
                        self._mark(digest, known.name, known.stamp)
                    if counted:
                        self._count_hit(known.stamp)
                    watched = Watched(descriptor)
                    watched.watch(known.stamp)
                    return watched
                os.close(descriptor)
            self._known.pop(digest, None)
        _check_digest(digest)
        file = self._look_up(digest, counted=counted)
        if file is None and counted:
            with self._counting as counters:
                counters.misses += 1
        return file

    def link(
        self, digest: str, file: BinaryIO, target: Path, *, symbolic: bool, overwrite: bool
    ) -> None:
        """Make a path a hard or symbolic link to a content that was opened just now.

        The link leads to the cache's own file, which is read-only. What is written through it all
        the same is noticed when the content is opened next.

        Args:
            digest: The digest of the content.
            file: What `open` or `Slot.publish` returned.
            target: The path.
            symbolic: Whether it is to be a symlink, which leads nowhere after an eviction.
            overwrite: Whether what is there is replaced, at once.

        Raises:
            FileExistsError: There is something.
            CorruptArtifact: Somebody has changed the file since it was opened.
            OSError: No link can be had here; it says why.
        """
        known = self._known.get(digest)
        if not isinstance(file, Watched):
            raise PermissionError("another user put it into the cache")
        status = os.fstat(file.fileno())
        self._check_lendable(status, symbolic=symbolic)
        file.check()
        path = known.path if known is not None else self._path_of(digest)
        files.publish_link(
            path, target, descriptor=file.fileno(), symbolic=symbolic, overwrite=overwrite
        )
        if known is not None and not symbolic:
            self._try(partial(self._note_link, digest, known, file.fileno()), writes=True)

    def forget(self, digest: str) -> None:
        """Drop a content."""
        _check_digest(digest)
        self._known.pop(digest, None)
        self._try(lambda table: table.drop(digest), writes=True)

    def volume(self) -> int:
        """Return the bytes of contents held; 0 if the cache cannot tell."""
        return self._try(lambda table: table.bytes_held()) or 0

    # Contents in

    def fetch(self, digest: str, *, size: int, fill: Callable[[Slot], object]) -> BinaryIO | None:
        """Bring a content in, once for all who want it at the same time, and open it.

        Who is not the first waits for who is, takes over when that one ends without success, and
        goes on alone when nothing has come for a minute.

        Args:
            digest: The digest of the content.
            size: Its length in bytes.
            fill: Called with a slot to fill; it verifies what it writes. If it is interrupted, the
                next one finds what it had written.

        Returns:
            The content, verified, at its beginning; None if the cache passes it by: it is larger
            than the limit, there is no room even after eviction, or the cache is broken.
        """
        passing: set[str] = set()
        while True:
            got = self._reserve(digest, size=size, passing=passing)
            if got is None:
                # The table may be busy, or read-only: whom to wait for stands in the folder.
                got = room.being_filled(self._folder, digest, passing=passing)
            if not isinstance(got, Filling):
                break
            with self._counting as counters:
                counters.waits += 1
            wait_for(got)
            passing.add(got.path)
            # Somebody has just used the table: if it was busy here, it is not any more.
            self._database.try_again()
            if (file := self._look_up(digest)) is not None:
                return file
        if got is None:
            return None
        try:
            # Between the look before and the slot somebody may have published it, and whoever
            # waited for that may have looked before it was known.
            if (file := self._look_up(digest)) is not None:
                got.close()
                return file
            fill(got)
            return got.publish()
        except CacheUnavailable as error:
            self._warn(str(error), error.__cause__)
            got.close()
        finally:
            got.close(keep=True)
        # Somebody else may have published it, and what was written here with it.
        return self._look_up(digest)

    @contextlib.contextmanager
    def admit(self, digest: str, *, size: int) -> Iterator[Slot | None]:
        """Make room for a content and yield where to write it; None if the cache passes it by.

        Whoever else brings it in, too, is not waited for. What is not published when the block ends
        is gone.
        """
        slot = self._reserve(digest, size=size)
        try:
            yield slot
        except CacheUnavailable as error:
            self._warn(str(error), error.__cause__)
            raise
        finally:
            if slot is not None:
                slot.close()

    # Records

    def recall(self, name: str, *, exact: bool = True) -> str | None:
        """Return the text that was remembered under this name last, by whoever, or None.

        If it was another user of a shared folder, what is returned is "": who it was could have
        written anything, so all that is known is that there is a text.

        Args:
            name: The name.
            exact: Whether None is certain, too. With False, who was told None may be told so again
                until some record changes, although a text was remembered with `at_once=False`.
        """
        changes = places.changes(self._folder)
        recalled = self._recalled.get(name)
        if recalled is not None and recalled[0] == changes:
            # No lock and no SQLite: no record has been changed since this one was read.
            text = recalled[1]
            if text is not None or not exact:
                return text
        if not is_record_name(name):
            return None
        found = self._try(lambda table: (table.record(name),))
        if found is None:
            return None  # the table failed: that there is no record is not known
        if changes is not None:
            _put_bounded(self._recalled, name, (changes, found[0]))
        return found[0]

    def remember(
        self, name: str, value: str, *, at_once: bool = True, unless: str | None = None
    ) -> None:
        """Keep a short text under a name, for a while.

        Both are printable ASCII of at most 1,200 characters; what is not is not kept.

        Args:
            name: The name.
            value: The text.
            at_once: Whether also those learn of it at once who know that there was none. It costs
                every process a question to SQLite for each name that it recalls: False is for many
                new names where None is right, too.
            unless: A text that is not replaced.
        """
        if not is_record_name(name) or not is_record_text(value):
            return
        changed: bool | None = False
        if self.recall(name) != value:
            changed = self._try(
                lambda table: table.set_record(name, value, unless=unless), writes=True
            )
            self._recalled.pop(name, None)
        # Also if it stood there already: who wrote it may have been killed before it said so.
        if at_once or changed is not False:
            self._try(lambda _: places.say_changed(self._folder))

    # Upkeep: these say what goes wrong

    def stat(self) -> Stat:
        """Return what the cache holds, and what happened in it.

        Raises:
            FileNotFoundError: There is no cache here.
            CacheUnavailable: It cannot be read.
        """
        self._check_is_there()
        return self._ask(
            partial(
                upkeep.look,
                folder=self._folder,
                size_limit=self.size_limit,
                floor=self._min_free,
            ),
            writes=False,
        )

    def verify(self) -> Verified:
        """Hash every content; what is wrong is put aside, as `open` does it.

        What another user of a shared folder has closed to this one is passed by.

        Raises:
            FileNotFoundError: There is no cache here.
            CacheUnavailable: It cannot be used.
        """
        self._check_is_there()
        contents = size = 0
        wrong = []
        last = ""
        while page := self._ask(partial(upkeep.digests, after=last), writes=False):
            for last in page:
                row = self._ask(partial(upkeep.find, digest=last), writes=False)
                if row is None:
                    continue  # evicted meanwhile
                try:
                    size += self._verify_anew(last, row)
                    contents += 1
                except PermissionError as error:
                    logger.warning("%s passes by content %s: %s", repr(self), last, repr(error))
                except WrongError as error:
                    if self._ask(partial(self._expel, digest=last, row=row, why=str(error))):
                        wrong.append(last)
        return Verified(contents, size, tuple(wrong))

    def clean(self, *, everything: bool = False) -> Cleaned:
        """Take out what killed processes left, what was put aside, and what leads nowhere.

        What is open stays readable, and what is on its way in is not touched.

        Args:
            everything: Whether all contents go, too.

        Raises:
            FileNotFoundError: There is no cache here.
            CacheUnavailable: It cannot be written.
        """
        self._check_is_there()
        if everything:
            self._known.clear()
        return upkeep.clean(self._folder, self._ask, everything=everything)

    def _check_is_there(self) -> None:
        """Refuse to make a cache where people only ask for one."""
        if not places.is_cache(self._folder):
            if os.path.isdir(self._folder):
                rights.check(self._folder)
            raise FileNotFoundError(f"There is no cache in {self._folder}")

    # How a content is found right

    def _look_up(self, digest: str, *, counted: bool = True) -> BinaryIO | None:
        row = self._try(lambda table: table.find(digest))
        if row is None:
            return None
        with contextlib.ExitStack() as stack:
            try:
                file = places.open_content(places.path_of(self._folder, row.name, digest=digest))
                stack.callback(file.close)
                if not trust.is_private(self._folder):
                    found = self._verify_shared(file, digest, row)
                else:
                    found = self._verify(file, digest, row)
                if found is file:
                    stack.pop_all()
            except WrongError as error:
                self._try(partial(self._expel, digest=digest, row=row, why=str(error)), writes=True)
            except CacheUnavailable as error:
                self._warn(str(error), error.__cause__)
            except OSError as error:
                self._warn("its files cannot be used", error)
            else:
                if counted and found is not None:
                    self._count_hit(stamp_of(os.fstat(found.fileno())))
                return found
        return None

    def _verify(self, file: Watched, digest: str, row: Row) -> Watched:
        """Find an open file right, by its stamp or by hashing it."""
        stamp = stamp_of(os.fstat(file.fileno()))
        if (age := trust.age(row.tag, stamp)) is None:
            stamp = trust.settle(file.fileno())
            trust.verify(file, digest)
            self._mark(digest, row.name, stamp)
        elif age > _REFRESH_SECONDS:
            self._mark(digest, row.name, stamp)
        else:
            self._know(digest, row.name, stamp, age=age)
        file.watch(stamp)
        return file

    def _verify_shared(self, file: Watched, digest: str, row: Row) -> io.FileIO | None:
        """Find an open file right in a folder that others can write to, or a copy of it.

        Nothing that is noted there counts. A file of this user's that nobody else can write to is
        known to this process from now on; of any other one a private copy is handed out, because
        its owner may change it at any moment. None if there is no room for that.
        """
        status = os.fstat(file.fileno())
        stamp = stamp_of(status)
        found: io.FileIO | None = file
        if not trust.is_own(status):
            found = self._copy(file, digest, size=status.st_size)
        else:
            trust.verify(file, digest)
            file.watch(stamp)
        if found is None:
            return None
        # Of who lists a folder, the ctime of a file is the age of its content.
        age = abs(time.time() - status.st_ctime)
        if age > _REFRESH_SECONDS:
            self._try(lambda table: table.refresh(digest, row.name, tag="", now=0), writes=True)
        elif found is file and trust.is_settled(stamp):
            self._know(digest, row.name, stamp, age=age)
        return found

    def _copy(self, file: io.FileIO, digest: str, *, size: int) -> io.FileIO | None:
        """Make a private copy of a file while it is hashed; None if there is no room for it."""
        if size <= _MOST_IN_MEMORY and hasattr(os, "memfd_create"):
            copy = io.FileIO(os.memfd_create("content"), "r+")
        else:
            # Under the name of a content that nobody has, so that its room is reserved, and whose
            # it was when it is dead is known, until its reader is closed.
            nobodys = secrets.token_hex(32)
            slot = self._reserve(nobodys, size=size)
            if slot is None:
                return None
            with contextlib.ExitStack() as unused:
                unused.callback(slot.close)
                copy = _Copy(slot)
                unused.pop_all()
        with contextlib.ExitStack() as stack:
            stack.callback(copy.close)
            trust.verify(file, digest, copy_to=copy.fileno(), most=size)
            copy.seek(0)
            stack.pop_all()
        return copy

    def _check_lendable(self, status: os.stat_result, *, symbolic: bool) -> None:
        """Refuse to link what somebody else may change under the link's owner."""
        if not hasattr(os, "geteuid"):
            raise OSError("this system has no links to read-only files")
        if status.st_uid != os.geteuid():
            raise PermissionError("another user put it into the cache")
        if not status.st_nlink:
            # Also a copy that was made of another user's file.
            raise FileNotFoundError("it is not in the cache any more")
        if status.st_mode & 0o222 or not trust.is_own(status):
            raise PermissionError("somebody made the cache's file writable")
        if symbolic and not trust.is_private(self._folder):
            raise PermissionError(f"others may write to {self._folder}")

    def _path_of(self, digest: str) -> str:
        row = self._try(lambda table: table.find(digest))
        path = None if row is None else places.path_of(self._folder, row.name, digest=digest)
        if path is None:
            raise FileNotFoundError("the cache does not have it any more")
        return path

    def _note_link(self, digest: str, known: _Known, descriptor: int, table: AnyTable) -> None:
        """Trust a file on that has one more link: its ctime is another one, its bytes are not."""
        # In a transaction: of several that link at once the last one notes what all have done.
        with table.transact():
            stamp = stamp_of(os.fstat(descriptor))
            if trust.is_same_but_for_links(known.stamp, stamp):
                now = time.time()
                table.refresh(digest, known.name, tag=trust.tag(stamp, now), now=now)
                self._know(digest, known.name, stamp, age=0)

    def _verify_anew(self, digest: str, row: Row) -> int:
        """Hash the file of a row, whatever its stamp; returns its bytes."""
        path = places.path_of(self._folder, row.name, digest=digest)
        with places.open_content(path) as file:
            stamp = trust.settle(file.fileno())
            trust.verify(file, digest)
        if trust.is_private(self._folder) and trust.age(row.tag, stamp) is None:
            self._mark(digest, row.name, stamp)
        return stamp[2]

    def _mark(self, digest: str, name: str, stamp: Stamp) -> None:
        """Note that a file is right and in use: its content is young again."""
        now = time.time()
        self._know(digest, name, stamp, age=0)
        tag = trust.tag(stamp, now)
        self._try(lambda table: table.refresh(digest, name, tag=tag, now=now), writes=True)

    def _know(self, digest: str, name: str, stamp: Stamp, *, age: float) -> None:
        refresh_at = time.monotonic() + _REFRESH_SECONDS - age
        known = _Known(name, f"{self._folder}/{name}", stamp, refresh_at)
        _put_bounded(self._known, digest, known)

    def _expel(self, table: AnyTable, *, digest: str, row: Row, why: str) -> bool:
        """Drop the row of a content that turned out wrong, and put its file aside.

        Returns whether it was still there.
        """
        with table.transact():
            # The tag says which row was seen: another process may have put a right one there.
            dropped = table.strike(digest, tag=row.tag)
            path = places.path_of(self._folder, row.name, digest=digest)
            if dropped and path is not None:
                try:
                    places.put_aside(self._folder, path)
                except OSError:  # such as no folder to put it into
                    with contextlib.suppress(OSError):
                        places.delete(self._folder, path)
        if dropped:
            with self._counting as counters:
                counters.heals += 1
            logger.warning("Content %s in %s is to be fetched anew: %s", digest, repr(self), why)
        return dropped

    def _count_hit(self, stamp: Stamp) -> None:
        with self._counting as counters:
            counters.hits += 1
            counters.bytes_served += stamp[2]

    # How a content comes in

    @overload
    def _reserve(self, digest: str, *, size: int) -> Slot | None: ...

    @overload
    def _reserve(self, digest: str, *, size: int, passing: set[str]) -> Slot | Filling | None: ...

    def _reserve(
        self, digest: str, *, size: int, passing: set[str] | None = None
    ) -> Slot | Filling | None:
        """Make a slot; where not all are passed by, it may be another one's file instead."""
        _check_digest(digest)
        if size < 0:
            raise ValueError(f"The size of a content is a number of bytes, at least 0; got {size}")
        if self._size_limit is not None and size > self._size_limit:
            return None

        def reserve(table: AnyTable) -> Slot | Filling | None:
            return room.reserve(
                table,
                partial(Slot, self._folder, digest=digest, size=size, take_in=self._take_in),
                folder=self._folder,
                digest=digest,
                size=size,
                limit=self.size_limit,
                floor=self._min_free,
                passing=passing,
                counting=self._counting,
            )

        return self._try(reserve, writes=True)

    def _take_in(self, slot: Slot) -> Watched:
        """Give a finished file its place and its row, and open it there."""
        name = places.new_content_name(slot.digest)
        path = f"{self._folder}/{name}"

        def move_in(table: AnyTable) -> tuple[Watched, Stamp]:
            with contextlib.ExitStack() as after, contextlib.ExitStack() as opened:
                # One transaction, so that nobody takes the file for one that has no row.
                with table.transact(), contextlib.ExitStack() as undo:
                    after.enter_context(marked(self._folder, slot.digest, path))
                    undo.callback(places.move_back, path, to=slot.path)
                    file = places.move_in(slot.path, slot.fileno(), to=path)
                    opened.enter_context(file)
                    # After the rename, which changes the ctime.
                    stamp = stamp_of(os.fstat(file.fileno()))
                    if slot.stamp is None or not trust.is_same_but_for_links(slot.stamp, stamp):
                        raise CacheUnavailable("somebody changed a content on its way in")
                    tag = trust.tag(stamp, time.time())
                    table.enter(slot.digest, name, size=slot.size, tag=tag)
                    undo.pop_all()
                opened.pop_all()
            return file, stamp

        file, stamp = self._database.ask(move_in, writes=True)
        with self._counting as counters:
            counters.bytes_fetched += slot.size
        file.watch(stamp)
        with contextlib.suppress(OSError):
            if trust.is_own(os.fstat(file.fileno())):
                self._know(slot.digest, name, stamp, age=0)
        return file

    # How it fails

    def _try(self, act: Callable[[AnyTable], _T], *, writes: bool = False) -> _T | None:
        """Do something with the table; None, and one warning, if the cache cannot."""
        try:
            return self._database.ask(act, writes=writes)
        except CacheUnavailable as error:
            self._warn(str(error), error.__cause__)
            return None

    def _ask(self, act: Callable[[AnyTable], _T], *, writes: bool = True) -> _T:
        """Do something with the table for somebody who wants to know why it cannot be done."""
        try:
            return self._database.ask(act, writes=writes)
        except CacheUnavailable as error:
            why = "" if error.__cause__ is None else f" ({error.__cause__})"
            raise CacheUnavailable(f"The cache in {self._folder}: {error}{why}") from error

    def _warn(self, what: str, error: BaseException | None) -> None:
        if what not in self._warned:
            self._warned.add(what)
            # Texts, not objects: a log record may be kept, and what it names with it.
            why = "" if error is None else f" ({error!r})"
            logger.warning("%s is gone around: %s%s", repr(self), what, why)


class _Copy(io.FileIO):
    """A private copy of a content, which is gone when its reader is closed."""

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        super().__init__(os.dup(slot.fileno()), "r+")

    def close(self) -> None:
        """Close it, and give its room back."""
        super().close()
        self._slot.close()


def _put_bounded(memory: dict[str, _T], name: str, value: _T) -> None:
    if len(memory) >= _MOST_KNOWN:
        memory.clear()
    memory[name] = value


def _check_digest(digest: str) -> None:
    if not is_digest(digest):
        raise ValueError(f"Not a digest (64 characters of 0-9 and a-f): {digest!r}")
