"""The command line: the real program as a process, on real stores and real studies, in pipes.

Every run is checked for what holds of all: an exit code that was expected, no traceback, and on
standard error nothing but one line for each thing that failed.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from blake3 import blake3
from hypothesis import example, given, settings
from hypothesis import strategies as st
from optuna.storages.journal import JournalFileBackend

import casartifacts
from casartifacts import cli, names
from casartifacts.records import StoreRecord

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PROGRAM = [sys.executable, "-m", "casartifacts"]
LARGE = blake3(b"large").digest(length=3_000_000)
VERBS = ["upload", "download", "ls", "stat", "rm", "doctor", "cache"]

# Nothing of whoever runs the tests.
CLEAN = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("CASARTIFACTS_", "OPTUNA_"))
}


class Shell:
    """A folder in which the program is run; its store is `store` there unless a test says so."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**CLEAN, "CASARTIFACTS_STORE": "store"}

    def make_store(self) -> None:
        """Make an empty store, so that the program need not find out first that there is none."""
        record = StoreRecord(durable=True).encode()
        self.store.backend.write_if_absent(names.STORE_RECORD, io.BytesIO(record))

    def start(self, *arguments: str | Path, **options: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*PROGRAM, *map(str, arguments)],
            cwd=self.folder,
            env=self.environment,
            stderr=subprocess.PIPE,
            # As from a terminal: what a shell puts into the background ignores Ctrl-C.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 -- no threads here
            **options,
        )

    def run(
        self, *arguments: str | Path, code: int = 0, given: bytes = b""
    ) -> tuple[bytes, list[str]]:
        """Run it to its end; returns its standard output and the lines of its standard error."""
        process = self.start(*arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        out, raw = process.communicate(given, timeout=120)
        error = raw.decode()
        assert process.returncode == code, error
        assert "Traceback" not in error
        lines = error.splitlines()
        if code != 2:
            assert all(line.startswith("casartifacts: ") for line in lines), error
            assert bool(lines) == (code == 1), error
        return out, lines

    def out(self, *arguments: str | Path, given: bytes = b"") -> str:
        return self.run(*arguments, given=given)[0].decode()

    def rows(self, *arguments: str | Path) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out(*arguments, "--json").splitlines()]

    def upload(self, name: str, content: bytes) -> str:
        (self.folder / name).write_bytes(content)
        return self.out("upload", "--", name).rstrip("\n")

    @property
    def store(self) -> casartifacts.ContentStore:
        return casartifacts.open_store(self.folder / "store")

    def files(self) -> set[str]:
        """Name all files outside the store."""
        return {
            str(path.relative_to(self.folder))
            for path in self.folder.rglob("*")
            if path.is_file() and self.folder / "store" not in path.parents
        }


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    shell = Shell(tmp_path)
    shell.make_store()
    return shell


@contextlib.contextmanager
def study_in(folder: Path, name: str = "digits") -> Iterator[optuna.Study]:
    """A study in an SQLite file; its connections are closed when the block ends."""
    storage = optuna.storages.get_storage(f"sqlite:///{folder}/study.db")
    assert isinstance(storage, optuna.storages._CachedStorage)
    try:
        yield optuna.create_study(study_name=name, storage=storage, load_if_exists=True)
    finally:
        storage.remove_session()
        storage._backend.engine.dispose()


# What works

NAMES = st.text(
    st.characters(codec="utf-8", exclude_characters="/\\:", exclude_categories=["Cc", "Cs"]),
    min_size=1,
    max_size=40,
).filter(lambda name: name not in {".", "..", "store"})
CONTENTS = st.one_of(st.binary(max_size=100), st.sampled_from([LARGE, LARGE[1:]]))


