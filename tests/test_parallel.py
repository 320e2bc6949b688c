"""A few things at once: in order, bounded, and nothing left running."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from functools import partial
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casartifacts import parallel
from casartifacts.backends.memory import MemoryArtifactStore
from casartifacts.knowledge import Knowledge
from casartifacts.latest import Latest
from casartifacts.parallel import WORKERS, Beside, in_order

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class Work:
    """Takes as long as it is told to, and knows how much of it is going on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.running = self.most = self.ended = 0

    def __call__(self, milliseconds: int) -> int:
        with self._lock:
            self.running += 1
            self.most = max(self.most, self.running)
        try:
            time.sleep(abs(milliseconds) / 1000)
            if milliseconds < 0:
                raise OSError(f"planned: {milliseconds}")
            return milliseconds
        finally:
            with self._lock:
                self.running -= 1
                self.ended += 1


@given(st.lists(st.integers(0, 3), max_size=20), st.integers(1, 2 * WORKERS))
def test_results_come_in_order_and_no_more_is_under_way_than_allowed(
    items: list[int], ahead: int
) -> None:
    work = Work()
    assert list(in_order(work, items, ahead=ahead)) == items
    assert work.most <= ahead
    assert (work.running, work.ended) == (0, len(items))


@given(st.lists(st.integers(0, 3), max_size=8), st.lists(st.integers(-3, 3), max_size=8), st.data())
def test_the_first_error_comes_after_all_that_was_started_has_ended(
    before: list[int], after: list[int], data: st.DataObject
) -> None:
    ahead = data.draw(st.integers(1, 2 * WORKERS))
    work = Work()
    results: list[int] = []
    with pytest.raises(OSError, match="planned: -2"):
        results.extend(in_order(work, [*before, -2, *after], ahead=ahead))
    assert results == before
    assert work.running == 0


def test_an_error_of_the_items_comes_after_all_that_was_started_has_ended() -> None:
    work = Work()

    def items() -> Iterator[int]:
        yield from [20, 20]
        raise ValueError("planned")

    with pytest.raises(ValueError, match="planned"):
        list(in_order(work, items()))
    assert work.running == 0


def test_nothing_runs_on_when_the_caller_stops_listening() -> None:
    work = Work()
    results = in_order(work, [1, *[20] * 50])
    assert next(results) == 1
    assert isinstance(results, Generator)
    results.close()
    assert work.running == 0
    assert work.ended < 20


def test_items_are_taken_as_there_is_room() -> None:
    taken = []

    def items() -> Iterator[int]:
        for number in range(20):
            taken.append(number)
            yield number

    results = in_order(lambda number: number, items(), ahead=3)
    assert next(results) == 0
    assert taken == [0, 1, 2, 3]
    assert list(results) == list(range(1, 20))


