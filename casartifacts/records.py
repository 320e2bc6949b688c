r"""The two JSON records of format 1: the store's own, and the refs.

Both are canonical JSON (sorted names, no spaces, ASCII) and end in a newline, so that `jq` reads
them; `checksum` is the digest of the same JSON without that entry and without the newline. So
every changed byte is noticed: a record is accepted only if encoding it again gives the same bytes.

    casartifacts.json  {"checksum": ..., "chunker": {...}, "digest": "blake3-256", "durable": true,
                        "format": 1, "small_content_limit": 1048576}
    refs/<name>        {"artifact_id": ..., "checksum": ..., "digest": ..., "encoding": null,
                        "filename": "model.pt", "format": 1, "mimetype": ..., "origin": {...}|null,
                        "size": 123, "uploaded_at": "2026-11-01T12:00:00.000000+00:00"}

Rule 1: pure; the time comes in as a parameter.
Rule 2: a record of another format, or with entries that are not known here, is refused, never
half understood: somebody newer wrote it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from types import NoneType
from typing import TYPE_CHECKING, Any, TypeVar

from casartifacts.chunking import ChunkerParameters
from casartifacts.digest import digest_of, is_digest
from casartifacts.errors import CorruptArtifact, StoreMismatch

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["FORMAT", "SMALL_CONTENT_LIMIT", "Ref", "StoreRecord"]

FORMAT = 1

SMALL_CONTENT_LIMIT = 2**20
"""Contents up to this size (bytes) are one blob and have no manifest.

1 MiB: one request each way for what is small, and chunks of about 96 KiB have little to share
below it.
"""

# No chunk or small content is larger than a blob may be: 64 MiB.
_LARGEST_SIZE = 2**26


@dataclass(frozen=True, slots=True)
class StoreRecord:
    """What a store was made with; written once, then the same for everybody who opens it."""

    durable: bool
    small_content_limit: int = SMALL_CONTENT_LIMIT
    chunker: ChunkerParameters = field(default_factory=ChunkerParameters)
    digest: str = "blake3-256"
    format: int = FORMAT

    def encode(self) -> bytes:
        """Return the bytes of `casartifacts.json`."""
        return _encode(asdict(self))

    @classmethod
    def decode(cls, body: bytes, place: object) -> StoreRecord:
        """Read `casartifacts.json`.

        Raises:
            StoreMismatch: It is of another format, or damaged.
        """
        where = f"casartifacts.json in {place!r}"
        try:
            found = _decode(cls, body, where)
            found["chunker"] = ChunkerParameters(**found["chunker"])
            record = cls(**found)
            _check_sizes(record)
        except (CorruptArtifact, TypeError, ValueError) as error:
            raise StoreMismatch(
                f"{where} is damaged ({error}); nothing is read or written. Restore it from a "
                "copy, or from another store that was made with the same version."
            ) from error
        if record.digest != "blake3-256":
            raise StoreMismatch(
                f"{where} names the digest {record.digest!r}; this version knows 'blake3-256'. "
                "A newer casartifacts wrote it: upgrade."
            )
        return record


@dataclass(frozen=True, slots=True)
class Ref:
    """What an artifact id leads to: a content and how it was listed.

    `size` is in bytes, `uploaded_at` an ISO 8601 time in UTC. `digest` is None only for an artifact
    that Optuna stored as a plain object earlier; such a one has no ref in the store.
    """

    artifact_id: str
    digest: str | None
    size: int
    filename: str | None
    mimetype: str | None
    encoding: str | None
    uploaded_at: str
    origin: Mapping[str, str] | None = None

    def encode(self) -> bytes:
        """Return the bytes of the ref."""
        return _encode({**asdict(self), "format": FORMAT})

    @classmethod
    def decode(cls, body: bytes, artifact_id: str, place: object) -> Ref:
        """Read the ref of this id.

        Raises:
            CorruptArtifact: It is damaged, or belongs to another id.
            StoreMismatch: It is of another format.
        """
        where = f"the ref of artifact {artifact_id!r} in {place!r}"
        record = cls.decode_any(body, where)
        if record.artifact_id != artifact_id:
            raise CorruptArtifact(f"{where} says that it belongs to {record.artifact_id!r}")
        return record

    @classmethod
    def decode_any(cls, body: bytes, where: str) -> Ref:
        """Read a ref of which only its place is known; whose it is, the caller checks.

        Raises:
            CorruptArtifact: It is damaged.
            StoreMismatch: It is of another format.
        """
        found = _decode(cls, body, where, extra=("format",))
        del found["format"]
        wrong = [name for name, kinds in _KINDS.items() if type(found[name]) not in kinds]
        if wrong or not is_digest(found["digest"]) or found["size"] < 0:
            raise CorruptArtifact(f"{where} names no content: {found}")
        return cls(**found)


# What the entries of a ref are; a checksum that agrees says nothing of that.
_KINDS = {
    **dict.fromkeys(("artifact_id", "digest", "uploaded_at"), (str,)),
    **dict.fromkeys(("encoding", "filename", "mimetype"), (str, NoneType)),
    "origin": (dict, NoneType),
    "size": (int,),
}


def _check_sizes(record: StoreRecord) -> None:
    """Refuse what no version writes, because sizes are counted with and memory is made by them."""
    chunker = record.chunker
    sizes = (chunker.minimum, chunker.average, chunker.maximum, record.small_content_limit)
    if not (
        all(type(size) is int for size in sizes)
        and 0 < chunker.minimum <= chunker.average <= chunker.maximum <= _LARGEST_SIZE
        and 0 <= record.small_content_limit <= _LARGEST_SIZE
    ):
        raise ValueError(f"its sizes are {sizes}")


_Record = TypeVar("_Record", StoreRecord, Ref)


def _canonical(entries: Mapping[str, Any]) -> bytes:
    return json.dumps(entries, sort_keys=True, separators=(",", ":")).encode("ascii")


def _encode(entries: dict[str, Any]) -> bytes:
    checksum = digest_of(_canonical(entries))
    return _canonical({**entries, "checksum": checksum}) + b"\n"


def _decode(
    record: type[_Record], body: bytes, where: str, extra: tuple[str, ...] = ()
) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise CorruptArtifact(f"{where} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise CorruptArtifact(f"{where} is no JSON object")
    if isinstance(found.get("format"), int) and found["format"] != FORMAT:
        raise StoreMismatch(
            f"{where} is of format {found['format']}; this version knows format {FORMAT}. "
            "A newer casartifacts wrote it: upgrade."
        )
    checksum = found.pop("checksum", None)
    if checksum != digest_of(_canonical(found)) or _encode(found) != body:
        raise CorruptArtifact(f"{where} does not agree with its checksum")
    expected = {*(entry.name for entry in fields(record)), *extra}
    if found.keys() != expected:
        raise StoreMismatch(
            f"{where} has the entries {sorted(found)}; this version knows {sorted(expected)}. "
            "A newer casartifacts wrote it: upgrade."
        )
    return found
