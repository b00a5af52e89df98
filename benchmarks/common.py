"""What the benchmark scripts share: running the command, hashing an output, a catalog behind HTTP that can be held."""

from __future__ import annotations

import functools
import hashlib
import http.server
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

SPEXMAP = str(Path(sys.executable).with_name("spexmap"))


def spexmap(*arguments: str, check: bool = True) -> float:
    """Run the command `spexmap`, print what it says, and return the seconds that it took."""
    started = time.monotonic()
    print("$ spexmap", *arguments, flush=True)
    subprocess.run([SPEXMAP, *arguments], check=check)
    return time.monotonic() - started


def scratch(name: str) -> Path:
    """Return the folder given on the command line, else a temporary one; absolute, for a job's relative paths start at its file."""
    return Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix=f"{name}-")).resolve()


def small_demo(folder: Path) -> Path:
    """Return the folder of a demo of 384 pixels beside `folder`, which is written where it is not there: several measurements share it."""
    demo = folder.with_name("small-demo")
    if not (demo / "job.yaml").exists():
        spexmap("demo", str(demo), "--size", "384")
    return demo


def published_files(output: Path) -> dict[str, str]:
    """Return the sha256 of every published file: all but the records of runs and staged work. There must be some."""
    files = (path for path in sorted(output.rglob("*")) if path.is_file())
    names = {path.relative_to(output).as_posix(): path for path in files}
    hashes = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in names.items() if not name.startswith(("runs/", ".work/"))}
    if not any(name.endswith("_landcover.tif") for name in hashes):
        raise SystemExit(f"nothing was published in {output}: this measurement would show nothing")
    return hashes


def differences(first: dict[str, str], second: dict[str, str]) -> list[str]:
    """Return the names of files that one output has and the other has not, or has with other bytes."""
    return sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, byte ranges included, and tells the gate of each request."""

    gate: Callable[[str], None]

    def do_GET(self) -> None:
        self.gate(self.path)
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        start, stop = self._range(len(data))
        self.send_response(206 if "Range" in self.headers else 200)
        if "Range" in self.headers:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Type", "application/json" if path.suffix == ".json" else "image/tiff")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        self.wfile.write(data[start:stop])

    def _range(self, size: int) -> tuple[int, int]:
        header = self.headers.get("Range", "")
        if not header.startswith("bytes="):
            return 0, size
        first, last = header.removeprefix("bytes=").split("-")
        return int(first), min(size, int(last) + 1 if last else size)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def served(folder: Path, port: int, gate: Callable[[str], None]) -> Iterator[str]:
    """Serve `folder` on loopback; `gate` is called with the path of each request before it is answered and may block it."""
    handler = type("Handler", (_Handler,), {"gate": staticmethod(gate)})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), functools.partial(handler, directory=str(folder)))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.shutdown()
        server.server_close()
