"""Bounding boxes in degrees, checked without the weight of a geometry library."""

from __future__ import annotations

from collections.abc import Sequence


def bounds_problem(bounds: Sequence[float]) -> str | None:
    """Return what is wrong with ``[west, south, east, north]`` in degrees, or None; west > east is right, it crosses the antimeridian."""
    if len(bounds) != 4:
        return f"a bounding box has four numbers, west, south, east, north in degrees; this one has {len(bounds)}"
    west, south, east, north = bounds
    if not on_earth(bounds):
        return (
            f"{bounds_words(bounds)} is not on Earth; west, south, east, north must be degrees within -180..180 and -90..90"
            " (west > east crosses the antimeridian)"
        )
    if south >= north or west == east:
        return f"the box {bounds_words(bounds)} is empty; write [west, south, east, north] in degrees, south below north"
    return None


def on_earth(bounds: Sequence[float]) -> bool:
    """Return whether bounds in degrees lie within -180..180 and -90..90; infinity and NaN do not."""
    west, south, east, north = bounds
    return all(-180 <= longitude <= 180 for longitude in (west, east)) and all(-90 <= latitude <= 90 for latitude in (south, north))


def bounds_words(bounds: Sequence[float]) -> str:
    """Return bounds as a person reads them, six digits each."""
    return "[" + ", ".join(f"{value:.6g}" for value in bounds) + "]"
