"""Optuna's own artifact tests pass on our names, for each version that we promise to work with."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

RUNNER = str(Path(__file__).parent.parent / "tools" / "optuna_suite")

NO_SOURCE = 2

# What the tests import of the eight names; `ArtifactMeta` they only get.
SEEN = [
    "Backoff",
    "Boto3ArtifactStore",
    "FileSystemArtifactStore",
    "GCSArtifactStore",
    "download_artifact",
    "get_all_artifact_meta",
    "upload_artifact",
]


@pytest.mark.parametrize(
    ("version", "tests"),
    # The test of path traversal came with 4.8.
    [("4.0.0", 24), ("4.9.0", 25), ("5.0.0", 25)],
)
@pytest.mark.skipif(importlib.util.find_spec("moto") is None, reason="moto is not installed")
def test_optuna_s_own_artifact_tests_pass_on_our_names(version: str, tests: int) -> None:
    command = [sys.executable, RUNNER, version]
    finished = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if finished.returncode == NO_SOURCE and "CI" not in os.environ:
        pytest.skip(f"the source distribution of optuna {version} cannot be had here")
    told = re.search(
        rf"^optuna {re.escape(version)}: (.*); with our (.*)$", finished.stdout, re.MULTILINE
    )
    assert told is not None, finished.stdout
    assert told[1] == f"{tests} passed, 0 failed, 0 skipped", finished.stdout
    assert told[2].split(", ") == SEEN, finished.stdout
    assert finished.returncode == 0, finished.stdout
