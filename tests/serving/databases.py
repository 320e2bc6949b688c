"""PostgreSQL, MariaDB and Redis, real: what a cluster puts its Optuna studies into.

Rule 1: each lies in a folder of its own, listens on 127.0.0.1 only, wants the password that is in
its URL, and is none of the system's own: no service of Debian's is started, asked or stopped.
Rule 2: they are in use while a test runs and gone after it, so nothing waits for the disk.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shlex
import shutil
import signal
import socket
import struct
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

from serving.processes import Programs, ServerFailed, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from optuna.storages import BaseStorage

__all__ = [
    "PACKAGES",
    "Database",
    "missing_mariadb",
    "missing_postgresql",
    "missing_redis",
    "open_storage",
    "start_mariadb",
    "start_postgresql",
    "start_redis",
]

# mariadb-server would bring a service; the cores have the programs alone.
PACKAGES = ("postgresql", "mariadb-server-core", "mariadb-client-core", "redis-server")

# PostgreSQL refuses root, whatever it is told; Debian's package makes this user for it.
_POSTGRES_USER = "postgres"

# The second is called by the first.
_MARIADB_SETUP = ("mariadb-install-db", "my_print_defaults")

_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Database:
    """A running database on the loopback.

    Attributes:
        name: "postgresql", "mariadb" or "redis".
        url: What Optuna takes for a storage; for Redis, what `JournalRedisBackend` takes.
    """

    name: str
    url: str = field(repr=False)
    _programs: Programs = field(repr=False)

    @property
    def environment(self) -> Mapping[str, str]:
        """What to export, so that Optuna's command line uses it."""
        return {"OPTUNA_STORAGE": self.url}

    def exports(self) -> str:
        """Return `environment` as lines for a shell."""
        return "".join(
            f"export {name}={shlex.quote(value)}\n" for name, value in self.environment.items()
        )

    def pids(self) -> list[int]:
        """List the process ids of its programs."""
        return self._programs.pids()

    def stop(self) -> None:
        """End it for good and remove its folder; may be called twice."""
        if self.name == "postgresql" and self.pids():
            # Killed, it would leave shared memory behind. SIGINT: without waiting for its clients.
            self._programs.ask_to_end("postgres", signal_number=signal.SIGINT)
        self._programs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


@contextlib.contextmanager
def open_storage(url: str) -> Iterator[BaseStorage]:
    """Open Optuna's storage at a database's URL, and close its connections at the end."""
    from optuna.exceptions import ExperimentalWarning
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalRedisBackend

    if url.startswith("redis:"):
        with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
            journal = JournalRedisBackend(url)
        with contextlib.closing(journal._redis):
            yield JournalStorage(journal)
        return
    storage = RDBStorage(url)
    try:
        yield storage
    finally:
        storage.engine.dispose()


def missing_postgresql() -> str | None:
    """Return why PostgreSQL cannot be started here, or None if it can."""
    if _postgresql("initdb") is None or _postgresql("postgres") is None:
        return _lacks("postgresql", "initdb and postgres")
    if os.geteuid() == 0 and _postgres_user() is None:
        return f"postgresql refuses root, and there is no user {_POSTGRES_USER!r}"
    return None


def missing_mariadb() -> str | None:
    """Return why MariaDB cannot be started here, or None if it can."""
    if _mariadbd() and all(map(shutil.which, _MARIADB_SETUP)):
        return None
    return _lacks("mariadb", "mariadbd, " + " and ".join(_MARIADB_SETUP))


def missing_redis() -> str | None:
    """Return why Redis cannot be started here, or None if it can."""
    return None if shutil.which("redis-server") else _lacks("redis", "redis-server")


def start_postgresql() -> Database:
    """Start PostgreSQL; returns when it asks for the password."""
    return _started(missing_postgresql(), "postgresql", _start_postgresql)


def start_mariadb() -> Database:
    """Start MariaDB; returns when it asks for the password."""
    return _started(missing_mariadb(), "mariadb", _start_mariadb)


def start_redis() -> Database:
    """Start Redis; returns when it takes the password."""
    return _started(missing_redis(), "redis", _start_redis)


