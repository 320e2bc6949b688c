"""The face to Optuna, with its real storages, on our stores and on its own."""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import mimetypes
import os
import pickle
import re
import subprocess
import sys
import tempfile
import threading
import uuid
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import optuna
import optuna.artifacts
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.storages.journal import JournalFileBackend
from serving.processes import free_port

from casartifacts import studies
from casartifacts.backends.filesystem import FileSystemArtifactStore
from casartifacts.backends.memory import MemoryArtifactStore
from casartifacts.errors import ContentChanged, StoreMismatch
from casartifacts.store import ContentStore
from casartifacts.studies import (
    download_artifact,
    get_all_artifact_meta,
    guess_type,
    remove_artifact,
    storage_fingerprint,
    upload_artifact,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casartifacts.protocols import ArtifactStore

STORAGES = ["memory", "sqlite", "journal", "grpc"]
STORES = ["content in memory", "content in a folder", "optuna's folder"]
CONTENT = bytes(range(256)) * 40

_SERVER = """
import sys, optuna
storage = optuna.storages.get_storage(sys.argv[1])
optuna.storages.run_grpc_proxy_server(storage, host="localhost", port=int(sys.argv[2]))
"""


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(before)


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Optuna's gRPC proxy before an SQLite file, in a process of its own."""
    if not hasattr(optuna.storages, "GrpcStorageProxy"):
        pytest.skip(f"optuna {optuna.__version__} has no gRPC storage proxy (4.2 brought it)")
    pytest.importorskip("grpc")
    pytest.importorskip("google.protobuf")
    port = free_port()
    url = f"sqlite:///{tmp_path_factory.mktemp('grpc')}/studies.db"
    server = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", _SERVER, url, str(port)], stderr=subprocess.DEVNULL
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        storage = optuna.storages.GrpcStorageProxy(host="localhost", port=port)
    try:
        storage.wait_server_ready(timeout=60)
        yield storage
    finally:
        storage.close()
        server.terminate()
        server.wait()


@contextlib.contextmanager
def opened(url: str) -> Iterator[Any]:
    """A database storage; its connections are closed when the block ends."""
    storage = optuna.storages.get_storage(url)
    assert isinstance(storage, optuna.storages._CachedStorage)
    try:
        yield storage
    finally:
        storage.remove_session()
        storage._backend.engine.dispose()


@pytest.fixture
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    kind = getattr(request, "param", "memory")
    if kind == "memory":
        yield optuna.storages.InMemoryStorage()
    elif kind == "sqlite":
        with opened(f"sqlite:///{tmp_path}/studies.db") as storage:
            yield storage
    elif kind == "journal":
        yield optuna.storages.JournalStorage(JournalFileBackend(str(tmp_path / "journal.log")))
    else:
        yield request.getfixturevalue("proxy")


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    return make_store(getattr(request, "param", "content in memory"), tmp_path)


def make_store(kind: str, tmp_path: Path) -> ArtifactStore:
    if kind == "content in memory":
        return ContentStore(MemoryArtifactStore())
    folder = tmp_path / "artifacts"
    folder.mkdir()
    if kind == "content in a folder":
        return ContentStore(FileSystemArtifactStore(folder, durable=False))
    return optuna.artifacts.FileSystemArtifactStore(str(folder))


@pytest.fixture
def study(storage: Any) -> optuna.Study:
    return optuna.create_study(storage=storage, study_name=f"digits-{uuid.uuid4()}")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.pt"
    path.write_bytes(CONTENT)
    return path


def names_in(store: ArtifactStore) -> list[str]:
    """What lies in a store, whatever kind it is."""
    if isinstance(store, ContentStore):
        return [entry.name for entry in store.backend.list("")]
    folder = store._base_path  # type: ignore[attr-defined]
    return [str(path) for path in folder.rglob("*") if path.is_file()]


def entries_of(study_or_trial: Any, storage: Any) -> dict[str, Any]:
    """The attributes in which artifacts are listed, as they are."""
    if isinstance(study_or_trial, optuna.Study):
        found = storage.get_study_system_attrs(study_or_trial._study_id)
    else:
        found = storage.get_trial_system_attrs(study_or_trial._trial_id)
    return {name: value for name, value in found.items() if name.startswith("artifacts:")}


class Untouchable:
    """A store that must not be asked anything."""

    def open_reader(self, artifact_id: str) -> BinaryIO:
        raise AssertionError("a request was made")

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        raise AssertionError("a request was made")

    def remove(self, artifact_id: str) -> None:
        raise AssertionError("a request was made")


# What works


@pytest.mark.parametrize("store", STORES, indirect=True)
@pytest.mark.parametrize("storage", STORAGES, indirect=True)
@pytest.mark.parametrize("owner", ["Trial", "FrozenTrial", "Study"])
def test_what_is_uploaded_is_listed_and_comes_back_by_our_functions_and_by_optunas(  # noqa: PLR0917 -- pytest names its fixtures so
    owner: str, storage: Any, store: Any, study: optuna.Study, file: Path, tmp_path: Path
) -> None:
    trial = study.ask()
    where: Any = {
        "Trial": trial,
        "FrozenTrial": storage.get_trial(trial._trial_id),
        "Study": study,
    }[owner]
    given = {"storage": storage} if owner == "FrozenTrial" else {}
    ours, theirs = (
        upload(artifact_store=store, file_path=str(file), study_or_trial=where, **given)
        for upload in (upload_artifact, optuna.artifacts.upload_artifact)
    )

    listed = {
        name: json.loads(value, object_pairs_hook=list)
        for name, value in entries_of(where, storage).items()
    }
    assert listed.keys() == {f"artifacts:{ours}", f"artifacts:{theirs}"}
    assert listed[f"artifacts:{ours}"] == [
        ("artifact_id", ours),
        ("filename", "model.pt"),
        ("mimetype", "application/octet-stream"),
        ("encoding", None),
    ]
    names = [[name for name, _ in entries] for entries in listed.values()]
    assert names[0] == names[1], "ours has exactly what Optuna's has"
    metas = get_all_artifact_meta(where, **given)
    assert metas == optuna.artifacts.get_all_artifact_meta(where, **given)
    in_order = get_all_artifact_meta(where, artifact_store=store, **given)
    assert sorted(in_order, key=str) == sorted(metas, key=str)
    assert [type(meta) for meta in metas] == [optuna.artifacts.ArtifactMeta] * 2
    for number, meta in enumerate(metas):
        for name, download in (
            ("ours", download_artifact),
            ("theirs", optuna.artifacts.download_artifact),
        ):
            target = tmp_path / f"{name}{number}"
            download(artifact_store=store, file_path=str(target), artifact_id=meta.artifact_id)
            assert target.read_bytes() == CONTENT
    for meta in metas:
        remove_artifact(artifact_store=store, artifact_id=meta.artifact_id)
    assert get_all_artifact_meta(where, artifact_store=store, **given) == []
    assert get_all_artifact_meta(where, **given) == metas, "metadata is left alone"


@pytest.mark.parametrize("function", ["upload", "download", "list"])
def test_a_signature_begins_as_optunas_and_goes_on_with_keywords_that_have_defaults(
    function: str,
) -> None:
    name = {
        "upload": "upload_artifact",
        "download": "download_artifact",
        "list": "get_all_artifact_meta",
    }[function]
    theirs = inspect.signature(getattr(optuna.artifacts, name)).parameters.values()
    ours = list(inspect.signature(getattr(studies, name)).parameters.values())

    def shape(parameter: inspect.Parameter) -> tuple[object, ...]:
        return parameter.name, parameter.kind, parameter.default

    assert [shape(parameter) for parameter in ours[: len(theirs)]] == [
        shape(parameter) for parameter in theirs
    ]
    for added in ours[len(theirs) :]:
        assert added.kind is inspect.Parameter.KEYWORD_ONLY
        assert added.default is not inspect.Parameter.empty


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_old_positional_arguments_work_with_the_warning_that_optuna_gives(
    count: int, store: Any, study: optuna.Study, file: Path
) -> None:
    given = {"study_or_trial": study, "file_path": str(file), "artifact_store": store}
    names = list(given)
    upload: Any = upload_artifact
    with pytest.warns(FutureWarning, match=re.escape(", ".join(names[:count]))) as caught:
        artifact_id = upload(
            *list(given.values())[:count], **{name: given[name] for name in names[count:]}
        )
    assert [warning.filename for warning in caught] == [__file__]
    assert [meta.artifact_id for meta in get_all_artifact_meta(study)] == [artifact_id]


def test_positional_arguments_that_are_too_many_or_given_twice_are_refused(
    study: optuna.Study, file: Path
) -> None:
    upload: Any = upload_artifact
    with pytest.raises(TypeError, match="at most 3 positional arguments"):
        upload(study, file, Untouchable(), None)
    with pytest.raises(TypeError, match="multiple values for study_or_trial"):
        upload(study, file_path=file, artifact_store=Untouchable(), study_or_trial=study)


legal_names = st.one_of(
    st.text(min_size=1, max_size=60),
    # What os.fsdecode makes of names that are no UTF-8.
    st.text(st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF), min_size=1, max_size=5),
    st.builds(
        "{}{}".format,
        st.text("ab.", min_size=1),
        st.sampled_from([".pt", ".csv.gz", ".parquet", ".tar.xz"]),
    ),
).filter(lambda name: name not in {".", ".."} and not set(name) & set("/\\\0"))


