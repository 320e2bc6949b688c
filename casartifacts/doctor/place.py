"""What a place for a store can do, found out by trying it.

It is asked through the contracts of its backend, as `ContentStore` would ask it.

Rule 1: what is written lies under one name of its own, in `tmp/`, and is removed whatever happens;
what cannot be removed is told. No store is made.
Rule 2: a question is asked once.
Rule 3: a right that is missing does not hide another one; but what stands on it is not tried.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import secrets
import shlex
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from casartifacts import errors, names, reading
from casartifacts.backends.filesystem import FileSystemArtifactStore
from casartifacts.backoff import answer_of
from casartifacts.buffers import BUFFER_SIZE
from casartifacts.cache.folder import may_use
from casartifacts.cache.rights import owner_of
from casartifacts.doctor.disks import disk_of
from casartifacts.doctor.findings import Finding, amount, classes_of, told, within
from casartifacts.records import StoreRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from casartifacts.protocols import Backend

__all__ = ["not_opened", "store_in"]

_UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND = 401, 403, 404

# What is written to try a store: above 1 MiB, so that it is streamed as blobs are.
_SIZE = 2**20 + 2**16

# S3 refuses requests whose clock is off by 15 minutes.
_SKEW_SECONDS = 300.0

# What says who is asking, rather than what he may do.
_UNKNOWN_CODES = frozenset(
    {
        *("AuthFailure", "ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId"),
        *("InvalidClientTokenId", "InvalidSecurity", "InvalidToken", "RequestTimeTooSkewed"),
        *("SignatureDoesNotMatch", "TokenRefreshRequired"),
    }
)

# The same before a request is made, by the name of the class: no SDK is loaded for this.
_UNKNOWN_CLASSES = frozenset(
    {
        *("DefaultCredentialsError", "NoCredentialsError", "PartialCredentialsError"),
        *("CredentialRetrievalError", "ProfileNotFound", "RefreshError", "TokenRetrievalError"),
        *("UnauthorizedSSOTokenError", "SSOTokenLoadError"),
    }
)

# What each right is called where it is given.
_RIGHTS = {
    "s3": {
        "list": "s3:ListBucket on the bucket",
        "read": "s3:GetObject on its objects",
        "write": "s3:PutObject on its objects",
        "delete": "s3:DeleteObject on its objects",
    },
    "gs": {
        "list": "storage.objects.list",
        "read": "storage.objects.get",
        "write": "storage.objects.create",
        "delete": "storage.objects.delete (replacing an object needs it too)",
    },
}

_CREDENTIALS = {
    "s3": "Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "Set GOOGLE_APPLICATION_CREDENTIALS, or run `gcloud auth application-default login`",
}

_SERVER = {
    "s3": "Is the server up, and the address right (AWS_ENDPOINT_URL_S3, AWS_REGION, a proxy)?",
    "gs": "Is the network up, and the address right (STORAGE_EMULATOR_HOST, a proxy)?",
}

# The right behind each thing that is not called like one.
_NEEDED = {
    "checksums": "write",
    "clock": "read",
    "conditions": "write",
    "folder": "read",
    "folders": "read",
    "missing": "read",
    "move": "read",
    "ranges": "read",
    "record": "read",
}

_UNUSABLE = "Something between here and the disk changes bytes: use another server or no proxy"


@dataclass
class Place:
    """A place for a store under examination, and what was found out so far.

    Attributes:
        url: What it is called.
        backend: It, as it would be opened, with one try per request.
        below: What the names begin with that are written to try it.
        body: What is written.
        able: What it was seen to do.
        left: Names that may have been written and were not removed yet.
        is_lost: It does not answer, or not to us: nothing further can be asked.
    """

    url: str
    backend: Backend
    below: str = field(default_factory=names.probes)
    body: bytes = field(default_factory=lambda: secrets.token_bytes(_SIZE))
    able: set[str] = field(default_factory=set)
    left: list[str] = field(default_factory=list)
    is_lost: bool = False
    written_at: float = 0.0

    def __post_init__(self) -> None:
        switch_off: Callable[[], None] | None = getattr(self.backend, "retries_off", None)
        if switch_off is not None:
            switch_off()

    @property
    def kind(self) -> str:
        return self.url.partition("://")[0] if self.backend.remote else ""

    def name(self, short: str) -> str:
        """Return a name to try something with, which is removed in the end."""
        name = self.below + short
        if name not in self.left:
            self.left.append(name)
        return name

    def advice(self, right: str) -> str:
        """Say how a right is given."""
        if self.kind in _RIGHTS:
            return f"Grant {_RIGHTS[self.kind][right]}"
        return f"Let this user {right} below {self.url}: chmod, chown or another folder"

    def discard(self, name: str) -> None:
        """Remove a name, with no more rights than that takes."""
        discard: Callable[[str], None] = getattr(self.backend, "discard", self.backend.remove)
        with contextlib.suppress(errors.ArtifactNotFound):
            discard(name)
        self.left.remove(name)

    def read(self, name: str) -> bytes:
        with contextlib.closing(self.backend.open_reader(name)) as reader:
            return b"".join(iter(lambda: reader.read(BUFFER_SIZE), b""))


def store_in(backend: Backend, *, url: str) -> Iterator[Finding]:
    """Examine the place in which there is a store, or will be."""
    place = Place(url, backend)
    if isinstance(backend, FileSystemArtifactStore):
        yield from _folder(place, backend.folder)
        return
    yield from _ask(place, "server", _reach)
    try:
        yield from _try_rights(place)
    finally:
        problem = _clean(place)
    yield from problem
    yield from _ask(place, "record", _record)


def _folder(place: Place, folder: Path) -> Iterator[Finding]:
    """Examine a folder; what is tried lies in a folder of its own, beside what is not published."""

    def disk(place: Place) -> Iterator[Finding]:
        found = disk_of(folder)
        place.is_lost = found.state == "wrong"
        yield found

    yield from _ask(place, "folder", disk)
    yield from _ask(place, "list", _reach)
    yield from _ask(place, "record", _record)
    yield from _ask(place, "folders", _folders)
    if place.is_lost:
        return
    try:
        places = (folder / "tmp", folder, *folder.absolute().parents)
        near = next(path for path in places if path.is_dir())
        own = tempfile.mkdtemp(prefix="doctor-", dir=near)
    except OSError as error:
        yield Finding("write", "wrong", told(error), _what_to_do(place, error, right="write"))
        return
    try:
        tried = FileSystemArtifactStore(own)
        yield from _try_rights(Place(place.url, tried, below="", able=place.able))
    finally:
        shutil.rmtree(own, ignore_errors=True)
    if os.path.lexists(own):
        yield Finding("left behind", "warning", f"{own} cannot be removed", "Delete it")


def _ask(place: Place, about: str, check: Callable[[Place], Iterator[Finding]]) -> list[Finding]:
    """Make one check; an error is a finding too."""
    if place.is_lost:
        return []
    try:
        return within(lambda: list(check(place)))
    except TimeoutError as error:
        place.is_lost = True
        return [Finding(about, "wrong", told(error), _what_to_do(place, error, right=""))]
    except Exception as error:  # noqa: BLE001 -- whatever it is, it is a finding
        right = _NEEDED.get(about, about)
        return [Finding(about, "wrong", told(error), _what_to_do(place, error, right=right))]


def _what_to_do(place: Place, error: Exception, *, right: str) -> str:
    """Say what to do about an error that came of an attempt that takes a right."""
    status, _ = answer_of(error)
    number = error.errno if isinstance(error, OSError) else None
    if status == _FORBIDDEN or number in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return place.advice(right)
    if number in {errno.ENOSPC, errno.EDQUOT}:
        return "Make room, or choose another disk"
    if "SSLError" in classes_of(error):
        variable = "AWS_CA_BUNDLE" if place.kind == "s3" else "REQUESTS_CA_BUNDLE"
        return f"Set {variable} to a file with the certificate of who vouches for this server"
    if status:
        return "Try again later; if it stays, the server's log tells more"
    return _SERVER.get(place.kind, "Is the disk in order, and mounted?")


def not_opened(url: str, error: Exception) -> Finding:
    """Say why a place cannot be opened; raises a `ValueError` again that is about its name."""
    kind = url.partition("://")[0]
    if classes_of(error) & _UNKNOWN_CLASSES:
        return Finding("credentials", "wrong", told(error), _CREDENTIALS.get(kind, ""))
    if isinstance(error, ValueError):
        raise error
    return Finding("store", "wrong", told(error))


def _reach(place: Place) -> Iterator[Finding]:
    """List what `ls` lists: a listing says more about what is wrong than other requests."""
    try:
        next(iter(place.backend.list(names.REFS)), None)
    except Exception as error:
        if not place.kind:
            raise
        yield from _not_reached(place, error)
        return
    place.able.add("list")
    if place.kind:
        yield Finding("credentials", "fine", f"accepted for {place.url}")
    yield Finding("list", "fine", "it lists what it has")


def _not_reached(place: Place, error: Exception) -> Iterator[Finding]:
    status, code = answer_of(error)
    says = told(error)
    if code in _UNKNOWN_CODES or status == _UNAUTHORIZED or classes_of(error) & _UNKNOWN_CLASSES:
        advice = f"{_CREDENTIALS.get(place.kind, '')}; the clock of this machine must be right, too"
        yield Finding("credentials", "wrong", says, advice)
    elif status == _FORBIDDEN:
        yield Finding("credentials", "fine", f"accepted for {place.url}")
        yield Finding("list", "wrong", says, place.advice("list"))
        return
    elif status == _NOT_FOUND:
        advice = "Make the bucket, or correct its name; it is never made here"
        yield Finding("bucket", "wrong", says, advice)
    elif status in {301, 307, 400}:
        advice = "Set AWS_REGION to where the bucket is, and AWS_ENDPOINT_URL_S3 to its server"
        yield Finding("bucket", "wrong", says, advice if place.kind == "s3" else "")
    else:
        yield Finding("server", "wrong", says, _what_to_do(place, error, right="list"))
    place.is_lost = True


# What is tried by writing


def _try_rights(place: Place) -> Iterator[Finding]:
    yield from _ask(place, "missing", _missing)
    yield from _ask(place, "write", _write)
    if "write" not in place.able:
        if not place.is_lost:
            found = "reading, ranges, conditions, deleting and moving: nothing could be written"
            yield Finding("not tried", "warning", found)
        return
    yield from _ask(place, "read", _read)
    if "read" in place.able:
        yield from _ask(place, "ranges", _ranges)
    if "list" in place.able:
        yield from _ask(place, "list", _lists_what_was_written)
    yield from _ask(place, "clock", _clock)
    yield from _ask(place, "conditions", _conditions)
    yield from _ask(place, "checksums", _checksums)
    yield from _ask(place, "delete", _delete)
    if "delete" in place.able:
        yield from _ask(place, "move", _move)
    elif not place.is_lost:
        yield Finding("not tried", "warning", "moving: it needs the right to delete")


def _missing(place: Place) -> Iterator[Finding]:
    """Look at a name that is not there, as each upload does."""
    try:
        found = place.backend.stat(f"{place.below}missing")
    except Exception as error:
        if answer_of(error)[0] != _FORBIDDEN:
            raise
        says = f"{told(error)} for a name that is not there, where 404 is expected"
        lacks = "read" if "list" in place.able else "list"
        because = " (without it, S3 does not tell what is missing)" if lacks == "list" else ""
        yield Finding("missing", "wrong", says, place.advice(lacks) + because)
        return
    if found is None:
        yield Finding("missing", "fine", "a name that is not there is said to be missing")
    else:
        says = f"a name that nobody wrote is said to have {found.size} bytes"
        yield Finding("missing", "wrong", says, "This server cannot be used")


def _write(place: Place) -> Iterator[Finding]:
    name = place.name("written")
    place.written_at = time.time()
    begun = time.perf_counter()
    try:
        place.backend.write(name, io.BytesIO(place.body))
    except Exception as error:
        if answer_of(error)[0] in range(400, 500):
            place.left.remove(name)  # it was refused: there is nothing to remove
        raise
    seconds = time.perf_counter() - begun
    place.able.add("write")
    took = f"{amount(_SIZE)} in {1000 * seconds:.0f} ms"
    yield Finding("write", "fine", f"{took}{', durable' if place.backend.durable else ''}")


def _read(place: Place) -> Iterator[Finding]:
    """Read all of it."""
    name = place.name("written")
    if place.read(name) != place.body:
        yield Finding("read", "wrong", "other bytes came back than were written", _UNUSABLE)
        return
    place.able.add("read")
    yield Finding("read", "fine", "the same bytes came back")


def _ranges(place: Place) -> Iterator[Finding]:
    """Read a part of it, and what is behind its end."""
    name = place.name("written")
    parts = []
    for start in (300, 2 * _SIZE):
        with contextlib.closing(place.backend.open_range(name, start, 1000)) as reader:
            parts.append(reader.read(1000))
    if parts == [place.body[300:1300], b""]:
        yield Finding("ranges", "fine", "a part is read alone")
    else:
        found = "what was asked for as a part came back as something else"
        yield Finding("ranges", "wrong", found, _UNUSABLE)


def _lists_what_was_written(place: Place) -> Iterator[Finding]:
    name = place.name("written")
    if name not in {entry.name for entry in place.backend.list(place.below)}:
        found = "what has just been written is not in the list"
        yield Finding("list", "wrong", found, "Use a server whose lists are up to date")


def _clock(place: Place) -> Iterator[Finding]:
    """Compare the time under which it was written with ours."""
    name = place.name("written")
    entry = None
    if "list" in place.able:
        listed = place.backend.list(place.below)
        entry = next((entry for entry in listed if entry.name == name), None)
    entry = entry or place.backend.stat(name)
    if entry is None or not entry.modified:
        says = "it does not tell when something was written"
        yield Finding("clock", "warning", says, "Nothing can be collected there")
        return
    difference = entry.modified - place.written_at
    counts = "collection goes by its clock alone"
    # Some tell whole seconds only.
    if -1 <= difference < 1 + (time.time() - place.written_at):
        yield Finding("clock", "fine", f"its clock agrees with ours; {counts}")
        return
    found = (
        f"its clock is {abs(difference):.0f} s {'ahead of' if difference > 0 else 'behind'} ours"
    )
    if abs(difference) < _SKEW_SECONDS:
        yield Finding("clock", "fine", f"{found}; {counts}")
    else:
        advice = "Set the clock of this machine (NTP): S3 refuses requests from 15 minutes on"
        yield Finding("clock", "warning", f"{found}; {counts}", advice)


def _conditions(place: Place) -> Iterator[Finding]:
    """Write other bytes under a name that is taken, if it is absent."""
    name = place.name("written")
    other = secrets.token_bytes(100)
    wrote = place.backend.write_if_absent(name, io.BytesIO(other))
    if not wrote and "read" in place.able and place.read(name) != place.body:
        found = "a write that was to leave a taken name alone was refused, and changed its bytes"
        yield Finding("conditions", "wrong", found, _UNUSABLE)
    elif wrote:
        yield Finding(
            "conditions",
            "warning",
            "ignored: a write that was to leave a taken name alone replaced its bytes. Contents "
            "take no harm, because their names are their digests",
            "Make a new store by one upload before many workers use it",
        )
    elif not getattr(place.backend, "conditions", True):
        found = "refused (If-None-Match: 501 or 411); it is asked before each write instead"
        yield Finding("conditions", "fine", found)
    else:
        yield Finding("conditions", "fine", "enforced: a name that is taken is left alone")


def _checksums(place: Place) -> Iterator[Finding]:
    takes: Callable[[str], bool] | None
    takes = getattr(place.backend, "takes_default_checksums", None)
    if takes is None:
        return
    if takes(place.name("checksum")):
        found = "it takes those of boto3's own defaults, and needs none (ours: when_required)"
        yield Finding("checksums", "fine", found)
        return
    yield Finding(
        "checksums",
        "warning",
        "it refuses those of boto3's own defaults. The clients that are made here send none, and "
        "work",
        "A client that you make yourself, or for Optuna's own store, needs "
        "botocore.config.Config(request_checksum_calculation='when_required')",
    )


def _delete(place: Place) -> Iterator[Finding]:
    name = place.name("written")
    place.discard(name)
    place.able.add("delete")
    if _is_gone(place, name):
        yield Finding("delete", "fine", "what was deleted is gone")
    else:
        place.name("written")
        found = "what was deleted is still there"
        yield Finding("delete", "wrong", found, "Does something keep objects, such as a lock?")


def _is_gone(place: Place, name: str) -> bool:
    try:
        return place.backend.stat(name) is None
    except Exception as error:
        if answer_of(error)[0] != _FORBIDDEN:
            raise
        return True  # so it answers to who may not list; and to who may not read, in any case


def _move(place: Place) -> Iterator[Finding]:
    """Give what was written another name, as collection does."""
    source, target = place.name("source"), place.name("target")
    place.backend.write(source, io.BytesIO(place.body))
    place.backend.move(source, target)
    found = place.backend.stat(target)
    if found is None or found.size != _SIZE or not _is_gone(place, source):
        says = f"{source} was moved to {target}, which is {found} now"
        yield Finding("move", "wrong", says, _UNUSABLE)
    else:
        yield Finding("move", "fine", "a name is changed on the server's side")


def _clean(place: Place) -> list[Finding]:
    """Remove what was written; say what stays."""
    says = ""
    for name in list(place.left):
        try:
            within(lambda name=name: place.discard(name))  # type: ignore[misc]
        except TimeoutError as error:
            says = told(error)
            break
        except Exception as error:  # noqa: BLE001 -- whatever it is, the others are removed
            says = told(error)
    if not place.left:
        return []
    stays = ", ".join(place.left)
    advice = f"Delete them by other means: all below {place.below.rstrip('/')}"
    return [Finding("left behind", "warning", f"perhaps {stays} in {place.url}: {says}", advice)]


# What is there already


def _record(place: Place) -> Iterator[Finding]:
    """Read what the store was made with."""
    try:
        body = reading.record(place.backend, names.STORE_RECORD)
    except errors.ArtifactNotFound:
        yield Finding("record", "fine", "there is no store yet; the first upload makes it")
        return
    try:
        record = StoreRecord.decode(body, place.backend)
    except errors.StoreMismatch as error:
        yield Finding("record", "wrong", told(error))
        return
    durable = "durable" if record.durable else "not durable"
    yield Finding("record", "fine", f"a store of format {record.format}, {durable}")


def _folders(place: Place) -> Iterator[Finding]:
    """Look for folders of the store that a colleague made, and that are not for this user."""
    backend = place.backend
    if not isinstance(backend, FileSystemArtifactStore):
        return
    closed = []
    for above in sorted(names.FOLDERS):
        folder = backend.folder / above
        if folder.is_dir():
            inner = [] if above == "tmp" else [path for path in folder.iterdir() if path.is_dir()]
            closed += [path for path in (folder, *inner) if not may_use(path)]
    if closed:
        first, at = closed[0], shlex.quote(str(backend.folder))
        yield Finding(
            "folders",
            "wrong",
            f"{len(closed)} of the store's folders are not for this user to write to, such as "
            f"{first} (mode {first.stat().st_mode & 0o7777:o}, owner {owner_of(first.stat())})",
            f"With a group that all its users are in, let each owner run: chgrp -R GROUP {at}; "
            f"chmod -R g+rwX {at}; find {at} -type d -exec chmod g+s {{}} + . What is made there "
            "later is for that group, whatever the umask",
        )
