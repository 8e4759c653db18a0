"""Cases of the fused head, and full logits in fp64 to compare them with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from w2s_fast import SparseTargets
from w2s_fast.ops import use_backend
from w2s_fast.ops.fused_linear.cross_entropy import linear_cross_entropy
from w2s_fast.ops.reference import Own, cross_entropy_reference, cross_entropy_sample
from w2s_fast.testing import device

FP32, BF16, FP64 = torch.float32, torch.bfloat16, torch.float64


D = 16


# Budgets in MiB for 17 classes: all rows at once, and chunks of a few rows.
WHOLE, CHUNKS = 64.0, 3 * 17 * 4 / 2**20


def sample(kind: str, n: int = 8, v: int = 17, dtype: torch.dtype = FP32, **kw: Any) -> dict:
    """A call whose logits lean towards the weak label, as a student's do."""
    call = cross_entropy_sample(n, v, dtype, device(), seed=n + v, kind=kind)
    g = torch.Generator().manual_seed(n)
    head = torch.randn(v, D, generator=g)
    # The hidden states that come nearest to the sample's logits.
    hidden = call.pop("logits").nan_to_num(0.0).float() @ torch.linalg.pinv(head).T
    call["hidden"], call["head"] = hidden.to(dtype), head.to(dtype)
    call["bias"] = torch.randn(v, generator=g).to(dtype)
    return call | kw


def unit_mass(call: dict[str, Any]) -> dict[str, Any]:
    """The same with top-k probabilities that sum to 1, as a rank-1 fix-up needs."""
    w = call["weak"]
    if isinstance(w, SparseTargets):
        probs = torch.where(w.ids >= 0, w.probs, 0.0)
        mass = probs.sum(1, keepdim=True)
        call["weak"] = SparseTargets(w.ids, probs / mass.clamp_min(1e-6))
        call["weight"] = torch.where(mass[:, 0] > 0, call["weight"], 0.0)
    return call


PARTS = ("hidden", "head", "bias", "weight")


def run(backend: str, call: dict[str, Any], upstream: float = 1.0) -> tuple[Any, dict[str, Tensor]]:
    call = dict(call)
    leaves = {
        n: call.pop(n).detach().clone().requires_grad_() for n in PARTS if call.get(n) is not None
    }
    x = {k: leaves[k] for k in ("hidden", "head")}
    rest = {k: v for k, v in leaves.items() if k not in x}
    with use_backend(backend):
        loss, stats = linear_cross_entropy(
            *x.values(), call.pop("weak"), **rest, return_stats=True, **call
        )
        (loss * upstream).sum().backward()
    return (loss, stats), {k: v.grad for k, v in leaves.items()}


def oracle(call: dict[str, Any], stats: Any, dtype: torch.dtype, upstream: float) -> tuple:
    """Loss and gradients from full logits, sharing the gate that the op decided."""
    options = ("memory_mib", "fp32_head_gradient", "aux", "threshold")
    call = {k: v for k, v in call.items() if k not in options}
    coefficient = stats.coefficient.double().nan_to_num(0.0)
    own = Own(coefficient, stats.hard_class, stats.max_prob, torch.tensor(0.0))
    leaves = {}
    for name in PARTS:
        if call.get(name) is not None:
            wide = torch.promote_types(dtype, FP32) if name == "weight" else dtype
            leaves[name] = call.pop(name).detach().to(wide, copy=True).requires_grad_()
    wide = torch.promote_types(dtype, FP32)
    z = torch.nn.functional.linear(leaves["hidden"], leaves["head"], leaves.get("bias"))
    call.setdefault("reduction", "mean")
    loss = cross_entropy_reference(
        z.to(wide), call.pop("weak"), weight=leaves.get("weight"), own=own, **call
    )
    (loss * upstream).sum().backward()
    return loss, {k: v.grad for k, v in leaves.items()}