@given(content=st.binary(max_size=3000), filename=legal_names)
@example(content=b"", filename="\udcff.pt")
@settings(deadline=None, max_examples=60)
def test_any_bytes_under_any_legal_name_come_back(content: bytes, filename: str) -> None:
    study = optuna.create_study()
    store = ContentStore(MemoryArtifactStore())
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "source"), Path(folder, "target")
        source.write_bytes(content)
        artifact_id = upload_artifact(
            artifact_store=store, file_path=source, study_or_trial=study, filename=filename
        )
        download_artifact(artifact_store=store, file_path=target, artifact_id=artifact_id)
        assert target.read_bytes() == content
    (meta,) = get_all_artifact_meta(study, artifact_store=store)
    expected_type, expected_encoding = guess_type(filename)
    assert meta == optuna.artifacts.ArtifactMeta(
        artifact_id=artifact_id,
        filename=filename,
        mimetype=expected_type or "application/octet-stream",
        encoding=expected_encoding,
    )
    ref = store.stat(artifact_id)
    assert (ref.filename, ref.mimetype, ref.encoding, ref.size) == (
        meta.filename,
        meta.mimetype,
        meta.encoding,
        len(content),
    )


def test_given_type_and_encoding_are_listed_instead_of_guessed_ones(
    store: Any, study: optuna.Study, file: Path
) -> None:
    upload_artifact(
        artifact_store=store,
        file_path=file,
        study_or_trial=study,
        mimetype="model/pt",
        encoding="zstd",
    )
    (meta,) = get_all_artifact_meta(study)
    assert (meta.mimetype, meta.encoding) == ("model/pt", "zstd")


