"""The frozen plan of a run: which scenes make which tiles, written before anything runs.

A plan is one GeoParquet table: a row for the run (geometry: the region), one for each scene (its footprint) and one for each
tile (its outline), each with its facts as canonical JSON. Resume, status, cost and lineage read it. Its identity is a hash of
the rows, whatever the order in which scenes were listed and whatever bytes the file has.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from pyarrow import ArrowException
from shapely.geometry import mapping
from shapely.geometry.base import BaseGeometry

from pipeline.canonical import canonical_json, digest
from pipeline.errors import JobError
from pipeline.grid import Grid, PixelBox, block_boxes
from pipeline.period import Period
from pipeline.region import Region, to_degrees
from pipeline.series import Series
from stac.scenes import Scene

WHOLE = "whole"
"""What stands for the region's part in a tile that lies inside the region."""

FORMAT = 1
"""Version of the table; another one is refused."""


@dataclass(frozen=True)
class Estimate:
    """What a run is expected to take; see `pipeline.planning.estimate` for the formula."""

    scenes: int
    tiles: int
    windows: int
    """Windows of the model, those that neighbouring blocks compute twice included."""
    bytes: int
    """To read from the catalog's assets."""
    core_hours: float
    """On processors alone."""
    gpu_hours: float
    """Accelerator time where there is one."""


@dataclass(frozen=True)
class TilePlan:
    """One product tile of a run."""

    id: str
    """Name that is unique in the series and safe in paths, see `Grid.tile_id`."""
    box: PixelBox
    """Its pixels: the lattice cell cropped to the region's snapped bounding box."""
    scenes: tuple[str, ...]
    """Ids of the scenes that touch what is read for it (halo included), in the run's total order."""
    fingerprint: str
    """sha256 over scenes with processing versions, model, settings and region part: equal means nothing to do."""
    part: str
    """Hash of the part of the region inside the tile; `WHOLE` where that is all of it."""

    @property
    def whole(self) -> bool:
        """Whether every pixel lies inside the region, so that nothing need be clipped."""
        return self.part == WHOLE


@dataclass(frozen=True)
class Plan:
    """What one run maps; never changed once it is written."""

    series: Series
    period: Period
    region: Region
    bands: tuple[str, ...]
    """Canonical names in wavelength order: what is read and what the model gets. Every scene has exactly these."""
    scenes: tuple[Scene, ...]
    """In the run's global total order."""
    tiles: tuple[TilePlan, ...]
    """In order of their ids."""
    created: datetime
    """When the newest input was made: what published documents call ``created``. From the inputs, so that equal plans publish equal bytes."""
    dilate: tuple[float, float]
    """Pixels (rows, columns) that cloud and shadow are grown by on this grid."""
    explain: bool
    window: int
    stride: int
    key: str
    """What was asked for, see `pipeline.planning.request_key`."""
    refused: tuple[tuple[str, str], ...] = ()
    """Scenes that were found but cannot be used, with the reason; not part of the identity."""
    block: int = 2560
    """Side of a block in pixels; not part of the identity, for it changes no pixel."""
    estimate: Estimate = Estimate(0, 0, 0, 0, 0.0, 0.0)

    @property
    def grid(self) -> Grid:
        """The series' grid."""
        return self.series.grid

    @property
    def folder(self) -> str:
        """Folder of the period's tiles below the output."""
        return f"{self.series.name}/{self.period.slug}"

    @cached_property
    def scene(self) -> Mapping[str, Scene]:
        """Scenes by id."""
        return {scene.id: scene for scene in self.scenes}

    def scenes_of(self, tile: TilePlan) -> tuple[Scene, ...]:
        """Return the scenes of `tile` in the total order."""
        return tuple(self.scene[name] for name in tile.scenes)

    def blocks_of(self, tile: TilePlan, side: int | None = None) -> tuple[PixelBox, ...]:
        """Return the blocks that cover `tile` exactly once, row by row; `side` in pixels, default the plan's."""
        return block_boxes(tile.box, self.block if side is None else side, self.stride)

    def fingerprint_of(self, tile: TilePlan, scenes: Sequence[Scene]) -> str:
        """Return the fingerprint that `tile` has when it is made from `scenes` (in the total order): another one where some were left out."""
        box = tile.box
        facts = {
            "series": self.series.digest,
            "bands": list(self.bands),
            "dilate": list(self.dilate),
            "explain": self.explain,
            "box": [box.top, box.left, box.bottom, box.right],
            "region": tile.part,
            "scenes": [_pixel_facts(scene) for scene in scenes],
        }
        return digest(facts)

    @cached_property
    def identity(self) -> str:
        """The sha256 over the canonical rows: equal identities publish equal bytes."""
        return digest(sorted([kind, name, document, geometry.wkb_hex] for kind, name, document, geometry in self._rows(identity=True)))

    def to_parquet(self) -> bytes:
        """Return the plan as GeoParquet; hrefs in it are unsigned."""
        import geopandas as gpd

        rows = self._rows(identity=False)
        columns = {"kind": [row[0] for row in rows], "id": [row[1] for row in rows], "document": [row[2] for row in rows]}
        sink = io.BytesIO()
        gpd.GeoDataFrame(columns, geometry=[row[3] for row in rows], crs="EPSG:4326").to_parquet(sink, index=False)
        return sink.getvalue()

    @classmethod
    def from_parquet(cls, source: bytes | str | Path) -> Plan:
        """Return the plan that `to_parquet` wrote, from its bytes or its file; raises JobError if it is not one."""
        import geopandas as gpd

        try:
            table = gpd.read_parquet(io.BytesIO(source) if isinstance(source, bytes) else source)
            return _plan_of(list(zip(table["kind"], table["id"], table["document"], table.geometry, strict=True)))
        except JobError:
            raise
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, OSError, ArrowException) as error:
            raise JobError(f"this is not a plan of a run: {error}") from error

    def _rows(self, *, identity: bool) -> list[tuple[str, str, str, BaseGeometry]]:
        """Return (kind, id, canonical JSON, geometry in degrees) of every row; with `identity`, only what decides the published bytes."""
        scenes = [
            ("scene", scene.id, canonical_json(_scene_document(rank, scene, identity)), scene.footprint) for rank, scene in enumerate(self.scenes)
        ]
        tiles = [("tile", tile.id, canonical_json(_tile_document(tile)), self.outline(tile.box)) for tile in self.tiles]
        return [("run", self.series.name, canonical_json(self._head(identity)), self.region.geometry), *scenes, *tiles]

    def outline(self, box: PixelBox) -> BaseGeometry:
        """Return the outline of a pixel box in degrees, sides followed with 16 vertices."""
        return to_degrees(self.grid.geobox(box).extent.geom, self.grid.crs, steps=16)

    def _head(self, identity: bool) -> dict[str, Any]:
        head = {
            "format": FORMAT,
            "series": self.series.to_dict(),
            "period": [self.period.start.isoformat(), self.period.end.isoformat()],
            "bands": list(self.bands),
            "created": self.created.isoformat(),
            "dilate": list(self.dilate),
            "explain": self.explain,
            "window": self.window,
            "stride": self.stride,
        }
        if identity:
            return head
        return head | {"key": self.key, "refused": [list(pair) for pair in self.refused], "block": self.block, "estimate": asdict(self.estimate)}


