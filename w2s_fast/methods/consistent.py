r"""Find by annealing the labelling in which all other labels predict each label best.

    max_y U(y)  subject to class shares within ``slack`` of the weak labels'

U is mutual predictability, see ``_coherence``. A sweep visits all rows in random order and proposes
another class for each; a proposal that changes U by g is accepted with probability min(1, e^{g/T}).
T falls geometrically from ``heat`` to ``heat``/1000 over the sweeps.

Source: after internal coherence maximization, Wen et al. 2025 (arXiv 2506.10139). Differences:
- P is a leave-one-out ridge regression on the student's hidden states, updated in closed form with
  N numbers per proposal, so coherent means linear in these states. There it is a language model
  that reads the other labelled rows in its context, one forward pass per row and proposal.
- All rows are labelled from the first step, by the weak labels or the untrained student, and the
  search stays near. There it starts with a few random labels and adds rows.
- Class shares rule out the solution with one class for all rows. There logical constraints between
  rows do; none are assumed here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from w2s_fast.methods._balance import balance_of, log_probs
from w2s_fast.methods._base import Method, Targets, choice, layer_field, number
from w2s_fast.methods._coherence import Coherence, hat_factor
from w2s_fast.methods._node import Node
from w2s_fast.methods._plan import Plan

STARTS = ("weak", "answers")
_COOLING = 1e-3
_BLOCK = 256  # columns of the hat matrix in memory at a time


@dataclass(frozen=True, kw_only=True)
class Consistent(Method):
    """Replace the labels by the most coherent labelling found, one-hot.

    Attributes:
        start: initial labelling: the ``weak`` labels, or the untrained student's zero-shot
            ``answers``, with the class frequencies of the weak labels.
        layer: layer of the hidden states: "half", "last", or a number; 0 is the embeddings.
        ridge: penalty of the regression, in units of the mean variance of a feature; above 0.
        sweeps: number of visits of every row; 0 keeps the initial labelling.
        heat: initial T, in nats.
        slack: largest difference of a class's share of the rows from that of the weak labels, in
            [0, 1].
    """

    start: str = choice("weak", STARTS)
    layer: str = layer_field("half")
    ridge: float = number(10.0, 1e-6)
    sweeps: int = number(5, 0)
    heat: float = number(0.1, 1e-6)
    slack: float = number(0.05, 0.0, 1.0)

    def labels(self, plan: Plan, labels: Node) -> Node:
        inputs = {"weak": labels, "features": plan.features(layer=self.layer)}
        if self.start == "answers":
            inputs["prior"] = plan.prior()
        return plan.apply(self.search, **inputs)

    def search(
        self, weak: Targets, features: np.ndarray, seed: int, prior: Targets | None = None
    ) -> Targets:
        """Return one-hot labels of the used rows, from hidden states (N, D) float32.

        Rows of weight 0 keep their labels and are ignored.
        """
        rows = weak.used.nonzero()[0]
        balance = balance_of(weak.probs, weak.used)
        initial = _initial_labels((weak if prior is None else prior).probs[rows], balance)
        factor = hat_factor(features[rows], self.ridge)
        labelling = Coherence(factor, initial, len(balance))
        self._anneal(labelling, balance, np.random.default_rng(seed))
        probs = weak.probs.copy()
        probs[rows] = np.eye(len(balance), dtype=probs.dtype)[labelling.labels]
        return replace(weak, probs=probs)

    def _anneal(self, labelling: Coherence, balance: np.ndarray, rng: np.random.Generator) -> None:
        n, classes = len(labelling.labels), len(balance)
        low, high = np.floor((balance - self.slack) * n), np.ceil((balance + self.slack) * n)
        for sweep in range(self.sweeps):
            heat = self.heat * _COOLING ** (sweep / max(1, self.sweeps - 1))
            labelling.refresh()
            order = rng.permutation(n)
            for at in range(0, n, _BLOCK):
                block = order[at : at + _BLOCK]
                for row, column in zip(block, labelling.columns(block), strict=True):
                    current = labelling.labels[row]
                    label = (current + rng.integers(1, classes)) % classes
                    counts = labelling.counts
                    if counts[current] <= low[current] or counts[label] >= high[label]:
                        continue
                    gain, z = labelling.propose(row, label, column)
                    if gain >= 0 or rng.random() < math.exp(gain / heat):
                        labelling.relabel(row, label, gain, z)


def _initial_labels(probs: np.ndarray, balance: np.ndarray) -> np.ndarray:
    """Return the most probable classes (N,) int64 with the class counts of ``balance``."""
    import torch

    from w2s_fast.ops.balanced.api import balanced_bias

    logits = log_probs(probs)
    if len(balance) == 2:
        # By rank: a threshold would put all tied rows, such as hard labels, into one class.
        order = np.argsort(logits[:, 1] - logits[:, 0], kind="stable")
        labels = np.zeros(len(probs), dtype=np.int64)
        labels[order[round(balance[0] * len(probs)) :]] = 1
        return labels
    return balanced_bias(torch.from_numpy(logits), torch.from_numpy(balance)).hard.numpy()
