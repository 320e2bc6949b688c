"""Programs that a test starts, and that are gone when it is.

Rule 1: what is started here lies in one process group of ours; only that group and our own
children are ever signalled, never a name.
Rule 2: gone means gone, also when the starting process was killed with -9: a keeper that holds
the other end of a pipe then kills the group and removes the folder.
"""

from __future__ import annotations

import contextlib
import random
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["Programs", "ServerFailed", "free_port"]

# The first process leads the group and keeps its number from being given to somebody else. The
# second has a session of its own, so that no signal to the tests reaches it, and waits for one
# byte (`stop`) or the end of the pipe (whoever started us is dead).
_KEEPER = """
import os, shutil, signal, sys, time
folder, leader = sys.argv[1], os.getpid()
if os.fork():
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    while True:
        signal.pause()
os.setsid()
os.write(1, b"+")
os.read(0, 1)
os.killpg(leader, signal.SIGKILL)
for _ in range(500):
    shutil.rmtree(folder, ignore_errors=True)
    if not os.path.lexists(folder):
        break
    time.sleep(0.02)
"""

# A cold start on two busy cores has taken 15 s; a server that is not there after this is broken.
_PATIENCE_SECONDS = 90.0

_FAREWELL_SECONDS = 10.0

_LOG_TAIL = 2000


class ServerFailed(Exception):
    """A server did not start, or a step of its start failed; the message ends with its log."""


def free_port() -> int:
    """Find a port on which nobody listens, below those that the kernel gives to clients.

    From the kernel's own range (32768 and up) an outgoing connection could take the port while
    its server is down, or even connect to itself. As long as this process lives nobody is given
    the same one: it holds the UDP port of that number.
    """
    while True:
        address = "127.0.0.1", random.SystemRandom().randrange(20000, 32000)
        with socket.socket() as probe, socket.socket(type=socket.SOCK_DGRAM) as held:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                held.bind(address)
                probe.bind(address)
                held.detach()
                return address[1]


class Programs:
    """Running programs with names, their folder, and the group that they all belong to."""

    def __init__(self, label: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"casartifacts-{label}-"))
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _KEEPER, str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            process_group=0,
        )
        if self._keeper.stdout is None or self._keeper.stdout.read(1) != b"+":
            raise ServerFailed(f"the keeper of {self.folder} did not start")

    def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        user: str | None = None,
    ) -> None:
        """Start a program, unless it runs; what it prints is in `<folder>/<name>.log`.

        Root may start it as another user.
        """
        if self.runs(name):
            return
        with self._log(name).open("ab") as log:
            self._running[name] = subprocess.Popen(
                command,
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=self._keeper.pid,
                user=user,
                group=user,
                extra_groups=None if user is None else [],
            )

    def runs(self, name: str) -> bool:
        """Tell whether the program of this name is running."""
        return name in self._running and self._running[name].poll() is None

    def finish(self, name: str) -> None:
        """Wait until this program has ended by itself, well."""
        code = self._running.pop(name).wait(_PATIENCE_SECONDS)
        if code:
            raise ServerFailed(f"{name} ended with {code}: {self._tail(name)}")

    def run(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        user: str | None = None,
    ) -> None:
        """Run a program to its end, which must be a good one."""
        self.start(name, command, environment=environment, user=user)
        self.finish(name)

    def wait_until(self, ready: Callable[[], bool], *, what: str) -> None:
        """Wait until `ready()`; a program that ends, or no readiness in time, is `ServerFailed`."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not ready():
            for name, process in self._running.items():
                if process.poll() is not None:
                    raise ServerFailed(
                        f"{name} ended with {process.returncode}: {self._tail(name)}"
                    )
            if time.monotonic() > deadline:
                raise ServerFailed(f"no {what} in {_PATIENCE_SECONDS:.0f} s: {self._tail()}")
            time.sleep(0.01)

    def kill(self, *names: str) -> None:
        """End these programs, or all, with SIGKILL, and return when they are gone."""
        ending = [self._running.pop(name) for name in names or tuple(self._running)]
        for process in ending:
            process.kill()
        for process in ending:
            process.wait()

    def ask_to_end(self, name: str, *, signal_number: int) -> None:
        """Let a program end by itself; one that takes too long is left to `close`."""
        process = self._running[name]
        process.send_signal(signal_number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_FAREWELL_SECONDS)

    def pids(self) -> list[int]:
        """List the running programs' process ids."""
        return [process.pid for process in self._running.values() if process.poll() is None]

    def close(self) -> None:
        """End everything and remove the folder; may be called twice."""
        before, after = self._keeper.stdin, self._keeper.stdout
        if before is None or after is None or before.closed:
            return
        # The byte, because a forked child of ours may still hold the pipe open.
        with contextlib.suppress(BrokenPipeError):
            before.write(b"-")
        before.close()
        after.read()  # ends when the keeper does
        after.close()
        self._keeper.wait()
        self.kill()

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def _tail(self, *names: str) -> str:
        wanted = [self._log(name) for name in names] or sorted(self.folder.glob("*.log"))
        texts = [path.read_text(errors="replace")[-_LOG_TAIL:].strip() for path in wanted]
        return "\n".join(text for text in texts if text) or "it said nothing"
