r"""Labels without what a low-capacity model can say about them.

    c_i = P(label | z_i),  z_i the first ``rank`` principal components of the hidden states x_i,
          logistic regression on the labels, fitted to the rows of other folds
    q_i = softmax(log w_i - strength (log c_i - log pi)),       pi the class balance of the labels

A model of little capacity learns what is most available, and a shortcut is more available than what
it stands for (``metrics.shortcuts`` finds its rows). log c_i - log pi is the evidence that it has
for each class; a model that knows the balance alone changes nothing. Where labels follow the
shortcut and nothing else, q_i is pi.

Source: causal information minimization for debiased visual question answering (Patil, Maharana &
Bansal 2023), which learns confounders as features of little information (a rate-distortion
bottleneck, or a low-capacity model) and subtracts their logits from those of the full model,
z_full - z_conf: ``strength`` 1. The bottleneck is principal components here, and the subtraction
is done once, to the labels, not to the student's predictions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from w2s_fast.methods._balance import balance_of, log_probs
from w2s_fast.methods._base import Method, Targets, layer_field, number
from w2s_fast.methods._low_capacity import low_capacity_probs
from w2s_fast.methods._node import Node
from w2s_fast.methods._plan import Plan


@dataclass(frozen=True, kw_only=True)
class Debias(Method):
    """Subtract the logits of a low-capacity model from those of the labels.

    Attributes:
        strength: factor of the logits that are subtracted; 0 leaves the labels as they are.
        rank: principal components that the low-capacity model reads, at least 1.
        layer: layer of the hidden states: "half", "last", or a number; 0 is the embeddings.
        l2: penalty of its regression, on components scaled to deviation 1.
        folds: parts of the transfer set that it is cross-fitted on.
    """

    strength: float = number(0.5, 0.0)
    rank: int = number(4, 1)
    layer: str = layer_field("half")
    l2: float = number(1e-3, 0.0)
    folds: int = number(5, 2)

    def labels(self, plan: Plan, labels: Node) -> Node:
        return plan.apply(self.debiased, weak=labels, features=plan.features(layer=self.layer))

    def debiased(self, weak: Targets, features: np.ndarray, seed: int) -> Targets:
        """Return labels from hidden states (N, D) float32; row weights do not change."""
        from scipy.special import softmax

        known = low_capacity_probs(
            features, weak, rank=self.rank, l2=self.l2, folds=self.folds, seed=seed
        )
        evidence = log_probs(known) - np.log(balance_of(weak.probs, weak.used))
        probs = softmax(log_probs(weak.probs) - self.strength * evidence, axis=1)
        return replace(weak, probs=probs.astype(np.float32))
