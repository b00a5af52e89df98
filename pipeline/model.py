"""What the pipeline asks of a model before it maps: the job's classes resolved, the facts that planning needs, the names that items carry."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine import ClassQuery, Spex
from engine.models import MODEL_FILES
from pipeline.job import ClassSpec, JobSpec
from pipeline.series import ModelFacts
from stac.modelcard import ModelFile
from stac.records import ModelReference


@dataclass(frozen=True)
class JobModel:
    """A job's model, looked at but not kept."""

    facts: ModelFacts
    reference: ModelReference
    card: dict[str, Any]
    """See `Spex.model_card`."""
    files: tuple[ModelFile, ...]


def inspect_model(job: JobSpec) -> JobModel:
    """Return the facts of the job's model; raises the engine's errors where there is no such model or it does not know a class."""
    spex = Spex.load(job.model, device="cpu")
    resolved = spex.resolve([_asked(item) for item in job.classes], disjoint=True)
    classes = tuple(replace(query, name=item.name) for item, query in zip(job.classes, resolved, strict=True))
    card = spex.model_card
    return JobModel(
        ModelFacts(spex.fingerprint, spex.bands, spex.required_bands, classes),
        ModelReference(id=f"{card['name']}-{spex.fingerprint[:12]}", name=card["name"], fingerprint=spex.fingerprint),
        card,
        tuple(_file(spex.folder / name) for name in MODEL_FILES) if spex.folder is not None else (),
    )


def _asked(item: ClassSpec) -> ClassQuery:
    return ClassQuery(item.name, item.title or "", item.instruction or "", None, item.color or "")


def _file(path: Path) -> ModelFile:
    content = path.read_bytes()
    return ModelFile(path.name, path.name, len(content), hashlib.sha256(content).hexdigest())
