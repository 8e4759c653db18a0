r"""Targets from the student's own predictions, or from those of its averaged weights.

With p_i the class probabilities of row i by the teacher, w_i its weak label and s the share:

    q_i = p_i                                  target="soft"
    q_ik ~ p_ik^2 / sum_j v_j p_jk             target="sharp", over the rows of the step
    q_i = one-hot of argmax_k p_ik             target="hard"
    c_i = max_k q_ik,  or  1 - H(q_i) / log K  score="max", "entropy"; before q_i is hardened
    t_i = ((1 - s) w_i + s b_i q_i + r_i u) / v'_i,   v'_i = (1 - s) + s b_i + r_i

A row is confident if c_i >= threshold: b_i is then 1, or c_i with ``weigh``, and r_i = ``uniform``;
u is 1 / K. Other rows keep their weak label (b_i = s = 0), or with below="drop" no teacher target.
The row's weight v_i is multiplied by v'_i, so cross-entropy learns

    sum_i v_i [ (1 - s) CE(w_i, f_i) + s b_i CE(q_i, f_i) + r_i CE(u, f_i) ] / sum_i v_i

The teacher sees the rows without dropout, the student a strong view of them: without a share
``drop`` of their tokens, or with dropout of cached features.

Sources: mean teacher, Tarvainen & Valpola 2017 (arXiv 1703.01780); FixMatch, Sohn et al. 2020
(arXiv 2001.07685); COSINE, Yu et al. 2021 (arXiv 2010.07835), equations 5 to 10. ``methods`` says
what of them each method has.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from w2s_fast.errors import W2SError, nearest
from w2s_fast.training.step_targets import StepTargets

_CHOICES = {
    "target": ("soft", "sharp", "hard"),
    "score": ("max", "entropy"),
    "below": ("weak", "drop"),
    "final": ("student", "teacher"),
}


@dataclass(frozen=True, kw_only=True)
class SelfTargets(StepTargets):
    """Mix the weak labels with a teacher's predictions in every step.

    Attributes:
        decay: of the teacher, the moving average m <- d m + (1 - d) w of the student's weights with
            d = min(decay, 1 - 1 / (n + 1)) at its n-th update. 0: a copy of the student.
        refresh: optimizer steps between updates of the teacher. With decay=0 and refresh=1 the
            teacher is the student of the step itself.
        final: the training ends with the weights of the ``student`` or of the ``teacher``.
        start: fraction of the steps that learn the weak labels alone before.
        ramp: fraction of the steps, after these, over which the share rises by exp(-5 (1 - t)^2).
        share: s above, in [0, 1].
        target, score, threshold, below, weigh, uniform: see the module.
        contrast: weight of the contrastive term over pairs of confident rows, see
            ``training.contrast``.
        margin: of that term.
        drop: share of the tokens, or of cached features, that the strong view leaves out.
    """

    decay: float = 0.0
    refresh: int = 1
    final: str = "student"
    start: float = 0.0
    ramp: float = 0.0
    share: float = 1.0
    target: str = "soft"
    score: str = "max"
    threshold: float = 0.0
    below: str = "weak"
    weigh: bool = False
    uniform: float = 0.0
    contrast: float = 0.0
    margin: float = 1.0
    drop: float = 0.0

    def __post_init__(self) -> None:
        for name in ("decay", "start", "drop"):
            self._check_range(name, 0.0, 1.0)
            if getattr(self, name) == 1:
                raise W2SError(f"SelfTargets: {name} is 1; expected a number in [0, 1)")
        for name in ("ramp", "share", "threshold"):
            self._check_range(name, 0.0, 1.0)
        for name in ("uniform", "contrast"):
            self._check_range(name, 0.0, 1e6)
        self._check_range("margin", 0.0, 1e6, open_low=True)
        self._check_range("refresh", 1)
        for name, names in _CHOICES.items():
            value = getattr(self, name)
            if value not in names:
                raise W2SError(
                    f"SelfTargets: {name} is {value!r}; expected one of {', '.join(names)}"
                    f"{nearest(str(value), names)}"
                )
        if self.final == "teacher" and not self.has_teacher:
            raise W2SError(
                "SelfTargets: final is 'teacher' with decay=0 and refresh=1, where the student is "
                "its own teacher; expected decay above 0, or final=student"
            )

    @property
    def has_teacher(self) -> bool:
        """Whether the teacher has weights of its own."""
        return self.decay > 0 or self.refresh > 1

    def active(self, step_frac: float) -> bool:
        """See ``StepTargets``."""
        return step_frac >= self.start

    def share_at(self, step_frac: float) -> float:
        """Return the share s at a fraction of the steps."""
        if not self.active(step_frac):
            return 0.0
        done = 1.0 if not self.ramp else min(1.0, (step_frac - self.start) / self.ramp)
        return self.share * math.exp(-5 * (1 - done) ** 2)

    def kept_at_update(self, n: int) -> float:
        """Return the share of the teacher's weights that its ``n``-th update, from 1, keeps."""
        return min(self.decay, 1 - 1 / (n + 1))

    def rows(
        self, logits: Tensor, weak: Tensor, weight: Tensor, step_frac: float
    ) -> tuple[Tensor, Tensor]:
        """See ``StepTargets.rows``."""
        q, certainty = self.predictions(logits, weight)
        weak, confident, share = weak.to(q), certainty >= self.threshold, self.share_at(step_frac)
        own = share * (certainty if self.weigh else torch.ones_like(certainty))
        own = torch.where(confident, own, 0.0)
        uniform = torch.where(confident, self.uniform, 0.0).to(q)
        learned = torch.full_like(own, 1 - share)
        if self.below == "weak":
            learned = torch.where(confident, learned, 1.0)
        total = learned + own + uniform
        mixed = learned[..., None] * weak + own[..., None] * q + uniform[..., None] / q.shape[-1]
        targets = torch.where(total[..., None] > 0, mixed / total[..., None], weak)
        return targets, weight.to(total) * total

    def confident(self, logits: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pseudo-labels (R,) int64 of rows, and (R,) bool: which are confident."""
        q, certainty = self.predictions(logits, weight)
        return q.argmax(-1), (certainty >= self.threshold) & (weight != 0)

    def predictions(self, logits: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the teacher's targets q (..., R, C) and their certainties c (..., R)."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        q = logits.softmax(-1)
        if self.target == "sharp":
            mass = (q * weight.to(q)[..., None]).sum(-2, keepdim=True)
            q = q.square() / mass.clamp_min(torch.finfo(q.dtype).tiny)
            q = q / q.sum(-1, keepdim=True)
        if self.score == "max":
            certainty = q.amax(-1)
        else:
            certainty = 1 - torch.special.entr(q).sum(-1) / math.log(q.shape[-1])
        if self.target == "hard":
            q = torch.nn.functional.one_hot(q.argmax(-1), q.shape[-1]).to(q)
        return q, certainty
