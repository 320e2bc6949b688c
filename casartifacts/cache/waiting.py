"""Waiting for another process, or thread, that fetches the same content.

Rule 1: this only saves double work. Who waited in vain fetches it alone.
"""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING

from casartifacts.cache import folder as places
from casartifacts.cache.failures import WrongError

if TYPE_CHECKING:
    from casartifacts.cache.folder import Filling

__all__ = ["wait_for"]

logger = logging.getLogger(__name__)

# How often one looks: the kernel frees the lock of who has ended, but tells nobody.
_LOOK_SECONDS = 0.02

# Whom one waits for is said this often.
_SAY_SECONDS = 10

# Whoever has written nothing for so long has stopped, or has lost its network: what is between two
# attempts of `Backoff` at most. Then two that try are better than one.
_PATIENCE_SECONDS = 60


def wait_for(filling: Filling) -> None:
    """Return when a file is not being filled any more, or nothing has come for a minute."""
    try:
        file = places.open_content(filling.path)
    except (WrongError, OSError):
        return  # published, or gone
    with file:
        began = said = moved = time.monotonic()
        written = -1
        while places.is_locked(file.fileno()) is not False:
            now = time.monotonic()
            status = os.fstat(file.fileno())
            if not status.st_nlink:
                return  # deleted
            if status.st_mtime_ns != written:
                written, moved = status.st_mtime_ns, now
            elif now - moved > _PATIENCE_SECONDS:
                logger.warning(
                    "Process %d has fetched nothing of content %s for %d s: now it is fetched here",
                    filling.process,
                    filling.digest,
                    now - moved,
                )
                return
            if now - said >= _SAY_SECONDS:
                said = now
                logger.info(
                    "Waiting since %d s for process %d, which fetches content %s (%d bytes)",
                    now - began,
                    filling.process,
                    filling.digest,
                    filling.size,
                )
            time.sleep(_LOOK_SECONDS)
