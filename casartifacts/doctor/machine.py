"""What is on this machine: the programs, the folder for temporary files, the folder of the cache.

Rule: no cache is made, and a broken one is left as it is.
"""

from __future__ import annotations

import platform
import re
import shutil
import stat
import tempfile
import time
from importlib import metadata
from typing import TYPE_CHECKING, Literal

from casartifacts import chunking
from casartifacts.cache import ArtifactCache, rights, room, trust
from casartifacts.cache.database import trouble_with
from casartifacts.cache.folder import may_use
from casartifacts.digest import digest_of
from casartifacts.doctor.disks import LITTLE_ROOM, kind_of, nearest
from casartifacts.doctor.findings import Finding, amount, told, within

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["cache_in", "programs", "temporary_files"]


def programs() -> Iterator[Finding]:
    """Say which versions of what is needed there are, and try two of them."""
    found = [f"Python {platform.python_version()}"]
    missing = []
    package = __name__.partition(".")[0]
    try:
        requirements = [
            package,
            *(each for each in metadata.requires(package) or [] if "testing" not in each),
        ]
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
        speed = amount(len(content) / seconds)
        return Finding("digest", "fine", f"blake3 computes it right, {speed} a second")
    return Finding(
        "digest",
        "wrong",
        "blake3 computes a wrong digest",
        "Install it again: pip install --force-reinstall blake3",
    )


def temporary_files() -> Iterator[Finding]:
    """Look where a body is kept that cannot seek, such as a pipe."""
    about = "TMPDIR"
    try:
        folder = tempfile.gettempdir()  # which tries to write there
        free = shutil.disk_usage(folder).free
    except OSError as error:
        yield Finding(
            about, "wrong", told(error), "Set TMPDIR to a folder that this user may write to"
        )
        return
    found = f"{folder}{kind_of(folder)}, {amount(free)} free"
    if free < LITTLE_ROOM:
        advice = "Uploads from pipes are kept there: set TMPDIR to a larger disk"
        yield Finding(about, "warning", found, advice)
    else:
        yield Finding(about, "fine", found)


# The cache


def cache_in(folder: str | Path | Literal[False]) -> Iterator[Finding]:
    """Examine the folder of a cache, which need not be there yet; False is no cache."""
    about = "cache"
    if folder is False:
        yield Finding(about, "fine", "none: each download asks the store (--cache makes one)")
        return
    try:
        yield from within(lambda: list(_cache_folder(ArtifactCache(folder))))
    except (OSError, ValueError) as error:
        yield Finding(about, "wrong", told(error), rights.elsewhere())


def _cache_folder(cache: ArtifactCache) -> Iterator[Finding]:
    folder = str(cache.folder)
    place = nearest(cache.folder)
    if refused := rights.refusal(folder):
        yield Finding("cache", "wrong", *refused)
        return
    if not place.is_dir():
        yield Finding("cache", "wrong", f"{place} is no folder", rights.elsewhere())
        return
    if not may_use(place):
        found = f"{folder}{kind_of(folder)}: this user may not write to {place}"
        yield Finding("cache", "wrong", found, rights.elsewhere())
        return
    is_there = place == cache.folder
    made = "" if is_there else ", made when it is first used"
    is_private = not is_there or trust.is_private(folder)
    status = place.stat()
    if not is_private and status.st_mode & stat.S_ISGID and status.st_mode & stat.S_IWGRP:
        found = f"{folder}{kind_of(folder)}, shared with group {rights.group_of(status)}"
        yield Finding("cache", "fine", f"{found}: what others put there is hashed at each hit")
    elif not is_private:
        found = f"{folder}{kind_of(folder)}: others may write to it, so each hit is hashed again"
        lack = rights.to_share(folder)
        advice = f"chmod go-w {folder}, or use a folder of your own"
        advice += f". To share it: {lack}" if lack else ""
        yield Finding("cache", "warning", found, advice)
    else:
        yield Finding("cache", "fine", f"{folder}{kind_of(folder)}{made}, for this user alone")
    yield _cache_room(str(place), cache.size_limit)
    if not is_private:
        return  # it has no table
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
        f"at most {amount(limit)}; {amount(max(0, free))} may still be written, because 5 % of "
        f"the disk ({amount(floor)}) stay free"
    )
    if free <= 0:
        advice = "Nothing new is kept: make room, or choose another disk with --cache"
        return Finding("cache room", "warning", found, advice)
    return Finding("cache room", "fine", found)
