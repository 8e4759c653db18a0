r"""Hard labels, each weighted by how far the weak model is from a coin.

    weight_i <- weight_i ((K max_c w_ic - 1) / (K - 1))^power

With two classes the factor is 2 (max w - 1/2) = |w_1 - w_0|. In a preference task w is
sigmoid(r_w(better) - r_w(worse)) of the weak model's rewards, and a student with
``preference: dpo`` learns  -C log sigma(beta ...)  with C the factor: CW-DPO. Every other loss is
weighted alike; a mean over rows divides by the sum of the weights.

Source: Afzali, Jeon & Brbić 2026, CW-PO (arXiv 2603.04968): C(x, y+, y-) = 2 (sigma(r_w(y+) -
r_w(y-)) - 1/2), the weak model trained on a part of the human labels. ``power`` is this package's
own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from w2s_fast.methods._base import Method, Targets, number
from w2s_fast.methods._node import Node
from w2s_fast.methods._plan import Plan
from w2s_fast.methods._rows import one_hot


@dataclass(frozen=True, kw_only=True)
class ConfidenceWeighted(Method):
    """Harden the labels and weight every row by the weak model's confidence.

    Attributes:
        power: exponent of the confidence; 0: hard labels of equal weight.
        hard: harden the labels (ties: the first class); otherwise they keep their probabilities.
    """

    power: float = number(1.0, 0.0)
    hard: bool = True

    def labels(self, plan: Plan, labels: Node) -> Node:
        return plan.apply(self.weighted, weak=labels)

    def weighted(self, weak: Targets, seed: int) -> Targets:
        """Return the labels with row weights; a row without any confidence is left out."""
        top, n_classes = weak.probs.max(1).astype(np.float64), weak.probs.shape[1]
        factor = np.clip((n_classes * top - 1) / (n_classes - 1), 0.0, None) ** self.power
        probs = one_hot(weak.probs.argmax(1), n_classes) if self.hard else weak.probs
        kept = weak.keep(factor > 0)
        assert kept.weight is not None
        return replace(kept, probs=probs, weight=(kept.weight * factor).astype(np.float32))
