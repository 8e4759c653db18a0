"""Losses of many heads in one go are those of each head: values, sums and gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.losses import LOSSES, Loss, LossContext, LossOut, make_loss
from w2s_fast.losses._one_call import OneCallLoss
from w2s_fast.losses._rowwise import RowLoss
from w2s_fast.probing.head_losses import HeadLosses
from w2s_fast.probing.head_runs import HeadRun, Rows
from w2s_fast.training import TrainConfig
from w2s_fast.training.self_targets import SelfTargets

B = 37
CFG = TrainConfig(epochs=1, batch_size=B, lr=1e-3)


@dataclass(frozen=True, kw_only=True)
class Own(Loss):
    """A loss of anybody's making, which is no single call of the op."""

    def forward(self, logits: Tensor, weak: Tensor, ctx: LossContext) -> LossOut:
        return make_loss("xent").forward(2 * logits, weak, ctx)


@dataclass(frozen=True, kw_only=True)
class Scaled(RowLoss):
    """A loss whose fields have no hash."""

    by: list[float]

    def row_losses(self, log_p: Tensor, q: Tensor) -> Tensor:
        return -(q * log_p).sum(1) * self.by[0]


def _heads(classes: int) -> tuple[list[HeadRun], list[Rows], list[Rows]]:
    """Heads of every loss, three of them equal: soft, hard, with weights, with step targets."""
    g = np.random.default_rng(0)
    losses = [*map(make_loss, LOSSES), make_loss("gce:q=0.3"), Own(), Scaled(by=[2.0])]
    runs, labels, targets = [], [], []
    hard = torch.from_numpy(g.integers(0, classes, B))
    hard[::6] = -100
    weight = torch.from_numpy(g.uniform(0, 2, B)).float()
    weight[::5] = 0
    for loss in losses:
        soft, made, own = (
            torch.from_numpy(g.dirichlet(np.ones(classes), B)).float() for _ in range(3)
        )
        moved = weight * torch.from_numpy(g.uniform(0.5, 1, B)).float()
        anew = SelfTargets()
        for weak, w, now in (
            (soft, None, None),
            (own, None, None),
            (own, weight, None),
            (hard, None, None),
            (hard, weight, None),
            (soft, weight, (made, moved)),
            (soft, weight, (own, moved.flip(0))),
            (hard, weight, (own, weight)),
        ):
            run = HeadRun(weak.numpy(), loss, None, None if w is None else w.numpy(),
                          None if now is None else anew)  # fmt: skip
            runs.append(run)
            labels.append((weak, w))
            targets.append(now or (weak, w))
    return runs, labels, targets


def _of_each(
    runs: list[HeadRun], labels: list[Rows], targets: list[Rows], batches: list[Tensor],
    ctx: LossContext,
) -> list[Any]:  # fmt: skip
    """Losses, agreements, rows and gradients (H, ...) of every batch, head by head."""
    states, out = [run.loss.init_state() for run in runs], []
    for logits in batches:
        rows = []
        for h, run in enumerate(runs):
            z = logits[h].clone().requires_grad_()
            got = run.loss.forward(
                z, targets[h][0], ctx._replace(weight=targets[h][1], state=states[h])
            )
            states[h] = got.state
            mean = got.loss_sum / run.loss.count(*labels[h])
            mean.backward()
            rows.append((mean.detach(), got.metrics["agreement"], got.metrics["rows"], z.grad))
        out.append([torch.stack([x.double() for x in part]) for part in zip(*rows, strict=True)])
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("step_frac", [0.0, 0.6])
def test_each_head_has_its_own_loss(dtype: torch.dtype, classes: int, step_frac: float) -> None:
    runs, labels, targets = _heads(classes)
    g = torch.Generator().manual_seed(1)
    batches = [2 * torch.randn(len(runs), B, classes, generator=g, dtype=dtype) for _ in range(2)]
    ctx = LossContext(step_frac=step_frac, step=int(100 * step_frac))
    losses = HeadLosses(runs, classes, CFG, batches[0])
    kinds = {type(part).__name__: len(part.heads) for part in losses._parts}
    assert ("_OneCalls" in kinds) is (dtype == torch.float32 and classes == 2), kinds
    room = 3e-6 if dtype == torch.float32 else 1e-12
    want = _of_each(runs, labels, targets, batches, ctx)
    for logits, (mean, agreement, rows, grad) in zip(batches, want, strict=True):
        got = losses(logits, labels, targets, ctx, None)
        for h, run in enumerate(runs):
            assert abs(got.mean[h] - mean[h]) <= room * max(1, abs(mean[h])), (h, run)
            assert got.agreement[h] == agreement[h] and got.rows[h] == rows[h], (h, run)
            assert (got.grad[h] - grad[h]).abs().max() <= room, (h, run)


