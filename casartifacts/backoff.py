"""Backoff: try again what can pass, at once give up what cannot.

Rule 1: only what is known to pass is tried again: a network that breaks, a server that is busy. A
refusal, a wrong name, a full disk and everything unknown is raised as it came, from one request.
Rule 2: an attempt begins where the caller's stream stood, and a reader that died goes on at its
offset, on the same version of the object or not at all.
Rule 3: one line in the log per retry, which says what and why.
"""

from __future__ import annotations

import errno
import io
import logging
import random
import time
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast

from casartifacts import errors
from casartifacts.bodies import Range, take

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casartifacts.protocols import Backend, Entry

__all__ = ["Backoff", "answer_of"]

_logger = logging.getLogger(__name__)

_T = TypeVar("_T")

# Five minutes: the nine delays between ten tries take 51 s at most; into a black hole each takes up
# to 30 s more. It is never so long that what an upload knows of the store grows stale (an hour).
_DEADLINE_SECONDS = 300.0

# What HTTP says of a failure that passes: timeouts, too many requests, a server in trouble.
_PASSING_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})

# What S3 says of it, whatever the status.
_PASSING_CODES = frozenset(
    {"InternalError", "RequestTimeout", "ServiceUnavailable", "SlowDown", "Throttling"}
)

# A body that arrived with another checksum: once may be the network, twice is not.
_CHECKSUM_CODES = frozenset({"BadDigest", "XAmzContentChecksumMismatch", "DataCorruption"})

# Errors of the SDKs and of what they stand on, by name: none of them is loaded for this. `google`
# and `requests` call theirs like Python's own, which are in the list as well.
_PASSING_CLASSES = frozenset(
    {
        "ChunkedEncodingError",
        "ConnectionError",
        "HTTPClientError",
        "HTTPException",
        "IncompleteReadError",
        "ProtocolError",
        "ResponseStreamingError",
        "Timeout",
        "TimeoutError",
        "TransportError",
    }
)

_PASSING_ERRNOS = frozenset({errno.EAGAIN, errno.EINTR, errno.ESTALE, errno.ETIMEDOUT})

# Seconds that a server's Retry-After is followed at most.
_LONGEST_RETRY_AFTER = 120.0

# Small, so that larger reads go straight into the buffer of whoever reads.
_BUFFER_SIZE = 2**16


