"""What the proxy itself can pass, measured with plain sockets, so that a race can be judged."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from urllib.parse import urlsplit

from serving.apart import ProxyApart

from racing.rows import MIB

__all__ = ["figures"]

_SIZE = 256 * MIB
_REQUESTS = 200


def figures() -> dict[str, float]:
    """Return MB/s each way over one connection, and what a request takes longer, in us."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_serve, args=(listener,), daemon=True).start()
        home = f"http://127.0.0.1:{listener.getsockname()[1]}"
        _, _, directly = _measure(home)
        with ProxyApart(home) as proxy:
            up, down, through = _measure(proxy.url)
    return {
        "up MB/s": round(up / 1e6),
        "down MB/s": round(down / 1e6),
        "added us per request": round((through - directly) * 1e6),
    }


def _measure(url: str) -> tuple[float, float, float]:
    """Return bytes per second each way, and seconds per request."""
    address = urlsplit(url)
    with socket.create_connection((address.hostname or "", address.port or 0)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        begun = time.perf_counter()
        connection.sendall(b"PUT / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % _SIZE)
        _send(connection, _SIZE)
        _head(connection)
        sent = time.perf_counter()
        connection.sendall(b"GET /%d HTTP/1.1\r\n\r\n" % _SIZE)
        _receive(connection, _SIZE - len(_head(connection)[1]))
        received = time.perf_counter()
        for _ in range(_REQUESTS):
            connection.sendall(b"GET /0 HTTP/1.1\r\n\r\n")
            _head(connection)
        ended = time.perf_counter()
    return _SIZE / (sent - begun), _SIZE / (received - sent), (ended - received) / _REQUESTS


def _serve(listener: socket.socket) -> None:
    """Swallow what is put, and answer `GET /N` with N bytes, to one client after the other."""
    with contextlib.suppress(OSError):
        while True:
            client, _ = listener.accept()
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with client:
                while True:
                    head, rest = _head(client)
                    if not head:
                        break
                    wanted = 0
                    if head.startswith(b"PUT"):
                        _receive(client, _SIZE - len(rest))
                    else:
                        wanted = int(head.split()[1][1:])
                    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % wanted)
                    _send(client, wanted)


def _send(connection: socket.socket, size: int) -> None:
    piece = memoryview(bytes(MIB))
    while size:
        size -= connection.send(piece[: min(size, MIB)])


def _receive(connection: socket.socket, size: int) -> None:
    buffer = memoryview(bytearray(MIB))
    while size:
        count = connection.recv_into(buffer[: min(size, MIB)])
        if not count:
            raise ConnectionError("the other side has ended")
        size -= count


def _head(connection: socket.socket) -> tuple[bytes, bytes]:
    """Return a head and what came behind it; both are empty at the end."""
    got = b""
    while b"\r\n\r\n" not in got:
        piece = connection.recv(2**16)
        if not piece:
            return b"", b""
        got += piece
    head, _, rest = got.partition(b"\r\n\r\n")
    return head, rest
