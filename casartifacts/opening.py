"""`open_store`: from a path or URL to a store, with good defaults."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from casartifacts.backends.filesystem import FileSystemArtifactStore
from casartifacts.backends.memory import MemoryArtifactStore
from casartifacts.cache import ArtifactCache
from casartifacts.store import ContentStore

if TYPE_CHECKING:
    from casartifacts.protocols import Backend

__all__ = ["open_store"]


def open_store(
    url: str | os.PathLike[str],
    *,
    cache: ArtifactCache | str | os.PathLike[str] | bool | None = None,
    durable: bool = True,
) -> ContentStore:
    """Open the store at a path or URL; it is made at the first upload.

    Args:
        url: A path, `file:///path`, or `memory://` for a new store in this process.
        cache: An `ArtifactCache`, or the folder of one; None or False for none, as is the default
            for a path, which is near already.
        durable: For a path: whether an upload returns only after the disk has it.

    Raises:
        ValueError: The URL is of a kind that is not known here.
    """
    if isinstance(cache, bool) and cache:
        raise ValueError(
            "cache=True says not where: give the folder of the cache, such as /scratch"
        )
    if cache is None or isinstance(cache, bool):
        near = None
    else:
        near = cache if isinstance(cache, ArtifactCache) else ArtifactCache(cache)
    return ContentStore(_backend(os.fspath(url), durable=durable), cache=near)


def _backend(url: str, *, durable: bool) -> Backend:
    scheme, separator, _ = url.partition("://")
    if not separator:
        if not url:
            raise ValueError("The path of a store is empty; give a folder such as ./artifacts")
        return FileSystemArtifactStore(url, durable=durable)
    parts = urlsplit(url)
    if scheme == "file" and parts.netloc in {"", "localhost"} and parts.path:
        return FileSystemArtifactStore(unquote(parts.path), durable=durable)
    if scheme == "memory" and not parts.path and not parts.netloc:
        return MemoryArtifactStore()
    raise ValueError(
        f"{url!r} is no store that can be opened; expected a path, file:///absolute/path "
        "or memory://"
    )
