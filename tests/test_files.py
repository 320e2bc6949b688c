"""Steps on local files: a target is whole or absent, and nothing is left beside it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casartifacts import files
from casartifacts.buffers import BUFFER_SIZE

if TYPE_CHECKING:
    import io
    from collections.abc import Iterator

BOTH_WAYS = pytest.mark.parametrize("overwrite", [False, True])


@pytest.fixture(params=["by the kernel", "by reading"])
def copying(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `copy_file_range`, and as on a system without it."""
    if request.param == "by the kernel":
        if not hasattr(os, "copy_file_range"):
            pytest.skip("this system has no copy_file_range")
    else:
        monkeypatch.delattr(os, "copy_file_range", raising=False)


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.usefixtures("copying")
@pytest.mark.parametrize("size", [0, 1, BUFFER_SIZE, 3 * BUFFER_SIZE + 1])
def test_a_copy_is_whole(size: int, tmp_path: Path) -> None:
    content = os.urandom(size)
    (tmp_path / "source").write_bytes(content)
    with (
        (tmp_path / "source").open("rb") as source,
        (tmp_path / "copy").open("xb", buffering=0) as target,
    ):
        source.read(1)  # it is copied from its beginning, wherever it stands
        assert files.copy(source, target) == size
    assert (tmp_path / "copy").read_bytes() == content


def test_a_copy_to_another_file_system_is_whole(small_disk: Path, tmp_path: Path) -> None:
    content = os.urandom(BUFFER_SIZE + 1)
    (tmp_path / "source").write_bytes(content)
    copy = small_disk / "copy"
    with (tmp_path / "source").open("rb") as source, copy.open("xb", buffering=0) as target:
        assert files.copy(source, target) == len(content)
    assert copy.read_bytes() == content


@pytest.mark.usefixtures("copying")
def test_a_copy_that_does_not_fit_is_an_error(small_disk: Path, tmp_path: Path) -> None:
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    for more in (1, 100_000):
        (tmp_path / "source").write_bytes(bytes(free + more))
        with (
            (tmp_path / "source").open("rb") as source,
            (small_disk / "copy").open("wb", buffering=0) as target,
            pytest.raises(OSError, match="No space left"),
        ):
            files.copy(source, target)
        (small_disk / "copy").unlink()


@given(st.lists(st.binary(max_size=100), max_size=5))
def test_all_of_a_piece_is_written(pieces: list[bytes]) -> None:
    with tempfile.TemporaryFile(buffering=0) as file:
        assert [files.write(file, piece) for piece in pieces] == [len(piece) for piece in pieces]
        file.seek(0)
        assert file.read() == b"".join(pieces)


class Reluctant:
    """A file that takes at most three bytes per call, as the kernel may when a disk is full."""

    def __init__(self) -> None:
        self.written = b""

    def write(self, piece: memoryview) -> int:
        self.written += piece[:3]
        return len(piece[:3])


def test_a_piece_is_written_again_until_all_of_it_is_there() -> None:
    file = Reluctant()
    assert files.write(cast("io.FileIO", file), b"0123456789") == 10
    assert file.written == b"0123456789"


def test_a_name_that_is_taken_is_not_given(tmp_path: Path) -> None:
    (tmp_path / "name").write_bytes(b"theirs")
    with (tmp_path / "tmp").open("xb", buffering=0) as file:
        file.write(b"ours")
        assert not files.give_name(tmp_path / "tmp", tmp_path / "name", file.fileno())
        assert files.give_name(tmp_path / "tmp", tmp_path / "other", file.fileno())
        # A first try may have acted although its answer was lost.
        assert files.give_name(tmp_path / "tmp", tmp_path / "other", file.fileno())
    assert (tmp_path / "name").read_bytes() == b"theirs"
    assert (tmp_path / "other").read_bytes() == b"ours"


def test_a_name_is_given_where_there_are_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise PermissionError("planned: a file system without hard links")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    with (tmp_path / "tmp").open("xb", buffering=0) as file:
        file.write(b"ours")
        assert files.give_name(tmp_path / "tmp", tmp_path / "name", file.fileno())
    assert (tmp_path / "name").read_bytes() == b"ours"
    with (tmp_path / "tmp").open("xb", buffering=0) as file:
        assert not files.give_name(tmp_path / "tmp", tmp_path / "name", file.fileno())
    assert (tmp_path / "name").read_bytes() == b"ours"


@BOTH_WAYS
def test_a_target_appears_whole_when_the_block_ends(tmp_path: Path, *, overwrite: bool) -> None:
    target = tmp_path / "target"
    with files.publishing(target, overwrite=overwrite) as file:
        file.write(b"content")
        assert not target.exists()
    assert target.read_bytes() == b"content"
    assert listing(tmp_path) == ["target"]


@BOTH_WAYS
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_nothing_is_left_when_the_block_fails(
    tmp_path: Path, error: type[BaseException], *, overwrite: bool
) -> None:
    def fail() -> None:
        with files.publishing(tmp_path / "target", overwrite=overwrite) as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        fail()
    assert listing(tmp_path) == []
    if overwrite:
        (tmp_path / "target").write_bytes(b"old")
        with pytest.raises(error):
            fail()
        assert listing(tmp_path) == ["target"]
        assert (tmp_path / "target").read_bytes() == b"old"


def test_a_target_is_replaced_only_when_asked_for(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"old")
    with (
        pytest.raises(FileExistsError, match=f"File already exists: {target}"),
        files.publishing(target, overwrite=False),
    ):
        pytest.fail("the block must not be entered")
    with target.open("rb") as reader:
        with files.publishing(target, overwrite=True) as file:
            file.write(b"new")
        assert reader.read() == b"old"
    assert target.read_bytes() == b"new"


def test_a_target_that_somebody_makes_meanwhile_is_left_to_him(tmp_path: Path) -> None:
    target = tmp_path / "target"

    def race() -> None:
        with files.publishing(target, overwrite=False) as file:
            file.write(b"ours")
            target.write_bytes(b"theirs")

    with pytest.raises(FileExistsError, match=f"File already exists: {target}"):
        race()
    assert target.read_bytes() == b"theirs"
    assert listing(tmp_path) == ["target"]


def links(folder: Path) -> Iterator[Path]:
    (folder / "dangling").symlink_to(folder / "nowhere")
    yield folder / "dangling"
    (folder / "linked").symlink_to(folder / "file")
    yield folder / "linked"


def test_a_link_is_a_target_that_exists_and_is_replaced_itself(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"behind the link")
    for link in links(tmp_path):
        with pytest.raises(FileExistsError, match="already exists"):
            files.check_target(link, overwrite=False)
        with files.publishing(link, overwrite=True) as file:
            file.write(b"new")
        assert link.read_bytes() == b"new"
        assert not link.is_symlink()
    assert (tmp_path / "file").read_bytes() == b"behind the link"
    assert not (tmp_path / "nowhere").exists()


def test_targets_that_cannot_be_are_refused_first(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileExistsError, match=f"already exists: {tmp_path}/folder"):
        files.check_target(tmp_path / "folder", overwrite=False)
    with pytest.raises(IsADirectoryError, match=f"{tmp_path}/folder is a folder"):
        files.check_target(tmp_path / "folder", overwrite=True)
    for overwrite in (False, True):
        with pytest.raises(FileNotFoundError, match=f"{tmp_path}/missing does not exist"):
            files.check_target(tmp_path / "missing" / "target", overwrite=overwrite)
