"""Losses of a language-model head on hidden states: inputs, candidates, and fp64 references.

``gemms`` is the floor: the three bare products of the same shapes, into preallocated buffers. Fused
heads of other libraries are measured where they are installed and run (extra ``bench-peers``).
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import w2s_fast
from bench.cases import baselines
from bench.cases.cross_entropy import AUX, DTYPES, TOP_K
from bench.harness.cpu_timing import Candidate

CASES = ("hard", "dense", "topk", "logconf_hard", "logconf_topk", "teacher")
SHAPES = ((2048, 1024, 32000), (1024, 2048, 128256))  # N, D, V
PEERS = ("torch_lce", "torch_lce_auto", "cce", "liger", "quack")
PROVIDERS = ("ours", "eager", "compile", *PEERS)
_TORCH_ROWS = 512  # rows in a chunk of torch_lce: the best of a few sizes on the first shape
_CHUNK = 256  # rows of fp64 truth at a time
_SAMPLE = 64  # rows whose gradient is checked
_SCALES = (2.0, -1.0)  # of the two heads of the case "teacher", both as wide as the student's

Loss = Callable[[Tensor, Tensor], Tensor]


class Unavailable(Exception):
    """A provider cannot run on this machine; the message is the reason."""


@dataclass
class Inputs:
    """Inputs of a case.

    Attributes:
        hidden: (N, D) leaf.
        head: (V, D) leaf.
        ids: (N,) hard labels.
        labels: (N, V) dense labels of the baselines; None: ``ids``.
        ours: Weak labels of our op; None: ``teacher``.
        teacher: Terms of a teacher's logits.
    """

    hidden: Tensor
    head: Tensor
    ids: Tensor
    labels: Tensor | None
    ours: Tensor | w2s_fast.SparseTargets | None
    teacher: Sequence[w2s_fast.TeacherHead] = ()


def make_inputs(case: str, dtype: str, n: int, d: int, v: int, device: str = "cpu") -> Inputs:
    """Return inputs whose logits have spread 3 and a lifted weak class, as after training."""
    g = torch.Generator(device).manual_seed(0)
    hidden = torch.randn(n, d, generator=g, device=device)
    head = torch.randn(v, d, generator=g, device=device).mul_(3.0 / math.sqrt(d))
    ids = torch.randint(v, (n,), generator=g, device=device)
    lift = torch.rand(n, 1, generator=g, device=device).mul_(20.0)
    own = head[ids]
    hidden += lift * own / own.square().sum(1, keepdim=True)
    hidden, head = (x.to(DTYPES[dtype]).requires_grad_() for x in (hidden, head))
    if case in ("hard", "logconf_hard"):
        ours: Tensor | w2s_fast.SparseTargets = ids
        top_ids, probs = ids[:, None], torch.ones(n, 1, device=device)
    elif case == "teacher":
        terms = [
            w2s_fast.TeacherHead(a, *(_normal(s, g, dtype) for s in ((n, d), (v, d))))
            for a in _SCALES
        ]
        return Inputs(hidden, head, ids, None, None, terms)
    elif case == "dense":
        ours = (
            torch.randn(n, v, generator=g, device=device).mul_(3.0).softmax(dim=1).to(hidden.dtype)
        )
        return Inputs(hidden, head, ids, ours, ours)
    else:
        top_ids, probs = baselines.topk_labels(ids, min(TOP_K, v), v, g)
        ours = w2s_fast.SparseTargets(top_ids, probs)
    labels = None
    if case != "hard":
        # Dense labels of the baselines; scattering them is not measured.
        labels = torch.zeros(n, v, dtype=hidden.dtype, device=device).scatter_(
            1, top_ids, probs.to(hidden.dtype)
        )
    return Inputs(hidden, head, ids, labels, ours)


def _normal(shape: tuple[int, int], g: torch.Generator, dtype: str) -> Tensor:
    """Return factors of logits with spread 3: hidden states, or a head scaled by its width."""
    x = torch.randn(shape, generator=g, device=g.device)
    return x.mul_(math.sqrt(3.0) / shape[1] ** 0.25).to(DTYPES[dtype])


def loss(provider: str, case: str, x: Inputs) -> Loss | None:
    """Return the loss of (hidden, head), or None if the provider has no such loss.

    Raises:
        Unavailable: The provider is not installed or cannot run here.
    """
    if case == "teacher":
        return _teacher_loss(provider, x)
    confidence = case.startswith("logconf")
    target = x.ids if x.labels is None else x.labels
    if provider == "ours":
        options: dict[str, Any] = {"aux": AUX, "threshold": "median"} if confidence else {}
        return partial(w2s_fast.linear_cross_entropy, weak=x.ours, **options)
    if provider in ("eager", "compile"):
        baseline = partial(baselines.linear_cross_entropy, labels=target)
        if confidence:
            baseline = partial(baselines.linear_logconf, labels=target, coef=AUX)
        return baseline if provider == "eager" else torch.compile(baseline, dynamic=False)
    if confidence or (provider != "torch_lce" and case != "hard"):
        return None
    return _PEERS[provider](target)


def _teacher_loss(provider: str, x: Inputs) -> Loss | None:
    if provider == "ours":
        return partial(w2s_fast.linear_cross_entropy, teacher=x.teacher)
    terms = [(float(t.scale), t.hidden, t.head) for t in x.teacher]
    baseline = partial(baselines.linear_teacher, terms=terms)
    if provider == "compile":
        return torch.compile(baseline, dynamic=False)
    return baseline if provider == "eager" else None


def _torch_lce(target: Tensor, **options: Any) -> Loss:
    if not hasattr(F, "linear_cross_entropy"):
        raise Unavailable(f"torch {torch.__version__} has no linear_cross_entropy")
    # With options, dense labels take its reference path all the same, and it warns.
    chunked = torch.nn.LinearCrossEntropyOptions(**options) if target.dim() == 1 else None
    return lambda hidden, head: F.linear_cross_entropy(hidden, head, target, options=chunked)


def _torch_compact(target: Tensor) -> Loss:
    return _torch_lce(
        target, chunking_method=None, batch_chunk_size=_TORCH_ROWS, acc_policy="compact"
    )


def _cce(target: Tensor) -> Loss:
    module = _installed("cut_cross_entropy", "cut-cross-entropy")
    return partial(module.linear_cross_entropy, targets=target, impl="torch_compile")


def _liger(target: Tensor) -> Loss:
    module = _installed("liger_kernel.ops.fused_linear_scaled_cross_entropy", "liger-kernel")
    op = module.LigerFusedLinearScaledCrossEntropyFunction
    return lambda hidden, head: op.apply(hidden, head, target).mean()


def _quack(target: Tensor) -> Loss:
    raise Unavailable("quack-kernels runs on CUDA only")


_PEERS: dict[str, Callable[[Tensor], Loss]] = {
    "torch_lce": _torch_compact, "torch_lce_auto": _torch_lce, "cce": _cce, "liger": _liger,
    "quack": _quack,
}  # fmt: skip


def _installed(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as e:
        raise Unavailable(f"{package} cannot be imported: {e}") from e


def losses(
    case: str, x: Inputs, providers: Sequence[str]
) -> tuple[dict[str, Loss], dict[str, str]]:
    """Return provider -> loss, and provider -> the reason why it is not measured."""
    table, skipped = {}, {}
    for provider in providers:
        try:
            call = loss(provider, case, x)
        except Unavailable as e:
            skipped[provider] = str(e)
        else:
            if call is not None:
                table[provider] = call
    return table, skipped


def step(x: Inputs, call: Loss) -> Tensor:
    """Run forward and backward; the gradients stay in the leaves."""
    value = call(x.hidden, x.head)
    value.backward()
    return value.detach()


def reset(x: Inputs) -> None:
    """Remove the gradients, as ``zero_grad(set_to_none=True)`` does."""
    x.hidden.grad = x.head.grad = None


def prepare(
    provider: str, case: str, dtype: str, n: int, d: int, v: int
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return a step on new inputs, and its ``reset``, for ``peak_memory.peaks``."""
    x = make_inputs(case, dtype, n, d, v)
    call = loss(provider, case, x)
    assert call is not None
    return partial(step, x, call), partial(reset, x)


