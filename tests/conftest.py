"""What several test files stand on: places of a special kind, and how random tests run.

Rule 1: a fixture that this machine cannot give skips its test and says why.
Rule 2: soaks (`-m slow`) run only when they are asked for.
"""

from __future__ import annotations

import importlib
import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from casartifacts import matching, names, planning, reading, scanning
from casartifacts.chunking import ChunkerParameters
from casartifacts.records import StoreRecord
from casartifacts.store import ContentStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casartifacts.protocols import Backend

# No deadline: machines that run tests are shared. What fails is printed with its seed.
settings.register_profile(
    "casartifacts",
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("casartifacts")

# `nobody`, on Linux and macOS alike what owns nothing.
_NOBODY = 65534

# As in a large content, one that is leaned on has a few ranges.
TINY_BOUNDS = matching.Bounds(shortest=150, least_of_content=0.01)

SMALL_DISK = 2 * 2**20
"""The size of `small_disk` in bytes."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is slow unless markers are asked for."""
    if config.option.markexpr:
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if item not in slow]


@pytest.fixture(scope="class")  # so that random tests may use it
def tiny() -> Iterator[Callable[[Backend], ContentStore]]:
    """Makes stores in which 1,001 bytes are a large content, and 10,000 are several blobs."""

    def make(backend: Backend) -> ContentStore:
        record = StoreRecord(
            durable=backend.durable,
            small_content_limit=1000,
            chunker=ChunkerParameters(minimum=64, average=256, maximum=1024),
        )
        backend.write_if_absent(names.STORE_RECORD, io.BytesIO(record.encode()))
        return ContentStore(backend)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "BLOB_LIMIT", 4096)
        patch.setattr(planning, "_WINDOW_SIZE", 3000)
        patch.setattr(planning, "BOUNDS", TINY_BOUNDS)
        patch.setattr(scanning, "_WINDOW_SIZE", 3000)
        patch.setattr(matching, "_SAMPLED", 500)
        patch.setattr(matching, "_SHORTEST_SAMPLE", 64)
        patch.setattr(reading, "_PIECE_SIZE", 2000)
        yield make


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own of 2 MiB."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root on Linux can mount a small tmpfs")
    folder = tmp_path / "small disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def without_privileges() -> Iterator[Path]:
    """A folder of the user without privileges as whom the test runs: permissions bind."""
    if not hasattr(os, "geteuid"):
        pytest.skip("this system has no permission bits")
    # The first `ArtifactNotFound` loads it, and another user may not be able to.
    importlib.import_module("optuna.artifacts.exceptions")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if os.geteuid():
            yield folder
            _give_back(folder)
            return
        os.chown(folder, _NOBODY, _NOBODY)
        try:
            os.seteuid(_NOBODY)
        except OSError as error:
            pytest.skip(f"root cannot become another user here: {error}")
        try:
            if not os.access(folder, os.W_OK, effective_ids=True):
                pytest.skip(f"other users may not enter {folder.parent}; set TMPDIR")
            yield folder
        finally:
            os.seteuid(0)
            _give_back(folder)


def _give_back(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
