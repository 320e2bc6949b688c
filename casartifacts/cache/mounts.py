"""On which file system a folder lies: SQLite is not safe on one that several machines share.

Rule 1: which kinds are shared is decided from the text that Linux gives, and nowhere else; other
systems give none, and there nothing is known.
Rule 2: only what is known to be shared counts as shared. An unknown kind is local.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

__all__ = ["MOUNTINFO", "Mount", "mount_in", "mount_of"]

MOUNTINFO = "/proc/self/mountinfo"

# Kinds of file systems that other machines write to as well. Locks do nothing on some of them, and
# the shared memory of SQLite's write-ahead log does not reach the other machine on any
# (sqlite.org/wal.html); diskcache 13, 164 and 345 are what came of it.
_NETWORK = frozenset(
    {
        *("9p", "acfs", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "gfs2", "gpfs", "lustre"),
        *("mfs", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "panfs", "pvfs2", "quobyte"),
        *("smb2", "smb3", "smbfs", "vboxsf", "virtiofs", "wekafs"),
    }
)

# The same behind FUSE, which also stands in front of local ones (ntfs-3g, fuse-overlayfs).
_NETWORK_FUSE = frozenset(
    {
        *("afp", "alluxio", "beegfs", "blobfuse", "blobfuse2", "ceph", "ceph-fuse", "curlftpfs"),
        *("cvmfs2", "davfs", "davfs2", "gcsfuse", "glusterfs", "goofys", "hdfs", "juicefs"),
        *("lizardfs", "mfs", "moosefs", "mount-s3", "mountpoint-s3", "quobyte", "rclone", "s3fs"),
        *("s3ql", "seaweedfs", "smbnetfs", "sshfs", "weed"),
    }
)

# A field that may hold spaces has them as \040.
_ESCAPED = re.compile(r"\\([0-7]{3})")


class Mount(NamedTuple):
    """Where a file system is mounted, and of which kind it is, such as `ext4` or `fuse.sshfs`."""

    point: str
    kind: str

    @property
    def is_network(self) -> bool:
        """Whether other machines write to it as well."""
        kind = self.kind.lower()
        outer, _, inner = kind.partition(".")
        return inner in _NETWORK_FUSE if outer == "fuse" else kind in _NETWORK


def mount_of(folder: str) -> Mount | None:
    """Return the file system of a folder, which need not be there yet; None where nobody tells."""
    try:
        with open(MOUNTINFO, encoding="utf-8", errors="surrogateescape") as file:
            return mount_in(file.read(), os.path.realpath(folder))
    except OSError:
        return None


def mount_in(mountinfo: str, path: str) -> Mount | None:
    """Find the file system of an absolute path, without symlinks, in a text like that of Linux."""
    found = None
    for line in mountinfo.splitlines():
        before, separator, after = line.partition(" - ")
        fields = before.split(" ")
        if not separator or len(fields) < 5:  # noqa: PLR2004 -- what is read is the fifth
            continue
        point = _ESCAPED.sub(lambda match: chr(int(match[1], 8)), fields[4])
        is_above = path == point or path.startswith(f"{point.rstrip('/')}/")
        # The longest, and of equal ones the last: it hides those before it.
        if is_above and (found is None or len(point) >= len(found.point)):
            found = Mount(point, after.split(" ")[0])
    return found
