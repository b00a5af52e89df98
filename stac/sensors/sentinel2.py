"""Sentinel-2 Level-2A as Earth Search v0 and v1, the Planetary Computer, Sinergise, Copernicus and stactools publish it.

The one hard thing is the offset. From processing baseline 04.00 on, ESA adds 1000 to every number; some catalogs take it off again, and what they say
about that is sometimes wrong. So pixels decide first, then the flag, then the baseline (not while the pixels cannot be read: that may pass, and the
next run would see another map), and the scene keeps the reason. `raster:bands` is not asked:
Earth Search publishes an offset of -0.1 there beside a flag that says it has been applied already.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

import numpy as np
import pystac

from stac.errors import SceneRefused
from stac.items import acquired
from stac.probe import Probe
from stac.scenes import BandSource, MaskSource, Scene
from stac.sensors.profile import Acquisition, band, first_key, make_scene, require_own_bands, text_of, time_of, time_rank

SCALE = 1e-4
OFFSET = -0.1
FIRST_WITH_OFFSET = (4, 0)
OFFSET_SINCE = datetime(2022, 1, 25, tzinfo=UTC)
"""First day of baseline 04.00: what was processed before has no offset."""
DARK_NUMBER, DARK_SHARE = 900, 0.01
"""More than this share of valid blue numbers below this number: the offset was removed, since with it numbers start at 1000."""
SAMPLE = 256
FEWEST = 100
"""Valid numbers below which a sample decides nothing."""
UNREADABLE = "the pixels could not be read"
CLEAR, CLOUD = (2, 4, 5, 6, 7, 11), (3, 8, 9, 10)

_KEYS = {
    "coastal": ("coastal", "B01"),
    "blue": ("blue", "B02"),
    "green": ("green", "B03"),
    "red": ("red", "B04"),
    "rededge071": ("rededge1", "rededge071", "B05"),
    "rededge075": ("rededge2", "rededge075", "B06"),
    "rededge078": ("rededge3", "rededge078", "B07"),
    "nir": ("nir", "B08"),
    "nir08": ("nir08", "B8A"),
    "nir09": ("nir09", "B09"),
    "swir16": ("swir16", "B11"),
    "swir22": ("swir22", "B12"),
}
_RESOLUTIONS = ("", "_10m", "_20m", "_60m")
_FLAGS = tuple(f"{prefix}:boa_offset_applied" for prefix in ("earthsearch", "s2", "sentinel2", "sentinel"))
_PREFIXES = ("s2", "sentinel2", "sentinel")
_PRODUCT = re.compile(r"(?P<platform>S2[A-D])_MSIL(?P<level>[0-9][A-C])_(?P<datatake>\d{8}T\d{6})(_N(?P<baseline>\d{4}))?_R\d{3}")
_TILE = re.compile(r"(?:^|_)T?0?([1-9]\d?[C-X][A-HJ-NP-Z]{2})(?=_|$)")


class Sentinel2:
    """Profile of Sentinel-2 MSI Level-2A."""

    name = "sentinel-2"

    def claims(self, item: pystac.Item) -> bool:
        """Return whether the item is of Sentinel-2, whatever its level."""
        said = f"{item.collection_id} {text_of(item, 'constellation')} {text_of(item, 'platform')}".lower()
        return bool(re.search(r"sentinel[-_ ]?s?2", said) or re.match(r"S2[A-D]_", item.id))

    def acquisition(self, item: pystac.Item) -> Acquisition:
        """Return platform, tile and sensing time, and the processing as (baseline, generation, publication, sequence)."""
        product = _product(item)
        platform = product["platform"] if product else text_of(item, "platform").upper().replace("SENTINEL-", "S")
        sequence = text_of(item, "s2:sequence", "sentinel:sequence")
        version = (
            _baseline(item) or (-1, -1),
            time_rank(item, *(f"{prefix}:generation_time" for prefix in _PREFIXES)),
            time_rank(item, "created", "updated"),
            int(sequence) if re.fullmatch("[0-9]{1,9}", sequence) else -1,
        )
        return Acquisition((self.name, platform, _tile(item)), acquired({"properties": item.properties}), version)

    def to_scene(self, item: pystac.Item, probe: Probe | None) -> Scene:
        """Return the item as a scene, its offset decided and explained; raises `SceneRefused`."""
        _require_level_2a(item)
        keys = {name: key for name, stems in _KEYS.items() if (key := _finest(item, stems))}
        if not keys:
            raise SceneRefused("none of its assets is a Sentinel-2 reflectance band")
        scl = _finest(item, ("scl", "SCL"))
        if scl is None:
            raise SceneRefused("it has no scene classification (SCL), so clouds could not be told from land")
        require_own_bands(item, keys)
        numbers = {name: band(item, key, SCALE, 0.0, 0) for name, key in keys.items()}
        offset, reason = _offset(item, numbers.get("blue"), probe)
        bands = {name: band(item, key, SCALE, offset, 0) for name, key in keys.items()}
        mask = MaskSource(band(item, scl, 1, 0, 0).href, nodata=0, clear=CLEAR, cloud=CLOUD)
        return make_scene(item, self.name, bands, mask, _processing(item), reason)


def _finest(item: pystac.Item, stems: tuple[str, ...]) -> str | None:
    return first_key(item, [stem + resolution for stem in stems for resolution in _RESOLUTIONS])


def _require_level_2a(item: pystac.Item) -> None:
    product = _product(item)
    kind = text_of(item, *(f"{prefix}:product_type" for prefix in _PREFIXES)).upper()
    level = kind[-2:] if kind.startswith("S2MSI") else product["level"] if product else ""
    if level == "1C" or re.search(r"L1C", f"{item.collection_id} {item.id}", re.IGNORECASE):
        raise SceneRefused("it is Sentinel-2 Level-1C (top of the atmosphere); Level-2A is needed")


def _product(item: pystac.Item) -> dict[str, str] | None:
    """Return the parts of ESA's product name, wherever the item has it."""
    keys = ("s2:product_uri", "sentinel:product_id", "sentinel2:product_title", "title")
    for text in (*(text_of(item, key) for key in keys), item.id):
        if found := _PRODUCT.match(text):
            return found.groupdict()
    return None


