"""Kill a process at a chosen step of what it does to the files below a folder.

A step is a system call that makes, fills, names, syncs or deletes something there; which ones a
piece of work takes is found by tracing it, not by hand. Each has two moments: before the kernel has
done it, and after, when the process has not yet heard of it.

Rule 1: ptrace, by ctypes. It needs no privilege, where it is allowed at all, and stops every thread
at the very call: `strace --inject` counts calls per thread, so the first thread hides the others.
Rule 2: this process has one thread. Its child is a fork, which has everything imported already, and
may have threads.
"""

# ruff: noqa: PTH115, PTH118, PTH123 -- /proc is read as text, not walked as paths

from __future__ import annotations

import ctypes
import os
import platform
import re
import signal
import sys
import traceback
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Kill", "Step", "Traced", "trace"]


class Step(NamedTuple):
    """A system call and the name that it was about, below the folder, without its random part."""

    call: str
    name: str


class Kill(NamedTuple):
    """The step to die at, counted from 0, and the moment: whether the kernel has done it."""

    step: int
    done: bool


class Traced(NamedTuple):
    """The steps that a process took, and whether it was killed at the last one."""

    steps: list[Step]
    killed: bool


# The calls that matter: their numbers on x86-64 and on ARM (None: not there), and which arguments
# name a file: "f" a descriptor that is open for writing, "p" a path, "d" a path after a folder's
# descriptor; the figure is the position.
_CALLS: dict[str, tuple[int | None, int | None, str]] = {
    "chmod": (90, None, "p0"),
    "close": (3, 57, "f0"),
    "copy_file_range": (326, 285, "f2"),
    "creat": (85, None, "p0"),
    "fallocate": (285, 47, "f0"),
    "fchmod": (91, 52, "f0"),
    "fchmodat": (268, 53, "d0"),
    "fdatasync": (75, 83, "f0"),
    "fsync": (74, 82, "f0"),
    "ftruncate": (77, 46, "f0"),
    "futimesat": (261, None, "d0"),
    "link": (86, None, "p0 p1"),
    "linkat": (265, 37, "d0 d2"),
    "mkdir": (83, None, "p0"),
    "mkdirat": (258, 34, "d0"),
    "open": (2, None, "p0"),
    "openat": (257, 56, "d0"),
    "pwrite64": (18, 68, "f0"),
    "pwritev": (296, 70, "f0"),
    "rename": (82, None, "p0 p1"),
    "renameat": (264, 38, "d0 d2"),
    "renameat2": (316, 276, "d0 d2"),
    "rmdir": (84, None, "p0"),
    "sendfile": (40, 71, "f0"),
    "symlink": (88, None, "p1"),
    "symlinkat": (266, 36, "d1"),
    "truncate": (76, 45, "p0"),
    "unlink": (87, None, "p0"),
    "unlinkat": (263, 35, "d0"),
    "utimensat": (280, 88, "d0"),
    "write": (1, 64, "f0"),
    "writev": (20, 66, "f0"),
}
_MACHINE = {"x86_64": 0, "aarch64": 1}.get(platform.machine())

# A folder's descriptor is open for reading, and syncing it matters nevertheless.
_SYNCS = {"fsync", "fdatasync"}

# Position of the flags, by call; an open that only reads is no step.
_FLAGS = {"open": 1, "openat": 2}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

_AT_FDCWD = -100
_LONGEST_PATH = 4096

_TRACEME, _PEEK, _SYSCALL, _SETOPTIONS, _SYSCALL_INFO = 0, 3, 24, 0x4200, 0x420E
_OPTIONS = 0x1 | 0x2 | 0x4 | 0x8 | 0x10_0000  # SYSGOOD, FORK, VFORK, CLONE, EXITKILL
_ENTRY, _EXIT = 1, 2
_SYSCALL_STOP = signal.SIGTRAP | 0x80 if sys.platform == "linux" else 0
_ALL_THREADS = 0x4000_0000  # __WALL


class _SyscallInfo(ctypes.Structure):
    """What the kernel tells about a stop: `struct ptrace_syscall_info`, of Linux 5.3."""

    _fields_ = (
        ("op", ctypes.c_uint8),
        ("padding", ctypes.c_uint8 * 3),
        ("arch", ctypes.c_uint32),
        ("instruction_pointer", ctypes.c_uint64),
        ("stack_pointer", ctypes.c_uint64),
        ("number", ctypes.c_uint64),
        ("arguments", ctypes.c_uint64 * 6),
    )


_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def _ptrace(request: int, pid: int, address: int = 0, argument: Any = None) -> None:
    if _libc.ptrace(request, pid, address, argument) < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"ptrace request {request}: {os.strerror(error)}")


