r"""The labelling in which every label is predictable from all the others, found by annealing.

    max_y U(y)  subject to class shares within ``slack`` of the weak labels'

U is mutual predictability, see ``_coherence``. A sweep visits all rows in random order and proposes
another class for each; a proposal that changes U by g is taken with probability min(1, e^{g/T}), T
falling geometrically from ``heat`` to ``heat``/1000 over the sweeps.

Source: after internal coherence maximization, Wen et al. 2025 (arXiv 2506.10139). What differs:
- There P is a language model that reads the other labelled rows in its context, a forward pass a
  row and proposal; here it is a leave-one-out ridge regression on the student's hidden states,
  updated in closed form at N numbers a proposal. What is coherent is what is linear in those
  states.
- There the search begins with a few random labels and adds rows; here all rows are labelled from
  the first step on, by the weak labels or by the student's own answers, and the search stays near.
- There logical constraints between rows rule out the solution that gives all rows one class; here
  class shares do, and no constraints are assumed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from w2s_fast.methods._balance import balance_of, log_probs
from w2s_fast.methods._base import Method, Targets
from w2s_fast.methods._coherence import Coherence, hat_factor
from w2s_fast.methods._layers import check_layer
from w2s_fast.methods._plan import Node, Plan

STARTS = ("weak", "answers")
_COOLING = 1e-3
_BLOCK = 256  # columns of the hat matrix held at a time


@dataclass(frozen=True, kw_only=True)
class Consistent(Method):
    """The most coherent labelling found, as one-hot labels.

    Attributes:
        start: where the search begins: the ``weak`` labels, or the untrained student's
            ``answers``; classes as frequent as in the weak labels.
        layer: whose hidden states, as in the probes.
        ridge: penalty of the regression, in units of the mean variance of a feature; above 0.
        sweeps: visits of every row; 0 is the start.
        heat: T at first, in nats.
        slack: how far a class's share of the rows may be from that of the weak labels, in [0, 1].
    """

    start: str = "weak"
    layer: str = "half"
    ridge: float = 10.0
    sweeps: int = 5
    heat: float = 0.1
    slack: float = 0.05

    def __post_init__(self) -> None:
        self._one_of("start", STARTS)
        check_layer(self)
        self._check("ridge", 1e-6)
        self._check("sweeps", 0)
        self._check("heat", 1e-6)
        self._check("slack", 0.0, 1.0)

    def labels(self, plan: Plan, labels: Node) -> Node:
        """See ``Method.labels``."""
        inputs = {"weak": labels, "features": plan.features(layer=self.layer)}
        if self.start == "answers":
            inputs["prior"] = plan.prior()
        return plan.apply(self.search, **inputs)

    def search(
        self, weak: Targets, features: np.ndarray, seed: int, prior: Targets | None = None
    ) -> Targets:
        """One-hot labels of the rows that count, from hidden states (N, D) float32.

        Rows of weight 0 keep their labels and take no part.
        """
        rows = weak.kept.nonzero()[0]
        balance = balance_of(weak.probs, weak.kept)
        begin = _begin((weak if prior is None else prior).probs[rows], balance)
        factor = hat_factor(features[rows], self.ridge)
        found = Coherence(factor, begin, len(balance))
        self._anneal(found, balance, np.random.default_rng(seed))
        probs = weak.probs.copy()
        probs[rows] = np.eye(len(balance), dtype=probs.dtype)[found.labels]
        return replace(weak, probs=probs)

    def _anneal(self, found: Coherence, balance: np.ndarray, rng: np.random.Generator) -> None:
        n, classes = len(found.labels), len(balance)
        low, high = np.floor((balance - self.slack) * n), np.ceil((balance + self.slack) * n)
        for sweep in range(self.sweeps):
            heat = self.heat * _COOLING ** (sweep / max(1, self.sweeps - 1))
            found.refresh()
            order = rng.permutation(n)
            for at in range(0, n, _BLOCK):
                block = order[at : at + _BLOCK]
                for row, column in zip(block, found.columns(block), strict=True):
                    now = found.labels[row]
                    label = (now + rng.integers(1, classes)) % classes
                    if found.counts[now] <= low[now] or found.counts[label] >= high[label]:
                        continue
                    gain, z = found.propose(row, label, column)
                    if gain >= 0 or rng.random() < math.exp(gain / heat):
                        found.relabel(row, label, gain, z)


def _begin(probs: np.ndarray, balance: np.ndarray) -> np.ndarray:
    """(N,) int64 classes: the most probable labelling with class counts of ``balance``."""
    import torch

    from w2s_fast.ops.balanced.api import balanced_bias

    logits = log_probs(probs)
    if len(balance) == 2:
        # By rank: hard labels tie, and a threshold would put all that tie into one class.
        order = np.argsort(logits[:, 1] - logits[:, 0], kind="stable")
        labels = np.zeros(len(probs), dtype=np.int64)
        labels[order[round(balance[0] * len(probs)) :]] = 1
        return labels
    return balanced_bias(torch.from_numpy(logits), torch.from_numpy(balance)).hard.numpy()
