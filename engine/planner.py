"""The planner: the fixed graph of one band set and one list of classes, which maps run and exports compile.

Classes form a tree of two levels. The roots (vegetation, building, water, bare ...) share a pixel among themselves and `other` by one softmax; the
children of a root share what the root got. So a class has the same probability whatever else is asked, a child is never more probable than its
parent, and a union of classes has the sum of its parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from engine.modeling import Prompts, SpexForLandCover


@dataclass(frozen=True)
class Queries:
    """How the classes that a caller asks follow from the queries that the model answers."""

    parents: tuple[int | None, ...]
    """For each query the position of its parent's query; None for a root."""
    asked: tuple[tuple[int, ...], ...]
    """For each class asked the queries whose probabilities add up to its own."""


def probabilities(logits: Tensor, parents: Sequence[int | None] | None = None) -> Tensor:
    """Return probabilities (n, Q, h, w) of the logits of Q queries; `other`, whose logit is 0, has what the roots leave.

    Parameters
    ----------
    logits
        (n, Q, h, w)
    parents
        For each query the position of its parent, None for a root. Without it all are roots. For one root that is a sigmoid.
    """
    family = tuple(parents) if parents is not None else (None,) * logits.shape[1]
    roots = [i for i, parent in enumerate(family) if parent is None]
    of_roots = torch.cat([logits[:, roots], torch.zeros_like(logits[:, :1])], 1).softmax(1)
    if len(roots) == len(family):
        return of_roots[:, :-1]
    planes = {query: of_roots[:, k] for k, query in enumerate(roots)}
    for root in roots:
        children = [i for i, parent in enumerate(family) if parent == root]
        if children:
            shares = logits[:, children].softmax(1)
            planes.update({query: planes[root] * shares[:, k] for k, query in enumerate(children)})
    return torch.stack([planes[query] for query in range(len(family))], 1)


class Planner(nn.Module):
    """The fixed graph of one band set and one list of classes.

    `offsets` are added to the logits of the Q queries: the calibration of the weights, 0 where there is none. Without `queries` each query is a
    class asked, and all are roots.
    """

    def __init__(
        self, model: SpexForLandCover, prompts: Prompts, bands: Sequence[str], offsets: Sequence[float] = (), queries: Queries | None = None
    ) -> None:
        super().__init__()
        count = prompts.tokens.shape[1]
        self.queries = queries or Queries((None,) * count, tuple((k,) for k in range(count)))
        shift = torch.tensor(list(offsets) or [0.0] * count, dtype=torch.float32)
        self.register_buffer("offsets", shift[:, None, None], persistent=False)
        self.model, self.bands, self.classes = model, tuple(bands), len(self.queries.asked)
        for each in fields(prompts):
            self.register_buffer(each.name, getattr(prompts, each.name), persistent=False)

    def forward(self, reflectance: Tensor) -> Tensor:
        """Return probabilities (n, K, h, w) float32 of reflectance (n, C, h, w) float32, NaN = no data, h and w multiples of the stride.

        Pixels without data get some finite probability; the caller masks them.
        """
        return self.predict(reflectance)[0]

    def predict(self, reflectance: Tensor) -> tuple[Tensor, Tensor]:
        """Return the probabilities of `forward` and the probability that each class is there at all (n, K)."""
        prompts = Prompts(**{each.name: getattr(self, each.name) for each in fields(Prompts)}).expand(reflectance.shape[0])
        output = self.model(reflectance, prompts, self.bands)
        shares = probabilities(output.logits.float() + self.offsets, self.queries.parents)
        absent = 1.0 - output.presence.float().sigmoid()
        asked = self.queries.asked
        return (
            torch.stack([shares[:, list(parts)].sum(1) for parts in asked], 1),
            torch.stack([1.0 - absent[:, list(parts)].prod(1) for parts in asked], 1),
        )
