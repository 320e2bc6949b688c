"""The programs of others that are given one of our stores: optuna-dashboard, Optuna's Backoff.

They know the three methods, `read(n)` and `close()` of a reader, and Optuna's `ArtifactNotFound`.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
from typing import TYPE_CHECKING, Any, BinaryIO
from wsgiref.util import FileWrapper, setup_testing_defaults

import optuna
import optuna.artifacts
import pytest
from optuna.artifacts.exceptions import ArtifactNotFound

from casartifacts.backends.filesystem import FileSystemArtifactStore
from casartifacts.backends.memory import MemoryArtifactStore
from casartifacts.cache import ArtifactCache
from casartifacts.store import ContentStore
from casartifacts.studies import download_artifact, get_all_artifact_meta, upload_artifact

if TYPE_CHECKING:
    from pathlib import Path

# What the routes of optuna-dashboard 0.21 accept as an artifact id.
ROUTED = re.compile(r"[0-9a-fA-F-]+")

SMALL = b"accuracy: 0.97\n"
LARGE = os.urandom(3 * 2**20 + 17)


class ThreeMethods:
    """A store as its clients see it: nothing but what they may use."""

    def __init__(self, store: ContentStore) -> None:
        self._store = store

    def open_reader(self, artifact_id: str) -> BinaryIO:
        return ReadAndClose(self._store.open_reader(artifact_id))  # type: ignore[return-value]

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        self._store.write(artifact_id, content_body)

    def remove(self, artifact_id: str) -> None:
        self._store.remove(artifact_id)


class ReadAndClose:
    """A reader with read(n) and close()."""

    def __init__(self, reader: BinaryIO) -> None:
        self.read = reader.read
        self.close = reader.close


@pytest.fixture(params=["folder", "folder and cache", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ContentStore:
    if request.param == "memory":
        return ContentStore(MemoryArtifactStore())
    backend = FileSystemArtifactStore(tmp_path / "store", durable=False)
    if request.param == "folder":
        return ContentStore(backend)
    return ContentStore(backend, cache=ArtifactCache(tmp_path / "cache"))


@pytest.fixture
def study() -> optuna.Study:
    return optuna.create_study(storage=optuna.storages.InMemoryStorage())


@pytest.fixture(params=[SMALL, LARGE], ids=["small", "large"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "report.txt"
    path.write_bytes(request.param)
    return path


def test_our_ids_fit_the_routes_of_the_dashboard(
    store: ContentStore, study: optuna.Study, file: Path
) -> None:
    artifact_id = upload_artifact(artifact_store=store, file_path=file, study_or_trial=study)
    assert ROUTED.fullmatch(artifact_id)
    assert artifact_id == artifact_id.lower(), "MariaDB merges names that differ in case"


def test_three_methods_and_read_and_close_are_enough_for_all_functions(
    store: ContentStore, study: optuna.Study, file: Path, tmp_path: Path
) -> None:
    seen: Any = ThreeMethods(store)
    for number, (upload, download) in enumerate(
        (
            (upload_artifact, download_artifact),
            (optuna.artifacts.upload_artifact, download_artifact),
        )
    ):
        artifact_id = upload(artifact_store=seen, file_path=str(file), study_or_trial=study)
        assert ROUTED.fullmatch(artifact_id)
        target = tmp_path / f"out{number}"
        download(artifact_store=seen, file_path=str(target), artifact_id=artifact_id)
        assert target.read_bytes() == file.read_bytes()
        seen.remove(artifact_id)
        assert get_all_artifact_meta(study, artifact_store=seen) == []


def test_a_descriptor_is_only_given_out_for_a_file_that_is_the_artifact(
    store: ContentStore, study: optuna.Study, file: Path
) -> None:
    # gunicorn hands it to sendfile(), past read().
    artifact_id = upload_artifact(artifact_store=store, file_path=file, study_or_trial=study)
    for _ in range(2):
        with store.open_reader(artifact_id) as reader:
            try:
                descriptor = reader.fileno()
            except (AttributeError, io.UnsupportedOperation):
                continue
            size = os.fstat(descriptor).st_size
            assert os.pread(descriptor, size + 1, 0) == file.read_bytes()


def test_optunas_backoff_may_be_put_around_our_store(
    store: ContentStore, study: optuna.Study, file: Path, tmp_path: Path
) -> None:
    patient = optuna.artifacts.Backoff(store, max_retries=2, min_delay=0.001, max_delay=0.002)
    for number, upload in enumerate((upload_artifact, optuna.artifacts.upload_artifact)):
        artifact_id = upload(artifact_store=patient, file_path=str(file), study_or_trial=study)
        target = tmp_path / f"out{number}"
        download_artifact(artifact_store=patient, file_path=target, artifact_id=artifact_id)
        assert target.read_bytes() == file.read_bytes()
    with pytest.raises(ArtifactNotFound):
        patient.open_reader("0-0")


# optuna-dashboard itself


@pytest.fixture(params=[None, FileWrapper], ids=["bare", "with a file wrapper"])
def ask(request: pytest.FixtureRequest, store: ContentStore, study: optuna.Study) -> Any:
    """Ask optuna-dashboard's own WSGI application, as a web server does."""
    dashboard = pytest.importorskip("optuna_dashboard")
    app = dashboard.wsgi(study._storage, artifact_store=store)

    def ask(method: str, path: str, body: dict[str, str] | None = None) -> tuple[int, Any, bytes]:
        sent = json.dumps(body).encode() if body is not None else b""
        environ: dict[str, Any] = {
            "REQUEST_METHOD": method,
            "PATH_INFO": path,
            "CONTENT_TYPE": "application/json",
            "CONTENT_LENGTH": str(len(sent)),
            "wsgi.input": io.BytesIO(sent),
        }
        setup_testing_defaults(environ)
        if request.param is not None:
            environ["wsgi.file_wrapper"] = request.param
        started: list[Any] = []
        answer = app(environ, lambda *told: started.extend(told))
        try:
            body_sent = b"".join(answer)
        finally:
            if hasattr(answer, "close"):
                answer.close()
        return int(started[0].split()[0]), dict(started[1]), body_sent

    return ask


