"""Memory into which files are read.

Rule: whoever reads into memory of its own takes it from here.
"""

from __future__ import annotations

__all__ = ["BUFFER_SIZE", "new_buffer"]

BUFFER_SIZE = 2**20
"""What is read, hashed and copied at once, in bytes: 256 KiB to 4 MiB are equally fast."""

# Large blocks of glibc begin 16 bytes after the begin of a page. To there the kernel of a Zen 3
# copies whole pages at a third of its speed: its `rep movsb` is slow where the target lies 1 to 31
# bytes after the source, modulo 4096. Reading 256 MiB from the page cache of ext4 took 100 ms into
# such a block and 22 ms into one that begins 48 bytes later; on tmpfs 120 and 38.
_ASIDE = 48


def new_buffer(size: int) -> memoryview:
    """Return memory of `size` bytes."""
    return memoryview(bytearray(_ASIDE + size))[_ASIDE:]
