"""The region that a job maps: from a bounding box or any vector file to valid polygons in degrees, and from there onto a grid's CRS."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import fsspec
import numpy as np
import shapely
from numpy.typing import NDArray
from pyproj import Transformer
from shapely.affinity import translate
from shapely.geometry import MultiPolygon, Polygon, box
from shapely.geometry.base import BaseGeometry

from pipeline.bounds import bounds_problem, bounds_words, on_earth
from pipeline.errors import GridError, JobError
from stac.documents import download

if TYPE_CHECKING:
    import geopandas as gpd

_STEP = 0.01
"""Degrees between the vertices with which a border is followed into another CRS: 1.1 km, off by 2 cm at 45 degrees of latitude."""


@dataclass(frozen=True)
class Region:
    """Polygons on the Earth, in degrees (EPSG:4326), split at the antimeridian, valid, in canonical order of vertices."""

    geometry: BaseGeometry
    _projected: dict[str, BaseGeometry] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def digest(self) -> str:
        """The sha256 of the polygons, vertices rounded to 1e-9 degrees (0.1 mm)."""
        rounded = shapely.transform(self.geometry, lambda points: np.round(points, 9) + 0.0)
        return hashlib.sha256(shapely.to_wkb(rounded.normalize(), byte_order=1, output_dimension=2)).hexdigest()

    @cached_property
    def unwrapped(self) -> BaseGeometry:
        """The polygons with longitudes that run on beyond 180 degrees where that makes the region narrower."""
        parts = [part if part.centroid.x >= 0 else translate(part, 360) for part in polygons(self.geometry)]
        beyond = shapely.union_all(parts)
        width, width_beyond = (bounds[2] - bounds[0] for bounds in (self.geometry.bounds, beyond.bounds))
        return beyond if width_beyond < width else self.geometry

    def to_crs(self, crs: str) -> BaseGeometry:
        """Return the polygons in `crs`, with vertices every 0.01 degrees so that parallels and meridians are followed.

        Raises
        ------
        GridError
            The region does not lie where `crs` is defined.
        """
        if crs not in self._projected:
            self._projected[crs] = from_degrees(self.geometry, crs)
        return self._projected[crs]


def load_region(source: str | Sequence[float]) -> Region:
    """Return the region that a job names.

    Parameters
    ----------
    source
        ``[west, south, east, north]`` in degrees, where west > east crosses the antimeridian; or the path or URL of any vector file that
        geopandas reads.

    Raises
    ------
    JobError
        There is no such file, it has no CRS or no polygon, or the region is not on Earth.
    """
    if isinstance(source, str):
        return Region(_canonical(_polygons_of_file(source)))
    return Region(_canonical(_polygons_of_box(source)))


def polygons(geometry: BaseGeometry) -> list[Polygon]:
    """Return the polygons that `geometry` holds, whatever it is wrapped in; points and lines are left out."""
    parts: Iterable[BaseGeometry] = getattr(geometry, "geoms", [geometry])
    found = [part for part in parts if part.geom_type == "Polygon" and not part.is_empty]
    nested = [inner for part in parts if part.geom_type in ("MultiPolygon", "GeometryCollection") for inner in polygons(part)]
    return found + nested


def from_degrees(geometry: BaseGeometry, crs: str) -> BaseGeometry:
    """Return polygons in degrees in `crs`, joined where they were split at the antimeridian; raises GridError where `crs` is not defined."""
    transformer = _transformer("EPSG:4326", crs)
    projected = _transform(shapely.segmentize(geometry, _STEP), transformer)
    finite = np.isfinite(shapely.get_coordinates(projected)).all()
    parts = polygons(shapely.make_valid(projected)) if finite else []
    # The two sides of a split at the antimeridian come out a rounding apart; a grid a millionth of the region wide closes the gap.
    joined = shapely.union_all(parts, grid_size=_extent(projected) * 1e-9 if len(parts) > 1 else None)
    if joined.is_empty:  # the whole world in a UTM zone: a line there and back
        raise GridError(f"grid.crs: {crs} is not defined where the region lies ({bounds_words(geometry.bounds)}); choose another CRS, or auto")
    return joined


def to_degrees(geometry: BaseGeometry, crs: str, steps: int = 1024) -> BaseGeometry:
    """Return polygons in `crs` in degrees, split at the antimeridian; vertices are not finite outside the CRS.

    Straight lines are followed with a vertex at least every `steps`-th part of the extent.
    """
    transformer = _transformer(crs, "EPSG:4326")
    projected = _transform(shapely.segmentize(geometry, max(_extent(geometry) / steps, 1e-9)), transformer)
    if not np.isfinite(shapely.get_coordinates(projected)).all():
        return projected
    return shapely.union_all([inner for part in polygons(projected) for inner in polygons(_split(_unwrap(part)))])


@lru_cache(maxsize=32)
def _transformer(source: str, target: str) -> Transformer:
    # Choosing among the operations between two datums takes PROJ up to a tenth of a second; a plan needs it for every tile.
    return Transformer.from_crs(source, target, always_xy=True)


def _transform(geometry: BaseGeometry, transformer: Transformer) -> BaseGeometry:
    def project(points: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.column_stack(transformer.transform(points[:, 0], points[:, 1]))

    return shapely.transform(geometry, project)


def _extent(geometry: BaseGeometry) -> float:
    west, south, east, north = geometry.bounds
    return float(max(east - west, north - south))


def _unwrap(polygon: Polygon) -> Polygon:
    """Return the polygon with longitudes that run on beyond 180 degrees instead of jumping; one around a pole is closed along the pole."""
    return Polygon(_unwrap_ring(polygon.exterior.coords), [_unwrap_ring(ring.coords) for ring in polygon.interiors])


def _unwrap_ring(coordinates: Sequence[tuple[float, ...]]) -> NDArray[np.float64]:
    ring = np.asarray(coordinates, np.float64)[:, :2].copy()
    ring[:, 0] = np.unwrap(ring[:, 0], period=360)
    if abs(ring[-1, 0] - ring[0, 0]) > 180:
        pole = 90.0 if ring[:, 1].mean() > 0 else -90.0
        ring = np.vstack([ring, [[ring[-1, 0], pole], [ring[0, 0], pole]]])
    return ring


def _split(polygon: Polygon) -> BaseGeometry:
    """Return a polygon whose longitudes may lie beyond 180 degrees, cut there and moved into -180..180."""
    whole = shapely.make_valid(polygon)
    if whole.bounds[0] >= -180 and whole.bounds[2] <= 180:
        return whole
    turns = [translate(whole.intersection(box(360 * turn - 180, -90, 360 * turn + 180, 90)), -360 * turn) for turn in (-1, 0, 1)]
    return shapely.union_all([part for turn in turns for part in polygons(turn)])


def _polygons_of_box(bounds: Sequence[float]) -> BaseGeometry:
    problem = bounds_problem(bounds)
    if problem:
        raise JobError(f"region: {problem}")
    west, south, east, north = (float(value) for value in bounds)
    if west < east:
        return box(west, south, east, north)
    halves = [box(*half) for half in ((west, south, 180, north), (-180, south, east, north)) if half[0] < half[2]]
    return MultiPolygon(halves)


def _polygons_of_file(path: str) -> BaseGeometry:
    table = _read(path)
    if table.empty or table.geometry.is_empty.all() or table.geometry.isna().all():
        raise JobError(f"region: {path} is empty; it must hold at least one polygon")
    if table.crs is None:
        raise JobError(f"region: {path} does not say its CRS; add it (a .prj file for a shapefile) or convert the file to GeoJSON")
    if not np.isfinite(shapely.get_coordinates(table.geometry)).all():
        raise JobError(f"region: {path} has coordinates that are not numbers (NaN or infinite); mend the file")
    geometries = [shapely.force_2d(shapely.make_valid(item)) for item in table.geometry if item is not None]
    parts = [part for item in geometries for part in polygons(item)]
    if not parts:
        kinds = ", ".join(sorted({item.geom_type for item in geometries}))
        raise JobError(f"region: {path} holds no polygon but {kinds}; buffer points and lines, or draw the outline")
    merged = shapely.union_all(parts)
    if table.crs.is_geographic:
        _check_on_earth(merged.bounds, path)
    degrees = merged if table.crs.to_epsg() == 4326 else to_degrees(merged, table.crs.to_wkt())
    _check_on_earth(degrees.bounds, f"{path} ({table.crs.name})")
    return degrees


def _read(path: str) -> gpd.GeoDataFrame:
    import geopandas as gpd

    try:
        source = io.BytesIO(_download(path)) if "://" in path else path
        if path.lower().endswith((".parquet", ".geoparquet")):
            return gpd.read_parquet(source)
        return gpd.read_file(source)
    except FileNotFoundError:
        raise JobError(f"region: there is no file {path}; paths are relative to the job file") from None
    except (OSError, ValueError, RuntimeError, ImportError, shapely.errors.ShapelyError) as error:
        reason = " ".join(str(error).split())
        if "No such file" in reason:
            raise JobError(f"region: there is no file {path}; paths are relative to the job file") from None
        raise JobError(f"region: {path} cannot be read as a vector file: {reason}") from error


def _download(url: str) -> bytes:
    if url.startswith(("http://", "https://")):
        return download(url)
    try:
        with fsspec.open(url, "rb") as stream:
            content: bytes = stream.read()
    except (OSError, ValueError, ImportError):
        raise
    except Exception as error:  # clients of object stores raise classes of their own, without a common root
        raise OSError(f"{type(error).__name__}: {error}") from error
    return content


def _check_on_earth(bounds: Sequence[float], what: str) -> None:
    if not on_earth(bounds):
        raise JobError(
            f"region: {what} is not on Earth: its bounds {bounds_words(bounds)} are not degrees within -180..180 and -90..90;"
            " mend the coordinates or the CRS that the file states, and split a region at the antimeridian"
        )


def _canonical(geometry: BaseGeometry) -> BaseGeometry:
    parts = polygons(shapely.make_valid(geometry))
    if not parts or sum(part.area for part in parts) == 0:
        raise JobError("region: it is empty: it has no area")
    return shapely.union_all(parts).normalize()
