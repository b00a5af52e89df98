"""Footprints and bounding boxes in degrees, also where they cross the antimeridian."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from shapely import affinity, make_valid, orient_polygons, set_precision
from shapely.geometry import Polygon, box, mapping
from shapely.geometry.base import BaseGeometry

Bounds = tuple[float, float, float, float]
"""West, south, east, north in degrees; west greater than east crosses the antimeridian."""

DEGREE_DECIMALS = 7
"""About one centimetre on the ground."""


def footprint_of(geobox: GeoBox, points: int = 16) -> BaseGeometry:
    """Return the outline of `geobox` in degrees (EPSG:4326), each side followed at `points` places, split at the antimeridian."""
    columns, rows = _outline(geobox.shape[1], geobox.shape[0], points)
    affine = geobox.affine
    x, y = affine.a * columns + affine.b * rows + affine.c, affine.d * columns + affine.e * rows + affine.f
    crs: Any = geobox.crs
    longitude, latitude = Transformer.from_crs(crs.proj, "EPSG:4326", always_xy=True).transform(x, y)
    outline = make_valid(Polygon(np.column_stack([np.degrees(np.unwrap(np.radians(longitude))), latitude])))
    return orient_polygons(set_precision(_wrap(outline), 10.0**-DEGREE_DECIMALS))


def _outline(width: int, height: int, points: int) -> tuple[Any, Any]:
    along, zero = np.linspace(0, 1, points, endpoint=False), np.zeros(points)
    columns = np.concatenate([along, zero + 1, 1 - along, zero])
    rows = np.concatenate([zero, along, zero + 1, 1 - along])
    return columns * width, rows * height


def _wrap(outline: BaseGeometry) -> BaseGeometry:
    """Bring longitudes that ran beyond 180 degrees back, cutting the outline where it crosses."""
    west, _, east, _ = outline.bounds
    if west >= -180 and east <= 180:
        return outline
    parts = [affinity.translate(outline.intersection(box(-180 + turn, -90, 180 + turn, 90)), -turn) for turn in (-360, 0, 360)]
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.union(part)
    return whole


def geojson_of(geometry: BaseGeometry) -> dict[str, Any]:
    """Return the geometry (degrees) as GeoJSON: seven decimals, right-hand rule, coordinates as lists."""
    fixed = orient_polygons(geometry)
    return {"type": fixed.geom_type, "coordinates": _rounded(mapping(fixed)["coordinates"])}


def _rounded(coordinates: Any) -> Any:
    if isinstance(coordinates, (int, float)):
        return round(float(coordinates), DEGREE_DECIMALS)
    return [_rounded(part) for part in coordinates]


def bounds_of(geometry: BaseGeometry) -> Bounds:
    """Return the bounding box of a geometry in degrees that is split at the antimeridian where it crosses it."""
    parts = getattr(geometry, "geoms", [geometry])
    west, south, east, north = union_of([part.bounds for part in parts])
    return round(west, DEGREE_DECIMALS), round(south, DEGREE_DECIMALS), round(east, DEGREE_DECIMALS), round(north, DEGREE_DECIMALS)


def union_of(boxes: Sequence[Bounds]) -> Bounds:
    """Return the smallest box around all `boxes`: it crosses the antimeridian only where boxes meet there.

    Raises ValueError where there is no box.
    """
    south, north = min(bounds[1] for bounds in boxes), max(bounds[3] for bounds in boxes)
    if not _touches_antimeridian(boxes):
        return min(bounds[0] for bounds in boxes), south, max(bounds[2] for bounds in boxes), north
    west, east = _around_largest_gap((bounds[0], bounds[2]) for bounds in boxes)
    return west, south, east, north


def _touches_antimeridian(boxes: Iterable[Bounds]) -> bool:
    boxes = list(boxes)
    crosses = any(west > east for west, _, east, _ in boxes)
    return crosses or (any(west <= -180 for west, *_ in boxes) and any(east >= 180 for _, _, east, _ in boxes))


def _around_largest_gap(spans: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """Leave out of the circle of longitudes the widest arc that no span (west, east) covers; the whole circle where there is none."""
    unrolled = sorted((west, east if east >= west else east + 360) for west, east in spans)
    best, reach = (0.0, -180.0, 180.0), unrolled[0][1]
    for west, east in [*unrolled[1:], (unrolled[0][0] + 360, 0.0)]:
        if west - reach > best[0]:
            best = (west - reach, west, reach)
        reach = max(reach, east)
    return _degrees(best[1]), _degrees(best[2])


def _degrees(longitude: float) -> float:
    return longitude - 360 if longitude > 180 else longitude
