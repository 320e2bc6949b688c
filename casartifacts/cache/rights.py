"""Whether a cache may lie in a folder: whose it is, who can write to it, on what it lies.

Rule 1: what is refused is refused in words that say what was found and what to do.
Rule 2: a folder that is there tells by its mode what it is: one that its group can write to is
shared, one that anybody can write to is nobody's.
"""

from __future__ import annotations

import os
import shlex
import stat
import tempfile
from typing import NamedTuple

from casartifacts.cache.failures import CacheUnavailable
from casartifacts.cache.folder import may_use
from casartifacts.cache.mounts import mount_of

try:
    import grp
    import pwd
except ImportError:  # Windows
    grp = pwd = None  # type: ignore[assignment]

__all__ = [
    "Refusal",
    "check",
    "check_writable",
    "elsewhere",
    "group_of",
    "owner_of",
    "refusal",
    "to_share",
]

# As many symlinks as Linux follows in one path.
_MOST_LINKS = 40


class Refusal(NamedTuple):
    """Why no cache may lie in a folder, and what to do."""

    found: str
    advice: str


def check(folder: str) -> None:
    """Raise `CacheUnavailable` if no cache may lie in a folder."""
    if refused := refusal(folder):
        raise CacheUnavailable(f"{refused.found}. {refused.advice}")


def check_writable(folder: str) -> None:
    """Raise `CacheUnavailable` if a folder is another user's alone: root may read what is there.

    What it wrote there, its owner could neither count nor delete.
    """
    status = os.stat(folder)
    if (
        hasattr(os, "geteuid")
        and status.st_uid != os.geteuid()
        and not status.st_mode & stat.S_IWGRP
    ):
        found = f"{folder} belongs to user {owner_of(status)} alone"
        raise CacheUnavailable(f"{found}: act as that user, or name a folder of your own")


def refusal(folder: str) -> Refusal | None:
    """Say why no cache may lie in a folder, which need not be there yet; None if it may."""
    mount = mount_of(folder)
    if mount is not None and mount.is_network:
        found = f"{folder} is on {mount.kind} ({mount.point}), which other machines share"
        return Refusal(f"{found}: SQLite is not safe there", elsewhere())
    if not hasattr(os, "geteuid"):
        return None
    if link := _planted_link(folder):
        found = f"{link} is a symlink that another user put into a folder of everybody"
        return Refusal(found, elsewhere())
    try:
        status = os.stat(folder)
    except OSError:
        return None  # it is still to be made; if it cannot be, that is said then
    return _refusal_of(folder, status) if stat.S_ISDIR(status.st_mode) else None


def _refusal_of(folder: str, status: os.stat_result) -> Refusal | None:
    if status.st_mode & stat.S_IWOTH:
        found = f"anybody may write to {folder}"
        advice = "Name a folder of your own below it"
        if not status.st_mode & stat.S_ISVTX:  # no folder of all users, as /tmp is
            advice += f", or close it: chmod o-w {folder}"
        return Refusal(found, advice)
    if status.st_uid == os.geteuid() or not os.geteuid():
        return None
    found = f"{folder} belongs to user {owner_of(status)}"
    if not status.st_mode & stat.S_IWGRP:
        advice = (
            "Name a folder of your own; or its owner shares one: ArtifactCache(..., shared=True)"
        )
        return Refusal(f"{found} alone", advice)
    if status.st_gid not in {os.getegid(), *os.getgroups()}:
        found = f"{found} and group {group_of(status)}, of which this user is no member"
        advice = "Name a folder of your own, or have this user added to the group"
        return Refusal(found, advice)
    return None


def _planted_link(path: str) -> str:
    """Return a symlink on a path that Linux would not follow in its protected mode, or "".

    In a folder to which anybody can write, only those of this user, of root and of the folder's
    owner are followed (`fs.protected_symlinks`, which is not switched on everywhere).
    """
    here = os.sep
    rest = path.split(os.sep)
    followed = 0
    while rest:
        name = rest.pop(0)
        if name in {"", "."}:
            continue
        above, here = here, os.path.normpath(os.path.join(here, name))
        try:
            status = os.lstat(here)
            if not stat.S_ISLNK(status.st_mode):
                continue
            place = os.stat(above)
            followed += 1
            target = os.readlink(here)
        except OSError:
            return ""
        trusted = {0, os.geteuid(), place.st_uid}
        if place.st_mode & stat.S_IWOTH and status.st_uid not in trusted:
            return here
        if followed > _MOST_LINKS:
            return ""
        here = os.sep if os.path.isabs(target) else above
        rest[:0] = target.split(os.sep)
    return ""


def to_share(folder: str) -> str:
    """Say what a folder that its group can write to lacks to be shared, or ""."""
    status = os.stat(folder)
    if not status.st_mode & stat.S_IWGRP or status.st_mode & stat.S_ISGID:
        return ""
    at = shlex.quote(folder)
    return (
        "it has no setgid bit, so what one user makes there is not for the group. Let each owner "
        f"run: chgrp -R {group_of(status)} {at}; find {at} -type d -exec chmod g+rwxs {{}} +"
    )


def elsewhere() -> str:
    """Advise where a cache can lie, with an example on this machine."""
    advice = "Set --cache or CASARTIFACTS_CACHE to a folder of your own on a local disk"
    for folder in (os.environ.get("SLURM_TMPDIR"), "/scratch", "/var/tmp", tempfile.gettempdir()):
        if folder and may_use(folder):
            mount = mount_of(folder)
            if mount is None or not mount.is_network:
                return f"{advice}, such as {os.path.join(folder, 'casartifacts-$USER')}"
    return advice


def group_of(status: os.stat_result) -> str:
    """Name the group of a folder."""
    try:
        return grp.getgrgid(status.st_gid).gr_name
    except (AttributeError, KeyError):
        return str(status.st_gid)


def owner_of(status: os.stat_result) -> str:
    """Name the owner of a folder."""
    try:
        return pwd.getpwuid(status.st_uid).pw_name
    except (AttributeError, KeyError):
        return str(status.st_uid)