@settings(max_examples=3)
@given(contents=st.dictionaries(NAMES, CONTENTS, min_size=1, max_size=3))
@example({"-rf": b"", "best model.ckpt": LARGE, "last.ckpt": LARGE, "Größe ☃\u200b.json": b"{}"})
def test_what_is_uploaded_is_listed_and_comes_back_until_it_is_removed(
    contents: Mapping[str, bytes],
) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        shell = Shell(Path(temporary))
        shell.make_store()
        for name, content in contents.items():
            (shell.folder / name).write_bytes(content)
        ids = shell.out("upload", "--", *contents).splitlines()
        uploaded = dict(zip(ids, contents.items(), strict=True))
        rows = {row["artifact_id"]: row for row in shell.rows("ls")}
        assert rows.keys() == uploaded.keys()
        lines = shell.out("ls").splitlines()
        assert {line.split()[0] for line in lines} == uploaded.keys()
        assert all(line.isprintable() for line in lines)
        for artifact_id, (name, content) in uploaded.items():
            row = rows[artifact_id]
            assert (row["filename"], row["size"]) == (name, len(content))
            assert shell.run("download", artifact_id, "-")[0] == content
        (shell.folder / "to").mkdir()
        artifact_id, (name, content) = next(iter(uploaded.items()))
        assert shell.rows("stat", artifact_id) == [rows[artifact_id]]
        assert shell.out("download", artifact_id, "to/") == ""
        assert (shell.folder / "to" / name).read_bytes() == content
        assert shell.out("rm", *ids) == shell.out("ls") == ""
        assert shell.files() == {*contents, f"to/{name}"}


def test_it_goes_through_pipes_into_a_new_store(tmp_path: Path) -> None:
    """`tar c . | casartifacts upload - --filename x.tar`, and back; nothing stays in between."""
    shell = Shell(tmp_path)
    shell.environment["TMPDIR"] = str(shell.folder)
    artifact_id = shell.out("upload", "-", "--filename", "x.tar", given=LARGE).strip()
    assert shell.run("download", artifact_id, "-")[0] == LARGE
    (row,) = shell.rows("ls")
    assert (row["filename"], row["mimetype"]) == ("x.tar", "application/x-tar")
    assert shell.files() == set()


