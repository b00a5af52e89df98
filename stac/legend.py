"""What the files of a tile are, what their numbers mean and how a viewer may draw them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pystac import MediaType

from stac.records import (
    ALWAYS_CLOUD,
    CONFIDENCE_NO_DATA,
    NEVER_OBSERVED,
    NO_DATA,
    OTHER,
    OUTSIDE_REGION,
    READ_FAILED,
    SOURCE_NO_DATA,
    MapClass,
)

OTHER_COLOR: Final = "#9e9e9e"


@dataclass(frozen=True)
class AssetKind:
    """What is the same about one kind of file in every item."""

    title: str
    description: str
    media_type: str
    roles: tuple[str, ...]
    data_type: str | None = None
    """Of a raster's numbers; None for a file that is no raster."""
    nodata: int | None = None
    unit: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that items and the collection's `item_assets` share."""
        fields = {"title": self.title, "description": self.description, "type": str(self.media_type), "roles": list(self.roles)}
        return fields if self.data_type is None else {**fields, "data_type": self.data_type, "nodata": self.nodata}


ASSETS: Final[Mapping[str, AssetKind]] = {
    "landcover": AssetKind(
        "Land cover", "Class code of every pixel; 0 no data, 254 no class passed its threshold", MediaType.COG, ("data",), "uint8", NO_DATA
    ),
    "confidence": AssetKind(
        "Confidence",
        "Calibrated probability of the class in percent; for other, one minus the highest; 255 no data",
        MediaType.COG,
        ("metadata", "confidence"),
        "uint8",
        CONFIDENCE_NO_DATA,
        "%",
    ),
    "source": AssetKind(
        "Source scene",
        "Rank, in spexmap:scenes, of the scene that the pixel's reflectance comes from; 0 no data or median",
        MediaType.COG,
        ("metadata", "lineage"),
        "uint16",
        SOURCE_NO_DATA,
    ),
    "quality": AssetKind(
        "Quality",
        "Number of clear observations (0 to 250), or why the pixel has no data (251 to 254)",
        MediaType.COG,
        ("metadata", "quality"),
        "uint8",
        OUTSIDE_REGION,
    ),
    "thumbnail": AssetKind("Preview", "The land cover in the legend's colours", MediaType.PNG, ("thumbnail", "overview")),
    "explanation": AssetKind("Explanation", "Per class: area, confidence, spectra, and why the model says so", MediaType.JSON, ("metadata",)),
}
"""Every kind of file, by asset key."""

QUALITY_CODES: Final = (
    (OUTSIDE_REGION, "outside-region", "Outside the region", "The pixel's centre lies outside the region"),
    (NEVER_OBSERVED, "never-observed", "Never observed", "No scene of the period covers the pixel"),
    (ALWAYS_CLOUD, "always-cloud", "Always cloud or shadow", "Every scene that covers the pixel shows cloud, shadow or a defect"),
    (READ_FAILED, "read-failed", "Read failure", "A scene that covers the pixel could not be read and no other scene fills it"),
)


def class_titles(classes: Sequence[MapClass]) -> dict[int, str]:
    """Return the title of every land-cover code but no data, by code."""
    return {**{entry.code: entry.title for entry in classes}, OTHER: "Other"}


def class_colors(classes: Sequence[MapClass]) -> dict[int, tuple[int, int, int, int]]:
    """Return red, green, blue and alpha (0..255) of every land-cover code; no data is transparent."""
    colors = {entry.code: rgba(entry.color) for entry in classes}
    return {NO_DATA: (0, 0, 0, 0), **colors, OTHER: rgba(OTHER_COLOR)}


def quality_titles() -> dict[int, str]:
    """Return the title of every quality code that is not a count, by code."""
    return {code: title for code, _, title, _ in QUALITY_CODES}


def rgba(color: str) -> tuple[int, int, int, int]:
    """Return ``#rrggbb`` as opaque red, green, blue, alpha. Raises ValueError for any other text."""
    if len(color) != 7 or not color.startswith("#"):
        raise ValueError(f"color {color!r} is not #rrggbb; write it as six hexadecimal digits after #")
    red, green, blue = bytes.fromhex(color[1:])
    return red, green, blue, 255


def asset_classes(key: str, classes: Sequence[MapClass]) -> dict[str, Any]:
    """Return `classification:classes` of the asset `key`; empty for an asset whose numbers are no codes."""
    if key == "landcover":
        return {"classification:classes": _landcover_classes(classes)}
    if key == "quality":
        return {
            "classification:classes": [_code(value, name, title, text, no_data=value == OUTSIDE_REGION) for value, name, title, text in QUALITY_CODES]
        }
    return {}


def _landcover_classes(classes: Sequence[MapClass]) -> list[dict[str, Any]]:
    listed = [
        _code(entry.code, entry.name, entry.title, entry.description or entry.title, entry.color) for entry in sorted(classes, key=lambda c: c.code)
    ]
    nothing = _code(NO_DATA, "no-data", "No data", "No clear observation, or outside the region", no_data=True)
    return [nothing, *listed, _code(OTHER, "other", "Other", "No class passed its threshold", OTHER_COLOR)]


def _code(value: int, name: str, title: str, description: str, color: str | None = None, *, no_data: bool = False) -> dict[str, Any]:
    entry: dict[str, Any] = {"value": value, "name": name, "title": title, "description": description}
    if color is not None:
        entry["color_hint"] = color[1:].upper()
    return {**entry, "nodata": True} if no_data else entry


def renders(classes: Sequence[MapClass]) -> dict[str, Any]:
    """Return the render extension's styles: land cover in its colours, confidence as a ramp."""
    colormap = {str(code): list(color) for code, color in class_colors(classes).items()}
    return {
        "landcover": {"title": "Land cover", "assets": ["landcover"], "colormap": colormap, "nodata": NO_DATA, "resampling": "nearest"},
        "confidence": {
            "title": "Confidence",
            "assets": ["confidence"],
            "rescale": [[0, 100]],
            "colormap_name": "viridis",
            "nodata": CONFIDENCE_NO_DATA,
            "resampling": "nearest",
        },
    }
