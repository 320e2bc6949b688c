"""The face to Optuna: upload, download, list and remove the artifacts of studies and trials.

The functions of `optuna.artifacts` with the same signatures and a few more options, for any store:
a `ContentStore`, Optuna's own, or whatever else has their three methods.

Rule 1: refuse early. Whatever can be known to be wrong is said before anything is stored.
Rule 2: content first, then the metadata that names it: metadata never names what is not there.
Rule 3: only what Optuna 4.0 and 5.0 both have is used, and Optuna is loaded by the call that needs
it. `optuna.artifacts`, which pulls in boto3 and google.cloud, is needed for listing alone.
"""

# ruff: noqa: SLF001 -- Optuna tells the ids and the storage of its studies and trials only here

from __future__ import annotations

import contextlib
import errno
import functools
import io
import json
import mimetypes
import os
import platform
import uuid
import warnings
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ParamSpec, TypeGuard, TypeVar, cast

from casartifacts import errors, files, names
from casartifacts.buffers import BUFFER_SIZE
from casartifacts.digest import digest_of
from casartifacts.progress import Counted, reporting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from optuna.artifacts import ArtifactMeta
    from optuna.storages import BaseStorage
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

    from casartifacts.progress import Report
    from casartifacts.protocols import ArtifactStore
    from casartifacts.store import ContentStore

    StudyOrTrial = Study | Trial

__all__ = [
    "download_artifact",
    "get_all_artifact_meta",
    "guess_type",
    "load_study_or_trial",
    "remove_artifact",
    "storage_fingerprint",
    "store_file",
    "upload_artifact",
]

# Where Optuna keeps the metadata, and its type for what nobody can guess.
_PREFIX = "artifacts:"
_UNKNOWN_TYPE = "application/octet-stream"

# What machines disagree on, or do not know: some take `.pt` for a game console's page table.
_FIXED_TYPES = {
    ".pt": "application/octet-stream",
    ".pth": "application/octet-stream",
    ".ckpt": "application/octet-stream",
    ".safetensors": "application/octet-stream",
    ".onnx": "application/octet-stream",
    ".parquet": "application/vnd.apache.parquet",
}

# Bytes in an attribute of Optuna's MySQL storage (TEXT), the smallest of them all.
_LONGEST_ATTRIBUTE = 65_535

# An id is as long as this when the metadata is tried for its length: digest, dash, 128 bits.
_SAMPLE_ID = "0" * 97

# How an SQLite file begins.
_SQLITE = b"SQLite format 3\0"

# How many studies an error names.
_MOST_TOLD = 5

# Each round but the first means that a storage took over an hour to answer.
_ROUNDS = 5

_P = ParamSpec("_P")
_T = TypeVar("_T")


def _positional_too(*names: str) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """Let these arguments still be given by position, as Optuna does until its version 6.0."""

    def decorate(function: Callable[_P, _T]) -> Callable[_P, _T]:
        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> _T:
            if len(args) > len(names):
                raise TypeError(
                    f"{function.__name__}() takes at most {len(names)} positional arguments "
                    f"({', '.join(names)}) but {len(args)} were given"
                )
            given = dict(zip(names, args, strict=False))
            if twice := given.keys() & options.keys():
                raise TypeError(
                    f"{function.__name__}() got multiple values for {', '.join(sorted(twice))}"
                )
            if given:
                warnings.warn(
                    f"{function.__name__}() got {', '.join(given)} by position. Optuna 6.0 takes "
                    f"keywords only: write {', '.join(f'{name}=...' for name in given)}.",
                    FutureWarning,
                    stacklevel=2,
                )
            return cast("Callable[..., _T]", function)(**given, **options)

        return cast("Callable[_P, _T]", call)

    return decorate


