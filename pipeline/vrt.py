"""All tiles of a period as one layer: ``landcover.vrt``, text that GDAL and QGIS open like a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from posixpath import relpath
from xml.etree import ElementTree

import rasterio

from pipeline.grid import Grid, PixelBox
from stac.legend import class_colors, class_titles
from stac.records import NO_DATA, MapClass

GDAL_TYPES: Mapping[str, str] = {"uint8": "Byte", "uint16": "UInt16"}
VRT_NAME = "landcover.vrt"
BLOCK = 512
"""Side of the internal tiles of a published raster."""


@dataclass(frozen=True)
class VrtTile:
    """The land-cover raster of one tile."""

    path: str
    """Of the raster, below the output."""
    box: PixelBox
    """Its pixels on the series' grid."""


def vrt_path(period_folder: str) -> str:
    """Return where the VRT of a period lies below the output."""
    return f"{period_folder}/{VRT_NAME}"


def landcover_vrt(tiles: Sequence[VrtTile], grid: Grid, classes: Sequence[MapClass], folder: str) -> bytes:
    """Return the VRT over the land cover of `tiles`, to be written into `folder` (below the output): same tiles, same bytes, in whatever order.

    Pixels that no tile covers are no data. Raises ValueError where there is no tile.
    """
    if not tiles:
        raise ValueError("a VRT needs one tile at least")
    outer = _around([tile.box for tile in tiles])
    root = root_element(grid, outer)
    band = band_element(root, "uint8", "landcover", NO_DATA, class_titles(classes), class_colors(classes))
    for tile in sorted(tiles, key=lambda tile: tile.box):
        rows, columns = tile.box.within(outer)
        source_element(band, relpath(tile.path, folder), (columns.start, rows.start, *reversed(tile.box.shape)), "uint8")
    ElementTree.indent(root, " ")
    return bytes(ElementTree.tostring(root, encoding="utf-8")) + b"\n"


def _around(boxes: Sequence[PixelBox]) -> PixelBox:
    return PixelBox(min(box.top for box in boxes), min(box.left for box in boxes), max(box.bottom for box in boxes), max(box.right for box in boxes))


def root_element(grid: Grid, box: PixelBox) -> ElementTree.Element:
    """Return the root of a VRT that covers `box`: size, CRS and transform."""
    height, width = box.shape
    crs = rasterio.crs.CRS.from_user_input(grid.crs)
    root = ElementTree.Element("VRTDataset", rasterXSize=str(width), rasterYSize=str(height))
    ElementTree.SubElement(root, "SRS", dataAxisToSRSAxisMapping="2,1" if crs.is_geographic else "1,2").text = crs.to_wkt()
    ElementTree.SubElement(root, "GeoTransform").text = ", ".join(repr(float(number)) for number in grid.geobox(box).affine.to_gdal())
    return root


def band_element(
    root: ElementTree.Element,
    dtype: str,
    description: str,
    nodata: int,
    titles: Mapping[int, str],
    colors: Mapping[int, tuple[int, int, int, int]] | None,
) -> ElementTree.Element:
    """Add a band to a VRT and return it: tags ``CLASS_<code>=<title>``, no data, and a colour table where `colors` are given."""
    band = ElementTree.SubElement(root, "VRTRasterBand", dataType=GDAL_TYPES[dtype], band="1")
    if titles:
        metadata = ElementTree.SubElement(band, "Metadata")
        for code in sorted(titles):
            ElementTree.SubElement(metadata, "MDI", key=f"CLASS_{code}").text = titles[code]
    ElementTree.SubElement(band, "Description").text = description
    ElementTree.SubElement(band, "NoDataValue").text = str(nodata)
    ElementTree.SubElement(band, "ColorInterp").text = "Palette" if colors else "Gray"
    if colors:
        table = ElementTree.SubElement(band, "ColorTable")
        for code in range(256):
            red, green, blue, alpha = colors.get(code, (0, 0, 0, 255))
            ElementTree.SubElement(table, "Entry", c1=str(red), c2=str(green), c3=str(blue), c4=str(alpha))
    return band


def source_element(band: ElementTree.Element, href: str, place: tuple[int, int, int, int], dtype: str) -> None:
    """Add the whole raster at `href` (seen from the VRT) to a band at `place`: column, row, width and height in the VRT's pixels."""
    column, row, width, height = place
    source = ElementTree.SubElement(band, "SimpleSource")
    ElementTree.SubElement(source, "SourceFilename", relativeToVRT="1").text = href
    ElementTree.SubElement(source, "SourceBand").text = "1"
    # SourceProperties let GDAL open the VRT without opening thousands of tiles.
    properties = {"RasterXSize": width, "RasterYSize": height, "BlockXSize": BLOCK, "BlockYSize": BLOCK, "DataType": GDAL_TYPES[dtype]}
    ElementTree.SubElement(source, "SourceProperties", {name: str(value) for name, value in properties.items()})
    _rectangle(source, "SrcRect", (0, 0, width, height))
    _rectangle(source, "DstRect", (column, row, width, height))


def _rectangle(source: ElementTree.Element, name: str, place: tuple[int, int, int, int]) -> None:
    sizes = dict(zip(("xOff", "yOff", "xSize", "ySize"), (str(number) for number in place), strict=True))
    ElementTree.SubElement(source, name, sizes)
