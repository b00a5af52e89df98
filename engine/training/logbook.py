"""What a training writes down as it goes: log.jsonl, and event files for TensorBoard."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO

log = logging.getLogger(__name__)


class Book(Protocol):
    """Where the figures of a training go."""

    def write(self, stage: str, step: int, figures: Mapping[str, float]) -> None:
        """Write the figures of a step."""

    def close(self) -> None:
        """Close the files."""


class NoBook:
    """Of the workers that do not write."""

    def write(self, stage: str, step: int, figures: Mapping[str, float]) -> None:
        """Write nothing."""

    def close(self) -> None:
        """Close nothing."""


class Logbook:
    """Appends figures to FOLDER/log.jsonl and FOLDER/events.*; lines of steps that an interruption undid are taken out."""

    def __init__(self, folder: Path, stages: tuple[str, ...], stage: int, step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.began = time.monotonic()
        self.lines = _reopened(folder / "log.jsonl", stages, stage, step)
        self.events = _event_writer(folder, step)

    def write(self, stage: str, step: int, figures: Mapping[str, float]) -> None:
        """Write the figures of a step as one JSON line and one point in each of TensorBoard's curves."""
        rounded = {name: float(f"{value:.6g}") for name, value in figures.items()}
        self.lines.write(json.dumps({"stage": stage, "step": step, "seconds": round(time.monotonic() - self.began, 1), **rounded}) + "\n")
        self.lines.flush()
        log.info("%s step %d: %s", stage, step, ", ".join(f"{name} {value:g}" for name, value in rounded.items()))
        if self.events is not None:
            for name, value in figures.items():
                self.events.add_scalar(f"{stage}/{name}", value, step)
            self.events.flush()

    def close(self) -> None:
        """Close the files."""
        self.lines.close()
        if self.events is not None:
            self.events.close()


def _reopened(path: Path, stages: tuple[str, ...], stage: int, step: int) -> TextIO:
    """Return the file opened for appending, without lines of steps after `step` of stage number `stage`."""
    if path.is_file():
        kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _is_before(line, stages, stage, step)]
        temporary = path.with_name(f".{path.name}")
        temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        temporary.replace(path)
    return path.open("a", encoding="utf-8")


def _is_before(line: str, stages: tuple[str, ...], stage: int, step: int) -> bool:
    try:
        entry = json.loads(line)
        number = stages.index(entry["stage"])
    except (ValueError, KeyError, TypeError):
        return False
    return (number, int(entry["step"])) <= (stage, step)


def _event_writer(folder: Path, step: int) -> Any:
    """Return a writer of TensorBoard's event files, None where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.warning("TensorBoard is not installed, so there are no event files: pip install 'spexmap[train]'; log.jsonl has the same figures")
        return None
    return SummaryWriter(str(folder), purge_step=step or None)
