"""Places that go wrong as planned, for testing what stands above a backend.

    with Plan(Fault("flip a bit", on="open_range", names="blobs/", every=3)) as plan:
        store = ContentStore(plan.around(backend))
        ...

Rule 1: a planned fault that was never hit fails the test (`FaultNeverHit`, when the block ends
without another error): a test of faults must not pass because none happened.
Rule 2: a fault is hit when it really changed, withheld or broke something, not when it might have.
Rule 3: without faults a `NastyPlace` is the backend that it wraps; it keeps the contracts too.
"""

from __future__ import annotations

import io
import threading
from typing import TYPE_CHECKING, BinaryIO, Literal, Self, TypeVar

from casartifacts.testing.bodies import Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casartifacts.protocols import Backend, Entry

__all__ = ["Fault", "FaultNeverHit", "Kind", "NastyPlace", "Plan"]

_T = TypeVar("_T")

Kind = Literal[
    "fail",  # raise before acting
    "lose the answer",  # act, then raise
    "forget",  # say "written" and have nothing
    "lose the last byte",  # of what is read, or written
    "flip a bit",  # in the middle of what is read, or written
    "another name",  # answer with what is under the name `other`
    "die midway",  # give half of the bytes, or of the names, then raise
    "short reads",  # a reader that gives an eighth at most per read: nasty, but allowed
    "none",
]

_READS = {"open_reader", "open_range"}
_WRITES = {"write", "write_if_absent"}
_CHANGES = _WRITES | {"remove", "move"}
_STRIKES: dict[Kind, set[str]] = {
    "fail": _READS | _CHANGES | {"stat", "list", "list_folders"},
    "lose the answer": _CHANGES,
    "forget": _WRITES,
    "lose the last byte": _READS | _WRITES,
    "flip a bit": _READS | _WRITES,
    "another name": _READS,
    "die midway": _READS | {"list", "list_folders"},
    "short reads": _READS,
    "none": set(),
}


class FaultNeverHit(AssertionError):
    """A fault was planned, and the test never met it."""


