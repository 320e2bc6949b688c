"""Rule K with near-duplicates, at the level of requests: what is acknowledged is never collected.

A world is a bucket, two processes that store near-duplicates in it, a clock that jumps by up to two
hours at any request, and a collector that at any request deletes whatever nothing names and has no
answer of the last hour. The next rooms (collection, `prune`) are built on this rule.
"""

from __future__ import annotations

import io
import random
import threading
from typing import TYPE_CHECKING, BinaryIO, TypeVar

import pytest

from casartifacts import ContentStore, MemoryArtifactStore, names
from casartifacts.errors import CasartifactsError
from casartifacts.manifest import Manifest
from casartifacts.records import Ref

if TYPE_CHECKING:
    from collections.abc import Callable

    from casartifacts.protocols import Backend, Entry

HOUR = 3600.0

_T = TypeVar("_T")


class World(MemoryArtifactStore):
    """A bucket whose collector takes what rule K lets it take, as soon as it may.

    Args:
        chance: What happens.
        jumps: How likely the clock jumps at a request.
    """

    remote = True

    def __init__(self, chance: random.Random, *, jumps: float) -> None:
        super().__init__()
        self.now = 0.0
        self.collected = 0
        self._chance = chance
        self._jumps = jumps
        self._answered: dict[str, float] = {}
        self._at_once = threading.RLock()

    def stat(self, name: str) -> Entry | None:
        return self._request(name, lambda: super(World, self).stat(name))

    def write(self, name: str, content_body: BinaryIO) -> None:
        def write() -> bool:
            super(World, self).write(name, content_body)
            return True

        self._request(name, write)

    def write_if_absent(self, name: str, content_body: BinaryIO) -> bool:
        return self._request(name, lambda: super(World, self).write_if_absent(name, content_body))

    def open_reader(self, name: str) -> BinaryIO:
        self._pass()
        return super().open_reader(name)

    def _request(self, name: str, act: Callable[[], _T]) -> _T:
        with self._at_once:
            asked_at = self.now
            self._pass()
            answer = act()
            if answer:
                self._answered[name] = asked_at
            self._pass()
            return answer

    def _pass(self) -> None:
        with self._at_once:
            self.now += self._chance.random()
            if self._chance.random() < self._jumps:
                self.now += self._chance.choice([0.5 * HOUR, HOUR - 1, HOUR + 100, 2 * HOUR])
                if self._chance.random() < 0.6:
                    self.collect()

    def collect(self) -> None:
        """Delete what nothing names and nobody was told of within the hour; manifests first."""
        with self._at_once:
            bodies = {entry.name: self._body(entry.name) for entry in list(self.list(""))}
            refs = [
                Ref.decode_any(body, name)
                for name, body in bodies.items()
                if name.startswith("refs/")
            ]
            needed = {names.blob(str(ref.digest)) for ref in refs}
            needed |= {names.manifest(str(ref.digest)) for ref in refs}
            self._drop("manifests/", needed)
            for entry in list(self.list("manifests/")):
                digest = entry.name.rpartition("/")[2]
                manifest = Manifest.decode(bodies[entry.name], digest=digest)
                needed |= {names.blob(digest) for digest, _ in manifest.blobs}
            self._drop("blobs/", needed)

    def _body(self, name: str) -> bytes:
        with super().open_reader(name) as reader:
            return reader.read()

    def _drop(self, prefix: str, needed: set[str]) -> None:
        for entry in list(self.list(prefix)):
            age = self.now - self._answered.get(entry.name, float("-inf"))
            if entry.name not in needed and age > HOUR:
                self.remove(entry.name)
                self.collected += 1


def next_of(body: bytes, chance: random.Random) -> bytes:
    changed = bytearray(body)
    for _ in range(chance.randint(1, 4)):
        at = chance.randint(0, len(changed))
        match chance.choice(["insert", "delete", "overwrite", "repeat"]):
            case "insert":
                changed[at:at] = chance.randbytes(chance.randint(1, 2000))
            case "delete":
                del changed[at : at + chance.randint(1, 1500)]
            case "overwrite":
                new = chance.randbytes(chance.randint(1, 800))
                changed[at : at + len(new)] = new
            case "repeat":
                begin = chance.randint(0, len(changed))
                changed[at:at] = changed[begin : begin + chance.randint(1, 6000)]
    return bytes(changed) or b"x"


class TestWorlds:
    """In a class, so that the tiny store is made once."""

    @pytest.mark.parametrize("jumps", [0.01, 0.03, 0.1])
    def test_what_is_acknowledged_stays(
        self, tiny: Callable[[Backend], ContentStore], jumps: float
    ) -> None:
        """An upload may give up, loudly; one that succeeded is there, whatever is collected."""
        acknowledged = given_up = collected = 0
        for seed in range(40):
            chance = random.Random(f"{seed} {jumps}")
            world = World(chance, jumps=jumps)
            processes = [tiny(world), tiny(world)]
            for process in processes:
                process._knowledge.now = lambda world=world: world.now  # type: ignore[misc]  # the clock that jumps
            body = chance.randbytes(chance.randint(1500, 30_000))
            stored: dict[str, bytes] = {}
            for _ in range(8):
                if chance.random() < 0.8:
                    body = next_of(body, chance)
                try:
                    artifact_id = chance.choice(processes).add(io.BytesIO(body), filename="model")
                except CasartifactsError:
                    given_up += 1
                    continue
                stored[artifact_id] = body
                world.collect()
                acknowledged += 1
            collected += world.collected
            for artifact_id, expected in stored.items():
                with processes[0].open_reader(artifact_id) as reader:
                    assert reader.read() == expected, f"seed {seed}"
        assert acknowledged > 200
        assert collected > 0
        assert given_up < acknowledged / 4
