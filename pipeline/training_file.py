"""Reads the file of a training: the same rules and error messages as a job file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from engine.training.config import TrainingSpec
from pipeline.errors import JobError
from pipeline.job import override, read_text
from pipeline.job_messages import Written, first_error
from pipeline.yaml_lines import load_with_lines

PATHS = (("model", "start"), ("data", "root"), ("data", "chips"), ("data", "red_edge"), ("data", "spectra"))


def load_training(path: str | Path, overrides: Sequence[str] = ()) -> TrainingSpec:
    """Return the training that a YAML file describes.

    Parameters
    ----------
    path
        Local path or any fsspec URL.
    overrides
        ``key=value`` with dotted keys (``stages.finetuning.steps=200``); values are YAML; they win over the file.

    Returns
    -------
    TrainingSpec
        With model.start and data.root resolved against the file's folder. Paths that an override gives are seen from the working folder, those of
        the data as well.

    Raises
    ------
    JobError
        The file or an override is wrong; the message names file, line and key.
    """
    name = str(path)
    data, lines = load_with_lines(read_text(name, "training file"), name)
    if not isinstance(data, dict):
        raise JobError(f"{name}: a training file is a mapping of keys such as `model:`, `data:` and `stages:`; examples/train has some to begin with")
    overridden = frozenset(override(data, text) for text in overrides)
    _resolve(data, Path(name).absolute().parent, overridden)
    try:
        return TrainingSpec.model_validate(data)
    except ValidationError as error:
        raise JobError(first_error(error, Written(name, lines, _made_by(overridden, lines)), TrainingSpec)) from None


def _made_by(overridden: frozenset[tuple[str, ...]], lines: Mapping[tuple[str | int, ...], int]) -> frozenset[tuple[str, ...]]:
    """Return the keys that overrides set, with the sections around them that the file does not have."""
    around = {path[:end] for path in overridden for end in range(1, len(path))}
    return overridden | {section for section in around if section not in lines}


def _resolve(data: dict[str, Any], folder: Path, overridden: frozenset[tuple[str, ...]]) -> None:
    """Make paths absolute in place; what is no path there stays for the check to refuse."""
    data.setdefault("data", {})
    if isinstance(data["data"], dict):
        data["data"].setdefault("root", ".")
    for section, key in PATHS:
        keys = data.get(section)
        value = keys.get(key) if isinstance(keys, dict) else None
        given = (section, key) in overridden
        if not isinstance(value, str) or (key not in ("start", "root") and not given):
            continue
        found = (Path.cwd() if given else folder) / Path(value).expanduser()
        # A model may also be the name of one that is shipped or published.
        if key != "start" or found.exists():
            data[section][key] = str(found.resolve() if key != "start" else found)
