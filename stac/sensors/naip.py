"""NAIP aerial photographs: one asset with red, green, blue and near infrared, uint8, uncalibrated, without a mask."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pystac

from stac.errors import SceneRefused
from stac.items import acquired, unsigned
from stac.probe import Probe
from stac.scenes import BandSource, Scene
from stac.sensors.profile import BAND_NAMES, Acquisition, common_names, first_key, make_scene, text_of, time_rank

SCALE = 1 / 255
_ORDER = ("red", "green", "blue", "nir")
_NO_NODATA = (None, "nan", "inf", "-inf")
"""What `nodata` may say that no number of a photograph is."""
_LARGEST = 2**64
_QUAD = re.compile(r"(?:^|_)m_(?P<quad>\d{7}_(?:ne|nw|se|sw))_\d{1,2}_")
_TIFF = re.compile(r"image/(tiff|vnd\.stac\.geotiff)")


class Naip:
    """Profile of the National Agriculture Imagery Program."""

    name = "naip"

    def claims(self, item: pystac.Item) -> bool:
        """Return whether the item is of NAIP."""
        return "naip" in f"{item.collection_id}".lower() or bool(_QUAD.search(item.id))

    def acquisition(self, item: pystac.Item) -> Acquisition:
        """Return the quarter quadrangle, and the publication as its version."""
        found = _QUAD.search(item.id)
        place = (self.name, found.group("quad") if found else item.id, text_of(item, "gsd"))
        return Acquisition(place, acquired({"properties": item.properties}), (time_rank(item, "updated", "created"),))

    def to_scene(self, item: pystac.Item, probe: Probe | None) -> Scene:
        """Return the item as a scene; raises `SceneRefused` where it has no image, or what its bands are cannot be told."""
        key = _image(item)
        if key is None:
            raise SceneRefused("it has no GeoTIFF with the photograph's bands")
        asset = item.assets[key]
        href, nodata = unsigned(asset.href), _nodata(key, asset)
        names = _band_order(key, asset)
        bands = {name: BandSource(href, index, SCALE, 0.0, nodata) for index, name in enumerate(names, start=1) if name in BAND_NAMES}
        reason = "scale 1/255, offset 0: NAIP is uncalibrated uint8, so these are brightnesses and not reflectances"
        return make_scene(item, self.name, bands, None, text_of(item, "naip:year"), reason)


def _image(item: pystac.Item) -> str | None:
    """Return the key of the photograph: the asset that describes several bands, or the only GeoTIFF."""
    described = [key for key, asset in item.assets.items() if len(set(_ORDER) & set(common_names(asset))) >= 3]
    tiffs = [key for key, asset in item.assets.items() if _TIFF.match(str(asset.media_type)) or asset.href.lower().endswith((".tif", ".tiff"))]
    likely = [key for key in described if key in tiffs]
    return first_key(item, ("image", "analytic", *likely)) or (tiffs[0] if len(tiffs) == 1 else None)


def _band_order(key: str, asset: pystac.Asset) -> list[str | None]:
    """Return the name of each band of the photograph; red, green, blue, near infrared where it does not say."""
    said = common_names(asset)
    known = [name for name in said if name in BAND_NAMES]
    complete = len(set(_ORDER) & set(known)) >= 3
    as_usual = all(name == usual for name, usual in zip(said, _ORDER, strict=False) if name in BAND_NAMES)
    if len(set(known)) < len(known) or not (complete or as_usual):
        raise SceneRefused(f"its asset {key} says that its bands are {', '.join(map(str, said))[:100]}, so which is which cannot be told")
    return said if complete else list(_ORDER)


def _nodata(key: str, asset: pystac.Asset) -> float:
    """Return the number that the asset publishes as no data; 0, which photographs do not use, where it publishes none."""
    listed = asset.extra_fields.get("raster:bands") or asset.extra_fields.get("bands") or [{}]
    first = listed[0] if isinstance(listed, list) else None
    if not isinstance(first, Mapping):
        raise SceneRefused(f"its asset {key} does not describe its bands as a list of objects, so what is no data cannot be told")
    value = first.get("nodata", asset.extra_fields.get("nodata"))
    if value in _NO_NODATA:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > _LARGEST:
        raise SceneRefused(f"its asset {key} says that no data is {str(value)[:50]}, which is no number of a photograph")
    return float(value)
