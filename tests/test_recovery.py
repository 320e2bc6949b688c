"""Every artifact can be recovered with a shell and `jq` alone, as the README says."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from blake3 import blake3

from casartifacts import names
from casartifacts.backends.filesystem import FileSystemArtifactStore
from casartifacts.records import SMALL_CONTENT_LIMIT
from casartifacts.store import ContentStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from casartifacts.protocols import Backend

    Tiny = Callable[[Backend], ContentStore]

SIZES = [0, 1, SMALL_CONTENT_LIMIT, SMALL_CONTENT_LIMIT + 1, 3_000_000]
TINY_SIZES = [0, 1, 1000, 1001, 30_000]
README = Path(__file__).parent.parent / "README.md"


def steps() -> list[str]:
    """Return the lines of shell that the README gives for recovery."""
    blocks = re.findall(r"```bash\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    [block] = [str(block) for block in blocks if "jq -r .digest" in block]
    return block.splitlines()


def shell(lines: list[str], folder: Path) -> str:
    ran = subprocess.run(
        ["bash", "-euc", "\n".join(lines)], cwd=folder, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def recover_with_jq(folder: Path, ref: str) -> bytes:
    lines = [line for line in steps() if not line.startswith(("grep", "echo"))]
    [place] = [number for number, line in enumerate(lines) if line.startswith("ref=")]
    lines[place] = f"ref={ref}"
    shell(lines, folder)
    return (folder / "restored").read_bytes()


def recover_with_python(folder: Path, ref: str) -> bytes:
    """Do the same by the words of the format, with nothing but the standard library."""
    found = json.loads((folder / ref).read_bytes())
    limit = json.loads((folder / "casartifacts.json").read_bytes())["small_content_limit"]
    digest = str(found["digest"])
    if found["size"] <= limit:
        return (folder / "blobs" / digest[:2] / digest).read_bytes()
    with (folder / "manifests" / digest[:2] / digest).open("rb") as file:
        head = json.loads(file.readline())
    content = b""
    for index, start, length in head["segments"]:
        blob = head["blobs"][index][0]
        content += (folder / "blobs" / blob[:2] / blob).read_bytes()[start : start + length]
    return content


def fill(store: ContentStore, sizes: list[int]) -> dict[str, bytes]:
    """Store a content of each size; returns them by where their refs lie."""
    contents = {}
    for size in sizes:
        content = blake3(b"recovery").digest(length=size) if size else b""
        artifact_id = store.add(io.BytesIO(content), filename=f"{size}.ckpt")
        contents[names.ref(artifact_id)] = content
    store.write(f"optuna/{artifact_id}", io.BytesIO(content))
    contents[names.ref(f"optuna/{artifact_id}")] = content
    return contents


@pytest.mark.parametrize(
    "recover",
    [
        pytest.param(
            recover_with_jq,
            marks=pytest.mark.skipif(
                not (shutil.which("jq") and shutil.which("bash")),
                reason="jq or bash is not installed",
            ),
        ),
        recover_with_python,
    ],
)
@pytest.mark.parametrize("is_tiny", [False, True], ids=["one blob", "many blobs"])
def test_every_artifact_is_recovered_without_our_software(
    tiny: Tiny,
    tmp_path: Path,
    recover: Callable[[Path, str], bytes],
    *,
    is_tiny: bool,
) -> None:
    backend = FileSystemArtifactStore(tmp_path, durable=False)
    store = tiny(backend) if is_tiny else ContentStore(backend)
    contents = fill(store, TINY_SIZES if is_tiny else SIZES)
    for ref, content in contents.items():
        assert recover(tmp_path, ref) == content


@pytest.mark.skipif(not shutil.which("bash"), reason="bash is not installed")
def test_the_ref_of_a_file_name_is_found_as_the_readme_says(tmp_path: Path) -> None:
    store = ContentStore(FileSystemArtifactStore(tmp_path, durable=False))
    fill(store, [1, 2])
    artifact_id = store.add(io.BytesIO(b"x"), filename="best.ckpt")
    find = [line for line in steps() if line.startswith("grep")]
    assert shell(find, tmp_path).split() == [names.ref(artifact_id)]


@pytest.mark.skipif(not shutil.which("b3sum"), reason="b3sum is not installed")
def test_digests_are_what_b3sum_prints(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    store = ContentStore(FileSystemArtifactStore(tmp_path / "store", durable=False))
    digest = store.stat(store.add(io.BytesIO(b"abc"))).digest
    assert shell(["b3sum file"], tmp_path).split()[0] == digest
