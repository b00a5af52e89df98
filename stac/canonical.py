"""One document, one sequence of bytes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

SIGNIFICANT_DIGITS = 15
"""Decimals that survive a round trip through a double on every platform."""


def canonical_json(document: Mapping[str, Any]) -> bytes:
    """Return the document as UTF-8 JSON: keys sorted, links sorted, floats at 15 significant digits, a newline at the end.

    Equal documents give equal bytes, whatever order they were built in. Raises ValueError for NaN and infinities, which JSON cannot hold.
    """
    text = json.dumps(_canonical(document), sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _sorted_links(entry) if key == "links" else _canonical(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(entry) for entry in value]
    if isinstance(value, float) and math.isfinite(value):
        return _short_float(value)
    return value


def _short_float(value: float) -> float:
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}") + 0.0  # adding zero turns -0.0 into 0.0


def _sorted_links(links: Any) -> Any:
    if not isinstance(links, (list, tuple)):
        return _canonical(links)
    return sorted((_canonical(link) for link in links), key=_link_order)


def _link_order(link: Any) -> str:
    order = (link.get("rel"), link.get("href")) if isinstance(link, Mapping) else ()
    return json.dumps([order, link], sort_keys=True)