@_positional_too("study_or_trial", "file_path", "artifact_store")
def upload_artifact(
    *,
    artifact_store: ArtifactStore,
    file_path: str | os.PathLike[str],
    study_or_trial: Trial | FrozenTrial | Study,
    storage: BaseStorage | None = None,
    mimetype: str | None = None,
    encoding: str | None = None,
    filename: str | None = None,
    progress: bool | Report | None = None,
) -> str:
    """Store a file and list it in a study or trial.

    The content is stored before it is listed. If this call is interrupted, nothing is listed, and
    what was stored is dropped by garbage collection.

    Args:
        artifact_store: A `ContentStore`, or any store of Optuna.
        file_path: The file.
        study_or_trial: Where to list it.
        storage: The storage of a `FrozenTrial`, which does not know its own.
        mimetype: Its MIME type; guessed from the name if not given.
        encoding: Its `Content-Encoding`, such as gzip; guessed from the name if not given.
        filename: The name to list, if not that of the file.
        progress: True for a bar, or a function that is called with the bytes done and the bytes
            in all (0 if that is not known).

    Returns:
        The artifact id.

    Raises:
        FileNotFoundError, PermissionError, IsADirectoryError: There is no file to read.
        ValueError: `storage` is missing, or the file name cannot be listed.
        TypeError: An argument is of the wrong kind.
        RuntimeError: The trial is finished (Optuna's `UpdateFinishedTrialError`).
    """
    _check_store(artifact_store)
    listing = _listing(study_or_trial, storage)
    path = Path(os.fsdecode(file_path))
    described = _describe(path, filename=filename, mimetype=mimetype, encoding=encoding)
    listing.check_updatable()
    with _open_content(path) as body, reporting(progress, label=described.filename) as report:
        if _is_content_store(artifact_store):
            return _add(artifact_store, body, described, listing, report)
        artifact_id = str(uuid.uuid4())
        _write(artifact_store, artifact_id, body, report)
        listing.add(artifact_id, described)
        return artifact_id


def store_file(
    *,
    artifact_store: ContentStore,
    file_path: str | os.PathLike[str],
    filename: str | None = None,
    progress: bool | Report | None = None,
) -> str:
    """Store a file that no study lists, with the description that `upload_artifact` would list.

    Raises:
        FileNotFoundError, PermissionError, IsADirectoryError: There is no file to read.
        ValueError: The file name cannot be listed.
    """
    path = Path(os.fsdecode(file_path))
    described = _describe(path, filename=filename)
    with _open_content(path) as body, reporting(progress, label=described.filename) as report:
        return artifact_store.add(
            body,
            filename=described.filename,
            mimetype=described.mimetype,
            encoding=described.encoding,
            progress=report,
        )


def download_artifact(
    *,
    artifact_store: ArtifactStore,
    file_path: str | os.PathLike[str],
    artifact_id: str,
    overwrite: bool = False,
    link: files.Link | None = None,
    progress: bool | Report | None = None,
) -> None:
    """Bring an artifact to a file; the file is whole or absent at every moment.

    By default that is a private, writable copy. `ContentStore.download` tells what a link to the
    cache's read-only file is good for, and what it costs in trust.

    Args:
        artifact_store: A `ContentStore`, or any store of Optuna.
        file_path: The file to make, in a folder that exists.
        artifact_id: The artifact.
        overwrite: Whether a file that exists is replaced.
        link: "hard" or "symlink" for a link to the cache's file; a private copy where none can be
            had, and for all stores but a `ContentStore`.
        progress: True for a bar, or a function that is called with the bytes done and the bytes
            in all (0 if that is not known).

    Raises:
        FileExistsError: The file exists, and `overwrite` is not set.
        FileNotFoundError: The folder of the file does not exist.
        ArtifactNotFound: The store has no such artifact (Optuna's class).
        CorruptArtifact: What is stored is not what was uploaded (`ContentStore` only).
        ValueError: `link` is no kind of link.
    """
    _check_store(artifact_store)
    files.check_link(link)
    path = Path(os.fsdecode(file_path))
    with reporting(progress, label=path.name) as report:
        if _is_content_store(artifact_store):
            artifact_store.download(
                artifact_id, path, overwrite=overwrite, link=link, progress=report
            )
            return
        with (
            files.publishing(path, overwrite=overwrite) as target,
            contextlib.closing(artifact_store.open_reader(artifact_id)) as reader,
        ):
            done = 0
            while piece := reader.read(BUFFER_SIZE):
                done += files.write(target, piece)
                if report is not None:
                    report(done, 0)


