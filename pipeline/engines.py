"""One engine for a run: the first actor's goes to the other nodes.

Builders choose by timing, so that two engines of the same graph need not give the same bytes. The numerical identity names the engine by its SHA-256
(``engine``), with which every file of the cache begins. Runtimes without an engine of that kind have none to share: a graph that is
exported on each node, once, is the same everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.runtimes.cache import EngineCache

LARGEST = 2 * 2**30
"""Bytes; a larger engine does not go through the object store. Nodes that have another one are then left out of the run."""


@dataclass(frozen=True)
class SharedEngine:
    """A file of the engine cache on its way to other nodes."""

    key: str
    content: bytes

    @classmethod
    def of(cls, identity: Mapping[str, Any], cache: EngineCache | None = None) -> SharedEngine | None:
        """Return the engine that an identity names, from this node's cache; None where there is none, or it is too large."""
        cache = cache or _cache()
        try:
            digest = bytes.fromhex(str(identity.get("engine", "")))
            files = [path for path in cache.folder.iterdir() if path.is_file()] if digest else []
        except (ValueError, OSError):
            return None
        for path in files:
            with path.open("rb") as file:
                is_it = file.read(len(digest)) == digest
            if is_it and path.stat().st_size <= LARGEST:
                content = cache.read(path.name)
                return None if content is None else cls(path.name, content)
        return None

    def keep(self, cache: EngineCache | None = None) -> None:
        """Put the engine into this node's cache, in the place of another one of the same key."""
        cache = cache or _cache()
        if cache.read(self.key) != self.content:
            cache.write(self.key, self.content)


def _cache() -> EngineCache:
    """Return this node's cache. The runtimes load PyTorch, which a run's driver does without."""
    from engine.runtimes.cache import EngineCache

    return EngineCache()