def test_the_same_file_twice_is_two_artifacts_and_one_content(
    store: Any, study: optuna.Study, file: Path
) -> None:
    ids = {
        upload_artifact(artifact_store=store, file_path=file, study_or_trial=study, filename=name)
        for name in ("best.ckpt", "last.ckpt")
    }
    assert {meta.filename for meta in get_all_artifact_meta(study)} == {"best.ckpt", "last.ckpt"}
    assert len(ids) == 2
    assert len([name for name in names_in(store) if name.startswith("blobs/")]) == 1


@pytest.mark.parametrize("storage", ["sqlite"], indirect=True)
@pytest.mark.parametrize("store", ["content in a folder", "content in memory"], indirect=True)
def test_given_the_store_they_are_listed_as_they_were_uploaded(
    study: optuna.Study, store: ArtifactStore, tmp_path: Path
) -> None:
    """A database lists them by their ids, and who takes the last one wants the newest."""
    file = tmp_path / "model.ckpt"
    uploaded = []
    for epoch in range(12):
        file.write_bytes(b"%d" % epoch)
        uploaded.append(upload_artifact(artifact_store=store, file_path=file, study_or_trial=study))
    listed = [meta.artifact_id for meta in get_all_artifact_meta(study, artifact_store=store)]
    assert listed == uploaded != sorted(uploaded)
    assert {meta.artifact_id for meta in get_all_artifact_meta(study)} == set(uploaded)


def test_an_artifact_that_copies_of_a_study_list_too_is_gone_for_all_once_removed(
    store: Any, study: optuna.Study, storage: Any, file: Path, tmp_path: Path
) -> None:
    trial = study.ask()
    in_trial = upload_artifact(artifact_store=store, file_path=file, study_or_trial=trial)
    in_study = upload_artifact(artifact_store=store, file_path=file, study_or_trial=study)
    study.tell(trial, 1.0)
    with opened(f"sqlite:///{tmp_path}/copy.db") as other:
        optuna.copy_study(from_study_name=study.study_name, from_storage=storage, to_storage=other)
        copy = optuna.load_study(study_name=None, storage=other)

        def listed() -> list[list[str]]:
            owners: list[tuple[Any, Any]] = [
                (study, storage),
                (study.trials[0], storage),
                (copy, other),
                (copy.trials[0], other),
            ]
            return [
                [
                    meta.artifact_id
                    for meta in get_all_artifact_meta(owner, storage=at, artifact_store=store)
                ]
                for owner, at in owners
            ]

        assert listed() == [[in_study], [in_trial], [in_study], [in_trial]]
        remove_artifact(artifact_store=store, artifact_id=in_trial)
        assert listed() == [[in_study], [], [in_study], []]


@pytest.mark.parametrize("storage", STORAGES, indirect=True)
def test_an_id_kept_in_a_user_attribute_leads_to_the_artifact(
    store: Any, study: optuna.Study, storage: Any, file: Path, tmp_path: Path
) -> None:
    def objective(trial: optuna.Trial) -> float:
        trial.set_user_attr(
            "checkpoint",
            upload_artifact(artifact_store=store, file_path=file, study_or_trial=trial),
        )
        return trial.suggest_float("x", 0, 1)

    study.optimize(objective, n_trials=2)
    loaded = optuna.load_study(study_name=study.study_name, storage=storage)
    artifact_id = loaded.best_trial.user_attrs["checkpoint"]
    download_artifact(artifact_store=store, file_path=tmp_path / "out", artifact_id=artifact_id)
    assert (tmp_path / "out").read_bytes() == CONTENT


def test_what_the_dashboard_deleted_is_not_listed(
    store: Any, study: optuna.Study, storage: Any, file: Path
) -> None:
    trial = study.ask()
    owners: list[Any] = [study, trial]
    for owner in owners:
        upload_artifact(artifact_store=store, file_path=file, study_or_trial=owner)
    storage.set_study_system_attr(study._study_id, "artifacts:gone", json.dumps(None))
    storage.set_trial_system_attr(trial._trial_id, "artifacts:gone", json.dumps(None))
    for owner in owners:
        with pytest.raises(TypeError):
            optuna.artifacts.get_all_artifact_meta(owner)
        assert [meta.filename for meta in get_all_artifact_meta(owner)] == ["model.pt"]


