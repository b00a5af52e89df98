"""A real web server over one folder, for reads of ranges: nginx."""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from processes import answers, free_port, missing, program, serving

CONFIGURATION = """{user}
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
    log_format ranges '$status $request_method "$http_range" $body_bytes_sent $uri';
    access_log {folder}/access.log ranges;
    types {{ application/json json geojson; image/tiff tif; }}
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        root {root};
    }}
}}
"""


@dataclass(frozen=True)
class WebServer:
    """A running server."""

    port: int
    folder: Path

    @property
    def url(self) -> str:
        """Where the root of the folder is served."""
        return f"http://127.0.0.1:{self.port}"

    def requests(self) -> list[str]:
        """Return one line a request so far: status, method, range, bytes sent, path."""
        return (self.folder / "access.log").read_text().splitlines()


def is_installed() -> bool:
    """Return whether everything that the service needs is there."""
    return not missing(program("nginx"))


@contextmanager
def web_server(root: Path, folder: Path) -> Iterator[WebServer]:
    """Serve `root`; configuration and logs lie in `folder`."""
    server = WebServer(free_port(), folder)
    user = "user root;" if getpass.getuser() == "root" else ""
    path = folder / "nginx.conf"
    path.write_text(CONFIGURATION.format(user=user, folder=folder, port=server.port, root=root))
    command = [program("nginx") or "nginx", "-p", folder, "-e", folder / "error.log", "-c", path]
    with serving("nginx", command, folder / "nginx.log", lambda: answers(server.url)):
        yield server
