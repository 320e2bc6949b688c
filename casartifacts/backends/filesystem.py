"""A folder as a place for named bytes.

A write goes to a temporary file in `tmp/`, is synced, gets its name by one rename or link, and the
folder is synced: a name is whole or absent, and what was acknowledged survives a power cut. What
is not published lies in `tmp/`, where garbage collection finds it by its age.

Rule 1: no name leads outside the folder.
Rule 2: a reader opens without a look first: NFS answers a look from its cache.
Rule 3: an error of rename or link is believed only after a look; on NFS the first answer may have
been lost and the second try then fails although the first one acted.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from casartifacts import errors, files
from casartifacts.bodies import pieces
from casartifacts.protocols import Entry

if TYPE_CHECKING:
    import io
    from collections.abc import Callable, Iterator

    from casartifacts.protocols import Draft

__all__ = ["FileSystemArtifactStore"]

# Seconds during which a name that somebody else published may not have reached the disk yet.
_PERHAPS_UNSYNCED = 60

_TMP = "tmp"

# What says that a name is not there; one that is too long for the file system cannot be.
_MISSING = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}


class FileSystemArtifactStore:
    """Keeps each artifact as one file below a folder.

    Args:
        base_path: The folder; made at the first write.
        durable: Whether a write returns only after the disk has it. Without it a write is still
            whole or absent for every process, but a power cut can take back the last ones.
    """

    remote = False

    def __init__(self, base_path: str | os.PathLike[str], *, durable: bool = True) -> None:
        # A process that changes its folder, or another one that is sent this store, means the same.
        self._base_path = Path(base_path).absolute()
        self.durable = durable

    def __repr__(self) -> str:
        durable = "" if self.durable else ", durable=False"
        return f"FileSystemArtifactStore({str(self._base_path)!r}{durable})"

    @property
    def folder(self) -> Path:
        """The folder."""
        return self._base_path

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Open the file of this artifact."""
        path = self._path(artifact_id)
        try:
            return path.open("rb")
        except OSError as error:
            if error.errno not in _MISSING:
                raise
            raise errors.not_found(artifact_id, self) from error

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Write the body beside its place, then give it its name at once."""
        self._path(artifact_id)  # refused before the body is touched
        with self._drafted(content_body) as draft:
            draft.publish(artifact_id, replace=True)

    def write_if_absent(self, name: str, content_body: BinaryIO) -> bool:
        """Write the body unless the name is taken; somebody else's file is synced, not replaced."""
        if self.stat(name) is not None:
            return False
        with self._drafted(content_body) as draft:
            return draft.publish(name)

    def remove(self, artifact_id: str) -> None:
        """Remove the file of this artifact."""
        path = self._path(artifact_id)
        try:
            path.unlink()
        except OSError as error:
            # Unlinking a folder is EISDIR on Linux and EPERM elsewhere.
            if error.errno not in _MISSING and not path.is_dir():
                raise
            raise errors.not_found(artifact_id, self) from error
        self._sync_folder(path.parent)

    def stat(self, name: str) -> Entry | None:
        """Look at a name; one that is younger than a minute is synced before it is reported."""
        path = self._path(name)
        try:
            found = path.stat()
        except OSError as error:
            if error.errno not in _MISSING:
                raise
            return None
        if not _is_file(found):
            return None
        # A rename keeps the time of the last write and sets that of the last change.
        age = time.time() - max(found.st_mtime, found.st_ctime)
        if self.durable and age < _PERHAPS_UNSYNCED:
            try:
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            except FileNotFoundError:
                return None
            self._sync_folder(path.parent)
        return Entry(name, found.st_size, found.st_mtime)

    def open_range(self, name: str, start: int, length: int) -> BinaryIO:  # noqa: ARG002 -- it just goes on
        """Open the file and go to the start of the range."""
        reader = self.open_reader(name)
        reader.seek(start)
        return reader

    def list(self, prefix: str) -> Iterator[Entry]:
        """Walk the folder; what disappears meanwhile is passed over."""
        folder = self._path(prefix.rstrip("/")) if prefix else self._base_path
        try:
            found = os.scandir(folder)
        except (FileNotFoundError, NotADirectoryError):
            return
        with found:
            for item in found:
                if item.is_dir(follow_symlinks=False):
                    if prefix or item.name != _TMP:
                        yield from self.list(f"{prefix}{item.name}/")
                    continue
                with contextlib.suppress(FileNotFoundError):
                    status = item.stat()
                    if _is_file(status):
                        yield Entry(prefix + item.name, status.st_size, status.st_mtime)

    def list_folders(self, prefix: str) -> Iterator[str]:
        """Name the folders below a folder that are not empty."""
        folder = self._path(prefix.rstrip("/")) if prefix else self._base_path
        try:
            found = os.scandir(folder)
        except (FileNotFoundError, NotADirectoryError):
            return
        with found:
            for item in found:
                if item.is_dir(follow_symlinks=False) and (prefix or item.name != _TMP):
                    below = self.list(f"{prefix}{item.name}/")
                    if next(below, None) is not None:
                        yield item.name

    def move(self, source: str, target: str) -> None:
        """Rename a file."""
        old, new = self._path(source), self._path(target)
        if old == new:
            self.open_reader(source).close()
            return
        self._make_folder(new.parent)
        try:
            if files.is_same_file(new, old):
                # rename() between two links of one file does nothing and leaves both.
                old.unlink()
            else:
                old.replace(new)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise errors.not_found(source, self) from error
        self._sync_folder(new.parent)
        self._sync_folder(old.parent)

    def _path(self, artifact_id: str) -> Path:
        """Return the file of a name, refusing whatever could lie outside the folder."""
        if not isinstance(artifact_id, str) or not artifact_id:  # type: ignore[redundant-expr]
            raise errors.invalid_artifact_id(artifact_id, "it must be a str and not empty")
        if "\0" in artifact_id:
            raise errors.invalid_artifact_id(artifact_id, "it contains a NUL character")
        on_windows = os.name == "nt"
        parts = re.split(r"[/\\]", artifact_id) if on_windows else artifact_id.split("/")
        if not parts[0] or (on_windows and Path(artifact_id).drive):
            raise errors.invalid_artifact_id(artifact_id, "it is an absolute path")
        if ".." in parts:
            raise errors.invalid_artifact_id(artifact_id, "it contains '..'")
        # "./a" and "a//b" are other names of "a" and "a/b".
        parts = [part for part in parts if part not in {"", "."}]
        if not parts:
            raise errors.invalid_artifact_id(artifact_id, "it names the folder of the store itself")
        if parts[0].casefold() == _TMP:
            raise errors.invalid_artifact_id(artifact_id, "tmp/ holds what is not published yet")
        return self._base_path / "/".join(parts)

    @contextlib.contextmanager
    def draft(self) -> Iterator[Draft]:
        """Begin a file in `tmp/` that gets its name when all of it is there."""
        folder = self._base_path / _TMP
        self._make_folder(folder)
        tmp = folder / secrets.token_hex(16)
        # Not tempfile: its mode 0600 would keep colleagues from reading a shared store.
        with tmp.open("xb", buffering=0) as file:
            if more := self._grants(status := os.fstat(file.fileno())) & 0o044:
                os.fchmod(file.fileno(), stat.S_IMODE(status.st_mode) | more)
            try:
                yield _Draft(file, partial(self._publish, tmp, file))
            finally:
                tmp.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _drafted(self, content_body: BinaryIO) -> Iterator[Draft]:
        with self.draft() as draft:
            for piece in pieces(content_body):
                draft.write(piece)
            yield draft

    def _publish(self, tmp: Path, file: io.FileIO, name: str, size: int, replace: bool) -> bool:  # noqa: FBT001 -- as `Draft.publish` hands it on
        path = self._path(name)
        if (found := os.fstat(file.fileno()).st_size) != size:
            raise OSError(f"{tmp} has {found} bytes after {size} were written to it")
        if self.durable:
            os.fsync(file.fileno())
        self._make_folder(path.parent)
        if replace:
            try:
                tmp.replace(path)
            except FileNotFoundError:
                if not files.is_same_file(path, file.fileno()):
                    raise
        elif not files.give_name(tmp, path, file.fileno()):
            self.stat(name)  # which syncs what somebody else has just published
            return False
        self._sync_folder(path.parent)
        return True

    def _make_folder(self, folder: Path) -> None:
        """Make a folder and its parents, and sync the folders in which new ones appeared."""
        if folder.is_dir():
            return
        self._make_folder(folder.parent)
        if self._base_path in folder.parents and _others_write(self._base_path.stat()):
            self._make_shared(folder)
        else:
            try:
                folder.mkdir(exist_ok=True)
            except FileExistsError as error:
                code = errno.ENOTDIR
                raise NotADirectoryError(code, "it is a file, not a folder", str(folder)) from error
        self._sync_folder(folder.parent)

    def _make_shared(self, folder: Path) -> None:
        """Make a folder that appears with the rights that it shall have."""
        beside = Path(f"{folder}.{secrets.token_hex(8)}")
        beside.mkdir()
        try:
            status = beside.stat()
            if more := self._grants(status):
                beside.chmod(stat.S_IMODE(status.st_mode) | more)
            beside.rename(folder)
        except OSError:
            beside.rmdir()
            if not folder.is_dir():
                raise

    def _grants(self, status: os.stat_result) -> int:
        """Return which rights below the folder go to those who may write to it, whatever the umask.

        Its group is one of them only for what belongs to it, as all does below a setgid folder.
        """
        if os.name == "nt":
            return 0
        above = self._base_path.stat()
        if not _others_write(above):
            return 0
        more = 0
        if above.st_mode & stat.S_IWGRP and above.st_gid == status.st_gid:
            more |= above.st_mode & (stat.S_ISGID | stat.S_IRWXG)
        if above.st_mode & stat.S_IWOTH:
            everybodys = above.st_mode & stat.S_IRWXO
            more |= everybodys | everybodys << 3
        return more & ~status.st_mode

    def _sync_folder(self, folder: Path) -> None:
        if not self.durable or os.name == "nt":  # Windows syncs no folders
            return
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class _Draft:
    """A file without a name: the one way in which anything gets into the folder."""

    def __init__(self, file: io.FileIO, publish: Callable[[str, int, bool], bool]) -> None:
        self._file = file
        self._publish = publish
        self._size = 0

    def write(self, piece: bytes | memoryview) -> None:
        """Add bytes at the end."""
        self._size += files.write(self._file, piece)

    def publish(self, name: str, *, replace: bool = False) -> bool:
        """Sync the file, give it its name, sync the folder."""
        return self._publish(name, self._size, replace)


def _others_write(status: os.stat_result) -> bool:
    """Tell whether a folder is one to share; one of everybody, as /tmp is, is no team's."""
    is_everybodys = status.st_mode & stat.S_IWOTH and status.st_mode & stat.S_ISVTX
    return not is_everybodys and bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def _is_file(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode)
