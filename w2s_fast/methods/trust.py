r"""Weight rows by a learned P(label right).

    weight_i <- weight_i t_i / mean t          soft
    weight_i <- weight_i [i among the most trusted share]   filter

t_i = P(label of row i is right) is fitted to the weak split, whose true labels the weak model may
learn: cross-fitted predictions of weak models, hidden states of the untrained student, and whether
each prediction is right. Equations and differences from the source: ``w2s_fast.trust``.

Source: Uzunoglu, Zhang & Khashabi 2026, "Trust functions" (arXiv 2606.01000).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from w2s_fast.methods._base import Method, Targets, choice, layer_field, number
from w2s_fast.methods._node import Node
from w2s_fast.methods._plan import Plan
from w2s_fast.trust import MODES, trust_weights


@dataclass(frozen=True, kw_only=True)
class Trust(Method):
    """Weight or select rows by the probability that their label is right.

    The trust model is fitted to predictions of the weak model, so it should come before methods
    that change labels.

    Attributes:
        mode: "soft": weights proportional to the trust; "filter": keep the most trusted rows.
        share: share of rows that "filter" keeps, at least one row.
        layer: layer of the hidden states: "half", "last", or a number; 0 is the embeddings.
        l2: penalty of the trust model, on features scaled to deviation 1.
        folds: parts of the weak split on which the trust model is cross-fitted.
    """

    mode: str = choice("soft", MODES)
    share: float = number(0.5, 0.0, 1.0)
    layer: str = layer_field("half")
    l2: float = number(0.01, 0.0)
    folds: int = number(5, 2)

    def labels(self, plan: Plan, labels: Node) -> Node:
        trust = plan.trust(labels, layer=self.layer, l2=self.l2, folds=self.folds)
        return plan.apply(self.weigh, weak=labels, trust=trust)

    def weigh(self, weak: Targets, trust: np.ndarray, seed: int) -> Targets:
        """Return the labels with row weights from the trust (N,)."""
        used = weak.used
        own = np.ones(len(used), dtype=np.float32) if weak.weight is None else weak.weight
        share = self.share if self.mode == "filter" else None
        weight = np.zeros(len(used), dtype=np.float32)
        weight[used] = own[used] * trust_weights(trust[used], self.mode, share=share)
        return replace(weak, weight=weight)
