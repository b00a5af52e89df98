"""Servers as processes of the tests: a free port of loopback, readiness with a limit, an end by process id."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SERVICES = REPOSITORY / "build" / "services"
"""Virtual environments of servers whose packages do not go together with ours; `make test-services` makes them."""
READY_SECONDS = 60.0


def missing(*programs: Path | None) -> bool:
    """Return whether any of these programs is not installed."""
    return not all(program is not None and program.is_file() for program in programs)


def program(name: str, folder: str = "") -> Path | None:
    """Return the newest program of this name: on the PATH, among the system's, or where `folder` (a pattern from /) has it."""
    places = [Path(place) for place in os.environ.get("PATH", "").split(os.pathsep) if place] + [Path("/usr/sbin"), Path("/usr/local/sbin")]
    if folder:
        places += sorted(Path("/").glob(folder), reverse=True)
    return next((place / name for place in places if (place / name).is_file()), None)


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def is_listening(port: int) -> bool:
    """Return whether somebody accepts connections at this port of loopback."""
    with socket.socket() as client:
        client.settimeout(1)
        return client.connect_ex(("127.0.0.1", port)) == 0


def answers(url: str) -> bool:
    """Return whether an HTTP server answers at `url`, with whatever status."""
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


def wait_for(ready: Callable[[], bool], what: str, limit: float = READY_SECONDS, process: subprocess.Popen[bytes] | None = None) -> None:
    """Poll until `ready`; raises AssertionError where `process` has ended or the limit has passed."""
    until = time.monotonic() + limit
    while not ready():
        if process is not None and process.poll() is not None:
            raise AssertionError(f"{what} ended with status {process.returncode}")
        if time.monotonic() > until:
            raise AssertionError(f"{what}: not after {limit:.0f} s")
        time.sleep(0.05)


@contextmanager
def serving(
    name: str,
    command: Sequence[str | Path],
    log: Path,
    ready: Callable[[], bool],
    environment: Mapping[str, str] | None = None,
    user: str | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the block ends; what it prints goes to `log`, and the end of that into the error if it does not start."""
    with log.open("wb") as output:
        server = subprocess.Popen(
            [*_ends_with_us(), *(str(part) for part in command)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(os.environ) | dict(environment or {}),
            start_new_session=True,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
        )
    try:
        try:
            wait_for(ready, name, process=server)
        except AssertionError as error:
            raise AssertionError(f"{error}; {log}:\n{log.read_text(errors='replace')[-3000:]}") from None
        yield server
    finally:
        end(server)


def _ends_with_us() -> list[str]:
    """Return what lets a server end when the tests are killed and cannot end it; it keeps the server's process id."""
    setpriv = program("setpriv")
    return [] if setpriv is None else [str(setpriv), "--pdeathsig", "TERM", "--"]


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and what it started in its session, at once if it does not go within ten seconds."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait(10)