def _tile(item: pystac.Item) -> str:
    """Return the MGRS tile, `33TWN` or `1WCR`, from the id or what the item says."""
    if found := _TILE.search(item.id):
        return found.group(1)
    prefix = "sentinel" if "sentinel:grid_square" in item.properties else "mgrs"
    parts = "".join(text_of(item, f"{prefix}:{part}") for part in ("utm_zone", "latitude_band", "grid_square"))
    return (text_of(item, "grid:code").removeprefix("MGRS-") or text_of(item, "s2:mgrs_tile") or parts).lstrip("0").upper()


def _baseline(item: pystac.Item) -> tuple[int, int] | None:
    """Return the processing baseline as (4, 0) for 04.00, from the property or the product's name."""
    said = text_of(item, *(f"{prefix}:processing_baseline" for prefix in _PREFIXES), "processing:version")
    if not said and (product := _product(item)) and product["baseline"]:
        said = f"{product['baseline'][:2]}.{product['baseline'][2:]}"
    if not said:
        said = text_of(item, "s2:tile_id", "s2:datatake_id", "s2:granule_id").rpartition("_N")[2]
    found = re.fullmatch(r"(\d{1,2})\.(\d{1,2})", said)
    return (int(found.group(1)), int(found.group(2))) if found else None


def _flag(item: pystac.Item) -> tuple[str, bool] | None:
    """Return name and value of the catalog's statement that the offset has been applied, None where it makes none."""
    for key in _FLAGS:
        said = text_of(item, key).lower()
        if said in ("true", "false"):
            return key, said == "true"
    return None


def _processing(item: pystac.Item) -> str:
    baseline = _baseline(item)
    generated = text_of(item, *(f"{prefix}:generation_time" for prefix in _PREFIXES))
    words = ["baseline {:02d}.{:02d}".format(*baseline) if baseline else "baseline not stated", f"generated {generated}" if generated else ""]
    return ", ".join(word for word in words if word)


def _offset(item: pystac.Item, blue: BandSource | None, probe: Probe | None) -> tuple[float, str]:
    """Return the offset of reflectance = number * 1e-4 + offset, and why."""
    baseline = _baseline(item)
    name = "baseline {:02d}.{:02d}".format(*baseline) if baseline else "no stated baseline"
    if baseline and baseline < FIRST_WITH_OFFSET:
        return 0.0, f"offset 0: {name} is older than 04.00 and has none"
    if baseline is None and _processed_before_offset(item):
        return 0.0, "offset 0: processed before baseline 04.00 began on 2022-01-25"
    dark, seen = _dark_share(blue, probe)
    if dark is not None and dark > DARK_SHARE:
        return 0.0, f"offset 0: {seen}, so the 1000 that {name} adds had been taken off"
    flag = _flag(item)
    if flag:
        key, applied = flag
        return (0.0 if applied else OFFSET), f"offset {0 if applied else OFFSET}: {key} is {str(applied).lower()} with {name}; {seen}"
    if baseline is None:
        raise SceneRefused(f"its processing baseline is not stated, no flag tells whether the offset is applied, and {seen}")
    if seen == UNREADABLE:
        raise SceneRefused(f"no flag tells whether the 1000 that {name} adds was taken off, and {seen} now; only they could tell")
    return OFFSET, f"offset {OFFSET}: {name} adds 1000 and no flag says that it was taken off; {seen}"


def _processed_before_offset(item: pystac.Item) -> bool:
    generated = time_of(item, *(f"{prefix}:generation_time" for prefix in _PREFIXES), "created")
    return generated is not None and generated < OFFSET_SINCE


def _dark_share(blue: BandSource | None, probe: Probe | None) -> tuple[float | None, str]:
    """Return the share of valid blue numbers below 900, None where there are none to look at, and that in words."""
    numbers = probe(blue, SAMPLE) if blue and probe else None
    if numbers is None:
        return None, UNREADABLE if blue and probe else "the pixels were not looked at"
    valid = numbers[numbers != 0]
    if valid.size < FEWEST:
        return None, f"only {valid.size} valid pixels were seen"
    share = float(np.mean(valid < DARK_NUMBER))
    return share, f"{share:.1%} of {valid.size} valid blue numbers lie below {DARK_NUMBER}"
