r"""Labels and weights of a Dirichlet that the predictions of several weak models were drawn from.

    p_i = mean_m w_mi,    v_i = sum_k var_m w_mik (unbiased),    g_i = sum_k p_ik (1 - p_ik)
    s_i = g_i / v_i - 1                         precision of Dirichlet(s_i p_i), by moments
    c_i = s_i / (s_i + K)                       1 - vacuity of the posterior under a flat prior
    q_i = (1 + s_i p_i) / (K + s_i) = c_i p_i + (1 - c_i) / K
    weight_i <- weight_i c_i / mean c

Weak models that agree are evidence; where they differ as much as draws of single classes would, s_i
is 0, the label is uniform and the row has no weight.

Source: Cui et al. 2024, Bayesian WeakS-to-Strong (arXiv 2406.03199): an ensemble of weak models
stands for the variability of human opinions, a Dirichlet over class probabilities gives their
confidence. There the student learns the Dirichlet (loss ``evidential``); moments and row weights
are this package's own. Use both: ``bayesian@evidential``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from w2s_fast.methods._base import Method, Targets, number
from w2s_fast.methods._node import Node
from w2s_fast.methods._plan import Plan
from w2s_fast.methods._rows import member_labels


@dataclass(frozen=True, kw_only=True)
class Bayesian(Method):
    """Replace the labels by the posterior mean of several weak models, and weight its rows.

    Attributes:
        members: number of weak models, at least 2; the input labels count as the first.
        weigh: weight rows by the evidence; if not, every row keeps its weight.
    """

    members: int = number(4, 2)
    weigh: bool = True

    def labels(self, plan: Plan, labels: Node) -> Node:
        return plan.apply(self.posterior, weak=labels, **member_labels(plan, self.members))

    def posterior(self, weak: Targets, seed: int, **members: Targets) -> Targets:
        """Return the posterior means (N, K) and the weights of rows."""
        every = np.stack([weak.probs, *(m.probs for m in members.values())]).astype(np.float64)
        mean, evidence = every.mean(0), evidence_share(every)
        mixed = evidence[:, None] * mean + (1 - evidence[:, None]) / mean.shape[1]
        labels = replace(weak, probs=mixed.astype(np.float32))
        if not self.weigh:
            return labels
        kept = labels.keep(evidence > 0)
        own = np.ones(len(mean)) if weak.weight is None else weak.weight
        weight = np.where(kept.used, own * evidence, 0.0)
        return replace(kept, weight=(weight / evidence[kept.used].mean()).astype(np.float32))


def evidence_share(every: np.ndarray) -> np.ndarray:
    """Return c (N,) float64 in [0, 1] of predictions (M, N, K), see the module.

    Predictions that are certain and equal have c = 1.
    """
    mean = every.mean(0)
    spread = (mean * (1 - mean)).sum(1)
    variance = every.var(0, ddof=1).sum(1)
    excess = np.maximum(spread - variance, 0.0)  # s v
    scale = excess + every.shape[2] * variance
    return np.where(scale > 0, excess / np.where(scale > 0, scale, 1.0), 1.0)