def get_all_artifact_meta(
    study_or_trial: Trial | FrozenTrial | Study,
    *,
    storage: BaseStorage | None = None,
    artifact_store: ArtifactStore | None = None,
) -> list[ArtifactMeta]:
    """List the artifacts of a study or trial; those of a study do not include its trials'.

    Storages give them in any order: a database goes by the id, which tells nothing. With a store
    that knows when each was uploaded they come in that order, the newest last.

    Args:
        study_or_trial: Whose artifacts.
        storage: The storage of a `FrozenTrial`, which does not know its own.
        artifact_store: If given, artifacts that this store no longer has are left out; each one is
            asked for.
    """
    from optuna.artifacts import ArtifactMeta

    if artifact_store is not None:
        _check_store(artifact_store)
    found = []
    for name, value in _listing(study_or_trial, storage).attributes().items():
        # optuna-dashboard writes a JSON null when it deletes an artifact.
        if not name.startswith(_PREFIX) or (entry := json.loads(value)) is None:
            continue
        meta = ArtifactMeta(
            artifact_id=entry["artifact_id"],
            filename=entry["filename"],
            mimetype=entry["mimetype"],
            encoding=entry["encoding"],
        )
        when = "" if artifact_store is None else _uploaded_at(artifact_store, meta.artifact_id)
        if when is not None:
            found.append((when, meta))
    return [meta for _, meta in sorted(found, key=itemgetter(0))]


def remove_artifact(*, artifact_store: ArtifactStore, artifact_id: str) -> None:
    """Remove an artifact from the store; content that others share stays.

    The metadata stays listed: Optuna cannot delete an attribute, and in a finished trial not even
    change it. `get_all_artifact_meta(..., artifact_store=store)` leaves it out.

    Raises:
        ArtifactNotFound: The store has no such artifact (Optuna's class).
    """
    _check_store(artifact_store)
    artifact_store.remove(artifact_id)


def guess_type(filename: str) -> tuple[str | None, str | None]:
    """Guess MIME type and encoding from a name as Optuna does, model files alike everywhere."""
    mimetype, encoding = mimetypes.guess_type(filename)
    path = Path(filename)
    if {path.suffix, path.suffix.lower()} & mimetypes.encodings_map.keys():
        path = path.with_suffix("")
    return _FIXED_TYPES.get(path.suffix.lower(), mimetype), encoding


def load_study_or_trial(
    *, storage: str, study_name: str, trial_number: int | None = None
) -> StudyOrTrial:
    """Open a study that exists, or one of its trials, by the names that a command line has.

    Args:
        storage: A database URL, a journal file, a Redis URL (as `optuna --storage` takes them), or
            an SQLite file. None of them is made.
        study_name: The study.
        trial_number: The trial; None for the study itself.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: There is no such study or trial.
    """
    from optuna.pruners import NopPruner
    from optuna.samplers import RandomSampler
    from optuna.study import Study
    from optuna.trial import Trial

    opened = _open_storage(storage)
    # A Trial asks its study's sampler and pruner when it is made; these two write nothing.
    try:
        study = Study(study_name, opened, sampler=RandomSampler(), pruner=NopPruner())
    except KeyError:
        known = sorted(found.study_name for found in opened.get_all_studies())
        told = ", ".join(map(repr, known[:_MOST_TOLD])) + ", ..." * (len(known) > _MOST_TOLD)
        raise ValueError(
            f"There is no study {study_name!r} in this storage, which has {told or 'none'}"
        ) from None
    if trial_number is None:
        return study
    try:
        trial_id = opened.get_trial_id_from_study_id_trial_number(study._study_id, trial_number)
    except KeyError:
        raise ValueError(
            f"Study {study_name!r} has no trial {trial_number}: it has "
            f"{opened.get_n_trials(study._study_id)} trials, numbered from 0"
        ) from None
    return Trial(study, trial_id)


