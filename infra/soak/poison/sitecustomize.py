"""On the path of a run's processes, whose devices it spoils.

SPEXMAP_SOAK_POISON (``top,left``): the process that segments this block dies of it, as of a defect of a driver. SPEXMAP_SOAK_NAN (a file that
is not there yet): the model of the process that makes the file gives nothing but NaN from then on, as on a broken accelerator.
"""

import importlib.abc
import importlib.machinery
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

MODULE = "pipeline.segment"


class Poisoned(importlib.abc.Loader):
    """Loads the module as it is, then puts the poison in."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self.loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        """Leave it to the real loader."""
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Load, and wrap what segments a block."""
        self.loader.exec_module(module)
        if os.environ.get("SPEXMAP_SOAK_POISON"):
            poison(module, os.environ["SPEXMAP_SOAK_POISON"])
        if os.environ.get("SPEXMAP_SOAK_NAN"):
            break_device(module, Path(os.environ["SPEXMAP_SOAK_NAN"]))


def poison(module: ModuleType, block: str) -> None:
    """Let the process die that segments `block`."""
    segment = module.Segmenter._segment

    def poisoned(self, unit, box, pixels):  # type: ignore[no-untyped-def]
        if f"{box.top},{box.left}" == block:
            os.kill(os.getpid(), signal.SIGKILL)
        return segment(self, unit, box, pixels)

    module.Segmenter._segment = poisoned


def break_device(module: ModuleType, marker: Path) -> None:
    """Let one process, the first that runs the model, compute NaN."""
    open_planner, broken = module.open_planner, []

    def opened(*arguments):  # type: ignore[no-untyped-def]
        whole = open_planner(*arguments)

        def planner(reflectance):  # type: ignore[no-untyped-def]
            if not broken:
                try:
                    marker.touch(exist_ok=False)
                    broken.append(float("nan"))
                except FileExistsError:
                    broken.append(1.0)
            return whole.planner(reflectance) * broken[0]

        return replace(whole, planner=planner)

    module.open_planner = opened


class Finder(importlib.abc.MetaPathFinder):
    """Finds the module where it is, with the loader above."""

    def find_spec(self, name: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        """Return the spec of the one module; nothing for others."""
        if name != MODULE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)  # type: ignore[arg-type]
        if spec is not None and spec.loader is not None:
            spec.loader = Poisoned(spec.loader)
        return spec


if os.environ.get("SPEXMAP_SOAK_POISON") or os.environ.get("SPEXMAP_SOAK_NAN"):
    sys.meta_path.insert(0, Finder())
