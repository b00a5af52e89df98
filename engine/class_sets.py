"""Class sets: what fine-tuning has taught a model, beside what it knew before.

A set has weights of its own, the names of the classes that it ``added``, of all that were ``labelled``, and, under ``offsets``, what it adds to the
logits of classes that the model knew before. One set answers a whole list of classes, for the probabilities of a pixel come from one softmax.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

ClassSet = Mapping[str, Any]


def answering_set(asked: Collection[str], class_sets: Sequence[ClassSet]) -> int | None:
    """Return the position of the set that answers for all classes asked; None: the model as it was before fine-tuning.

    It is the latest set of which a class is asked that it has added, or that has labelled all that is asked. So a list that the model could answer
    before is answered as before, bit for bit, unless the user's labels speak of the whole list.
    """
    sought = set(asked)
    for position in reversed(range(len(class_sets))):
        if sought & set(class_sets[position]["added"]) or sought <= set(class_sets[position]["labelled"]):
            return position
    return None


def known_to_set(names: Sequence[str], class_sets: Sequence[ClassSet], position: int | None) -> tuple[str, ...]:
    """Return those of `names`, in their order, that the set at `position` knows: all but what later sets have added."""
    later = {name for each in class_sets[0 if position is None else position + 1 :] for name in each["added"]}
    return tuple(name for name in names if name not in later)


def rows_of_set(rows: Sequence[Mapping[str, Any]], class_sets: Sequence[ClassSet], position: int | None) -> list[dict[str, Any]]:
    """Return the entries of the classes of a configuration with the offsets of the set at `position`."""
    offsets = {} if position is None else class_sets[position].get("offsets", {})
    return [{**row, "offset": float(offsets.get(row["name"], row.get("offset", 0.0)))} for row in rows]