def _pixel_facts(scene: Scene) -> dict[str, Any]:
    """Return what of a scene decides pixels: the processing and how numbers are read, not where the files lie."""
    bands = {name: [band.index, band.scale, band.offset, band.nodata] for name, band in scene.bands.items()}
    mask = None if scene.mask is None else {key: value for key, value in asdict(scene.mask).items() if key not in ("href", "seen")}
    return {"id": scene.id, "processing": scene.processing, "bands": bands, "mask": mask}


def _scene_document(rank: int, scene: Scene, identity: bool) -> dict[str, Any]:
    """Return a scene as its row has it; for the identity without what its files were when the run was planned."""
    document = scene.to_dict() | {"rank": rank}
    del document["footprint"]
    for source in [*document["bands"].values(), *([document["mask"]] if document["mask"] else [])]:
        if identity or source["seen"] is None:
            del source["seen"]
    return document


def _tile_document(tile: TilePlan) -> dict[str, Any]:
    box = tile.box
    return {"box": [box.top, box.left, box.bottom, box.right], "scenes": list(tile.scenes), "fingerprint": tile.fingerprint, "part": tile.part}


def _plan_of(rows: list[tuple[str, str, str, BaseGeometry]]) -> Plan:
    heads = [(json.loads(document), geometry) for kind, _, document, geometry in rows if kind == "run"]
    if len(heads) != 1 or heads[0][0].get("format") != FORMAT:
        raise JobError("this plan was written by another version of spexmap")
    head, region = heads[0]
    scenes = [(json.loads(document), geometry) for kind, _, document, geometry in rows if kind == "scene"]
    tiles = [(name, json.loads(document)) for kind, name, document, _ in rows if kind == "tile"]
    return Plan(
        series=Series.from_dict(head["series"]),
        period=Period(date.fromisoformat(head["period"][0]), date.fromisoformat(head["period"][1])),
        region=Region(region),
        bands=tuple(head["bands"]),
        scenes=tuple(_scene_of(document, footprint) for document, footprint in sorted(scenes, key=lambda pair: int(pair[0]["rank"]))),
        tiles=tuple(_tile_of(name, document) for name, document in sorted(tiles)),
        created=datetime.fromisoformat(head["created"]).astimezone(UTC),
        dilate=(head["dilate"][0], head["dilate"][1]),
        explain=head["explain"],
        window=head["window"],
        stride=head["stride"],
        key=head["key"],
        refused=tuple((name, reason) for name, reason in head["refused"]),
        block=head["block"],
        estimate=Estimate(**head["estimate"]),
    )


def _scene_of(document: Mapping[str, Any], footprint: BaseGeometry) -> Scene:
    return Scene.from_dict({**document, "footprint": mapping(footprint)})


def _tile_of(name: str, document: Mapping[str, Any]) -> TilePlan:
    return TilePlan(name, PixelBox(*document["box"]), tuple(document["scenes"]), document["fingerprint"], document["part"])
