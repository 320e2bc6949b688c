"""The command line: a store from a shell, for people and for programs.

A verb is one function under `@_program.command()`: its arguments are its own, its docstring is its
help, and `settings` opens the store. What all verbs share is here once: `--store`, `--cache` and
`--debug` (before the verb or after it), errors, exit codes.

Rule 1: standard output is for what was asked for, one thing a line; all else is for standard error.
Rule 2: an error is one line that names the thing. Of several things all are tried. Exit codes: 0,
1 if anything failed, 2 for wrong usage, 130 after Ctrl-C, 141 when nobody reads on.
Rule 3: names come from whoever wrote to the store: what a terminal or a file system would obey is
taken out of them.
Rule 4: nothing of the house is loaded before a verb needs it: `--help` is quick.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from casartifacts.buffers import BUFFER_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casartifacts.cache import ArtifactCache
    from casartifacts.files import Link
    from casartifacts.records import Ref
    from casartifacts.store import ContentStore
    from casartifacts.studies import StudyOrTrial

__all__ = ["main"]

_INTERRUPTED = 130  # 128 + SIGINT, as shells say it
_NOBODY_READS = 141  # 128 + SIGPIPE

_KIB = 1024

_F = TypeVar("_F", bound="Callable[..., object]")


@dataclass
class _Settings:
    """What the shared options say, and whether anything failed."""

    store: str | None = None
    cache: str | None = None
    debug: bool | None = None
    failed: bool = False

    def named(self) -> str:
        """Return the name of the store, or end with what is wrong with it."""
        if not self.store:
            raise click.UsageError("Which store? Give --store, or set CASARTIFACTS_STORE.")
        if self.store.startswith("memory:"):
            raise click.UsageError(f"{self.store} would be gone when this command ends.")
        return self.store

    def open(self) -> ContentStore:
        """Open the store, or end with what is wrong with its name."""
        name = self.named()
        from casartifacts.opening import open_store

        try:
            return open_store(name, cache=False if self.cache == "none" else self.cache)
        except ValueError as error:
            raise click.UsageError(str(error)) from error

    def open_cache(self) -> ArtifactCache:
        """Open the cache, or end with what is wrong with its name."""
        if self.cache == "none":
            raise click.UsageError("Which cache? Give the folder of one: --cache.")
        from casartifacts.cache import ArtifactCache
        from casartifacts.opening import node_cache

        try:
            return ArtifactCache(self.cache or node_cache())
        except ValueError as error:
            raise click.UsageError(str(error)) from error

    @contextlib.contextmanager
    def trying(self, about: str = "") -> Iterator[None]:
        """Tell an error of this block in one line, then go on."""
        try:
            yield
        except (click.ClickException, click.exceptions.Exit):
            raise
        except Exception as error:  # noqa: BLE001 -- whatever it is, people get a line
            self.complain(error, about)

    @contextlib.contextmanager
    def asking(self, store: ContentStore, artifact_id: str) -> Iterator[None]:
        """Tell an error of this block, and if the artifact is not found, that no store may be."""
        with self.trying(artifact_id):
            try:
                yield
            except Exception as error:
                from casartifacts import errors, names

                is_missing = isinstance(error, errors.ArtifactNotFound)
                if is_missing and store.backend.stat(names.STORE_RECORD) is None:
                    error.add_note("Nothing was stored there yet: is --store right?")
                raise

    def complain(self, error: Exception, about: str = "") -> None:
        """Tell an error in one line, and remember that there was one."""
        if self.debug:
            raise error
        click.echo(f"casartifacts: {_printable(_message(error, about))}", err=True)
        self.failed = True


def _is_uuid(artifact_id: str) -> bool:
    """Tell whether an id is of the form that Optuna chooses."""
    return re.fullmatch("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", artifact_id) is not None


def _message(error: Exception, about: str) -> str:
    """Say in one line what an error says, with its notes and what it is about."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        paths = filter(None, [error.filename, error.filename2])
        message = f"{' to '.join(map(os.fsdecode, paths))}: {error.strerror}"
    else:
        message = str(error) or type(error).__name__
    is_plain = isinstance(error, OSError | ValueError | RuntimeError | ImportError)
    if type(error).__module__ == "builtins" and not is_plain:
        # Such an error is seldom meant for people: it may be a defect.
        message = f"{type(error).__name__}: {message} (--debug shows where)"
    if about and repr(about) not in message and not message.startswith(f"{about}: "):
        message = f"{about}: {message}"
    notes = [note.removeprefix("casartifacts: ") for note in getattr(error, "__notes__", [])]
    parts = [message, *notes]
    lines = [line.strip() for part in parts for line in part.splitlines()]
    return " ".join(filter(None, lines))


