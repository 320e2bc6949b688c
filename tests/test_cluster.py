"""A cluster's ordinary Tuesday: many processes, one study in a database, one bucket, a bad network.

The soak runs for `CASARTIFACTS_SOAK_SECONDS`: by default 40 here, and with `-m slow` 15 minutes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING
from unittest import mock

import optuna
import pytest
from cluster import audit, clients, training, weather
from cluster.clients import Clients, carry
from cluster.crew import CONTEXT, Crew, resident_bytes
from optuna.trial import TrialState
from serving import Fault, Proxy, open_storage

from casartifacts import (
    ArtifactCache,
    Backoff,
    Boto3ArtifactStore,
    ContentStore,
    MemoryArtifactStore,
    get_all_artifact_meta,
    names,
    planning,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from multiprocessing.context import BaseContext
    from pathlib import Path

    from serving import Database, Server

pytest_plugins = ["serving.fixtures"]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Ceph runs on Linux only")

SEED = int(os.environ.get("CASARTIFACTS_TEST_SEED", "1"))

SOAK_SECONDS = float(os.environ.get("CASARTIFACTS_SOAK_SECONDS", "0"))

MIB = 2**20


@dataclass
class Place:
    """A bucket of Ceph behind a proxy, and what a process must be told of it."""

    server: Server
    bucket: str
    proxy: Proxy
    environment: Mapping[str, str]

    def store(self, *, cache: ArtifactCache | None = None) -> ContentStore:
        """Return a store whose requests pass the proxy."""
        return ContentStore(Backoff(Boto3ArtifactStore(self.bucket)), cache=cache)

    def direct(self) -> ContentStore:
        """Return a store without cache whose requests pass nothing."""
        backend = Boto3ArtifactStore(self.bucket, endpoint_url=self.server.home)
        return ContentStore(Backoff(backend))


@pytest.fixture
def place(ceph: Server, use: Callable[[Server], None]) -> Iterator[Place]:
    """A fresh bucket, in which this process's clients pass the proxy."""
    with Proxy(ceph.home, seed=SEED) as proxy:
        seen = ceph.behind(proxy.url)
        use(seen)
        yield Place(ceph, ceph.make_bucket(), proxy, seen.environment)


# End to end.


@pytest.fixture(params=["postgresql", "mariadb", "redis"])
def database(request: pytest.FixtureRequest) -> Database:
    found: Database = request.getfixturevalue(request.param)
    return found


def job_for(place: Place, database: Database, folder: Path) -> training.Job:
    """Make the study, and the store with the settings of the workers' small checkpoints."""
    store = place.store()
    record = io.BytesIO(training.RECORD.encode())
    assert store.backend.write_if_absent(names.STORE_RECORD, record)
    study_name = f"study-{place.bucket}"
    with open_storage(database.url) as storage:
        optuna.create_study(study_name=study_name, storage=storage)
    return training.Job(
        environment=place.environment,
        storage_url=database.url,
        study_name=study_name,
        store=store,
        folder=folder,
        stop=folder / "stop",
        seed=SEED,
    )


