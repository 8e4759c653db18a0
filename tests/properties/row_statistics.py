"""Properties of differentiable statistics of rows, of stored logits and of a fused head."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from properties.cases import DTYPES, MOST
from properties.inputs import lay_out
from properties.topk import TopK
from w2s_fast.ops import use_backend
from w2s_fast.ops.fused_linear.logprob import linear_topk_logprob
from w2s_fast.ops.logprob.api import RowStats, topk_logprob
from w2s_fast.testing import BACKWARD, FORWARD, assert_within_budget

NAMES = ("lse", "max_prob", "entropy", "margin")


def statistics(backend: str, c: TopK) -> None:
    """Statistics and their gradient are those of a log-softmax."""
    g = torch.Generator().manual_seed(c.seed)
    # Far from 0 the two largest logits are equal, or their difference has no yardstick; nor has
    # the entropy of rows that are certain to less than a rounding.
    n, spread = min(c.n, max(2, MOST // c.v)), min(c.spread, 5.0)
    c = replace(c, n=n, v=max(c.v, 2), offset=0.0, spread=spread)
    z = c.spread * torch.randn(c.n, c.v, generator=g, dtype=torch.float64)
    z = lay_out(z.to(DTYPES[c.dtype]), c.layout)
    ids, scale = torch.zeros(c.n, 1, dtype=torch.int64), (c.temperature, c.softcap)
    results = []
    for dtype in (z.dtype, torch.float64, torch.float32):
        x = z.detach().to(dtype).requires_grad_()
        if not results:
            with use_backend(backend):
                stats = topk_logprob(
                    x, ids, temperature=scale[0], softcap=scale[1], return_stats="differentiable"
                )[2]
                out = _listed(stats)
                grad = torch.autograd.grad(_total(out, z), x)
        else:
            out = _definition(x, *scale)
            grad = torch.autograd.grad(_total(out, z), x)
        results.append([y.detach() for y in (*out, *grad)])
    for name, y, t, b in zip((*NAMES, "gradient"), *results, strict=True):
        if y.numel():
            factor = BACKWARD if name == "gradient" else FORWARD
            assert_within_budget(y, t, b.to(y.dtype), factor, name)


def of_a_head(backend: str, c: TopK) -> None:
    """A head with the identity for hidden states has the statistics of its logits, bit for bit."""
    g = torch.Generator().manual_seed(c.seed)
    n = min(c.n, 12)
    head = (c.spread * torch.randn(c.v, n, generator=g)).to(DTYPES[c.dtype]).requires_grad_()
    eye, ids = torch.eye(n, dtype=head.dtype), torch.zeros(n, 1, dtype=torch.int64)
    known = {"softcap": c.softcap, "return_stats": "differentiable"}
    budget = 64.0 if not c.budget else c.budget * c.v * head.dtype.itemsize / 2**20
    results = []
    with use_backend(backend):
        for stats in (
            linear_topk_logprob(eye, head, ids, memory_mib=budget, **known)[2],
            topk_logprob(head.t().contiguous(), ids, **known)[2],
        ):
            out = _listed(stats)
            results.append([*out, *torch.autograd.grad(_total(out, head.detach().t()), head)])
    for name, ours, dense in zip((*NAMES, "gradient"), *results, strict=True):
        assert torch.equal(ours, dense), f"{name}: {ours} for {dense}"


def _listed(stats: RowStats) -> list[Tensor]:
    return [getattr(stats, name) for name in NAMES]


def _definition(logits: Tensor, temperature: float, softcap: float) -> list[Tensor]:
    z = softcap * torch.tanh(logits / softcap) if softcap else logits
    z = z / temperature
    log_p, two = z.log_softmax(1), z.topk(2, 1)[0]
    p = log_p.exp()
    return [z.logsumexp(1), p.amax(1), -(p * log_p).sum(1), two[:, 0] - two[:, 1]]


def _total(out: list[Tensor], logits: Tensor) -> Tensor:
    """One number with a weight for each output; none where equal logits share a gradient."""
    total = torch.zeros((), dtype=torch.float64)
    three = torch.cat([logits.double(), logits.new_full((len(logits), 2), -math.inf)], 1)
    top = three.topk(3, 1)[0]
    tied = (top[:, 0] == top[:, 1]) | (top[:, 1] == top[:, 2])
    for i, x in enumerate(out):
        used = x.isfinite() & ~(tied & (i in (1, 3)))
        up = torch.linspace(-0.5, 2.0, max(x.numel(), 1), dtype=x.dtype)[: x.numel()] + 0.3 * i
        total = total + torch.where(used, x * up, 0.0).double().sum()
    return total
