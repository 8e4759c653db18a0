r"""A weighted ensemble of weak models, each trained on what the ones before it got wrong.

    for m = 1 .. members:
        weak model m learns the true labels of the weak split with row weights d
        a_m, d <- one round of SAMME on its errors there           (`_boosting`)
    q_i = sum_m a_m w_mi / sum_m a_m

A row's error is judged by models that were not trained on it: with weights d, ``folds`` further
models each leave a part of the weak split out. ``folds=0`` judges by the model itself, as the
source does; a weak model that has memorised its rows then makes no errors, and all votes are equal.
They are too if no model beats guessing.

Source: Agrawal et al. 2024, EnsemW2S (arXiv 2410.04571), an ensemble inspired by AdaBoost, for
classification and, token by token, for generation. Here: classes and pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from w2s_fast.errors import W2SError
from w2s_fast.methods._base import Method, Targets, choice, number
from w2s_fast.methods._node import Node, make_node, with_needs
from w2s_fast.methods._plan import Plan
from w2s_fast.methods._pool import POOLS, pool


@dataclass(frozen=True, kw_only=True)
class EnsemW2S(Method):
    """Pool the labels of weak models trained one after the other with reweighted rows.

    The input labels are replaced; their row weights stay.

    Attributes:
        members: number of weak models, at least 2.
        folds: parts of the weak split, at least 2, that errors are cross-fitted on; 0: errors are
            those on the rows that a model learned.
        pool: "mean" of the probabilities, or "log": their normalised geometric mean.
    """

    members: int = number(4, 2)
    folds: int = number(2, 0)
    pool: str = choice("mean", POOLS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.folds == 1:
            raise W2SError(
                "EnsemW2S: folds is 1, which leaves nothing to train on; expected at least 2, or 0"
            )

    def labels(self, plan: Plan, labels: Node) -> Node:
        members: dict[str, Node] = {}
        rounds: dict[str, Node] = {}
        for m in range(self.members):
            before = rounds.get(f"votes{m - 1}")
            members[f"member{m}"] = plan.labels(self._model(plan, m, before))
            rounds[f"votes{m}"] = self._round(plan, m, before)
        return plan.apply(self.pooled, weak=labels, **members, **rounds)

    def _model(self, plan: Plan, member: int, before: Node | None, fold: int | None = None) -> Node:
        model = plan.weak_model(member, fold=fold, folds=self.folds)
        return with_needs(model, boosting=before)

    def _round(self, plan: Plan, member: int, before: Node | None) -> Node:
        """Return the vote of a member and the row weights of the next one."""
        folds = range(self.folds) if self.folds else (None,)
        judged = {
            "own" if fold is None else f"fold{fold}": plan.labels(
                self._model(plan, member, before, fold), "weak"
            )
            for fold in folds
        }
        if before is not None:
            judged["boosting"] = before
        return make_node("boosting", {"member": member}, judged)

    def pooled(self, weak: Targets, seed: int, **inputs: Targets | np.ndarray) -> Targets:
        """Return the pooled probabilities, with the row weights of the input labels.

        Args:
            weak: Input labels.
            seed: Not used.
            inputs: Labels ``member{m}`` of every model, and its vote ``votes{m}`` (1,).
        """
        probs, votes = [], []
        for m in range(self.members):
            labels, vote = inputs[f"member{m}"], inputs[f"votes{m}"]
            assert isinstance(labels, Targets) and isinstance(vote, np.ndarray)
            probs.append(labels.probs)
            votes.append(float(vote[0]))
        return replace(weak, probs=pool(probs, self.pool, votes if any(votes) else ()))
