"""What is on this machine: the programs, the folder for temporary files, the folder of the cache.

Rule: no cache is made, and a broken one is left as it is.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from casartifacts import chunking
from casartifacts.cache import ArtifactCache, room, trust
from casartifacts.cache.database import trouble_with
from casartifacts.cache.mounts import mount_of
from casartifacts.digest import digest_of
from casartifacts.doctor.disks import LITTLE_ROOM, kind_of, may_use, nearest
from casartifacts.doctor.findings import Finding, amount, told, within

if TYPE_CHECKING:
    from collections.abc import Iterator

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
        yield Finding(about, "wrong", told(error), _elsewhere())


def _cache_folder(cache: ArtifactCache) -> Iterator[Finding]:
    folder = str(cache.folder)
    place = nearest(cache.folder)
    mount = mount_of(folder)
    if mount is not None and mount.is_network:
        found = f"{folder} is on {mount.kind} ({mount.point}), which other machines share"
        yield Finding("cache", "wrong", f"{found}: SQLite is not safe there", _elsewhere())
        return
    if not place.is_dir():
        yield Finding("cache", "wrong", f"{place} is no folder", _elsewhere())
        return
    if not may_use(place):
        found = f"{folder}{kind_of(folder)}: this user may not write to {place}"
        yield Finding("cache", "wrong", found, _elsewhere())
        return
    is_there = place == cache.folder
    made = "" if is_there else ", made when it is first used"
    if is_there and not trust.is_private(folder):
        found = f"{folder}{kind_of(folder)}: others may write to it, so each hit is hashed again"
        yield Finding(
            "cache", "warning", found, f"chmod go-w {folder}, or use a folder of your own"
        )
    else:
        yield Finding("cache", "fine", f"{folder}{kind_of(folder)}{made}, for this user alone")
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
        f"at most {amount(limit)}; {amount(max(0, free))} may still be written, because 5 % of "
        f"the disk ({amount(floor)}) stay free"
    )
    if free <= 0:
        advice = "Nothing new is kept: make room, or choose another disk with --cache"
        return Finding("cache room", "warning", found, advice)
    return Finding("cache room", "fine", found)


def _elsewhere() -> str:
    """Name a folder where a cache can be."""
    advice = "Set --cache or CASARTIFACTS_CACHE to a folder of your own on a local disk"
    for folder in (os.environ.get("SLURM_TMPDIR"), "/scratch", "/var/tmp", tempfile.gettempdir()):  # noqa: S108 -- only named
        if folder and may_use(Path(folder)):
            mount = mount_of(folder)
            if mount is None or not mount.is_network:
                return f"{advice}, such as {Path(folder) / 'casartifacts-$USER'}"
    return advice
