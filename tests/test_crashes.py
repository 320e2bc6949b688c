"""Processes killed with SIGKILL at every step of an upload and a download.

`crashes.tracer` finds the steps: each system call that changes something below a folder, before and
after the kernel has done it. After every kill a reader sees the old, the new or nothing, nothing
stays but what is collected, and the next try succeeds.

The ordinary run takes a sample, another one each time; `-m slow` takes every step.

Below them: every single changed byte of a cache's files is noticed, or does no harm.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from crashes.jobs import DOWNLOADED, JOBS, LARGE, listed, open_cache, open_store, prepare
from crashes.tracer import Kill, Step, Traced

from casartifacts import ArtifactNotFound, ContentStore, MemoryArtifactStore
from casartifacts.digest import digest_of
from casartifacts.manifest import Manifest
from casartifacts.records import StoreRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

# Kills per job in the ordinary run.
SAMPLE = 15

# Where CI runs, the same moments in each run; `-m slow` tries all.
SEED = int(
    os.environ.get("CASARTIFACTS_SEED", 1 if "CI" in os.environ else random.randrange(2**32))
)

# Changed bytes per file in the ordinary run.
SAMPLE_OF_TABLE = 15

CACHED = random.Random(3).randbytes(500)

# All that may ever lie below the folder of a job.
EXPECTED = re.compile(
    r"""store/casartifacts\.json
    | store/refs/[0-9a-z_-]+
    | store/blobs/([0-9a-f]{2})/\1[0-9a-f]{62}
    | store/manifests/([0-9a-f]{2})/\2[0-9a-f]{62}
    | store/hints/([0-9a-f]{2})/\3[0-9a-f]{62}
    | store/trash/refs/[0-9a-z_-]+
    | store/tmp/[0-9a-f]{32}                             # collected by its age
    | cache/(CACHEDIR\.TAG | changes | cache\.db(-journal|-wal|-shm)?)
    | cache/contents/([0-9a-f]{2})/\6[0-9a-f]{62}-[0-9a-f]{16}
    | cache/counters/[0-9]{3}
    | cache/damaged/[0-9a-f]{64}-[0-9a-f]{16}
    | cache/tmp/[0-9a-f]{64}-[0-9a-f]{16}-[0-9]+-[0-9]+  # gone on from when its writer is dead
    | target
    | \.casartifacts-[0-9a-f]{16}\.part                  # what a download leaves beside its target
    | model\.pt | study\.db(-journal)?
    """,
    re.VERBOSE,
)


class Victims:
    """A process whose children do jobs and are killed; it has imported everything already."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "crashes.jobs"],
            cwd=Path(__file__).parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.refusal = self._answer()

    def do(self, job: str, folder: Path, kill: Kill | None = None) -> Traced:
        """Do a job, or the part of it before the kill."""
        assert self._process.stdin is not None
        request = {"job": job, "folder": str(folder), "kill": kill}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        steps, killed = self._answer()
        return Traced([Step(*step) for step in steps], killed)

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the process ended; what it said is on the standard error"
        return json.loads(line)

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="module")
def victims() -> Iterator[Victims]:
    if sys.platform != "linux":
        pytest.skip("processes are traced on Linux only")
    with contextlib.closing(Victims()) as started:
        if started.refusal is not None:
            pytest.skip(f"processes cannot be traced here: {started.refusal}")
        yield started