def _start_postgresql(programs: Programs) -> Database:
    folder, port, password = programs.folder, free_port(), secrets.token_hex(16)
    (folder / "password").write_text(password)
    user = _postgres_user() if os.geteuid() == 0 else None
    if user is not None:
        for path in (folder, folder / "password"):
            shutil.chown(path, user)
    initdb = [
        *(str(_postgresql("initdb")), "--pgdata=data", "--username=optuna", "--auth=scram-sha-256"),
        *("--pwfile=password", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"),
    ]
    programs.run("initdb", initdb, user=user)
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": port,
        "unix_socket_directories": "",
        "fsync": "off",
        "dynamic_shared_memory_type": "mmap",  # in its own folder
        "max_connections": 100,
    }
    command = [str(_postgresql("postgres")), "-D", "data"]
    command += [f"--{name}={value}" for name, value in settings.items()]
    programs.start("postgres", command, user=user)
    # Protocol 3.0; while it starts up it answers "E" (error), then "R" (authenticate yourself).
    hello = struct.pack("!I", 196608) + b"user\0optuna\0database\0postgres\0\0"
    hello = struct.pack("!I", len(hello) + 4) + hello
    programs.wait_until(lambda: _says(port, b"R", to=hello), what="greeting of postgresql")
    url = f"postgresql+psycopg2://optuna:{password}@127.0.0.1:{port}/postgres"
    return Database(name="postgresql", url=url, _programs=programs)


def _start_mariadb(programs: Programs) -> Database:
    folder, port, password = programs.folder, free_port(), secrets.token_hex(16)
    # Run before anybody can connect.
    (folder / "start.sql").write_text(
        "CREATE DATABASE optuna CHARACTER SET utf8mb4;\n"
        f"CREATE USER optuna@'127.0.0.1' IDENTIFIED BY '{password}';\n"
        "GRANT ALL ON optuna.* TO optuna@'127.0.0.1';\n"
    )
    shared = ["--no-defaults", f"--datadir={folder}/data"]
    if os.geteuid() == 0:
        shared.append("--user=root")  # it wants to hear that this is meant
    programs.run(
        "install",
        [
            "mariadb-install-db",
            *shared,
            "--skip-test-db",
            "--auth-root-authentication-method=socket",
        ],
    )
    settings = {
        "bind-address": "127.0.0.1",
        "port": port,
        "socket": folder / "socket",
        "pid-file": folder / "pid",
        "tmpdir": folder,
        "init-file": folder / "start.sql",
        "innodb-flush-log-at-trx-commit": 0,
        "innodb-doublewrite": 0,
        "skip-name-resolve": 1,
    }
    command = [str(_mariadbd()), *shared]
    programs.start("mariadbd", command + [f"--{name}={value}" for name, value in settings.items()])
    # It speaks first: 4 bytes of length, then the version of its protocol.
    programs.wait_until(lambda: _says(port, b"\n", after=4), what="greeting of mariadb")
    url = f"mysql+pymysql://optuna:{password}@127.0.0.1:{port}/optuna?charset=utf8mb4"
    return Database(name="mariadb", url=url, _programs=programs)


def _start_redis(programs: Programs) -> Database:
    folder, port, password = programs.folder, free_port(), secrets.token_hex(16)
    settings = folder / "redis.conf"
    settings.write_text(
        f"bind 127.0.0.1\nport {port}\nrequirepass {password}\ndir {folder}\n"
        'save ""\nappendonly no\ndaemonize no\n'
    )
    programs.start("redis-server", ["redis-server", str(settings)])
    hello = f"AUTH {password}\r\n".encode()
    programs.wait_until(lambda: _says(port, b"+OK", to=hello), what="greeting of redis")
    url = f"redis://:{password}@127.0.0.1:{port}/0"
    return Database(name="redis", url=url, _programs=programs)


def _started(reason: str | None, label: str, start: Callable[[Programs], Database]) -> Database:
    if reason:
        raise ServerFailed(reason)
    programs = Programs(label)
    try:
        return start(programs)
    except BaseException:
        programs.close()
        raise


def _says(port: int, wanted: bytes, *, to: bytes = b"", after: int = 0) -> bool:
    """Tell whether these bytes come back, behind so many others."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=_SECONDS) as connection:
            connection.sendall(to)
            answer = b""
            while len(answer) < after + len(wanted):
                piece = connection.recv(after + len(wanted) - len(answer))
                if not piece:
                    return False
                answer += piece
    except OSError:
        return False
    return answer[after:] == wanted


def _lacks(name: str, programs: str) -> str:
    return f"{name} needs {programs}: as root, `tools/servers install` installs it"


def _postgresql(program: str) -> str | None:
    """Find one of PostgreSQL's programs: Debian keeps them off PATH, by version."""
    found = sorted(
        Path("/usr/lib/postgresql").glob(f"*/bin/{program}"),
        key=lambda path: int(path.parts[-3]) if path.parts[-3].isdecimal() else 0,
    )
    return str(found[-1]) if found else shutil.which(program)


def _mariadbd() -> str | None:
    return shutil.which("mariadbd") or shutil.which("mariadbd", path="/usr/sbin")


def _postgres_user() -> str | None:
    try:
        return pwd.getpwnam(_POSTGRES_USER).pw_name
    except KeyError:
        return None
