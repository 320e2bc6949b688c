"""A Google Cloud Storage bucket as a place for named bytes.

What concerns one object goes through the authorized session of the client, one request each: the
library's own upload holds a small body twice in memory and cuts a larger one into many requests,
its download holds the whole, and all its calls ask once more, about the bucket, in a thread of
their own. Listings and copies are the library's.

Rule 1: every call says `retry=None` under a `Backoff`; else the library tries for 120 s by itself.
Rule 2: a body is streamed: what this holds in memory does not grow with it.
Rule 3: an error of the caller's body reaches the caller as it is.
"""

from __future__ import annotations

import io
import json
import os
import secrets
from datetime import datetime
from itertools import chain
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import quote

from casartifacts import errors, names
from casartifacts.backends.streaming import (
    CONNECTIONS,
    Guarded,
    Placed,
    byte_range,
    credentials_stay,
    empty_range,
    stream_reader,
)
from casartifacts.bodies import Range, take
from casartifacts.buffers import BUFFER_SIZE
from casartifacts.protocols import Entry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = ["GCSArtifactStore"]

# Seconds to connect (and to hand on a piece of a body), and to wait for the next bytes of an
# answer. The library waits 60 for each: ten tries into a black hole would take ten minutes.
_TIMEOUT = (10, 30)

# To how many hosts connections are kept: the default of requests.
_HOSTS = 10