def test_the_ref_remembers_which_study_in_which_storage(
    study: optuna.Study, storage: Any, store: Any, file: Path, tmp_path: Path
) -> None:
    def origin(where: Any, at: Any = None) -> Any:
        artifact_id = upload_artifact(
            artifact_store=store, file_path=file, study_or_trial=where, storage=at
        )
        return store.stat(artifact_id).origin

    assert origin(study) == {"study": study.study_name}, "memory is no place that others know"
    with opened(f"sqlite:///{tmp_path}/studies.db") as database:
        named = optuna.create_study(study_name="digits", storage=database)
        trial = named.ask()
        place = storage_fingerprint(database)
        assert origin(named) == origin(trial) == {"study": "digits", "storage": place}
        assert origin(database.get_trial(trial._trial_id), database) == {"storage": place}
        # By its number it is some other study there.
        optuna.create_study(storage=storage)
        assert named._study_id == 1
        assert origin(named, storage) is None
        assert isinstance(database, optuna.storages._CachedStorage)
        assert origin(named, database._backend) == {"study": "digits", "storage": place}


# Fingerprints of storages


def test_a_storage_has_one_fingerprint_in_every_process_and_another_storage_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import sys, optuna; from optuna.storages.journal import JournalFileBackend\n"
        "from casartifacts.studies import storage_fingerprint as fingerprint\n"
        "print(fingerprint(optuna.storages.get_storage(sys.argv[1])))\n"
        "print(fingerprint(optuna.storages.JournalStorage(JournalFileBackend(sys.argv[2]))))\n"
    )
    journal = optuna.storages.JournalStorage(JournalFileBackend(str(tmp_path / "journal.log")))
    assert storage_fingerprint(journal) is None, "an empty journal could be any"
    other = optuna.storages.JournalStorage(JournalFileBackend(str(tmp_path / "other.log")))
    for place in (journal, other):
        optuna.create_study(storage=place)
    with (
        opened(f"sqlite:///{tmp_path}/a.db") as first,
        opened(f"sqlite:///{tmp_path}/b.db") as second,
    ):
        here = [storage_fingerprint(place) for place in (first, journal)]
        there = [storage_fingerprint(place) for place in (second, other)]
    assert None not in here
    assert len({*here, *there}) == 4
    monkeypatch.chdir(tmp_path)
    elsewhere = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, "sqlite:///a.db", "./journal.log"],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(studies.__file__).parents[1])},
    ).stdout.split()
    assert elsewhere == here


def test_a_journal_that_lies_where_another_lay_is_another_storage(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"

    def fingerprint() -> str | None:
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(path)))
        optuna.create_study(study_name="digits", storage=storage)
        return storage_fingerprint(storage)

    first = fingerprint()
    path.unlink()
    assert first != fingerprint()


@pytest.mark.parametrize("storage", ["memory", "grpc"], indirect=True)
def test_a_storage_that_cannot_be_told_from_others_has_no_fingerprint(storage: Any) -> None:
    assert storage_fingerprint(storage) is None


def test_the_password_of_a_database_is_no_part_of_its_fingerprint() -> None:
    def identity(url: str) -> str:
        return json.dumps(studies._database(url))

    one = identity("mysql+pymysql://me:secret@db.example.org/optuna?ssl_key=secret")
    assert one == identity("mysql+mysqldb://me:other@db.example.org/optuna")
    assert "secret" not in one
    others = {
        identity(f"{url}")
        for url in (
            "mysql://me@db.example.org/other",
            "mysql://me@db2.example.org/optuna",
            "mysql://me@db.example.org:3307/optuna",
            "mysql://you@db.example.org/optuna",
            "postgresql://me@db.example.org/optuna",
            "postgresql://me@db.example.org/optuna?options=-csearch_path%3Dteam",
        )
    }
    assert len({one, *others}) == 7
    assert identity("mssql+pyodbc:///?odbc_connect=secret") == "null"
    assert identity("sqlite:///:memory:") == identity("sqlite://") == "null"


def test_a_database_on_this_machine_counts_with_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "studies.db").touch()
    urls = [
        f"sqlite:///{tmp_path}/studies.db",
        "mysql://me@localhost/optuna",
        "postgresql:///optuna",
        "mysql://me@db.example.org/optuna",
    ]
    here = [studies._database(url) for url in urls]
    monkeypatch.setattr("platform.node", lambda: "another")
    there = [studies._database(url) for url in urls]
    assert [one == other for one, other in zip(here, there, strict=True)] == [
        False,
        False,
        False,
        True,
    ]


# Types


@given(
    stem=st.text("ab. ", max_size=4).map(lambda text: "m" + text),
    extension=st.sampled_from(sorted(studies._FIXED_TYPES)),
    packing=st.sampled_from([("", None), (".gz", "gzip"), (".bz2", "bzip2"), (".xz", "xz")]),
    upper=st.booleans(),
)
@settings(deadline=None)
def test_a_model_file_has_the_same_type_on_every_machine(
    stem: str, extension: str, packing: tuple[str, str | None], upper: bool
) -> None:
    name = stem + (extension.upper() if upper else extension) + packing[0]
    try:
        for elsewhere in (None, "application/vnd.snesdev-page-table"):
            if elsewhere:
                mimetypes.add_type(elsewhere, extension)
            expected = "vnd.apache.parquet" if extension == ".parquet" else "octet-stream"
            assert guess_type(name) == (f"application/{expected}", packing[1])
    finally:
        mimetypes.init()


