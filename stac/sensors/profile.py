"""What a sensor profile is, and what all of them share: hrefs without signatures, band names, the making of a scene."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import pystac

from stac.errors import SceneRefused
from stac.footprints import footprint
from stac.items import acquired, instant, item_id, unsigned
from stac.probe import Probe
from stac.scenes import BandSource, MaskSource, Scene

BAND_NAMES = (
    "coastal",
    "blue",
    "green",
    "red",
    "rededge071",
    "rededge075",
    "rededge078",
    "nir",
    "nir08",
    "nir09",
    "swir16",
    "swir22",
)
"""Canonical band names (STAC eo common names) in order of wavelength."""

_INFRARED = "red edge or near infrared"
_KINDS = {name: name for name in (*BAND_NAMES, "yellow", "pan", "cirrus", "lwir", "lwir11", "lwir12")} | dict.fromkeys(
    ("rededge", "rededge071", "rededge075", "rededge078", "nir", "nir08", "nir09"), _INFRARED
)
"""Common names by what all publishers mean alike: red edge and near infrared vary (nir08 is nir in HLS L30, rededge in some Sentinel-2)."""

_TEXTS = ("platform", "constellation", "license")
"""Properties of an item that a scene keeps beside its instruments and its ground sampling distance."""


@dataclass(frozen=True)
class Acquisition:
    """What tells one look at the ground from another, and one processing of it from the next."""

    place: tuple[str, ...]
    """Sensor, platform, tile: equal for every processing of one acquisition."""
    moment: datetime
    """When; processings of one acquisition may differ by seconds."""
    version: tuple[Any, ...]
    """Grows with newer processing; comparable within one profile."""


class Profile(Protocol):
    """One sensor: which items are its own, and what their numbers mean."""

    name: str

    def claims(self, item: pystac.Item) -> bool:
        """Return whether the item is of this sensor, usable or not."""

    def acquisition(self, item: pystac.Item) -> Acquisition:
        """Return which acquisition the item shows and how new its processing is."""

    def to_scene(self, item: pystac.Item, probe: Probe | None) -> Scene:
        """Return the item as a scene; raises `SceneRefused` with the reason where it cannot be one."""


def make_scene(
    item: pystac.Item,
    sensor: str,
    bands: Mapping[str, BandSource],
    mask: MaskSource | None,
    processing: str,
    calibration: str,
) -> Scene:
    """Return the scene of an item; what all sensors publish alike (id, time, footprint, cloud cover) is read here."""
    document = {"id": item.id, "properties": item.properties}
    return Scene(
        id=item_id(document),
        collection=item.collection_id or "",
        sensor=sensor,
        datetime=acquired(document),
        footprint=footprint(item.geometry),
        bands={name: bands[name] for name in BAND_NAMES if name in bands},
        mask=mask,
        cloud_cover=cloud_cover(item),
        processing=processing,
        calibration=calibration,
        updated=time_of(item, "updated", "created"),
        href=own_href(item),
        properties=_kept(item.properties),
    )


def _kept(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Return what publishing needs of an item's properties, as far as it is of the type that STAC gives it."""
    kept: dict[str, Any] = {key: properties[key] for key in _TEXTS if isinstance(properties.get(key), str)}
    instruments, distance = properties.get("instruments"), properties.get("gsd")
    if isinstance(instruments, list) and all(isinstance(name, str) for name in instruments):
        kept["instruments"] = instruments
    if isinstance(distance, int | float) and not isinstance(distance, bool) and 0 < distance < float("inf"):
        kept["gsd"] = distance
    return kept


def cloud_cover(item: pystac.Item) -> float | None:
    """Return the item's cloud cover in percent, None where it does not say or says no percentage; Landsat says -1 where it does not know."""
    said = item.properties.get("eo:cloud_cover")
    if isinstance(said, bool) or not isinstance(said, int | float):
        return None
    return float(said) if 0 <= said <= 100 else None


def own_href(item: pystac.Item) -> str | None:
    """Return the item's own document without anything secret, None where it has none."""
    href = item.get_self_href()
    try:
        return unsigned(href) if href else None
    except SceneRefused:
        return None


def band(item: pystac.Item, key: str, scale: float, offset: float, nodata: float | None, index: int = 1) -> BandSource:
    """Return where a band lies; `key` names the asset."""
    return BandSource(unsigned(item.assets[key].href), index, scale, offset, nodata)


def require_own_bands(item: pystac.Item, keys: Mapping[str, str]) -> None:
    """Raise SceneRefused where an asset says that it is another band than its key means; `keys` names the asset of each band."""
    for name, key in keys.items():
        said = common_names(item.assets[key])
        if len(said) == 1 and said[0] in _KINDS and _KINDS[said[0]] != _KINDS[name]:
            raise SceneRefused(f"its asset {key} says that it is {said[0]} and not {name}: bands are swapped, or the item is wrong")


def first_key(item: pystac.Item, keys: Sequence[str]) -> str | None:
    """Return the first of `keys` that names an asset of the item."""
    return next((key for key in keys if key in item.assets), None)


def common_names(asset: pystac.Asset) -> list[str | None]:
    """Return the common name of each band of an asset, None where one has none, as `bands` (STAC 1.1) or else `eo:bands` says."""
    said = [_names_in(asset.extra_fields.get(field)) for field in ("bands", "eo:bands")]
    return next((names for names in said if any(names)), said[0] or said[1])


def _names_in(listed: Any) -> list[str | None]:
    entries = [entry for entry in listed if isinstance(entry, Mapping)] if isinstance(listed, list) else []
    said = (entry.get("eo:common_name") or entry.get("common_name") for entry in entries)
    return [name if isinstance(name, str) else None for name in said]


def text_of(item: pystac.Item, *keys: str) -> str:
    """Return the first of the properties `keys` that says something, as text; an empty text where none does."""
    return next((str(item.properties[key]) for key in keys if item.properties.get(key) not in (None, "")), "")


def time_of(item: pystac.Item, *keys: str) -> datetime | None:
    """Return the first of the properties `keys` that is a time, in UTC."""
    for key in keys:
        try:
            return instant(text_of(item, key))
        except SceneRefused:
            continue
    return None


def time_rank(item: pystac.Item, *keys: str) -> float:
    """Return the first of the properties `keys` that is a time as seconds since 1970, minus infinity where none is."""
    moment = time_of(item, *keys)
    return moment.timestamp() if moment else float("-inf")
