"""An S3 bucket, or one of any server that speaks S3, as a place for named bytes.

Every request is small enough to be retried blindly where `ContentStore` stands above: it writes
blobs of at most 64 MiB. Used alone, for artifacts of any size, a body above that goes out in parts.

Rule 1: what a server does with conditions and checksums differs, and none of it is relied upon:
content-named bytes are the same whoever writes them, and they are verified when they are read.
Rule 2: a body is streamed: what this holds in memory does not grow with it.
Rule 3: an error of the caller's body reaches the caller as it is, not wrapped by the SDK.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, cast

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
from casartifacts.protocols import Entry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from datetime import datetime

__all__ = ["Boto3ArtifactStore"]

_logger = logging.getLogger(__name__)

# Seconds to connect (and to hand on a piece of a body), and to wait for the next bytes of an
# answer. The SDK waits 60 for each: ten tries into a black hole would take ten minutes.
_CONNECT_TIMEOUT = 10
_READ_TIMEOUT = 30

# One PUT up to here, parts of this size above; S3 wants at least 5 MiB and at most 10,000 parts.
_PART_SIZE = 64 * 2**20
_MOST_PARTS = 10_000

# Up to here a body is sent at once, without asking the server first.
_SMALL_SIZE = 2**20

# A first-comer may be writing the same name: S3 answers 409 and says "try again".
_MOST_CONFLICTS = 5

# What is written for `botocore.UNSIGNED`, which cannot be pickled.
_UNSIGNED = "unsigned"

_MISSING = {"NoSuchKey", "404", "NotFound"}

# What breaks an upload may break its end, too, once.
_MOST_ABORTS = 3

# What S3 leaves unsaid: a HEAD is answered without words, and a missing name like a forbidden one.
_UNSAID = {
    400: "S3 does not say why; often the credentials have expired: renew them.",
    403: (
        "Either these credentials may not read it, or it is missing and they may not list the "
        "bucket: without s3:ListBucket, S3 answers 403 for what is missing. Grant s3:GetObject and "
        "s3:ListBucket."
    ),
}


# What its codes mean to who set the store up.
_MEANT = {
    "NoSuchBucket": "There is no such bucket: is its name right, and the server? Make it first.",
    "InvalidAccessKeyId": "This server does not know the key: are these its credentials?",
    "SignatureDoesNotMatch": "The secret does not belong to the key, or the clock here is wrong.",
    "RequestTimeTooSkewed": "The clock here is wrong: set it.",
}


class Boto3ArtifactStore:
    """Keeps each artifact as one object in a bucket.

    A client that was handed in passes its credentials and settings on to the children of a fork; a
    pickle takes the settings, and is refused where the credentials are not those of this machine.

    Args:
        bucket_name: The bucket; it exists.
        client: A boto3 S3 client; by default one is made by the usual AWS settings.
        avoid_buf_copy: Accepted because Optuna's store has it; nothing is ever copied here.
        prefix: A folder in the bucket, for all names.
        endpoint_url: The server, where it is not Amazon's and no AWS setting names it.
        extra_args: What each request must carry, in the words of boto3, such as
            `{"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": ..., "StorageClass": ...,
            "RequestPayer": "requester"}`; an operation gets those that it knows.
    """

    durable = True
    remote = True

    def __init__(
        self,
        bucket_name: str,
        client: Any | None = None,
        *,
        avoid_buf_copy: bool = False,  # noqa: ARG002 -- the signature is Optuna's
        prefix: str = "",
        endpoint_url: str | None = None,
        extra_args: Mapping[str, Any] | None = None,
    ) -> None:
        self.bucket = bucket_name
        self._placed = Placed(names.check_prefix(prefix))
        self._endpoint_url = endpoint_url
        self._extra_args = dict(extra_args or {})
        self._retries = True
        self._conditions = True
        self._client = client
        self._handed_in = client is not None
        self._settings: dict[str, Any] = {}
        self._made_in = os.getpid()
        if client is None:
            self._client = self._make_client()
        else:
            _prepare(client)

    def __repr__(self) -> str:
        told = [repr(self.bucket)]
        if self._placed.prefix:
            told.append(f"prefix={self._placed.prefix!r}")
        if self._endpoint_url:
            told.append(f"endpoint_url={self._endpoint_url!r}")
        return f"Boto3ArtifactStore({', '.join(told)})"

    def __getstate__(self) -> dict[str, Any]:
        # A client holds sockets, locks and perhaps secrets: the other process makes its own with
        # its own credentials, for the same server.
        settings = self._settings
        if self._handed_in:
            if not _is_of_this_machine(_credentials(self.client)):
                raise credentials_stay(self)
            settings = _settings(self.client)
            settings.pop("proxies", None)  # they may have a password in them
        return {
            **self.__dict__,
            "_client": None,
            "_handed_in": False,
            "_settings": settings,
            "_endpoint_url": self._endpoint_url or self.client.meta.endpoint_url,
        }

    @property
    def client(self) -> Any:
        """The boto3 client; another one after a fork, because sockets cannot be shared."""
        if self._client is None or self._made_in != os.getpid():
            if self._client is not None and self._endpoint_url is None:
                self._endpoint_url = self._client.meta.endpoint_url
            self._client = self._make_client()
            self._made_in = os.getpid()
        return self._client

    @property
    def conditions(self) -> bool:
        """Whether the server takes `If-None-Match`: True until it refused one."""
        return self._conditions

    def retries_off(self) -> None:
        """Let the client raise what it meets at once, because a `Backoff` tries again itself."""
        self._retries = False
        # The one handler behind all of botocore's retry modes.
        self.client.meta.events.unregister("needs-retry.s3", unique_id="retry-config-s3")

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Open the object for reading, streamed."""
        return self.open_from(artifact_id, 0, None)

    def open_range(self, name: str, start: int, length: int) -> BinaryIO:
        """Open a range of the object, streamed."""
        if length <= 0:
            return empty_range(self, name)
        try:
            return self.open_from(name, start, None, end=start + length)
        except _client_error() as error:
            if _status(error) == 416:  # noqa: PLR2004 -- it begins behind the end
                return io.BytesIO()
            raise

    def open_from(
        self, artifact_id: str, offset: int, version: str | None, *, end: int | None = None
    ) -> BinaryIO:
        """Open the object from an offset; of another version than this one it is an error."""
        wanted: dict[str, Any] = {}
        if offset or end is not None:
            wanted["Range"] = byte_range(offset, end)
        if version is not None:
            wanted["IfMatch"] = version
        answer = self._call("get_object", artifact_id, **wanted)
        return stream_reader(answer["Body"], answer["ETag"])

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Write the object: one PUT, or parts where it is large."""
        with self._sending(artifact_id, content_body) as send:
            send()

    def write_if_absent(self, name: str, content_body: BinaryIO) -> bool:
        """Write the object unless it exists; a server that cannot tell is asked first."""
        with self._sending(name, content_body) as send:
            tries = _MOST_CONFLICTS if self._conditions else 0
            for _ in range(tries):
                try:
                    send(IfNoneMatch="*")
                except _client_error() as error:
                    if _status(error) == 412:  # noqa: PLR2004
                        return False
                    if _status(error) in {411, 501}:
                        self._conditions = False
                        break
                    if _status(error) != 409:  # noqa: PLR2004 -- a status of HTTP
                        raise
                else:
                    return True
            if self.stat(name) is not None:
                return False
            send()
            return True

    def remove(self, artifact_id: str) -> None:
        """Delete the object; S3 deletes what is missing without a word, so it is asked first."""
        if self.stat(artifact_id) is None:
            raise errors.not_found(artifact_id, self)
        self.discard(artifact_id)

    def discard(self, name: str) -> None:
        """Delete the object without asking whether there is one: it takes no other right."""
        self._call("delete_object", name)

    def takes_default_checksums(self, name: str) -> bool:
        """Write a few bytes as a client does that was made with boto3's own defaults.

        Returns whether the server takes them with the checksum that boto3 adds.
        """
        client = self._make_client(request_checksum_calculation="when_supported")
        where = {"Bucket": self.bucket, "Key": self._placed.full_name(name)}
        try:
            client.put_object(**where, Body=b"checksum", **self._extra("put_object"))
        except _client_error() as error:
            if _status(error) in {400, 411, 501}:
                return False
            raise
        finally:
            client.close()
        return True

    def stat(self, name: str) -> Entry | None:
        """Ask for the size and time of an object."""
        try:
            answer = self._call("head_object", name)
        except errors.ArtifactNotFound:
            return None
        return Entry(name, answer["ContentLength"], _seconds(answer["LastModified"]))

    def list(self, prefix: str) -> Iterator[Entry]:
        """Page through the objects below a prefix."""
        for page in self._pages(prefix):
            for item in page.get("Contents", ()):
                yield Entry(
                    self._placed.name(item["Key"]), item["Size"], _seconds(item["LastModified"])
                )

    def list_folders(self, prefix: str) -> Iterator[str]:
        """Page through the next path components below a prefix."""
        for page in self._pages(prefix, Delimiter="/"):
            for item in page.get("CommonPrefixes", ()):
                yield self._placed.name(item["Prefix"])[len(prefix) :].rstrip("/")

    def move(self, source: str, target: str) -> None:
        """Copy on the server's side, compare the size, delete the source."""
        before = self.stat(source)
        if before is None:
            raise errors.not_found(source, self)
        if source == target:
            return
        origin = {"Bucket": self.bucket, "Key": self._placed.full_name(source)}
        self._call("copy_object", target, CopySource=origin)
        after = self.stat(target)
        if after is None or after.size != before.size:
            raise OSError(
                f"{source} ({before.size} bytes) was copied to {target} in {self!r}, which has "
                f"{after.size if after else 'no'} bytes now; the source was left as it is"
            )
        self.discard(source)

    def _make_client(self, **changes: str) -> Any:
        try:
            import boto3
            import botocore
            from botocore.config import Config
        except ImportError as error:
            raise ImportError(
                "An S3 store needs boto3: pip install boto3, or pip install 'casartifacts[s3]'"
            ) from error
        session: Any = boto3
        settings = self._settings or {
            "max_pool_connections": CONNECTIONS,
            "connect_timeout": _CONNECT_TIMEOUT,
            "read_timeout": _READ_TIMEOUT,
            # The default CRC32 trailer is refused by Ceph (411) and Swift (501) over https, and
            # some servers answer a range with the checksum of the whole object.
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
            # Else a body is read twice over http; what is stored is verified when it is read.
            "s3": {"payload_signing_enabled": False},
        }
        if self._handed_in:
            settings = _settings(self._client)
            given = botocore.session.get_session()
            given._credentials = _credentials(self._client)  # noqa: SLF001 -- they renew themselves
            session = boto3.Session(botocore_session=given)
        if settings.get("signature_version") == _UNSIGNED:
            changes["signature_version"] = botocore.UNSIGNED
        retries = {} if self._retries else {"retries": {"total_max_attempts": 1}}
        config = Config(**{**settings, **changes, **retries})
        client = session.client("s3", endpoint_url=self._endpoint_url, config=config)
        _prepare(client)
        return client

    def _call(self, operation: str, name: str, **arguments: Any) -> Any:
        """Make one request for an object."""
        call: Callable[..., Any] = getattr(self.client, operation)
        try:
            return call(
                Bucket=self.bucket,
                Key=self._placed.full_name(name),
                **self._extra(operation),
                **arguments,
            )
        except _client_error() as error:
            if _status(error) == 404 and _code(error) in _MISSING:  # noqa: PLR2004
                raise errors.not_found(name, self) from error
            is_looked_for = operation in {"get_object", "head_object"}
            unsaid = _UNSAID.get(_status(error)) if is_looked_for else None
            if meant := _MEANT.get(_code(error)) or unsaid:
                error.add_note(f"casartifacts: {name} in {self!r}: {meant}")
            raise

    def _extra(self, operation: str) -> dict[str, Any]:
        if not self._extra_args:
            return {}
        meta = self.client.meta
        shape = meta.service_model.operation_model(meta.method_to_api_mapping[operation])
        return {
            argument: value
            for argument, value in self._extra_args.items()
            if argument in shape.input_shape.members
        }

    def _pages(self, prefix: str, **arguments: Any) -> Iterator[Any]:
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket,
            Prefix=self._placed.below(prefix),
            **self._extra("list_objects_v2"),
            **arguments,
        )
        try:
            yield from pages
        except _client_error() as error:
            if meant := _MEANT.get(_code(error)):
                error.add_note(f"casartifacts: {self!r}: {meant}")
            raise

    @contextlib.contextmanager
    def _sending(self, name: str, content_body: BinaryIO) -> Iterator[Callable[..., None]]:
        """Take a body once; yields what sends it, each time from its beginning."""
        full_name = self._placed.full_name(name)  # refused before the body is touched
        if isinstance(content_body, Range):
            yield partial(self._put, name, content_body)
            return
        source = take(content_body)
        try:
            size = source.size()
            if size <= _PART_SIZE:
                yield partial(self._put, name, Range(source.read_at, start=0, length=size))
            else:
                yield lambda **_: self._write_parts(full_name, source.read_at, size)
            source.finish(size)
        finally:
            source.close()

    def _put(self, name: str, content_body: Range, **arguments: Any) -> None:
        content_body.seek(0)
        body = Guarded(content_body)
        try:
            with body.errors_as_they_are():
                # Bytes are sent at once, see `_ask_nothing`; an empty stream is none to boto3.
                content = body if len(body) > _SMALL_SIZE else body.read_all()
                self._call("put_object", name, Body=content, **arguments)
        except _client_error() as error:
            if _status(error) in {411, 501} and "IfNoneMatch" not in arguments:
                error.add_note(
                    "This server does not take checksums in a trailer. Make the client with "
                    "botocore.config.Config(request_checksum_calculation='when_required')."
                )
            raise

    def _write_parts(self, full_name: str, read_at: Callable[[int, int], bytes], size: int) -> None:
        client = self.client
        where = {"Bucket": self.bucket, "Key": full_name}
        part_size = max(_PART_SIZE, -(-size // _MOST_PARTS))
        upload = client.create_multipart_upload(**where, **self._extra("create_multipart_upload"))
        where["UploadId"] = upload["UploadId"]
        parts = []
        try:
            for number, start in enumerate(range(0, size, part_size), 1):
                part = Range(read_at, start=start, length=min(part_size, size - start))
                body = Guarded(part)
                with body.errors_as_they_are():
                    answer = client.upload_part(
                        **where, PartNumber=number, Body=body, **self._extra("upload_part")
                    )
                parts.append({"PartNumber": number, "ETag": answer["ETag"]})
            client.complete_multipart_upload(
                **where,
                MultipartUpload={"Parts": parts},
                **self._extra("complete_multipart_upload"),
            )
        except BaseException:
            self._abort(where)
            raise

    def _abort(self, where: dict[str, Any]) -> None:
        """Drop unfinished parts, which cost money for ever; what broke them is raised, not this."""
        extra = self._extra("abort_multipart_upload")
        for _ in range(_MOST_ABORTS):
            try:
                self.client.abort_multipart_upload(**where, **extra)
            except Exception as error:  # noqa: BLE001 -- what broke the upload is what is raised
                _logger.warning("Parts of %s may be left in %r: %s", where["Key"], self, error)
                if _status(error) == 404:  # noqa: PLR2004 -- they are gone
                    return
            else:
                return


def _settings(client: Any) -> dict[str, Any]:
    """Return the configuration of a client, with its region, in the words of botocore."""
    import botocore

    config = client.meta.config
    told = {name: getattr(config, name) for name in config.OPTION_DEFAULTS}
    settings = {name: value for name, value in told.items() if value is not None}
    del settings["user_agent"]  # it would grow with each client
    if settings["signature_version"] is botocore.UNSIGNED:
        settings["signature_version"] = _UNSIGNED
    elif settings["signature_version"] == "s3v4":
        del settings["signature_version"]  # said aloud, it shuts out what a kind of bucket needs
    return settings


def _credentials(client: Any) -> Any:
    return client._request_signer._credentials  # noqa: SLF001 -- no other way; boto3 has none


def _is_of_this_machine(credentials: Any) -> bool:
    """Whether a client without arguments would have these credentials, as far as can be seen."""
    import botocore.session

    if credentials is None:
        return True
    found = botocore.session.get_session().get_credentials()
    if found is None:
        return False
    # Keys that are renewed are other ones in each process, also for the same role.
    if hasattr(credentials, "refresh_needed") and credentials.method == found.method:
        return True
    same: bool = credentials.access_key == found.access_key
    return same


def _prepare(client: Any) -> None:
    client.meta.events.register_last(
        "before-call.s3", _ask_nothing, unique_id="casartifacts-ask-nothing"
    )


def _ask_nothing(params: dict[str, Any], **_: object) -> None:
    """Send what is small at once.

    boto3 asks the server first whether it wants a body, which costs a round trip: worth it for what
    is large. What was handed to it as bytes it has wrapped in a BytesIO by now.
    """
    if isinstance(params.get("body"), io.BytesIO):
        params["headers"].pop("Expect", None)


def _client_error() -> type[Exception]:
    from botocore.exceptions import ClientError

    return cast("type[Exception]", ClientError)


def _seconds(modified: datetime) -> float:
    # Whole seconds: a HEAD tells no more, while some servers list thousandths.
    return float(int(modified.timestamp()))


def _status(error: BaseException) -> int:
    response: Mapping[str, Any] = getattr(error, "response", None) or {}
    status: int = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status


def _code(error: BaseException) -> str:
    response: Mapping[str, Any] = getattr(error, "response", {})
    code: str = response.get("Error", {}).get("Code", "")
    return code
