"""The cache keeps to its limit, serves only what is right, and never fails.

Rule 1: what is wrong is made wrong for real: files and rows are altered behind the cache's back.
Rule 2: sizes are measured on the real folder.
"""

from __future__ import annotations

import logging
import os
import pickle
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diskcache
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from casartifacts import cache as cache_module
from casartifacts.cache import ArtifactCache, CacheUnavailable, Slot
from casartifacts.digest import digest_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LIMIT = 10_000


def keep(cache: ArtifactCache, body: bytes) -> bool:
    """Bring a content in as the store does; tell whether the cache took it."""
    with cache.admit(digest_of(body), size=len(body)) as slot:
        if slot is None:
            return False
        slot.write_at(body, 0)
        with slot.publish() as file:
            assert file.read() == body
        return True


def read(cache: ArtifactCache, digest: str) -> bytes | None:
    file = cache.open(digest)
    if file is None:
        return None
    with file:
        return file.read()


def file_of(folder: Path, digest: str) -> Path:
    (path,) = (folder / "contents").glob(f"*/{digest}-*")
    return path


def overwrite(path: Path, body: bytes) -> None:
    """Write into a file where it lies, as a disk or a program gone wrong does."""
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.write(body)
        file.truncate()


def bytes_in(folder: Path) -> int:
    """Add up what the limit is about: contents, files being filled, contents put aside."""
    files = [
        *folder.glob("contents/*/*"),
        *folder.glob("tmp/*"),
        *(path for path in folder.glob("damaged/*") if not path.name.startswith("cache.db")),
    ]
    return sum(path.lstat().st_size for path in files if path.is_file() and not path.is_symlink())


@contextmanager
def rows(folder: Path) -> Iterator[sqlite3.Connection]:
    """Open the database behind the cache's back."""
    with closing(sqlite3.connect(folder / "cache.db", isolation_level=None)) as connection:
        yield connection


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


# Contents against a model


class Contents(RuleBasedStateMachine):
    """A cache in a folder that is tampered with agrees with a dict: the same hits, the same room.

    `held` has the contents by age. `wrong` says of a tampered one how many bytes its file has, or
    None if it has no file that can be put aside. `aside` has the sizes of what was put aside.
    """

    def __init__(self) -> None:
        super().__init__()
        self.place = tempfile.TemporaryDirectory()
        self.folder = Path(self.place.name, "cache")
        self.cache = ArtifactCache(self.folder, size_limit=LIMIT)
        self.bodies: dict[str, bytes] = {}
        self.held: dict[str, int] = {}
        self.wrong: dict[str, int | None] = {}
        self.aside: list[int] = []

    def teardown(self) -> None:
        self.cache.close()
        self.place.cleanup()

    def pick(self, choice: int) -> str:
        return sorted(self.held)[choice % len(self.held)]

    @rule(size=st.integers(0, 5_000) | st.integers(5_000, LIMIT + 1), seed=st.integers(0, 3))
    def keep(self, size: int, seed: int) -> None:
        body = random.Random(f"{size} {seed}").randbytes(size)
        digest = digest_of(body)
        self.bodies[digest] = body
        is_kept = size <= LIMIT
        assert keep(self.cache, body) is is_kept
        if not is_kept:
            return
        excess = sum(self.held.values()) + sum(self.aside) + size - LIMIT
        while excess > 0 and self.aside:
            excess -= self.aside.pop(0)
        while excess > 0:
            oldest = next(iter(self.held))
            excess -= self.held.pop(oldest)
            self.wrong.pop(oldest, None)
        self.held.pop(digest, None)
        self.wrong.pop(digest, None)
        self.held[digest] = size

    @rule(choice=st.integers(0))
    @precondition(lambda self: self.bodies)
    def open(self, choice: int) -> None:
        digest = sorted(self.bodies)[choice % len(self.bodies)]
        is_hit = digest in self.held and digest not in self.wrong
        assert read(self.cache, digest) == (self.bodies[digest] if is_hit else None)
        if digest in self.wrong:
            del self.held[digest]
            if (size := self.wrong.pop(digest)) is not None:
                self.aside = [*self.aside, size][-4:]

    @rule(choice=st.integers(0))
    @precondition(lambda self: self.held)
    def forget(self, choice: int) -> None:
        digest = self.pick(choice)
        self.cache.forget(digest)
        del self.held[digest]
        self.wrong.pop(digest, None)

    @rule()
    def reopen(self) -> None:
        self.cache.close()
        self.cache = pickle.loads(pickle.dumps(self.cache))

    @rule(choice=st.integers(0), where=st.integers(0))
    @precondition(lambda self: self.held)
    def corrupt(self, choice: int, where: int) -> None:
        digest = self.pick(choice)
        if digest in self.wrong or not self.held[digest]:
            return
        body = bytearray(self.bodies[digest])
        body[where % len(body)] ^= 1
        overwrite(file_of(self.folder, digest), body)
        self.wrong[digest] = len(body)

    @rule(choice=st.integers(0), left=st.integers(0))
    @precondition(lambda self: self.held)
    def truncate(self, choice: int, left: int) -> None:
        digest = self.pick(choice)
        if digest in self.wrong or not self.held[digest]:
            return
        left %= self.held[digest]
        overwrite(file_of(self.folder, digest), self.bodies[digest][:left])
        self.wrong[digest] = left

    @rule(choice=st.integers(0), instead=st.sampled_from(["nothing", "symlink", "folder", "fifo"]))
    @precondition(lambda self: self.held)
    def replace(self, choice: int, instead: str) -> None:
        digest = self.pick(choice)
        if digest in self.wrong:
            return
        path = file_of(self.folder, digest)
        path.rename(target := self.folder.with_name("elsewhere"))
        if instead == "symlink":
            path.symlink_to(target)
        elif instead == "folder":
            path.mkdir()
        elif instead == "fifo":
            os.mkfifo(path)
        # What is neither file nor folder counts for nothing and stays until its row goes.
        self.wrong[digest] = None

    @rule(choice=st.integers(0), is_copied=st.booleans())
    @precondition(lambda self: self.held)
    def touch(self, choice: int, is_copied: bool) -> None:
        digest = self.pick(choice)
        if digest in self.wrong:
            return
        path = file_of(self.folder, digest)
        if is_copied:
            copy = shutil.copy(path, self.folder.with_name("copy"))
            path.unlink()
            Path(copy).rename(path)
        else:
            os.utime(path)
        # Verified again when it is next opened, and young from then on.
        assert read(self.cache, digest) == self.bodies[digest]
        self.held[digest] = self.held.pop(digest)

    @invariant()
    def keeps_to_its_limit(self) -> None:
        assert self.cache.volume() == sum(self.held.values())
        assert bytes_in(self.folder) <= LIMIT
        assert not self.folder.exists() or not list(self.folder.glob("tmp/*"))
        put_aside = self.folder.glob("damaged/*")
        assert sorted(self.aside) == sorted(path.lstat().st_size for path in put_aside)


TestContents = Contents.TestCase
TestContents.settings = settings(max_examples=60, stateful_step_count=30)
