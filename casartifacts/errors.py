"""What can go wrong, split by who must act.

Rule 1: a message says what, which, what was expected, what came, and what to do.
Rule 2: `ArtifactNotFound` is Optuna's own class, and loading it costs one to three seconds
(`optuna.artifacts` pulls in boto3 and google.cloud): so it is looked up here when it is first
raised or caught, never at import. Write `raise errors.not_found(...)` and
`except errors.ArtifactNotFound:`; Python evaluates the latter only while an error is under way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optuna.artifacts.exceptions import ArtifactNotFound

__all__ = [
    "ArtifactNotFound",
    "CasartifactsError",
    "ContentChanged",
    "CorruptArtifact",
    "StoreMismatch",
    "invalid_artifact_id",
    "not_found",
]


class CasartifactsError(Exception):
    """The base of the errors that are ours; `ArtifactNotFound` is Optuna's."""


class CorruptArtifact(CasartifactsError):
    """Stored bytes are not what their digest promises; nothing was delivered."""


class ContentChanged(CasartifactsError):
    """A file changed while it was being uploaded; nothing was published."""


class StoreMismatch(CasartifactsError):
    """What lies in the backend is of a format, or was made with settings, that do not fit here."""


def not_found(artifact_id: str, place: object) -> ArtifactNotFound:
    """Make the `ArtifactNotFound` that says which artifact is missing from which place."""
    from optuna.artifacts.exceptions import ArtifactNotFound

    return ArtifactNotFound(f"Artifact {artifact_id!r} was not found in {place!r}.")


def invalid_artifact_id(artifact_id: object, reason: str) -> ValueError:
    """Make the `ValueError` that Optuna's stores raise for an id that they refuse."""
    return ValueError(f"Invalid artifact_id: {artifact_id!r} ({reason})")


def __getattr__(name: str) -> object:
    if name == "ArtifactNotFound":
        from optuna.artifacts.exceptions import ArtifactNotFound

        return ArtifactNotFound
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