def test_two_callers_share_the_pool_without_waiting_for_each_other_for_ever() -> None:
    def many() -> None:
        assert list(in_order(Work(), [1] * 30)) == [1] * 30

    threads = [threading.Thread(target=many) for _ in range(2 * WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)


@given(st.lists(st.integers(0, 3), max_size=12))
def test_one_thing_after_another_is_done_beside_the_caller(items: list[int]) -> None:
    work = Work()
    done: list[int] = []
    beside = Beside()
    with beside:
        for item in items:
            beside.begin(lambda item=item: done.append(work(item)))  # type: ignore[misc]  # of a default
        beside.end()
        assert done == items
        beside.end()
    assert work.most <= 1


def test_it_is_done_by_a_thread_of_the_pool() -> None:
    told: list[str] = []
    beside = Beside()
    with beside:
        beside.begin(lambda: told.append(threading.current_thread().name))
    assert told[0].startswith("casartifacts")


def test_an_error_of_one_thing_comes_before_the_next_is_begun() -> None:
    work = Work()
    beside = Beside()
    with beside:
        beside.begin(partial(work, -3))
        with pytest.raises(OSError, match="planned: -3"):
            beside.begin(partial(work, 1))
        beside.end()
    assert work.ended == 1


def test_nothing_is_under_way_when_a_block_ends_with_an_error() -> None:
    work = Work()
    beside = Beside()

    def fail() -> None:
        with beside:
            beside.begin(partial(work, 30))
            raise ValueError("planned")

    with pytest.raises(ValueError, match="planned"):
        fail()
    assert (work.running, work.ended) == (0, 1)


@pytest.mark.parametrize("given", ["0", "-1", "many", "1e3", "257", " "])
def test_a_number_of_workers_that_is_none_is_refused(
    given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CASARTIFACTS_WORKERS", given)
    with pytest.raises(ValueError, match=r"CASARTIFACTS_WORKERS must be a number from 1 to 256"):
        parallel._workers()


def test_the_number_of_workers_can_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for number, workers in (("1", 1), ("32", 32)):
        monkeypatch.setenv("CASARTIFACTS_WORKERS", number)
        assert parallel._workers() == workers


def in_a_child(call: Callable[[], object]) -> None:
    """Fork, and fail unless the child comes back from a call."""
    child = os.fork()
    if not child:
        status = 1
        try:
            call()
            status = 0
        finally:
            os._exit(status)
    until = time.monotonic() + 20
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.001)
    os.kill(child, 9)
    os.waitpid(child, 0)
    pytest.fail("the child waits for threads that only its parent has")


forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
warned = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")


@forks
@warned
def test_the_child_of_a_fork_has_workers_of_its_own() -> None:
    def work() -> None:
        assert list(in_order(Work(), [1, 2, 3])) == [1, 2, 3]

    work()
    in_a_child(work)


@forks
@warned
def test_the_child_of_a_fork_waits_for_no_lock_of_its_parents_threads() -> None:
    """Of 40 children 14 never came back."""
    knowledge, latest, memory = Knowledge(), Latest(), MemoryArtifactStore()

    def work() -> None:
        knowledge.learn("name", asked_at=0)
        latest.like(None)
        memory.write("name", io.BytesIO(b"1"))

    stop = threading.Event()

    def go_on() -> None:
        while not stop.is_set():
            work()

    threads = [threading.Thread(target=go_on) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(60):
            in_a_child(work)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_what_no_thread_can_be_made_for_is_not_done_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits in the pool already: done here too, a piece would be written a second time."""

    def start(_: object) -> None:
        raise RuntimeError("can't start new thread")

    parallel._pool.cache_clear()
    monkeypatch.setattr(threading.Thread, "start", start)
    done: list[int] = []
    with Beside() as beside, pytest.raises(RuntimeError, match="new thread"):
        beside.begin(lambda: done.append(1))
    assert not done
    parallel._pool.cache_clear()


def test_an_upload_in_the_last_moments_of_a_process_is_done_by_the_caller(tmp_path: Path) -> None:
    """No thread begins in an `atexit` handler any more."""
    script = f"""
import atexit, io, sys
from casartifacts import open_store

store = open_store({str(tmp_path)!r})
store.write("before", io.BytesIO(bytes(3_000_000)))

@atexit.register
def last():
    store.write("last", io.BytesIO(bytes(range(200)) * 50_000))
    sys.stdout.write(store.open_reader("last").read()[-1:].hex())
"""
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert (ran.stdout, ran.stderr) == (bytes([199]).hex(), "")


def test_what_the_garbage_collector_closes_in_the_pool_is_not_waited_for_there() -> None:
    """A reader that somebody dropped is closed by whatever thread the collector runs in."""
    gate = threading.Event()
    closed = threading.Event()
    dropped: list[Generator[int]] = []

    def close(number: int) -> int:
        if number:
            gate.wait(10)
            dropped.pop().close()  # in a thread of the pool, amid a task of the same generator
            closed.set()
        return number

    numbers = in_order(close, range(3), ahead=2)
    assert isinstance(numbers, Generator)
    assert next(numbers) == 0
    dropped.append(numbers)
    gate.set()
    assert closed.wait(10), "a thread of the pool waits for itself"


class StopError(Exception):
    """Stands for what a signal handler raises."""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timer signals")
@pytest.mark.parametrize("way", ["in order", "beside"])
def test_what_a_signal_interrupts_has_ended_when_the_call_has_left(way: str) -> None:
    work = Work()

    def stop(*_: object) -> None:
        raise StopError

    before = signal.signal(signal.SIGALRM, stop)

    def beside() -> None:
        with Beside() as running:
            running.begin(partial(work, 300))
            running.end()

    act: Callable[[], object] = beside
    if way == "in order":
        act = partial(list, in_order(work, [600, 300, 300], ahead=2))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(StopError):
            act()
        assert work.running == 0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