class GCSArtifactStore:
    """Keeps each artifact as one object in a bucket.

    A client that was handed in passes its credentials, project and endpoint on to the children of a
    fork; a pickle is refused where the credentials are not those of this machine.

    Args:
        bucket_name: The bucket; it exists.
        client: A `google.cloud.storage.Client`; by default one is made by the usual settings.
        prefix: A folder in the bucket, for all names.
        user_project: The project that is billed, for a bucket where the requester pays.
        extra_args: Parameters of each upload in the words of the JSON API, such as
            `{"kmsKeyName": ..., "predefinedAcl": ...}`.
    """

    durable = True
    remote = True

    def __init__(
        self,
        bucket_name: str,
        client: Any | None = None,
        *,
        prefix: str = "",
        user_project: str | None = None,
        extra_args: Mapping[str, str] | None = None,
    ) -> None:
        self.bucket_name = bucket_name
        self._placed = Placed(names.check_prefix(prefix))
        self._user_project = user_project
        self._extra_args = dict(extra_args or {})
        self._retries = True
        self._client = client
        self._handed_in = client is not None
        self._settings: dict[str, Any] = {}
        self._made_in = os.getpid()
        if client is None:
            self._client = _make_client()

    def __repr__(self) -> str:
        prefix = f", prefix={self._placed.prefix!r}" if self._placed.prefix else ""
        return f"GCSArtifactStore({self.bucket_name!r}{prefix})"

    def __getstate__(self) -> dict[str, Any]:
        # A client holds sockets and secrets: the other process makes its own.
        settings = self._settings
        if self._handed_in:
            settings = _settings(self.client)
            if not _is_anonymous(settings["credentials"]):
                if not _is_of_this_machine(settings["credentials"]):
                    raise credentials_stay(self)
                del settings["credentials"]
        return {**self.__dict__, "_client": None, "_handed_in": False, "_settings": settings}

    @property
    def client(self) -> Any:
        """The client; another one after a fork, because sockets cannot be shared."""
        if self._client is None or self._made_in != os.getpid():
            settings = _settings(self._client) if self._handed_in else self._settings
            self._client = _make_client(**settings)
            self._made_in = os.getpid()
        return self._client

    @property
    def bucket_obj(self) -> Any:
        """The bucket of the client."""
        if self._user_project is None:
            return self.client.bucket(self.bucket_name)
        return self.client.bucket(self.bucket_name, user_project=self._user_project)

    def retries_off(self) -> None:
        """Let the client raise what it meets at once, because a `Backoff` tries again itself."""
        self._retries = False

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Open the object for reading, streamed."""
        return self.open_from(artifact_id, 0, None)

    def open_range(self, name: str, start: int, length: int) -> BinaryIO:
        """Open a range of the object, streamed."""
        from google.api_core.exceptions import RequestRangeNotSatisfiable

        if length <= 0:
            return empty_range(self, name)
        try:
            return self.open_from(name, start, None, end=start + length)
        except RequestRangeNotSatisfiable:
            return io.BytesIO()  # it begins behind the end

    def open_from(
        self, artifact_id: str, offset: int, version: str | None, *, end: int | None = None
    ) -> BinaryIO:
        """Open the object from an offset; of another version than this one it is an error."""
        params = {} if version is None else {"ifGenerationMatch": version}
        headers = {"Range": byte_range(offset, end)} if offset or end is not None else {}
        answer = self._get(artifact_id, params, headers)
        return stream_reader(answer.raw, answer.headers.get("X-Goog-Generation"))

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Write the object in one request."""
        self._write(artifact_id, content_body, {})

    def write_if_absent(self, name: str, content_body: BinaryIO) -> bool:
        """Write the object unless it exists."""
        from google.api_core.exceptions import PreconditionFailed

        try:
            self._write(name, content_body, {"ifGenerationMatch": "0"})
        except PreconditionFailed:
            return False
        return True

    def remove(self, artifact_id: str) -> None:
        """Delete the object."""
        self._ask("DELETE", artifact_id, params={})

    def stat(self, name: str) -> Entry | None:
        """Ask for the size and time of an object."""
        try:
            found = self._ask("GET", name, params={"fields": "size,updated"}).json()
        except errors.ArtifactNotFound:
            return None
        return Entry(name, int(found["size"]), datetime.fromisoformat(found["updated"]).timestamp())

    def list(self, prefix: str) -> Iterator[Entry]:
        """Page through the objects below a prefix."""
        for found in self.bucket_obj.list_blobs(
            prefix=self._placed.below(prefix), **self._options()
        ):
            yield Entry(self._placed.name(found.name), found.size, found.updated.timestamp())

    def list_folders(self, prefix: str) -> Iterator[str]:
        """Page through the next path components below a prefix."""
        listing = self.bucket_obj.list_blobs(
            prefix=self._placed.below(prefix), delimiter="/", **self._options()
        )
        for page in listing.pages:
            for folder in page.prefixes:
                yield self._placed.name(folder)[len(prefix) :].rstrip("/")

    def move(self, source: str, target: str) -> None:
        """Copy on the server's side, compare the size, delete the source."""
        before = self.stat(source)
        if before is None:
            raise errors.not_found(source, self)
        if source == target:
            return
        bucket = self.bucket_obj
        blob = bucket.blob(self._placed.full_name(source))
        copy = bucket.blob(self._placed.full_name(target))
        token, _, _ = copy.rewrite(blob, **self._options())
        while token is not None:
            token, _, _ = copy.rewrite(blob, token=token, **self._options())
        after = self.stat(target)
        if after is None or after.size != before.size:
            raise OSError(
                f"{source} ({before.size} bytes) was copied to {target} in {self!r}, which has "
                f"{after.size if after else 'no'} bytes now; the source was left as it is"
            )
        self.remove(source)

    def _options(self) -> dict[str, Any]:
        return {} if self._retries else {"retry": None, "timeout": _TIMEOUT}

    def _params(self) -> dict[str, str]:
        return {} if self._user_project is None else {"userProject": self._user_project}

    def _objects(self, kind: str) -> str:
        bucket = quote(self.bucket_name, safe="")
        return f"{self.client.api_endpoint}/{kind}storage/v1/b/{bucket}/o"

    def _get(self, name: str, params: dict[str, str], headers: dict[str, str]) -> Any:
        """Ask for the bytes of an object, as they are stored."""
        headers = {"Accept-Encoding": "gzip", **headers}
        params = {"alt": "media", **params}
        return self._ask("GET", name, kind="download/", params=params, headers=headers, stream=True)

    def _ask(
        self, method: str, name: str, *, params: dict[str, str], kind: str = "", **options: Any
    ) -> Any:
        """Make one request for an object."""
        url = f"{self._objects(kind)}/{quote(self._placed.full_name(name), safe='')}"

        def ask() -> Any:
            answer = self.client._http.request(  # noqa: SLF001 -- its session, with its credentials
                method, url, params={**self._params(), **params}, timeout=_TIMEOUT, **options
            )
            if answer.status_code == 404 and _is_about_an_object(answer.content):  # noqa: PLR2004 -- HTTP
                raise errors.not_found(name, self)
            _check(answer)
            return answer

        return self._try(ask)

    def _try(self, ask: Callable[[], Any], *, body: Guarded | None = None) -> Any:
        """Make a request; without a `Backoff`, as often as the library would."""
        if not self._retries:
            return ask()
        from google.cloud.storage.retry import DEFAULT_RETRY

        def passes(error: Exception) -> bool:
            is_theirs = body is not None and body.raised is not None
            return not is_theirs and DEFAULT_RETRY._predicate(error)  # noqa: SLF001 -- its own

        return DEFAULT_RETRY.with_predicate(passes)(ask)()

    def _write(self, name: str, content_body: BinaryIO, params: dict[str, str]) -> None:
        full_name = self._placed.full_name(name)  # refused before the body is touched
        if isinstance(content_body, Range):
            self._upload(full_name, content_body, params)
            return
        source = take(content_body)
        try:
            size = source.size()
            self._upload(full_name, Range(source.read_at, start=0, length=size), params)
            source.finish(size)
        finally:
            source.close()

    def _upload(self, full_name: str, content: Range, params: dict[str, str]) -> None:
        body = Guarded(content)
        params = {"uploadType": "multipart", **self._params(), **self._extra_args, **params}

        def send() -> None:
            body.seek(0)
            message = _Message(body, name=full_name)
            with body.errors_as_they_are():
                answer = self.client._http.request(  # noqa: SLF001 -- as above
                    "POST",
                    self._objects("upload/"),
                    params=params,
                    headers={"Content-Type": message.content_type},
                    data=message,
                    timeout=_TIMEOUT,
                )
            _check(answer)
            if int(answer.json()["size"]) != len(body):
                raise ConnectionError(
                    f"{full_name} has {answer.json()['size']} bytes in {self!r} after {len(body)} "
                    "were sent"
                )

        self._try(send, body=body)


