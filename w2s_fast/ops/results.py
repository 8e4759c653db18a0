"""What a weak loss returns: the loss, its normaliser, and statistics of every row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.ops.loss_call import Index, LossResult, Stat
from w2s_fast.ops.targets import LossInputs

REDUCTIONS = ("mean", "sum", "none")
DIFFERENTIABLE = "differentiable"


def check_reduction(reduction: str) -> None:
    """Raise ``W2SError`` for an unknown reduction."""
    if reduction not in REDUCTIONS:
        raise W2SError(f"reduction is {reduction!r}; expected one of {REDUCTIONS}")


def check_return_stats(return_stats: bool | str) -> bool:
    """Return whether differentiable statistics are requested; other words raise ``W2SError``."""
    if isinstance(return_stats, str) and return_stats != DIFFERENTIABLE:
        raise W2SError(
            f"return_stats is {return_stats!r}; expected True, False or {DIFFERENTIABLE!r}"
        )
    return return_stats == DIFFERENTIABLE


@dataclass(slots=True)
class Stats:
    """Statistics of each row, detached; (N,) unless noted, fp32 (fp64 for fp64 logits).

    With ``return_stats="differentiable"`` lse, max_prob, entropy and margin have gradients.
    """

    loss: Tensor  # row losses without row weights; exactly 0 on rows that do not count
    lse: Tensor  # log sum exp of the logits
    max: Tensor  # largest logit
    argmax: Tensor  # int64, first class with the largest logit
    max_prob: Tensor  # the student's top probability
    chosen_prob: Tensor  # its probability of the weak label's top class
    entropy: Tensor  # nats
    agreement: Tensor  # bool, argmax == the weak label's top class
    coefficient: Tensor  # self-target coefficient after the gate
    hard_class: Tensor  # int64, class of the self-target
    # 0-d: P(class 0) for two classes, else top probability; rule "prior" of more: class bias (V,)
    threshold: Tensor | None
    count: Tensor  # 0-d: sum of the weights of the rows that count
    # Largest minus second largest logit, see ``RowStats``; None where statistics are detached.
    margin: Tensor | None = None


class StatSums(NamedTuple):
    """Sums of row statistics over the rows that count, all 0-d."""

    rows: Tensor  # their number
    agreement: Tensor
    max_prob: Tensor
    entropy: Tensor


@dataclass(slots=True)
class WeakLossOut:
    """The loss, its normaliser, and on request the row statistics or their sums."""

    loss: Tensor
    count: Tensor
    stats: Stats | None
    sums: StatSums | None = None
    threshold: Tensor | None = None  # see ``Stats``; only with statistics or sums


def with_stats(loss: Tensor, p: LossInputs, s: LossResult) -> WeakLossOut:
    """Return the loss of a call with the statistics of its rows."""
    stats = make_stats(p, s)
    return WeakLossOut(loss, as_scalar(s.normaliser, p), stats, None, stats.threshold)


def make_stats(p: LossInputs, s: LossResult) -> Stats:
    """Return the row statistics from the record of a call."""
    logs, best = s.stats[Stat.LOGS], s.index[Index.ARGMAX]
    return Stats(
        loss=s.stats[Stat.LOSS],
        lse=s.stats[Stat.MAX] + logs,
        max=s.stats[Stat.MAX],
        argmax=best,
        max_prob=(-logs).exp(),
        chosen_prob=(s.stats[Stat.CHOSEN] - logs).exp(),
        entropy=s.stats[Stat.ENTROPY],
        # Without probabilities there is no agreement.
        agreement=(best == s.index[Index.WEAK]) & ~(s.stats[Stat.CHOSEN] - logs).isnan(),
        coefficient=s.stats[Stat.COEF],
        hard_class=s.index[Index.SELF],
        threshold=shown_threshold(p, s),
        count=as_scalar(s.normaliser, p),
    )


def shown_threshold(p: LossInputs, s: LossResult) -> Tensor | None:
    """Return the threshold of a call in the units of ``Stats.threshold``."""
    at = None if s.threshold is None else as_scalar(s.threshold, p)
    return at.sigmoid() if at is not None and p.logits.shape[1] == 2 else at


def as_scalar(value: Tensor | float, p: LossInputs) -> Tensor:
    """Return a 0-d tensor in the precision of the record."""
    if isinstance(value, Tensor):
        return value
    return torch.full((), value, dtype=p.accumulator, device=p.logits.device)
