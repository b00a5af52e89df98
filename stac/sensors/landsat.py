"""Landsat Collection 2 Level 2 surface reflectance (Landsat 4, 5, 7, 8, 9), as USGS, the Planetary Computer and stactools publish it."""

from __future__ import annotations

import re

import pystac

from stac.errors import SceneRefused
from stac.items import acquired
from stac.probe import Probe
from stac.scenes import MaskSource, Scene
from stac.sensors.profile import Acquisition, band, first_key, make_scene, require_own_bands, text_of, time_rank

SCALE, OFFSET = 0.0000275, -0.2
CLOUD_BITS = (1, 2, 3, 4)
"""QA_PIXEL: dilated cloud, cirrus, cloud, cloud shadow."""
FILL_BITS = (0,)
FILL = 1
"""QA_PIXEL where there is no image."""

_OLI = {"b1": "coastal", "b2": "blue", "b3": "green", "b4": "red", "b5": "nir08", "b6": "swir16", "b7": "swir22"}
_TM = {"b1": "blue", "b2": "green", "b3": "red", "b4": "nir08", "b5": "swir16", "b7": "swir22"}
_NAMED = {name: name for name in ("coastal", "blue", "green", "red", "nir08", "swir16", "swir22")}
_BANDS = {4: _TM, 5: _TM, 7: _TM, 8: _OLI, 9: _OLI}
_TIERS = {"RT": 0, "T2": 1, "T1": 2}
_PRODUCT = re.compile(
    r"L(?P<instrument>[COTEM])0(?P<number>[1-9])_L(?P<level>[12])(?P<kind>[A-Z]{2})_(?P<place>\d{6})_(?P<day>\d{8})(_(?P<processed>\d{8}))?"
    r"(_(?P<collection>0\d)_(?P<tier>T1|T2|RT))?"
)


class Landsat:
    """Profile of Landsat Collection 2 Level 2."""

    name = "landsat"

    def claims(self, item: pystac.Item) -> bool:
        """Return whether the item is of Landsat, whatever its level."""
        said = f"{item.collection_id} {text_of(item, 'platform')} {text_of(item, 'constellation')}".lower()
        return "landsat" in said or bool(_PRODUCT.match(item.id))

    def acquisition(self, item: pystac.Item) -> Acquisition:
        """Return satellite, path and row, and the processing as (tier, day of processing, publication)."""
        product = _product(item)
        place = text_of(item, "landsat:wrs_path").zfill(3) + text_of(item, "landsat:wrs_row").zfill(3)
        tier = text_of(item, "landsat:collection_category") or product.get("tier", "")
        version = (_TIERS.get(tier, -1), product.get("processed", ""), time_rank(item, "created", "updated"))
        return Acquisition((self.name, str(_satellite(item)), product.get("place", place)), acquired({"properties": item.properties}), version)

    def to_scene(self, item: pystac.Item, probe: Probe | None) -> Scene:
        """Return the item as a scene; raises `SceneRefused` for other levels, collections, the multispectral scanner and swapped bands."""
        satellite = _require_level_2(item)
        keys: dict[str, str] = {}
        for key in item.assets:
            if name := _band_name(key, satellite):
                keys.setdefault(name, key)
        if not keys:
            raise SceneRefused("it has no surface reflectance bands")
        quality = first_key(item, ("qa_pixel", "QA_PIXEL", "QA_PIXEL.TIF"))
        if quality is None:
            raise SceneRefused("it has no QA_PIXEL, so clouds could not be told from land")
        require_own_bands(item, keys)
        bands = {name: band(item, key, SCALE, OFFSET, 0) for name, key in keys.items()}
        mask = MaskSource(band(item, quality, 1, 0, FILL).href, nodata=FILL, cloud_bits=CLOUD_BITS, fill_bits=FILL_BITS)
        return make_scene(item, self.name, bands, mask, _processing(item), "scale 0.0000275, offset -0.2: Landsat Collection 2 Level 2")


def _product(item: pystac.Item) -> dict[str, str]:
    """Return the parts of the product's name that the id has."""
    found = _PRODUCT.match(item.id)
    return {key: value for key, value in found.groupdict().items() if value} if found else {}


def _satellite(item: pystac.Item) -> int:
    """Return the satellite's number, 0 where the item does not say or names several."""
    numbers = re.findall(r"landsat[-_ ]?(\d)", text_of(item, "platform").lower())
    if len(numbers) == 1:
        return int(numbers[0])
    return int(_product(item).get("number", 0)) if not numbers else 0


def _require_level_2(item: pystac.Item) -> int:
    """Return the satellite's number where the item is Collection 2 Level 2 of a TM, ETM+ or OLI."""
    product = _product(item)
    satellite = _satellite(item)
    if any(key.startswith(("nbart_", "nbar_")) for key in item.assets):
        raise SceneRefused("it is analysis-ready data of Geoscience Australia, which has no profile here; use Landsat Collection 2 Level 2")
    instruments = text_of(item, "instruments").lower()
    if "mss" in instruments or product.get("instrument") == "M" or satellite in (1, 2, 3):
        raise SceneRefused("it is of the Multispectral Scanner (MSS), which has no surface reflectance")
    level = text_of(item, "landsat:correction", "landsat:processing_level")[:2] or f"L{product.get('level', '?')}"
    if level == "L1":
        raise SceneRefused("it is Landsat Level 1 (top of the atmosphere); Level 2 is needed")
    collection = text_of(item, "landsat:collection_number") or product.get("collection", "")
    if level != "L2" or collection.lstrip("0") != "2" or satellite not in _BANDS:
        raise SceneRefused("it is not Landsat Collection 2 Level 2, the Landsat product that is read here")
    return satellite


def _band_name(key: str, satellite: int) -> str | None:
    """Return the canonical name of a surface reflectance asset: what its key means on this satellite."""
    return (_NAMED | _BANDS[satellite]).get(key.lower().removesuffix(".tif").removeprefix("sr_"))


def _processing(item: pystac.Item) -> str:
    product = _product(item)
    correction = text_of(item, "landsat:correction", "landsat:processing_level") or f"L{product.get('level', '')}{product.get('kind', '')}"
    tier = text_of(item, "landsat:collection_category") or product.get("tier", "")
    processed = product.get("processed")
    return ", ".join(word for word in (f"collection 2 {correction}", tier, f"processed {processed}" if processed else "") if word)
