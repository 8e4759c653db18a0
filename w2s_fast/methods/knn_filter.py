"""Rows whose label is that of their neighbours.

A row is left out when the mean label of its k nearest rows, itself not among them, has another top
class. Neighbours are near in the untrained student's hidden states.

Source: Wilson 1972, edited nearest neighbours; hidden states as in EleutherAI/w2s, whose ``knn``
probe lets a row be its own neighbour.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from w2s_fast.methods._base import Method, Targets
from w2s_fast.methods._layers import check_layer
from w2s_fast.methods._neighbours import nearest
from w2s_fast.methods._plan import Node, Plan


@dataclass(frozen=True, kw_only=True)
class KNNFilter(Method):
    """Keep the rows whose neighbours name the class of the label.

    Attributes:
        k: neighbours, at least 1.
        layer: whose hidden states: "half", "last", or a number counted from 0, the embeddings.
    """

    k: int = 50
    layer: str = "half"

    def __post_init__(self) -> None:
        self._check("k", 1)
        check_layer(self)

    def labels(self, plan: Plan, labels: Node) -> Node:
        """See ``Method.labels``."""
        return plan.apply(self.agreed, weak=labels, features=plan.features(layer=self.layer))

    def agreed(self, weak: Targets, features: np.ndarray, seed: int) -> Targets:
        """The labels, with weight 0 where the neighbours in (N, D) float32 disagree."""
        x, pool = torch.tensor(features), torch.from_numpy(weak.kept.nonzero()[0])
        x -= x[pool].mean(0)
        around = weak.probs[nearest(x, self.k, pool).numpy()].mean(1)
        return weak.keep(around.argmax(1) == weak.probs.argmax(1))
