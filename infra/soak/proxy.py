"""A proxy on loopback that does to requests what networks and overloaded servers do, the same for the same seed.

It stands before any HTTP server: files, a STAC API, S3 (the Host header is passed on, so signatures stay valid), and also answers as a forward proxy
(absolute URLs in the request line), whatever host was asked for.
"""

from __future__ import annotations

import http.client
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from random import Random
from urllib.parse import urlsplit

from infra.soak.servers import Answering, Guard, LoopbackServer

KINDS = ("429", "500", "503", "reset", "stall", "truncate")
"""Too many requests with Retry-After; internal error; SlowDown; connection reset; no answer; an answer that ends early: in the middle of its body,
or, where it has none, before it begins, so that what was asked for is done and the client does not know."""
_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "proxy-connection", "proxy-authorization", "expect"}
SLOW_DOWN = b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>'


@dataclass(frozen=True)
class Weather:
    """What a proxy does to requests from now on."""

    rate: float = 0.0
    """Share of the requests that something is done to."""
    kinds: tuple[str, ...] = KINDS
    """Each is as likely as the others."""
    seed: int = 0
    only: str = ""
    """Nothing is done to requests whose path does not contain this."""
    stall_seconds: float = 60.0
    """How long a stall lasts where the client waits for it."""
    retry_after: int = 1
    """Seconds."""


CALM = Weather()


class FaultProxy(LoopbackServer):
    """Passes requests on to `upstream`, in the present `weather`.

    Parameters
    ----------
    upstream
        ``http://host:port`` of the server behind it.
    weather
        What is done to requests; may be changed at any time.
    guard
        What it refuses is answered with `refusal`: expired signatures, missing tokens. May be changed at any time.
    refusal
        Status and body.
    on_request
        Called with every path before it is answered; what a test or a fault waits for.
    """

    def __init__(
        self,
        upstream: str,
        weather: Weather = CALM,
        port: int = 0,
        guard: Guard | None = None,
        on_request: Callable[[str], None] | None = None,
        refusal: tuple[int, bytes] = (403, b"signature expired"),
    ) -> None:
        self.upstream = urlsplit(upstream).netloc
        self.weather = weather
        self.guard = guard
        self.refusal = refusal
        self.on_request = on_request
        self.done: Counter[str] = Counter()
        """How often which kind was done since the last `clear`; ``passed`` counts the others."""
        self._asked: Counter[str] = Counter()
        self._lock = threading.Lock()
        self.stopping = threading.Event()
        super().__init__(_handler(self), port)

    def clear(self, weather: Weather = CALM) -> None:
        """Set the weather, forget what was asked and done before."""
        with self._lock:
            self.weather = weather
            self.done.clear()
            self._asked.clear()

    def choose(self, method: str, path: str, part: str) -> str:
        """Return what is done to a request, ``passed`` for nothing.

        Decided by the seed, by what is asked for and by how often it was asked for before: not by the order in which different requests come, which
        no seed could settle.
        """
        with self._lock:
            weather = self.weather
            key = f"{method} {path} {part}"
            self._asked[key] += 1
            chance = Random(f"{weather.seed} {self._asked[key]} {key}")
            hit = weather.only in path and chance.random() < weather.rate
            kind = chance.choice(weather.kinds) if hit else "passed"
            self.done[kind] += 1
        return kind

    def __exit__(self, *error: object) -> None:
        """Stop; end the stalls."""
        self.stopping.set()
        super().__exit__(None, None, None)


def _handler(proxy: FaultProxy) -> type[Answering]:
    class Passing(Answering):
        def _serve(self) -> None:
            body = self._body()
            parts = urlsplit(self.path)
            if proxy.on_request is not None:
                proxy.on_request(parts.path)
            kind = proxy.choose(self.command, parts.path, self.headers.get("Range", ""))
            if kind in ("429", "500", "503"):
                return self._refuse(int(kind))
            if kind == "reset":
                return self._reset()
            if kind == "stall":
                proxy.stopping.wait(proxy.weather.stall_seconds)
                return self._reset()
            if proxy.guard is not None and not proxy.guard(self.path, {name.lower(): value for name, value in self.headers.items()}):
                return self.answer(*proxy.refusal)
            return self._pass_on(body, cut=kind == "truncate")

        def _body(self) -> bytes:
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return b"".join(chunks)

        def _refuse(self, status: int) -> None:
            headers = {"Retry-After": str(proxy.weather.retry_after)} if status == 429 else {}
            self.answer(status, SLOW_DOWN if status == 503 else b"", headers | {"Content-Type": "application/xml"})

        def _reset(self) -> None:
            # Lingering for no time makes the close a reset.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.rfile.close()
            self.connection.close()

        def _pass_on(self, body: bytes, cut: bool) -> None:
            parts = urlsplit(self.path)
            target = parts.path + (f"?{parts.query}" if parts.query else "")
            with closing(http.client.HTTPConnection(proxy.upstream, timeout=120)) as connection:
                connection.putrequest(self.command, target, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    if name.lower() not in _HOP | {"content-length"}:
                        connection.putheader(name, value)
                if body or self.command in ("PUT", "POST"):
                    connection.putheader("Content-Length", str(len(body)))
                connection.endheaders(body or None)
                answer = connection.getresponse()
                content = answer.read()
            if cut and not content:
                self._reset()
            else:
                self._send(answer, content, cut)

        def _send(self, answer: http.client.HTTPResponse, content: bytes, cut: bool) -> None:
            self.send_response_only(answer.status, answer.reason)
            for name, value in answer.getheaders():
                if name.lower() not in _HOP | {"content-length"}:
                    self.send_header(name, value)
            length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
            if length is not None:
                self.send_header("Content-Length", length)
            self.end_headers()
            if self.command == "HEAD":
                return
            self.wfile.write(content[: len(content) // 2] if cut else content)
            if cut:
                self.wfile.flush()
                self.close_connection = True

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve

    return Passing