def trace(
    work: Callable[[], None], *, folder: os.PathLike[str] | str, kill: Kill | None = None
) -> Traced:
    """Do some work in a child process, which is killed at one step if it comes that far.

    Raises:
        OSError: This machine lets nobody trace.
        RuntimeError: The work failed; what it said is on the standard error.
    """
    if _MACHINE is None or sys.platform != "linux":
        raise OSError(f"no numbers of system calls for {sys.platform} on {platform.machine()}")
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        _be_traced(work)
    os.waitpid(pid, 0)
    return _Tracer(pid, os.path.realpath(folder), kill).run()


def _be_traced(work: Callable[[], None]) -> None:
    code = 1
    try:
        _ptrace(_TRACEME, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        work()
        code = 0
    except BaseException:  # noqa: BLE001 -- told to whoever waits, in the one way there is
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


class _Tracer:
    def __init__(self, pid: int, folder: str, kill: Kill | None) -> None:
        self._pid = pid
        self._folder = folder
        self._kill = kill
        self._killed = False
        self._steps: list[Step] = []
        self._under_way: dict[int, int] = {}  # the step of each thread, by its number
        self._by_number = {
            numbers[_MACHINE or 0]: (call, numbers[2]) for call, numbers in _CALLS.items()
        }

    def run(self) -> Traced:
        _ptrace(_SETOPTIONS, self._pid, 0, _OPTIONS)
        _ptrace(_SYSCALL, self._pid)
        threads = {self._pid}
        while True:
            thread, status = os.waitpid(-1, _ALL_THREADS)
            if not os.WIFSTOPPED(status):
                threads.discard(thread)
                if thread == self._pid:
                    break
                continue
            told = os.WSTOPSIG(status)
            if told == _SYSCALL_STOP:
                self._at_stop(thread)
                told = 0
            elif status >> 16 or thread not in threads:
                told = 0  # a new thread, of which either it or its parent tells first
            threads.add(thread)
            try:
                _ptrace(_SYSCALL, thread, 0, told)
            except ProcessLookupError:
                if not self._killed:
                    raise
        if os.WIFEXITED(status) and os.WEXITSTATUS(status):
            raise RuntimeError("the work failed; what it said is on the standard error")
        return Traced(self._steps, self._killed)

    def _at_stop(self, thread: int) -> None:
        found = _SyscallInfo()
        try:
            _ptrace(_SYSCALL_INFO, thread, ctypes.sizeof(found), ctypes.byref(found))
        except ProcessLookupError:
            return  # killed together with its process
        if found.op == _ENTRY:
            step = self._step(found.number, found.arguments)
            if step is not None and not self._killed:
                self._under_way[thread] = len(self._steps)
                self._steps.append(step)
                self._perhaps_kill(thread, done=False)
        elif found.op == _EXIT and thread in self._under_way:
            self._perhaps_kill(thread, done=True)
            del self._under_way[thread]

    def _perhaps_kill(self, thread: int, *, done: bool) -> None:
        if self._kill == (self._under_way[thread], done):
            self._killed = True
            os.kill(self._pid, signal.SIGKILL)

    def _step(self, number: int, arguments: Any) -> Step | None:
        """Return the step that a call is, None if it does not matter."""
        call, spec = self._by_number.get(number, ("", ""))
        if not call or (call in _FLAGS and not arguments[_FLAGS[call]] & _WRITING):
            return None
        for named in spec.split():
            kind, position = named[0], int(named[1])
            path = self._path(kind, position, arguments, is_sync=call in _SYNCS)
            if path is not None and path.startswith(f"{self._folder}/"):
                name = path[len(self._folder) + 1 :]
                return Step(call, re.sub(r"[0-9a-f]{16,}", "*", name))
        return None

    def _path(self, kind: str, position: int, arguments: Any, *, is_sync: bool) -> str | None:
        try:
            if kind == "f":
                return self._open_file(arguments[position], is_sync=is_sync)
            if kind == "p":
                return self._below(_AT_FDCWD, self._text(arguments[position]))
            return self._below(arguments[position], self._text(arguments[position + 1]))
        except OSError:
            return None  # no such descriptor: the call will fail

    def _open_file(self, descriptor: int, *, is_sync: bool) -> str | None:
        link = f"/proc/{self._pid}/fd/{descriptor}"
        is_writable = os.lstat(link).st_mode & 0o200
        return os.readlink(link) if is_writable or is_sync else None

    def _below(self, descriptor: int, path: str) -> str:
        if path.startswith("/"):
            return path
        at_cwd = ctypes.c_int32(descriptor & 0xFFFF_FFFF).value == _AT_FDCWD
        place = "cwd" if at_cwd else f"fd/{descriptor}"
        return os.path.join(os.readlink(f"/proc/{self._pid}/{place}"), path)

    def _text(self, address: int) -> str:
        with open(f"/proc/{self._pid}/mem", "rb", buffering=0) as memory:
            memory.seek(address)
            # A string near the end of its page is read short, which is enough.
            return os.fsdecode(memory.read(_LONGEST_PATH).partition(b"\0")[0])
