"""Footprints: from the geometry that an item publishes to a valid polygon in degrees, split at the antimeridian."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import shapely
from shapely.affinity import translate
from shapely.geometry import MultiPolygon, Polygon, box, shape
from shapely.geometry.base import BaseGeometry

from stac.errors import SceneRefused

_FARTHEST = 540.0
"""Degrees: a ring may run on beyond 180, by a whole turn at most."""


def footprint(geometry: Mapping[str, Any] | None) -> BaseGeometry:
    """Return a GeoJSON geometry as a valid polygon or multipolygon in degrees, longitudes -180..180.

    A ring with a step of more than 180 degrees is taken to cross the antimeridian and is cut there; so is one that runs past 180.

    Raises
    ------
    SceneRefused
        No geometry, or one without an area.
    """
    if not geometry:
        raise SceneRefused("it has no footprint (geometry is null)")
    try:
        given = shapely.force_2d(shape(geometry))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError, shapely.errors.ShapelyError) as error:
        raise SceneRefused(f"its footprint is not a GeoJSON geometry ({error})") from None
    places = shapely.get_coordinates(given)
    if not (np.abs(places) <= _FARTHEST).all():
        raise SceneRefused("its footprint is not on Earth: its coordinates are not degrees")
    try:
        parts = [piece for part in _polygons(given) for piece in _split(part)]
        whole = _areal(shapely.union_all(parts)) if parts else MultiPolygon()
    except (ValueError, shapely.errors.ShapelyError) as error:
        raise SceneRefused(f"its footprint cannot be mended ({error})") from None
    if whole.is_empty or whole.area == 0:
        raise SceneRefused(f"its footprint has no area ({given.geom_type})")
    return whole


def _polygons(geometry: BaseGeometry) -> list[Polygon]:
    if geometry.geom_type == "Polygon":
        return [geometry] if not geometry.is_empty else []
    if geometry.geom_type in ("MultiPolygon", "GeometryCollection"):
        return [polygon for part in geometry.geoms for polygon in _polygons(part)]
    return []


def _split(polygon: Polygon) -> list[BaseGeometry]:
    """Return the polygon's pieces within -180..180 degrees."""
    west, _, east, _ = polygon.bounds
    if west >= -180 and east <= 180 and not _steps_across(polygon):
        return [_areal(polygon)]
    unwrapped = Polygon(_unwrapped(polygon.exterior.coords), [_unwrapped(ring.coords) for ring in polygon.interiors])
    if unwrapped.area == 0:
        return [_areal(polygon)]
    whole = _areal(unwrapped)
    worlds = [(turn, box(-180 + 360 * turn, -90, 180 + 360 * turn, 90)) for turn in (-1, 0, 1)]
    return [translate(_areal(whole.intersection(world)), -360 * turn) for turn, world in worlds if whole.intersects(world)]


def _steps_across(polygon: Polygon) -> bool:
    return any(abs(b[0] - a[0]) > 180 for a, b in pairwise(polygon.exterior.coords))


def _unwrapped(coordinates: Any) -> list[tuple[float, float]]:
    """Return the ring with every longitude within 180 degrees of the one before it; one around a pole is led over the pole."""
    ring = [tuple(point) for point in coordinates]
    unwrapped = [ring[0]]
    for longitude, latitude in ring[1:]:
        turns = round((unwrapped[-1][0] - longitude) / 360)
        unwrapped.append((longitude + 360 * turns, latitude))
    if abs(unwrapped[-1][0] - unwrapped[0][0]) > 180:
        pole = 90.0 if sum(point[1] for point in ring) > 0 else -90.0
        unwrapped += [(unwrapped[-1][0], pole), (unwrapped[0][0], pole)]
    return unwrapped


def _areal(geometry: BaseGeometry) -> BaseGeometry:
    """Return the polygons of a geometry, made valid."""
    valid = geometry if geometry.is_valid else shapely.make_valid(geometry)
    polygons = _polygons(valid)
    return polygons[0] if len(polygons) == 1 else MultiPolygon(polygons)
