"""What `import casartifacts` loads, and that every public name is there."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import TYPE_CHECKING

import optuna.artifacts
import pytest

import casartifacts

if TYPE_CHECKING:
    from pathlib import Path

# Loading any of these costs a second or more.
HEAVY = ["optuna", "optuna.artifacts", "boto3", "botocore", "google.cloud", "numpy", "sqlalchemy"]


def loaded_by(script: str) -> set[str]:
    """Return which of the heavy modules a fresh process has loaded after a script."""
    tell = f"\nimport sys; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    ran = subprocess.run(
        [sys.executable, "-c", script + tell], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return set(ran.stdout.split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded_by("import casartifacts, casartifacts.errors, casartifacts.protocols") == set()


def test_a_round_trip_through_a_store_that_exists_loads_nothing_heavy() -> None:
    """Workers that only read and write artifacts start without Optuna."""
    script = """
import io
from casartifacts import ArtifactCache, ContentStore, CorruptArtifact, MemoryArtifactStore
from casartifacts.records import StoreRecord
backend = MemoryArtifactStore()
backend.write("casartifacts.json", io.BytesIO(StoreRecord(durable=True).encode()))
store = ContentStore(backend)
for body in (b"small", bytes(3_000_000)):
    assert store.open_reader(store.add(io.BytesIO(body))).read() == body
"""
    assert loaded_by(script) == set()


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["ls", "--help"], ["ls"], ["upload", sys.executable], ["stat", "ARTIFACT"]],
    ids=" ".join,
)
def test_the_command_line_loads_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    store = casartifacts.open_store(tmp_path)
    artifact_id = store.add(io.BytesIO(b"abc"))
    words = ["casartifacts", *arguments]
    script = f"""
import os, sys
out, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)
os.dup2(null, 1)
os.environ["CASARTIFACTS_STORE"] = {str(tmp_path)!r}
sys.argv = {[artifact_id if word == "ARTIFACT" else word for word in words]!r}
from casartifacts.cli import main
try:
    main()
except SystemExit as ended:
    assert not ended.code
os.dup2(out, 1)
"""
    assert loaded_by(script) == set()


def test_what_is_heavy_is_noticed() -> None:
    assert {"optuna", "optuna.artifacts"} <= loaded_by(
        "import casartifacts; casartifacts.ArtifactMeta"
    )


@pytest.mark.parametrize("name", casartifacts.__all__)
def test_every_public_name_is_there(name: str) -> None:
    found = getattr(casartifacts, name)
    assert callable(found)
    assert getattr(casartifacts, name) is found
    assert name in dir(casartifacts)


def test_public_names_are_listed_once_and_hold_the_eight_of_optuna() -> None:
    assert casartifacts.__all__ == sorted(set(casartifacts.__all__))
    assert set(optuna.artifacts.__all__) <= set(casartifacts.__all__)
    assert casartifacts.ArtifactMeta is optuna.artifacts.ArtifactMeta
    assert casartifacts.ArtifactNotFound is optuna.artifacts.exceptions.ArtifactNotFound


def test_an_unknown_name_is_an_ordinary_error() -> None:
    with pytest.raises(AttributeError, match=r"module 'casartifacts' has no attribute 'Unknown'"):
        casartifacts.Unknown  # noqa: B018 -- looking it up is the test
    with pytest.raises(ImportError, match="Unknown"):
        exec("from casartifacts import Unknown", {})  # noqa: S102 -- an import that fails
    assert not hasattr(casartifacts.errors, "Unknown")