@given(
    name=st.one_of(
        st.text(max_size=20),
        st.builds(
            "{}{}{}".format,
            st.text("ab.", max_size=4),
            st.sampled_from(sorted(mimetypes.types_map)),
            st.sampled_from(["", *sorted(mimetypes.encodings_map)]),
        ),
    ).filter(lambda name: not re.search("|".join(studies._FIXED_TYPES), name, re.IGNORECASE))
)
@settings(deadline=None)
def test_every_other_name_is_guessed_as_optuna_guesses(name: str) -> None:
    assert guess_type(name) == mimetypes.guess_type(name)


# Progress


@pytest.mark.parametrize("store", STORES, indirect=True)
def test_progress_is_told_up_to_the_last_byte(
    store: Any, study: optuna.Study, tmp_path: Path
) -> None:
    size = 3 * 2**20 + 1
    source = tmp_path / "big.bin"
    source.write_bytes(os.urandom(size))
    up: list[tuple[int, int]] = []
    down: list[tuple[int, int]] = []
    artifact_id = upload_artifact(
        artifact_store=store,
        file_path=source,
        study_or_trial=study,
        progress=lambda *told: up.append(told),
    )
    target = tmp_path / "out"
    download_artifact(
        artifact_store=store,
        file_path=target,
        artifact_id=artifact_id,
        progress=lambda *told: down.append(told),
    )
    assert target.read_bytes() == source.read_bytes()
    for told in (up, down):
        done = [step for step, _ in told]
        assert done == sorted(done)
        assert done[-1] == size
        assert {total for _, total in told} <= {0, size}
    assert up[-1][1] == size


