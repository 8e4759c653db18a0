"""The losses of many heads in a step, with their gradients; equal losses share their work.

A batch of one head is small: its loss takes microseconds, and its way through autograd many times
as long. Losses that are one call of the fused op need none. Losses of independent rows that are
equal are one loss on the rows of all their heads. Every other head has a loss of its own.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.losses import Loss, LossContext, LossOut
from w2s_fast.losses._base import IGNORE
from w2s_fast.losses._one_call import OneCallLoss
from w2s_fast.losses._rowwise import RowLoss
from w2s_fast.ops.checks import check_weight
from w2s_fast.ops.cross_entropy.direct import serves_directly, sums_and_gradient
from w2s_fast.probing.head_runs import HeadRun, Rows
from w2s_fast.training.config import TrainConfig
from w2s_fast.training.mixup import MixedRows, mix_rows, mixed, soft_targets
from w2s_fast.training.thresholds import Thresholds

_Group = tuple[Loss, list[int]]  # a loss and its heads


class StepLosses(NamedTuple):
    """Losses of H heads on B rows.

    Attributes:
        mean: (H,) losses over the normaliser of each head's weak labels.
        agreement, rows: (H,) sums of ``LossOut.metrics``.
        grad: (H, B, C) gradients of the means with respect to the logits.
    """

    mean: Tensor
    agreement: Tensor
    rows: Tensor
    grad: Tensor


class HeadLosses:
    """The losses of H heads, with their thresholds and states.

    Args:
        runs: run of each head.
        classes: C.
        cfg: of the training.
        like: a tensor of the dtype and device of the logits.
    """

    def __init__(
        self, runs: Sequence[HeadRun], classes: int, cfg: TrainConfig, like: Tensor
    ) -> None:
        groups: dict[tuple[type[_Part], Hashable], list[int]] = {}
        direct = serves_directly(like.new_empty(0, classes))
        for head, run in enumerate(runs):
            kind = _kind(run, classes, cfg, direct)
            key = head if kind is _Alone else _shared_by(run, classes) or head
            groups.setdefault((kind, key), []).append(head)
        self._losses, self._classes = [run.loss for run in runs], classes
        self._parts = []
        for kind in (_OneCalls, _RowLosses, _Alone):
            own = [(runs[h[0]].loss, h) for (k, _), h in groups.items() if k is kind]
            if own:
                self._parts.append(kind(own, classes, cfg, like.device))
        order = [head for part in self._parts for _, heads in part.groups for head in heads]
        self._place = torch.tensor(order, device=like.device).argsort()

    def __call__(
        self,
        logits: Tensor,
        labels: Sequence[Rows],
        targets: Sequence[Rows],
        ctx: LossContext,
        share: Tensor | None,
    ) -> StepLosses:
        """Compute the losses of a batch, and keep their states for the next batch.

        Args:
            logits: (H, B, C), contiguous.
            labels: weak labels and weights of each head, of which its normaliser is.
            targets: what was made of them for this step.
            ctx: of the step; weights, thresholds and states are those of the heads.
            share: (B,) mixes the rows, see ``training.mixup``; None: they are not mixed.
        """
        grad = torch.empty_like(logits)
        z, out = logits.unbind(), grad.unbind()
        sums = torch.cat([part(z, targets, ctx, share, out) for part in self._parts], 1)
        total, agreement, rows = sums[:, self._place].unbind()
        count = self._counts(labels, share).to(total)
        count = torch.where(count > 0, count, 1.0)
        grad.mul_(count.reciprocal()[:, None, None])
        return StepLosses(total / count, agreement, rows, grad)

    def _counts(self, labels: Sequence[Rows], share: Tensor | None) -> Tensor:
        """Return normalisers (H,); heads with the same labels share theirs."""
        known: dict[Hashable, Tensor] = {}
        counts = []
        for loss, (weak, weight) in zip(self._losses, labels, strict=True):
            key = type(loss).count, id(weak), id(weight)
            if key not in known:
                if share is not None:
                    weak, weight = _mixed(weak, weight, self._classes, share)[1:3]
                known[key] = loss.count(weak, weight)
            counts.append(known[key])
        return torch.stack(counts)


def _mixed(weak: Tensor, weight: Tensor | None, classes: int, share: Tensor) -> MixedRows:
    """Return the labels of a batch, mixed."""
    soft = soft_targets(weak, weight, classes)
    return mix_rows(np.arange(len(share)), *soft, share, 1)


def _is_soft(run: HeadRun) -> bool:
    """Return whether a head learns soft labels; step targets always are."""
    return run.targets.ndim == 2 or run.step_targets is not None


def _kind(run: HeadRun, classes: int, cfg: TrainConfig, direct: bool) -> type[_Part]:
    loss, method = run.loss, type(run.loss).forward
    rolls = Thresholds(cfg.threshold_scope, loss, classes, cfg.batch_size).mode in ("window", "ema")
    if cfg.mixup or rolls or loss.init_state() is not None:
        return _Alone
    if direct and method is OneCallLoss.forward:
        return _OneCalls
    if isinstance(loss, RowLoss) and method is RowLoss.forward and _is_soft(run):
        return _RowLosses
    return _Alone


def _shared_by(run: HeadRun, classes: int) -> Hashable | None:
    """Return what heads of one group have in common; None for a head that is its own group."""
    loss = run.loss
    try:
        hash(loss)
    except TypeError:  # a field of anybody's loss, such as a list
        return None
    if loss.batch_rule(classes) is not None:  # its terms are of the batch of one head
        return None
    return loss, _is_soft(run), run.weight is not None or run.step_targets is not None


class _Part:
    """Some of the heads, by group. ``(3, S)`` sums are losses, agreements and rows of its heads."""

    def __init__(
        self, groups: Sequence[_Group], classes: int, cfg: TrainConfig, device: torch.device
    ) -> None:
        self.groups = groups
        self.heads = [head for _, heads in groups for head in heads]

    def __call__(
        self,
        z: Sequence[Tensor],
        targets: Sequence[Rows],
        ctx: LossContext,
        share: Tensor | None,
        grad: Sequence[Tensor],
    ) -> Tensor:
        """Return the sums (3, S), and write the gradient (B, C) of every head's sum."""
        raise NotImplementedError