def _open_storage(storage: str) -> BaseStorage:
    from optuna.storages import JournalStorage, get_storage
    from optuna.storages.journal import JournalFileBackend, JournalRedisBackend
    from sqlalchemy.engine import make_url

    if storage.startswith(("redis://", "rediss://")):
        return JournalStorage(JournalRedisBackend(storage))
    if "://" not in storage:
        with Path(storage).open("rb") as file:
            is_sqlite = file.read(len(_SQLITE)) == _SQLITE
        if not is_sqlite:
            return JournalStorage(JournalFileBackend(storage))
        storage = f"sqlite:///{storage}"
    parsed = make_url(storage)
    name = parsed.database or ""
    if parsed.get_backend_name() == "sqlite" and name and not name.startswith("file:"):
        Path(name).open("rb").close()  # else SQLite would make an empty one
    return get_storage(storage)


def storage_fingerprint(storage: BaseStorage) -> str | None:
    """Return what tells an Optuna storage from all others, in every process and without secrets.

    None where that cannot be told: a storage in memory, a proxy. It may differ for two ways to
    reach one storage, but not agree for two storages: `prune` would take the one's artifacts for
    leftovers of the other's. So a database on this machine counts with the machine's name, and a
    journal with its first line, in which Optuna wrote a random worker id.
    """
    from optuna.storages import RDBStorage
    from optuna.storages.journal import JournalFileBackend

    # What load_study makes of a URL is a cache around the RDBStorage; a JournalStorage has a file.
    place: Any = getattr(storage, "_backend", storage)
    if isinstance(place, RDBStorage):
        identity = _database(place.url)
    elif isinstance(place, JournalFileBackend):
        identity = _journal(place._file_path)
    else:
        identity = None
    return None if identity is None else digest_of(json.dumps(identity).encode())


def _database(url: str) -> list[str] | None:
    """Return what identifies the database behind an SQLAlchemy URL; never its password."""
    from sqlalchemy.engine import make_url

    parsed = make_url(url)
    kind, name, host = parsed.get_backend_name(), parsed.database, parsed.host or ""
    # Without a name the driver is told by other ways; `file:` leads to SQLite's own options.
    if not name or (kind == "sqlite" and (name.startswith("file:") or not Path(name).exists())):
        return None
    if kind == "sqlite":
        return [kind, platform.node(), os.path.realpath(name)]
    # Only these of the options: others hold passwords. PostgreSQL's `options` may name a schema.
    told = [f"{option}={parsed.query.get(option)}" for option in ("host", "port", "options")]
    machine = platform.node() if host in {"", "localhost", "127.0.0.1", "::1"} else ""
    return [kind, machine, host, str(parsed.port), parsed.username or "", name, *told]


def _journal(path: str) -> list[str] | None:
    """Return what identifies a journal file: where it lies and how it begins."""
    try:
        with Path(path).open("rb") as file:
            first = file.readline(_LONGEST_ATTRIBUTE)
    except OSError:
        return None
    return ["journal", os.path.realpath(path), digest_of(first)] if first else None


def _describe(
    path: Path,
    *,
    filename: str | None,
    mimetype: str | None = None,
    encoding: str | None = None,
) -> _Description:
    name = path.name if filename is None else _checked_filename(filename)
    guessed_type, guessed_encoding = guess_type(name)
    described = _Description(
        filename=name,
        mimetype=mimetype or guessed_type or _UNKNOWN_TYPE,
        encoding=encoding or guessed_encoding,
    )
    described.check()
    return described


