"""From catalog documents to `pystac.Item`s whose ids are safe and whose hrefs are absolute and unsigned."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import pystac
from pystac.utils import str_to_datetime

from stac.documents import OBJECT_STORES, absolute, is_broken, is_http, is_url
from stac.errors import SceneRefused
from stac.secrets import carries_secret, is_secret

_UNSAFE_ID = re.compile(r"[/\\\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]|\.\.|^[.~]|^\s|\s$")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_ONE_SLASH = re.compile(r"(https?|file|s3|gs):/(?!/)", re.IGNORECASE)
_AZURE_SIGNATURE = frozenset({"st", "se", "sp", "sv", "sr", "sig", "ske", "sks", "skt", "skv", "skoid", "sktid", "spr", "sip"})


def item_id(document: Mapping[str, Any]) -> str:
    """Return the item's id; raises `SceneRefused` where it is missing, could act as a path or would garble a line."""
    name = document.get("id")
    if not isinstance(name, str) or not name:
        raise SceneRefused("it has no id")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise SceneRefused("its id is not text (it has half a character)") from None
    if _UNSAFE_ID.search(name) or len(name) > 200:
        raise SceneRefused("its id has characters that could act as a path or garble a line, or is longer than 200 characters")
    return name


def acquired(document: Mapping[str, Any]) -> datetime:
    """Return the item's acquisition as an aware datetime in UTC: `datetime`, or `start_datetime` where that is null."""
    properties = document.get("properties")
    if not isinstance(properties, Mapping):
        raise SceneRefused("it is not a STAC item (it has no properties)")
    text = properties.get("datetime") or properties.get("start_datetime")
    if not text:
        raise SceneRefused("it does not say when it was acquired (datetime is null)")
    moment, end = instant(text), properties.get("end_datetime")
    if end and not properties.get("datetime") and instant(end) < moment:
        raise SceneRefused("its acquisition ends before it begins (end_datetime is earlier than start_datetime)")
    return moment


def instant(text: Any) -> datetime:
    """Return an RFC 3339 time as an aware datetime in UTC; a time without a zone is taken as UTC."""
    try:
        moment = str_to_datetime(text)
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, TypeError, OverflowError, AttributeError):
        raise SceneRefused(f"{str(text)[:100]!r} is not a time") from None


def read_item(document: Mapping[str, Any], base: str, href: str | None = None) -> pystac.Item:
    """Return a STAC item document of any version (0.8 to 1.1) as an item of the newest one, with absolute asset hrefs.

    Assets of a remote document that name local files are left out: a catalog elsewhere must not choose what is read here.

    Parameters
    ----------
    document
        The item as JSON; it is not changed.
    base
        Path or URL against which relative hrefs stand: the document that holds the item.
    href
        The item's own document, None where it has none; becomes the item's self link.

    Raises
    ------
    SceneRefused
        The document is no STAC item.
    """
    try:
        complete = _complete(document)
        # Between 1.0 and 1.1 nothing moved that is read here, and migrating costs milliseconds an item.
        migrate = not re.fullmatch(r"1\.\d+\.\d+", str(complete["stac_version"]))
        item = pystac.Item.from_dict(json.loads(json.dumps(complete)), href=href, migrate=migrate, preserve_dict=False)
    except (pystac.errors.STACError, KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise SceneRefused(f"it is not a STAC item ({type(error).__name__}: {error})") from None
    for asset in item.assets.values():
        asset.href = absolute(asset.href, base) if asset.href.strip() else ""
    if is_url(base):
        item.assets = {key: asset for key, asset in item.assets.items() if is_url(asset.href) or is_broken(asset.href)}
    return item


def _complete(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return an item document with what pystac asks of one, and without what is of no use here and often wrong."""
    links = document.get("links")
    kept = [link for link in links if isinstance(link, Mapping) and isinstance(link.get("href"), str)] if isinstance(links, list) else []
    extensions = document.get("stac_extensions")
    return {
        **document,
        "type": "Feature",
        "stac_version": str(document.get("stac_version") or "1.0.0"),
        "stac_extensions": [entry for entry in extensions if isinstance(entry, str)] if isinstance(extensions, list) else [],
        "links": [{"rel": "related", **link} for link in kept],
        "bbox": None,
        "collection": document["collection"] if isinstance(document.get("collection"), str) else None,
        "assets": {key: {**asset, "href": _text(asset.get("href"))} for key, asset in document.get("assets", {}).items()},
        "properties": {**document["properties"], "datetime": acquired(document).isoformat()},
    }


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def self_href(document: Mapping[str, Any]) -> str | None:
    """Return the item's self link where it is a URL, None elsewhere."""
    links = document.get("links")
    found = [link for link in links if isinstance(link, Mapping)] if isinstance(links, list) else []
    hrefs = (link.get("href") for link in found if link.get("rel") == "self")
    return next((href for href in hrefs if isinstance(href, str) and is_url(href)), None)


def unsigned(href: str) -> str:
    """Return an href without the signature that a catalog may have put on it.

    Azure blob URLs lose theirs, as they are signed anew when they are read.

    Raises
    ------
    SceneRefused
        The href carries a signature or password that could not be renewed, or is of a kind that is not read here.
    """
    if not href or _CONTROL.search(href):
        raise SceneRefused("one of its hrefs is empty, not text, or has control characters")
    if href.startswith("/vsi"):
        raise SceneRefused("its hrefs are GDAL's own (/vsi...), which could name any file or host; write https, s3, gs or local paths")
    try:
        parts = urlsplit(href)
    except ValueError:
        raise SceneRefused("one of its hrefs is not a URL") from None
    if "://" in href and parts.scheme not in ("http", "https", "file", *OBJECT_STORES):
        raise SceneRefused(f"its files lie at {parts.scheme}://, which is not read here (https, s3, gs or local paths are)")
    if "@" in parts.netloc:
        raise SceneRefused("its hrefs carry a user name or password")
    if _ONE_SLASH.match(href):
        raise SceneRefused("one of its hrefs is not a URL: it has one slash after its scheme")
    if not carries_secret(parts):
        return href
    kept = [(name, value) for name, value in parse_qsl(parts.query) if name.lower() not in _AZURE_SIGNATURE and not is_secret(name)]
    without = parts._replace(query=urlencode(kept), fragment="")
    if not is_azure_blob(href) or carries_secret(without):
        raise SceneRefused("its hrefs are signed or hold a key, which may expire in mid-run and must not be kept; use a catalog with unsigned hrefs")
    return urlunsplit(without)


def is_azure_blob(href: str) -> bool:
    """Return whether `href` lies in Azure blob storage, where the Planetary Computer keeps its files."""
    return is_http(href) and (urlsplit(href).hostname or "").endswith(".blob.core.windows.net")
