"""A server that sends a byte now and then is waited for no longer than one that sends none."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from stac.deadline import within
from stac.documents import CatalogSession

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nContent-Type: application/json\r\n\r\n"


@pytest.fixture(params=["header", "body"])
def dripping(request: pytest.FixtureRequest) -> Iterator[str]:
    """A server that drips its answer, from the header or from the body on."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        client, _ = server.accept()
        client.recv(65536)
        sent = HEAD if request.param == "body" else b"HTTP/1.1 200 OK\r\nX-A: "
        try:
            client.sendall(sent)
            while True:
                client.sendall(b" ")
                time.sleep(0.1)
        except OSError:
            return

    threading.Thread(target=serve, daemon=True).start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}/catalog.json"
    server.close()


def test_an_answer_that_drips_has_a_limit(dripping: str) -> None:
    started = time.monotonic()
    with CatalogSession(dripping, retries=0, whole_seconds=1.0) as session, pytest.raises(OSError, match="in full within 1 s"):
        session.get(dripping)
    assert time.monotonic() - started < 20


def test_errors_and_answers_come_through() -> None:
    assert within(5, lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 // 0)


def test_what_is_left_waiting_does_not_hold_the_process_back() -> None:
    program = "import time\nfrom stac.deadline import within\ntry: within(0.2, lambda: time.sleep(60))\nexcept TimeoutError: print('over')"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert ended.stdout == "over\n"
