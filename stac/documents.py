"""Reading catalog documents: local paths, http(s) and object stores, with retries, time limits and the job's own headers.

Servers are asked again after 429 and 5xx and their Retry-After is honoured. Headers of the job (tokens) go to the catalog's own host and to no other,
are attached when a request leaves, and so appear in no log.
"""

from __future__ import annotations

import errno
import json
import logging
import posixpath
import re
import stat
import zlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self
from urllib.parse import urljoin, urlsplit, urlunsplit
from urllib.request import url2pathname

import fsspec
import requests
from requests.adapters import HTTPAdapter
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential
from urllib3.util import Retry

from stac.deadline import within
from stac.errors import CatalogError, CatalogLinkBroken, CatalogMissing, CatalogNotJson
from stac.quiet_logs import hide_queries

log = logging.getLogger(__name__)

WHOLE_SECONDS = 900.0
TIMEOUT = (10.0, 60.0)
"""Seconds to wait for a connection, and for each read."""
OBJECT_STORES = ("s3", "gs")
_LONGEST = 500
"""Characters of a link that a message names."""
MOST_BYTES = 2**30
"""A packed document that grows beyond this is refused."""


class _LoggedRetry(Retry):
    """Says that a request is repeated, and why, without its URL's query."""

    def increment(self, method: Any = None, url: Any = None, response: Any = None, error: Any = None, *rest: Any, **more: Any) -> Self:
        """Count one failure; raises where it was the last that is allowed."""
        following = super().increment(method, url, response, error, *rest, **more)
        why = f"it answered {response.status}" if response is not None else type(error).__name__
        log.warning("the server did not give %s (%s); asking again", urlsplit(str(url)).path, why)
        return following


class CatalogSession(requests.Session):
    """HTTP session of one catalog: retries, and headers that only the catalog's own host sees.

    Parameters
    ----------
    url
        The catalog; `headers` go only to its scheme, host and port.
    headers
        Resolved values, secrets included.
    retries
        How often one request is asked again.
    longest_wait
        Seconds; a longer Retry-After is cut to this.
    whole_seconds
        For one request with all its repetitions and its body.
    """

    def __init__(
        self, url: str, headers: Mapping[str, str] | None = None, retries: int = 6, longest_wait: int = 120, whole_seconds: float = WHOLE_SECONDS
    ) -> None:
        super().__init__()
        self._whole_seconds = whole_seconds
        hide_queries()
        self._origin = _origin(url)
        self._secrets = dict(headers or {})
        # The adapters' retries end where the body begins; a connection lost in the middle of one is asked again here.
        self._torn_answers = Retrying(
            retry=retry_if_exception_type(requests.exceptions.ChunkedEncodingError),
            stop=stop_after_attempt(3),
            wait=wait_exponential(multiplier=0.2, max=5),
            reraise=True,
        )
        retry = _LoggedRetry(
            total=retries,
            status_forcelist=(429, 500, 502, 503, 504),
            allowed_methods=None,
            backoff_factor=0.5,
            backoff_max=longest_wait,
            retry_after_max=longest_wait,
            raise_on_status=False,
        )
        self.mount("http://", HTTPAdapter(max_retries=retry))
        self.mount("https://", HTTPAdapter(max_retries=retry))

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        """Send a request; the job's headers are attached here, after redirects to other hosts have been told apart."""
        request = request.copy()
        for name in self._secrets:
            request.headers.pop(name, None)
        if _origin(request.url or "") == self._origin:
            request.headers.update(self._secrets)
        kwargs["timeout"] = kwargs.get("timeout") or TIMEOUT
        return within(self._whole_seconds, partial(self._torn_answers, super().send, request, **kwargs))


class Documents:
    """Reads the documents of one catalog.

    Parameters
    ----------
    root
        Path or URL of the catalog; decides which host the headers go to.
    headers
        Headers of catalog requests, already resolved.
    """

    def __init__(self, root: str, headers: Mapping[str, str] | None = None) -> None:
        self.session = CatalogSession(root, headers)

    def content(self, href: str) -> bytes:
        """Return the bytes at `href`.

        Raises
        ------
        CatalogMissing
            It is not there.
        CatalogLinkBroken
            `href` can name no document.
        CatalogError
            A server that kept failing, or a file that cannot be read.
        """
        _require_possible(href)
        try:
            if is_http(href):
                return self._download(href)
            if scheme(href) in OBJECT_STORES:
                return _object(href)
            return Path(local_path(href)).read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise CatalogMissing(f"cannot read {shown(href)}: {failure(error)}") from None
        except (OSError, ValueError) as error:
            raise CatalogError(f"cannot read {shown(href)}: {failure(error)}") from None

    def status(self, href: str) -> int:
        """Return the HTTP status that a URL answers with; raises `CatalogError` where nothing answers."""
        try:
            return self.session.get(href).status_code
        except OSError as error:
            raise CatalogError(f"cannot read {public(href)}: {failure(error)}") from None

    def json(self, href: str) -> Any:
        """Return the JSON at `href`; raises `CatalogError` where there is none."""
        try:
            return json.loads(unpacked(self.content(href)))
        except (ValueError, zlib.error, EOFError) as error:
            raise CatalogNotJson(f"{shown(href)} is not JSON: {error}") from None
        except RecursionError:
            raise CatalogNotJson(f"{shown(href)} is not JSON of a catalog: it is nested too deep") from None

    def _download(self, href: str) -> bytes:
        response = self.session.get(href)
        if response.status_code in (404, 410):
            raise FileNotFoundError(f"the server answers {response.status_code} {response.reason}")
        if response.status_code >= 400:
            raise OSError(f"the server answers {response.status_code} {response.reason}")
        return response.content