def _note(context: click.Context, option: click.Parameter, value: object) -> None:
    """Take a shared option; what stands after the verb counts more than what stands before it."""
    settings = context.ensure_object(_Settings)
    name = str(option.name)
    by_hand = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    if by_hand or getattr(settings, name) is None:
        setattr(settings, name, value)


_SHARED: list[click.Parameter] = [
    click.Option(
        ["--store"],
        metavar="PATH|URL",
        envvar="CASARTIFACTS_STORE",
        show_envvar=True,
        expose_value=False,
        callback=_note,
        help="The store: a folder, s3://bucket/prefix or gs://bucket/prefix.",
    ),
    click.Option(
        ["--cache"],
        metavar="PATH|none",
        envvar="CASARTIFACTS_CACHE",
        show_envvar=True,
        expose_value=False,
        callback=_note,
        help="The folder of the local cache. By default buckets have one and folders none.",
    ),
    click.Option(
        ["--debug"],
        is_flag=True,
        default=False,
        envvar="CASARTIFACTS_DEBUG",
        show_envvar=True,
        expose_value=False,
        callback=_note,
        help="Show the traceback of an error.",
    ),
]


class _Verb(click.Command):
    """A command with the shared options behind its own."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.params += _SHARED


class _Verbs(click.Group):
    """Several verbs, in the order in which they are defined."""

    command_class = _Verb

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.params += _SHARED

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 -- as click calls it
        """Name the verbs."""
        return list(self.commands)


class _Program(_Verbs):
    """All verbs, and how they end."""

    def invoke(self, ctx: click.Context) -> None:
        """Run a verb to its end, whatever that is."""
        settings = ctx.ensure_object(_Settings)
        logging.basicConfig(format="casartifacts: %(message)s", level=logging.WARNING)
        if not sys.warnoptions and not settings.debug:
            warnings.simplefilter("ignore")  # they speak to programmers
        try:
            with settings.trying():
                super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(_INTERRUPTED)
        if settings.failed:
            ctx.exit(1)


@click.group(
    cls=_Program,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="`casartifacts VERB --help` tells more of each. The options below --version may also "
    "stand after the verb.",
)
@click.version_option(package_name="casartifacts")
def _program() -> None:
    """Keep the artifacts of Optuna studies: equal contents once, every byte verified."""


def main() -> None:
    """Run the command line and exit."""
    _program.main(prog_name="casartifacts")


# Verbs


def _of_a_study(function: _F) -> _F:
    """Add the options that name a study or a trial; `_study_or_trial` takes them."""
    for option in (
        click.option(
            "--trial",
            metavar="NUMBER",
            type=click.IntRange(min=0),
            help="A trial of the study, instead of the study itself.",
        ),
        click.option(
            "--storage",
            metavar="URL",
            envvar="OPTUNA_STORAGE",
            show_envvar=True,
            help="The Optuna storage: a URL such as sqlite:///study.db, or a journal file.",
        ),
        click.option("--study", metavar="NAME", help="The study that lists the artifacts."),
    ):
        function = option(function)
    return function


def _study_or_trial(
    study: str | None, storage: str | None, trial: int | None
) -> StudyOrTrial | None:
    """Open what the options name; None if they name nothing."""
    source = click.get_current_context().get_parameter_source("storage")
    if study is None:
        if trial is not None or source is ParameterSource.COMMANDLINE:
            raise click.UsageError("--storage and --trial go with --study: which study?")
        return None
    if not storage:
        raise click.UsageError("In which storage is the study? Give --storage.")
    from casartifacts import studies

    return studies.load_study_or_trial(storage=storage, study_name=study, trial_number=trial)


@_program.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.option("--filename", metavar="NAME", help="The name to list, if not that of the file.")
@_of_a_study
@click.pass_obj
def upload(
    settings: _Settings,
    *,
    files: tuple[str, ...],
    filename: str | None,
    study: str | None,
    storage: str | None,
    trial: int | None,
) -> None:
    """Store each FILE and print its artifact id.

    With --study the artifact is listed in that study, or in a trial of it that is still running.
    FILE may be - for standard input, which needs --filename.
    """
    if filename is not None and len(files) > 1:
        raise click.UsageError("--filename is for one FILE only.")
    if filename is None and "-" in files:
        raise click.UsageError("Standard input has no name: give --filename.")
    from casartifacts import studies

    store = settings.open()
    owner = _study_or_trial(study, storage, trial)
    bar = sys.stderr.isatty()
    for name in files:
        with settings.trying(name), _readable(name) as path:
            if owner is None:
                artifact_id = studies.store_file(
                    artifact_store=store, file_path=path, filename=filename, progress=bar
                )
            else:
                artifact_id = studies.upload_artifact(
                    artifact_store=store,
                    file_path=path,
                    study_or_trial=owner,
                    filename=filename,
                    progress=bar,
                )
            _put_line(artifact_id)


@_program.command()
@click.argument("artifact_id", metavar="ID")
@click.argument("target", required=False)
@click.option("--force", is_flag=True, help="Replace a file that exists.")
@click.option(
    "--link",
    type=click.Choice(["hard", "symlink"]),
    help="Link to the cache's read-only file instead of copying it, where there is one.",
)
@click.pass_obj
def download(
    settings: _Settings,
    artifact_id: str,
    target: str | None,
    *,
    force: bool,
    link: Link | None,
) -> None:
    """Bring an artifact to a file, verified.

    The file TARGET is whole or absent, whatever happens. TARGET may be a folder: the file in it
    then has the name that the artifact was uploaded with, as it has in the current folder without
    TARGET. TARGET - is standard output.
    """
    if link and target == "-":
        raise click.UsageError("Standard output is no file: --link needs a TARGET that is one.")
    store = settings.open()
    with settings.asking(store, artifact_id):
        if target == "-":
            with contextlib.closing(store.open_reader(artifact_id)) as reader:
                while piece := reader.read(BUFFER_SIZE):
                    _put(piece)
            return
        if target is None or target.endswith(("/", os.sep)) or Path(target).is_dir():
            path = Path(target or ".") / _own_name(store.stat(artifact_id))
        else:
            path = Path(target)
        from casartifacts import studies

        try:
            studies.download_artifact(
                artifact_store=store,
                artifact_id=artifact_id,
                file_path=path,
                overwrite=force,
                link=link,
                progress=sys.stderr.isatty(),
            )
        except FileExistsError as error:
            advice = "--force replaces it" if path.is_file() else "it is no file"
            raise FileExistsError(f"{path} exists; {advice}") from error


@_program.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
@_of_a_study
@click.pass_obj
def ls(
    settings: _Settings,
    *,
    as_json: bool,
    study: str | None,
    storage: str | None,
    trial: int | None,
) -> None:
    """List the artifacts of a store, or those of a study.

    Prints id, size, time of the upload (UTC) and file name, the newest last; with --json as they
    come. With --study it lists what the study (without its trials), or one trial of it, lists; if
    a store is given too, it is asked for each artifact, and what it has no more is "missing".
    """
    store = settings.open() if settings.store or study is None else None
    owner = _study_or_trial(study, storage, trial)
    if owner is not None:
        rows = _listed(settings, store, owner)
    elif store is not None:
        rows = _stored(settings, store)
    if as_json:
        for row in rows:
            _put_line(json.dumps(row))
        return
    table = [
        (
            _printable(row["artifact_id"]),
            _size(row),
            _time(row.get("uploaded_at")),
            _printable(row["filename"] or "-"),
        )
        for row in sorted(rows, key=lambda row: str(row.get("uploaded_at") or ""))
    ]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for artifact_id, size, time, name in table:
        _put_line(f"{artifact_id:{widths[0]}}  {size:>{widths[1]}}  {time:{widths[2]}}  {name}")


@_program.command()
@click.argument("artifact_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def stat(settings: _Settings, artifact_id: str, *, as_json: bool) -> None:
    """Tell what is known of an artifact, without reading it."""
    store = settings.open()
    with settings.asking(store, artifact_id):
        known = asdict(store.stat(artifact_id))
        if as_json:
            _put_line(json.dumps(known))
            return
        width = max(map(len, known))
        for name, value in known.items():
            shown = "-" if value is None else value
            if isinstance(shown, dict):
                shown = ", ".join(f"{key} {part}" for key, part in shown.items())
            _put_line(f"{name:{width}}  {_printable(shown)}")


@_program.command()
@click.argument("artifact_ids", metavar="ID...", nargs=-1, required=True)
@click.option("--force", is_flag=True, help="Delete a file that is perhaps no artifact, too.")
@click.pass_obj
def rm(settings: _Settings, artifact_ids: tuple[str, ...], *, force: bool) -> None:
    """Remove artifacts from the store.

    Content that other artifacts share stays. A study goes on listing them, because Optuna deletes
    no attributes. What Optuna stored there is a file under its id, a UUID, and is deleted; any
    other file that lies in the place of the store needs --force.
    """
    store = settings.open()
    for artifact_id in artifact_ids:
        with settings.asking(store, artifact_id):
            if not force and not _is_uuid(artifact_id) and store.stat(artifact_id).digest is None:
                raise ValueError(
                    f"{artifact_id!r} lies in {store.backend!r} as a plain file, which may be "
                    "anybody's: --force deletes it"
                )
            store.remove(artifact_id)


@_program.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
@click.pass_obj
def doctor(settings: _Settings, *, as_json: bool) -> None:
    """Check a set-up: what is fine, what is wrong, and what to do.

    It tries what the store and the cache need, writes 1 MiB a few times to do so, and leaves
    nothing behind. The exit code is 1 if something is wrong; a warning is not.
    """
    name = settings.named()
    from casartifacts.doctor import examine

    try:
        for finding in examine(name, cache=False if settings.cache == "none" else settings.cache):
            settings.failed |= finding.state == "wrong"
            if as_json:
                _put_line(json.dumps(asdict(finding)))
                continue
            parts = filter(None, (finding.found, finding.advice))
            said = " ".join(part if part[-1] in ".?" else f"{part}." for part in parts)
            _put_line(_printable(f"{finding.state:7}  {finding.about:11}  {said}"))
    except ValueError as error:
        raise click.UsageError(str(error)) from error


@_program.group(cls=_Verbs)
def cache() -> None:
    """Look after the cache of this machine; others may go on using it.

    It is the folder that --cache names, by default the one that is used with buckets.
    """


@cache.command("stat")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def cache_stat(settings: _Settings, *, as_json: bool) -> None:
    """Tell what a cache holds and what happened in it.

    The limit is the default one; a program that uses the cache may have set its own.
    """
    known = asdict(settings.open_cache().stat())
    if as_json:
        _put_line(json.dumps(known))
        return
    counted = known.pop("totals")
    sizes = {"size", "size_limit", "free", "floor", "filling_size", "left_size", "aside_size"}
    sizes |= {"bytes_served", "bytes_fetched"}
    width = max(map(len, (*known, *counted)))
    for name, value in (*known.items(), *counted.items()):
        shown = _amount(value) if name in sizes else value
        _put_line(f"{name.replace('_', ' '):{width}}  {_printable(shown)}")


@cache.command("verify")
@click.pass_obj
def cache_verify(settings: _Settings) -> None:
    """Hash every content of a cache; what is wrong is put aside.

    It is fetched anew when it is needed. The exit code is 1 if anything was wrong.
    """
    found = settings.open_cache().verify()
    settings.failed |= bool(found.wrong)
    _put_line(
        f"{found.contents} contents are right ({_amount(found.size)}), {len(found.wrong)} were "
        "wrong and put aside"
    )


@cache.command("clean")
@click.option("--all", "everything", is_flag=True, help="Take out all contents, too.")
@click.pass_obj
def cache_clean(settings: _Settings, *, everything: bool) -> None:
    """Take out of a cache what is of no use.

    That is what killed processes left, what was put aside, files that the table does not know, and
    what it knows and is not there. What others are bringing in or reading is not touched.
    """
    gone = settings.open_cache().clean(everything=everything)
    _put_line(
        f"{_amount(gone.size)} freed: {gone.contents} contents, {gone.left_over} files that were "
        f"left over, {gone.strays} that the table did not know, {gone.aside} that had been put "
        f"aside; {gone.lost} rows led nowhere"
    )


# What the verbs stand on


def _stored(settings: _Settings, store: ContentStore) -> Iterator[dict[str, Any]]:
    """Yield the refs of a store; damaged ones are told, and left out."""
    from casartifacts import names

    with settings.trying(settings.store or ""):
        is_empty = True
        for ref in store.refs(damaged=settings.complain):
            is_empty = False
            yield asdict(ref)
        if is_empty and store.backend.stat(names.STORE_RECORD) is None:
            raise FileNotFoundError(
                "There is no store here: is --store right? The first upload makes one. "
                "What Optuna stored as plain objects is listed by its study: --study."
            )


def _listed(
    settings: _Settings, store: ContentStore | None, owner: StudyOrTrial
) -> Iterator[dict[str, Any]]:
    """Yield what a study or trial lists, with what the store knows of it."""
    from casartifacts import errors, studies
    from casartifacts.parallel import in_order

    def look(row: dict[str, Any]) -> Ref | Exception | None:
        try:
            return None if store is None else store.stat(row["artifact_id"])
        except errors.ArtifactNotFound:
            return None
        except (errors.CasartifactsError, ValueError) as error:
            return error

    listed = [asdict(meta) for meta in studies.get_all_artifact_meta(owner)]
    if store is None:
        yield from listed
        return
    for row, found in zip(listed, in_order(look, listed), strict=True):
        if isinstance(found, Exception):
            settings.complain(found, row["artifact_id"])
        known = ("digest", "size", "uploaded_at")
        yield row | {name: getattr(found, name, None) for name in known}


@contextlib.contextmanager
def _readable(name: str) -> Iterator[str]:
    """Yield the path of a file, which for standard input is a copy of it."""
    if name != "-":
        yield name
        return
    with tempfile.TemporaryDirectory(prefix="casartifacts-") as folder:
        path = Path(folder) / "standard input"
        with path.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file, BUFFER_SIZE)
        yield str(path)


def _own_name(ref: Ref) -> str:
    """Return the file name of an artifact, without any folders that somebody put into it."""
    name = PureWindowsPath(str(ref.filename or "")).name  # it knows both separators, and drives
    if name in {"", ".", ".."} or re.search(r"[\0-\x1f\x7f]", name):
        told = "It was stored without a file name"
        if ref.filename is not None:
            told = f"Its file name is {ref.filename!r}"
        raise ValueError(f"{told}: name the TARGET file")
    return name


def _size(row: dict[str, Any]) -> str:
    """Write a size for people, in one word."""
    if "size" not in row:
        return "-"
    return "missing" if row["size"] is None else _amount(row["size"])


def _amount(size: float) -> str:
    """Write bytes for people, in one word."""
    if size < _KIB:
        return f"{size:.0f}B"
    units = ["KiB", "MiB", "GiB", "TiB"]
    while (size := size / _KIB) >= _KIB and len(units) > 1:
        del units[0]
    return f"{size:.1f}{units[0]}"


def _time(uploaded_at: object) -> str:
    """Write a time for people, in one word and to the second."""
    return _printable(re.sub(r"(\.\d+)?\+00:00$", "Z", str(uploaded_at or "-")))


def _printable(value: object) -> str:
    """Return a text that a terminal only shows: control characters are escaped."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in str(value)
    )


def _put_line(line: str) -> None:
    _put(f"{line}\n".encode(sys.stdout.encoding, "backslashreplace"))


def _put(piece: bytes) -> None:
    """Write to standard output at once; if nobody reads on, end without a word."""
    try:
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        sys.exit(_NOBODY_READS)