@pytest.mark.parametrize(
    "line", [["ls"], ["ls", "--json"], ["download", "LARGE", "-"], ["upload", "a", "a"]]
)
def test_who_reads_no_further_ends_it_in_silence(shell: Shell, line: list[str]) -> None:
    large = shell.upload("a", LARGE)
    for _ in range(3):
        shell.store.add(io.BytesIO(b"abc"))
    process = shell.start(
        *(large if word == "LARGE" else word for word in line), stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.communicate(timeout=120)[1] == b""
    assert process.returncode == 141


def test_options_stand_anywhere_and_count_more_than_the_environment(shell: Shell) -> None:
    for place in ("store", "other"):
        store = casartifacts.open_store(shell.folder / place)
        store.add(io.BytesIO(b"abc"), filename=place)
    for options, place in {(): "store", ("--store", "other"): "other"}.items():
        assert [row["filename"] for row in shell.rows(*options, "ls")] == [place]
        assert [row["filename"] for row in shell.rows("ls", *options)] == [place]
    both = shell.rows("--store", "store", "ls", f"--store={shell.folder.as_uri()}/other")
    assert [row["filename"] for row in both] == ["other"]


def test_a_download_fills_the_cache_that_is_named_and_comes_from_it(shell: Shell) -> None:
    artifact_id = shell.upload("a", LARGE)
    shell.environment["CASARTIFACTS_CACHE"] = "from the environment"
    shell.out("download", artifact_id, "1", "--cache", "none")
    assert not [name for name in shell.files() if "contents" in name]
    shell.out("download", artifact_id, "2")
    shell.out("--cache", "named", "download", artifact_id, "3")
    for folder in ("from the environment", "named"):
        assert [name for name in shell.files() if name.startswith(f"{folder}/contents")]
    (shell.folder / "store").rename(shell.folder / "away")
    shell.out("download", artifact_id, "4", "--cache", "named")
    assert all((shell.folder / name).read_bytes() == LARGE for name in "1234")


def test_a_bar_is_drawn_on_a_terminal_only(shell: Shell) -> None:
    pty = pytest.importorskip("pty")
    (shell.folder / "model.ckpt").write_bytes(LARGE)
    termios = pytest.importorskip("termios")
    terminal, end = pty.openpty()
    termios.tcsetwinsize(end, (24, 80))
    with open(terminal, "rb", buffering=0) as screen:  # noqa: PTH123 -- a descriptor
        process = subprocess.Popen(
            [*PROGRAM, "upload", "model.ckpt"],
            cwd=shell.folder,
            env=shell.environment,
            stdout=subprocess.PIPE,
            stderr=end,
        )
        os.close(end)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: the other end is closed
            while piece := screen.read(1000):
                shown += piece
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert b"model.ckpt" in shown
    assert b"100%" in shown
    assert re.fullmatch(rb"[0-9a-f]{64}-[0-9a-f]{32}\n", out)


# Names that somebody else chose


@pytest.mark.parametrize(
    ("filename", "own"),
    [
        ("../../evil", "evil"),
        ("/etc/evil", "evil"),
        ("..\\evil", "evil"),
        ("C:\\evil", "evil"),
        ("C:evil", "evil"),
        ("runs/7/model.ckpt", "model.ckpt"),
        ("..", None),
        ("runs/..", None),
        ("", None),
        (None, None),
        ("a\x1b[2Jb", None),
        ("a\nb", None),
    ],
)
def test_a_file_name_leads_nowhere_and_commands_no_terminal(
    shell: Shell, filename: str | None, own: str | None
) -> None:
    inner = Shell(shell.folder / "deep" / "down")
    inner.folder.mkdir(parents=True)
    inner.environment["CASARTIFACTS_STORE"] = str(shell.folder / "store")
    artifact_id = shell.store.add(io.BytesIO(b"abc"), filename=filename)
    _, lines = inner.run("download", artifact_id, code=0 if own else 1)
    assert shell.files() == ({f"deep/down/{own}"} if own else set())
    if own is None:
        why = f"Its file name is {filename!r}"
        if filename is None:
            why = "It was stored without a file name"
        assert lines == [f"casartifacts: {artifact_id}: {why}: name the TARGET file"]
    for verb in (["ls"], ["stat", artifact_id]):
        assert all(line.isprintable() for line in inner.out(*verb).split("\n"))


def test_an_error_commands_no_terminal_either(shell: Shell) -> None:
    _, lines = shell.run("upload", "no\x1b[2J\nfile", code=1)
    assert lines == [r"casartifacts: no\x1b[2J file: No such file or directory"]


# Studies


def test_artifacts_are_listed_in_a_study_or_in_a_trial_that_runs(shell: Shell) -> None:
    of_study = ["--study", "digits", "--storage", f"sqlite:///{shell.folder}/study.db"]
    for name in "abcd":
        (shell.folder / name).write_bytes(name.encode())
    with study_in(shell.folder) as study:
        study.ask()
        running = study.ask()
        ended = study.ask()
        study.tell(ended, 1.0)
        in_study = shell.out("upload", "a", "b", *of_study).split()
        in_trial = shell.out("upload", "c", "--filename", "x.json", "--trial", "1", *of_study)
        listed = casartifacts.get_all_artifact_meta(study)
        assert {meta.artifact_id for meta in listed} == set(in_study)
        (meta,) = casartifacts.get_all_artifact_meta(running)
        assert (meta.artifact_id, meta.filename) == (in_trial.strip(), "x.json")
    origins = [ref.origin for ref in shell.store.refs()]
    assert all(origin and origin["study"] == "digits" for origin in origins)

    _, lines = shell.run("upload", "c", "d", "--trial", "2", *of_study, code=1)
    assert [line[:17] for line in lines] == ["casartifacts: c: ", "casartifacts: d: "]
    assert all("Nothing was stored. Upload while the trial runs" in line for line in lines)
    assert len(list(shell.store.refs())) == 3

    rows = shell.rows("ls", *of_study)
    assert sorted((row["filename"], row["size"]) for row in rows) == [("a", 1), ("b", 1)]
    assert shell.rows("ls", "--trial", "0", *of_study) == []
    shell.out("rm", in_study[0])
    table = [line.split() for line in shell.out("ls", *of_study).splitlines()]
    assert sorted((line[0], line[1], line[3]) for line in table) == sorted(
        [(in_study[0], "missing", "a"), (in_study[1], "1B", "b")]
    )
    # Without a store it is what Optuna lists, no more.
    del shell.environment["CASARTIFACTS_STORE"]
    shell.environment["OPTUNA_STORAGE"] = "study.db"
    assert shell.rows("ls", "--study", "digits", "--trial", "1") == [
        {
            "artifact_id": in_trial.strip(),
            "filename": "x.json",
            "mimetype": "application/json",
            "encoding": None,
        }
    ]


def test_a_study_may_lie_in_a_journal(shell: Shell) -> None:
    path = shell.folder / "journal.log"
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(path)))
    study = optuna.create_study(study_name="digits", storage=storage)
    (shell.folder / "a").write_bytes(b"a")
    artifact_id = shell.out("upload", "a", "--study", "digits", "--storage", path).strip()
    (meta,) = casartifacts.get_all_artifact_meta(study)
    assert meta.artifact_id == artifact_id


# What goes wrong