def download(url: str) -> bytes:
    """Return what an http(s) URL holds; a server that fails is asked again, within limits, and each time is logged.

    Raises
    ------
    FileNotFoundError
        The server says that there is nothing.
    CatalogError
        It kept failing, or did not let us.
    """
    try:
        return Documents(url).content(url)
    except CatalogMissing as error:
        raise FileNotFoundError(str(error)) from None


def unpacked(content: bytes) -> bytes:
    """Return a document's bytes without the gzip that some stores keep them in; raises ValueError where it grows beyond a gigabyte."""
    if content[:2] != b"\x1f\x8b":
        return content
    stream = zlib.decompressobj(wbits=31)
    plain = stream.decompress(content, MOST_BYTES)
    if stream.unconsumed_tail:
        raise ValueError(f"unpacked it is longer than {MOST_BYTES} bytes")
    if not stream.eof:
        raise ValueError("the gzip ends in the middle")
    return plain


def _require_possible(href: str) -> None:
    """Raise CatalogLinkBroken where `href` can name no document: no URL, a path that no file can have, a pipe. No server is asked."""
    kind = stat.S_IFREG
    try:
        urlsplit(href)
        if is_http(href):
            requests.Request("GET", href).prepare()
        elif not is_url(href):
            kind = stat.S_IFMT(Path(local_path(href)).stat().st_mode)
    except ValueError:
        raise CatalogLinkBroken(f"cannot read {shown(href)}: it is neither a URL nor the path of a file") from None
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise CatalogLinkBroken(f"cannot read {shown(href)}: {failure(error)}") from None
    if kind not in (stat.S_IFREG, stat.S_IFDIR):
        raise CatalogLinkBroken(f"cannot read {shown(href)}: it is a pipe or a device, not a file")


def _object(href: str) -> bytes:
    try:
        with fsspec.open(href, "rb") as file:
            return bytes(file.read())
    except FileNotFoundError:
        raise
    except Exception as error:  # clients of object stores raise classes of their own, without a common root
        raise OSError(str(error) or type(error).__name__) from error


def is_http(href: str) -> bool:
    """Return whether `href` is an http or https URL."""
    return scheme(href) in ("http", "https")


def is_url(href: str) -> bool:
    """Return whether `href` is a URL that is not a local file."""
    return is_http(href) or scheme(href) in OBJECT_STORES


def scheme(href: str) -> str:
    """Return the scheme of a URL; an empty text for a path, and for what looks like a URL and is none."""
    try:
        return urlsplit(href).scheme
    except ValueError:
        return ""


def is_broken(href: str) -> bool:
    """Return whether `href` looks like a URL and is none."""
    try:
        urlsplit(href)
    except ValueError:
        return True
    return False


def local_path(href: str) -> str:
    """Return the local path that `href` names: itself, or what a file:// URL says."""
    return url2pathname(urlsplit(href).path) if href.startswith("file://") else href


def absolute(href: str, base: str) -> str:
    """Return `href` as an absolute URL or path, resolved against the document `base` that holds it.

    Paths stay paths, URLs URLs, and what looks like a URL and is none stays as it is.
    """
    if "://" in href or href.startswith("/vsi") or (is_url(base) and is_broken(href)):
        return href
    if is_url(base):
        return _join_url(base, href)
    folder = posixpath.dirname(local_path(base))
    return posixpath.normpath(posixpath.join(folder if folder.startswith("/") else Path(folder).absolute().as_posix(), href))


def _join_url(base: str, href: str) -> str:
    # urljoin leaves schemes that it does not know (s3, gs) as they are, so the join is made under one that it knows.
    scheme = urlsplit(base).scheme
    joined = urljoin(base.replace(f"{scheme}://", "http://", 1), href)
    return joined.replace("http://", f"{scheme}://", 1)


def public(href: str) -> str:
    """Return `href` as it may be shown: without user, password, query and fragment."""
    if "://" not in href:
        return href
    if is_broken(href):
        return re.sub(r"//.*@", "//", re.split(r"[?#]", href, maxsplit=1)[0])
    parts = urlsplit(href)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def shown(href: str) -> str:
    """Return `href` as a message may name it: public, of a bearable length, and without characters that garble a line."""
    text = public(href)
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def failure(error: Exception) -> str:
    """Return an error in words, with the queries of URLs (which may hold tokens) left out."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return re.sub(r"\?[^\s'\")]+", "", text or type(error).__name__)


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme.lower(), parts.netloc.lower()


def links_of(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the links of a document that have an href; what else its links hold is passed over."""
    links = document.get("links")
    listed = links if isinstance(links, list) else []
    return [link for link in listed if isinstance(link, Mapping) and isinstance(link.get("href"), str)]
