"""The digest: plain BLAKE3-256, 64 lower-case hex characters, what `b3sum` prints.

Rule 1: one thread per hasher. `max_threads=AUTO`, then `fork`, then AUTO in the child hangs for
ever (blake3 1.0.11).
Rule 2: bytes in, digest out; no file is opened here.
"""

from __future__ import annotations

import re

from blake3 import blake3
from xxhash import xxh3_128_digest

__all__ = [
    "DIGEST_PATTERN",
    "DIGEST_SIZE",
    "FINGERPRINT_SIZE",
    "Hasher",
    "digest_of",
    "fingerprint",
    "is_digest",
]

DIGEST_SIZE = 32
"""The bytes of a digest in binary form."""

FINGERPRINT_SIZE = 16
"""The bytes of a fingerprint."""

DIGEST_PATTERN = re.compile(r"[0-9a-f]{64}")

Hasher = blake3
"""A running digest: `update(bytes)`, `digest()`, `hexdigest()`."""


def fingerprint(piece: memoryview) -> bytes:
    """Return 128 bits that tell whether bytes are likely the same as others that were read here.

    XXH3, in a quarter of the time of a digest. It is no proof: bytes that agree are easily made,
    also for a seed that nobody knows (all of it comes from sums of products of 32-bit halves). So
    it is never stored, and no digest is taken from it.
    """
    return xxh3_128_digest(piece)


def digest_of(content: bytes | bytearray | memoryview) -> str:
    """Return the digest of these bytes."""
    return Hasher(content).hexdigest()


def is_digest(text: str) -> bool:
    """Tell whether this is a digest in its one spelling."""
    return DIGEST_PATTERN.fullmatch(text) is not None
