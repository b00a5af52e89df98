"""What all maps of one name share: grid, classes with codes, model, composite and mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Protocol

from pipeline.canonical import digest
from pipeline.errors import JobError, SeriesChanged
from pipeline.grid import Grid


class ResolvedClass(Protocol):
    """A class as the model resolved it: what `engine.ClassQuery` offers."""

    @property
    def name(self) -> str:
        """Name in letters, digits, ``-`` and ``_``."""

    @property
    def title(self) -> str:
        """Words for people."""

    @property
    def instruction(self) -> str:
        """What the model is asked."""

    @property
    def threshold(self) -> float | None:
        """Lowest calibrated probability (0..1) at which a pixel is of this class; set once the model has resolved the class."""

    @property
    def color(self) -> str:
        """``#rrggbb``."""


@dataclass(frozen=True)
class MapClass:
    """One class of the map: a number in the raster and what it stands for."""

    code: int
    """Value in the landcover raster, 1..250."""
    name: str
    title: str
    instruction: str
    threshold: float
    color: str
    """``#rrggbb``."""


@dataclass(frozen=True)
class ModelFacts:
    """What planning needs to know of a model, so that it need not load one."""

    fingerprint: str
    """sha256 over the model's files."""
    bands: tuple[str, ...]
    """Canonical band names that the weights were trained to use, in wavelength order."""
    required_bands: tuple[str, ...]
    """Without these it refuses to map."""
    classes: tuple[ResolvedClass, ...]
    """In the job's order, with the job's own titles, instructions and colours put in."""
    window: int = 320
    """Side of the model's window in pixels."""
    stride: int = 256
    """Pixels from one window to the next."""
    core_seconds: float = 0.3
    """Processor-core seconds that one window takes where there is no accelerator; for the estimate only."""
    gpu_seconds: float = 0.008
    """Accelerator seconds that one window takes; for the estimate only."""


@dataclass(frozen=True)
class Series:
    """The part of a job that must not change under one name and output."""

    name: str
    grid: Grid
    classes: tuple[MapClass, ...]
    """In the job's order, which is the order of probabilities and of ties."""
    model: str
    """Fingerprint of the model."""
    composite: str
    dilate: float
    """Metres that cloud and shadow are grown by."""

    def to_dict(self) -> dict[str, Any]:
        """Return the series as JSON-ready data; `Series.from_dict` undoes it exactly."""
        return {
            "name": self.name,
            "grid": {"crs": self.grid.crs, "resolution": self.grid.resolution, "origin": list(self.grid.origin), "tile": self.grid.tile},
            "classes": [asdict(item) for item in self.classes],
            "model": self.model,
            "composite": self.composite,
            "mask": {"dilate": self.dilate},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Series:
        """Return the series that `to_dict` wrote."""
        grid = data["grid"]
        return cls(
            name=data["name"],
            grid=Grid(grid["crs"], grid["resolution"], (grid["origin"][0], grid["origin"][1]), grid["tile"]),
            classes=tuple(MapClass(**item) for item in data["classes"]),
            model=data["model"],
            composite=data["composite"],
            dilate=data["mask"]["dilate"],
        )

    @cached_property
    def digest(self) -> str:
        """The sha256 of the canonical record."""
        return digest(self.to_dict())

    def differences(self, other: Series) -> tuple[str, ...]:
        """Return one phrase for each thing that `other` has otherwise, for example ``grid.resolution was 10, is 20``."""
        return tuple(
            f"{key} was {old}, is {new}" for (key, old), (_, new) in zip(_facts(self.to_dict()), _facts(other.to_dict()), strict=True) if old != new
        )

    def check_unchanged(self, new: Series) -> None:
        """Raise SeriesChanged if `new` differs from this series, saying in what and what to do."""
        changed = self.differences(new)
        if changed:
            raise SeriesChanged(
                f"the output already holds a series named {self.name} that differs: {'; '.join(changed)};"
                " choose another name or run with --new-series"
            )


def _facts(record: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return (dotted key, value) of a series record, in one fixed order."""
    grid, model = record["grid"], record["model"][:12]
    classes = ", ".join(f"{item['code']} {item['name']}" for item in record["classes"])
    details = digest(record["classes"])[:12]
    return [
        ("name", record["name"]),
        *((f"grid.{key}", grid[key]) for key in ("crs", "resolution", "origin", "tile")),
        ("classes", f"[{classes}]"),
        ("the digest of the classes' titles, instructions, thresholds and colours", details),
        ("model", model),
        ("composite", record["composite"]),
        ("mask.dilate", record["mask"]["dilate"]),
    ]


def map_classes(codes: Sequence[int], resolved: Sequence[ResolvedClass]) -> tuple[MapClass, ...]:
    """Return the classes of a map: the job's codes with what the model resolved, both in the job's order."""
    return tuple(
        MapClass(code, item.name, item.title, item.instruction, _threshold(item), item.color) for code, item in zip(codes, resolved, strict=True)
    )


def _threshold(item: ResolvedClass) -> float:
    if item.threshold is None:
        raise JobError(f"classes: the model gives {item.name} no threshold; name a class that it knows, or an instruction that it does")
    return float(item.threshold)
