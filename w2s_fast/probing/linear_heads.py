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
from w2s_fast.probing.head_stack import HeadStack
from w2s_fast.probing.head_targets import HeadTargets, Rows, branches_of
from w2s_fast.training.config import TrainConfig
from w2s_fast.training.data import RowOrder, check_weak_labels
from w2s_fast.training.head_input import truncated
from w2s_fast.training.mixup import draw_shares, mix_rows, mixed, soft_targets
from w2s_fast.training.nested_dropout import best_widths, nested_width
from w2s_fast.training.step_targets import StepTargets
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
        step_targets: see ``train``. ``CoTeaching`` trains two heads, of which the first is the
            result. The contrastive term of ``SelfTargets`` is for features that are trained.
    """

    targets: np.ndarray
    loss: Loss
    lr: float | None = None
    weight: np.ndarray | None = None
    step_targets: StepTargets | None = None


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
    if cfg.mixup and (made_anew := [str(r.step_targets) for r in runs if r.step_targets]):
        raise W2SError(
            f"mixup is {cfg.mixup}, and step_targets are {made_anew[0]}, made of predictions of "
            "the rows as they are; expected one of the two: set mixup=0"
        )
    classes = _check(features, runs, head)
    start = time.perf_counter()
    run_of = [i for i, run in enumerate(runs) for _ in range(branches_of(run.step_targets))]
    heads = [runs[i] for i in run_of]
    stack = HeadStack(features, run_of, classes, cfg, head)
    losses = [_HeadLoss(run, classes, cfg, features.device) for run in heads]
    table = _Targets(heads, features.device)
    made = HeadTargets([run.step_targets for run in heads], stack, classes, seed)
    rates = torch.tensor([cfg.lr if r.lr is None else r.lr for r in heads], dtype=torch.float64)
    unit, steps = replace(cfg, lr=1.0), cfg.steps(len(features))
    order = RowOrder(len(features), cfg.batch_size, cfg.epochs, seed)
    log = torch.empty(steps, 2, len(runs), dtype=torch.float64)
    first_averaged, trained = cfg.first_averaged(steps), stack.parameters
    initial = [p.clone() for p in trained] if cfg.interpolation < 1 else []
    for step in range(steps):
        rows = torch.from_numpy(order.rows(step)).to(features.device)
        x = features[rows].to(stack.weight.dtype)
        if cfg.nested_dropout:
            x = truncated(x, nested_width(x.shape[1], cfg.nested_dropout, seed, step))
        shares = draw_shares(len(x), cfg.mixup, seed, step).to(x) if cfg.mixup else None
        views = made.views(x, step)
        z = [part.detach().requires_grad_() for part in stack.logits(views)]
        labels = table.rows(rows)
        parts = zip(losses, z, labels, made.rewritten(x, z, labels, step / steps), strict=True)
        ctx = LossContext(step_frac=step / steps, step=step)
        outs = [
            head_loss(z_h, weak, made_of, ctx, shares) for head_loss, z_h, weak, made_of in parts
        ]
        log[step, 0], log[step, 1] = _backward(outs, run_of)
        stack.update([part.grad for part in z], views, rates * unit.lr_at(step, steps))
        made.update(step + 1)
        if step == first_averaged:
            trained = [p.clone() for p in stack.parameters]
        elif step > first_averaged:
            share = cfg.share_in_mean(step + 1 - first_averaged)
            trained = [t.lerp_(p, share) for t, p in zip(trained, stack.parameters, strict=True)]
    if initial:
        trained = [i.lerp(t, cfg.interpolation) for i, t in zip(initial, trained, strict=True)]
    _check_finite(log[:, 0], runs)
    weight, bias = made.final(
        trained[0].view(len(heads), classes, -1), trained[1].view(-1, classes)
    )
    first = [run_of.index(i) for i in range(len(runs))]
    if len(heads) > len(runs):
        weight, bias = weight[first], bias[first]
    return HeadResult(weight, bias, log[:, 0], log[:, 1], time.perf_counter() - start)


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
    _check_width(features, width)
    out = np.empty((heads, len(features), classes), np.float32)
    flat, bias = result.weight.view(-1, width), result.bias.view(-1)
    for at in range(0, len(features), _PREDICT_ROWS):
        x = features[at : at + _PREDICT_ROWS].to(flat.dtype)
        z = torch.addmm(bias, x, flat.T).view(len(x), heads, classes)
        out[:, at : at + _PREDICT_ROWS] = z.softmax(2).transpose(0, 1).float().cpu().numpy()
    return out


def truncate_heads(
    features: Tensor, result: HeadResult, weak_labels: np.ndarray
) -> tuple[HeadResult, np.ndarray]:
    """Set the columns of each head after its best width to 0, as ``truncate_head`` does.

    Args:
        features: (N, D) of rows that the heads were not trained on.
        result: of ``train_heads`` with ``TrainConfig.nested_dropout``.
        weak_labels: (N,) hard weak labels (-100: row not used) or (N, C) soft ones of these rows.

    Returns:
        The truncated heads, and their widths (H,) int64.

    Raises:
        W2SError: features or labels do not fit, or no row counts.
    """
    heads, classes, width = result.weight.shape
    _check_width(features, width)
    check_weak_labels(weak_labels, None, len(features), classes)
    hard = weak_labels if weak_labels.ndim == 1 else weak_labels.argmax(1)
    used = torch.from_numpy(hard >= 0)
    if not used.any():
        raise W2SError(f"none of {len(hard)} held-out rows counts; expected at least one label")
    target = torch.from_numpy(hard.astype(np.int64))[used].to(result.weight.device)
    x = features[used].to(result.weight.device)
    widths = best_widths(x, result.weight, result.bias, target)
    column = torch.arange(width, device=widths.device)
    weight = result.weight.masked_fill((column >= widths[:, None])[:, None], 0.0)
    return result._replace(weight=weight), widths.cpu().numpy()


def _check_width(features: Tensor, width: int) -> None:
    if features.ndim != 2 or features.shape[1] != width:
        raise W2SError(f"features have shape {tuple(features.shape)}; expected (N, {width})")


class _HeadLoss:
    """The loss of one head, with its thresholds and state."""

    def __init__(self, run: HeadRun, classes: int, cfg: TrainConfig, device: torch.device) -> None:
        state = run.loss.init_state()
        self._loss, self._state = run.loss, None if state is None else state.to(device)
        self._classes = classes
        self._thresholds = Thresholds(cfg.threshold_scope, run.loss, classes, cfg.batch_size)

    def __call__(
        self, logits: Tensor, labels: Rows, targets: Rows, ctx: LossContext, share: Tensor | None
    ) -> LossOut:
        """Compute the loss of a batch, and keep its state for the next batch.

        The normaliser is that of ``labels``, the weak labels that ``targets`` were made of.
        ``share`` (B,) mixes the rows, see ``training.mixup``; None: they are not mixed.
        """
        weak, weight = targets
        if share is not None:
            rows, soft = np.arange(len(logits)), soft_targets(weak, weight, self._classes)
            index, weak, weight, share = mix_rows(rows, *soft, share, 1)
            logits = mixed(logits[torch.from_numpy(index)], share)
        threshold = self._thresholds.rolling(logits, weak, weight)
        ctx = ctx._replace(weight=weight, threshold=threshold, state=self._state)
        out = self._loss(logits, weak, **ctx._asdict())
        self._state = out.state
        return out if targets is labels else out._replace(count=self._loss.count(*labels))


def _backward(outs: Sequence[LossOut], run_of: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Backpropagate every mean loss to its logits; return losses and agreements of the runs.

    The means of all heads are computed as vectors, not head by head. The loss of a run with two
    heads is their sum.
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
    means = total / count
    if (n_runs := run_of[-1] + 1) < len(outs):
        index = torch.tensor(run_of, device=means.device)
        means, agreed, rows = (
            t.new_zeros(n_runs).index_add(0, index, t) for t in (means, agreed, rows)
        )
    return means, agreed / rows.clamp_min(1.0)


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

    def rows(self, rows: Tensor) -> list[Rows]:
        """Return targets and weights of the given rows, run by run."""
        part = {key: t[rows] for key, t in self._tensors.items()}
        return [(part[t], None if w is None else part[w]) for t, w in self._keys]


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
