"""The confidence loss over two classes: small batches, one thread, microseconds per call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

import w2s_fast
from bench.cases import baselines
from bench.harness.cpu_timing import Candidate

SIZES = (32, 256, 4096)
PROVIDERS = ("ours", "eager", "compile", "sum")
ENGINE = "sum"  # the backward pass of a sum: what autograd itself takes for a call
AUX = 0.5
_CALLS = {32: 200, 256: 100, 4096: 20}


def make_inputs(n: int) -> tuple[Tensor, Tensor]:
    """Return fp32 logits (N, 2) and soft weak labels (N, 2)."""
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(n, 2, generator=g).mul_(2.0)
    return logits, torch.randn(n, 2, generator=g).softmax(dim=1)


def losses(labels: Tensor, providers: Sequence[str]) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return provider -> loss as a function of the logits; ``ENGINE`` is no loss."""
    baseline = partial(baselines.logconf_two_class, labels=labels, coef=AUX)
    table = {
        "ours": partial(w2s_fast.cross_entropy, weak=labels, aux=AUX),
        "eager": baseline,
        "compile": torch.compile(baseline, dynamic=False),
        ENGINE: torch.sum,
    }
    return {name: loss for name, loss in table.items() if name in providers}


def candidates(
    logits: Tensor, table: dict[str, Callable[[Tensor], Tensor]], quick: bool
) -> dict[str, Candidate]:
    """Return forward and backward of every loss through autograd."""
    leaf = logits.clone().requires_grad_()

    def step(loss: Callable[[Tensor], Tensor]) -> None:
        leaf.grad = None
        loss(leaf).backward()

    inner = 2 if quick else _CALLS.get(logits.shape[0], 50)
    return {name: Candidate(partial(step, loss), inner=inner) for name, loss in table.items()}


def errors(logits: Tensor, labels: Tensor, loss: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """Return relative errors of loss and gradient against the baseline's formula in fp64."""
    z = logits.double().requires_grad_()
    p = z.detach().softmax(dim=1)[:, 0]
    threshold = torch.quantile(p, labels.double().mean(dim=0)[1])
    own = torch.stack([p >= threshold, p < threshold], dim=1).double()
    target = labels.double() * (1 - AUX) + own * AUX
    total = torch.nn.functional.cross_entropy(z, target)
    total.backward()
    leaf = logits.clone().requires_grad_()
    value = loss(leaf)
    value.backward()
    assert leaf.grad is not None and z.grad is not None
    return baselines.relative_errors(value, leaf.grad, total.item(), z.grad)
