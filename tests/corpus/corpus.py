"""What a case of the corpus is, and what it may expect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from rehearsal import Rehearsal
from spoiling import BEST, EDGE, OLDER, Spoil


class Outcome(StrEnum):
    """How a run ends that meets bad data."""

    RIGHT = "mapped, and right"
    REFUSED = "scene refused, the others mapped"
    LEFT_OUT = "scene left out of the tile, the others mapped"
    FAILED = "tile failed, the others published"
    SENTENCE = "plain sentence, nothing started"


STATUS = {Outcome.RIGHT: 0, Outcome.REFUSED: 0, Outcome.LEFT_OUT: 0, Outcome.FAILED: 1, Outcome.SENTENCE: 2}


@dataclass(frozen=True)
class Case:
    """One way in which data are bad, and what must come of it."""

    name: str
    wrong: str
    """What is wrong, in words."""
    spoil: Spoil
    outcome: Outcome
    says: str = ""
    """What the reason or the sentence contains."""
    exit_status: int | None = None
    """Where it is not the outcome's own."""
    scene: str = BEST
    """The scene that is refused or left out."""
    like: tuple[str, ...] | str | None = "default"
    """The map must equal that of the sound world without these scenes; None: it is not compared."""
    check: Callable[[Rehearsal], bool] | None = None
    """What else must hold of the map."""

    @property
    def status(self) -> int:
        return STATUS[self.outcome] if self.exit_status is None else self.exit_status

    @property
    def without(self) -> tuple[str, ...] | None:
        """Scenes without which the sound world gives the same map; None where it is not compared."""
        if self.like is None or self.outcome in (Outcome.SENTENCE, Outcome.FAILED):
            return None
        if isinstance(self.like, tuple):
            return self.like
        if self.outcome is Outcome.RIGHT:
            return ()
        return (self.scene if self.scene in (BEST, OLDER, EDGE) else BEST,)