def candidates(x: Inputs, table: dict[str, Loss]) -> dict[str, Candidate]:
    """Return forward and backward of every loss, and the bare products."""
    timed = {
        name: Candidate(partial(step, x, call), partial(reset, x), warm=1)
        for name, call in table.items()
    }
    timed["gemms"] = Candidate(gemms(x), partial(reset, x), warm=1)
    return timed


def gemms(x: Inputs) -> Callable[[], None]:
    """Return the products hidden head^T, dlogits head (dhidden), dlogits^T hidden (dhead).

    A teacher adds one product a term.
    """
    hidden, head = x.hidden.detach(), x.head.detach()
    logits = hidden.new_zeros((hidden.shape[0], head.shape[0]))
    dhidden, dhead = torch.empty_like(hidden), torch.empty_like(head)

    def products() -> None:
        for term in x.teacher:
            torch.mm(term.hidden, term.head.t(), out=logits)
        torch.mm(hidden, head.t(), out=logits)
        torch.mm(logits, head, out=dhidden)
        torch.mm(logits.t(), hidden, out=dhead)

    return products


def errors(x: Inputs, call: Loss, truth: tuple[float, Tensor, Tensor]) -> dict[str, float]:
    """Return relative errors: of the loss, and of sampled dhidden rows over the largest entry."""
    reset(x)
    value = step(x, call)
    assert x.hidden.grad is not None
    total, rows, expected = truth
    return baselines.relative_errors(value, x.hidden.grad[rows], total, expected)


