"""Which parts of a URL open what it names: they are never kept, published or printed."""

from __future__ import annotations

from urllib.parse import parse_qsl

NAMES = frozenset(
    {
        *("sig", "signature", "awsaccesskeyid", "googleaccessid", "key-pair-id", "policy", "hdnea", "hdnts"),
        *("token", "access_token", "id_token", "jwt", "auth", "authorization", "session", "credential", "credentials", "sas"),
        *("key", "api_key", "api-key", "apikey", "access_key", "accesskey", "subscription-key", "secret", "password", "passwd", "pwd"),
    }
)
PREFIXES = ("x-amz-", "x-goog-")
"""Parameters of a query that sign it or hold a key, in lower case."""
COMPANIONS = frozenset({"se", "sv", "sp", "sr", "st", "skoid", "expires"})
"""What stands beside a signature and says for what and how long it holds."""


def is_secret(name: str) -> bool:
    """Return whether a query's parameter of this name opens what the URL names."""
    return name.lower() in NAMES or name.lower().startswith(PREFIXES)


def carries_secret(query: str) -> bool:
    """Return whether a query has such a parameter."""
    return any(is_secret(name) for name, _ in parse_qsl(query, keep_blank_values=True))


def is_signed(query: str) -> bool:
    """Return whether a query has such a parameter, or one that stands beside a signature."""
    return carries_secret(query) or any(name.lower() in COMPANIONS for name, _ in parse_qsl(query, keep_blank_values=True))