WRONG_ID = "0" * 64 + "-" + "0" * 32
STUDY = "--study digits --storage study.db"

ERRORS = {
    "upload nope": "nope: No such file or directory",
    "upload .": r"\.: A directory cannot be uploaded yet; upload an archive of it",
    "upload a --filename x/y": r"a: filename must be a bare name without separators, got 'x/y';.*",
    "upload a --store a": r"a: /.*/a: it is a file, not a folder",
    "download nope --store nowhere": (
        r"Artifact 'nope' was not found in .* Nothing was stored there yet: is --store right\?"
    ),
    "rm notes.txt --store notes": (
        r"'notes.txt' lies in File.*\('/.*/notes'\) as a plain file, which may be "
        "anybody's: --force deletes it"
    ),
    "download ID pipe": "ID: pipe exists; it is no file",
    "download ID pipe --force": "ID: pipe is a device or a pipe: it is not replaced by a file",
    "download nope": r"Artifact 'nope' was not found in ContentStore\(File.*\('/.*/store'\)\)\.",
    "download ID a": "ID: a exists; --force replaces it",
    "download ID no/where": "ID: The folder no does not exist; make it before .*",
    "download ID no/": "ID: The folder no does not exist; make it before .*",
    "download ID folder": "ID: folder/a exists; --force replaces it",
    "download DAMAGED out": "DAMAGED: .*[0-9a-f]{64}.*",
    "download DAMAGED -": "DAMAGED: .*[0-9a-f]{64}.*",
    "download ../x out": r"Invalid artifact_id: '\.\./x' \(it contains '\.\.'\)",
    "stat nope": "Artifact 'nope' was not found in .*",
    "rm nope": "Artifact 'nope' was not found in .*",
    "ls --store nowhere": r"nowhere: There is no store here: is --store right\? .*",
    f"ls {STUDY} --trial 7": "Study 'digits' has no trial 7: it has 1 trials, numbered from 0",
    "ls --study x --storage study.db": "There is no study 'x' in this storage, .* 'digits'",
    "ls --study x --storage sqlite:///no.db": r"no\.db: No such file or directory",
    "ls --study x --storage no.log": r"no\.log: No such file or directory",
    "ls --study x --storage no://where": "Can't load plugin: sqlalchemy.dialects:no",
    "upload a --study x --storage study.db": "There is no study 'x' in this storage, .*",
}

MISUSE = {
    "upload": "Missing argument 'FILE...'",
    "upload a a --filename x": "--filename is for one FILE only",
    "upload -": "Standard input has no name: give --filename",
    "upload a --study digits": "In which storage is the study? Give --storage",
    "upload a --trial 1": "--storage and --trial go with --study: which study?",
    "ls --storage study.db": "--storage and --trial go with --study: which study?",
    f"ls {STUDY} --trial -1": "-1 is not in the range x>=0",
    "ls --store ftp://x": "'ftp://x' is no store that can be opened; expected a path",
    "upload a --store memory://": "memory:// would be gone when this command ends",
    "ls --store=": "Which store? Give --store, or set CASARTIFACTS_STORE",
    "lss": "No such command 'lss'",
}


@pytest.fixture(scope="module")
def wrecked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Shell, dict[str, str]]:
    """A store with a good and a damaged artifact, a file, a folder, and a study."""
    shell = Shell(tmp_path_factory.mktemp("wrecked"))
    ids = {"DAMAGED": shell.upload("a", b"damaged"), "ID": shell.upload("a", b"abc")}
    digest = names.digest_in(ids["DAMAGED"])
    assert digest
    (shell.folder / "store" / names.blob(digest)).write_bytes(b"DAMAGED")
    (shell.folder / "folder").mkdir()
    (shell.folder / "folder" / "a").write_bytes(b"mine")
    (shell.folder / "notes").mkdir()
    (shell.folder / "notes" / "notes.txt").write_bytes(b"mine")
    os.mkfifo(shell.folder / "pipe")
    with study_in(shell.folder) as study:
        study.ask()
    return shell, ids


def test_a_plain_file_is_deleted_if_optuna_stored_it_or_if_forced(shell: Shell) -> None:
    optunas = str(uuid.uuid4())
    for name in (optunas, "notes.txt"):
        (shell.folder / "store").mkdir(exist_ok=True)
        (shell.folder / "store" / name).write_bytes(b"abc")
    shell.run("rm", optunas)
    shell.run("rm", "notes.txt", code=1)
    assert (shell.folder / "store" / "notes.txt").exists()
    shell.run("rm", "notes.txt", "--force")
    assert not [
        *(shell.folder / "store").glob("notes.txt"),
        *(shell.folder / "store").glob(optunas),
    ]


