r"""Auxiliary confidence loss in its published variants, each under its own name.

    L = sum_i w_i CE(z_i, (1-c) q_i + c h_i),   h_i the student's own hard prediction, detached

| name | hard class of two classes | c over training, a = ``aux_coef`` |
|---|---|---|
| ``logconf_paper`` | 1 iff P(class 1) above the batch median | 0 -> a over the first 20 % |
| ``logconf_openai`` | 1 iff P(class 0), fp32, is below its quantile at q | a * step_frac, then a |
| ``logconf`` | 1 iff the margin z_0 - z_1 is below its quantile at q | 0 -> a over the first 10 % |
| ``logconf_eleuther`` | the same, of the last 32 predictions | 0 -> a over 100 steps |

q is the batch's mean weak P(class 1), and ``logconf_openai`` has the whole a from 10 % on.

Two defects of the released code are kept in ``logconf_openai`` because published numbers have them:
the jump (the ramp is not divided by its length) and ties of saturated probabilities. No released
code covers more than two classes: h_i is then the argmax, on every row (``logconf``,
``logconf_openai``, ``logconf_eleuther``) or on rows whose top probability is at least the batch
median (``logconf_paper``).

Sources: Burns et al. 2023 (arXiv 2312.09390), Eq. 1; openai/weak-to-strong ``loss.py``;
EleutherAI/w2s ``loss.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.losses._base import LossContext, LossOut, p_class1, row_mask
from w2s_fast.losses._one_call import OneCallLoss
from w2s_fast.ops.lazy_logits import Projected
from w2s_fast.ops.quantile.api import masked_quantile
from w2s_fast.ops.targets import SparseTargets


@dataclass(frozen=True, kw_only=True)
class _SelfTarget(OneCallLoss):
    """Base of the variants: the coefficient after warm-up, and the fused call.

    Attributes:
        aux_coef: coefficient of the student's own hardened prediction after warm-up, in [0, 1].
    """

    aux_coef: float = 0.5

    def __post_init__(self) -> None:
        self._check_range("aux_coef", 0.0, 1.0)

    def batch_rule(self, n_classes: int) -> str | None:
        """Return ``prior`` for two classes; more take the argmax on every row."""
        return "prior" if n_classes == 2 else None

    def terms(
        self, logits: Tensor, weak: Tensor, ctx: LossContext
    ) -> tuple[Tensor, dict[str, Any]]:
        """See ``OneCallLoss.terms``."""
        rule = self.batch_rule(logits.shape[1])
        return weak, {
            "aux": self.coefficient(ctx.step_frac, ctx.step),
            "rule": rule or "argmax",
            "threshold": None if rule is None else ctx.threshold,
        }


@dataclass(frozen=True, kw_only=True)
class LogConf(_SelfTarget):
    """OpenAI's confidence loss with the warm-up ramp fixed.

    Attributes:
        warmup_frac: fraction of the optimizer steps over which the coefficient rises from 0.
    """

    warmup_frac: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_range("warmup_frac", 0.0, 1.0)

    def coefficient(self, step_frac: float, step: int | None = None) -> float:
        """Return aux_coef * min(1, step_frac / warmup_frac); aux_coef without a warm-up."""
        if step_frac >= self.warmup_frac:
            return self.aux_coef
        return self.aux_coef * step_frac / self.warmup_frac


@dataclass(frozen=True, kw_only=True)
class LogConfOpenAI(LogConf):
    """openai/weak-to-strong as released: the ramp reaches aux_coef in a jump, see the module.

    The released code compares P(class 0) with its quantile in fp32, where every margin above about
    17 is 1.0. If the quantile is 1.0, all such rows tie and count as class 0, so class 0 gets more
    rows than the class prior says. The other variants compare margins, which do not saturate.
    """

    def coefficient(self, step_frac: float, step: int | None = None) -> float:
        """Return the coefficient of the released schedule, including its bug."""
        return self.aux_coef * (1.0 if step_frac > self.warmup_frac else step_frac)

    def threshold(
        self,
        logits: Tensor,
        weak: Tensor,
        *,
        weight: Tensor | None = None,
        state: Tensor | None = None,
    ) -> Tensor | None:
        """Return the smallest margin of the rows that the released code puts into class 0.

        For lazy logits and top-k labels it is the quantile of margins.
        """
        if self.batch_rule(logits.shape[1]) is None:
            return None
        if isinstance(logits, Projected) or isinstance(weak, SparseTargets):
            return super().threshold(logits, weak, weight=weight, state=state)
        mask = row_mask(weak, weight)
        ones = torch.where(mask, p_class1(weak, torch.float64), 0.0).sum()
        prior = (ones / mask.sum().clamp_min(1)).clamp(0, 1)
        z = logits.detach()
        p0 = z.float().softmax(1)[:, 0]
        first = mask & (p0 >= masked_quantile(p0, prior, mask))
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        margins = torch.where(first, z[:, 0] - z[:, 1], float("inf"))
        return margins.new_full((), float("inf")) if not len(margins) else margins.min()

    def terms(
        self, logits: Tensor, weak: Tensor, ctx: LossContext
    ) -> tuple[Tensor, dict[str, Any]]:
        """See ``OneCallLoss.terms``."""
        if ctx.threshold is None:
            own = self.threshold(logits, weak, weight=ctx.weight, state=ctx.state)
            ctx = ctx._replace(threshold=own)
        return super().terms(logits, weak, ctx)


@dataclass(frozen=True, kw_only=True)
class LogConfPaper(LogConf):
    """The paper: batch median, so half of the batch hardens to each class; 20 % warm-up.

    The paper uses aux_coef 0.75 for its largest students and 0.5 for the others.
    """

    warmup_frac: float = 0.2

    def batch_rule(self, n_classes: int) -> str | None:
        """Return ``median``: of margins or (more classes, as a gate) of top probabilities."""
        return "median"


# EleutherAI's own runs: 5000 examples, 3 epochs, batch 32.
_ELEUTHER_STEPS = 468


def eleuther_ramp(aux_coef: float, warmup_steps: int, step_frac: float, step: int | None) -> float:
    """Return aux_coef * min(1, step / warmup_steps)."""
    done = step_frac * _ELEUTHER_STEPS if step is None else step
    return aux_coef if done >= warmup_steps else aux_coef * done / warmup_steps


@dataclass(frozen=True, kw_only=True)
class LogConfEleuther(_SelfTarget):
    """EleutherAI/w2s: the threshold is a quantile of the last ``window`` predictions.

    The state is a ring of those predictions as margins z_0 - z_1, fp64 (window,), oldest first,
    NaN in unused entries. A batch of one row has no class prior and uses 1/2, as the original does.

    ``balance`` gives both classes the same mean log-odds in every batch. From two-class labels q it
    learns

        q_i1 <- sigma(l_i - mean_j l_j),   l = log(q_1 + 1e-7) - log(1 - q_1 + 1e-7),   prior 1/2

    The original takes the mean over a micro-batch; with one row a micro-batch every label becomes
    1/2. Here the mean is taken over the whole step: ``threshold`` returns (quantile, mean) as a
    (2,) tensor. ``agreement`` is measured against the balanced labels.

    Attributes:
        warmup_steps: optimizer steps to reach ``aux_coef``. If a caller gives ``step_frac`` alone,
            468 total steps are assumed, as in EleutherAI's runs.
        window: number of predictions in the ring.
        balance: see above; two classes only.
    """

    warmup_steps: int = 100
    window: int = 32
    balance: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_range("warmup_steps", 0)
        self._check_range("window", 1)

    def batch_rule(self, n_classes: int) -> str | None:
        """Return ``prior`` for two classes; more take the argmax, and cannot be balanced."""
        if self.balance and n_classes != 2:
            raise W2SError(
                f"logconf_eleuther: balance is for two classes, the labels have {n_classes}; "
                "leave it out"
            )
        return super().batch_rule(n_classes)

    def init_state(self) -> Tensor:
        """Return an empty ring."""
        return torch.full((self.window,), float("nan"), dtype=torch.float64)

    def coefficient(self, step_frac: float, step: int | None = None) -> float:
        """Return aux_coef * min(1, step / warmup_steps)."""
        return eleuther_ramp(self.aux_coef, self.warmup_steps, step_frac, step)

    def threshold(
        self,
        logits: Tensor,
        weak: Tensor,
        *,
        weight: Tensor | None = None,
        state: Tensor | None = None,
    ) -> Tensor | None:
        """Compute the quantile of the ring with these rows in it, at their weak class prior.

        With ``balance`` (2,): the quantile at 1/2, and the mean log-odds of these rows.
        """
        if self.batch_rule(logits.shape[1]) is None:
            return None
        ring = self._push(logits, weak, weight, state)
        acc = torch.promote_types(logits.dtype, torch.float32)
        mask = row_mask(weak, weight)
        n = mask.sum(dtype=torch.float64)
        if self.balance:
            odds = torch.where(mask, _log_odds(weak), 0.0).sum() / n.clamp_min(1)
            median = masked_quantile(ring.to(acc), torch.full_like(odds, 0.5), ~ring.isnan())
            return torch.stack([median, odds.to(acc)])
        ones = torch.where(mask, p_class1(weak, torch.float64), 0.0).sum()
        prior = torch.where(n > 1, ones / n.clamp_min(1), 0.5).clamp(0, 1)
        return masked_quantile(ring.to(acc), prior, ~ring.isnan())

    def advance(
        self,
        logits: Tensor,
        weak: Tensor,
        *,
        weight: Tensor | None = None,
        state: Tensor | None = None,
    ) -> Tensor | None:
        """Return the ring with these rows in it."""
        if self.batch_rule(logits.shape[1]) is None:
            return state
        return self._push(logits, weak, weight, state)

    def forward(self, logits: Tensor, weak: Tensor, ctx: LossContext) -> LossOut:
        """See ``Loss.forward``; the returned state has these rows in it."""
        if self.batch_rule(logits.shape[1]) is None:
            return super().forward(logits, weak, ctx._replace(threshold=None))
        weight, state, threshold = ctx.weight, ctx.state, ctx.threshold
        if threshold is None:
            threshold = self.threshold(logits, weak, weight=weight, state=state)
        new_state = self._push(logits, weak, weight, state)
        if self.balance and threshold is not None:
            threshold, mean = threshold.unbind()
            if not weak.is_floating_point():  # soft labels have no -100
                mask = row_mask(weak, weight)
                weight = torch.where(mask, mean.new_ones(()) if weight is None else weight, 0.0)
            one = (_log_odds(weak) - mean).sigmoid().to(mean.dtype)
            weak = torch.stack([1 - one, one], 1)
        ctx = ctx._replace(weight=weight, threshold=threshold, state=None)
        return super().forward(logits, weak, ctx)._replace(state=new_state)

    def _push(
        self, logits: Tensor, weak: Tensor, weight: Tensor | None, state: Tensor | None
    ) -> Tensor:
        ring = (self.init_state() if state is None else state).to(logits.device)
        acc = torch.promote_types(logits.dtype, torch.float32)
        z = logits.detach().to(acc)
        scores = torch.where(row_mask(weak, weight), z[:, 0] - z[:, 1], float("nan"))
        both = torch.cat([ring, scores.to(ring.dtype)])
        # Empty entries first, the rest in order of arrival: fixed shapes, so no device sync.
        order = torch.argsort((~both.isnan()).to(torch.int8), stable=True)
        return both[order][-self.window :]


def _log_odds(weak: Tensor) -> Tensor:
    """Return (n,) fp64 log-odds of class 1 of two-class labels, finite for certain labels."""
    one = p_class1(weak, torch.float64)
    return (one + 1e-7).log() - (1 - one + 1e-7).log()
