"""Losses over a large vocabulary: inputs, candidates, and fp64 references."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

import w2s_fast
from bench.cases import baselines
from bench.harness.cpu_timing import Candidate

CASES = ("logconf_hard", "logconf_topk", "logconf_dense", "hard", "dense")
SHAPES = ((4096, 32000), (1024, 128256))
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PROVIDERS = ("ours", "ours_inplace", "eager", "compile", "eager_gather", "compile_gather")
AUX = 0.5
TOP_K = 8
_CHUNK = 128  # rows of fp64 truth at a time
_SAMPLE = 64  # rows whose gradient is checked

Loss = Callable[[Tensor], Tensor]


@dataclass
class Inputs:
    """Inputs of a case.

    Attributes:
        logits: (N, V).
        labels: (N, V) dense labels of the baselines, in the dtype of the logits; None: ``ids``.
        ids: (N,) hard labels.
        ours: Weak labels of our op.
    """

    logits: Tensor
    labels: Tensor | None
    ids: Tensor
    ours: Tensor | w2s_fast.SparseTargets


class Upstream(torch.autograd.Function):
    """Stand in for the model: return a fixed buffer as its output, and drop the gradient."""

    @staticmethod
    def forward(ctx: object, seed: Tensor, holder: list[Tensor]) -> Tensor:
        return holder[0].detach()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> tuple[Tensor, None]:
        return grad.new_zeros(()), None


def make_inputs(case: str, dtype: str, n: int, v: int, device: str = "cpu") -> Inputs:
    """Return logits with spread 3 whose weak class is lifted in most rows, as after training."""
    g = torch.Generator(device).manual_seed(0)
    logits = torch.randn(n, v, generator=g, device=device).mul_(3.0)
    ids = torch.randint(v, (n,), generator=g, device=device)
    lift = torch.rand(n, generator=g, device=device).mul_(20.0)
    logits[torch.arange(n, device=device), ids] += lift
    logits = logits.to(DTYPES[dtype])
    ours: Tensor | w2s_fast.SparseTargets
    if case in ("hard", "logconf_hard"):
        ours = ids
        labels = (
            None
            if case == "hard"
            else _one_hot(ids[:, None], torch.ones_like(ids[:, None]), logits)
        )
    elif case == "logconf_topk":
        top_ids, probs = baselines.topk_labels(ids, min(TOP_K, v), v, g)
        ours, labels = w2s_fast.SparseTargets(top_ids, probs), _one_hot(top_ids, probs, logits)
    else:
        soft = torch.randn(n, v, generator=g, device=device).mul_(3.0).softmax(dim=1)
        ours = labels = soft.to(logits.dtype)
    return Inputs(logits, labels, ids, ours)


def _one_hot(ids: Tensor, probs: Tensor, like: Tensor) -> Tensor:
    return torch.zeros_like(like).scatter_(1, ids, probs.to(like.dtype))


def losses(case: str, x: Inputs, providers: Sequence[str]) -> dict[str, Loss]:
    """Return provider -> loss as a function of the logits."""
    if case.startswith("logconf"):
        options: dict[str, object] = {"aux": AUX, "threshold": "median"}
        baseline = partial(baselines.logconf, labels=x.labels, coef=AUX)
    else:
        options = {}
        baseline = partial(baselines.cross_entropy, labels=x.ids if x.labels is None else x.labels)
    ours = partial(w2s_fast.cross_entropy, weak=x.ours, **options)
    table: dict[str, Loss] = {
        "ours": ours,
        "ours_inplace": partial(ours, inplace=True),
        "eager": baseline,
        "compile": torch.compile(baseline, dynamic=False),
    }
    if case == "logconf_hard":
        gather = partial(baselines.logconf_gather, ids=x.ids, coef=AUX)
        table["eager_gather"] = gather
        table["compile_gather"] = torch.compile(gather, dynamic=False)
    return {name: loss for name, loss in table.items() if name in providers}


def candidates(x: Inputs, table: dict[str, Loss]) -> dict[str, Candidate]:
    """Return forward and backward of every loss, and the memory floor of the same bytes."""
    seed = torch.zeros((), requires_grad=True)
    work = torch.empty_like(x.logits) if "ours_inplace" in table else None

    def step(loss: Loss, buffer: Tensor) -> None:
        loss(Upstream.apply(seed, [buffer])).backward()

    timed = {}
    for name, loss in table.items():
        if name == "ours_inplace" and work is not None:
            # In place overwrites its logits: every call gets a new copy, which is not timed.
            timed[name] = Candidate(partial(step, loss, work), partial(work.copy_, x.logits))
        else:
            timed[name] = Candidate(partial(step, loss, x.logits))
    buffer = torch.ones(x.logits.nbytes // 4)
    timed["floor_write"] = Candidate(partial(buffer.mul_, 1.0))
    if isinstance(x.ours, Tensor) and x.ours.dim() == 2:
        # Labels are read too: sum the same number of bytes.
        timed["floor_read"] = Candidate(buffer.sum)
    return timed


def errors(x: Inputs, loss: Loss, truth: tuple[float, Tensor, Tensor]) -> dict[str, float]:
    """Return relative errors: of the loss, and of sampled gradient rows over the largest entry."""
    logits = x.logits.clone().requires_grad_()
    value = loss(logits.view_as(logits))
    value.backward()
    assert logits.grad is not None
    total, rows, expected = truth
    return baselines.relative_errors(value, logits.grad[rows], total, expected)


def truth(case: str, x: Inputs) -> tuple[float, Tensor, Tensor]:
    """Return the fp64 loss over all rows, a sample of rows, and their fp64 gradients."""
    n = x.logits.shape[0]
    top = torch.cat([z.double().softmax(1).amax(1) for z in x.logits.split(_CHUNK)])
    threshold = torch.quantile(top, 0.5)
    share = AUX * (top >= threshold) if case.startswith("logconf") else torch.zeros_like(top)
    total = 0.0
    for start in range(0, n, _CHUNK):
        rows = torch.arange(start, min(start + _CHUNK, n))
        z, target = _target(x, rows, share)
        total += -(z.log_softmax(1) * target).sum().item() / n
    rows = torch.linspace(0, n - 1, min(n, _SAMPLE)).long()
    z, target = _target(x, rows, share)
    return total, rows, (z.softmax(1) * target.sum(1, keepdim=True) - target) / n


def _target(x: Inputs, rows: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    z = x.logits[rows].double()
    if isinstance(x.ours, w2s_fast.SparseTargets):
        weak = torch.zeros_like(z).scatter_(1, x.ours.ids[rows], x.ours.probs[rows].double())
    elif x.ours.dim() == 1:
        weak = torch.zeros_like(z).scatter_(1, x.ids[rows, None], 1.0)
    else:
        weak = x.ours[rows].double()
    a = share[rows, None]
    own = torch.zeros_like(z).scatter_(1, z.argmax(1, keepdim=True), 1.0)
    return z, weak * (1 - a) + own * a
