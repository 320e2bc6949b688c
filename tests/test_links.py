"""A download as a link: the verified file itself, or else a private copy; never other bytes."""

from __future__ import annotations

import io
import logging
import multiprocessing
import os
import random
import shutil
from contextlib import closing
from typing import TYPE_CHECKING, Any, Literal

import pytest

from casartifacts import FileSystemArtifactStore, MemoryArtifactStore, download_artifact, files
from casartifacts.cache import ArtifactCache, trust
from casartifacts.digest import digest_of
from casartifacts.errors import CorruptArtifact
from casartifacts.store import ContentStore

if TYPE_CHECKING:
    from pathlib import Path

BODY = random.Random(7).randbytes(3_000_000)

KINDS: tuple[Literal["hard"], Literal["symlink"]] = ("hard", "symlink")


class Place:
    """A store with a cache, one artifact in it, and a folder for what is downloaded."""

    def __init__(self, folder: Path, *, size_limit: int = 2**30) -> None:
        self.folder = folder / "cache"
        self.target = folder / "target"
        self.cache = ArtifactCache(self.folder, size_limit=size_limit)
        self.store = ContentStore(MemoryArtifactStore(), cache=self.cache)
        self.digest = digest_of(BODY)
        self.artifact_id = self.store.add(_stream(BODY))

    @property
    def kept(self) -> Path:
        """The file in the cache."""
        (path,) = self.folder.glob("contents/*/*")
        return path

    def download(self, link: files.Link | None, *, overwrite: bool = False) -> Path:
        self.store.download(self.artifact_id, self.target, link=link, overwrite=overwrite)
        return self.target

    def is_link(self, link: files.Link) -> bool:
        assert self.target.is_symlink() == (link == "symlink")
        return self.target.samefile(self.kept)


def _stream(body: bytes) -> io.BytesIO:
    return io.BytesIO(body)


def is_hit(cache: ArtifactCache, digest: str) -> bool:
    file = cache.open(digest)
    if file is not None:
        file.close()
    return file is not None


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The digests of the contents that the cache hashed."""
    noted: list[str] = []
    original = trust.verify

    def verify(file: io.FileIO, digest: str) -> None:
        noted.append(digest)
        original(file, digest)

    monkeypatch.setattr(trust, "verify", verify)
    return noted


@pytest.mark.parametrize("link", KINDS)
def test_a_link_is_the_cached_file_itself_cold_and_warm(place: Place, link: files.Link) -> None:
    """It is read-only, a target that exists is refused, and replaced at once if that is wanted."""
    for _ in ("cold", "warm"):
        place.download(link)
        assert place.is_link(link)
        assert place.target.read_bytes() == BODY
        assert place.target.stat().st_mode & 0o777 == 0o400
        with pytest.raises(FileExistsError, match="already exists"):
            place.download(link)
        assert place.is_link(link)
        place.target.unlink()
    place.target.write_bytes(b"before")
    for _ in ("another file", "itself"):
        place.download(link, overwrite=True)
        assert place.is_link(link)
    place.download(None, overwrite=True)
    assert not place.target.samefile(place.kept)
    assert place.target.read_bytes() == place.kept.read_bytes() == BODY
    assert {path.name for path in place.target.parent.iterdir()} == {"cache", "target"}


@pytest.mark.parametrize("link", KINDS)
def test_a_target_that_appears_meanwhile_is_not_replaced(
    place: Place, link: files.Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even by a link to the very same file."""
    original = files.publish_link

    def publish_link(source: str, target: Path, **options: bool) -> None:
        target.symlink_to(place.kept)
        original(source, target, **options)

    monkeypatch.setattr(files, "publish_link", publish_link)
    with pytest.raises(FileExistsError, match="already exists"):
        place.download(link)
    assert {path.name for path in place.target.parent.iterdir()} == {"cache", "target"}


