r"""Probes on hidden states: relabel or filter each row by a probe fitted to other rows.

    relabel:   q_i <- probe(x_i)
    filter:    drop the share of rows with the largest |probe(x_i) - q_i|

| probe | probe(x_i) |
|---|---|
| ``knn`` | mean label of the k nearest rows |
| ``logreg`` | logistic regression fitted to the rows of other folds |
| ``topo`` | mean label of the k nearest rows that pass the topological filter (``_topo``) |

Source: EleutherAI/w2s, ``probe_relabel`` and ``probe_filter``, on hidden states of the untrained
student. There a row is its own nearest neighbour and part of its own regression, so a probe tends
to agree with wrong labels; here every prediction excludes the row itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from w2s_fast.methods._base import Method, Targets, choice, layer_field, number
from w2s_fast.methods._logreg import out_of_fold
from w2s_fast.methods._node import Node
from w2s_fast.methods._plan import Plan
from w2s_fast.methods._topo import supported, total_variation
from w2s_fast.neighbors import nearest

PROBES = ("knn", "logreg", "topo")


@dataclass(frozen=True, kw_only=True)
class _Probe(Method):
    """Base of both methods.

    Attributes:
        probe: name in ``PROBES``.
        layer: layer of the hidden states: "half", "last", or a number; 0 is the embeddings.
        k: number of neighbours (``knn``, ``topo``).
        l2: penalty of ``logreg``, on features scaled to deviation 1.
        folds: number of folds of ``logreg``.
        contamination: assumed share of wrong labels, in [0, 0.9]: ``topo`` excludes them from
            neighbours, the filter drops them.
    """

    probe: str = choice("knn", PROBES)
    layer: str = layer_field("half")
    k: int = number(50, 1)
    l2: float = number(1e-3, 0.0)
    folds: int = number(5, 2)
    contamination: float = number(0.1, 0.0, 0.9)

    def _predict(self, weak: Targets, features: np.ndarray, seed: int) -> Tensor:
        """Return the probe's probabilities (N, K) float32; rows of weight 0 are not fitted."""
        x, probs = torch.tensor(features), torch.tensor(weak.probs)
        pool = torch.from_numpy(weak.used.nonzero()[0])
        x -= x[pool].mean(0)
        if self.probe == "logreg":
            return out_of_fold(x, probs, pool, l2=self.l2, folds=self.folds, seed=seed)
        if self.probe == "topo":
            pool = supported(x, probs, pool, self.k, self.contamination)
        return probs[nearest(x, self.k, pool)].mean(1)


@dataclass(frozen=True, kw_only=True)
class ProbeRelabel(_Probe):
    """Replace the weak labels by the probe's probabilities."""

    def labels(self, plan: Plan, labels: Node) -> Node:
        return plan.apply(self.relabel, weak=labels, features=plan.features(layer=self.layer))

    def relabel(self, weak: Targets, features: np.ndarray, seed: int) -> Targets:
        """Return labels from hidden states (N, D) float32; row weights do not change."""
        return replace(weak, probs=self._predict(weak, features, seed).numpy())


@dataclass(frozen=True, kw_only=True)
class ProbeFilter(_Probe):
    """Drop the rows on which probe and label differ most.

    Of N used rows, round(contamination * N) are dropped; ties drop the first rows.
    """

    def labels(self, plan: Plan, labels: Node) -> Node:
        return plan.apply(self.filtered, weak=labels, features=plan.features(layer=self.layer))

    def filtered(self, weak: Targets, features: np.ndarray, seed: int) -> Targets:
        """Return the labels with weight 0 on the dropped rows."""
        predicted = self._predict(weak, features, seed)
        doubt = total_variation(predicted, torch.tensor(weak.probs))
        rows = torch.from_numpy(weak.used.nonzero()[0])
        order = doubt[rows].argsort(descending=True, stable=True)
        selected = weak.used
        selected[rows[order[: round(self.contamination * len(rows))]].numpy()] = False
        return weak.keep(selected)
