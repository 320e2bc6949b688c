"""What a set-up can do, found out by trying it: one finding for each thing, and what to do.

The store is asked through the contracts of its backend, as `ContentStore` would ask it. The cache,
the folder for temporary files and the programs are looked at.

Rule 1: nothing is left behind. What is written lies under one name of its own, in `tmp/`, and is
removed whatever happens; what cannot be removed is told. No store and no cache is made.
Rule 2: a question is asked once, and answered in `_PATIENCE_SECONDS` or not at all.
Rule 3: a right that is missing does not hide another one; but what stands on it is not tried.
Rule 4: nothing is printed here.
"""

from __future__ import annotations

import contextlib
import io
import os
import platform
import queue
import re
import secrets
import shutil
import tempfile
import threading
import time
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import casartifacts
from casartifacts import chunking, errors, names, reading
from casartifacts.backends.filesystem import FileSystemArtifactStore
from casartifacts.backoff import answer_of
from casartifacts.cache import ArtifactCache, room, trust
from casartifacts.cache.database import trouble_with
from casartifacts.cache.mounts import mount_of
from casartifacts.digest import digest_of
from casartifacts.opening import node_cache, open_backend
from casartifacts.records import StoreRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casartifacts.protocols import Backend

__all__ = ["Finding", "examine"]

_T = TypeVar("_T")

# A server that needs longer for a few kilobytes is of no use to anybody who waits for it.
_PATIENCE_SECONDS = 20.0

# What is written to try a store: more than one packet, less than anybody pays for.
_SIZE = 2**16

# S3 refuses requests whose clock is off by 15 minutes.
_SKEW_SECONDS = 300.0