def test_workers_share_a_study_and_a_bucket_while_faults_come_and_go(
    place: Place, database: Database, tmp_path: Path
) -> None:
    """Every planned fault strikes; a fifth process finds the best model to be what was told."""
    is_whole_form = database.name == "postgresql"
    job = job_for(place, database, tmp_path)
    planned = list(weather.FAULTS)[:: 1 if is_whole_form else 3]
    with Crew(job, size=4 if is_whole_form else 2) as crew:
        hits = weather.pass_through(place.proxy, planned, check=crew.check)
        crew.stop()
    assert hits.keys() == set(planned)
    assert all(hits.values())
    fifth = replace(job, store=place.store(cache=ArtifactCache(tmp_path / "cache of the fifth")))
    with ProcessPoolExecutor(1, mp_context=CONTEXT) as pool:
        with place.proxy.plan(replace(weather.FAULTS["a read cut short"], times=1)) as fault:
            place.proxy.reset()
            loss, told = pool.submit(training.evaluate, fifth, "best.npz").result()
            assert place.proxy.counts.requests["GET"] > 1
        assert fault.hits == 1
        assert loss == told
        # Once more, as a process that comes later on the same node.
        place.proxy.reset()
        assert pool.submit(training.evaluate, fifth, "again.npz").result() == (loss, told)
        assert not place.proxy.counts.requests
    with open_storage(database.url) as storage:
        study = optuna.load_study(study_name=job.study_name, storage=storage)
        states = {trial.state for trial in study.trials}
        assert states == {TrialState.COMPLETE}
        assert study.best_value < 0.999, "nothing was trained"
        listed = artifacts_of(study)
    assert len(listed) == 4 * len(study.trials)
    check_whole(place, listed, crew.uploaded())
    found = audit.look(place.server, place.bucket)
    assert found.wrong == []
    assert found.refs.keys() == set(listed)
    assert not found.unreached_contents()
    # Retries and races have stored nothing twice, and equal and near checkpoints share.
    stored = sum(found.blobs.values())
    uploaded = len(listed) * statistics.median(map(sum, sizes(found)))
    assert stored < uploaded / 3


def sizes(found: audit.Found) -> Iterator[list[int]]:
    for blobs in found.contents.values():
        yield [found.blobs[blob] for blob in blobs]


def artifacts_of(study: optuna.Study) -> list[str]:
    """Return every artifact id that the study's trials list, however they ended."""
    return [
        meta.artifact_id
        for trial in study.get_trials(deepcopy=False)
        for meta in get_all_artifact_meta(trial, storage=study._storage)
    ]


def check_whole(place: Place, listed: Iterable[str], uploaded: Mapping[str, str]) -> None:
    """Read each artifact from the bucket; compare with what its worker noted before the upload."""
    store = place.direct()

    def read(artifact_id: str) -> tuple[str, str]:
        with store.open_reader(artifact_id) as reader:
            return artifact_id, hashlib.sha256(reader.read()).hexdigest()

    with ThreadPoolExecutor(8) as pool:
        for artifact_id, told in pool.map(read, listed):
            assert told == uploaded[artifact_id.partition("-")[0]]


# The soak.


