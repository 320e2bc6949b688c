"""Rows on servers: ours against Optuna's own stores, on the same server and over the same link.

S3 is Ceph's gateway, GCS is fake-gcs-server, both with their objects in memory. Clients are made
without arguments, as most users make them; each side has one of its own for each sample.

Rule 1: each sample begins with what it needs in the bucket and nothing else. Uploads begin with a
store that has taken a small artifact before, so that neither side is charged for its first
connection; downloads, timed, begin with nothing.
Rule 2: 0 ms is without a proxy where it is timed; where requests are counted, always through it.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from racing.jobs import (
    add,
    add_bytes,
    fetch,
    optuna_store,
    own_store,
    write,
    write_bytes,
)
from racing.memory import peak
from racing.remote import LATE, SLOW, SWIFT, Link, Remote
from racing.rows import SMALL_SIZE, Bound, Passed, Place, row

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from serving import Exchange

    from casartifacts import ContentStore
    from racing.rows import Side

    # Prepares an operation over a link, given an empty folder, and returns it.
    Operation = Callable[[Place, Remote, Link, Path], Callable[[], object]]

__all__ = ["load"]

# What lives as long as a row, and what the next sample throws away.
_SHARED, _SAMPLE = "shared", "sample"

_PEAK = Bound(plus=96)

# How often the file goes to a server before the first sample, so that its memory has been touched.
_LOADS = 2


# Times, on Ceph


@row("s3, exact duplicate", reference="Optuna", bound=Bound(0.1), server="ceph")
def _(place: Place, _: Path) -> tuple[Side, Side]:
    return _duplicate(place, None)


@row("s3, exact duplicate, 30 ms", reference="Optuna", bound=Bound(0.15), server="ceph")
def _(place: Place, _: Path) -> tuple[Side, Side]:
    return _duplicate(place, LATE)


@row("s3, new file", reference="Optuna", server="ceph")
def _(place: Place, _: Path) -> tuple[Side, Side]:
    return _uploads(place, place.servers.get("ceph"), None, prefix=_SAMPLE)


@row("s3, new file, 30 ms and 1 Gbit/s", reference="Optuna", bound=Bound(1.0), server="ceph")
def _(place: Place, _: Path) -> tuple[Side, Side]:
    return _uploads(place, place.servers.get("ceph"), SLOW, prefix=_SAMPLE)


@row("s3, cold download, no cache", reference="Optuna", bound=Bound(0.8), server="ceph")
def _(place: Place, _: Path) -> tuple[Side, Side]:
    return _downloads(place, cached=False, link=None)


@row("s3, cold download into a cache", reference="Optuna", server="ceph")
def _(place: Place, _: Path) -> tuple[Side, Side]:
    return _downloads(place, cached=True, link=None)


@row("s3, cold download, 30 ms and 1 Gbit/s", reference="Optuna", server="ceph")
def _(place: Place, _: Path) -> tuple[Side, Side]:
    return _downloads(place, cached=False, link=SLOW)


@row("s3, warm download", reference="Optuna", server="ceph")
def _(place: Place, shared: Path) -> tuple[Side, Side]:
    remote = place.servers.get("ceph")
    cache = shared / "cache"
    artifact_id = add(own_store(remote.url(_SHARED)), place.file)
    own_store(remote.url(_SHARED), cache=cache).download(artifact_id, shared / "copy")
    written = write(optuna_store(remote.url("")), place.file, prefix=f"{_SHARED}/")

    def ours(folder: Path) -> Callable[[], object]:
        store = own_store(remote.url(_SHARED), cache=cache)
        return partial(store.download, artifact_id, folder / "copy")

    return ours, lambda folder: partial(
        fetch, optuna_store(remote.url("")), written, folder / "copy"
    )


def _duplicate(place: Place, link: Link | None) -> tuple[Side, Side]:
    remote = place.servers.get("ceph")
    add(own_store(remote.url(_SHARED)), place.file)
    return _uploads(place, remote, link, prefix=_SHARED)


def _uploads(place: Place, remote: Remote, link: Link | None, *, prefix: str) -> tuple[Side, Side]:
    def ours(_: Path) -> Callable[[], object]:
        remote.empty(_SAMPLE)
        return partial(add, _begun(remote, link, prefix), place.file)

    def theirs(_: Path) -> Callable[[], object]:
        remote.empty(_SAMPLE)
        return partial(write, _begun_optuna(remote, link), place.file, prefix=f"{_SAMPLE}/")

    return ours, theirs


def _downloads(place: Place, *, cached: bool, link: Link | None) -> tuple[Side, Side]:
    remote = place.servers.get("ceph")
    artifact_id = add(own_store(remote.url(_SHARED)), place.file)
    written = write(optuna_store(remote.url("")), place.file, prefix=f"{_SHARED}/")

    def ours(folder: Path) -> Callable[[], object]:
        remote.reach(link)
        store = own_store(remote.url(_SHARED), cache=folder / "cache" if cached else None)
        # The cache is there and open, but has nothing.
        if store.cache is not None and store.cache.volume():
            raise RuntimeError(f"{store} should have an empty cache")
        return partial(store.download, artifact_id, folder / "copy")

    def theirs(folder: Path) -> Callable[[], object]:
        remote.reach(link)
        return partial(fetch, optuna_store(remote.url("")), written, folder / "copy")

    return ours, theirs


# Requests, on both: each operation is prepared in an empty bucket, then done over the link.


def _known_duplicate(place: Place, remote: Remote, link: Link, _: Path) -> Callable[[], object]:
    store = _begun(remote, link, _SAMPLE)
    add(store, place.file)
    return partial(add, store, place.file)


def _other_duplicate(place: Place, remote: Remote, link: Link, _: Path) -> Callable[[], object]:
    add(own_store(remote.url(_SAMPLE)), place.file)
    return partial(add, _begun(remote, link, _SAMPLE), place.file)


def _new(place: Place, remote: Remote, link: Link, _: Path) -> Callable[[], object]:
    return partial(add, _begun(remote, link, _SAMPLE), place.file)


def _cold(place: Place, remote: Remote, link: Link, folder: Path) -> Callable[[], object]:
    artifact_id = add(own_store(remote.url(_SAMPLE)), place.file)
    store = _begun(remote, link, _SAMPLE, cache=folder / "cache")
    return partial(store.download, artifact_id, folder / "copy")


def _warm(place: Place, remote: Remote, link: Link, folder: Path) -> Callable[[], object]:
    cache = folder / "cache"
    artifact_id = add(own_store(remote.url(_SAMPLE)), place.file)
    own_store(remote.url(_SAMPLE), cache=cache).download(artifact_id, folder / "cold")
    remote.reach(link)
    # As in a fresh process: this store has asked for nothing yet.
    return partial(
        own_store(remote.url(_SAMPLE), cache=cache).download, artifact_id, folder / "copy"
    )


def _small_up(_place: Place, remote: Remote, link: Link, _: Path) -> Callable[[], object]:
    return partial(add_bytes, _begun(remote, link, _SAMPLE), _small())


def _small_down(_place: Place, remote: Remote, link: Link, folder: Path) -> Callable[[], object]:
    artifact_id = add_bytes(own_store(remote.url(_SAMPLE)), _small())
    store = _begun(remote, link, _SAMPLE)
    return partial(store.download, artifact_id, folder / "copy")


def _optuna_up(place: Place, remote: Remote, link: Link, _: Path) -> Callable[[], object]:
    return partial(write, _begun_optuna(remote, link), place.file)


def _optuna_down(place: Place, remote: Remote, link: Link, folder: Path) -> Callable[[], object]:
    written = write(optuna_store(remote.url("")), place.file)
    return partial(fetch, _begun_optuna(remote, link), written, folder / "copy")


def _optuna_small_up(_place: Place, remote: Remote, link: Link, _: Path) -> Callable[[], object]:
    return partial(write_bytes, _begun_optuna(remote, link), _small())


def _optuna_small_down(
    _place: Place, remote: Remote, link: Link, folder: Path
) -> Callable[[], object]:
    written = write_bytes(optuna_store(remote.url("")), _small())
    return partial(fetch, _begun_optuna(remote, link), written, folder / "copy")


_OPERATIONS: dict[str, tuple[Operation, Operation, Bound]] = {
    "duplicate, known here": (_known_duplicate, _optuna_up, Bound(plus=1)),
    "duplicate": (_other_duplicate, _optuna_up, Bound(plus=2)),
    "new file": (_new, _optuna_up, Bound(plus=12, twice=False)),
    "cold download": (_cold, _optuna_down, Bound(plus=2, beside_ranges=True)),
    "warm download": (_warm, _optuna_down, Bound()),
    "1 KiB up": (_small_up, _optuna_small_up, Bound(plus=3)),
    "1 KiB down": (_small_down, _optuna_small_down, Bound(plus=2)),
}


def _counting(
    operations: tuple[Operation, Operation], server: str, place: Place, _: Path
) -> tuple[Side, Side]:
    remote = place.servers.get(server)

    def side(operation: Operation) -> Side:
        return lambda folder: partial(_count, operation, place, remote, folder)

    return side(operations[0]), side(operations[1])


def _count(operation: Operation, place: Place, remote: Remote, folder: Path) -> Passed:
    told = []
    for name, link in (("swift", SWIFT), ("late", LATE)):
        remote.empty()
        (folder / name).mkdir()
        told.append(remote.count(operation(place, remote, link, folder / name)))
    (swift, seconds), (late, late_seconds) = told
    most = max(swift, late, key=lambda counts: counts.requests.total())
    return Passed(
        requests=most.requests.total(),
        methods=dict(most.requests),
        ranges=sum(map(_is_range, most.exchanges)),
        sent=max(swift.sent, late.sent),
        received=max(swift.received, late.received),
        more=max(swift.sent_bodies, late.sent_bodies) - place.file.stat().st_size,
        round_trips=max(swift.round_trips, late.round_trips),
        seconds=seconds,
        late_seconds=late_seconds,
    )


def _is_range(exchange: Exchange) -> bool:
    return exchange.method == "GET" and "/blobs/" in unquote(exchange.target)


for _kind, _server in (("s3", "ceph"), ("gcs", "gcs")):
    for _name, (_ours, _theirs, _bound) in _OPERATIONS.items():
        row(
            f"{_kind} requests, {_name}",
            reference="Optuna",
            bound=_bound,
            unit="requests",
            server=_server,
        )(partial(_counting, (_ours, _theirs), _server))


# Peak memory, on both


def _peak_up(server: str, place: Place, _: Path) -> tuple[Side, Side]:
    remote = place.servers.get(server)
    file = place.large_remote
    return (
        lambda _: partial(peak, "up", file, remote.url(_SAMPLE)),
        lambda _: partial(peak, "up-optuna", file, remote.url("")),
    )


def _peak_down(server: str, place: Place, _: Path) -> tuple[Side, Side]:
    remote = place.servers.get(server)

    def ours(folder: Path) -> Callable[[], object]:
        remote.empty()
        artifact_id = add(own_store(remote.url(_SAMPLE)), place.large_remote)
        return partial(peak, "down", folder / "copy", remote.url(_SAMPLE), artifact_id)

    def theirs(folder: Path) -> Callable[[], object]:
        remote.empty()
        # By our own store, alone: it keeps an object as it is, and in little memory.
        artifact_id = remote.put(place.large_remote)
        return partial(peak, "down-optuna", folder / "copy", remote.url(""), artifact_id)

    return ours, theirs


for _kind, _server in (("s3", "ceph"), ("gcs", "gcs")):
    for _way, _sides in (("up", _peak_up), ("down", _peak_down)):
        row(
            f"{_kind} peak memory, large file {_way}",
            reference="Optuna",
            bound=_PEAK,
            unit="MiB",
            server=_server,
        )(partial(_sides, _server))


# What they share


def load(place: Place, name: str, folder: Path) -> None:
    """Do everything once on this server, as often as its memory is to be touched."""
    remote = place.servers.get(name)
    for number in range(_LOADS):
        artifact_id = add(own_store(remote.url(f"{_SAMPLE}-{number}")), place.file)
        written = write(optuna_store(remote.url("")), place.file)
    own_store(remote.url(f"{_SAMPLE}-{number}")).download(artifact_id, folder / "ours")
    fetch(optuna_store(remote.url("")), written, folder / "theirs")


def _begun(
    remote: Remote, link: Link | None, prefix: str, *, cache: Path | None = None
) -> ContentStore:
    """Make a store that has been used before, but not for what is raced."""
    remote.reach(link)
    store = own_store(remote.url(prefix), cache=cache)
    add_bytes(store, _small())
    return store


def _begun_optuna(remote: Remote, link: Link | None) -> Any:
    remote.reach(link)
    store = optuna_store(remote.url(""))
    write_bytes(store, _small(), prefix=f"{_SAMPLE}/")
    return store


def _small() -> bytes:
    return os.urandom(SMALL_SIZE)
