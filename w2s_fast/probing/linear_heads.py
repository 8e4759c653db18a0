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
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from w2s_fast.errors import W2SError
from w2s_fast.losses import LossContext
from w2s_fast.probing.head_losses import HeadLosses, StepLosses
from w2s_fast.probing.head_runs import HeadRun, RunLabels
from w2s_fast.probing.head_stack import HeadStack
from w2s_fast.probing.head_targets import HeadTargets, branches_of
from w2s_fast.training.config import TrainConfig
from w2s_fast.training.data import RowOrder, check_weak_labels
from w2s_fast.training.head_input import truncated
from w2s_fast.training.mixup import draw_shares
from w2s_fast.training.nested_dropout import best_widths, nested_width

_PREDICT_ROWS = 4096  # rows of one product in ``predict_heads``


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
    losses = HeadLosses(heads, classes, cfg, stack.weight)
    table = RunLabels(heads, features.device)
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
        z, labels = stack.logits(views), table.rows(rows)
        targets = made.rewritten(x, z, labels, step / steps)
        ctx = LossContext(step_frac=step / steps, step=step)
        out = losses(z, labels, targets, ctx, shares)
        log[step, 0], log[step, 1] = _by_run(out, stack.runs, len(runs))
        stack.update(out.grad, views, rates * unit.lr_at(step, steps))
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


def _by_run(out: StepLosses, run_of: Tensor, runs: int) -> tuple[Tensor, Tensor]:
    """Return losses and agreements of the runs; the loss of a run with two heads is their sum."""
    sums = torch.stack([out.mean, out.agreement, out.rows])
    if runs < len(run_of):
        sums = sums.new_zeros(3, runs).index_add(1, run_of, sums)
    mean, agreed, rows = sums
    return mean, agreed / rows.clamp_min(1.0)


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