def test_the_dashboard_serves_what_was_uploaded(
    ask: Any, store: ContentStore, study: optuna.Study, file: Path
) -> None:
    trial = study.ask()
    in_study = upload_artifact(artifact_store=store, file_path=file, study_or_trial=study)
    in_trial = upload_artifact(artifact_store=store, file_path=file, study_or_trial=trial)
    for path in (
        f"/artifacts/{study._study_id}/{in_study}",
        f"/artifacts/{study._study_id}/{trial._trial_id}/{in_trial}",
    ):
        status, headers, body = ask("GET", path)
        assert status == 200
        assert headers["Content-Type"] == "text/plain"
        assert body == file.read_bytes()


def test_what_is_uploaded_in_the_dashboard_can_be_downloaded_and_is_stored_once(
    ask: Any, store: ContentStore, study: optuna.Study, file: Path, tmp_path: Path
) -> None:
    content = file.read_bytes()
    if len(content) > 2**20:
        content = content[: 2**20 + 1]  # the dashboard takes uploads as text in one piece
        file.write_bytes(content)
    trial = study.ask()
    upload_artifact(artifact_store=store, file_path=file, study_or_trial=trial)
    before = {entry.name for entry in store.backend.list("blobs/")}
    sent = "data:text/plain;base64," + base64.b64encode(content).decode()
    for path, owner in (
        (f"/api/artifacts/{study._study_id}", study),
        (f"/api/artifacts/{study._study_id}/{trial._trial_id}", trial),
    ):
        status, _, body = ask("POST", path, {"file": sent, "filename": "shown.txt"})
        assert status == 201
        artifact_id = json.loads(body)["artifact_id"]
        metas = {meta.artifact_id: meta for meta in get_all_artifact_meta(owner)}
        assert metas[artifact_id].filename == "shown.txt"
        target = tmp_path / artifact_id
        download_artifact(artifact_store=store, file_path=target, artifact_id=artifact_id)
        assert target.read_bytes() == content
    assert {entry.name for entry in store.backend.list("blobs/")} == before


def test_what_is_deleted_in_the_dashboard_is_gone_and_equal_content_stays(
    ask: Any, store: ContentStore, study: optuna.Study, file: Path
) -> None:
    gone = upload_artifact(artifact_store=store, file_path=file, study_or_trial=study)
    stays = upload_artifact(artifact_store=store, file_path=file, study_or_trial=study)
    status, _, _ = ask("DELETE", f"/api/artifacts/{study._study_id}/{gone}")
    assert status == 204
    assert [meta.artifact_id for meta in get_all_artifact_meta(study)] == [stays]
    with pytest.raises(ArtifactNotFound):
        store.open_reader(gone)
    status, _, body = ask("GET", f"/artifacts/{study._study_id}/{stays}")
    assert (status, body) == (200, file.read_bytes())


def test_deleting_what_is_gone_is_a_404_of_the_dashboard(
    ask: Any, store: ContentStore, study: optuna.Study, file: Path
) -> None:
    artifact_id = upload_artifact(artifact_store=store, file_path=file, study_or_trial=study)
    store.remove(artifact_id)
    status, _, body = ask("DELETE", f"/api/artifacts/{study._study_id}/{artifact_id}")
    assert (status, json.loads(body)) == (404, {"reason": "Artifact is not found."})


def test_a_study_deleted_in_the_dashboard_takes_its_artifacts_along(
    ask: Any, store: ContentStore, study: optuna.Study, file: Path
) -> None:
    trial = study.ask()
    gone = [
        upload_artifact(artifact_store=store, file_path=file, study_or_trial=owner)
        for owner in (study, trial)
    ]
    other = optuna.create_study(storage=study._storage)
    stays = upload_artifact(artifact_store=store, file_path=file, study_or_trial=other)
    status, _, _ = ask(
        "DELETE", f"/api/studies/{study._study_id}", {"remove_associated_artifacts": True}
    )
    assert status == 204
    for artifact_id in gone:
        with pytest.raises(ArtifactNotFound):
            store.open_reader(artifact_id)
    with store.open_reader(stays) as reader:
        assert reader.read() == file.read_bytes()
