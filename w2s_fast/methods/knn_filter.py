"""Keep rows whose label agrees with their neighbours.

A row is dropped if the mean label of its k nearest rows, itself excluded, has another top class.
Distances are those of the untrained student's hidden states.

Source: Wilson 1972, edited nearest neighbours; hidden states as in EleutherAI/w2s, whose ``knn``
probe counts a row as its own neighbour.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from w2s_fast.methods._base import Method, Targets, layer_field, number
from w2s_fast.methods._node import Node
from w2s_fast.methods._plan import Plan
from w2s_fast.neighbors import nearest


@dataclass(frozen=True, kw_only=True)
class KNNFilter(Method):
    """Keep the rows whose neighbours predict the class of the label.

    Attributes:
        k: number of neighbours, at least 1.
        layer: layer of the hidden states: "half", "last", or a number; 0 is the embeddings.
    """

    k: int = number(50, 1)
    layer: str = layer_field("half")

    def labels(self, plan: Plan, labels: Node) -> Node:
        return plan.apply(self.agreed, weak=labels, features=plan.features(layer=self.layer))

    def agreed(self, weak: Targets, features: np.ndarray, seed: int) -> Targets:
        """Return the labels with weight 0 where the neighbours in (N, D) float32 disagree."""
        x, pool = torch.tensor(features), torch.from_numpy(weak.used.nonzero()[0])
        x -= x[pool].mean(0)
        around = weak.probs[nearest(x, self.k, pool).numpy()].mean(1)
        return weak.keep(around.argmax(1) == weak.probs.argmax(1))
