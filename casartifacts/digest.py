"""The digest: plain BLAKE3-256, 64 lower-case hex characters, what `b3sum` prints.

Rule 1: one thread per hasher. `max_threads=AUTO`, then `fork`, then AUTO in the child hangs for
ever (blake3 1.0.11).
Rule 2: bytes in, digest out; no file is opened here.
"""

from __future__ import annotations

import re

from blake3 import blake3
from xxhash import xxh3_64_intdigest

__all__ = [
    "DIGEST_PATTERN",
    "DIGEST_SIZE",
    "Hasher",
    "digest_of",
    "fingerprint",
    "is_digest",
]

DIGEST_SIZE = 32
"""The bytes of a digest in binary form."""

DIGEST_PATTERN = re.compile(r"[0-9a-f]{64}")

Hasher = blake3
"""A running digest: `update(bytes)`, `digest()`, `hexdigest()`."""


def fingerprint(piece: memoryview) -> int:
    """Return 64 bits that tell whether bytes are the same when they are read again.

    XXH3, in a quarter of the time of a digest. It says so by accident once in 2^64, and against
    nobody who means harm: it is for what one upload reads twice, and never stored.
    """
    return xxh3_64_intdigest(piece)


def digest_of(content: bytes | bytearray | memoryview) -> str:
    """Return the digest of these bytes."""
    return Hasher(content).hexdigest()


def is_digest(text: str) -> bool:
    """Tell whether this is a digest in its one spelling."""
    return DIGEST_PATTERN.fullmatch(text) is not None
