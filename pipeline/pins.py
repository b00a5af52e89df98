"""What the files of scenes were when a run was planned, so that no tile is made from two versions of a scene.

A catalog may put another file behind an href at any time. The plan keeps for each scene what its first band's file and its mask's file were: size,
time of change and entity tag. A reader looks again after it has read, so whatever it read is of the pinned version, or counts as not read.

Pins are no part of a plan's identity, nor of a fingerprint: the same content under another date or on another server is no reason to map a tile
again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import requests

from pipeline.plan import Plan, TilePlan
from spexmap import SpexmapError
from stac.deadline import within
from stac.documents import CatalogSession
from stac.scenes import BandSource, MaskSource, Scene
from stac.signing import gdal_path

log = logging.getLogger(__name__)

CONNECT_SECONDS, ANSWER_SECONDS = 10.0, (1.0, 20.0)
"""How long a server is waited for, at the first attempt and at the second, unless the environment limits GDAL's waits (GDAL_HTTP_CONNECTTIMEOUT,
GDAL_HTTP_LOW_SPEED_TIME)."""
WHOLE_SECONDS = 60.0
"""For the whole of an answer."""
ATTEMPTS = 3
PINNED_AT_A_TIME = 16
PLANNING_SECONDS = 120.0
"""What is not known of the files by then is not pinned."""


@dataclass(frozen=True)
class FileState:
    """What tells two versions of a file apart; what the server does not say is empty."""

    size: int | None = None
    modified: str = ""
    """Time of the last change as the server writes it; of local files in nanoseconds."""
    tag: str = ""
    """Entity tag."""

    def __str__(self) -> str:
        """Return the state as the plan keeps it; `FileState.parse` undoes it."""
        return f"{'' if self.size is None else self.size}|{self.modified}|{self.tag}"

    @classmethod
    def parse(cls, text: str) -> FileState:
        """Return the state that `str` wrote."""
        size, modified, tag = text.split("|", 2)
        return cls(int(size) if size else None, modified, tag)

    def agrees(self, other: FileState) -> bool:
        """Return whether both may be one version: no size differs, and tag or time agree where both are known.

        One of the two is enough: servers behind one name may tag the same file differently.
        """
        if self.size is not None and other.size is not None and self.size != other.size:
            return False
        known = [pair for pair in ((self.tag, other.tag), (self.modified, other.modified)) if all(pair)]
        return not known or any(first == second for first, second in known)


def file_state(path: str) -> FileState | None:
    """Return what the file at a GDAL path (see `stac.signing.gdal_path`) is now; None where the server does not say.

    Raises
    ------
    OSError
        There is no such file, or the server did not answer in time.
    """
    if path.startswith("/vsicurl/"):
        return _http_state(path.removeprefix("/vsicurl/"))
    for handler, scheme in (("/vsis3/", "s3://"), ("/vsigs/", "gs://")):
        if path.startswith(handler):
            return _object_state(scheme + path.removeprefix(handler))
    found = Path(path).stat()
    return FileState(found.st_size, str(found.st_mtime_ns))


def _http_state(url: str) -> FileState | None:
    return within(WHOLE_SECONDS, partial(_asked_state, url))


def _asked_state(url: str) -> FileState | None:
    """Ask for one byte: signed URLs often allow GET alone. Nothing is tried again here, for the client's own log of that names the whole URL."""
    first, last = _limits()
    try:
        answer = _first_byte(url, first)
    except requests.Timeout:
        answer = _first_byte(url, last)
    if answer.status_code >= 400:
        raise OSError(f"the server answers {answer.status_code} {answer.reason}")
    return _said(_whole_size(answer.headers, answer.status_code), answer.headers.get("Last-Modified", ""), answer.headers.get("ETag", ""))


def _first_byte(url: str, limits: tuple[float, float]) -> requests.Response:
    with CatalogSession(url, retries=0) as session:
        answer = session.get(url, headers={"Range": "bytes=0-0", "Accept-Encoding": "identity"}, stream=True, timeout=limits)
        answer.close()
    return answer


def _limits() -> tuple[tuple[float, float], tuple[float, float]]:
    """Return how many seconds a connection and an answer may take, at the first attempt and at the second."""
    connect = float(os.environ.get("GDAL_HTTP_CONNECTTIMEOUT", CONNECT_SECONDS))
    first, last = (float(os.environ.get("GDAL_HTTP_LOW_SPEED_TIME", seconds)) for seconds in ANSWER_SECONDS)
    return (connect, first), (connect, last)


