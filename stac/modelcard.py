"""The model's own item, by the machine-learning-model extension (mlm 1.5.2).

It lies at ``<name>/model/<model-id>.json`` and is linked with the relation ``model`` from the collection and from every item, not with ``item``: who
walks a catalog of maps must not meet a document that is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from posixpath import dirname, relpath
from typing import Any

from pystac import MediaType, RelType

from stac.legend import asset_classes
from stac.publish import CATALOG_PATH, EXTENSIONS, SHA256_MULTIHASH, STAC_VERSION, link, model_path, rfc3339
from stac.records import MapClass, ModelReference

MLM_SCHEMA = "https://stac-extensions.github.io/mlm/v1.5.2/schema.json"
SAFETENSORS = "safetensors.torch.save_file"


@dataclass(frozen=True)
class ModelFile:
    """One file of the model."""

    name: str
    """File name, for example ``model.safetensors``."""
    href: str
    """Where it can be had: URL, or a path from the model's document; never signed."""
    size: int
    """Bytes."""
    sha256: str
    """Hex digest."""


@dataclass(frozen=True)
class ModelRecord:
    """Everything that the model's item says."""

    reference: ModelReference
    architecture: str
    bands: tuple[str, ...]
    """Canonical band names that the model was trained to use, in wavelength order."""
    parameters: int
    """Number of weights."""
    files: tuple[ModelFile, ...]
    """Weights first; one at least."""
    classes: tuple[MapClass, ...]
    """What this series asks for; the model takes classes in words."""
    created: datetime
    """When the weights were made, or the series was: fixed, aware, UTC."""
    window: int = 320
    """Side of the model's input in pixels."""
    framework: str = "PyTorch"
    framework_version: str = ""
    """``major.minor.patch``; left out where empty."""
    license: str = "Apache-2.0"
    description: str = "Segments a window of surface reflectance into the classes that a sentence names, and explains the mask in words."
    pretrained_source: str | None = None
    """Name or URL of what the weights started from; None when they were trained from scratch."""
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    attribution: tuple[str, ...] = ()
    """What the licences of the training data ask to be said."""


def model_item(series: str, model: ModelRecord) -> dict[str, Any]:
    """Return the STAC item of the model as the series `series` publishes it. It has no place on earth, so geometry is null."""
    path = model_path(series, model.reference.id)
    return {
        "type": "Feature",
        "stac_version": STAC_VERSION,
        "stac_extensions": sorted([EXTENSIONS["file"], MLM_SCHEMA]),
        "id": model.reference.id,
        "geometry": None,
        "properties": _properties(model),
        "links": [link(RelType.ROOT, relpath(CATALOG_PATH, dirname(path)), MediaType.JSON)],
        "assets": {file.name: _asset(file, model.bands) for file in model.files},
    }


def _properties(model: ModelRecord) -> dict[str, Any]:
    optional: dict[str, Any] = {"mlm:hyperparameters": dict(model.hyperparameters)} if model.hyperparameters else {}
    if model.framework_version:
        optional["mlm:framework_version"] = model.framework_version.partition("+")[0]
    if model.attribution:
        optional["spexmap:attribution"] = sorted(model.attribution)
    return {
        "title": model.reference.name,
        "description": model.description,
        "datetime": rfc3339(model.created),
        "license": model.license,
        "bands": _bands(model.bands),
        "mlm:name": model.reference.name,
        "mlm:architecture": model.architecture,
        "mlm:tasks": ["semantic-segmentation", "generative"],
        "mlm:framework": model.framework,
        "mlm:total_parameters": model.parameters,
        "mlm:memory_size": sum(file.size for file in model.files if _is_weights(file)),
        "mlm:pretrained": model.pretrained_source is not None,
        "mlm:pretrained_source": model.pretrained_source,
        "mlm:input": [_input(model)],
        "mlm:output": [_output(model)],
        "spexmap:fingerprint": model.reference.fingerprint,
        **optional,
    }


def _input(model: ModelRecord) -> dict[str, Any]:
    shape = {"shape": [-1, len(model.bands), model.window, model.window], "dim_order": ["batch", "bands", "height", "width"], "data_type": "float32"}
    return {
        "name": "surface reflectance",
        "description": "Reflectance 0..1 by band, any subset of the bands that the model may do without; NaN is no data",
        "bands": list(model.bands),
        "input": shape,
        "value_scaling": None,
        "resize_type": None,
    }


def _output(model: ModelRecord) -> dict[str, Any]:
    shape = {
        "shape": [-1, len(model.classes), model.window, model.window],
        "dim_order": ["batch", "class", "height", "width"],
        "data_type": "float32",
    }
    listed = asset_classes("landcover", model.classes)["classification:classes"]
    return {
        "name": "class probabilities",
        "description": "Calibrated probability of each class asked for, with an unnamed rest",
        "tasks": ["semantic-segmentation"],
        "result": shape,
        "classification:classes": [entry for entry in listed if entry["name"] not in ("no-data", "other")],
    }


def _bands(names: Sequence[str]) -> list[dict[str, Any]]:
    return [{"name": name} for name in names]


def _asset(file: ModelFile, bands: Sequence[str]) -> dict[str, Any]:
    described = {"href": file.href, "title": file.name, "file:size": file.size, "file:checksum": SHA256_MULTIHASH + file.sha256}
    if not _is_weights(file):
        return {**described, "type": _media_type(file.name), "roles": ["metadata"]}
    # mlm wants bands among the item's properties, STAC allows them there only where an asset has them too.
    weights = {"type": "application/octet-stream; application=safetensors", "roles": ["mlm:model"], "mlm:artifact_type": SAFETENSORS}
    return {**described, **weights, "bands": _bands(bands)}


def _is_weights(file: ModelFile) -> bool:
    return file.name.endswith(".safetensors")


def _media_type(name: str) -> str:
    return {"json": str(MediaType.JSON), "md": "text/markdown"}.get(name.rpartition(".")[2], "application/octet-stream")
