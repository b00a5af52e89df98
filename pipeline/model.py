"""What the pipeline asks of a model before it maps: the job's classes resolved, the facts that planning needs, the names that items carry."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine import ClassQuery
from engine.models import MODEL_FILES
from engine.stored import StoredModel
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
    """See `ModelDescription.card`."""
    files: tuple[ModelFile, ...]


def inspect_model(job: JobSpec) -> JobModel:
    """Return the facts of the job's model; raises the engine's errors where there is no such model or it does not know a class."""
    model = StoredModel(job.model, "cpu")
    resolved = model.resolve([_asked(item) for item in job.classes], disjoint=True)
    classes = tuple(replace(query, name=item.name) for item, query in zip(job.classes, resolved, strict=True))
    return JobModel(
        ModelFacts(model.fingerprint, model.description.bands, model.description.required_bands, classes),
        ModelReference(id=f"{model.description.name}-{model.fingerprint[:12]}", name=model.description.name, fingerprint=model.fingerprint),
        model.card,
        tuple(_file(model.folder / name) for name in MODEL_FILES),
    )


def _asked(item: ClassSpec) -> ClassQuery:
    return ClassQuery(item.name, item.title or "", item.instruction or "", None, item.color or "")


def _file(path: Path) -> ModelFile:
    content = path.read_bytes()
    return ModelFile(path.name, path.name, len(content), hashlib.sha256(content).hexdigest())