def test_rows_that_do_not_count() -> None:
    """NaN logits there, and a head none of whose rows counts: gradient and loss are exactly 0."""
    runs, labels, targets = _heads(2)
    logits = torch.randn(len(runs), B, 2, generator=torch.Generator().manual_seed(2))
    nothing = torch.zeros(B)
    for h, (weak, weight) in enumerate(targets):
        if weight is not None:
            logits[h, weight == 0] = float("nan")
        if not weak.is_floating_point():
            logits[h, weak == -100] = float("nan")
        if h % 8 == 6:
            targets[h] = weak, nothing
    # The ring of predictions is of every head alone, and skips such rows itself.
    losses = HeadLosses(runs, 2, CFG, logits)
    got = losses(logits, labels, targets, LossContext(step_frac=0.5, step=9), None)
    assert got.grad.isfinite().all() and got.mean.isfinite().all()
    for h in range(6, len(runs), 8):
        assert got.mean[h] == 0 and got.rows[h] == 0 and not got.grad[h].any()


@pytest.mark.parametrize("name", ["xent", "gce"])
def test_labels_of_any_layout(name: str) -> None:
    """fp64, and columns apart from each other, as step targets of anybody's making may be."""
    g = torch.Generator().manual_seed(3)
    z, soft = torch.randn(2, B, 2, generator=g), torch.rand(B, 2, generator=g).softmax(1)
    hard = soft.argmax(1)
    runs = [HeadRun(soft.numpy(), make_loss(name)), HeadRun(hard.numpy(), make_loss(name))]
    rows: list[Rows] = [(soft, None), (hard, None)]
    apart: list[Rows] = [
        (soft.double().t().contiguous().t(), None), (hard.repeat_interleave(2)[::2], None)
    ]  # fmt: skip
    losses = HeadLosses(runs, 2, CFG, z)
    want, got = (losses(z, rows, targets, LossContext(), None) for targets in (rows, apart))
    assert torch.equal(want.grad, got.grad) and torch.equal(want.mean, got.mean)


class _Short(OneCallLoss):
    def terms(self, logits: Tensor, weak: Tensor, ctx: LossContext) -> tuple[Tensor, dict]:
        return weak[:-1], {}


def test_what_the_kernel_would_read_is_checked() -> None:
    """It reads addresses, so shapes and values are checked before."""
    z, soft = torch.zeros(1, B, 2), torch.full((B, 2), 0.5)

    def refused(match: str, loss: Loss, weak: Tensor, weight: Tensor | None = None) -> None:
        run = HeadRun(weak.numpy(), loss, None, None if weight is None else weight.numpy())
        losses = HeadLosses([run], 2, CFG, z)
        with pytest.raises(W2SError, match=match):
            losses(z, [(soft, None)], [(weak, weight)], LossContext(), None)

    refused(r"weak labels have shape \(36, 2\)", _Short(), soft)
    refused(r"weak labels have shape \(36, 2\)", make_loss("xent"), soft[1:])
    refused(r"is -1.0; expected a number >= 0", make_loss("xent"), soft, torch.full((B,), -1.0))
    refused(r"have shape \(36,\); expected \(37,\)", make_loss("xent"), soft, torch.ones(B - 1))
    refused(r"weak label \[2\] in row 0", make_loss("xent"), torch.full((B,), 2))