def truth(case: str, x: Inputs) -> tuple[float, Tensor, Tensor]:
    """Return the fp64 loss over all rows, a sample of rows, and their fp64 dL/dhidden."""
    hidden, head = x.hidden.detach().double(), x.head.detach().double()
    n, device = hidden.shape[0], hidden.device
    sample = torch.linspace(0, n - 1, min(n, _SAMPLE), device=device).long()
    is_sampled = torch.zeros(n, dtype=torch.bool, device=device).index_fill_(0, sample, True)
    weak, own, top, grads = [], [], [], []
    for rows in torch.arange(n, device=device).split(_CHUNK):
        z = hidden[rows] @ head.t()
        lse = z.logsumexp(1)
        most, chosen = z.max(1)
        y = _target(x, rows, z)
        weak.append(lse * y.sum(1) - (y * z).sum(1))
        own.append(lse - most)
        top.append((most - lse).exp())
        at = is_sampled[rows]
        p = (z[at] - lse[at, None]).exp()
        # Gradients of the weak part and of the self-target, mixed once the threshold is known.
        one = torch.zeros_like(p).scatter_(1, chosen[at, None], 1.0)
        grads.append(
            torch.stack([(p * y[at].sum(1, keepdim=True) - y[at]) @ head, (p - one) @ head], 1)
        )
    tops = torch.cat(top)
    share = torch.zeros_like(tops)
    if case.startswith("logconf"):
        share = AUX * (tops >= torch.quantile(tops, 0.5)).double()
    total = ((1 - share) * torch.cat(weak) + share * torch.cat(own)).mean().item()
    a = share[sample, None]
    parts = torch.cat(grads)
    return total, sample, ((1 - a) * parts[:, 0] + a * parts[:, 1]) / n


def _target(x: Inputs, rows: Tensor, like: Tensor) -> Tensor:
    if x.ours is None:
        logits = [t.scale * (t.hidden[rows].double() @ t.head.double().t()) for t in x.teacher]
        return sum(logits[1:], logits[0]).softmax(1)
    zeros = torch.zeros_like(like)
    if isinstance(x.ours, w2s_fast.SparseTargets):
        return zeros.scatter_(1, x.ours.ids[rows], x.ours.probs[rows].double())
    if x.ours.dim() == 1:
        return zeros.scatter_(1, x.ids[rows, None], 1.0)
    return x.ours[rows].double()
