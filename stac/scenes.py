"""Scenes: what one acquisition offers a map, with hrefs unsigned and numbers explained.

A `Scene` is plain data. It goes into the frozen plan as JSON and comes back out of it on any worker, so nothing here opens a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC
from datetime import datetime as Datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from shapely.geometry import mapping, shape
from shapely.geometry.base import BaseGeometry

UNOBSERVED, CLEAR, CLOUD, DEFECTIVE = 0, 1, 2, 3
"""Observation codes that `MaskSource.observe` gives: no data; usable; cloud or shadow (grown by the job's dilation); observed but unusable."""


@dataclass(frozen=True)
class BandSource:
    """Where one band lies and how its digital numbers become surface reflectance."""

    href: str
    """Absolute path or URL, never signed."""
    index: int = 1
    """Band of the file, counted from 1."""
    scale: float = 1e-4
    offset: float = 0.0
    """reflectance = number * scale + offset"""
    nodata: float | None = 0
    seen: str | None = None
    """What the file was when the run was planned (`pipeline.pins`); None where that is not known."""


@dataclass(frozen=True)
class MaskSource:
    """Where the clear-pixel mask lies and what its numbers mean: either a list of values (`clear`, `cloud`) or bits that must be unset."""

    href: str
    index: int = 1
    nodata: int | None = None
    clear: tuple[int, ...] = ()
    cloud: tuple[int, ...] = ()
    cloud_bits: tuple[int, ...] = ()
    """Bits of which each one marks cloud or shadow; a number with none of them set (and no `fill_bits`) is clear."""
    fill_bits: tuple[int, ...] = ()
    seen: str | None = None
    """As in `BandSource`."""

    def observe(self, numbers: NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
        """Return the observation code (UNOBSERVED, CLEAR, CLOUD, DEFECTIVE) of every mask number, same shape, uint8."""
        codes = self._from_bits(numbers) if self.cloud_bits else self._from_values(numbers)
        if self.nodata is not None:
            codes[numbers == self.nodata] = UNOBSERVED
        return codes

    def _from_values(self, numbers: NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
        codes = np.full(numbers.shape, DEFECTIVE, np.uint8)
        codes[np.isin(numbers, self.clear)] = CLEAR
        codes[np.isin(numbers, self.cloud)] = CLOUD
        return codes

    def _from_bits(self, numbers: NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
        codes = np.full(numbers.shape, CLEAR, np.uint8)
        codes[(numbers & _bit_mask(self.cloud_bits)) != 0] = CLOUD
        codes[(numbers & _bit_mask(self.fill_bits)) != 0] = UNOBSERVED
        return codes


def _bit_mask(bits: tuple[int, ...]) -> int:
    return sum(1 << bit for bit in bits)


@dataclass(frozen=True)
class Scene:
    """One acquisition as one product: the newest processing of it that the catalog holds."""

    id: str
    collection: str
    sensor: str
    """Name of the sensor profile: sentinel-2, landsat, hls, naip."""
    datetime: Datetime
    """Acquisition, aware, UTC."""
    footprint: BaseGeometry
    """Polygon or multipolygon in degrees (EPSG:4326); split at the antimeridian where it crosses."""
    bands: Mapping[str, BandSource]
    """By canonical band name (STAC eo common names, see `engine.bands`)."""
    mask: MaskSource | None
    """None where the sensor publishes no mask (NAIP): every valid pixel is clear."""
    cloud_cover: float | None = None
    """Percent, as published."""
    processing: str = ""
    """Processing version that tells two products of the same acquisition apart (baseline, generation time)."""
    calibration: str = ""
    """Why the numbers are scaled as they are, in words (Sentinel-2's offset: pixels, flag or baseline)."""
    updated: Datetime | None = None
    """When the catalog last changed the item; None where it does not say."""
    href: str | None = None
    """The item's own document, unsigned: what `derived_from` links to."""
    properties: Mapping[str, Any] = field(default_factory=dict)
    """What publishing needs of the item: platform, constellation, instruments, gsd, license."""

    def to_dict(self) -> dict[str, Any]:
        """Return the scene as JSON-ready data; `Scene.from_dict` undoes it exactly."""
        return {
            "id": self.id,
            "collection": self.collection,
            "sensor": self.sensor,
            "datetime": self.datetime.isoformat(),
            "footprint": mapping(self.footprint),
            "bands": {name: asdict(band) for name, band in sorted(self.bands.items())},
            "mask": None if self.mask is None else asdict(self.mask),
            "cloud_cover": self.cloud_cover,
            "processing": self.processing,
            "calibration": self.calibration,
            "updated": None if self.updated is None else self.updated.isoformat(),
            "href": self.href,
            "properties": dict(self.properties),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Scene:
        """Return the scene that `to_dict` wrote."""
        return cls(
            id=data["id"],
            collection=data["collection"],
            sensor=data["sensor"],
            datetime=_utc(data["datetime"]),
            footprint=shape(data["footprint"]),
            bands={name: BandSource(**band) for name, band in data["bands"].items()},
            mask=None if data["mask"] is None else MaskSource(**_tuples(data["mask"])),
            cloud_cover=data["cloud_cover"],
            processing=data["processing"],
            calibration=data["calibration"],
            updated=None if data["updated"] is None else _utc(data["updated"]),
            href=data["href"],
            properties=data["properties"],
        )


def _tuples(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}


def _utc(text: str) -> Datetime:
    return Datetime.fromisoformat(text).astimezone(UTC)
