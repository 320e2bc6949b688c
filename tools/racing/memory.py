"""Peak memory: each job in a process of its own, started by `tools/bench --peak`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from racing.jobs import add, fetch, optuna_store, own_store, write
from racing.rows import Skipped

__all__ = ["do_and_print_peak", "peak"]

_BENCH = Path(__file__).parents[1] / "bench"


def peak(job: str, file: Path, where: Path | str, artifact_id: str = "") -> float:
    """Do a job in a process of its own; return its peak memory above its imports, in MiB."""
    if not Path("/proc/self/status").exists():
        raise Skipped("peak memory is read from /proc")
    command = [sys.executable, str(_BENCH), "--peak", job, str(file), str(where), artifact_id]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def do_and_print_peak(job: str, file: str, where: str, artifact_id: str) -> None:
    """Do the job that `peak` asked this process for."""
    place = where if "://" in where else Path(where)
    # Both, so that what one of them loads is not charged to the other. A client is made with its
    # store, so it counts as an import.
    theirs, ours = optuna_store(place), own_store(place)
    before = _memory("VmRSS")
    if job == "up":
        add(ours, Path(file))
    elif job == "up-optuna":
        write(theirs, Path(file))
    elif job == "down":
        ours.download(artifact_id, file)
    else:
        fetch(theirs, artifact_id, Path(file))
    print(_memory("VmHWM") - before)


def _memory(name: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 2**10
