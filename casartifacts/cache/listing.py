"""A table of contents that is the folder itself, for folders to which others can write.

SQLite must not be used there. A file `cache.db-journal` that somebody planted makes it delete the
file that the journal names, wherever that lies; it writes its log through a symlink; and whoever
cuts `cache.db-shm` short kills all that have it mapped (tests/test_users.py shows the first and
the last). So there is no table, and with it none of the rows that another user could have forged: a
content is there if a file with its name is, its size is that of the file, and its age its ctime,
which nobody sets.

Rule 1: nothing found here is believed. Names of our own form are listed, and whoever opens one
verifies it. Of what another user noted nothing is believed but that there is a note.
Rule 2: nothing outside the folder is deleted or moved, even if somebody swaps a folder for a
symlink in the same instant: `folder` deletes by descriptors.
Rule 3: it has the methods of `table.Table`, and is used under the same guard.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from typing import TYPE_CHECKING, NamedTuple

from casartifacts.cache import folder as places
from casartifacts.cache.table import BUSY_SECONDS, PAGE, Row, is_record_text
from casartifacts.cache.trust import is_own
from casartifacts.digest import digest_of

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Listing"]

# Notes in the folder; beyond this the oldest go, a quarter at a time. To count them takes 3 ms, so
# only one note in sixteen, by the digest of its name, sees to it.
_MOST_RECORDS = 4_000
_ONE_SEES_TO_IT_IN = 16

# A folder that changed in the last two seconds may change again without another ctime: the clocks
# of file systems go by 10 ms, or by seconds.
_SETTLED_SECONDS = 2

# So often a folder is looked through although it did not change: a file in it may have grown.
_LOOK_SECONDS = 60


class _Content(NamedTuple):
    """A file among the contents; the oldest sorts first."""

    ctime_ns: int
    name: str
    size: int
    is_own: bool


class _Seen(NamedTuple):
    """What lay in a folder of contents, and what tells that it does still."""

    state: tuple[int, int, int]
    at: float
    contents: list[_Content]
    size: int


class Listing:
    """The contents and notes in a folder, by its listing."""

    # The bytes of notes that lie beside it: that none of a thousand more sees to it happens once in
    # 10^28 times.
    most_noted = (_MOST_RECORDS + 1_000) * places.MOST_IN_RECORD

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._depth = 0
        self._seen: dict[str, _Seen] = {}

    def close(self) -> None:
        """Do nothing: nothing is held open."""

    @contextlib.contextmanager
    def transact(self) -> Iterator[None]:
        """Keep others who change the folder out, where locks work: two never make room at once."""
        with contextlib.ExitStack() as stack:
            if not self._depth:
                descriptor = os.open(self._folder, os.O_RDONLY)
                stack.callback(os.close, descriptor)
                give_up_at = time.monotonic() + BUSY_SECONDS
                while places.lock(descriptor) is False:
                    if time.monotonic() > give_up_at:
                        raise TimeoutError(f"another process keeps {self._folder} locked")
                    time.sleep(0.002)
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1

    # Contents

    def find(self, digest: str) -> Row | None:
        """Return a file that has the name of a content, rather one of this user's, or None."""
        found = self._named(digest)
        if not found:
            return None
        best = max(found, key=lambda content: content.is_own)
        return Row(best.name, tag=best.name)

    def enter(self, digest: str, name: str, *, size: int, tag: str) -> None:  # noqa: ARG002 -- as in Table
        """Note that a content lies in its place: it does; the files of earlier ones go."""
        for content in self._named(digest):
            if content.name != name:
                places.delete_content(self._folder, content.name)

    def refresh(self, digest: str, name: str, *, tag: str, now: float) -> None:  # noqa: ARG002 -- as in Table
        """Make a content young: a rename sets its ctime, also if its file is another user's."""
        # In a transaction, so that nobody who lists the folder misses it between two names.
        with self.transact():
            places.rename_content(self._folder, name, places.new_content_name(digest))

    def drop(self, digest: str) -> None:
        """Delete a content."""
        for content in self._named(digest):
            places.delete_content(self._folder, content.name)

    def strike(self, digest: str, *, tag: object) -> bool:  # noqa: ARG002 -- as in Table
        """Tell whether the file that was found is still there."""
        return os.path.lexists(f"{self._folder}/{tag}")

    def bytes_held(self) -> int:
        """Return the bytes of all contents."""
        return sum(seen.size for seen in self._folders())

    def drop_oldest(self, excess: int) -> tuple[int, int]:
        """Delete so many bytes of contents, the oldest first.

        Returns:
            How many contents went, and their bytes.
        """
        dropped = freed = 0
        for content in sorted(self._all()) if excess > 0 else []:
            if freed >= excess:
                break
            if places.delete_content(self._folder, content.name):
                dropped += 1
                freed += content.size
        return dropped, freed

    def contents_held(self) -> int:
        """Return how many contents there are."""
        return sum(len(seen.contents) for seen in self._folders())

    def digests(self, *, after: str) -> list[str]:
        """Return the digests of a page of contents, those that follow this one."""
        found = {places.digest_of_content(content.name) for content in self._all()}
        return sorted(digest for digest in found if digest > after)[:PAGE]

    def drop_some(self) -> list[int]:
        """Delete a page of contents; returns the sizes of those that went."""
        gone: list[int] = []
        for content in self._all():
            if len(gone) == PAGE:
                break
            if places.delete_content(self._folder, content.name):
                gone.append(content.size)
        return gone

    def drop_lost(self, *, after: int) -> tuple[int, int] | None:  # noqa: ARG002 -- as in Table
        """Return None: there are no rows that could lead nowhere."""
        return None

    def drop_strays(self, *, above: str) -> list[int]:  # noqa: ARG002 -- as in Table
        """Do nothing: there are no rows that a content could be without."""
        return []

    def sweep(self, *, anew: bool) -> None:
        """Do nothing, for the same reason."""

    def _all(self) -> Iterator[_Content]:
        for seen in self._folders():
            yield from seen.contents

    def _folders(self) -> Iterator[_Seen]:
        """Yield what lies in each folder; only those that changed are looked through."""
        for above in places.content_folders(self._folder):
            with contextlib.suppress(FileNotFoundError):
                status = os.lstat(f"{self._folder}/{above}")
                # Nobody sets the ctime, and each file that comes or goes does.
                state = status.st_dev, status.st_ino, status.st_ctime_ns
                now = time.time()
                seen = self._seen.pop(above, None)
                if seen is None or seen.state != state or not 0 <= now - seen.at < _LOOK_SECONDS:
                    contents = self._look(places.content_names_in(self._folder, above))
                    seen = _Seen(state, now, contents, sum(content.size for content in contents))
                if seen.at - status.st_ctime > _SETTLED_SECONDS:
                    self._seen[above] = seen
                yield seen

    def _named(self, digest: str) -> list[_Content]:
        return self._look(places.content_names_of(self._folder, digest))

    def _look(self, names: list[str]) -> list[_Content]:
        found = map(self._look_at, names)
        return [content for content in found if content is not None]

    def _look_at(self, name: str) -> _Content | None:
        try:
            status = os.lstat(f"{self._folder}/{name}")
        except OSError:
            return None
        if not stat.S_ISREG(status.st_mode):
            return None
        return _Content(status.st_ctime_ns, name, status.st_size, is_own(status))

    # Records

    def record(self, name: str) -> str | None:
        """Return what this user noted, "" for what another one did, or None."""
        found = self._noted(name)
        if found is None:
            return None
        text, is_mine = found
        return text if is_mine and is_record_text(text) else ""

    def set_record(self, name: str, text: str, *, unless: str | None = None) -> bool:
        """Write a record and return whether one was changed or dropped that others may know.

        One that holds the text `unless` is left as it is.
        """
        with self.transact():
            found = self._noted(name)
            if found is not None and found[0] in {text, unless}:
                return False
            named = _named(name)
            places.write_record(self._folder, named, text)
            sees_to_it = int(named[:8], 16) % _ONE_SEES_TO_IT_IN == 0
            dropped = sees_to_it and places.bound_records(self._folder, _MOST_RECORDS)
        return found is not None or dropped

    def _noted(self, name: str) -> tuple[str, bool] | None:
        return places.read_record(self._folder, _named(name))


def _named(name: str) -> str:
    """Return the name of the file of a record."""
    return digest_of(name.encode())
