"""What a started server is to a test: where it listens, what to export, how to end it.

Rule 1: standard library only; a test that needs boto3 or google-cloud-storage imports it itself.
Rule 2: a `Server` is a view. `behind(url)` and `over_https()` give other views of the same running
programs; ending one ends all, and what a view itself asks never passes a proxy.
"""

from __future__ import annotations

import base64
import hmac
import http.client
import json
import os
import shlex
import uuid
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from typing import TYPE_CHECKING, Literal, Self
from urllib.parse import urlsplit

from serving.processes import ServerFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from serving.processes import Programs

__all__ = ["Server"]


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running server on the loopback.

    Attributes:
        name: "ceph", "ministack" or "gcs".
        protocol: What it speaks.
        home: Where it listens, by plain HTTP.
        url: Where clients are to reach it: home, over TLS, or a proxy.
        https_url: Where it listens over TLS, if it does.
        ca_bundle: What `https_url` is verified with.
        access_key_id: The S3 user who owns everything; None for GCS.
        secret_access_key: The same user's.
        durable: Whether what it has acknowledged survives `kill` and `restart`.
    """

    name: str
    protocol: Literal["s3", "gcs"]
    home: str
    url: str
    https_url: str | None = None
    ca_bundle: str | None = None
    access_key_id: str | None = None
    secret_access_key: str | None = field(default=None, repr=False)
    durable: bool
    _programs: Programs = field(repr=False)
    _boot: Callable[[], None] = field(repr=False)

    @property
    def environment(self) -> Mapping[str, str]:
        """What to export, so that clients made without arguments talk to this server.

        It shuts out a developer's own profiles, and proxies for the loopback.
        """
        shared = {"no_proxy": "127.0.0.1,localhost"}
        if self.protocol == "gcs":
            shared |= {"STORAGE_EMULATOR_HOST": self.url, "GOOGLE_CLOUD_PROJECT": "test"}
            if self.ca_bundle and self.url.startswith("https:"):
                shared["REQUESTS_CA_BUNDLE"] = self.ca_bundle
            return shared
        environment = {
            **shared,
            "AWS_ENDPOINT_URL_S3": self.url,
            "AWS_ACCESS_KEY_ID": self.access_key_id or "",
            "AWS_SECRET_ACCESS_KEY": self.secret_access_key or "",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }
        if self.ca_bundle and self.url.startswith("https:"):
            environment["AWS_CA_BUNDLE"] = self.ca_bundle
        return environment

    def exports(self) -> str:
        """Return `environment` as lines for a shell."""
        return "".join(
            f"export {name}={shlex.quote(value)}\n" for name, value in self.environment.items()
        )

    def over_https(self) -> Server:
        """Return this server, to be reached over TLS."""
        if self.https_url is None:
            raise ValueError(f"{self.name} listens without TLS only; ceph has both")
        return replace(self, url=self.https_url)

    def behind(self, url: str, *, ca_bundle: str | None = None) -> Server:
        """Return this server, to be reached through what listens at `url`.

        fake-gcs-server tells its clients where to go on (media links, sessions of resumable
        uploads): from now on it names `url`, to clients of every view.
        """
        if self.protocol == "gcs":
            self._ask("PUT", "/_internal/config", wanted={"externalUrl": url})
        return replace(self, url=url, ca_bundle=ca_bundle or self.ca_bundle)

    def make_bucket(self, name: str | None = None) -> str:
        """Make an empty bucket under this name, or under a fresh one; return the name."""
        name = name or f"bucket-{uuid.uuid4().hex}"
        if self.protocol == "gcs":
            self._ask("POST", "/storage/v1/b?project=test", wanted={"name": name})
        else:
            self._ask("PUT", f"/{name}")
        return name

    def answers(self) -> bool:
        """Tell whether it takes its user's requests now."""
        try:
            self._ask("GET", "/storage/v1/b?project=test" if self.protocol == "gcs" else "/")
        except (OSError, http.client.HTTPException, ServerFailed):
            return False
        return True

    def pids(self) -> list[int]:
        """List the process ids of its programs."""
        return self._programs.pids()

    def kill(self, *names: str) -> None:
        """End its programs with SIGKILL, or only some of Ceph's: mon, osd, radosgw."""
        self._programs.kill(*names)

    def restart(self) -> None:
        """Start what does not run, on the same ports, and return when it answers."""
        self._boot()
        self._programs.wait_until(self.answers, what=f"answer from {self.name}")

    def stop(self) -> None:
        """End it for good and remove its folder; may be called twice."""
        self._programs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _ask(self, method: str, path: str, *, wanted: object = None) -> None:
        connection = http.client.HTTPConnection(urlsplit(self.home).netloc, timeout=60)
        try:
            body = None if wanted is None else json.dumps(wanted).encode()
            connection.request(method, path, body=body, headers=self._signature(method, path))
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        if answer.status != http.client.OK:
            raise ServerFailed(f"{self.name}: {method} {path} gave {answer.status}: {text!r}")

    def _signature(self, method: str, path: str) -> dict[str, str]:
        # Version 2 is enough for a request without parameters, and fits in three lines.
        if self.protocol != "s3":
            return {}
        date = formatdate(usegmt=True)
        signed = hmac.digest(
            (self.secret_access_key or "").encode(),
            f"{method}\n\n\n{date}\n{path}".encode(),
            "sha1",
        )
        signature = base64.b64encode(signed).decode()
        return {"Date": date, "Authorization": f"AWS {self.access_key_id}:{signature}"}