# Below this much free room one checkpoint more may not fit.
_LITTLE_ROOM = 2**30

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


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found out about one thing, and what to do if it is not fine.

    A `warning` costs something; with what is `wrong`, something does not work.
    """

    about: str
    state: Literal["fine", "warning", "wrong"]
    found: str
    advice: str = ""


def examine(url: str, *, cache: str | bool | None = None) -> Iterator[Finding]:
    """Examine a set-up and yield what is found, as it is found.

    Args:
        url: The store, as for `open_store`.
        cache: The folder of the cache, True for the node's, False for none; by default what
            `open_store` makes of it.

    Raises:
        ValueError: The URL is of a kind that is not known here.
    """
    yield from _program()
    yield from _temporary_files()
    backend = None
    try:
        backend = _within(lambda: open_backend(url))
    except ValueError:
        raise
    except Exception as error:  # noqa: BLE001 -- whatever it is, it is a finding
        yield _not_opened(url, error)
    else:
        yield from _store(_Place(url, backend))
    if cache is None:
        cache = backend.remote if backend is not None else True
    yield from _cache(node_cache() if cache is True else cache)


# The programs


def _program() -> Iterator[Finding]:
    found = [f"Python {platform.python_version()}", f"casartifacts {casartifacts.__version__}"]
    missing = []
    try:
        requirements = metadata.requires(casartifacts.__name__) or []
    except metadata.PackageNotFoundError:
        requirements = []  # run from its source, without having been installed
    for requirement in requirements:
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            if ";" not in requirement:  # else it belongs to an extra
                missing.append(name)
        else:
            if f"{name} {version}" not in found:
                found.append(f"{name} {version}")
    yield Finding("versions", "fine", ", ".join(found))
    if missing:
        yield Finding(
            "packages",
            "wrong",
            f"not installed: {', '.join(missing)}",
            "Install casartifacts again: pip install --force-reinstall casartifacts",
        )
    yield _digest()
    if chunking.is_compiled():
        yield Finding("chunker", "fine", "compiled")
    else:
        yield Finding(
            "chunker",
            "warning",
            "pyfastcdc has no compiled part on this machine: contents are cut at fixed offsets, so "
            "shifted content is not recognised",
            "Install a wheel of it: pip install --only-binary :all: --force-reinstall pyfastcdc",
        )


def _digest() -> Finding:
    content = bytes(8 * 2**20)
    digest_of(content)  # the first touch of memory is slow
    begun = time.perf_counter()
    digest_of(content)
    seconds = time.perf_counter() - begun
    # The digest of nothing, from the specification.
    if digest_of(b"") == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262":
        speed = _amount(len(content) / seconds)
        return Finding("digest", "fine", f"blake3 computes it right, {speed} a second")
    return Finding(
        "digest",
        "wrong",
        "blake3 computes a wrong digest",
        "Install it again: pip install --force-reinstall blake3",
    )


def _temporary_files() -> Iterator[Finding]:
    """Look where a body is kept that cannot seek, such as a pipe."""
    about = "TMPDIR"
    try:
        folder = tempfile.gettempdir()  # which tries to write there
        free = shutil.disk_usage(folder).free
    except OSError as error:
        yield Finding(
            about, "wrong", _told(error), "Set TMPDIR to a folder that this user may write to"
        )
        return
    found = f"{folder}{_kind_of(folder)}, {_amount(free)} free"
    if free < _LITTLE_ROOM:
        advice = "Uploads from pipes are kept there: set TMPDIR to a larger disk"
        yield Finding(about, "warning", found, advice)
    else:
        yield Finding(about, "fine", found)


# The store


@dataclass
class _Place:
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
            return b"".join(iter(lambda: reader.read(_SIZE), b""))


def _store(place: _Place) -> Iterator[Finding]:
    if isinstance(place.backend, FileSystemArtifactStore):
        yield from _folder(place, place.backend.folder)
        return
    yield from _ask(place, "list", _reach)
    try:
        yield from _try_rights(place)
    finally:
        problem = _clean(place)
    yield from problem
    yield from _ask(place, "record", _record)


def _folder(place: _Place, folder: Path) -> Iterator[Finding]:
    """Examine a folder; what is tried lies in a folder of its own, beside what is not published."""
    yield _disk(folder)
    yield from _ask(place, "list", _reach)
    yield from _ask(place, "record", _record)
    if folder.is_dir():
        yield from _ask(place, "folders", _folders)
    near = next(
        path for path in (folder / "tmp", folder, *folder.absolute().parents) if path.is_dir()
    )
    try:
        own = tempfile.TemporaryDirectory(prefix="doctor-", dir=near)
    except OSError as error:
        yield Finding("write", "wrong", _told(error), place.advice("write"))
        return
    with own as name:
        tried = FileSystemArtifactStore(name)
        yield from _try_rights(_Place(place.url, tried, below="", able=place.able))


def _ask(place: _Place, about: str, check: Callable[[_Place], Iterator[Finding]]) -> list[Finding]:
    """Make one check; an error is a finding too."""
    if place.is_lost:
        return []
    try:
        return _within(lambda: list(check(place)))
    except TimeoutError as error:
        place.is_lost = True
        return [Finding(about, "wrong", _told(error), _SERVER.get(place.kind, ""))]
    except Exception as error:  # noqa: BLE001 -- whatever it is, it is a finding
        right = about if about in _RIGHTS["s3"] else "read"
        return [Finding(about, "wrong", _told(error), place.advice(right))]


def _not_opened(url: str, error: Exception) -> Finding:
    kind = url.partition("://")[0]
    if _names(error) & _UNKNOWN_CLASSES:
        return Finding("credentials", "wrong", _told(error), _CREDENTIALS.get(kind, ""))
    return Finding("store", "wrong", _told(error))


def _reach(place: _Place) -> Iterator[Finding]:
    """List what `ls` lists: a listing says more about what is wrong than other requests."""
    try:
        next(iter(place.backend.list(names.REFS)), None)
    except Exception as error:  # noqa: BLE001 -- whatever it is, it is a finding
        yield from _not_reached(place, error)
        return
    place.able.add("list")
    if place.kind:
        yield Finding("credentials", "fine", f"accepted for {place.url}")
    yield Finding("list", "fine", "it lists what it has")


def _not_reached(place: _Place, error: Exception) -> Iterator[Finding]:
    status, code = answer_of(error)
    told = _told(error)
    if isinstance(error, PermissionError):
        yield Finding("list", "wrong", told, place.advice("list"))
        return
    if code in _UNKNOWN_CODES or status == 401 or _names(error) & _UNKNOWN_CLASSES:  # noqa: PLR2004
        advice = f"{_CREDENTIALS.get(place.kind, '')}; the clock of this machine must be right, too"
        yield Finding("credentials", "wrong", told, advice)
    elif status == 403:  # noqa: PLR2004
        yield Finding("credentials", "fine", f"accepted for {place.url}")
        yield Finding("list", "wrong", told, place.advice("list"))
        return
    elif status == 404:  # noqa: PLR2004
        advice = "Make the bucket, or correct its name; it is never made here"
        yield Finding("bucket", "wrong", told, advice)
    elif status in {301, 307, 400}:
        advice = "Set AWS_REGION to where the bucket is, and AWS_ENDPOINT_URL_S3 to its server"
        yield Finding("bucket", "wrong", told, advice if place.kind == "s3" else "")
    else:
        yield Finding("server", "wrong", told, _SERVER.get(place.kind, ""))
    place.is_lost = True


# What is tried by writing


def _try_rights(place: _Place) -> Iterator[Finding]:
    yield from _ask(place, "missing", _missing)
    yield from _ask(place, "write", _write)
    if "write" not in place.able:
        if not place.is_lost:
            found = "reading, ranges, conditions, deleting and moving: nothing could be written"
            yield Finding("not tried", "warning", found)
        return
    yield from _ask(place, "read", _read)
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


def _missing(place: _Place) -> Iterator[Finding]:
    """Look at a name that is not there, as each upload does."""
    try:
        found = place.backend.stat(f"{place.below}missing")
    except Exception as error:
        if answer_of(error)[0] != 403:  # noqa: PLR2004
            raise
        told = f"{_told(error)} for a name that is not there, where 404 is expected"
        lacks = "read" if "list" in place.able else "list"
        because = " (without it, S3 does not tell what is missing)" if lacks == "list" else ""
        yield Finding("missing", "wrong", told, place.advice(lacks) + because)
        return
    if found is None:
        yield Finding("missing", "fine", "a name that is not there is said to be missing")
    else:
        told = f"a name that nobody wrote is said to have {found.size} bytes"
        yield Finding("missing", "wrong", told, "This server cannot be used")


def _write(place: _Place) -> Iterator[Finding]:
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
    took = f"{_amount(_SIZE)} in {1000 * seconds:.0f} ms"
    yield Finding("write", "fine", f"{took}{', durable' if place.backend.durable else ''}")


def _read(place: _Place) -> Iterator[Finding]:
    """Read all of it, then a range, then what is behind its end."""
    name = place.name("written")
    if place.read(name) != place.body:
        yield Finding("read", "wrong", "other bytes came back than were written", _UNUSABLE)
        return
    place.able.add("read")
    yield Finding("read", "fine", "the same bytes came back")
    buffer = bytearray(1000)
    count = place.backend.read_into(name, 300, memoryview(buffer))
    behind = place.backend.read_into(name, 2 * _SIZE, memoryview(bytearray(10)))
    if (count, behind, bytes(buffer)) == (1000, 0, place.body[300:1300]):
        yield Finding("ranges", "fine", "a part is read alone")
    else:
        found = "what was asked for as a part came back as something else"
        yield Finding("ranges", "wrong", found, _UNUSABLE)


_UNUSABLE = "Something between here and the disk changes bytes: use another server or no proxy"


def _lists_what_was_written(place: _Place) -> Iterator[Finding]:
    name = place.name("written")
    if name not in {entry.name for entry in place.backend.list(place.below)}:
        found = "what has just been written is not in the list"
        yield Finding("list", "wrong", found, "Use a server whose lists are up to date")


def _clock(place: _Place) -> Iterator[Finding]:
    """Compare the time under which it was written with ours."""
    name = place.name("written")
    if "list" in place.able:
        entry = next(entry for entry in place.backend.list(place.below) if entry.name == name)
    elif (entry := place.backend.stat(name)) is None:  # type: ignore[assignment]
        return
    if not entry.modified:
        yield Finding("clock", "warning", "it does not tell when something was written")
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


def _conditions(place: _Place) -> Iterator[Finding]:
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


def _checksums(place: _Place) -> Iterator[Finding]:
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


def _delete(place: _Place) -> Iterator[Finding]:
    name = place.name("written")
    place.discard(name)
    place.able.add("delete")
    try:
        is_gone = place.backend.stat(name) is None
    except Exception as error:
        if answer_of(error)[0] != 403:  # noqa: PLR2004
            raise
        is_gone = True  # it says nothing else of what is there
    if is_gone:
        yield Finding("delete", "fine", "what was deleted is gone")
    else:
        place.name("written")
        found = "what was deleted is still there"
        yield Finding("delete", "wrong", found, "Does something keep objects, such as a lock?")


def _move(place: _Place) -> Iterator[Finding]:
    """Give what was written another name, as collection does."""
    source, target = place.name("source"), place.name("target")
    place.backend.write(source, io.BytesIO(place.body))
    place.backend.move(source, target)
    found = place.backend.stat(target)
    if found is None or found.size != _SIZE or place.backend.stat(source) is not None:
        told = f"{source} was moved to {target}, which is {found} now"
        yield Finding("move", "wrong", told, _UNUSABLE)
    else:
        yield Finding("move", "fine", "a name is changed on the server's side")


def _clean(place: _Place) -> list[Finding]:
    """Remove what was written; say what stays."""
    told = ""
    for name in list(place.left):
        try:
            _within(lambda name=name: place.discard(name))  # type: ignore[misc]
        except TimeoutError as error:
            told = _told(error)
            break
        except Exception as error:  # noqa: BLE001 -- whatever it is, the others are removed
            told = _told(error)
    if not place.left:
        return []
    stays = ", ".join(place.left)
    advice = f"Delete them by other means: all below {place.below.rstrip('/')}"
    return [Finding("left behind", "warning", f"perhaps {stays} in {place.url}: {told}", advice)]


# The store's own record, and folders


def _record(place: _Place) -> Iterator[Finding]:
    """Read what the store was made with."""
    try:
        body = reading.record(place.backend, names.STORE_RECORD)
    except errors.ArtifactNotFound:
        yield Finding("record", "fine", "there is no store yet; the first upload makes it")
        return
    try:
        record = StoreRecord.decode(body, place.backend)
    except errors.StoreMismatch as error:
        yield Finding("record", "wrong", _told(error))
        return
    durable = "durable" if record.durable else "not durable"
    yield Finding("record", "fine", f"a store of format {record.format}, {durable}")


def _disk(folder: Path) -> Finding:
    """Say where a folder lies and how much room there is."""
    place = _nearest(folder)
    disk = shutil.disk_usage(place)
    is_there = "" if folder.is_dir() else ", which the first upload makes"
    found = (
        f"{folder}{is_there}{_kind_of(folder)}, {_amount(disk.free)} of {_amount(disk.total)} free"
    )
    if folder.exists() and not folder.is_dir():
        return Finding("folder", "wrong", f"{folder} is no folder", "Name another one: --store")
    if disk.free < _LITTLE_ROOM:
        advice = "Make room: when the disk is full, uploads fail"
        return Finding("folder", "warning", found, advice)
    return Finding("folder", "fine", found)


def _folders(place: _Place) -> Iterator[Finding]:
    """Look for folders of the store that a colleague made, and that are not for this user."""
    backend = place.backend
    if not isinstance(backend, FileSystemArtifactStore):
        return
    closed = []
    for above in sorted(names.FOLDERS):
        folder = backend.folder / above
        if folder.is_dir():
            inner = [] if above == "tmp" else [path for path in folder.iterdir() if path.is_dir()]
            closed += [path for path in (folder, *inner) if not _may_use(path)]
    if closed:
        first = closed[0]
        yield Finding(
            "folders",
            "wrong",
            f"{len(closed)} of the store's folders are not for this user to write to, such as "
            f"{first} (mode {first.stat().st_mode & 0o7777:o}, owner {first.stat().st_uid})",
            "Let its owner run: chmod -R g+rwX, with a group that all users of the store share",
        )


# The cache


def _cache(folder: str | Path | Literal[False]) -> Iterator[Finding]:
    about = "cache"
    if folder is False:
        yield Finding(about, "fine", "none: each download asks the store (--cache makes one)")
        return
    try:
        yield from _within(lambda: list(_cache_folder(ArtifactCache(folder))))
    except (OSError, ValueError) as error:
        yield Finding(about, "wrong", _told(error), _elsewhere())


def _cache_folder(cache: ArtifactCache) -> Iterator[Finding]:
    folder = str(cache.folder)
    place = _nearest(cache.folder)
    mount = mount_of(folder)
    if mount is not None and mount.is_network:
        found = f"{folder} is on {mount.kind} ({mount.point}), which other machines share"
        yield Finding("cache", "wrong", f"{found}: SQLite is not safe there", _elsewhere())
        return
    if not place.is_dir():
        yield Finding("cache", "wrong", f"{place} is no folder", _elsewhere())
        return
    if not _may_use(place):
        found = f"{folder}{_kind_of(folder)}: this user may not write to {place}"
        yield Finding("cache", "wrong", found, _elsewhere())
        return
    is_there = place == cache.folder
    made = "" if is_there else ", made when it is first used"
    if is_there and not trust.is_private(folder):
        found = f"{folder}{_kind_of(folder)}: others may write to it, so each hit is hashed again"
        yield Finding(
            "cache", "warning", found, f"chmod go-w {folder}, or use a folder of your own"
        )
    else:
        yield Finding("cache", "fine", f"{folder}{_kind_of(folder)}{made}, for this user alone")
    yield _cache_room(str(place), cache.size_limit)
    if trouble := trouble_with(folder):
        found = f"the table in {folder} cannot be used: {trouble}"
        advice = f"Delete {folder}: a cache may go at any time"
        yield Finding("cache table", "wrong", found, advice)
    elif is_there:
        yield Finding("cache table", "fine", "it opens, and all of it can be read")


def _cache_room(folder: str, limit: int) -> Finding:
    total = shutil.disk_usage(folder).total
    floor = total // 20
    free = room.free(folder)
    found = (
        f"at most {_amount(limit)}; {_amount(max(0, free))} may still be written, because 5 % of "
        f"the disk ({_amount(floor)}) stay free"
    )
    if free <= 0:
        advice = "Nothing new is kept: make room, or choose another disk with --cache"
        return Finding("cache room", "warning", found, advice)
    return Finding("cache room", "fine", found)


def _elsewhere() -> str:
    """Name a folder where a cache can be."""
    advice = "Set --cache or CASARTIFACTS_CACHE to a folder of your own on a local disk"
    for folder in (os.environ.get("SLURM_TMPDIR"), "/scratch", "/var/tmp", tempfile.gettempdir()):  # noqa: S108 -- only named
        if folder and _may_use(Path(folder)):
            mount = mount_of(folder)
            if mount is None or not mount.is_network:
                return f"{advice}, such as {Path(folder) / 'casartifacts-$USER'}"
    return advice


# Words


def _within(call: Callable[[], _T]) -> _T:
    """Return what a call returns; raises `TimeoutError` if that takes too long."""
    answers: queue.SimpleQueue[tuple[_T, None] | tuple[None, BaseException]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put((call(), None))
        except BaseException as error:  # noqa: BLE001 -- raised again where it is waited for
            answers.put((None, error))

    # A daemon: what hangs in it does not keep the process.
    threading.Thread(target=run, name="doctor", daemon=True).start()
    try:
        answer, error = answers.get(timeout=_PATIENCE_SECONDS)
    except queue.Empty:
        raise TimeoutError(f"no answer in {_PATIENCE_SECONDS:g} s") from None
    if error is not None:
        raise error
    return answer  # type: ignore[return-value]


def _told(error: BaseException) -> str:
    """Say in one line what an error says."""
    parts = [str(error) or type(error).__name__, *getattr(error, "__notes__", [])]
    return " ".join(" ".join(parts).split())


def _names(error: BaseException) -> set[str]:
    """Name the classes of an error."""
    return {parent.__name__ for parent in type(error).__mro__}


def _nearest(folder: Path) -> Path:
    """Return the folder, or where the first of what is missing of it would be made."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def _may_use(folder: Path) -> bool:
    """Tell whether this user may read, write and enter a folder."""
    effective = os.access in os.supports_effective_ids
    return os.access(folder, os.R_OK | os.W_OK | os.X_OK, effective_ids=effective)


def _kind_of(folder: str | Path) -> str:
    """Say on which kind of file system a folder is."""
    mount = mount_of(str(folder))
    if mount is None:
        return ""
    memory = ", which is memory" if mount.kind in {"ramfs", "tmpfs"} else ""
    return f" on {mount.kind}{', which machines share' if mount.is_network else memory}"


def _amount(size: float) -> str:
    """Write a number of bytes for people."""
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:  # noqa: PLR2004
        del units[0]
        size /= 1024
    return f"{size:.0f} {units[0]}" if size >= 10 else f"{size:.3g} {units[0]}"  # noqa: PLR2004
