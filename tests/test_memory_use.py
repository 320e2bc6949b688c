"""Memory is bounded by the pieces under way, not by the file: at most 64 MiB above import."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

MIB = 2**20
MOST = 64 * MIB

# Every MiB of the file begins with 64 KiB that no other has, so no two chunks or blobs are equal;
# the rest is a hole, which costs no disk.
_SCRIPT = """
import io, os, sys
from pathlib import Path
from blake3 import blake3
from casartifacts import ArtifactCache, ContentStore, FileSystemArtifactStore

folder, size, way = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]

def memory(which):
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(status[which].split()[0]) * 1024

class OnlyRead:
    def __init__(self, body):
        self.read = body.read

store = ContentStore(FileSystemArtifactStore(folder / "store", durable=False))
store.write("warm-up", io.BytesIO(b"small"))
store.download("warm-up", folder / "warm-up")
before = memory("VmRSS")

with open(folder / "file", "wb") as file:
    file.truncate(size)
    for at in range(0, size, 2**20):
        os.pwrite(file.fileno(), blake3(b"%d" % at).digest(length=2**16), at)
with open(folder / "file", "rb") as file:
    store.write("big", OnlyRead(file) if way == "spooled" else file)
if way == "next":  # a twelfth is new, the rest is leaned on
    with open(folder / "file", "r+b") as file:
        for at in range(0, size, 12 * 2**20):
            os.pwrite(file.fileno(), blake3(b"new %d" % at).digest(length=2**20), at)
    with open(folder / "file", "rb") as file:
        store.write("big", file)
up = memory("VmHWM")
if way == "reader":
    with store.open_reader("big") as reader:
        while reader.read(2**20):
            pass
else:
    if way == "cached":
        cache = ArtifactCache(folder / "cache", size_limit=2**40)
        store = ContentStore(store.backend, cache=cache)
    store.download("big", folder / "copy")
print(up - before, memory("VmHWM") - before)
"""

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process its peak")


def peaks(folder: Path, size: int, way: str) -> tuple[int, int]:
    """Return how much memory an upload, and a download after it, took at most."""
    ran = subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(folder), str(size), way],
        capture_output=True,
        text=True,
        check=True,
    )
    up, down = map(int, ran.stdout.split())
    return up, down


@linux
def test_256_mib_need_little_memory_up_and_down(tmp_path: Path) -> None:
    assert max(peaks(tmp_path, 256 * MIB, "plain")) <= MOST


@linux
@pytest.mark.parametrize("way", ["reader", "cached", "spooled", "next"])
def test_no_other_way_up_or_down_needs_more(tmp_path: Path, way: str) -> None:
    assert max(peaks(tmp_path, 96 * MIB, way)) <= MOST


@linux
@pytest.mark.slow
def test_a_near_duplicate_of_4_gib_needs_at_most_128_mib(tmp_path: Path) -> None:
    assert max(peaks(tmp_path, 4096 * MIB, "next")) <= 2 * MOST


@linux
@pytest.mark.slow
def test_2_gib_need_no_more(tmp_path: Path) -> None:
    assert max(peaks(tmp_path, 2048 * MIB, "plain")) <= MOST