@dataclass(frozen=True, slots=True)
class _Description:
    """How a content is listed."""

    filename: str
    mimetype: str
    encoding: str | None

    def metadata(self, artifact_id: str) -> str:
        # Exactly these four: people write ArtifactMeta(**json.loads(value)).
        return json.dumps(
            {
                "artifact_id": artifact_id,
                "filename": self.filename,
                "mimetype": self.mimetype,
                "encoding": self.encoding,
            }
        )

    def check(self) -> None:
        for option, value in (("mimetype", self.mimetype), ("encoding", self.encoding)):
            if not isinstance(value, str | None):
                raise TypeError(f"{option} must be a str, got {value!r}")
        length = len(json.dumps(self.metadata(_SAMPLE_ID)))
        if length > _LONGEST_ATTRIBUTE:
            raise ValueError(
                f"The metadata of {self.filename[:80]!r}... has {length} bytes, Optuna's storages "
                f"keep at most {_LONGEST_ATTRIBUTE}: give a shorter filename, mimetype or encoding."
            )


@dataclass(frozen=True, slots=True)
class _Listing:
    """The system attributes in which one study or trial lists its artifacts."""

    storage: BaseStorage
    of_trial: bool
    owner_id: int
    study: Study | None

    def attributes(self) -> dict[str, Any]:
        if self.of_trial:
            return self.storage.get_trial_system_attrs(self.owner_id)
        return self.storage.get_study_system_attrs(self.owner_id)

    def add(self, artifact_id: str, described: _Description) -> None:
        name, value = _PREFIX + artifact_id, described.metadata(artifact_id)
        if self.of_trial:
            self.storage.set_trial_system_attr(self.owner_id, name, value)
        else:
            self.storage.set_study_system_attr(self.owner_id, name, value)

    def relatives(self, filename: str) -> Iterator[str]:
        """Yield the digests of what is listed here, and in the study, under this file name."""
        yield from _digests(self.attributes(), filename)
        if self.of_trial and self.study is not None:
            yield from _digests(
                self.study._storage.get_study_system_attrs(self.study._study_id), filename
            )

    def check_updatable(self) -> None:
        """Ask the storage itself: a trial object may have been read before the trial ended."""
        if not self.of_trial:
            return
        state = self.storage.get_trial(self.owner_id).state
        try:
            self.storage.check_trial_is_updatable(self.owner_id, state)
        except RuntimeError as error:  # what Optuna's UpdateFinishedTrialError is, in 4.0 as well
            error.add_note(
                "Nothing was stored. Upload while the trial runs, or list the file in its study."
            )
            raise

    def origin(self) -> dict[str, str]:
        """Tell which study in which storage, as far as that is known and costs no request."""
        origin = {}
        place = storage_fingerprint(self.storage)
        if place is not None:
            origin["storage"] = place
        if self.study is not None:
            own = self.study._storage
            # In another storage than the study's own, this number is of another study.
            if self.storage is own or (place is not None and place == storage_fingerprint(own)):
                origin["study"] = self.study.study_name
        return origin


def _digests(attributes: dict[str, Any], filename: str) -> Iterator[str]:
    """Yield the digests that are known of what is listed under a file name, the last one first."""
    for name, value in reversed(attributes.items()):
        if not name.startswith(_PREFIX):
            continue
        # Whatever another program has written there is no reason not to upload.
        with contextlib.suppress(ValueError, LookupError, TypeError, RecursionError):
            entry = json.loads(value)
            digest = names.digest_in(entry["artifact_id"])
            if digest is not None and entry["filename"] == filename:
                yield digest


