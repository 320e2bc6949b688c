"""The virtual environments of the tools: `.venv-demo` and `.venv-test` in the project folder.

Job: make one where it is missing or out of date, then start the calling script again inside it.

Rule 1: standard library only, in a syntax that Python 3.6 can read: who has an old Python gets one
clear line and no SyntaxError. The scripts that import this file keep to the same syntax.
Rule 2: an environment counts by its stamp, which is written last: an installation that was cut off
is made anew.
Rule 3: nothing is installed outside the environment, whatever pip's settings say.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 -- whoever runs this has not read pyproject.toml
    sys.exit(
        f"{sys.argv[0]} needs Python 3.11 or newer and this is {sys.version.split()[0]}:"
        f" start it with a newer one, such as `python3.12 {sys.argv[0]}`"
    )

import hashlib
import os
import re
import subprocess
import tomllib
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

__all__ = ["ROOT", "SCRIPT", "enter", "enter_for_tests"]

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = f"tools/{Path(sys.argv[0]).name}"

# `.ci/run` sets this to a fresh folder, so that its environments are new and nobody's own is lost.
_PLACE = "CASARTIFACTS_ENVIRONMENTS"

_STAMP = "casartifacts-stamp"

# The first pip that installs dependency groups.
_PIP = "pip>=25.1"


def enter_for_tests() -> None:
    """Return only inside `.venv-test`: `tools/test` and `tools/check` share it."""
    enter("test", groups=("test", "check"))


def enter(name: str, *, groups: Sequence[str]) -> None:
    """Return only inside `.venv-<name>`, which has this project and its dependency groups.

    Outside of it: make it where needed, then start the calling script over with its Python.
    """
    folder = Path(os.environ.get(_PLACE, ROOT)).resolve() / f".venv-{name}"
    if Path(sys.prefix).resolve() == folder:
        return
    # Clusters set these for their own modules; inside, they would shadow what was installed.
    for variable in ("PYTHONPATH", "PYTHONHOME"):
        os.environ.pop(variable, None)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp = folder / _STAMP
    wanted = _stamp(groups)
    if not (python.exists() and stamp.exists() and stamp.read_text() == wanted):
        project = _project()
        chosen = [project["dependency-groups"][group] for group in groups]
        _say(folder, ["casartifacts", *project["project"]["dependencies"], *chain(*chosen)])
        try:
            _make(folder, python=python, groups=groups)
            stamp.write_text(wanted)
        except OSError as error:
            sys.exit(f"{SCRIPT}: cannot make {folder}: {error}")
    command = [str(python), *sys.argv]
    if os.name == "nt":  # where exec lets the shell go on before the script has ended
        sys.exit(subprocess.call(command))
    os.execv(python, command)  # noqa: S606 -- no shell is wanted


def _stamp(groups: Sequence[str]) -> str:
    """Name everything that an environment was made from."""
    project = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    return "\n".join([sys.version, str(ROOT), *groups, project])


def _project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def _say(folder: Path | str, requirements: Sequence[str]) -> None:
    """Say what is about to be installed, by name."""
    names = ", ".join(dict.fromkeys(_names(requirements)))
    print(f"{SCRIPT}: installing into {folder}, once: {names}", flush=True)


def _names(requirements: Sequence[str]) -> Iterator[str]:
    """Yield the names in requirements, and what an extra of this project stands for."""
    extras = _project()["project"]["optional-dependencies"]
    for requirement in requirements:
        own = re.fullmatch(r"casartifacts\[(.*)\]", requirement)
        if own is None:
            yield re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        else:
            for extra in own[1].split(","):
                yield from _names(extras[extra.strip()])


def _make(folder: Path, *, python: Path, groups: Sequence[str]) -> None:
    if folder.is_symlink():
        sys.exit(
            f"{SCRIPT}: {folder} is a link to {folder.resolve()}, but an environment belongs to "
            "one checkout: remove the link (not what it leads to) and run this again"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = _run([sys.executable, "-m", "venv", "--clear", str(folder)])
    if made.returncode:
        # Debian and Ubuntu ship Python without ensurepip; the pip that is there can help.
        _expect(_run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder)]))
        _expect(_pip(sys.executable, "--python", str(python), "install", "--upgrade", _PIP))
    else:
        _expect(_pip(str(python), "install", "--upgrade", _PIP))
    chosen = [argument for group in groups for argument in ("--group", group)]
    _expect(_pip(str(python), "install", "--editable", ".", *chosen))


def _pip(python: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    # Two retries: with pip's five, a machine without a network says nothing for minutes. Where
    # nobody waits for a word, more of them.
    retries = "8" if "CI" in os.environ else "2"
    quiet = ["--quiet", "--no-input", "--disable-pip-version-check", "--retries", retries]
    return _run([python, "-m", "pip", *quiet, *arguments])


def _run(command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )


def _expect(finished: "subprocess.CompletedProcess[str]") -> None:
    """End with one line that says what failed and why, if it did."""
    if finished.returncode == 0:
        return
    lines = [line.strip() for line in finished.stdout.splitlines() if line.strip()]
    told = [line for line in lines if re.search(r"^(ERROR|\w*Error): |No module named", line)]
    reason = (told or lines or ["it said nothing"])[-1]
    command = " ".join(finished.args)
    sys.exit(
        f"{SCRIPT}: the installation failed: {reason} (is there a network, or a package index that"
        f" pip is set up for? The command was: {command})"
    )