@pytest.mark.parametrize("line", [*ERRORS, *MISUSE])
def test_an_error_is_one_line_that_says_what_is_wrong_and_changes_nothing(
    wrecked: tuple[Shell, dict[str, str]], line: str
) -> None:
    shell, ids = wrecked
    before = {path: path.read_bytes() for path in shell.folder.rglob("*") if path.is_file()}
    arguments = [ids.get(word, word) for word in line.split()]
    if line in ERRORS:
        _, (error,) = shell.run(*arguments, code=1)
        expected = ERRORS[line]
        for word, artifact_id in ids.items():
            expected = re.sub(rf"\b{word}\b", artifact_id, expected)
        assert re.fullmatch(f"casartifacts: (?:{expected})", error), error
    else:
        out, lines = shell.run(*arguments, code=2)
        assert out == b""
        assert MISUSE[line] in lines[-1]
        assert "\n".join(lines).count("Error") == 1
    after = {path: path.read_bytes() for path in shell.folder.rglob("*") if path.is_file()}
    assert after == before


def test_of_several_things_all_are_tried(shell: Shell) -> None:
    for name in "ab":
        (shell.folder / name).write_bytes(name.encode())
    out, lines = shell.run("upload", "no", "a", "nope", "b", code=1)
    ids = out.decode().split()
    assert [line.split(": ")[1] for line in lines] == ["no", "nope"]
    assert [row["filename"] for row in sorted(shell.rows("ls"), key=by_time)] == ["a", "b"]
    _, lines = shell.run("rm", ids[0], WRONG_ID, ids[1], ids[0], code=1)
    assert [re.findall(r"'(\S+)' was not found", line) for line in lines] == [[WRONG_ID], [ids[0]]]
    assert shell.out("ls") == ""


def by_time(row: dict[str, Any]) -> str:
    return str(row["uploaded_at"])


def test_a_damaged_ref_is_told_and_the_others_are_listed(shell: Shell) -> None:
    good, bad = shell.upload("a", b"abc"), shell.upload("b", b"xyz")
    (shell.folder / "store" / names.ref(bad)).write_bytes(b"\x1b[31mdamaged")
    out, (line,) = shell.run("ls", code=1)
    assert out.decode().split()[0] == good
    assert f"{names.ref(bad)} in " in line
    assert line.isprintable()


@pytest.mark.parametrize("how", ["option", "environment"])
def test_a_traceback_is_shown_to_who_asks(shell: Shell, how: str) -> None:
    if how == "environment":
        shell.environment["CASARTIFACTS_DEBUG"] = "1"
    process = shell.start("upload", "nope", *["--debug"] * (how == "option"))
    error = process.communicate(timeout=120)[1].decode()
    assert process.returncode == 1
    assert error.startswith("Traceback")
    assert "FileNotFoundError: [Errno 2] No such file or directory: 'nope'" in error


@pytest.mark.parametrize("verb", ["upload", "download"])
def test_an_interrupt_leaves_nothing_behind(shell: Shell, verb: str) -> None:
    """It is sent while the program waits for a pipe, in the middle of a transfer."""
    shell.environment["TMPDIR"] = str(shell.folder)
    artifact_id = shell.store.add(io.BytesIO(LARGE))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    if verb == "upload":
        process = shell.start("upload", "-", "--filename", "x", **pipes)
        assert process.stdin is not None
        process.stdin.write(bytes(5_000_000))
        process.stdin.flush()
        wait_until(lambda: any("standard input" in name for name in shell.files()))
    else:
        process = shell.start("download", artifact_id, "-", **pipes)
        assert process.stdout is not None
        assert process.stdout.read(1) == LARGE[:1]
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=120)
    assert (process.returncode, error) == (130, b"")
    assert len(out) < len(LARGE) - 1
    assert shell.files() == set()
    assert len(list(shell.store.refs())) == 1


def wait_until(is_so: Any) -> None:
    until = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.01)


# Help


