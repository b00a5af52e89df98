"""Harmonized Landsat and Sentinel-2 (HLS), both products: L30 of Landsat, S30 of Sentinel-2."""

from __future__ import annotations

import re

import pystac

from stac.errors import SceneRefused
from stac.items import acquired
from stac.probe import Probe
from stac.scenes import MaskSource, Scene
from stac.sensors.profile import Acquisition, band, first_key, make_scene, require_own_bands, text_of, time_rank

SCALE = 1e-4
NODATA = -9999
FILL = 255
CLOUD_BITS = (1, 2, 3)
"""Fmask: cloud, adjacent to cloud or shadow, cloud shadow."""

_VISIBLE = {"B01": "coastal", "B02": "blue", "B03": "green", "B04": "red"}
_BANDS = {
    "L30": {**_VISIBLE, "B05": "nir08", "B06": "swir16", "B07": "swir22"},
    "S30": {
        **_VISIBLE,
        "B05": "rededge071",
        "B06": "rededge075",
        "B07": "rededge078",
        "B08": "nir",
        "B8A": "nir08",
        "B11": "swir16",
        "B12": "swir22",
    },
}
_GRANULE = re.compile(r"HLS\.(?P<product>[LS]30)\.T(?P<tile>\w{5})\.(?P<sensed>\d{7}T\d{6})\.v(?P<version>\d+\.\d+)")


class Hls:
    """Profile of HLS version 1.5 and 2.0."""

    name = "hls"

    def claims(self, item: pystac.Item) -> bool:
        """Return whether the item is of HLS."""
        return (item.collection_id or "").lower().startswith("hls") or item.id.startswith("HLS.")

    def acquisition(self, item: pystac.Item) -> Acquisition:
        """Return product and tile, and the version with the time of publication."""
        granule = _granule(item)
        place = (self.name, _product(item), granule.get("tile", text_of(item, "grid:code") or item.id))
        version = (float(granule.get("version", 0)), time_rank(item, "created", "updated"))
        return Acquisition(place, acquired({"properties": item.properties}), version)

    def to_scene(self, item: pystac.Item, probe: Probe | None) -> Scene:
        """Return the item as a scene; raises `SceneRefused` where it is neither L30 nor S30, has no Fmask, or swaps its bands."""
        product = _product(item)
        keys = {name: key for key, name in _BANDS[product].items() if key in item.assets}
        if not keys:
            raise SceneRefused(f"none of its assets is a reflectance band of HLS {product}")
        fmask = first_key(item, ("Fmask", "fmask", "FMASK"))
        if fmask is None:
            raise SceneRefused("it has no Fmask, so clouds could not be told from land")
        require_own_bands(item, keys)
        bands = {name: band(item, key, SCALE, 0.0, NODATA) for name, key in keys.items()}
        mask = MaskSource(band(item, fmask, 1, 0, FILL).href, nodata=FILL, cloud_bits=CLOUD_BITS)
        version = _granule(item).get("version", "not stated")
        return make_scene(item, self.name, bands, mask, f"{product} version {version}", f"scale 0.0001, offset 0: HLS {product}")


def _product(item: pystac.Item) -> str:
    if product := _granule(item).get("product"):
        return product
    if found := re.search(r"[LS]30", f"{item.collection_id} {item.id}", re.IGNORECASE):
        return found.group(0).upper()
    raise SceneRefused("it does not say whether it is HLS L30 or S30, whose bands have other names")


def _granule(item: pystac.Item) -> dict[str, str]:
    """Return the parts of the granule's name, from the id or the names of its files."""
    texts = [item.id, *(str(asset.href) for asset in item.assets.values())]
    return next((found.groupdict() for text in texts if (found := _GRANULE.search(text))), {})
