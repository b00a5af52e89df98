"""What publishing is told: one frozen record a tile, a series and a file, with the names and codes that the output is made of.

Records hold plain numbers and text. They open no file and know no storage; `stac.publish` turns them into documents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, Final

from odc.geo.geobox import GeoBox
from shapely.geometry.base import BaseGeometry

from stac.scenes import Scene

NO_DATA: Final = 0
"""Land-cover code of a pixel that has no class."""
OTHER: Final = 254
"""Land-cover code of a pixel on which no class passes its threshold."""
CONFIDENCE_NO_DATA: Final = 255
SOURCE_NO_DATA: Final = 0
OUTSIDE_REGION, NEVER_OBSERVED, ALWAYS_CLOUD, READ_FAILED = 251, 252, 253, 254
"""Quality codes of a pixel that has no class; 0 to 250 count clear observations."""

RASTERS: Final = ("landcover", "confidence", "source", "quality")
"""Asset keys of a tile's rasters."""
FILE_ENDINGS: Final[Mapping[str, str]] = {
    "landcover": "landcover.tif",
    "confidence": "confidence.tif",
    "source": "source.tif",
    "quality": "quality.tif",
    "thumbnail": "preview.png",
    "explanation": "explanation.json",
}
"""Asset key to the ending of its file's name."""


@dataclass(frozen=True)
class MapClass:
    """One class of the legend."""

    code: int
    """Value in the land-cover raster, 1 to 253."""
    name: str
    """Machine name, ``[A-Za-z0-9_-]``."""
    title: str
    """Words that a person reads."""
    color: str
    """``#rrggbb``"""
    description: str = ""
    """What the model was asked for, in words."""


@dataclass(frozen=True)
class RasterStatistics:
    """Numbers about the valid pixels of one raster; None where no pixel is valid."""

    minimum: float | None
    maximum: float | None
    mean: float | None
    stddev: float | None
    valid_percent: float


@dataclass(frozen=True)
class PublishedFile:
    """One file of a tile as it lies in the output."""

    name: str
    """File name in the item's folder."""
    size: int
    """Bytes."""
    sha256: str
    """Hex digest of the bytes."""
    statistics: RasterStatistics | None = None


@dataclass(frozen=True)
class LeftOut:
    """A scene that was planned for a tile and not used, with the reason in words."""

    id: str
    reason: str


@dataclass(frozen=True)
class ItemKey:
    """What names one version of one tile in one period, and where it lies below the output."""

    series: str
    tile: str
    start: date
    """First day of the period, UTC."""
    end: date
    """Last day of the period, included."""
    version: int
    """Counted from 1."""

    @property
    def period(self) -> str:
        """The period as folders and ids write it, for example ``2023-08-10_2023-08-20``."""
        return f"{self.start.isoformat()}_{self.end.isoformat()}"

    @property
    def id(self) -> str:
        """The item's id, and the stem of all its file names."""
        return f"{self.series}_{self.tile}_{self.period}_v{self.version}"

    @property
    def period_folder(self) -> str:
        """Folder of the period below the output."""
        return f"{self.series}/{self.period}"

    @property
    def folder(self) -> str:
        """Folder of this version below the output."""
        return f"{self.period_folder}/{self.tile}/v{self.version}"

    @property
    def path(self) -> str:
        """The item document below the output."""
        return f"{self.folder}/{self.id}.json"

    def file_name(self, asset: str) -> str:
        """Return the name, in the item's folder, of the file behind the asset key `asset`."""
        return f"{self.id}_{FILE_ENDINGS[asset]}"


@dataclass(frozen=True)
class ModelReference:
    """The model that drew a map, as its items name it."""

    id: str
    """``[A-Za-z0-9_.-]``; names the model's own document."""
    name: str
    fingerprint: str
    """SHA-256 over the model's files, hex."""


@dataclass(frozen=True)
class TileRecord:
    """Everything that the item of one tile says. Nothing in it depends on the clock, the machine or the order of work."""

    key: ItemKey
    geobox: GeoBox
    """Grid of the tile's rasters."""
    footprint: BaseGeometry
    """What the tile shows, in degrees (EPSG:4326), split at the antimeridian where it crosses; see `stac.geometry.footprint_of`."""
    files: Mapping[str, PublishedFile]
    """By asset key: all of `RASTERS`, and thumbnail and explanation where they were made."""
    classes: tuple[MapClass, ...]
    scenes: tuple[Scene, ...]
    """In rank order; the source raster holds index + 1."""
    left_out: tuple[LeftOut, ...]
    class_areas: Mapping[str, float]
    """Hectares by class name, ``other`` and ``no-data`` included."""
    model: ModelReference
    fingerprint: str
    """Hash of scenes, model, settings and region part: a tile with the same one need not be made again."""
    identity: Mapping[str, Any]
    """The numerical identity: what must be equal for the same bytes."""
    created: datetime
    """From the frozen plan, aware, UTC."""
    license: str
    software: Mapping[str, str]
    """Name to version of what made the tile."""
    composite: str = "least-cloudy"
    attribution: tuple[str, ...] = ()


@dataclass(frozen=True)
class SeriesRecord:
    """Everything that a series' collection says besides its items."""

    name: str
    title: str
    description: str
    license: str
    classes: tuple[MapClass, ...]
    model: ModelReference
    providers: Sequence[Mapping[str, Any]] = ()
    """As STAC has them: name, roles, url."""
    keywords: tuple[str, ...] = ("land cover", "semantic segmentation", "spexmap")
    series: Mapping[str, Any] = field(default_factory=dict)
    """What the series froze (grid, classes, model, composite, mask), written as ``spexmap:series``."""
    software: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ItemEntry:
    """The little of an item that its collection needs."""

    path: str
    """The item document below the output."""
    bbox: tuple[float, float, float, float]
    """Degrees; west greater than east crosses the antimeridian."""
    start: str
    """RFC 3339, UTC."""
    end: str
    deprecated: bool = False
    crs: str | None = None
    """``EPSG:<code>`` or None."""

    @classmethod
    def of(cls, path: str, item: Mapping[str, Any]) -> ItemEntry:
        """Return the entry of the item document that lies at `path` below the output."""
        properties = item["properties"]
        west, south, east, north = item["bbox"]
        span = properties["start_datetime"], properties["end_datetime"]
        return cls(path, (west, south, east, north), *span, bool(properties.get("deprecated")), properties.get("proj:code"))
