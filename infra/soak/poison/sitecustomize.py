"""On the path of a run's processes: the one that segments the block SPEXMAP_SOAK_POISON (``top,left``) dies of it, as of a defect of a driver."""

import importlib.abc
import importlib.machinery
import os
import signal
import sys
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
        segment, poison = module.Segmenter._segment, os.environ["SPEXMAP_SOAK_POISON"]

        def poisoned(self, unit, box, block):  # type: ignore[no-untyped-def]
            if f"{box.top},{box.left}" == poison:
                os.kill(os.getpid(), signal.SIGKILL)
            return segment(self, unit, box, block)

        module.Segmenter._segment = poisoned


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


if os.environ.get("SPEXMAP_SOAK_POISON"):
    sys.meta_path.insert(0, Finder())
