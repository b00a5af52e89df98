"""Sensor profiles: which items are of which sensor, and what their numbers mean."""

from __future__ import annotations

import pystac

from stac.errors import SceneRefused
from stac.probe import Probe
from stac.scenes import Scene
from stac.sensors.hls import Hls
from stac.sensors.landsat import Landsat
from stac.sensors.naip import Naip
from stac.sensors.profile import Profile, text_of
from stac.sensors.sentinel2 import Sentinel2

PROFILES: tuple[Profile, ...] = (Hls(), Naip(), Sentinel2(), Landsat())
"""In the order of asking: HLS first, whose items also name the platform that they come from."""

_OTHERS = {
    "sentinel-1": "it is radar (Sentinel-1)",
    "sentinel-3": "it is Sentinel-3, too coarse for land cover",
    "modis": "it is MODIS, too coarse for land cover",
    "aster": "it is ASTER, which has no profile here",
    "dem": "it is a model of elevation",
    "lidar": "it is a model of elevation",
}


def profile_of(item: pystac.Item) -> Profile:
    """Return the profile that the item belongs to, by its collection, constellation, platform and id.

    Raises
    ------
    SceneRefused
        No profile fits.
    """
    for profile in PROFILES:
        if profile.claims(item):
            return profile
    said = f"{item.collection_id} {text_of(item, 'constellation')} {text_of(item, 'platform')} {' '.join(item.assets)}".lower()
    what = next((reason for word, reason in _OTHERS.items() if word in said.replace("_", "-")), "it is of no sensor that has a profile here")
    raise SceneRefused(f"{what}; read are Sentinel-2 Level-2A, Landsat Collection 2 Level 2, HLS and NAIP")


def to_scene(item: pystac.Item, probe: Probe | None = None) -> Scene:
    """Return an item as a scene: its bands by canonical name, how numbers become reflectance and why, which pixels are clear.

    Parameters
    ----------
    item
        With absolute hrefs, as `stac.items.read_item` makes it.
    probe
        Looks at the pixels of a band where the numbers' meaning is in doubt (Sentinel-2 from baseline 04.00 on); None looks at none.

    Raises
    ------
    SceneRefused
        With the reason.
    """
    return profile_of(item).to_scene(item, probe)
