"""From unsigned hrefs to what rasterio opens now; signatures are made at read time and never kept in a scene.

The Planetary Computer's client is loaded where a file lies there: it takes half a second.
"""

from __future__ import annotations

from urllib.parse import urlsplit

import requests

from stac.documents import CatalogSession, failure, is_http, local_path
from stac.errors import CatalogError
from stac.items import is_azure_blob
from stac.quiet_logs import hide_queries

RENEWAL = 300.0
"""Seconds of life below which a token is renewed before it is used."""


def gdal_path(href: str) -> str:
    """Return what rasterio opens for an unsigned href, now: valid for minutes, not for a plan.

    http(s) becomes /vsicurl/, s3:// /vsis3/, gs:// /vsigs/; local paths and file:// become plain paths. Files in Azure blob storage are signed with a
    Planetary Computer token, which is cached and renewed five minutes before it expires.

    Raises
    ------
    CatalogError
        No token could be had.
    """
    if is_azure_blob(href):
        return f"/vsicurl/{_signed(href)}"
    if is_http(href):
        return f"/vsicurl/{href}"
    for scheme, handler in (("s3://", "/vsis3/"), ("gs://", "/vsigs/")):
        if href.startswith(scheme):
            return handler + href.removeprefix(scheme)
    return local_path(href)


def _signed(href: str) -> str:
    import planetary_computer

    hide_queries()
    parts = urlsplit(href)
    account, container = (parts.hostname or "").split(".")[0], parts.path.lstrip("/").split("/")[0]
    if not _renew(account, container):
        return href
    return str(planetary_computer.sign_url(href))


def _renew(account: str, container: str) -> bool:
    """Put a token with enough life into the client's cache; return False where the Planetary Computer does not know the container.

    The client would fetch one itself, but without a time limit.
    """
    from planetary_computer.sas import TOKEN_CACHE, SASToken
    from planetary_computer.settings import Settings

    settings = Settings.get()
    url = f"{settings.sas_url}/{account}/{container}"
    token = TOKEN_CACHE.get(url)
    if token and token.ttl() > RENEWAL:
        return True
    headers = {"Ocp-Apim-Subscription-Key": settings.subscription_key} if settings.subscription_key else {}
    try:
        response = CatalogSession(url, headers, retries=4).get(url)
        if response.status_code == 404:
            return False
        response.raise_for_status()
        TOKEN_CACHE[url] = SASToken(**response.json())
    except (requests.RequestException, ValueError) as error:
        raise CatalogError(f"no read token for {account}/{container} from the Planetary Computer: {failure(error)}") from None
    return True
