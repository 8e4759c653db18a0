r"""Labels from a weak critic: the strong model's answers after it has read a critique of them.

    answer     the untrained student argues for its zero-shot answer
    critique   the weak language model says what to look at again
    revision   q_i = P(class words | text, answer, critique), of the untrained student

The weak model gives no label here: its critique points the student to what the student knows. With
``use=judge`` weak models learn the true labels of the weak split from text, answer and critique,
and label the transfer split in the same way, as in `debate`. The student always reads texts alone.

Source: Jin et al. 2026, Weak Critics Make Strong Learners (arXiv 2606.00424): critiques by a weak
model improve a frozen strong one, which is then distilled from its own guided behaviour. There the
distillation is on-policy and critiques are filtered by their quality; here the guided answers are
the labels, once, and ``critique|confident`` selects the decided ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from w2s_fast.methods._base import Method, Targets, choice, number
from w2s_fast.methods._node import Node
from w2s_fast.methods._plan import Plan
from w2s_fast.methods._pool import POOLS, pool
from w2s_fast.methods.elicit import CALIBRATIONS, calibrated

USES = ("revision", "judge")


@dataclass(frozen=True, kw_only=True)
class Critique(Method):
    """Replace the labels by the revised answers of the untrained student, or by those of a judge.

    Attributes:
        use: "revision": the student's answers after the critique; "judge": those of weak models
            that read answer and critique.
        members: number of critiques of each answer; their labels are pooled.
        pool: "mean" of the probabilities, or "log": their normalised geometric mean.
        calibrate: for "revision": "weak" shifts the answers to the class balance of the weak
            labels, "none" leaves them, see ``Elicit``.
    """

    # A preference model scores each dialogue alone, so it could not read a critique of both.
    kinds = ("classification",)
    use: str = choice("revision", USES)
    members: int = number(1, 1)
    pool: str = choice("mean", POOLS)
    calibrate: str = choice("weak", CALIBRATIONS)

    def labels(self, plan: Plan, labels: Node) -> Node:
        label = self._revised if self.use == "revision" else self._judged
        members = {f"member{i}": label(plan, i) for i in range(self.members)}
        return plan.apply(self.pooled, weak=labels, **members)

    def _revised(self, plan: Plan, member: int) -> Node:
        return plan.prior(context=plan.critiques(member=member))

    def _judged(self, plan: Plan, member: int) -> Node:
        weak_split, transfer = (plan.critiques(s, member) for s in ("weak", "transfer"))
        return plan.labels(plan.weak_model(context=weak_split), "transfer", transfer)

    def pooled(self, weak: Targets, seed: int, **members: Targets) -> Targets:
        """Return the pooled probabilities, with the row weights of the input labels."""
        probs: list[np.ndarray] = [m.probs for m in members.values()]
        if self.use == "revision":
            probs = [calibrated(p, weak, self.calibrate) for p in probs]
        return replace(weak, probs=pool(probs, self.pool))
