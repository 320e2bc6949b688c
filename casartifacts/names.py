"""What things are called in a backend, and which artifact ids are accepted (format 1).

Rule 1: this file is the only one that spells a name in a backend.
Rule 2: pure; no backend is asked here.

    casartifacts.json         the store's own record
    refs/<name of the id>     ids of `[0-9a-z_-]{1,128}` verbatim, all others `~<digest of the id>`
    blobs/<aa>/<digest>
    manifests/<aa>/<digest>
    hints/<aa>/<chunk digest>
    trash/<run>/<name>        where collection puts what no ref needs
    trash/<run>/started       the time of that run
    trash/refs/<name of the id>
    damaged/<name>            what `verify` found to read wrong
    tmp/                      unpublished files of the file system backend
    tmp/doctor-<random>/      what `doctor` tries a bucket with, gone when it ends
"""

from __future__ import annotations

import re
import secrets
from functools import lru_cache

from casartifacts import errors
from casartifacts.digest import digest_of

__all__ = [
    "FOLDERS",
    "REFS",
    "STORE_RECORD",
    "TRASH",
    "blob",
    "check_artifact_id",
    "check_name",
    "check_prefix",
    "digest_in",
    "hint",
    "is_written_once",
    "manifest",
    "new_artifact_id",
    "probes",
    "ref",
    "trashed",
    "trashed_ref",
]

STORE_RECORD = "casartifacts.json"
REFS = "refs/"
TRASH = "trash/"

FOLDERS = frozenset(
    {STORE_RECORD, "refs", "blobs", "manifests", "hints", "trash", "damaged", "tmp"},
)
"""No component of an artifact id, nor of a store's prefix, may be one of these in any case."""

# Longer ids are refused: S3 names end at 1,024 bytes.
_LONGEST_ID = 1024

# Verbatim names are lower-case, because file systems and databases exist that merge cases.
_VERBATIM = re.compile(r"[0-9a-z_-]{1,128}")

# Ids that we make: the digest of the content, then 128 random bits. Only `[0-9a-f-]`, because the
# routes of optuna-dashboard accept nothing else.
_OURS = re.compile(r"([0-9a-f]{64})-[0-9a-f]{32}")

# A hit in the cache asks four times what its id is, which takes an eighth of its time; the answers
# to the last ones are kept.
_MOST_PARSED = 1024

# Ids that Optuna and its clients make: a random UUID, perhaps behind a prefix.
_UUID = re.compile(
    r"(?:.*[/-])?[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
)


def new_artifact_id(digest: str) -> str:
    """Make a fresh id for an upload of the content with this digest."""
    return f"{digest}-{secrets.token_hex(16)}"


@lru_cache(_MOST_PARSED)
def digest_in(artifact_id: str) -> str | None:
    """Return the digest that an id of our own form names, None for every other id."""
    match = _OURS.fullmatch(artifact_id)
    return match[1] if match else None


@lru_cache(_MOST_PARSED)
def is_written_once(artifact_id: str) -> bool:
    """Tell whether an id is random, so that nobody writes another content under it.

    What such an id leads to may be remembered in a cache; any other id is asked for each time,
    because people overwrite an artifact called `best-model`.
    """
    return _OURS.fullmatch(artifact_id) is not None or _UUID.fullmatch(artifact_id) is not None


def check_name(name: str) -> list[str]:
    """Refuse what cannot be a name in any backend; return its components.

    Raises:
        ValueError: `Invalid artifact_id: ...`, as Optuna's stores say it.
    """
    if not isinstance(name, str):
        raise errors.invalid_artifact_id(name, "it must be a str")
    if _VERBATIM.fullmatch(name):
        return [name]  # nothing below can be wrong with it: most ids, in a third of the time
    if not name:
        raise errors.invalid_artifact_id(name, "it is empty")
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        raise errors.invalid_artifact_id(name, "it is no valid Unicode") from None
    if length > _LONGEST_ID:
        raise errors.invalid_artifact_id(
            name, f"it has {length} bytes, at most {_LONGEST_ID} are allowed"
        )
    if "\0" in name:
        raise errors.invalid_artifact_id(name, "it contains a NUL character")
    # Backslashes and drive letters are separators on Windows, where the same store may be opened.
    components = re.split(r"[/\\]", name)
    if not components[0] or re.match(r"[A-Za-z]:", name):
        raise errors.invalid_artifact_id(name, "it is an absolute path")
    if ".." in components:
        raise errors.invalid_artifact_id(name, "it contains '..'")
    return components


def check_artifact_id(artifact_id: str) -> None:
    """Refuse what cannot be an artifact id on every backend alike.

    Raises:
        ValueError: `Invalid artifact_id: ...`, as Optuna's stores say it.
    """
    for component in check_name(artifact_id):
        # "x/" and "./x" are other names of "x" on a file system.
        if component in {"", "."}:
            raise errors.invalid_artifact_id(artifact_id, "it has an empty or '.' component")
        if component.casefold() in FOLDERS:
            raise errors.invalid_artifact_id(
                artifact_id, f"{component!r} is the name of a folder of the store"
            )


def check_prefix(prefix: str) -> str:
    """Return a prefix without slashes around it, refusing what cannot be one.

    Raises:
        ValueError: It is no plain path, or a component of it is the name of a folder of the store.
    """
    stripped = prefix.strip("/")
    if not stripped:
        return ""
    try:
        check_artifact_id(stripped)
    except ValueError as error:
        raise ValueError(f"prefix {prefix!r} cannot be used: {error}") from None
    return stripped


@lru_cache(_MOST_PARSED)
def ref(artifact_id: str) -> str:
    """Return where the ref of this id lies."""
    return REFS + _name_of(artifact_id)


def trashed_ref(artifact_id: str) -> str:
    """Return where the ref of this id lies after its removal."""
    return f"{TRASH}{REFS}{_name_of(artifact_id)}"


def _name_of(artifact_id: str) -> str:
    if _VERBATIM.fullmatch(artifact_id):
        return artifact_id
    return f"~{digest_of(artifact_id.encode())}"


def blob(digest: str) -> str:
    """Return where the blob with this digest lies."""
    return f"blobs/{digest[:2]}/{digest}"


def manifest(digest: str) -> str:
    """Return where the manifest of the content with this digest lies."""
    return f"manifests/{digest[:2]}/{digest}"


def hint(chunk_digest: bytes) -> str:
    """Return where a content is named that has the chunk with this digest (32 bytes)."""
    name = chunk_digest.hex()
    return f"hints/{name[:2]}/{name}"


def probes() -> str:
    """Return a fresh prefix for what is written only to see whether it can be."""
    return f"tmp/doctor-{secrets.token_hex(16)}/"


def trashed(run: str, name: str) -> str:
    """Return where a collection run put what was called `name`."""
    return f"{TRASH}{run}/{name}"