def _whole_size(headers: Mapping[str, str], status: int) -> int | None:
    text = headers.get("Content-Range", "").rpartition("/")[2] if status == 206 else headers.get("Content-Length", "")
    return int(text) if text.isdigit() else None


def _object_state(url: str) -> FileState | None:
    try:
        system, path = fsspec.core.url_to_fs(url, **(_s3_options() if url.startswith("s3://") else {}))
        found: Mapping[str, Any] = system.info(path, refresh=True) if url.startswith("s3://") else system.info(path)
    except OSError:
        raise
    except Exception as error:  # clients of object stores raise classes of their own, without a common root
        raise OSError(f"{type(error).__name__}: {error}") from error
    return _said(found.get("size"), str(found.get("LastModified") or found.get("updated") or ""), str(found.get("ETag") or found.get("etag") or ""))


def _s3_options() -> dict[str, Any]:
    """Return for s3fs what GDAL takes from the environment, so that both look at the same file."""
    from pipeline.s3_session import LimitedSession

    connect, read = _limits()[-1]
    limits = {"connect_timeout": connect, "read_timeout": read, "retries": {"mode": "standard", "max_attempts": 3}}
    options: dict[str, Any] = {"config_kwargs": limits | {"http_session_cls": LimitedSession}}
    endpoint = os.environ.get("AWS_S3_ENDPOINT")
    if endpoint and not {"AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"} & os.environ.keys():
        scheme = "http" if os.environ.get("AWS_HTTPS", "").upper() in ("NO", "FALSE", "OFF") else "https"
        options["client_kwargs"] = {"endpoint_url": f"{scheme}://{endpoint}"}
    if os.environ.get("AWS_NO_SIGN_REQUEST", "").upper() in ("YES", "TRUE", "ON"):
        options["anon"] = True
    if os.environ.get("AWS_REQUEST_PAYER", "").lower() == "requester":
        options["requester_pays"] = True
    return options


def _said(size: int | None, modified: str, tag: str) -> FileState | None:
    return FileState(size, modified, tag) if modified or tag or size is not None else None


def pinned(plan: Plan, tiles: Iterable[TilePlan]) -> Plan:
    """Return the plan with the present state of the files of every scene that `tiles` use; a file whose server does not say it is not pinned."""
    used = {name for tile in tiles for name in tile.scenes}
    scenes = [scene for scene in plan.scenes if scene.id in used]
    pool = ThreadPoolExecutor(PINNED_AT_A_TIME, thread_name_prefix="pin")
    states = {href: pool.submit(_planned_state, href) for scene in scenes for href in _pinned_hrefs(scene, plan.bands)}
    _, late = wait(states.values(), timeout=PLANNING_SECONDS)
    pool.shutdown(wait=False, cancel_futures=True)
    if late:
        log.warning("%d of %d files did not say what they are within %g s and are not pinned", len(late), len(states), PLANNING_SECONDS)
    seen = {href: _result(future) for href, future in states.items()}
    return replace(plan, scenes=tuple(_pin(scene, plan.bands, seen) for scene in plan.scenes))


def _pinned_hrefs(scene: Scene, bands: tuple[str, ...]) -> list[str]:
    return [scene.bands[bands[0]].href, *([scene.mask.href] if scene.mask else [])]


def _planned_state(href: str) -> str | None:
    for _ in range(ATTEMPTS):
        try:
            state = file_state(gdal_path(href))
        except (OSError, ValueError, SpexmapError):
            continue
        return None if state is None else str(state)
    return None


def _result(future: Future[str | None]) -> str | None:
    return future.result() if future.done() and not future.cancelled() else None


def _pin(scene: Scene, bands: tuple[str, ...], seen: Mapping[str, str | None]) -> Scene:
    pin = partial(_with_state, seen=seen)
    return replace(scene, bands={**scene.bands, bands[0]: pin(scene.bands[bands[0]])}, mask=pin(scene.mask) if scene.mask else None)


def _with_state(source: Any, seen: Mapping[str, str | None]) -> Any:
    return replace(source, seen=seen.get(source.href))


def changed(source: BandSource | MaskSource, now: FileState | None) -> bool:
    """Return whether the file of `source` is another one than when the run was planned."""
    return source.seen is not None and now is not None and not FileState.parse(source.seen).agrees(now)
