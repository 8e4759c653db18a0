r"""Labels checked against hidden states: what a simple probe makes of a row, from other rows only.

    relabel:   q_i <- probe(x_i)
    filter:    leave out the share of rows with the largest |probe(x_i) - q_i|

| probe | probe(x_i) |
|---|---|
| ``knn`` | mean label of the k nearest rows |
| ``logreg`` | logistic regression fitted to the rows of other folds |
| ``topo`` | mean label of the k nearest rows whose labels the shape of the data supports |

Source: EleutherAI/w2s, ``probe_relabel`` and ``probe_filter``, on hidden states of the untrained
student. There a row is its own nearest neighbour and part of its own regression, so a probe agrees
with labels that it should question; here no row is judged by anything that saw it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from w2s_fast.methods._base import Method, Targets
from w2s_fast.methods._layers import check_layer
from w2s_fast.methods._logreg import out_of_fold
from w2s_fast.methods._neighbours import nearest
from w2s_fast.methods._plan import Node, Plan
from w2s_fast.methods._topo import supported, total_variation

PROBES = ("knn", "logreg", "topo")


@dataclass(frozen=True, kw_only=True)
class _Probe(Method):
    """What both methods share.

    Attributes:
        probe: a name of ``PROBES``.
        layer: whose hidden states: "half", "last", or a number counted from 0, the embeddings.
        k: neighbours, of ``knn`` and ``topo``.
        l2: penalty of ``logreg``, on features scaled to deviation 1.
        folds: of ``logreg``.
        contamination: share of rows whose labels are taken to be wrong, in [0, 0.9]: ``topo``
            takes no neighbours from them, the filter leaves them out.
    """

    probe: str = "knn"
    layer: str = "half"
    k: int = 50
    l2: float = 1e-3
    folds: int = 5
    contamination: float = 0.1

    def __post_init__(self) -> None:
        self._one_of("probe", PROBES)
        check_layer(self)
        self._check("k", 1)
        self._check("l2", 0.0)
        self._check("folds", 2)
        self._check("contamination", 0.0, 0.9)

    def _judge(self, weak: Targets, features: np.ndarray, seed: int) -> Tensor:
        """The probe's probabilities (N, K) float32; rows of weight 0 are judged but not heard."""
        x, probs = torch.tensor(features), torch.tensor(weak.probs)
        pool = torch.from_numpy(weak.kept.nonzero()[0])
        x -= x[pool].mean(0)
        if self.probe == "logreg":
            return out_of_fold(x, probs, pool, l2=self.l2, folds=self.folds, seed=seed)
        if self.probe == "topo":
            pool = supported(x, probs, pool, self.k, self.contamination)
        return probs[nearest(x, self.k, pool)].mean(1)


@dataclass(frozen=True, kw_only=True)
class ProbeRelabel(_Probe):
    """The probe's probabilities take the place of the weak labels."""

    def labels(self, plan: Plan, labels: Node) -> Node:
        """See ``Method.labels``."""
        return plan.apply(self.relabel, weak=labels, features=plan.features(layer=self.layer))

    def relabel(self, weak: Targets, features: np.ndarray, seed: int) -> Targets:
        """Labels from hidden states (N, D) float32; row weights stay."""
        return replace(weak, probs=self._judge(weak, features, seed).numpy())


@dataclass(frozen=True, kw_only=True)
class ProbeFilter(_Probe):
    """The rows on which probe and label differ most are left out.

    Of N rows that count, round(contamination * N) go; of equal differences the first rows go.
    """

    def labels(self, plan: Plan, labels: Node) -> Node:
        """See ``Method.labels``."""
        return plan.apply(self.filtered, weak=labels, features=plan.features(layer=self.layer))

    def filtered(self, weak: Targets, features: np.ndarray, seed: int) -> Targets:
        """The labels as they are, with weight 0 on the rows that go."""
        judged = self._judge(weak, features, seed)
        doubt = total_variation(judged, torch.tensor(weak.probs))
        rows = torch.from_numpy(weak.kept.nonzero()[0])
        order = doubt[rows].argsort(descending=True, stable=True)
        stay = weak.kept
        stay[rows[order[: round(self.contamination * len(rows))]].numpy()] = False
        return weak.keep(stay)
