r"""Use the student's own answers where it knows them, and smoothed weak labels elsewhere.

    q_i = own_i if P(IK)_i >= threshold, else smooth(weak)_i

own are zero-shot answers of the untrained student. P(IK), the probability that its answer is right,
is fitted to its answers on the weak split. Equations: ``w2s_fast.trust``.

Source: Lang, Huang & Li 2025, "Selective weak-to-strong generalization" (arXiv 2511.14166). The
smoothing is that of Zhou et al. 2004 over nearest neighbors of hidden states.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from w2s_fast.methods._base import Method, Targets, choice, layer_field, number
from w2s_fast.methods._node import Node
from w2s_fast.methods._plan import Plan
from w2s_fast.methods.elicit import CALIBRATIONS, Elicit
from w2s_fast.trust import selective_labels, smooth_labels


@dataclass(frozen=True, kw_only=True)
class Selective(Method):
    """Replace labels by the student's own answers where it probably knows them.

    Attributes:
        threshold: smallest P(IK) of a row that gets its own answer.
        calibrate: as in ``Elicit``; answers to the weak split get the class balance of its labels.
        alpha: share of a weak label that comes from its neighbors; 0: no smoothing.
        k: number of neighbors.
        layer: layer of the hidden states: "half", "last", or a number; 0 is the embeddings.
        l2: penalty of P(IK), on features scaled to deviation 1.
        folds: parts of the weak split on which P(IK) is cross-fitted.
    """

    threshold: float = number(0.7, 0.0, 1.0)
    calibrate: str = choice("weak", CALIBRATIONS)
    alpha: float = number(0.5, 0.0, 0.999)
    k: int = number(10, 1)
    layer: str = layer_field("half")
    l2: float = number(0.01, 0.0)
    folds: int = number(5, 2)

    def labels(self, plan: Plan, labels: Node) -> Node:
        own = Elicit(calibrate=self.calibrate).labels(plan, labels)
        knows = plan.trust(
            own,
            own=plan.prior("weak"),
            calibrate=self.calibrate,
            layer=self.layer,
            l2=self.l2,
            folds=self.folds,
        )
        features = plan.features(layer=self.layer)
        return plan.apply(self.select, weak=labels, own=own, knows=knows, features=features)

    def select(
        self, weak: Targets, own: Targets, knows: np.ndarray, features: np.ndarray, seed: int
    ) -> Targets:
        """Return the selected labels (N, C); row weights do not change, nor rows of weight 0."""
        used = weak.used
        smooth = smooth_labels(features[used], weak.probs[used], k=self.k, alpha=self.alpha)
        probs = weak.probs.copy()
        probs[used] = selective_labels(
            own.probs[used], smooth, knows[used], threshold=self.threshold
        )[0]
        return replace(weak, probs=probs)