def test_progress_true_shows_a_bar_with_the_name(
    study: optuna.Study, store: Any, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    upload_artifact(artifact_store=store, file_path=file, study_or_trial=study, progress=True)
    shown = capsys.readouterr().err
    assert "model.pt" in shown
    assert "100%" in shown
    assert "10.0k/10.0k" in shown


@pytest.mark.parametrize("store", STORES, indirect=True)
def test_an_error_in_the_callers_function_cancels_the_upload(
    store: Any, study: optuna.Study, file: Path
) -> None:
    def cancel(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        upload_artifact(artifact_store=store, file_path=file, study_or_trial=study, progress=cancel)
    assert get_all_artifact_meta(study) == []


# What is refused


@contextlib.contextmanager
def not_as_root() -> Iterator[None]:
    """Be somebody whom permissions bind."""
    if os.name == "nt":
        pytest.skip("Windows keeps permissions in another way")
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_an_unreadable_file_is_refused_before_anything_is_stored(
    study: optuna.Study, store: Any, file: Path
) -> None:
    file.chmod(0)
    with not_as_root(), pytest.raises(PermissionError, match=re.escape(str(file))):
        upload_artifact(artifact_store=store, file_path=file, study_or_trial=study)
    assert names_in(store) == []
    assert get_all_artifact_meta(study) == []


@pytest.mark.parametrize(
    ("changed", "error", "says"),
    [
        ({"file_path": "/nowhere/model.pt"}, FileNotFoundError, "/nowhere/model.pt"),
        ({"file_path": ""}, IsADirectoryError, "directory"),
        ({"file_path": "/"}, IsADirectoryError, "A directory cannot be uploaded yet"),
        ({"file_path": 7}, TypeError, "os.PathLike"),
        ({"study_or_trial": "digits"}, TypeError, "must be a Trial, FrozenTrial or Study"),
        ({"study_or_trial": None}, TypeError, "must be a Trial, FrozenTrial or Study"),
        ({"storage": "sqlite:///studies.db"}, TypeError, "get_storage"),
        ({"artifact_store": "./artifacts"}, TypeError, "open_store"),
        ({"filename": ""}, ValueError, "bare name"),
        ({"filename": "."}, ValueError, "bare name"),
        ({"filename": ".."}, ValueError, "bare name"),
        ({"filename": "a/b"}, ValueError, "bare name"),
        ({"filename": "a\\b"}, ValueError, "bare name"),
        ({"filename": "a\0b"}, ValueError, "bare name"),
        ({"filename": b"a"}, TypeError, "filename must be a str"),
        ({"filename": "\xe4" * 12_000}, ValueError, "at most 65535"),
        ({"mimetype": 7}, TypeError, "mimetype must be a str"),
        ({"encoding": ["gzip"]}, TypeError, "encoding must be a str"),
        ({"progress": "bar"}, TypeError, "progress must be True"),
    ],
)
def test_a_bad_argument_is_refused_before_anything_is_stored(
    changed: dict[str, Any], error: type[Exception], says: str, study: optuna.Study, file: Path
) -> None:
    given: dict[str, Any] = {
        "artifact_store": Untouchable(),
        "file_path": file,
        "study_or_trial": study,
        **changed,
    }
    with pytest.raises(error, match=says):
        upload_artifact(**given)
    assert get_all_artifact_meta(study) == []


def test_metadata_is_accepted_up_to_what_mysql_keeps(study: optuna.Study, store: Any) -> None:
    longest = studies._LONGEST_ATTRIBUTE
    with tempfile.NamedTemporaryFile() as file:
        fits = 1
        for step in (2**n for n in range(16, -1, -1)):
            with contextlib.suppress(ValueError):
                studies._Description("a" * (fits + step), "text/plain", None).check()
                fits += step
        upload_artifact(
            artifact_store=store,
            file_path=file.name,
            study_or_trial=study,
            filename="a" * fits,
            mimetype="text/plain",
        )
    (value,) = entries_of(study, study._storage).values()
    assert len(json.dumps(value)) == longest


def test_a_frozen_trial_needs_its_storage(study: optuna.Study, file: Path) -> None:
    frozen = study._storage.get_trial(study.ask()._trial_id)
    with pytest.raises(ValueError, match=r"storage is required for FrozenTrial\. Pass"):
        upload_artifact(artifact_store=Untouchable(), file_path=file, study_or_trial=frozen)
    with pytest.raises(ValueError, match=r"storage is required for FrozenTrial\. Pass"):
        get_all_artifact_meta(frozen)


@pytest.mark.parametrize("storage", STORAGES, indirect=True)
def test_a_finished_trial_is_refused_with_optunas_own_error(
    study: optuna.Study, storage: Any, file: Path
) -> None:
    trial = study.ask()
    running = storage.get_trial(trial._trial_id)
    study.tell(trial, 1.0)
    optunas_own = getattr(optuna.exceptions, "UpdateFinishedTrialError", RuntimeError)
    for where in (trial, running, storage.get_trial(trial._trial_id)):
        with pytest.raises(optunas_own, match="already finished") as caught:
            upload_artifact(
                artifact_store=Untouchable(),
                file_path=file,
                study_or_trial=where,
                storage=storage,
            )
        assert "list the file in its study" in caught.value.__notes__[0]


# What goes wrong on the way


class Unwell(optuna.storages.InMemoryStorage):
    """A storage that loses its database."""

    broken = False

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._write(key)
        super().set_trial_system_attr(trial_id, key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self._write(key)
        super().set_study_system_attr(study_id, key, value)

    def _write(self, key: str) -> None:
        if self.broken and key.startswith("artifacts:"):
            raise ConnectionError("the database is away")


@pytest.mark.parametrize("store", STORES, indirect=True)
def test_when_the_metadata_cannot_be_written_nothing_is_listed_and_the_error_is_told(
    store: Any, file: Path
) -> None:
    storage = Unwell()
    study = optuna.create_study(storage=storage)
    trial = study.ask()
    owners: list[Any] = [study, trial]
    for owner in owners:
        storage.broken = True
        with pytest.raises(ConnectionError, match="the database is away"):
            upload_artifact(artifact_store=store, file_path=file, study_or_trial=owner)
        assert entries_of(owner, storage) == {}
        assert names_in(store) != [], "the content was stored first"
        storage.broken = False
        upload_artifact(artifact_store=store, file_path=file, study_or_trial=owner)
        assert len(get_all_artifact_meta(owner, artifact_store=store)) == 1


class FullStore(Untouchable):
    """A store whose disk is full."""

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        content_body.read(100)
        raise OSError(28, "No space left on device")


class FullBackend(MemoryArtifactStore):
    """A backend whose disk is full."""

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        raise OSError(28, "No space left on device")

    def write_if_absent(self, name: str, content_body: BinaryIO) -> bool:
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("make", [FullStore, lambda: ContentStore(FullBackend())])
def test_when_the_content_cannot_be_stored_nothing_is_listed(
    make: Callable[[], Any], study: optuna.Study, storage: Any, file: Path
) -> None:
    with pytest.raises(OSError, match="No space left"):
        upload_artifact(artifact_store=make(), file_path=file, study_or_trial=study)
    assert entries_of(study, storage) == {}


@pytest.mark.parametrize("change", ["overwritten", "truncated", "grown"])
def test_a_file_that_changes_during_the_upload_is_an_error_and_is_not_listed(
    change: str, study: optuna.Study, tmp_path: Path
) -> None:
    store = ContentStore(FileSystemArtifactStore(tmp_path / "store", durable=False))
    path = tmp_path / "last.ckpt"
    path.write_bytes(os.urandom(66 * 2**20))
    told: list[int] = []

    def disturb(done: int, total: int) -> None:
        if not told:
            with path.open("r+b") as file:
                if change == "truncated":
                    file.truncate(total - 1000)
                else:
                    file.seek(total if change == "grown" else total - 1000)
                    file.write(b"changed")
        told.append(done)

    with pytest.raises(ContentChanged):
        upload_artifact(
            artifact_store=store, file_path=path, study_or_trial=study, progress=disturb
        )
    assert told
    assert get_all_artifact_meta(study) == []
    assert list(store.backend.list("refs/")) == []


def test_nothing_is_stored_or_listed_in_a_store_of_an_unknown_format(
    study: optuna.Study, file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "store"
    folder.mkdir()
    (folder / "casartifacts.json").write_text('{"format":2}\n')
    store = ContentStore(FileSystemArtifactStore(folder))
    with pytest.raises(StoreMismatch, match="format 2"):
        upload_artifact(artifact_store=store, file_path=file, study_or_trial=study)
    assert [path.name for path in folder.rglob("*")] == ["casartifacts.json"]
    assert get_all_artifact_meta(study) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("store", STORES, indirect=True)
def test_a_pipe_can_be_uploaded_as_with_optuna(
    store: Any, study: optuna.Study, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe.txt"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=[CONTENT])
    writer.start()
    artifact_id = upload_artifact(artifact_store=store, file_path=pipe, study_or_trial=study)
    writer.join()
    with store.open_reader(artifact_id) as reader:
        assert reader.read() == CONTENT


class Slow(Unwell):
    """A storage that answers so late that others collect garbage meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile: Callable[[], None] = lambda: None

    def _write(self, key: str) -> None:
        self.meanwhile()


def test_metadata_that_took_over_an_hour_is_written_again_after_the_content(file: Path) -> None:
    backend = MemoryArtifactStore()
    store = ContentStore(backend)
    storage = Slow()
    study = optuna.create_study(storage=storage)
    hours = iter([2.0, 0.1])
    now = store._knowledge.now()
    store._knowledge.now = lambda: now

    def meanwhile() -> None:
        nonlocal now
        passed = next(hours)
        now += passed * 3600
        if passed > 1:
            for name in [entry.name for entry in backend.list("")]:
                if not name.endswith(".json"):
                    backend.remove(name)

    storage.meanwhile = meanwhile
    artifact_id = upload_artifact(artifact_store=store, file_path=file, study_or_trial=study)
    assert next(hours, None) is None, "it was written twice"
    assert [meta.artifact_id for meta in get_all_artifact_meta(study)] == [artifact_id]
    with ContentStore(backend).open_reader(artifact_id) as reader:
        assert reader.read() == CONTENT


def test_a_storage_that_is_never_in_time_is_an_error_and_no_endless_loop(file: Path) -> None:
    store = ContentStore(MemoryArtifactStore())
    storage = Slow()
    study = optuna.create_study(storage=storage)
    now = store._knowledge.now()
    store._knowledge.now = lambda: now

    def meanwhile() -> None:
        nonlocal now
        now += 7200

    storage.meanwhile = meanwhile
    with pytest.raises(TimeoutError, match="5 times"):
        upload_artifact(artifact_store=store, file_path=file, study_or_trial=study)


def test_a_trial_that_finishes_during_the_upload_lists_nothing(
    study: optuna.Study, store: Any, file: Path
) -> None:
    trial = study.ask()

    def finish(done: int, total: int) -> None:
        if trial._trial_id not in told:
            told.add(trial._trial_id)
            study.tell(trial, 1.0)

    told: set[int] = set()
    with pytest.raises(RuntimeError, match="already finished"):
        upload_artifact(artifact_store=store, file_path=file, study_or_trial=trial, progress=finish)
    assert get_all_artifact_meta(trial) == []


# Downloads


@pytest.mark.parametrize("store", STORES, indirect=True)
def test_a_file_that_exists_is_replaced_only_if_asked_and_then_whole(
    store: Any, study: optuna.Study, file: Path, tmp_path: Path
) -> None:
    artifact_id = upload_artifact(artifact_store=store, file_path=file, study_or_trial=study)
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    with pytest.raises(FileExistsError, match=re.escape(f"File already exists: {target}")):
        download_artifact(artifact_store=store, file_path=target, artifact_id=artifact_id)
    assert target.read_bytes() == b"precious"
    with pytest.raises(ArtifactNotFound):
        download_artifact(
            artifact_store=store, file_path=target, artifact_id=str(uuid.uuid4()), overwrite=True
        )
    assert target.read_bytes() == b"precious"
    download_artifact(
        artifact_store=store, file_path=target, artifact_id=artifact_id, overwrite=True
    )
    assert target.read_bytes() == CONTENT
    assert set(tmp_path.iterdir()) - {tmp_path / "artifacts"} == {file, target}


class Unreachable(MemoryArtifactStore):
    """A backend that must not be asked anything."""

    def open_reader(self, artifact_id: str) -> BinaryIO:
        raise AssertionError("a request was made")

    def open_range(self, name: str, start: int, length: int) -> BinaryIO:
        raise AssertionError("a request was made")

    def stat(self, name: str) -> None:
        raise AssertionError("a request was made")


@pytest.mark.parametrize("make", [Untouchable, lambda: ContentStore(Unreachable())])
def test_a_bad_target_is_refused_before_any_request(
    make: Callable[[], Any], tmp_path: Path
) -> None:
    store = make()
    for target, overwrite, error in (
        (tmp_path / "missing" / "out", False, FileNotFoundError),
        (tmp_path, False, FileExistsError),
        (tmp_path, True, IsADirectoryError),
    ):
        with pytest.raises(error, match=re.escape(str(tmp_path))):
            download_artifact(
                artifact_store=store,
                file_path=target,
                artifact_id=str(uuid.uuid4()),
                overwrite=overwrite,
            )
    with pytest.raises(TypeError, match="open_store"):
        download_artifact(
            artifact_store="./artifacts",  # type: ignore[arg-type]
            file_path=tmp_path / "out",
            artifact_id="a",
        )


class Dribble(io.RawIOBase):
    """A reader that gives little at a time, and perhaps dies."""

    def __init__(self, content: bytes, *, dies: bool) -> None:
        self._rest = io.BytesIO(content)
        self._dies = dies

    def read(self, size: int = -1) -> bytes:
        if self._dies and self._rest.tell() > 5000:
            raise ConnectionResetError("the line is dead")
        return self._rest.read(min(size, 700))


class DribblingStore(Untouchable):
    def __init__(self, *, dies: bool) -> None:
        self.reader = Dribble(CONTENT, dies=dies)

    def open_reader(self, artifact_id: str) -> BinaryIO:
        return self.reader  # type: ignore[return-value]


@pytest.mark.parametrize("dies", [False, True])
def test_a_download_is_whole_or_nothing_and_the_reader_is_closed(
    dies: bool, tmp_path: Path
) -> None:
    store = DribblingStore(dies=dies)
    target = tmp_path / "out"
    with pytest.raises(ConnectionResetError) if dies else contextlib.nullcontext():
        download_artifact(artifact_store=store, file_path=target, artifact_id="a")
    assert store.reader.closed
    assert [path.read_bytes() for path in tmp_path.iterdir()] == ([] if dies else [CONTENT])


@pytest.mark.parametrize("store", STORES, indirect=True)
@pytest.mark.parametrize("artifact_id", ["../model.pt", "/etc/passwd"])
def test_an_id_that_leads_outside_the_store_is_refused(
    artifact_id: str, store: Any, tmp_path: Path
) -> None:
    if optuna.__version__ < "4.8" and not isinstance(store, ContentStore):
        pytest.skip("Optuna's own store refuses such ids since 4.8")
    before = set(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="Invalid artifact_id"):
        download_artifact(artifact_store=store, file_path=tmp_path / "out", artifact_id=artifact_id)
    with pytest.raises(ValueError, match="Invalid artifact_id"):
        remove_artifact(artifact_store=store, artifact_id=artifact_id)
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("store", STORES, indirect=True)
def test_a_download_to_a_full_disk_leaves_nothing(
    store: Any, study: optuna.Study, file: Path, tmp_path: Path
) -> None:
    resource = pytest.importorskip("resource")
    artifact_id = upload_artifact(artifact_store=store, file_path=file, study_or_trial=study)
    target = tmp_path / "out"
    before = set(tmp_path.rglob("*"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(CONTENT) // 2, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            download_artifact(artifact_store=store, file_path=target, artifact_id=artifact_id)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert set(tmp_path.rglob("*")) == before


def test_a_download_to_a_read_only_folder_is_refused_before_any_request(file: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o555)
        with not_as_root(), pytest.raises(PermissionError, match=re.escape(name)):
            download_artifact(
                artifact_store=Untouchable(), file_path=folder / "out", artifact_id="a"
            )
        folder.chmod(0o755)
        assert list(folder.iterdir()) == []


def test_removing_what_is_not_there_is_told(store: Any) -> None:
    with pytest.raises(ArtifactNotFound):
        remove_artifact(artifact_store=store, artifact_id=str(uuid.uuid4()))
    with pytest.raises(TypeError, match="open_store"):
        remove_artifact(artifact_store="./artifacts", artifact_id="a")  # type: ignore[arg-type]


# What is loaded


def test_neither_the_module_nor_an_upload_and_download_loads_the_cloud_clients(
    tmp_path: Path,
) -> None:
    # A store that was used before: only then is nothing looked for in vain.
    store = ContentStore(FileSystemArtifactStore(tmp_path / "store", durable=False))
    store.write("first", io.BytesIO(CONTENT))
    code = """
import sys
def loaded():
    return {"optuna", "optuna.artifacts", "boto3", "google.cloud", "tqdm"} & sys.modules.keys()
import casartifacts.studies as studies
print(loaded())
import optuna
from casartifacts.backends.filesystem import FileSystemArtifactStore
from casartifacts.store import ContentStore
store = ContentStore(FileSystemArtifactStore(sys.argv[1], durable=False))
artifact_id = studies.upload_artifact(
    artifact_store=store, file_path=sys.executable, study_or_trial=optuna.create_study()
)
studies.download_artifact(artifact_store=store, file_path=sys.argv[2], artifact_id=artifact_id)
print(loaded() - {"optuna", "tqdm"})
"""
    told = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, tmp_path / "store", tmp_path / "out"],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(studies.__file__).parents[1])},
    ).stdout.splitlines()
    assert told == ["set()", "set()"]
    assert (tmp_path / "out").stat().st_size == Path(sys.executable).stat().st_size


def test_the_functions_can_be_sent_to_other_processes() -> None:
    for function in (upload_artifact, download_artifact, get_all_artifact_meta, remove_artifact):
        assert pickle.loads(pickle.dumps(function)) is function  # noqa: S301 -- our own
