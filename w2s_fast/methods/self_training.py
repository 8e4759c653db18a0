"""Contrastive self-training: after learning the weak labels, the student learns its sharpened own.

COSINE has two stages. The first ``start`` of the steps learn the weak labels; the others, in the
same training, learn the predictions of a copy of the student that is renewed every ``refresh``
steps, sharpened and balanced over the rows of the step. Uncertain rows are left out, certain ones
weigh 1 - H(q) / log K, a term towards the uniform distribution keeps the student from being too
certain, and another draws hidden states of one pseudo-label together. ``training.self_targets`` and
``training.contrast`` have the equations; nothing happens between trainings.

Source: Yu et al. 2021 (arXiv 2010.07835). There stage 1 is a training of its own that stops early
on clean rows, and the released code adds the uniform term K times.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from w2s_fast.methods._base import Method, choice, number
from w2s_fast.methods._node import spec_of
from w2s_fast.methods._plan import Plan


@dataclass(frozen=True, kw_only=True)
class SelfTraining(Method):
    """Learn the weak labels first, then sharpened predictions of the student's own.

    Attributes:
        start: fraction of the steps that learn the weak labels.
        refresh: steps between two copies of the student that predict.
        threshold: least certainty 1 - H(q) / log K of rows that are learned, in [0, 1].
        below: what other rows learn: nothing ("drop"), or their "weak" label.
        uniform: weight of the divergence from the uniform distribution.
        contrast: weight of the contrastive term; on frozen hidden states it has no effect.
        margin: distance from which on rows of different pseudo-labels are left alone.
    """

    start: float = number(0.5, 0.0, 0.99)
    refresh: int = number(50, 1)
    threshold: float = number(0.6, 0.0, 1.0)
    below: str = choice("drop", ("drop", "weak"))
    uniform: float = number(0.1, 0.0)
    contrast: float = number(1.0, 0.0)
    margin: float = number(1.0, 1e-6)

    def training(self, plan: Plan) -> Mapping[str, Any]:
        from w2s_fast.training.self_targets import SelfTargets

        targets = SelfTargets(
            start=self.start, refresh=self.refresh, threshold=self.threshold, below=self.below,
            uniform=self.uniform, contrast=self.contrast, margin=self.margin,
            target="sharp", score="entropy", weigh=True,
        )  # fmt: skip
        return {"step_targets": spec_of(targets)}
