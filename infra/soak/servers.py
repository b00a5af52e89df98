"""HTTP servers on loopback: a folder by byte ranges, and tokens that expire."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import parse_qs, unquote, urlsplit


class LoopbackServer:
    """A threaded HTTP/1.1 server on 127.0.0.1; a context manager that runs it."""

    def __init__(self, handler: type[BaseHTTPRequestHandler], port: int = 0) -> None:
        self._http = _Quiet(("127.0.0.1", port), handler)
        self.port = int(self._http.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> LoopbackServer:
        """Begin to answer."""
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop, and close the connections that clients keep open."""
        self._http.shutdown()
        self._http.close_connections()
        self._http.server_close()


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._open: set[socket.socket] = set()
        super().__init__(address, handler)

    def process_request(self, request: socket.socket, client_address: tuple[str, int]) -> None:  # type: ignore[override]
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: socket.socket) -> None:  # type: ignore[override]
        self._open.discard(request)
        super().shutdown_request(request)

    def close_connections(self) -> None:
        for connection in list(self._open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients that are killed or give up are what these servers are for."""


class Answering(BaseHTTPRequestHandler):
    """A handler that keeps connections open and prints nothing."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        """Send one whole answer; to HEAD without its body."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


def file_handler(folder: Path) -> type[Answering]:
    """Return a handler that serves `folder` by byte ranges, with the entity tag and the time of change that nginx would send.

    A file is also found below the name of a container (the first part of the path).
    """

    class Files(Answering):
        def do_GET(self) -> None:
            name = unquote(urlsplit(self.path).path).lstrip("/")
            path = folder / name if (folder / name).is_file() else folder / name.partition("/")[2]
            if not path.is_file() or ".." in path.parts:
                return self.answer(404)
            with path.open("rb") as file:
                stat = path.stat()
                headers = {
                    "ETag": f'"{stat.st_mtime_ns:x}-{stat.st_size:x}"',
                    "Last-Modified": formatdate(stat.st_mtime, usegmt=True),
                    "Accept-Ranges": "bytes",
                    "Content-Type": "application/json" if path.suffix in (".json", ".geojson") else "image/tiff",
                }
                asked = re.match(r"bytes=(\d+)-(\d*)$", self.headers.get("Range", ""))
                if asked is None:
                    return self.answer(200, file.read(), headers)
                first, last = int(asked[1]), min(int(asked[2] or stat.st_size), stat.st_size - 1)
                file.seek(first)
                content = file.read(max(0, last + 1 - first))
                return self.answer(206, content, headers | {"Content-Range": f"bytes {first}-{last}/{stat.st_size}"})

        do_HEAD = do_GET

    return Files


class Tokens:
    """Issues read tokens as the Planetary Computer does, each of which is good for some seconds.

    Parameters
    ----------
    lifetime
        Seconds that a token is good for, as it says itself.
    secret
        What every signature begins with, so that a test can look for it.
    """

    def __init__(self, lifetime: float, secret: str = "sas") -> None:
        self.lifetime, self.secret = lifetime, secret
        self.issued = 0
        self.refused = 0
        self._ends: dict[str, float] = {}
        self._lock = threading.Lock()

    def issue(self) -> bytes:
        """Return a new token as the service's JSON."""
        with self._lock:
            self.issued += 1
            signature = f"{self.secret}{self.issued}"
            self._ends[signature] = time.monotonic() + self.lifetime
        ends = datetime.now(UTC) + timedelta(seconds=self.lifetime)
        return json.dumps({"msft:expiry": ends.isoformat(), "token": f"se={ends:%Y-%m-%dT%H:%M:%SZ}&sig={signature}"}).encode()

    def expire(self) -> None:
        """Let the time of every token that was issued be over."""
        with self._lock:
            self._ends.clear()

    def accepts(self, url: str) -> bool:
        """Return whether `url` carries a token that is still good."""
        (signature,) = parse_qs(urlsplit(url).query).get("sig", [""])
        good = self._ends.get(signature, 0.0) > time.monotonic()
        with self._lock:
            self.refused += not good
        return good


def token_handler(tokens: Tokens) -> type[Answering]:
    """Return a handler that answers every GET with a new token."""

    class Issuing(Answering):
        def do_GET(self) -> None:
            self.answer(200, tokens.issue(), {"Content-Type": "application/json"})

    return Issuing


Guard = Callable[[str, dict[str, str]], bool]
"""(URL, headers in lower case) -> whether a request may pass."""
