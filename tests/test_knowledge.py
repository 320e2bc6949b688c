"""Rule K: what a record names is known to be live when it is written, or is asked and sent again.

The clock of these tests stands still until a test, or a place that is slow on purpose, moves it on.
"""

from __future__ import annotations

import io
import pickle
import time
from typing import TYPE_CHECKING, BinaryIO

import pytest

from casartifacts import names
from casartifacts.backends.memory import MemoryArtifactStore
from casartifacts.digest import digest_of
from casartifacts.errors import CasartifactsError
from casartifacts.knowledge import MAX_AGE_SECONDS, Knowledge, seconds_since_boot
from casartifacts.records import SMALL_CONTENT_LIMIT
from casartifacts.store import ContentStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from casartifacts.protocols import Entry

HOUR = MAX_AGE_SECONDS
ID = "best-model"
REF = names.ref(ID)
SMALL = b"small content"
LARGE = bytes(SMALL_CONTENT_LIMIT) + b"large"

SIZES = pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])


class Clock:
    """A clock that is moved on by hand, in seconds."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time

    def pass_by(self, seconds: float) -> None:
        self.time += seconds


class Watched(MemoryArtifactStore):
    """A place that notes every call, and on which something can happen after each."""

    def __init__(self, *, remote: bool) -> None:
        super().__init__()
        self.remote = remote
        self.calls: list[str] = []
        self.after: Callable[[str], object] = lambda call: None
        self.before_trying_again: Callable[[], object] | None = None

    def stat(self, name: str) -> Entry | None:
        found = super().stat(name)
        self._note(f"stat {name}")
        return found

    def open_reader(self, artifact_id: str) -> BinaryIO:
        self._note(f"read {artifact_id}")
        return super().open_reader(artifact_id)

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        if self.before_trying_again is not None and artifact_id.startswith(names.REFS):
            content_body.read()
            self.before_trying_again()
            content_body.seek(0)
        super().write(artifact_id, content_body)
        self._note(f"write {artifact_id}")

    def write_if_absent(self, name: str, content_body: BinaryIO) -> bool:
        written = super().write_if_absent(name, content_body)
        self._note(f"add {name}")
        return written

    def _note(self, call: str) -> None:
        self.calls.append(call)
        self.after(call)

    def taken(self) -> list[str]:
        """Return the calls since the last time."""
        calls, self.calls = self.calls, []
        return calls

    def once_after(self, beginning: str, act: Callable[[], object]) -> None:
        """Let something happen after the next call that begins so."""

        def after(call: str) -> None:
            if call.startswith(beginning):
                self.after = lambda call: None
                act()

        self.after = after

    def collect(self) -> None:
        """Move all contents to the trash, as a garbage collection of somebody else does."""
        for entry in [*self.list("blobs/"), *self.list("manifests/")]:
            self.move(entry.name, names.trashed("7", entry.name))


def make(*, remote: bool = True) -> tuple[ContentStore, Watched, Clock]:
    place, clock = Watched(remote=remote), Clock()
    store = ContentStore(place)
    store._knowledge.now = clock
    return store, place, clock


def put(store: ContentStore, content: bytes, artifact_id: str = ID) -> None:
    store.write(artifact_id, io.BytesIO(content))


def get(store: ContentStore, artifact_id: str = ID) -> bytes:
    with store.open_reader(artifact_id) as reader:
        return reader.read()


def content_name(content: bytes) -> str:
    digest = digest_of(content)
    return names.blob(digest) if content == SMALL else names.manifest(digest)


def test_an_answer_counts_for_an_hour_from_before_its_question() -> None:
    clock = Clock()
    knowledge = Knowledge(clock)
    knowledge.learn("x", asked_at=clock() - 100)
    clock.pass_by(HOUR - 100)
    assert knowledge.is_fresh("x")
    clock.pass_by(1)
    assert not knowledge.is_fresh("x")
    assert not knowledge.is_fresh("y")


def test_what_is_forgotten_is_asked_again() -> None:
    knowledge = Knowledge(Clock())
    for name in ("x", "y", "z"):
        knowledge.learn(name, asked_at=knowledge.now())
    knowledge.forget("x")
    knowledge.forget("never known")
    assert [knowledge.is_fresh(name) for name in "xyz"] == [False, True, True]
    knowledge.clear()
    assert not any(knowledge.is_fresh(name) for name in "xyz")


def test_knowledge_is_bounded_and_forgets_what_it_was_told_first() -> None:
    knowledge = Knowledge(Clock())
    knowledge.learn("again", asked_at=knowledge.now())
    for number in range(99_999):
        knowledge.learn(str(number), asked_at=knowledge.now())
    knowledge.learn("again", asked_at=knowledge.now())
    knowledge.learn("one more", asked_at=knowledge.now())
    assert not knowledge.is_fresh("0")
    assert all(map(knowledge.is_fresh, ["1", "99998", "again", "one more"]))


def test_the_clock_runs_and_counts_suspended_time_where_it_can() -> None:
    before = seconds_since_boot()
    time.sleep(0.01)
    assert 0.01 <= seconds_since_boot() - before < 60
    if hasattr(time, "CLOCK_BOOTTIME"):
        assert abs(time.clock_gettime(time.CLOCK_BOOTTIME) - seconds_since_boot()) < 60


@SIZES
def test_a_remote_place_is_asked_about_a_duplicate_once_an_hour(content: bytes) -> None:
    store, place, clock = make()
    put(store, content)
    place.taken()
    clock.pass_by(HOUR)
    put(store, content)
    assert place.taken() == [f"write {REF}"]
    clock.pass_by(1)
    put(store, content)
    assert place.taken() == [f"stat {content_name(content)}", f"write {REF}"]
    put(store, content)
    assert place.taken() == [f"write {REF}"]


@SIZES
def test_a_near_place_is_asked_about_every_duplicate(content: bytes) -> None:
    store, place, _ = make(remote=False)
    put(store, content)
    for _ in range(2):
        place.taken()
        put(store, content)
        assert f"stat {content_name(content)}" in place.taken()
    # So a content that somebody deleted by hand is stored anew.
    place.collect()
    put(store, content)
    assert place.stat(content_name(content))


@SIZES
def test_a_ref_that_took_more_than_an_hour_is_asked_and_sent_again(content: bytes) -> None:
    store, place, clock = make()
    place.once_after("write refs/", lambda: clock.pass_by(HOUR + 1))
    put(store, content)
    calls = place.taken()
    again = [f"write {REF}", f"stat {content_name(content)}", f"write {REF}"]
    assert calls[-3:] == again
    assert calls.count(f"write {REF}") == 2


@SIZES
def test_a_content_that_was_collected_while_its_ref_was_sent_is_stored_anew(
    content: bytes,
) -> None:
    store, place, clock = make()

    def collect() -> None:
        clock.pass_by(HOUR + 1)
        place.collect()

    place.once_after("write refs/", collect)
    put(store, content)
    assert place.stat(content_name(content)), "what is only in the trash is not live"
    for entry in list(place.list("trash/")):
        place.remove(entry.name)
    assert get(ContentStore(place)) == content


def test_blobs_that_were_collected_while_their_manifest_was_sent_are_stored_anew() -> None:
    store, place, clock = make()

    def collect() -> None:
        clock.pass_by(HOUR + 1)
        place.collect()

    place.once_after("add manifests/", collect)
    put(store, LARGE)
    calls = place.taken()
    assert calls.count(f"add {content_name(LARGE)}") == 2
    for entry in list(place.list("trash/")):
        place.remove(entry.name)
    assert get(ContentStore(place)) == LARGE


@SIZES
def test_a_ref_that_the_place_sends_again_by_itself_is_asked_first(content: bytes) -> None:
    store, place, clock = make()

    def wait() -> None:
        place.before_trying_again = None
        clock.pass_by(HOUR + 1)
        place.collect()

    place.before_trying_again = wait
    put(store, content)
    calls = place.taken()
    assert calls.count(f"write {REF}") == 1, "the second try was refused before it was sent"
    assert place.stat(content_name(content))


def test_a_manifest_that_waited_for_more_than_an_hour_is_not_sent() -> None:
    store, place, clock = make()
    name = content_name(LARGE)
    # The blobs are live, and their answers old, before the first byte of the manifest goes out.
    place.once_after("add blobs/", lambda: clock.pass_by(HOUR + 1))
    put(store, LARGE)
    calls = [call for call in place.taken() if "blobs/" in call or "manifests/" in call]
    [blob] = [call.removeprefix("add ") for call in calls if call.startswith("add blobs/")]
    assert calls == [f"stat {name}", f"stat {blob}", f"add {blob}", f"stat {blob}", f"add {name}"]


def test_an_upload_gives_up_when_every_try_takes_more_than_an_hour() -> None:
    store, place, clock = make()
    place.after = lambda call: clock.pass_by(HOUR + 1) if call.startswith("write refs/") else None
    with pytest.raises(CasartifactsError, match=r"sent 5 times to MemoryArtifactStore\(\)"):
        put(store, SMALL)
    assert place.calls.count(f"write {REF}") == 5


def test_the_age_of_an_answer_starts_before_its_question() -> None:
    store, place, clock = make()
    put(store, SMALL)
    clock.pass_by(2 * HOUR)
    place.once_after("stat blobs/", lambda: clock.pass_by(HOUR - 10))
    put(store, SMALL)
    place.taken()
    clock.pass_by(11)
    put(store, SMALL)
    assert f"stat {content_name(SMALL)}" in place.taken()


def test_a_ref_is_fresh_for_an_hour_after_it_was_sent() -> None:
    store, place, clock = make()
    assert not store.is_fresh(ID)
    place.once_after("write refs/", lambda: clock.pass_by(100))
    put(store, SMALL)
    clock.pass_by(HOUR - 100)
    assert store.is_fresh(ID)
    clock.pass_by(1)
    assert not store.is_fresh(ID)


def test_a_removed_ref_is_not_fresh() -> None:
    store, _, _ = make()
    put(store, SMALL)
    store.remove(ID)
    assert not store.is_fresh(ID)


def test_knowledge_is_not_sent_to_another_process() -> None:
    store, place, _ = make()
    put(store, SMALL)
    copy = pickle.loads(pickle.dumps(store))  # noqa: S301 -- made one call ago
    assert copy.backend is place
    assert store.is_fresh(ID)
    assert not copy.is_fresh(ID)
    place.taken()
    put(copy, SMALL)
    assert f"stat {content_name(SMALL)}" in place.taken()
