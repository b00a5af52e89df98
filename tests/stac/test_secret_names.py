"""What opens a URL is known by its name, wherever it stands: such a scene is refused, and its own document is linked without it."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest

from stac.errors import SceneRefused
from stac.items import unsigned
from stac.secrets import carries_secret, is_secret, is_signed


@pytest.mark.parametrize(
    "name",
    [
        *("sig", "Signature", "X-Amz-Signature", "X-Goog-Credential", "ACCESS_TOKEN", "auth_token", "api-token", "authtoken", "wsSecret"),
        *("private_token", "oauth_token", "bearer", "authkey", "client_secret", "Ocp-Apim-Subscription-Key", "userKey", "map_key", "sastoken"),
        *("hmac", "md5", "sign", "signed", "__token__", "hdntl", "sessionId", "ticket", "verify", "cred", "key", "AWSAccessKeyId", "GoogleAccessId"),
    ],
)
def test_names_that_open_something(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize("name", ["f", "id", "version", "format", "collection", "bands", "monkey", "design", "author", "resignation", "b1"])
def test_names_that_open_nothing(name: str) -> None:
    assert not is_secret(name)


@pytest.mark.parametrize(
    "href",
    [
        *("https://h/x.tif?auth_token=abc", "https://h/x.tif?%73ig=abc", "https://h/x.tif?a=1;sig=abc", "https://h/x.tif#sig=abc"),
        *(
            "https://h/hdnts=exp=1~hmac=abc/x.tif",
            "https://h/x.tif;sig=abc",
            "https:/u:abc@h/x.tif",
            "https://u:abc@h/x.tif",
            "s3://key:abc@bucket/x.tif",
        ),
    ],
)
def test_a_band_behind_a_secret_is_refused(href: str) -> None:
    with pytest.raises(SceneRefused) as refused:
        unsigned(href)
    assert "abc" not in str(refused.value)


@pytest.mark.parametrize("href", ["https://h/x.tif", "https://h/a=b/x.tif?version=2", "/data/key=3/x.tif", "s3://b/year=2023/x.tif", "x#sig=1.tif"])
def test_a_band_behind_none_is_read(href: str) -> None:
    assert unsigned(href) == href


def test_what_stands_beside_a_signature_is_no_secret_but_published_nowhere() -> None:
    parts = urlsplit("https://h/x.json?se=2023-01-01&sp=r")
    assert is_signed(parts) and not carries_secret(parts)
