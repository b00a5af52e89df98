"""Which parts of a URL open what it names: they are never kept, published or printed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import SplitResult, parse_qsl

WORDS = frozenset(
    {
        *("sig", "sign", "signed", "key", "policy", "googleaccessid", "hdnea", "hdnts", "hdntl", "md5", "verify", "ticket"),
        *("jwt", "auth", "authorization", "bearer", "session", "sessionid", "sas", "cred", "login", "passwd", "pwd"),
    }
)
"""A parameter of a query with such a word in its name (``subscription-key``, ``userKey``) signs it or holds a key; in lower case."""
PARTS = ("token", "secret", "signature", "password", "credential", "hmac", "apikey", "accesskey", "authkey")
"""So does one whose name, written in one word, has such a part."""
PREFIXES = ("x-amz-", "x-goog-")
COMPANIONS = frozenset({"se", "sv", "sp", "sr", "st", "skoid", "expires"})
"""What stands beside a signature and says for what and how long it holds."""

_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def is_secret(name: str) -> bool:
    """Return whether a query's parameter of this name opens what the URL names."""
    words = re.split(r"[^a-z0-9]+", _HUMP.sub(" ", name).lower())
    plain = "".join(words)
    return not WORDS.isdisjoint((*words, plain)) or name.lower().startswith(PREFIXES) or any(part in plain for part in PARTS)


def carries_secret(parts: SplitResult) -> bool:
    """Return whether a URL's query, its fragment or a part of its path (``/hdnts=.../``) has such a parameter."""
    remote = (*_names(parts.fragment), *_named_folders(parts.path)) if parts.netloc else ()
    return any(is_secret(name) for name in (*_names(parts.query), *remote))


def is_signed(parts: SplitResult) -> bool:
    """Return whether a URL has such a parameter, or one that stands beside a signature."""
    return carries_secret(parts) or any(name.lower() in COMPANIONS for name in _names(parts.query))


def _names(query: str) -> Iterator[str]:
    yield from (name for name, _ in parse_qsl(query.replace(";", "&"), keep_blank_values=True))


def _named_folders(path: str) -> Iterator[str]:
    yield from (name for folder in re.split(r"[/;]", path) for name, equals, _ in (folder.partition("="),) if equals)