class Stage:
    """The folder of a job, laid out anew for each kill."""

    def __init__(self, job: str, place: Path) -> None:
        self.job = JOBS[job]
        self.folder = place / "folder"
        self._name = job
        self._template = place / "template"
        prepare(self._template, self.job)
        self._store = _files(self._template / "store")

    def kill(self, victims: Victims, kill: Kill | None) -> Traced:
        """Do the job until it is killed, and check what is left and what comes after."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self._template, self.folder)
        traced = victims.do(self._name, self.folder, kill)
        try:
            self._check(is_done=not traced.killed)
            self._try_again()
            self._check(is_done=True)
            if self.job.cached is not None:
                self._check_cache()
        except BaseException as error:
            moment = "after" if kill and kill.done else "before"
            error.add_note(f"{self._name}: killed {moment} {traced.steps[-1]}, {kill}")
            raise
        return traced

    def _try_again(self) -> None:
        for path in self.folder.glob("cache/tmp/*"):
            os.utime(path, (0, 0))  # as if it had lain there for long
        if self.job.target is None:
            (self.folder / "target").unlink(missing_ok=True)
        # What was removed already is gone.
        with contextlib.suppress(*[ArtifactNotFound] if None in self.job.changes.values() else []):
            self.job.work(self.folder)

    def _check(self, *, is_done: bool) -> None:
        place = open_store(self.folder)
        for artifact_id in self._ids():
            got = _read(place, artifact_id)
            old = self.job.stored.get(artifact_id)
            new = self.job.changes.get(artifact_id, old)
            if artifact_id not in self.job.stored:
                new = self.job.adds
            assert got is new or got == new or (got == old and not is_done), artifact_id
        for path, content in _files(self.folder).items():
            assert EXPECTED.fullmatch(path), path
            _check_content(self.folder / "store", path, content)
        if self.job.is_download:
            assert _files(self.folder / "store") == self._store
            target = self.folder / "target"
            got = target.read_bytes() if target.exists() else None
            assert got == LARGE or (got == self.job.target and not is_done)

    def _ids(self) -> set[str]:
        """Return every id that was ever there or is listed anywhere."""
        ids = set(self.job.stored)
        for path in self.folder.glob("store/refs/*"):
            ids.add(json.loads(path.read_bytes())["artifact_id"])
        if (self.folder / "study.db").exists():
            ids.update(listed(self.folder))
        return ids

    def _check_cache(self) -> None:
        """See that the cache serves the content by itself and has lost sight of no file."""
        cache = open_cache(self.folder)
        alone = ContentStore(MemoryArtifactStore(), cache=cache)
        assert _read(alone, DOWNLOADED) == LARGE
        with cache.admit(digest_of(b"another"), size=7):
            pass  # whoever makes room drops what dead processes left
        cache.close()
        assert not list(self.folder.glob("cache/tmp/*"))
        with contextlib.closing(sqlite3.connect(self.folder / "cache" / "cache.db")) as table:
            rows = table.execute("SELECT filename FROM Cache WHERE filename IS NOT NULL")
            known = {f"cache/{name}" for (name,) in rows}
        contents = _files(self.folder / "cache" / "contents", below=self.folder)
        assert contents.keys() <= known, "a file that the cache does not count"
        for path, content in contents.items():
            assert Path(path).name.startswith(digest_of(content))


def _files(folder: Path, *, below: Path | None = None) -> dict[str, bytes]:
    return {
        str(path.relative_to(below or folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def _read(place: ContentStore, artifact_id: str) -> bytes | None:
    try:
        with place.open_reader(artifact_id) as reader:
            return reader.read()
    except ArtifactNotFound:
        return None


def _check_content(store: Path, path: str, content: bytes) -> None:
    """See that what has a name in the store is whole, and that all that it needs is there."""
    name = Path(path).name
    if path == "store/casartifacts.json":
        StoreRecord.decode(content, store)
    elif path.startswith("store/blobs/"):
        assert digest_of(content) == name
    elif path.startswith("store/manifests/"):
        size = json.loads(content.partition(b"\n")[0])["size"]
        for digest, length in Manifest.decode(content, digest=name, size=size).blobs:
            assert (store / "blobs" / digest[:2] / digest).stat().st_size == length


def test_a_step_is_interrupted_before_and_after_the_kernel_has_done_it(
    victims: Victims, tmp_path: Path
) -> None:
    stage = Stage("first small upload", tmp_path)
    steps = stage.kill(victims, None).steps
    (rename,) = (number for number, step in enumerate(steps) if step.call == "rename")
    for done in (False, True):
        shutil.rmtree(stage.folder)
        stage.folder.mkdir()
        traced = victims.do("first small upload", stage.folder, Kill(rename, done))
        assert traced == (steps[: rename + 1], True)
        assert len(list(stage.folder.glob("store/refs/*"))) == done


@pytest.mark.parametrize("job", JOBS)
def test_whatever_is_killed_leaves_all_whole_and_the_next_try_succeeds(
    victims: Victims, tmp_path: Path, job: str
) -> None:
    """At a sample of the steps; `CASARTIFACTS_SEED` in the environment takes the same again."""
    print(f"CASARTIFACTS_SEED={SEED}")  # noqa: T201 -- pytest shows it when the test fails
    stage = Stage(job, tmp_path)
    count = len(stage.kill(victims, None).steps)
    moments = [Kill(step, done) for step in range(count) for done in (False, True)]
    for kill in random.Random(f"{SEED} {job}").sample(moments, min(SAMPLE, len(moments))):
        stage.kill(victims, kill)


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS)
def test_whatever_is_killed_at_any_step_leaves_all_whole_and_the_next_try_succeeds(
    victims: Victims, tmp_path: Path, job: str
) -> None:
    stage = Stage(job, tmp_path)
    planned = set(stage.kill(victims, None).steps)
    died = set()
    # Only uploads have threads; where there is one, after a step is before the next one.
    for done in (False, True) if stage.job.cached is None else (False,):
        for step in itertools.count():
            traced = stage.kill(victims, Kill(step, done))
            if not traced.killed:
                break
            died.add(traced.steps[-1])
    # Threads take turns, so that a name may appear in one run and not in another; calls do not.
    assert {step.call for step in died} >= {step.call for step in planned}


# Changed bytes


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    """Return a folder with a store, and a cache that holds a content and was not closed."""
    folder = tmp_path / "cached"
    store = open_store(folder, cache=open_cache(folder))
    artifact_id = store.add(io.BytesIO(CACHED))
    _read(store, artifact_id)
    assert store.cache is not None
    shutil.copytree(folder, tmp_path / "copy")  # while the write-ahead log is still there
    store.cache.close()
    (tmp_path / "copy" / "id").write_text(artifact_id)
    return tmp_path / "copy"


def _check_changed(cached: Path, name: str, at: int) -> None:
    """Change a byte; read twice; read once more without the store."""
    artifact_id = (cached / "id").read_text()
    with (cached / name).open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 0xFF]))
    cache = open_cache(cached)
    store = open_store(cached, cache=cache)
    for _ in range(2):
        assert _read(store, artifact_id) == CACHED, (name, at)
    assert not name.startswith("cache/contents/") or cache.counters.heals == 1, (name, at)
    cache.close()
    cache = open_cache(cached)
    assert _read(ContentStore(MemoryArtifactStore(), cache=cache), artifact_id) == CACHED, (
        name,
        at,
    )
    cache.close()


def _check_changed_content(cached: Path, places: Iterable[int]) -> None:
    for at in places:
        (path,) = cached.glob("cache/contents/*/*")
        path.chmod(0o600)
        _check_changed(cached, str(path.relative_to(cached)), at)


def _check_changed_table(cached: Path, places: Callable[[int], Iterable[int]]) -> None:
    files = _files(cached / "cache", below=cached)
    names = [name for name in files if not name.startswith("cache/contents/")]
    assert {"cache/cache.db", "cache/cache.db-wal", "cache/changes"} <= set(names)
    for name in names:
        for at in places(len(files[name])):
            copy = cached.with_name("changed")
            shutil.copytree(cached, copy)
            _check_changed(copy, name, at)
            shutil.rmtree(copy)


def test_a_changed_byte_of_a_cached_content_is_noticed_and_healed(cached: Path) -> None:
    chosen = random.Random(SEED).sample(range(len(CACHED)), 30)
    _check_changed_content(cached, [0, len(CACHED) - 1, *chosen])


def test_a_changed_byte_of_the_table_of_a_cache_does_no_harm(cached: Path) -> None:
    random_places = random.Random(SEED)
    _check_changed_table(
        cached, lambda size: random_places.sample(range(size), min(size, SAMPLE_OF_TABLE))
    )


@pytest.mark.slow
def test_every_changed_byte_of_a_cached_content_is_noticed_and_healed(cached: Path) -> None:
    _check_changed_content(cached, range(len(CACHED)))


@pytest.mark.slow
def test_every_part_of_the_table_of_a_cache_may_change(cached: Path) -> None:
    """Each byte of what SQLite reads first, and every 397th of the rest."""
    _check_changed_table(cached, lambda size: [*range(min(size, 100)), *range(100, size, 397)])