class Backoff:
    """Wraps a store or backend, and tries again with growing, random delays what can pass.

    Args:
        backend: What to wrap; the retries of its own client are switched off.
        max_retries: How many tries there are in all.
        multiplier: By how much the longest delay grows with each.
        min_delay: The longest delay before the second try, in seconds.
        max_delay: The longest delay of all, in seconds.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        max_retries: int = 10,
        multiplier: float = 2,
        min_delay: float = 0.1,
        max_delay: float = 30,
    ) -> None:
        if max_retries < 1 or multiplier <= 0 or not 0 < min_delay < max_delay:
            raise ValueError(
                "Backoff needs max_retries >= 1, multiplier > 0 and 0 < min_delay < max_delay; got "
                f"{max_retries=}, {multiplier=}, {min_delay=}, {max_delay=}"
            )
        self._backend = backend
        self._max_retries = max_retries
        self._multiplier = multiplier
        self._min_delay = min_delay
        self._max_delay = max_delay
        switch_off: Callable[[], None] | None = getattr(backend, "retries_off", None)
        if switch_off is not None:
            switch_off()

    def __repr__(self) -> str:
        return f"Backoff({self._backend!r})"

    @property
    def durable(self) -> bool:
        """Whether an acknowledged write survives a crash of the machine."""
        return self._backend.durable

    @property
    def remote(self) -> bool:
        """Whether every call costs a round trip."""
        return self._backend.remote

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Open a reader that goes on where it stopped if it dies."""
        reader = self._try(f"opening {artifact_id}", lambda: self._backend.open_reader(artifact_id))
        return self._resuming(artifact_id, reader, offset=0, end=None)

    def open_range(self, name: str, start: int, length: int) -> BinaryIO:
        """Open a range, for a reader that goes on where it stopped if it dies."""
        reader = self._try(f"opening {name}", lambda: self._backend.open_range(name, start, length))
        return self._resuming(name, reader, offset=start, end=start + length)

    def _resuming(self, name: str, reader: BinaryIO, *, offset: int, end: int | None) -> BinaryIO:
        if getattr(reader, "version", None) is None:
            return reader  # it cannot be opened midway, or needs not
        resuming = _Resuming(self, name, reader, offset=offset, end=end)
        return io.BufferedReader(resuming, _BUFFER_SIZE)

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Write, each time from where the body stood."""
        self._with_body(
            f"writing {artifact_id}",
            content_body,
            lambda body: self._backend.write(artifact_id, body),
        )

    def write_if_absent(self, name: str, content_body: BinaryIO) -> bool:
        """Write if absent; after a lost answer the name may be taken by this call itself."""
        return self._with_body(
            f"writing {name}",
            content_body,
            lambda body: self._backend.write_if_absent(name, body),
        )

    def remove(self, artifact_id: str) -> None:
        """Remove; what a retry finds missing has been removed by the try before it."""
        tries = 0

        def remove() -> None:
            nonlocal tries
            tries += 1
            try:
                self._backend.remove(artifact_id)
            except errors.ArtifactNotFound:
                if tries == 1:
                    raise

        self._try(f"removing {artifact_id}", remove)

    def stat(self, name: str) -> Entry | None:
        """Look at a name."""
        return self._try(f"looking at {name}", lambda: self._backend.stat(name))

    def list(self, prefix: str) -> Iterator[Entry]:
        """List; a listing that broke off begins again, and what was told is passed over."""
        last = ""
        is_ordered, begins_again = True, False
        entries = self._backend.list(prefix)

        def following() -> Entry | None:
            nonlocal entries, begins_again
            try:
                return next((e for e in entries if not begins_again or e.name > last), None)
            except Exception as error:
                if not is_ordered:
                    raise RuntimeError(
                        f"A listing of {prefix!r} in {self._backend!r} broke off, and cannot go on"
                        " because its names do not come in order; list again"
                    ) from error
                entries, begins_again = self._backend.list(prefix), True
                raise

        if not self._backend.remote:
            yield from entries
            return
        while (entry := self._try(f"listing {prefix}", following)) is not None:
            is_ordered &= entry.name > last
            last = entry.name
            yield entry

    def list_folders(self, prefix: str) -> Iterator[str]:
        """List folders; there are few of them, so all are fetched at once."""
        yield from self._try(f"listing {prefix}", lambda: list(self._backend.list_folders(prefix)))

    def move(self, source: str, target: str) -> None:
        """Move; what a retry finds missing at its source and present at its target was moved."""
        tries = 0

        def move() -> None:
            nonlocal tries
            tries += 1
            try:
                self._backend.move(source, target)
            except errors.ArtifactNotFound:
                if tries == 1 or self._backend.stat(target) is None:
                    raise

        self._try(f"moving {source}", move)

    def _get_sleep_secs(self, n_retry: int) -> float:
        return min(self._min_delay * self._multiplier**n_retry, self._max_delay)

    def _with_body(self, what: str, content_body: BinaryIO, call: Callable[[BinaryIO], _T]) -> _T:
        seekable = getattr(content_body, "seekable", None)
        if seekable is None or not seekable():
            source = take(content_body)
            try:
                body = cast("BinaryIO", Range(source.read_at, start=0, length=source.size()))
                return self._with_body(what, body, call)
            finally:
                source.close()
        start = content_body.tell()

        def attempt() -> _T:
            if content_body.tell() != start:
                content_body.seek(start)
            return call(content_body)

        return self._try(what, attempt)

    def _try(self, what: str, call: Callable[[], _T]) -> _T:
        started = time.monotonic()
        checksums = 0
        for n_retry in range(self._max_retries):
            try:
                return call()
            except Exception as error:
                checksums += _is_checksum(error)
                if not (_can_pass(error) or (checksums == 1 and _is_checksum(error))):
                    raise
                # Full jitter: many workers that failed together do not come back together.
                delay_seconds = random.uniform(0, self._get_sleep_secs(n_retry))  # noqa: S311
                delay_seconds = max(delay_seconds, _retry_after(error))
                left_seconds = started + _DEADLINE_SECONDS - time.monotonic()
                if n_retry + 1 == self._max_retries or delay_seconds > left_seconds:
                    error.add_note(f"casartifacts: {what} in {self._backend!r}, try {n_retry + 1}")
                    raise
                _logger.warning(
                    "%s in %r failed (%s: %s); try %d of %d in %.1f s",
                    what.capitalize(),
                    self._backend,
                    type(error).__name__,
                    error,
                    n_retry + 2,
                    self._max_retries,
                    delay_seconds,
                )
            time.sleep(delay_seconds)
        raise RuntimeError("unreachable: the last try returns or raises")


class _Resuming(io.RawIOBase):
    """A forward reader that is opened again, at its offset, when it dies."""

    def __init__(
        self, backoff: Backoff, artifact_id: str, reader: Any, *, offset: int, end: int | None
    ) -> None:
        self._backoff = backoff
        self._artifact_id = artifact_id
        self._reader = reader
        self._version = reader.version
        self._offset = offset
        self._end = end
        self._dead = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if self._offset == self._end:
            return 0
        count = self._backoff._try(f"reading {self._artifact_id}", lambda: self._read(buffer))  # noqa: SLF001
        self._offset += count
        return count

    def _read(self, buffer: memoryview) -> int:
        if self._dead:
            backend: Any = self._backoff._backend  # noqa: SLF001
            self._reader.close()
            self._reader = backend.open_from(
                self._artifact_id, self._offset, self._version, end=self._end
            )
            self._dead = False
        try:
            count: int = self._reader.readinto1(buffer)
        except Exception:
            self._dead = True
            raise
        return count

    def close(self) -> None:
        if not self.closed:
            self._reader.close()
        super().close()


def _can_pass(error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno in _PASSING_ERRNOS:
        return True
    status, code = answer_of(error)
    if status or code:
        return status in _PASSING_STATUSES or code in _PASSING_CODES
    classes = {parent.__name__ for parent in type(error).__mro__}
    if "SSLError" in classes:
        # A connection that broke off; a certificate that is refused now is refused again.
        return "EOF" in str(error)
    return not classes.isdisjoint(_PASSING_CLASSES)


def _is_checksum(error: Exception) -> bool:
    return answer_of(error)[1] in _CHECKSUM_CODES or type(error).__name__ in _CHECKSUM_CODES


def answer_of(error: Exception) -> tuple[int, str]:
    """Return the HTTP status and S3 error code that an error of an SDK carries, or 0 and ""."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return int(status or 0), str(response.get("Error", {}).get("Code", ""))
    # google.api_core has the code itself, requests and google.resumable_media have a response.
    for found in (getattr(error, "code", None), getattr(response, "status_code", None)):
        if isinstance(found, int):
            return int(found), ""
    return 0, ""


def _retry_after(error: Exception) -> float:
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        headers: Any = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    else:
        headers = getattr(response, "headers", {})
    try:
        seconds = float({name.lower(): value for name, value in headers.items()}["retry-after"])
    except (KeyError, ValueError, AttributeError, TypeError):
        return 0.0  # absent, or a date, which is seldom sent and never by object stores
    return min(max(seconds, 0.0), _LONGEST_RETRY_AFTER)