class Fault:
    """One way in which a place goes wrong.

    Args:
        kind: What goes wrong.
        on: The method that it strikes; None strikes every method that it can.
        names: Only names that begin so (for a listing: its prefix; for a move: its source).
        every: Strikes every k-th of those calls.
        times: Strikes at most so often.
        other: The name whose bytes come instead (for "another name").
        failure: Makes the error that is raised.
    """

    def __init__(
        self,
        kind: Kind,
        *,
        on: str | None = None,
        names: str = "",
        every: int = 1,
        times: int | None = None,
        other: str | None = None,
        failure: Callable[[], Exception] = lambda: ConnectionResetError("planned: reset"),
    ) -> None:
        if on is not None and on not in _STRIKES[kind]:
            raise ValueError(f"{kind!r} strikes one of {sorted(_STRIKES[kind])}, not {on!r}")
        if (kind == "another name") != (other is not None):
            raise ValueError("other= belongs to the kind 'another name', which needs it")
        self.kind = kind
        self.methods = _STRIKES[kind] if on is None else {on}
        self.names = names
        self.every = every
        self.left = times
        self.other = other
        self.hits = 0
        self._failure = failure
        self._calls = 0

    def __repr__(self) -> str:
        return f"Fault({self.kind!r} on {sorted(self.methods)}, names={self.names!r})"

    def strikes(self, method: str, name: str) -> bool:
        """Count a call and tell whether it is to go wrong."""
        if method not in self.methods or not name.startswith(self.names) or self.left == 0:
            return False
        self._calls += 1
        if self._calls % self.every:
            return False
        if self.left is not None:
            self.left -= 1
        return True

    def failure(self) -> Exception:
        """Make the error that is raised now."""
        self.hits += 1
        return self._failure()

    def answer(self) -> None:
        """Come back from a call that has acted."""
        if self.kind == "lose the answer":
            raise self.failure()

    def forgets(self) -> bool:
        """Tell whether this write is only said to have happened."""
        self.hits += self.kind == "forget"
        return self.kind == "forget"

    def name(self, name: str) -> str:
        """Return the name that is really looked at."""
        self.hits += self.other is not None
        return name if self.other is None else self.other

    def bent(self, right: bytes) -> bytes:
        """Return what comes instead of the right bytes."""
        wrong = right
        if self.kind == "lose the last byte":
            wrong = right[:-1]
        elif self.kind == "flip a bit" and right:
            middle = len(right) // 2
            wrong = right[:middle] + bytes([right[middle] ^ 1]) + right[middle + 1 :]
        self.hits += wrong != right
        return wrong

    def body(self, content_body: BinaryIO) -> BinaryIO:
        """Return what is written instead of this body."""
        if self.kind not in {"lose the last byte", "flip a bit"}:
            return content_body
        return io.BytesIO(self.bent(content_body.read()))

    def reader(self, reader: BinaryIO, length: int = -1) -> BinaryIO:
        """Return what is read instead of this reader, of which `length` bytes are wanted."""
        if self.kind == "none":
            return reader
        with reader:
            content = self.bent(reader.read(length))
        most = len(content) // 8 + 1 if self.kind == "short reads" else None
        self.hits += most is not None
        fails_at = len(content) // 2 if self.kind == "die midway" else None
        return Stream(content, most=most, fails_at=fails_at, failure=self.failure)

    def entries(self, entries: Iterator[_T]) -> Iterator[_T]:
        """Yield what is listed."""
        if self.kind != "die midway":
            yield from entries
            return
        found = list(entries)
        yield from found[: len(found) // 2]
        raise self.failure()


_NONE = Fault("none")


class Plan:
    """What goes wrong in the places it is laid around; the first fault that strikes counts."""

    def __init__(self, *faults: Fault) -> None:
        self.faults = faults
        self._lock = threading.Lock()

    def around(self, backend: Backend) -> NastyPlace:
        """Lay this plan around a backend."""
        return NastyPlace(backend, self)

    def at(self, method: str, name: str) -> Fault:
        """Count a call; raise, or return the fault that shapes its answer."""
        with self._lock:
            fault = next((f for f in self.faults if f.strikes(method, name)), _NONE)
        if fault.kind == "fail":
            raise fault.failure()
        return fault

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        missed = [fault for fault in self.faults if not fault.hits]
        if kind is None and missed:
            raise FaultNeverHit(f"planned, but never hit: {missed}")


class NastyPlace:
    """A backend with a plan around it."""

    def __init__(self, backend: Backend, plan: Plan) -> None:
        self.backend = backend
        self.plan = plan

    def __repr__(self) -> str:
        return f"NastyPlace({self.backend!r})"

    @property
    def durable(self) -> bool:
        """As the backend."""
        return self.backend.durable

    @property
    def remote(self) -> bool:
        """As the backend."""
        return self.backend.remote

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Open, as planned."""
        fault = self.plan.at("open_reader", artifact_id)
        return fault.reader(self.backend.open_reader(fault.name(artifact_id)))

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Write, as planned."""
        fault = self.plan.at("write", artifact_id)
        if not fault.forgets():
            self.backend.write(artifact_id, fault.body(content_body))
        fault.answer()

    def remove(self, artifact_id: str) -> None:
        """Remove, as planned."""
        fault = self.plan.at("remove", artifact_id)
        self.backend.remove(artifact_id)
        fault.answer()

    def stat(self, name: str) -> Entry | None:
        """Look, as planned."""
        self.plan.at("stat", name)
        return self.backend.stat(name)

    def open_range(self, name: str, start: int, length: int) -> BinaryIO:
        """Open a range, as planned."""
        fault = self.plan.at("open_range", name)
        return fault.reader(self.backend.open_range(fault.name(name), start, length), length)

    def write_if_absent(self, name: str, content_body: BinaryIO) -> bool:
        """Write if absent, as planned."""
        fault = self.plan.at("write_if_absent", name)
        written = fault.forgets() or self.backend.write_if_absent(name, fault.body(content_body))
        fault.answer()
        return written

    def list(self, prefix: str) -> Iterator[Entry]:
        """List, as planned."""
        fault = self.plan.at("list", prefix)
        return fault.entries(self.backend.list(prefix))

    def list_folders(self, prefix: str) -> Iterator[str]:
        """List folders, as planned."""
        fault = self.plan.at("list_folders", prefix)
        return fault.entries(self.backend.list_folders(prefix))

    def move(self, source: str, target: str) -> None:
        """Move, as planned."""
        fault = self.plan.at("move", source)
        self.backend.move(source, target)
        fault.answer()