@pytest.mark.parametrize("link", ["hard", "symlink"])
def test_a_download_can_be_a_link_to_the_cached_file(shell: Shell, link: str) -> None:
    """Read-only; a copy where there is no cache, which is no error."""
    artifact_id = shell.upload("model.ckpt", LARGE)
    shell.out("download", artifact_id, "linked", "--link", link, "--cache", "kept")
    linked = shell.folder / "linked"
    (kept,) = (shell.folder / "kept").glob("contents/*/*")
    assert linked.samefile(kept)
    assert linked.is_symlink() == (link == "symlink")
    shell.run("download", artifact_id, "linked", "--link", link, code=1)
    shell.out("download", artifact_id, "linked", "--link", link, "--force")
    assert not linked.samefile(kept)
    assert linked.read_bytes() == kept.read_bytes() == LARGE
    shell.run("download", artifact_id, "-", "--link", link, code=2)
    shell.run("download", artifact_id, "other", "--link", "soft", code=2)


def test_a_cache_is_looked_after_while_others_use_it(shell: Shell) -> None:
    """`stat`, `verify` and `clean` find what there is, and leave alone what is in flight."""
    cache = casartifacts.ArtifactCache(shell.folder / "kept")
    shell.environment["CASARTIFACTS_CACHE"] = "kept"
    for verb in ("stat", "verify", "clean"):
        shell.run("cache", verb, code=1)
        shell.run("cache", verb, "--cache", "none", code=2)
    assert not cache.folder.exists()
    ids = [shell.upload(name, name.encode() * 1000) for name in ("a", "b")]
    for artifact_id in ids:
        shell.out("download", artifact_id, "-")
    shell.out("download", ids[0], "-")
    with cache.admit("0" * 64, size=5_000) as slot:
        assert slot is not None
        (stat,) = shell.rows("cache", "stat")
        assert (stat["contents"], stat["size"], stat["filling_size"]) == (2, 2_000, 5_000)
        counted = {name: stat["totals"][name] for name in ("hits", "heals", "bytes_fetched")}
        assert counted == {"hits": 1, "heals": 0, "bytes_fetched": 2_000}
        lines = shell.out("cache", "stat").splitlines()
        assert ["contents", "2"] in map(str.split, lines)
        assert ["bytes", "fetched", "2.0KiB"] in map(str.split, lines)
        assert "2 contents are right" in shell.out("cache", "verify")
        wrong = min((shell.folder / "kept").glob("contents/*/*"))
        wrong.chmod(0o600)
        wrong.write_bytes(b"wrong")
        out, (line,) = shell.run("cache", "verify", code=1)
        assert out == b"1 contents are right (1000B), 1 were wrong and put aside\n"
        assert wrong.name[:64] in line
        assert shell.out("cache", "clean").startswith("5B freed: 0 contents, 0 files")
        assert shell.out("cache", "clean", "--all").startswith("1000B freed: 1 contents")
        assert Path(slot.path).exists()
    assert cache.volume() == 0
    assert shell.out("download", ids[0], "-") == "a" * 1000


@pytest.mark.parametrize("verb", [*VERBS, "cache stat", "cache verify", "cache clean"])
def test_every_verb_tells_what_it_does(shell: Shell, verb: str) -> None:
    told = shell.out(*verb.split(), "--help")
    assert told == shell.out(*verb.split(), "-h")
    assert told.startswith(f"Usage: casartifacts {verb} [OPTIONS]")
    for option in ("--store", "CASARTIFACTS_STORE", "--cache", "CASARTIFACTS_CACHE", "--debug"):
        assert option in told
    assert max(map(len, told.splitlines())) <= 80


def test_the_help_names_every_verb_and_is_the_same_for_the_script(shell: Shell) -> None:
    told = shell.out("--help")
    assert re.findall(r"^  (\w+)  +\w", told.partition("Commands:")[2], re.MULTILINE) == VERBS
    assert "..." not in told.partition("Commands:")[2], "a first sentence is too long"
    script = Path(sys.executable).parent / "casartifacts"
    ran = subprocess.run([script, "-h"], capture_output=True, text=True, check=True, env=CLEAN)
    assert ran.stdout == told
    assert shell.out("--version") == f"casartifacts, version {casartifacts.__version__}\n"


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0B"),
        (1023, "1023B"),
        (1024, "1.0KiB"),
        (1536, "1.5KiB"),
        (2**20, "1.0MiB"),
        (2**30, "1.0GiB"),
        (2**40, "1.0TiB"),
        (2**50, "1024.0TiB"),
    ],
)
def test_a_size_is_one_word(size: int, shown: str) -> None:
    assert cli._size({"size": size}) == shown
