"""The words in which the checks are written: write, read, expect, at once, elsewhere.

Rule: what is not as expected is a `ContractBroken` that says what was expected and what came.
"""

from __future__ import annotations

import multiprocessing
import pickle
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from casartifacts import errors
from casartifacts.testing.bodies import Body, ContractBroken

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    from casartifacts.protocols import ArtifactStore, Backend

# Seconds after which a call that should take milliseconds is taken to hang.
PATIENCE = 120.0

# The size of a body that fails: a few pieces for whoever reads 64 KiB at a time.
FAILING_SIZE = 200_000

_BRIEF = 16

_T = TypeVar("_T")


class Interrupt(KeyboardInterrupt):
    """What Ctrl-C would raise, told apart from a real one."""


def some_bytes(size: int) -> bytes:
    """Return bytes that no other size shares, the same in every run."""
    return random.Random(size).randbytes(size)  # noqa: S311 -- no secret


def brief(body: bytes | None) -> str:
    """Say what came in a few words."""
    if body is None:
        return "nothing"
    return f"{len(body)} bytes {body[:_BRIEF]!r}{'...' if len(body) > _BRIEF else ''}"


def expect(right: object, expected: str, came: object) -> None:
    """Raise unless something is right."""
    if not right:
        raise ContractBroken(f"expected {expected}; got {came}")


def put(store: ArtifactStore, name: str, content: bytes, **ways: Any) -> None:
    """Write a body that may not be closed."""
    body = Body(content, **ways)
    store.write(name, body)
    expect_open(body)


def read(store: ArtifactStore, name: str) -> bytes:
    """Read what is under a name, to its end."""
    with store.open_reader(name) as reader:
        return b"".join(iter(lambda: reader.read(65_536), b""))


def read_range(backend: Backend, name: str, start: int, length: int) -> bytes:
    """Return a range of what is under a name, read as far as it was asked for and no further."""
    found = b""
    with backend.open_range(name, start, length) as reader:
        while len(found) < length and (piece := reader.read(length - len(found))):
            found += piece
    return found


def look(store: ArtifactStore, name: str) -> bytes | None:
    """Read what is under a name, or None."""
    try:
        return read(store, name)
    except errors.ArtifactNotFound:
        return None


def expect_body(store: ArtifactStore, name: str, right: bytes) -> None:
    """Read what is under a name, and compare."""
    found = look(store, name)
    expect(found == right, f"{brief(right)} under {name!r}", brief(found))


def expect_open(body: Body) -> None:
    """Expect that nobody has closed a body."""
    expect(not body.closings, "a body that is left open", f"{body.closings} calls of its close()")


def expect_missing(call: Callable[[], object]) -> Exception:
    """Make a call that must raise `ArtifactNotFound`."""
    try:
        found = call()
    except errors.ArtifactNotFound as error:
        return error
    raise ContractBroken(f"expected ArtifactNotFound; got {found!r}")


def expect_gone(store: ArtifactStore, name: str) -> Exception:
    """Expect that nothing can be opened under a name."""
    return expect_missing(lambda: store.open_reader(name).close())


def expect_failure(
    write: Callable[[str, BinaryIO], object],
    name: str,
    *,
    fails_at: int,
    error: BaseException | None = None,
) -> None:
    """Write a body that fails, and expect its very error."""
    failure = error or ValueError("planned: this body fails")
    body = Body(some_bytes(FAILING_SIZE), fails_at=fails_at, failure=lambda: failure)
    came: BaseException | None = None
    try:
        write(name, body)
    except (Exception, Interrupt) as raised:  # noqa: BLE001 -- whatever it is, it is judged here
        came = raised
    expect(came is failure, f"the body's own {failure!r}", repr(came))
    expect_open(body)


def in_time(call: Callable[[], _T]) -> _T:
    """Make a call in another thread, so that one which waits for this thread is found out."""
    answers: list[_T] = []
    problems: list[BaseException] = []

    def work() -> None:
        try:
            answers.append(call())
        except BaseException as error:  # noqa: BLE001 -- handed to the thread that waits
            problems.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    if problems:
        raise problems[0]
    expect(answers, "an answer while a body is being written", f"none in {PATIENCE} s")
    return answers[0]


def at_once(work: Callable[[int], None], threads: int) -> None:
    """Run `work(0)`, `work(1)`, ... in threads; raise the first error."""
    with ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(work, thread) for thread in range(threads)]:
            future.result()


def elsewhere(method: str, store: ArtifactStore, name: str, target: str) -> None:
    """Let another process read `name`, and write what it found, reversed, to `target`."""
    context: Any = multiprocessing.get_context(method)
    sent = store if method == "fork" else pickle.dumps(store)
    here, there = context.Pipe()
    process = context.Process(target=_reverse, args=(sent, name, target, there), daemon=True)
    process.start()
    there.close()
    try:
        told = here.recv() if here.poll(PATIENCE) else f"no answer in {PATIENCE} s"
    except EOFError:
        told = "its end without an answer"
    here.close()
    process.kill()
    process.join()
    process.close()
    expect(told == "done", "another process to read and write", told)


def _reverse(sent: Any, name: str, target: str, channel: Connection) -> None:
    """Do what `elsewhere` says; runs in the other process."""
    try:
        store = pickle.loads(sent) if isinstance(sent, bytes) else sent  # noqa: S301 -- our parent's
        put(store, target, read(store, name)[::-1])
    except BaseException as error:  # noqa: BLE001 -- told to the parent
        channel.send(repr(error))
    else:
        channel.send("done")