@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param(SOAK_SECONDS or 40.0, id="short"),
        pytest.param(SOAK_SECONDS or 900.0, id="long", marks=pytest.mark.slow),
    ],
)
def test_a_soak_of_faults_and_kills_loses_nothing_and_workers_do_not_grow(
    place: Place,
    postgresql: Database,
    tmp_path: Path,
    seconds: float,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Workers are killed at random moments and replaced; one is spared, and its memory sampled."""
    chance = random.Random(SEED)
    is_long = seconds > 120
    job = replace(job_for(place, postgresql, tmp_path), pace_seconds=2.0 if is_long else 0)
    place.proxy.latency_seconds = 0.01  # most of a trial is its uploads, so most kills meet one
    memory: list[tuple[float, int]] = []
    kills = 0
    began = time.monotonic()
    with Crew(job, size=4) as crew:
        next_kill = began
        victim, noted = 1, 0

        def act() -> None:
            nonlocal kills, next_kill, victim, noted
            crew.check()
            now = time.monotonic()
            if not memory or now > memory[-1][0] + 0.25:
                memory.append((now, resident_bytes(crew.workers[0].pid or 0)))
            # Not before it has begun an upload: somewhere within, or soon after.
            if now > next_kill and crew.noted(victim) > noted:
                crew.kill(victim)
                kills += 1
                next_kill = now + chance.uniform(0.5, 12 if is_long else 3)
                victim = chance.randrange(1, 4)
                noted = crew.noted(victim)

        def over(hits: dict[str, int]) -> bool:
            # On a busy machine longer, so that there was something to survive.
            lasted = time.monotonic() - began
            return lasted > seconds and (is_enough(hits, kills) or lasted > 5 * seconds)

        hits = weather.blow(place.proxy, chance, over=over, act=act)
        crew.stop()
    with open_storage(postgresql.url) as storage:
        study = optuna.load_study(study_name=job.study_name, storage=storage)
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            study.tell(trial.number, state=TrialState.FAIL)
        states = [trial.state for trial in study.get_trials(deepcopy=False)]
        listed = artifacts_of(study)
    failed = states.count(TrialState.FAIL)
    check_whole(place, listed, crew.uploaded())
    found = audit.look(place.server, place.bucket)
    first, last = thirds(memory)
    with capsys.disabled():
        sys.stdout.write(
            f"\nsoak of {seconds:.0f} s, seed {SEED}: {len(states)} trials, {failed} failed by"
            f" {kills} kills; {sum(hits.values())} faults hit; {len(listed)} artifacts read back"
            f" whole; {len(found.contents)} contents in {len(found.blobs)} blobs,"
            f" {sum(found.blobs.values()) / MIB:.0f} MiB; left by kills:"
            f" {len(found.refs.keys() - set(listed))} refs, {len(found.unreached_contents())}"
            f" contents, {len(found.unreached_blobs())} blobs; memory at most"
            f" {first / MIB:.1f} MiB in the first third, {last / MIB:.1f} in the last\n"
        )
    assert found.wrong == []
    assert found.refs.keys() >= set(listed)
    # What a killed upload leaves is whole, and of one content.
    assert len(found.refs.keys() - set(listed)) <= kills
    assert len(found.unreached_contents()) <= kills
    assert len(found.unreached_blobs()) <= kills * BLOBS_OF_A_CHECKPOINT
    assert 0 < failed <= kills
    assert is_enough(hits, kills)
    assert last <= first + MARGIN


def is_enough(hits: Mapping[str, int], kills: int) -> bool:
    """Tell whether workers were killed and most kinds of faults have struck."""
    return kills > 1 and sum(map(bool, hits.values())) > len(hits) / 2


# A checkpoint is 410 KiB in blobs of at most 128 KiB.
BLOBS_OF_A_CHECKPOINT = 6

# Optuna keeps finished trials, about 4 KiB each: 15 minutes of 4 workers are some 10 MiB.
MARGIN = 24 * MIB


def thirds(memory: list[tuple[float, int]]) -> tuple[int, int]:
    """Return the most bytes in the first and in the last third of the time."""
    third = len(memory) // 3
    values = [size for _, size in memory]
    return max(values[:third]), max(values[-third:])


# Many clients.


def test_200_clients_store_each_content_once_though_one_request_in_twenty_fails(
    place: Place, tmp_path: Path
) -> None:
    processes, threads, uploads = 8, 25, 3
    rate = 0.05 / 4
    faults = [
        Fault("refuse", rate=rate),
        Fault("refuse", status=500, code="InternalError", rate=rate),
        Fault("reset", rate=rate),
        Fault("reset", side="answer", rate=rate),
    ]
    for fault in faults:
        place.proxy.plan(fault)
    together = CONTEXT.Barrier(processes)
    jobs = [
        Clients(
            environment=place.environment,
            store=place.store(),
            threads=threads,
            uploads=uploads,
            seed=SEED * 100 + number,
            told=tmp_path / f"told-{number}",
        )
        for number in range(processes)
    ]
    running = [CONTEXT.Process(target=clients.upload_at_once, args=(job, together)) for job in jobs]
    for process in running:
        process.start()
    for process in running:
        process.join(PATIENCE_SECONDS)
        process.kill()
    assert [process.exitcode for process in running] == [0] * processes
    for fault in faults:
        fault.end()
    requests = sum(place.proxy.counts.requests.values())
    assert all(fault.hits for fault in faults)
    assert 0.03 < sum(fault.hits for fault in faults) / requests < 0.07
    told = dict(pair for job in jobs for pair in json.loads(job.told.read_text()))
    assert len(told) == processes * threads * uploads
    bodies = clients.contents()
    assert set(told.values()) == set(range(len(bodies)))
    # Each content once: the names are those that one client alone, undisturbed, leaves.
    alone = ContentStore(MemoryArtifactStore())
    with mock.patch.object(planning, "BLOB_LIMIT", clients.BLOB_LIMIT):
        for body in bodies:
            alone.add(io.BytesIO(body))
    found = audit.look(place.server, place.bucket)
    assert found.wrong == []
    expected = {entry.name for entry in alone.backend.list("")}
    assert named(found.names) == named(expected)
    assert found.refs.keys() == told.keys()
    store = place.direct()

    def read(artifact_id: str) -> bool:
        with store.open_reader(artifact_id) as reader:
            return reader.read() == bodies[told[artifact_id]]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, told))


def named(found: Iterable[str]) -> set[str]:
    """Leave out the refs, whose names are random."""
    return {name for name in found if not name.startswith(names.REFS)}


# Pools of processes that are sent a store.

TASKS = 4

PATIENCE_SECONDS = 300.0


def by_executor(kind: str, task: Callable[[int], object], _folder: Path) -> list[object]:
    with ProcessPoolExecutor(2, mp_context=context(kind)) as pool:
        return results(pool, task)


def results(pool: ProcessPoolExecutor, task: Callable[[int], object]) -> list[object]:
    """Return what the tasks return; a child that hangs is an error and not a test without end."""
    try:
        return list(pool.map(task, range(TASKS), timeout=PATIENCE_SECONDS))
    except TimeoutError:
        for process in (pool._processes or {}).values():
            process.kill()
        raise


def by_inheritance(task: Callable[[int], object], _folder: Path) -> list[object]:
    """Give the store to children as the memory that they are born with."""
    with ProcessPoolExecutor(
        2, mp_context=context("fork"), initializer=clients.take, initargs=(task,)
    ) as pool:
        return results(pool, clients.do)


def context(kind: str) -> BaseContext:
    import multiprocessing

    return multiprocessing.get_context(kind)


def by_joblib(task: Callable[[int], object], _folder: Path) -> list[object]:
    import joblib

    with joblib.parallel_config("loky", n_jobs=2):
        done: list[object] = joblib.Parallel()(joblib.delayed(task)(n) for n in range(TASKS))
    joblib.externals.loky.get_reusable_executor().shutdown(wait=True)
    return done


def by_dask(task: Callable[[int], object], folder: Path) -> list[object]:
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            host="127.0.0.1",
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            local_directory=folder,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        done: list[object] = client.gather(client.map(task, range(TASKS)))
        return done


POOLS: dict[str, Callable[[Callable[[int], object], Path], list[object]]] = {
    "fork": partial(by_executor, "fork"),
    "fork, unpickled": by_inheritance,
    "spawn": partial(by_executor, "spawn"),
    "joblib": by_joblib,
    "dask": by_dask,
}


@pytest.mark.parametrize("pool", POOLS)
def test_a_pool_of_processes_is_sent_a_store_that_works_there_and_still_here(
    place: Place, tmp_path: Path, pool: str
) -> None:
    store = place.store(cache=ArtifactCache(tmp_path / "cache"))
    # Threads, connections and the cache's database are in use here before anybody forks.
    (tmp_path / "here").mkdir()
    carry(store, tmp_path / "here", TASKS)
    (tmp_path / "there").mkdir()
    task = partial(carry, store, tmp_path / "there")
    with place.proxy.plan(Fault("reset", side="answer", method="PUT", times=2)) as fault:
        done = POOLS[pool](task, tmp_path / "dask")
    assert fault.hits == 2
    told = [entry for entry in done if isinstance(entry, tuple)]
    assert len(told) == TASKS
    assert os.getpid() not in {process for process, _ in told}
    # They share the node's cache: what they fetched costs no request here.
    place.proxy.reset()
    for number, (_, uploaded) in enumerate(told):
        for name, artifact_id in zip(("own", "shared"), uploaded, strict=True):
            store.download(artifact_id, tmp_path / f"{name}-{number}")
            there = tmp_path / "there" / f"{name}-{number}"
            assert (tmp_path / f"{name}-{number}").read_bytes() == there.read_bytes()
    assert not place.proxy.counts.requests
    found = audit.look(place.server, place.bucket)
    assert found.wrong == []
    assert len(found.contents) == TASKS + 2