def test_neither_a_link_nor_its_deletion_makes_anybody_hash_more_than_once(
    place: Place, hashed: list[str]
) -> None:
    """Making one is known not to have changed the bytes; deleting one is not, so that is hashed."""
    for number in range(4):
        place.store.download(place.artifact_id, place.target.with_name(str(number)), link="hard")
        place.store.open_reader(place.artifact_id).close()
        with closing(ArtifactCache(place.folder)) as other:
            assert is_hit(other, place.digest)
    place.download("symlink")
    place.download("hard", overwrite=True)
    place.download("hard", overwrite=True)
    place.store.open_reader(place.artifact_id).close()
    assert hashed == []
    before = place.target.stat().st_mtime_ns
    place.target.with_name("0").unlink()
    for _ in range(3):
        place.store.open_reader(place.artifact_id).close()
        with closing(ArtifactCache(place.folder)) as other:
            assert is_hit(other, place.digest)
    assert hashed == [place.digest]
    assert place.target.stat().st_mtime_ns == before, "the file is the user's, too"


@pytest.mark.parametrize("link", KINDS)
@pytest.mark.parametrize("is_mtime_kept", [False, True])
@pytest.mark.parametrize("is_known", [False, True])
def test_who_writes_through_a_link_poisons_nobody(
    place: Place, link: files.Link, is_mtime_kept: bool, is_known: bool
) -> None:
    """The next one gets the right bytes, and a hard link keeps what its owner made of it."""
    place.download(link)
    status = place.target.stat()
    place.target.chmod(0o600)
    with place.target.open("r+b") as file:
        file.write(b"mine")
    if is_mtime_kept:
        os.utime(place.target, ns=(status.st_atime_ns, status.st_mtime_ns))
    place.target.chmod(0o400)
    if not is_known:
        place.cache.close()
        place.store = ContentStore(place.store.backend, cache=ArtifactCache(place.folder))
    other = place.target.with_name("other")
    mine = place.target.stat() if link == "hard" else None
    place.store.download(place.artifact_id, other, link=link)
    assert other.read_bytes() == BODY
    assert len(list(place.folder.glob("damaged/*"))) == 1
    if mine is not None:
        assert place.target.read_bytes() == b"mine" + BODY[4:]
        assert place.target.stat().st_ino == mine.st_ino
        assert abs(place.target.stat().st_mtime_ns - mine.st_mtime_ns) <= 2 * 10**9
    else:
        assert not place.target.exists()
    place.store.open_reader(place.artifact_id).close()
    # What was put aside goes sometime, and is the user's all the same.
    place.cache.clean(everything=True)
    assert mine is None or place.target.read_bytes()[:4] == b"mine"


@pytest.mark.parametrize("is_mtime_kept", [False, True])
def test_a_write_between_opening_and_linking_is_not_taken_for_the_link(
    place: Place, is_mtime_kept: bool
) -> None:
    """A write sets the mtime; one that hides it leaves no file that could be linked."""
    place.download(None)
    reader = place.cache.open(place.digest)
    assert reader is not None
    path, status = place.kept, place.kept.stat()
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.write(b"wrong")
    if is_mtime_kept:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    else:
        path.chmod(0o400)
    target = place.target.with_name("linked")
    with reader:
        if is_mtime_kept:
            with pytest.raises(PermissionError, match="writable"):
                place.cache.link(place.digest, reader, target, symbolic=False, overwrite=False)
        else:
            with pytest.raises(CorruptArtifact, match="changed"):
                place.cache.link(place.digest, reader, target, symbolic=False, overwrite=False)
    assert not target.exists()
    for cache in (place.cache, ArtifactCache(place.folder)):
        assert not is_hit(cache, place.digest)


