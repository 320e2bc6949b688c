"""What a worker does: trials that train a small model and upload its checkpoints.

The model is random features (the backbone, frozen) under a linear head that is trained, with NumPy,
which Optuna brings along. Its checkpoints are as they are in life: the best equals the last, trials
with equal parameters repeat each other, and most of a checkpoint is the backbone of the one before.

Rule 1: it does what a user's script does, with public names; a store comes to it by pickle.
Rule 2: what it uploads it notes first, by digest and by SHA-256, in a file that outlives it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self
from unittest import mock

import numpy as np
import optuna
from blake3 import blake3
from serving import open_storage

from casartifacts import download_artifact, planning, upload_artifact
from casartifacts.chunking import ChunkerParameters
from casartifacts.records import StoreRecord

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray
    from optuna.trial import FrozenTrial, Trial

    from casartifacts import ContentStore

__all__ = ["NOTES", "RECORD", "Job", "evaluate", "work"]

# A checkpoint of 400 KiB goes the way of one of 400 MiB: a manifest, several blobs of which all
# but the last are those of the checkpoint before, many chunks.
RECORD = StoreRecord(
    durable=True,
    small_content_limit=2**16,
    chunker=ChunkerParameters(minimum=2**12, average=2**13, maximum=2**16),
)
_BLOB_LIMIT = 2**17

_ROWS, _FEATURES, _HIDDEN, _EPOCHS = 64, 16, 6144, 2

NOTES = "uploaded"
"""The file in a worker's folder: a line for each upload, digest and SHA-256."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker's process is given.

    Attributes:
        environment: What a batch system would export.
        stop: When this file is there, the worker ends after its trial.
        folder: The worker's own.
        pace_seconds: How long a trial lasts at least, so that there are not too many.
    """

    environment: Mapping[str, str]
    storage_url: str
    study_name: str
    store: ContentStore
    folder: Path
    stop: Path
    seed: int
    pace_seconds: float = 0.0


class Model:
    """Random features under a linear head, trained by gradient descent."""

    def __init__(self, backbone: NDArray[np.float32], head: NDArray[np.float32]) -> None:
        self._backbone = backbone
        self._head = head
        inputs = np.random.default_rng(7).standard_normal((_ROWS, _FEATURES), dtype=np.float32)
        self._wanted = np.sign(inputs[:, 0] * inputs[:, 1])
        self._hidden = np.tanh(inputs @ backbone) / np.float32(_HIDDEN**0.5)

    @classmethod
    def fresh(cls, seed: int) -> Self:
        rng = np.random.default_rng(seed)
        backbone = rng.standard_normal((_FEATURES, _HIDDEN), dtype=np.float32)
        return cls(backbone, np.zeros(_HIDDEN, np.float32))

    @classmethod
    def load(cls, path: Path) -> Self:
        with np.load(path, allow_pickle=False) as arrays:
            return cls(arrays["backbone"], arrays["head"])

    def save(self, path: Path) -> None:
        np.savez(path, backbone=self._backbone, head=self._head)

    def train(self, rate: float) -> None:
        errors = self._hidden @ self._head - self._wanted
        self._head = self._head - np.float32(rate) * (self._hidden.T @ errors)

    def loss(self) -> float:
        return float(np.mean(np.square(self._hidden @ self._head - self._wanted)))


def work(job: Job) -> None:
    """Do trials until the file `stop` is there."""
    with _set_up(job), open_storage(job.storage_url) as storage:
        study = optuna.load_study(
            study_name=job.study_name,
            storage=storage,
            sampler=optuna.samplers.RandomSampler(job.seed),
        )
        worker = _Worker(job, study)
        study.optimize(worker.objective, callbacks=[worker.end])


def evaluate(job: Job, name: str) -> tuple[float, float]:
    """Fetch the best trial's checkpoint; return its loss as it is now, and as it was told."""
    with _set_up(job), open_storage(job.storage_url) as storage:
        best = optuna.load_study(study_name=job.study_name, storage=storage).best_trial
        target = job.folder / name
        artifact_id = best.user_attrs["best"]
        download_artifact(artifact_store=job.store, artifact_id=artifact_id, file_path=target)
        return Model.load(target).loss(), best.values[0]


def _set_up(job: Job) -> mock._patch[int]:
    os.environ.update(job.environment)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("casartifacts").setLevel(logging.ERROR)  # retries are meant
    return mock.patch.object(planning, "BLOB_LIMIT", _BLOB_LIMIT)


class _Worker:
    def __init__(self, job: Job, study: optuna.Study) -> None:
        self._job = job
        self._study = study
        self._random = random.Random(job.seed)
        self._started = time.monotonic()

    def objective(self, trial: Trial) -> float:
        self._started = time.monotonic()
        folder, rate = self._job.folder, trial.suggest_float("rate", 0.2, 1.0, step=0.1)
        model = self._begin(trial)
        for epoch in range(_EPOCHS):
            model.train(rate)
            model.save(folder / "last.npz")
            self._upload(trial, folder / "last.npz")
            with (folder / "log.txt").open("a") as log:
                log.write(f"trial {trial.number}, epoch {epoch}: {model.loss()}\n")
        shutil.copyfile(folder / "last.npz", folder / "best.npz")
        self._upload(trial, folder / "log.txt")
        trial.set_user_attr("best", self._upload(trial, folder / "best.npz"))
        return model.loss()

    def end(self, study: optuna.Study, _trial: FrozenTrial) -> None:
        left_seconds = self._started + self._job.pace_seconds - time.monotonic()
        time.sleep(max(left_seconds, 0))
        if self._job.stop.exists():
            study.stop()

    def _begin(self, trial: Trial) -> Model:
        """Begin anew, or with what another trial has reached."""
        goes_on = trial.suggest_categorical("goes_on", [False, True])
        complete = (optuna.trial.TrialState.COMPLETE,)
        others = self._study.get_trials(deepcopy=False, states=complete) if goes_on else []
        if not others:
            return Model.fresh(trial.suggest_int("seed", 0, 7))
        other = self._random.choice(others[-50:])
        path = self._job.folder / "other.npz"
        download_artifact(
            artifact_store=self._job.store,
            artifact_id=other.user_attrs["best"],
            file_path=path,
            overwrite=True,
        )
        model = Model.load(path)
        if model.loss() != other.values[0]:
            raise ValueError(f"{other.number} told {other.values[0]}, here it is {model.loss()}")
        return model

    def _upload(self, trial: Trial, path: Path) -> str:
        content = path.read_bytes()
        with (self._job.folder / NOTES).open("a") as notes:
            notes.write(f"{blake3(content).hexdigest()} {hashlib.sha256(content).hexdigest()}\n")
        return upload_artifact(artifact_store=self._job.store, file_path=path, study_or_trial=trial)
