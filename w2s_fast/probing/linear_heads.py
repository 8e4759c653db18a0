r"""Train many linear heads on the same features at once.

Runs of one seed see the same rows at every step, so a step gathers its features once and computes
the logits of H heads in one product, and their weight gradients in another:

    Z = X [W_1 .. W_H]^T + b        (B, H C)
    G_h = d loss_h(Z_h) / d Z_h     each loss on the logits of its own head
    dW = G^T X,  db = sum_i G_i     (H C, D)

Every head has the AdamW step, schedule, threshold and loss state of a separate ``train``.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from w2s_fast.errors import W2SError
from w2s_fast.losses import Loss, LossContext, LossOut
from w2s_fast.training.config import TrainConfig
from w2s_fast.training.data import RowOrder, check_weak_labels
from w2s_fast.training.mixup import draw_shares, mix_rows, mixed, soft_targets
from w2s_fast.training.thresholds import Thresholds

_PREDICT_ROWS = 4096  # rows of one product in ``predict_heads``


@dataclass(frozen=True, eq=False)
class HeadRun:
    """One head to train.

    Attributes:
        targets: (N,) integer hard labels (-100: row not used), or (N, C) soft labels.
        loss: the loss to minimise.
        lr: peak learning rate; None: that of the training configuration.
        weight: (N,) row weights, or None.
    """

    targets: np.ndarray
    loss: Loss
    lr: float | None = None
    weight: np.ndarray | None = None


class HeadResult(NamedTuple):
    """H trained heads of C classes on D features, in the order of their runs.

    Attributes:
        weight, bias: (H, C, D) and (H, C), fp32 (fp64 for fp64 features).
        losses, agreement: (steps, H) fp64 on the CPU, as in the result of ``train``.
        seconds: wall time of the training.
    """

    weight: Tensor
    bias: Tensor
    losses: Tensor
    agreement: Tensor
    seconds: float


def train_heads(
    features: Tensor,
    runs: Sequence[HeadRun],
    cfg: TrainConfig,
    seed: int,
    *,
    head: nn.Linear | None = None,
) -> HeadResult:
    """Train one linear head for each run, all at once, on the device of ``features``.

    Up to rounding, each equals the head that ``train`` with the same configuration and seed would
    leave on a frozen model with these features. Settings that distribute or split the work
    (micro-batches, checkpoints, ZeRO) are ignored: a step is small enough to run at once.

    Args:
        features: (N, D) floating point, memory-mapped or not; converted to fp32 batch by batch.
        runs: targets and losses. All have the same C classes: those of ``head`` or of the soft
            labels, or else the largest hard label + 1.
        cfg: training configuration; its ``lr`` is used by runs without their own.
        seed: of the data order, the same for all runs.
        head: initial value of every head; None: zero.

    Raises:
        W2SError: for runs that do not fit the features or each other, micro-batches whose
            thresholds are not exact, or a loss that is not finite (the message names the run).
    """
    if cfg.micro_batch_size is not None and cfg.threshold_scope != "exact":
        raise W2SError(
            f"threshold_scope is {cfg.threshold_scope!r} with "
            f"micro_batch_size={cfg.micro_batch_size}; heads take whole batches, set "
            "micro_batch_size=null"
        )
    classes = _check(features, runs, head)
    start = time.perf_counter()
    stack = _Stack(features, len(runs), classes, cfg, head)
    losses = [_HeadLoss(run, classes, cfg, features.device) for run in runs]
    table = _Targets(runs, features.device)
    rates = torch.tensor([cfg.lr if r.lr is None else r.lr for r in runs], dtype=torch.float64)
    unit, steps = replace(cfg, lr=1.0), cfg.steps(len(features))
    order = RowOrder(len(features), cfg.batch_size, cfg.epochs, seed)
    log = torch.empty(steps, 2, len(runs), dtype=torch.float64)
    first_averaged, trained = cfg.first_averaged(steps), stack.parameters
    initial = [p.clone() for p in trained] if cfg.interpolation < 1 else []
    for step in range(steps):
        rows = torch.from_numpy(order.rows(step)).to(features.device)
        x = features[rows].to(stack.weight.dtype)
        shares = draw_shares(len(x), cfg.mixup, seed, step).to(x) if cfg.mixup else None
        z = [part.detach().requires_grad_() for part in stack.logits(x)]
        parts = zip(losses, z, table.rows(rows), strict=True)
        ctx = LossContext(step_frac=step / steps, step=step)
        outs = [head_loss(logits, *weak, ctx, shares) for head_loss, logits, weak in parts]
        log[step, 0], log[step, 1] = _backward(outs)
        stack.update([part.grad for part in z], x, rates * unit.lr_at(step, steps))
        if step == first_averaged:
            trained = [p.clone() for p in stack.parameters]
        elif step > first_averaged:
            share = cfg.share_in_mean(step + 1 - first_averaged)
            trained = [t.lerp_(p, share) for t, p in zip(trained, stack.parameters, strict=True)]
    if initial:
        trained = [i.lerp(t, cfg.interpolation) for i, t in zip(initial, trained, strict=True)]
    _check_finite(log[:, 0], runs)
    shape = (len(runs), classes)
    return HeadResult(
        trained[0].view(*shape, -1), trained[1].view(shape), log[:, 0], log[:, 1],
        time.perf_counter() - start,
    )  # fmt: skip


@torch.inference_mode()
def predict_heads(features: Tensor, result: HeadResult) -> np.ndarray:
    """Class probabilities of every row by every head.

    Args:
        features: (N, D), as the heads were trained on.
        result: of ``train_heads``.

    Returns:
        (H, N, C) float32.
    """
    heads, classes, width = result.weight.shape
    if features.ndim != 2 or features.shape[1] != width:
        raise W2SError(f"features have shape {tuple(features.shape)}; expected (N, {width})")
    out = np.empty((heads, len(features), classes), np.float32)
    flat, bias = result.weight.view(-1, width), result.bias.view(-1)
    for at in range(0, len(features), _PREDICT_ROWS):
        x = features[at : at + _PREDICT_ROWS].to(flat.dtype)
        z = torch.addmm(bias, x, flat.T).view(len(x), heads, classes)
        out[:, at : at + _PREDICT_ROWS] = z.softmax(2).transpose(0, 1).float().cpu().numpy()
    return out


class _HeadLoss:
    """The loss of one head, with its thresholds and state."""

    def __init__(self, run: HeadRun, classes: int, cfg: TrainConfig, device: torch.device) -> None:
        state = run.loss.init_state()
        self._loss, self._state = run.loss, None if state is None else state.to(device)
        self._classes = classes
        self._thresholds = Thresholds(cfg.threshold_scope, run.loss, classes, cfg.batch_size)

    def __call__(
        self,
        logits: Tensor,
        weak: Tensor,
        weight: Tensor | None,
        ctx: LossContext,
        share: Tensor | None,
    ) -> LossOut:
        """Compute the loss of a batch, and keep its state for the next batch.

        ``share`` (B,) mixes its rows, see ``training.mixup``; None: they are not mixed.
        """
        if share is not None:
            rows, soft = np.arange(len(logits)), soft_targets(weak, weight, self._classes)
            index, weak, weight, share = mix_rows(rows, *soft, share, 1)
            logits = mixed(logits[torch.from_numpy(index)], share)
        threshold = self._thresholds.rolling(logits, weak, weight)
        ctx = ctx._replace(weight=weight, threshold=threshold, state=self._state)
        out = self._loss(logits, weak, **ctx._asdict())
        self._state = out.state
        return out


def _backward(outs: Sequence[LossOut]) -> tuple[Tensor, Tensor]:
    """Backpropagate every mean loss to its logits; return (H,) mean losses and agreements.

    The means of all heads are computed as vectors, not head by head.
    """
    sums = [out.loss_sum for out in outs]
    total = torch.stack(sums).detach()
    count = torch.stack([out.count for out in outs]).to(total)
    count = torch.where(count > 0, count, 1.0)
    torch.autograd.backward(sums, list(count.reciprocal().unbind()))
    zero = torch.zeros_like(total[0])
    agreed, rows = (
        torch.stack([out.metrics.get(name, zero) for out in outs]) for name in ("agreement", "rows")
    )
    return total / count, agreed / rows.clamp_min(1.0)


class _Targets:
    """Targets and weights of all runs; arrays that runs share are gathered once a step."""

    def __init__(self, runs: Sequence[HeadRun], device: torch.device) -> None:
        self._keys = [(id(r.targets), None if r.weight is None else id(r.weight)) for r in runs]
        self._tensors: dict[int, Tensor] = {}
        for run in runs:
            for array in (run.targets, run.weight):
                if array is not None and id(array) not in self._tensors:
                    hard = np.issubdtype(array.dtype, np.integer) and array is run.targets
                    t = torch.from_numpy(array.astype(np.int64 if hard else np.float32))
                    self._tensors[id(array)] = t.to(device)

    def rows(self, rows: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        """Return targets and weights of the given rows, run by run."""
        part = {key: t[rows] for key, t in self._tensors.items()}
        return [(part[t], None if w is None else part[w]) for t, w in self._keys]


class _Stack:
    """Weights (H C, D) and biases (H C,) of all heads, with the AdamW of ``MasterAdamW``."""

    def __init__(
        self, features: Tensor, heads: int, classes: int, cfg: TrainConfig, head: nn.Linear | None
    ) -> None:
        dtype = torch.promote_types(features.dtype, torch.float32)
        self._shape, self._cfg, self._steps = (heads, classes), cfg, 0
        self.weight = features.new_zeros(heads * classes, features.shape[1], dtype=dtype)
        self.bias = features.new_zeros(heads * classes, dtype=dtype)
        if head is not None:
            self.weight.copy_(head.weight.detach().repeat(heads, 1))
            self.bias.copy_(head.bias.detach().repeat(heads))
        self._moments = [
            (torch.zeros_like(p), torch.zeros_like(p)) for p in (self.weight, self.bias)
        ]

    @property
    def parameters(self) -> list[Tensor]:
        """Weight and bias of all heads."""
        return [self.weight, self.bias]

    def logits(self, x: Tensor) -> Sequence[Tensor]:
        """Return (B, C) logits of every head."""
        z = torch.addmm(self.bias, x, self.weight.T)
        return z.view(len(x), *self._shape).transpose(0, 1).contiguous().unbind(0)

    def update(self, grads: Sequence[Tensor | None], x: Tensor, lr: Tensor) -> None:
        """One step from the gradients of the logits; ``lr`` (H,)."""
        zero = torch.zeros(len(x), self._shape[1], dtype=x.dtype, device=x.device)
        g = torch.cat([zero if g is None else g for g in grads], 1)
        grad = [g.T @ x, g.sum(0)]
        if self._cfg.clip_norm is not None:
            self._clip(grad, self._cfg.clip_norm)
        rate = lr.to(x).repeat_interleave(self._shape[1])
        self._steps += 1
        self._adamw(self.weight, grad[0], self._moments[0], rate[:, None], decay=True)
        self._adamw(self.bias, grad[1], self._moments[1], rate, decay=False)

    def _clip(self, grads: list[Tensor], limit: float) -> None:
        """Clip each head by its own norm, as ``clip_grad_norm_`` does."""
        weight, bias = (g.view(self._shape[0], -1) for g in grads)
        norm = (weight.square().sum(1) + bias.square().sum(1)).sqrt()
        factor = (limit / (norm + 1e-6)).clamp_max(1.0)[:, None]
        weight.mul_(factor)
        bias.mul_(factor)

    def _adamw(
        self, p: Tensor, grad: Tensor, moments: tuple[Tensor, Tensor], lr: Tensor, *, decay: bool
    ) -> None:
        cfg, (first, second) = self._cfg, moments
        if decay and cfg.weight_decay:
            p.mul_(1 - lr * cfg.weight_decay)
        first.lerp_(grad, 1 - cfg.beta1)
        second.mul_(cfg.beta2).addcmul_(grad, grad, value=1 - cfg.beta2)
        size = (1 - cfg.beta2**self._steps) ** 0.5
        denominator = (second.sqrt() / size).add_(cfg.eps)
        p.addcmul_(first / denominator, lr, value=-1 / (1 - cfg.beta1**self._steps))


def _check(features: Tensor, runs: Sequence[HeadRun], head: nn.Linear | None) -> int:
    """Check that features, runs and head fit each other, and return C."""
    if features.ndim != 2 or not features.is_floating_point() or not len(features):
        raise W2SError(
            f"features have shape {tuple(features.shape)} and dtype {features.dtype}; expected "
            "floating point (N, D) with at least one row"
        )
    if not runs:
        raise W2SError("no runs to train; expected at least one HeadRun")
    soft = [r.targets.shape[1] for r in runs if r.targets.ndim == 2]
    hard = [int(r.targets.max(initial=1)) + 1 for r in runs if r.targets.ndim == 1]
    classes = soft[0] if soft else max(hard)
    if head is not None:
        classes = head.out_features
        if head.in_features != features.shape[1]:
            raise W2SError(f"head takes {head.in_features} features; expected {features.shape[1]}")
    for i, run in enumerate(runs):
        try:
            check_weak_labels(run.targets, run.weight, len(features), classes)
        except W2SError as e:
            raise W2SError(f"run {i}, {run.loss}: {e}") from None
        if run.lr is not None and not 0 <= run.lr < float("inf"):
            raise W2SError(f"run {i}: lr is {run.lr}; expected a number of at least 0, or None")
    return classes


def _check_finite(losses: Tensor, runs: Sequence[HeadRun]) -> None:
    bad = ~losses.isfinite()
    if bad.any():
        run = int(bad.any(0).nonzero()[0])
        step = int(bad[:, run].nonzero()[0])
        raise W2SError(
            f"the loss of run {run}, {runs[run].loss}, is {losses[step, run].item()} at step "
            f"{step + 1} of {len(losses)}; use a smaller lr, or check that its features are finite"
        )