@pytest.mark.parametrize("link", KINDS)
def test_a_content_that_was_evicted_or_replaced_meanwhile_is_copied(
    place: Place,
    link: files.Link,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The file that was opened is the one that was verified, wherever its name leads by now."""
    caplog.set_level(logging.INFO)
    place.download(None)
    original = ArtifactCache.link

    for instead in (None, b"another file"):
        place.target.unlink()

        def act(cache: ArtifactCache, *given: Any, **options: Any) -> None:
            path = place.kept
            path.unlink()
            if instead is not None:  # noqa: B023 -- it runs within this round
                path.write_bytes(instead)  # noqa: B023
            original(cache, *given, **options)

        monkeypatch.setattr(ArtifactCache, "link", act)
        place.download(link)
        assert not place.target.is_symlink()
        assert place.target.read_bytes() == BODY
        assert place.target.stat().st_nlink == 1
        monkeypatch.undo()
        place.target.unlink()
        place.cache.forget(place.digest)
        place.download(None)
    assert {path.name for path in place.target.parent.iterdir()} == {"cache", "target"}


@pytest.mark.parametrize("link", KINDS)
@pytest.mark.parametrize(
    "reason",
    ["no cache", "too large", "plain object", "writable", "another user", "others write there"],
)
def test_where_no_link_can_be_had_it_is_a_private_copy_and_the_log_says_why(
    tmp_path: Path, link: files.Link, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """In one line, at INFO; the copy is writable."""
    place = Place(tmp_path, size_limit=len(BODY) - 1 if reason == "too large" else 2**30)
    if reason == "no cache":
        place.store = ContentStore(place.store.backend)
    elif reason == "plain object":
        place.artifact_id = "plain"
        place.store.backend.write("plain", _stream(BODY))
    elif reason == "writable":
        place.download(None).unlink()
        place.kept.chmod(0o600)
    elif reason == "another user":
        if not hasattr(os, "geteuid") or os.geteuid() != 0:
            pytest.skip("only root can give a file to another user")
        place.download(None).unlink()
        os.chown(place.kept, 65534, 65534)
    elif reason == "others write there":
        place.download(None).unlink()
        place.folder.chmod(0o770)
    caplog.clear()
    caplog.set_level(logging.INFO)
    place.download(link)
    if reason == "others write there" and link == "hard":
        # Nobody else can write to the file itself.
        assert place.target.stat().st_nlink == 2
        return
    assert place.target.read_bytes() == BODY
    assert not place.target.is_symlink()
    assert place.target.stat().st_nlink == 1
    assert place.target.stat().st_mode & 0o200
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert "is a private copy" in record.message


@pytest.mark.parametrize("link", KINDS)
def test_another_file_system_takes_a_copy_or_a_symlink(
    place: Place, small_disk: Path, link: files.Link, caplog: pytest.LogCaptureFixture
) -> None:
    """A hard link cannot reach there."""
    caplog.set_level(logging.INFO)
    body = BODY[:500_000]
    artifact_id = place.store.add(_stream(body))
    target = small_disk / "target"
    place.store.download(artifact_id, target, link=link)
    assert target.read_bytes() == body
    assert target.is_symlink() == (link == "symlink")
    assert len(caplog.records) == (link == "hard")
    assert [path.name for path in small_disk.iterdir()] == ["target"]


@pytest.mark.parametrize("link", ["soft", "", True])
def test_what_is_no_kind_of_link_is_refused_before_anything(place: Place, link: files.Link) -> None:
    """Also for stores that have no links."""
    with pytest.raises(ValueError, match="hard"):
        place.download(link)
    with pytest.raises(ValueError, match="hard"):
        download_artifact(
            artifact_store=MemoryArtifactStore(),
            artifact_id="none",
            file_path=place.target,
            link=link,
        )
    assert not place.cache.volume()
    assert not place.target.exists()


def _work(place: tuple[ContentStore, str], seed: int) -> None:
    store, artifact_id = place
    assert store.cache is not None
    folder = store.cache.folder.with_name(str(seed))
    folder.mkdir()
    chance = random.Random(seed)
    for number in range(25):
        target = folder / str(number)
        store.download(artifact_id, target, link=chance.choice(KINDS))
        act = chance.randrange(4)
        if act == 0:
            target.unlink()
        elif act == 1 and not target.is_symlink():
            # Somebody who writes where he should not. His neighbours' links are his, too.
            shutil.copy(target, folder / "copy")
            (folder / "copy").rename(target)
        else:
            assert store.open_reader(artifact_id).read() == BODY[:100_000]


def test_processes_that_link_and_unlink_at_once_get_right_bytes(tmp_path: Path) -> None:
    """And when they are done, the file is trusted again after being hashed once at most."""
    store = ContentStore(
        FileSystemArtifactStore(tmp_path / "store", durable=False),
        cache=ArtifactCache(tmp_path / "cache"),
    )
    artifact_id = store.add(_stream(BODY[:100_000]))
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=_work, args=((store, artifact_id), seed)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    (kept,) = (tmp_path / "cache").glob("contents/*/*")
    assert kept.read_bytes() == BODY[:100_000]
    assert not list((tmp_path / "cache").glob("damaged/*"))
    assert not list(tmp_path.glob("*/.casartifacts*"))
    totals = ArtifactCache(tmp_path / "cache").totals()
    assert totals.heals == 0
    assert totals.hits + totals.misses >= 100