class _Message:
    """A multipart upload of the JSON API: the object's name, then its body, streamed and sent once.

    Once, because a session that refreshes its credentials would send what is left of the body
    again. It has a length and no position, so that the whole length is announced all the same.
    (A plain media upload would do, but emulators ignore its preconditions.)
    """

    def __init__(self, body: Guarded, *, name: str) -> None:
        boundary = secrets.token_hex(16)
        self.content_type = f"multipart/related; boundary={boundary}"
        head = (
            f"--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n"
            f"{json.dumps({'name': name})}\r\n"
            f"--{boundary}\r\nContent-Type: application/octet-stream\r\n\r\n"
        ).encode()
        tail = f"\r\n--{boundary}--\r\n".encode()
        self._length = len(head) + len(body) + len(tail)
        self._pieces = chain([head], iter(lambda: body.read(BUFFER_SIZE), b""), [tail])
        self._ended = False

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[bytes]:
        if self._ended:
            raise ConnectionError("The server asked for the body a second time; send it again")
        self._ended = True
        return self._pieces


def _is_about_an_object(told: bytes) -> bool:
    """Whether it is the object that is missing, not the bucket.

    Google says "No such object: <bucket>/<name>", with whatever words are in these names, or "The
    specified bucket does not exist."; emulators say less.
    """
    told = told.lower()
    return b"no such object" in told or b"bucket" not in told


def _check(answer: Any) -> None:
    from google.api_core.exceptions import from_http_response

    if answer.status_code >= 400:  # noqa: PLR2004
        raise from_http_response(answer)  # type: ignore[no-untyped-call]


def _settings(client: Any) -> dict[str, Any]:
    """Return what makes a client of the same identity, for the same server."""
    return {
        "project": client.project,
        "credentials": client._credentials,  # noqa: SLF001 -- no other way
        "client_options": {"api_endpoint": client.api_endpoint},
    }


def _is_anonymous(credentials: Any) -> bool:
    from google.auth.credentials import AnonymousCredentials

    return isinstance(credentials, AnonymousCredentials)


def _is_of_this_machine(credentials: Any) -> bool:
    """Whether a client without arguments would have these credentials, as far as can be seen."""
    from google.auth.exceptions import DefaultCredentialsError

    try:
        found = _make_client(project=None)._credentials  # noqa: SLF001 -- as above
    except DefaultCredentialsError:
        return False
    emails = {getattr(each, "service_account_email", None) for each in (credentials, found)}
    # A machine of Google's says "default" until it has asked for the name.
    return type(credentials) is type(found) and (len(emails) == 1 or "default" in emails)


def _make_client(**settings: Any) -> Any:
    try:
        from google.cloud import storage
    except ImportError as error:
        raise ImportError(
            "A GCS store needs google-cloud-storage: pip install google-cloud-storage, "
            "or pip install 'casartifacts[gcs]'"
        ) from error
    client: Any = storage.Client(**settings)
    # Not a new adapter: that of mTLS has a certificate.
    for adapter in client._http.adapters.values():  # noqa: SLF001 -- as above
        adapter.init_poolmanager(_HOSTS, CONNECTIONS)
    return client