class _OneCalls(_Part):
    """Losses that are one call of the fused op, whose kernel writes the gradient."""

    def __call__(
        self,
        z: Sequence[Tensor],
        targets: Sequence[Rows],
        ctx: LossContext,
        share: Tensor | None,
        grad: Sequence[Tensor],
    ) -> Tensor:
        """See ``_Part``."""
        losses, sums = [], []
        weights = _checked_weights(targets, self.heads, len(z[0]))
        for loss, heads in self.groups:
            assert isinstance(loss, OneCallLoss)
            if len(heads) == 1:
                own = ctx._replace(weight=weights[heads[0]])
                weak, options = loss.terms(z[heads[0]], targets[heads[0]][0], own)
                labels = [weak]
            else:
                weak = torch.cat([targets[head][0] for head in heads])
                weak, options = loss.terms(torch.cat([z[head] for head in heads]), weak, ctx)
                labels = list(weak.chunk(len(heads)))
            for head, weak in zip(heads, labels, strict=True):
                result = sums_and_gradient(
                    z[head], weak, weights[head], grad[head], IGNORE, **options
                )
                assert result.sums is not None
                losses.append(result.loss)
                sums.append(result.sums)
        rows, agreement, *_ = torch.stack(sums, 1)
        return torch.stack([torch.stack(losses), agreement, rows])


def _checked_weights(
    targets: Sequence[Rows], heads: Sequence[int], n: int
) -> dict[int, Tensor | None]:
    """Return the weights (n,) of heads, fp32 and contiguous, all checked at once."""
    weights: dict[int, Tensor | None] = dict.fromkeys(heads)
    own = {head: weight for head in heads if (weight := targets[head][1]) is not None}
    if own:
        every = torch.stack(list(own.values())).float()
        if every.shape != (len(own), n):
            raise W2SError(
                f"weights of rows have shape {tuple(every.shape[1:])}; expected ({n},), one number "
                "a row"
            )
        check_weight(every)
        weights |= dict(zip(own, every.unbind(), strict=True))
    return weights


