"""Folders: on which kind of disk they lie, how much room there is, who may use them."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from casartifacts.cache.mounts import mount_of
from casartifacts.doctor.findings import Finding, amount

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["LITTLE_ROOM", "disk_of", "kind_of", "nearest"]

# Below this much free room one checkpoint more may not fit.
LITTLE_ROOM = 2**30


def disk_of(folder: Path) -> Finding:
    """Say where a folder lies and how much room there is."""
    place = nearest(folder)
    if not place.is_dir():
        return Finding("folder", "wrong", f"{place} is no folder", "Name another one: --store")
    disk = shutil.disk_usage(place)
    found = f"{folder}{kind_of(folder)}, {amount(disk.free)} of {amount(disk.total)} free"
    if place != folder.absolute():
        found += "; the first upload makes it"
    if disk.free < LITTLE_ROOM:
        advice = "Make room: when the disk is full, uploads fail"
        return Finding("folder", "warning", found, advice)
    return Finding("folder", "fine", found)


def nearest(folder: Path) -> Path:
    """Return the folder, or where the first of what is missing of it would be made."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def kind_of(folder: str | Path) -> str:
    """Say on which kind of file system a folder is."""
    mount = mount_of(str(folder))
    if mount is None:
        return ""
    memory = ", which is memory" if mount.kind in {"ramfs", "tmpfs"} else ""
    return f" on {mount.kind}{', which machines share' if mount.is_network else memory}"
