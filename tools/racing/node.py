"""Rows on many processes of one node that share a cache."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from node.readers import Download, end, start

from racing.jobs import add, own_store
from racing.rows import MIB, Bound, Place, row

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from racing.rows import Side

__all__: list[str] = []

_PROCESSES = 32
_SIZE = 64 * MIB


@row("32 processes want one cold 64 MiB", reference="a fetch, 32 copies", bound=Bound(1.5))
def _(place: Place, shared: Path) -> tuple[Side, Side]:
    file = shared / "file"
    with place.file.open("rb") as body:
        file.write_bytes(body.read(_SIZE))
    artifact_id = add(own_store(shared / "store"), file)

    def ours(folder: Path) -> Callable[[], object]:
        job = Download(
            store=own_store(shared / "store", cache=folder / "cache"),
            artifact_id=artifact_id,
            folder=folder,
        )
        running, together = start(job, processes=_PROCESSES)

        def download() -> None:
            together.wait(60)
            end(running)
            if any(process.exitcode for process in running):
                raise RuntimeError("a download failed")

        return download

    def theirs(folder: Path) -> Callable[[], object]:
        store = own_store(shared / "store", cache=folder / "cache")

        def fetch_and_copy() -> None:
            store.download(artifact_id, folder / "0")
            for number in range(1, _PROCESSES + 1):
                shutil.copyfile(folder / "0", folder / str(number))

        return fetch_and_copy

    return ours, theirs