def _listing(study_or_trial: Trial | FrozenTrial | Study, storage: BaseStorage | None) -> _Listing:
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

    if isinstance(storage, str):
        raise TypeError(
            f"storage must be a storage of Optuna, got the str {storage!r}: "
            "pass optuna.storages.get_storage(...) of it"
        )
    study: Study | None
    if isinstance(study_or_trial, Study):
        study, of_trial, owner_id = study_or_trial, False, study_or_trial._study_id
    elif isinstance(study_or_trial, Trial):
        study, of_trial, owner_id = study_or_trial.study, True, study_or_trial._trial_id
    elif isinstance(study_or_trial, FrozenTrial):
        study, of_trial, owner_id = None, True, study_or_trial._trial_id
    else:
        raise TypeError(
            "study_or_trial must be a Trial, FrozenTrial or Study of Optuna, got "
            f"{study_or_trial!r}"
        )
    if storage is None:
        if study is None:
            raise ValueError(
                "storage is required for FrozenTrial. Pass the storage that the trial was read "
                "from: storage=optuna.storages.get_storage(...)."
            )
        storage = study._storage
    return _Listing(storage, of_trial, owner_id, study)


def _check_store(artifact_store: ArtifactStore) -> None:
    if not callable(getattr(artifact_store, "open_reader", None)):
        raise TypeError(
            "artifact_store must be a store with open_reader, write and remove, got "
            f"{artifact_store!r}: casartifacts.open_store(...) makes one of a path or URL"
        )


def _is_content_store(artifact_store: ArtifactStore) -> TypeGuard[ContentStore]:
    """Tell a ContentStore, or what wraps one, without loading that room for other stores."""
    return hasattr(artifact_store, "add") and hasattr(artifact_store, "is_fresh")


def _checked_filename(filename: str) -> str:
    if not isinstance(filename, str):
        raise TypeError(f"filename must be a str, got {filename!r}")
    # People join it to the folder that they download to, on other systems too.
    if filename in {"", ".", ".."} or any(character in filename for character in "/\\\0"):
        raise ValueError(
            f"filename must be a bare name without separators, got {filename!r}; "
            "it is only what is listed: where the file lies is said by file_path"
        )
    return filename


def _open_content(path: Path) -> BinaryIO:
    """Open what is to be uploaded."""
    if path.is_dir():
        raise IsADirectoryError(
            errno.EISDIR, "A directory cannot be uploaded yet; upload an archive of it", str(path)
        )
    return path.open("rb")


def _write(
    artifact_store: ArtifactStore, artifact_id: str, body: BinaryIO, report: Report | None
) -> None:
    """Write to a store that has only Optuna's three methods."""
    if report is None:
        artifact_store.write(artifact_id, body)
        return
    counted = Counted(body, report=report, total=os.fstat(body.fileno()).st_size)
    artifact_store.write(artifact_id, io.BufferedReader(counted, BUFFER_SIZE))


def _add(
    artifact_store: ContentStore,
    body: BinaryIO,
    described: _Description,
    listing: _Listing,
    report: Report | None,
) -> str:
    """Add to a content store, and list it while what is known of the content is fresh (rule K)."""
    artifact_id, origin = None, listing.origin() or None
    for _ in range(_ROUNDS):
        if artifact_id is not None:
            body.seek(0)
        artifact_id = artifact_store.add(
            body,
            artifact_id=artifact_id,
            filename=described.filename,
            mimetype=described.mimetype,
            encoding=described.encoding,
            origin=origin,
            relatives=listing.relatives(described.filename),
            progress=report,
        )
        listing.add(artifact_id, described)
        if artifact_store.is_fresh(artifact_id):
            return artifact_id
    raise TimeoutError(
        f"Artifact {artifact_id!r} was stored and listed {_ROUNDS} times, and each time it took "
        "over an hour until the storage answered: garbage collection may have taken the content. "
        "Upload it again when the storage is well."
    )


def _uploaded_at(artifact_store: ArtifactStore, artifact_id: str) -> str | None:
    """Return when an artifact was uploaded, "" if its store does not know, None if it is gone."""
    try:
        if _is_content_store(artifact_store):
            return artifact_store.stat(artifact_id).uploaded_at
        artifact_store.open_reader(artifact_id).close()
    except errors.ArtifactNotFound:
        return None
    return ""
