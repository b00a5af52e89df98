"""On the path of a run's processes, whose devices and memory it spoils.

SPEXMAP_SOAK_POISON (``top,left``): the process that segments this block dies of it, as of a defect of a driver. SPEXMAP_SOAK_NAN (a file that
is not there yet): the model of the process that makes the file gives nothing but NaN from then on, as on a broken accelerator.
SPEXMAP_SOAK_BALLAST (a file that is not there yet): the driver puts into Ray's object store, and keeps, more than store and disk hold; the file
is made when no more goes in.
"""

import importlib.abc
import importlib.machinery
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType

BALLAST_BYTES = 4 * 2**20


class Poisoned(importlib.abc.Loader):
    """Loads the module as it is, then puts the poison in."""

    def __init__(self, loader: importlib.abc.Loader, poison: Callable[[ModuleType], None]) -> None:
        self.loader, self.poison = loader, poison

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        """Leave it to the real loader."""
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Load, and wrap what segments a block."""
        self.loader.exec_module(module)
        self.poison(module)


def spoil_segmenting(module: ModuleType) -> None:
    """Poison one block, or break one process's device, or both."""
    if os.environ.get("SPEXMAP_SOAK_POISON"):
        poison_block(module, os.environ["SPEXMAP_SOAK_POISON"])
    if os.environ.get("SPEXMAP_SOAK_NAN"):
        break_device(module, Path(os.environ["SPEXMAP_SOAK_NAN"]))


def poison_block(module: ModuleType, block: str) -> None:
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


def fill_store(module: ModuleType) -> None:
    """Fill Ray's object store, and what it spills to, as soon as the driver is connected."""
    connected, marker = module._connected, Path(os.environ["SPEXMAP_SOAK_BALLAST"])

    @contextmanager
    def loaded(*arguments) -> Iterator[None]:  # type: ignore[no-untyped-def]
        with connected(*arguments):
            kept: list[object] = []
            threading.Thread(target=put_ballast, args=(module.ray, kept, marker), daemon=True).start()
            yield

    module._connected = loaded


def put_ballast(ray: ModuleType, kept: list[object], marker: Path) -> None:
    """Put and keep objects until Ray says that neither memory nor disk is left."""
    while True:
        try:
            kept.append(ray.put(bytes(BALLAST_BYTES)))
        except ray.exceptions.RayError as error:
            marker.write_text(f"{type(error).__name__} after {len(kept)} objects")
            return


POISONS: dict[str, Callable[[ModuleType], None]] = {}
if os.environ.get("SPEXMAP_SOAK_POISON") or os.environ.get("SPEXMAP_SOAK_NAN"):
    POISONS["pipeline.segment"] = spoil_segmenting
if os.environ.get("SPEXMAP_SOAK_BALLAST"):
    POISONS["pipeline.cluster"] = fill_store


class Finder(importlib.abc.MetaPathFinder):
    """Finds these modules where they are, with the loader above."""

    def find_spec(self, name: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        """Return the spec of a module that is to be spoiled; nothing for others."""
        if name not in POISONS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)  # type: ignore[arg-type]
        if spec is not None and spec.loader is not None:
            spec.loader = Poisoned(spec.loader, POISONS[name])
        return spec


if POISONS:
    sys.meta_path.insert(0, Finder())
