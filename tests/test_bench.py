"""The bench runs, counts, and says why it leaves a row out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from serving import Server

pytest_plugins = ["serving.fixtures"]

BENCH = Path(__file__).parent.parent / "tools" / "bench"


@pytest.mark.skipif(not hasattr(os, "sync"), reason="tools/bench needs a POSIX system")
def test_requests_are_counted_beside_optunas_and_a_server_that_is_not_there_is_a_row_that_says_so(
    gcs: Server, tmp_path: Path
) -> None:
    assert gcs.answers()  # else this is skipped: the bench starts its own
    sizes = ["--size", "2", "--large-remote", "2", "--small", "1", "--repeat", "1"]
    rows = ["--only", "s3 requests, 1 KiB up", "--only", "gcs requests"]
    finished = subprocess.run(
        [sys.executable, str(BENCH), "--dir", str(tmp_path), "--json", *sizes, *rows],
        env={**os.environ, "PATH": ""},  # so that Ceph cannot be found
        check=True,
        stdout=subprocess.PIPE,
    )
    told = json.loads(finished.stdout)
    found = {row["row"]: row for row in told["rows"]}
    assert "tools/servers install" in found["s3 requests, 1 KiB up"]["skipped"]
    counted = {
        name.removeprefix("gcs requests, "): (row["ours"]["requests"], row["theirs"]["requests"])
        for name, row in found.items()
        if "skipped" not in row
    }
    assert counted["duplicate, known here"] == (1, 1)
    assert counted["duplicate"] == (2, 1)
    assert counted["warm download"] == (0, 2)
    assert counted["1 KiB down"] == (2, 2)
    new = found["gcs requests, new file"]
    assert 0 < new["ours"]["more"] < 2**16
    assert new["ours"]["late_seconds"] >= 3 * 0.03  # manifest, blob and ref, one after the other
    assert all(row["ok"] for row in found.values() if "skipped" not in row)
    assert not list(tmp_path.iterdir())
