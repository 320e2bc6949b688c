"""Small steps on local files, each with its reason; used wherever something is published by name.

Rule 1: nothing here knows what is in a file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import threading
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, get_args

from casartifacts.buffers import BUFFER_SIZE

if TYPE_CHECKING:
    import io
    from collections.abc import Iterator

__all__ = [
    "Link",
    "Target",
    "check_link",
    "check_target",
    "copy",
    "fill",
    "give_name",
    "is_same_file",
    "publish_link",
    "publishing",
    "read_at",
    "write",
]

Link = Literal["hard", "symlink"]
"""How a file may be delivered without copying it."""

# 1 GiB a call: copy_file_range and write stop at 2,147,479,552 bytes without an error.
_MOST_PER_CALL = 2**30

# What copy_file_range answers where it cannot be used: another file system (EXDEV), an old kernel
# (ENOSYS), a file system that refuses (EINVAL, EOPNOTSUPP, EPERM in some containers).
_CANNOT_COPY_RANGE = {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM}


def write(file: io.FileIO, piece: bytes | bytearray | memoryview) -> int:
    """Write all of a piece to an unbuffered file; returns its length."""
    with memoryview(piece) as rest:
        done = 0
        while done < len(rest):
            done += file.write(rest[done : done + _MOST_PER_CALL])
        return done


class Target:
    """An unbuffered file that several threads write to and read from, by offset."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self._seeking = threading.Lock()

    def write_at(self, piece: memoryview, offset: int) -> None:
        """Write all of a piece from an offset."""
        if not hasattr(os, "pwrite"):  # Windows
            with self._seeking:
                self._file.seek(offset)
                write(self._file, piece)
            return
        done = 0
        while done < len(piece):
            part = piece[done : done + _MOST_PER_CALL]
            done += os.pwrite(self._file.fileno(), part, offset + done)

    def read_at(self, buffer: memoryview, offset: int) -> int:
        """Fill a buffer from an offset; returns how many bytes there were."""
        if not hasattr(os, "preadv"):  # Windows, macOS before 11
            with self._seeking:
                self._file.seek(offset)
                return self._file.readinto(buffer)
        return os.preadv(self._file.fileno(), [buffer], offset)


def read_at(file: BinaryIO, buffer: memoryview, offset: int) -> int:
    """Fill a buffer from an offset of an open file; returns how many bytes there were."""
    file.seek(offset)
    return fill(file, buffer)


def fill(reader: BinaryIO, buffer: memoryview) -> int:
    """Read until a buffer is full or the reader has ended; returns how many bytes there were."""
    done = 0
    while done < len(buffer) and (count := reader.readinto(buffer[done:])):  # type: ignore[attr-defined]
        done += count
    return done


def copy(source: BinaryIO, target: io.FileIO) -> int:
    """Copy an open file from its beginning, sharing blocks where the file system can.

    Returns how many bytes were copied.
    """
    done = 0
    if hasattr(os, "copy_file_range"):
        try:
            while step := os.copy_file_range(
                source.fileno(), target.fileno(), _MOST_PER_CALL, done, done
            ):
                done += step
        except OSError as error:
            if error.errno not in _CANNOT_COPY_RANGE:
                raise
    source.seek(done)
    target.seek(done)
    while piece := source.read(BUFFER_SIZE):
        done += write(target, piece)
    return done


def is_same_file(path: Path, other: Path | int) -> bool:
    """Tell whether a path leads to the other file, given by path or descriptor."""
    try:
        return os.path.samefile(path, other)  # noqa: PTH121 -- the other may be a descriptor
    except OSError:
        return False


def give_name(tmp: Path, path: Path, descriptor: int) -> bool:
    """Give a finished file its name unless that is taken; returns whether it got it.

    The temporary name may be left over. On a file system without hard links, and only there, a
    name that somebody else takes in the same instant is replaced.
    """
    try:
        path.hardlink_to(tmp)
    except FileExistsError:
        # On NFS the answer to a first try may have been lost.
        return is_same_file(path, descriptor)
    except OSError:
        if os.path.lexists(path):
            return is_same_file(path, descriptor)
        tmp.replace(path)
    return True


def check_link(link: Link | None) -> None:
    """Refuse what is no kind of link.

    Raises:
        ValueError: It is none.
    """
    if link not in {None, *get_args(Link)}:
        raise ValueError(f'link must be "hard", "symlink" or None (a private copy), got {link!r}')


def check_target(target: Path, *, overwrite: bool) -> None:
    """Refuse a target that cannot be written, before anything is fetched.

    Raises:
        FileExistsError: It exists, as Optuna says it.
        IsADirectoryError: It is a folder, which is not overwritten.
        OSError: It is a device or a pipe, which is not either.
        FileNotFoundError: Its folder does not exist.
    """
    if os.path.lexists(target):
        if not overwrite:
            raise FileExistsError(f"File already exists: {target}")
        if target.is_dir():
            raise IsADirectoryError(f"{target} is a folder: it is not overwritten by a file")
        if not target.is_symlink() and not target.is_file():
            raise OSError(f"{target} is a device or a pipe: it is not replaced by a file")
    elif not target.parent.is_dir():
        raise FileNotFoundError(
            f"The folder {target.parent} does not exist; make it before downloading to {target}"
        )


@contextlib.contextmanager
def publishing(file_path: str | os.PathLike[str], *, overwrite: bool) -> Iterator[io.FileIO]:
    """Yield an empty file beside the target that becomes the target when the block ends well.

    So a target is whole or absent; one that exists is replaced only with `overwrite`, and at once.
    A block that closes the file has published something else.
    """
    target = Path(file_path)
    check_target(target, overwrite=overwrite)
    tmp = _beside(target)
    with tmp.open("x+b", buffering=0) as file:
        try:
            yield file
            if file.closed:
                return
            if overwrite:
                tmp.replace(target)
            elif not give_name(tmp, target, file.fileno()):
                raise FileExistsError(f"File already exists: {target}")
        finally:
            tmp.unlink(missing_ok=True)


def publish_link(
    source: str, target: Path, *, descriptor: int, symbolic: bool, overwrite: bool
) -> None:
    """Make a target a hard or symbolic link to a file, if its name still leads to an open one.

    Raises:
        FileExistsError: The target exists.
        OSError: No link can be had.
    """
    tmp = _beside(target)
    make = os.symlink if symbolic else os.link
    try:
        make(source, tmp)
        if not is_same_file(tmp, descriptor):
            raise FileNotFoundError(f"another file lies at {source} by now")
        if overwrite:
            tmp.replace(target)
        else:
            # A symlink is made anew: not every system has hard links to symlinks.
            try:
                make(source if symbolic else tmp, target)
            except FileExistsError:
                raise FileExistsError(f"File already exists: {target}") from None
    finally:
        # Also after `replace`, which does nothing where both are one file already.
        tmp.unlink(missing_ok=True)


def _beside(target: Path) -> Path:
    return target.with_name(f".casartifacts-{secrets.token_hex(8)}.part")
