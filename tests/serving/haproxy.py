"""HAProxy in front of a server that speaks plain HTTP: TLS, and a 503 now and then.

    with HAProxy(proxy.url, refused_permille=50) as front:
        seen = server.behind(front.url, ca_bundle=front.ca_bundle)
        ...
        assert front.refused()

Rule: what it does not refuse it hands on as it came, so that a `Proxy` behind it can break it.
"""

from __future__ import annotations

import csv
import http.client
import shutil
from typing import Self
from urllib.parse import urlsplit

from serving.ceph import CERTIFICATE
from serving.processes import Programs, ServerFailed, free_port

__all__ = ["HAProxy"]

_SETTINGS = """global
    maxconn 1000
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend front
    bind 127.0.0.1:{port} ssl crt {folder}/both.pem
    http-request return {refusal} if {{ rand(1000) lt {permille} }}
    default_backend behind
backend behind
    server only {upstream}
frontend figures
    bind 127.0.0.1:{figures_port}
    stats enable
    stats uri /
"""

_REFUSAL = "status 503 content-type application/xml string <Error><Code>SlowDown</Code></Error>"


class HAProxy:
    """Listens on the loopback, by TLS, at `url`; `ca_bundle` is what that is verified with."""

    def __init__(self, upstream: str, *, refused_permille: int = 0) -> None:
        if reason := self.missing():
            raise ServerFailed(reason)
        self._programs = Programs("haproxy")
        self._figures_port, port = free_port(), free_port()
        folder = self._programs.folder
        self.url = f"https://127.0.0.1:{port}"
        self.ca_bundle = str(folder / "certificate.pem")
        settings = _SETTINGS.format(
            folder=folder,
            port=port,
            figures_port=self._figures_port,
            refusal=_REFUSAL,
            permille=refused_permille,
            upstream=urlsplit(upstream).netloc,
        )
        (folder / "haproxy.cfg").write_text(settings)
        try:
            self._programs.run("certificate", CERTIFICATE)
            parts = [(folder / name).read_bytes() for name in ("certificate.pem", "private.pem")]
            (folder / "both.pem").write_bytes(b"".join(parts))
            self.restart()
        except BaseException:
            self.close()
            raise

    @staticmethod
    def missing() -> str | None:
        """Return why it cannot be started here, or None if it can."""
        if shutil.which("haproxy") and shutil.which("openssl"):
            return None
        return "haproxy needs haproxy and openssl: as root, `tools/servers install` installs them"

    def refused(self) -> int:
        """Return how many requests it has refused since it was started."""
        return int(self._figures()["hrsp_5xx"])

    def kill(self) -> None:
        """End it with SIGKILL: connections break off in the middle of their TLS."""
        self._programs.kill("haproxy")

    def restart(self) -> None:
        """Start it, unless it runs, on the same ports; returns when it listens."""
        self._programs.start("haproxy", ["haproxy", "-db", "-f", "haproxy.cfg"])
        self._programs.wait_until(self._listens, what="answer from haproxy")

    def close(self) -> None:
        """End it for good and remove its folder; may be called twice."""
        self._programs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _listens(self) -> bool:
        try:
            self._figures()
        except (OSError, http.client.HTTPException):
            return False
        return True

    def _figures(self) -> dict[str, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self._figures_port, timeout=10)
        try:
            connection.request("GET", "/;csv")
            text = connection.getresponse().read().decode().lstrip("# ")
        finally:
            connection.close()
        rows = csv.DictReader(text.splitlines())
        return next(row for row in rows if row["pxname"] == "front")
