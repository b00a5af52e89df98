"""Items as an output holds them, no larger than what reads them needs."""

from __future__ import annotations

from typing import Any


def published_item(fingerprint: str) -> dict[str, Any]:
    """Return what of a tile's item the documents over the tiles are made of."""
    return {
        "bbox": [0, 0, 1, 1],
        "properties": {
            "spexmap:fingerprint": fingerprint,
            "start_datetime": "2023-01-01T00:00:00Z",
            "end_datetime": "2023-01-31T23:59:59Z",
            "proj:transform": [10, 0, 0, 0, -10, 0],
            "proj:shape": [64, 64],
        },
    }