class _RowLosses(_Part):
    """Losses of independent rows: a group is one loss on the rows of its heads."""

    def __call__(
        self,
        z: Sequence[Tensor],
        targets: Sequence[Rows],
        ctx: LossContext,
        share: Tensor | None,
        grad: Sequence[Tensor],
    ) -> Tensor:
        """See ``_Part``."""
        leaves, sums, same, counted = [], [], [], []
        for loss, heads in self.groups:
            assert isinstance(loss, RowLoss)
            leaf = torch.cat([z[head] for head in heads]).requires_grad_()
            weak = torch.cat([targets[head][0] for head in heads])
            weights = [w for head in heads if (w := targets[head][1]) is not None]
            own = ctx._replace(weight=torch.cat(weights) if weights else None)
            rows = loss.rows(leaf, weak, own)
            same.append(rows.log_p.detach().argmax(1) == weak.argmax(1))
            counted.append(torch.ones_like(same[-1]) if rows.mask is None else rows.mask)
            leaves.append(leaf)
            sums.append(rows.loss.view(len(heads), -1).sum(1))
        torch.autograd.backward(sums, [torch.ones_like(s) for s in sums])
        for (_, heads), leaf in zip(self.groups, leaves, strict=True):
            assert leaf.grad is not None
            for head, part in zip(heads, leaf.grad.chunk(len(heads)), strict=True):
                grad[head].copy_(part)
        total = torch.cat(sums).detach()
        mask = torch.cat(counted)
        by_head = torch.stack([torch.cat(same) & mask, mask]).view(2, len(total), -1)
        return torch.cat([total[None], by_head.sum(2, dtype=total.dtype)])


class _Alone(_Part):
    """Losses with states, rolling thresholds or mixed rows, or with a ``forward`` of their own."""

    def __init__(
        self, groups: Sequence[_Group], classes: int, cfg: TrainConfig, device: torch.device
    ) -> None:
        super().__init__(groups, classes, cfg, device)
        self._own = [_HeadLoss(loss, classes, cfg, device) for loss, _ in groups]

    def __call__(
        self,
        z: Sequence[Tensor],
        targets: Sequence[Rows],
        ctx: LossContext,
        share: Tensor | None,
        grad: Sequence[Tensor],
    ) -> Tensor:
        """See ``_Part``."""
        leaves = [z[head].clone().requires_grad_() for head in self.heads]
        parts = zip(self._own, self.heads, leaves, strict=True)
        outs = [loss(leaf, targets[head], ctx, share) for loss, head, leaf in parts]
        torch.autograd.backward([out.loss_sum for out in outs])
        for head, leaf in zip(self.heads, leaves, strict=True):
            if leaf.grad is None:
                grad[head].zero_()
            else:
                grad[head].copy_(leaf.grad)
        total = torch.stack([out.loss_sum for out in outs]).detach()
        zero = torch.zeros_like(total[0])
        metrics = [
            torch.stack([out.metrics.get(name, zero) for out in outs])
            for name in ("agreement", "rows")
        ]
        return torch.stack([total, *metrics])


class _HeadLoss:
    """The loss of one head, with its thresholds and state."""

    def __init__(self, loss: Loss, classes: int, cfg: TrainConfig, device: torch.device) -> None:
        state = loss.init_state()
        self._loss, self._state = loss, None if state is None else state.to(device)
        self._classes = classes
        self._thresholds = Thresholds(cfg.threshold_scope, loss, classes, cfg.batch_size)

    def __call__(
        self, logits: Tensor, targets: Rows, ctx: LossContext, share: Tensor | None
    ) -> LossOut:
        """Compute the loss of a batch, and keep its state for the next batch."""
        weak, weight = targets
        if share is not None:
            index, weak, weight, share = _mixed(weak, weight, self._classes, share)
            logits = mixed(logits[torch.from_numpy(index)], share)
        threshold = self._thresholds.rolling(logits, weak, weight)
        ctx = ctx._replace(weight=weight, threshold=threshold, state=self._state)
        out = self._loss(logits, weak, **ctx._asdict())
        self._state = out.state
        return out
