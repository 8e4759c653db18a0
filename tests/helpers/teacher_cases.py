"""Calls of the fused head with a teacher, and full logits in fp64 to compare them with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from w2s_fast import TeacherHead
from w2s_fast.ops import use_backend
from w2s_fast.ops.fused_linear.cross_entropy import linear_cross_entropy
from w2s_fast.ops.fused_linear.teacher.reference import teacher_reference
from w2s_fast.ops.reference import Own
from w2s_fast.testing import BACKWARD, FORWARD, assert_fp64, assert_within_budget

FP32, BF16, FP16, FP64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
N, D, V = 9, 8, 17
WHOLE = 64.0
CHUNKS = 4 * V * 4 / 2**20  # four rows of a target in fp32: three chunks
PARTS = ("hidden", "head", "bias", "weight")
OPTIONS = ("memory_mib", "fp32_head_gradient", "aux", "threshold")


def teacher_terms(
    dtype: torch.dtype = FP32, n: int = N, v: int = V, learned: bool = False
) -> list[TeacherHead]:
    """Two models of different widths, contrasted: the second has a bias and a soft-cap."""
    g = torch.Generator().manual_seed(n + v)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g).to(dtype)

    scales = [torch.tensor(s).requires_grad_(learned) for s in (1.4, -0.4)]
    return [
        TeacherHead(scales[0], normal(n, 6), normal(v, 6)),
        TeacherHead(scales[1], normal(n, 11), normal(v, 11), normal(v), 5.0),
    ]


def sample(
    dtype: torch.dtype = FP32, n: int = N, v: int = V, learned: bool = False, **kw: Any
) -> dict[str, Any]:
    """A call with a bias and row weights; row 1 has weight 0 and a NaN teacher."""
    g = torch.Generator().manual_seed(7 * n + v)
    call = {
        "hidden": torch.randn(n, D, generator=g).to(dtype),
        "head": torch.randn(v, D, generator=g).to(dtype),
        "bias": torch.randn(v, generator=g).to(dtype),
        "weight": 0.5 + torch.rand(n, generator=g),
        "teacher": teacher_terms(dtype, n, v, learned),
    }
    if n > 1:
        call["weight"][1] = 0.0
        call["teacher"][0].hidden[1] = float("nan")
    return call | kw


def run(
    backend: str, call: dict[str, Any], upstream: float | Tensor = 1.0
) -> tuple[Tensor, Any, dict[str, Tensor]]:
    """Return loss, statistics and gradients."""
    call, leaves = dict(call), {}
    for name in PARTS:
        if call.get(name) is not None:
            leaves[name] = call.pop(name).detach().clone().requires_grad_()
    teacher, scales = own_scales(call.pop("teacher"))
    with use_backend(backend):
        loss, stats = linear_cross_entropy(**leaves, teacher=teacher, return_stats=True, **call)
        loss.backward(torch.as_tensor(upstream, dtype=loss.dtype).expand_as(loss))
    return loss.detach(), stats, gradients(leaves, scales)


def gradients(leaves: dict[str, Tensor], scales: dict[str, Tensor]) -> dict[str, Tensor]:
    """All gradients; those of learned scales as one vector, whose budget is that of the largest."""
    grads = {k: t.grad for k, t in leaves.items()}
    assert all(t.grad is not None for t in (*leaves.values(), *scales.values()))
    if scales:
        grads["scales"] = torch.stack([t.grad for t in scales.values()])
    return grads


def oracle(
    call: dict[str, Any], stats: Any, dtype: torch.dtype, upstream: float | Tensor = 1.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients from full logits, sharing the gate that the op decided."""
    call = {k: t for k, t in call.items() if k not in OPTIONS}
    own = Own(
        stats.coefficient.double().nan_to_num(0.0), stats.hard_class, stats.max_prob,
        torch.tensor(0.0),
    )  # fmt: skip
    leaves = {}
    for name in PARTS:
        if call.get(name) is not None:
            wide = torch.promote_types(dtype, FP32) if name == "weight" else dtype
            leaves[name] = call.pop(name).detach().to(wide, copy=True).requires_grad_()
    teacher, scales = own_scales(call.pop("teacher"), dtype)
    loss = teacher_reference(**leaves, teacher=teacher, own=own, **call)
    loss.backward(torch.as_tensor(upstream, dtype=loss.dtype).expand_as(loss))
    return loss.detach(), gradients(leaves, scales)


def own_scales(
    teacher: list[TeacherHead], dtype: torch.dtype | None = None
) -> tuple[list[TeacherHead], dict[str, Tensor]]:
    """The teacher with leaves as learned scales, in ``dtype`` and without NaN if it is given."""
    terms, scales = [], {}
    for m, term in enumerate(teacher):
        scale = term.scale
        if isinstance(scale, Tensor):
            wide = scale.dtype if dtype is None else torch.promote_types(dtype, FP32)
            scale = scale.detach().to(wide, copy=True).requires_grad_(scale.requires_grad)
            if scale.requires_grad:
                scales[f"scale {m}"] = scale
        tensors = [term.hidden, term.head, term.bias]
        if dtype is not None:
            tensors = [None if t is None else t.to(dtype).nan_to_num(0.0) for t in tensors]
        terms.append(TeacherHead(scale, *tensors, term.softcap))
    return terms, scales


def check(backend: str, call: dict[str, Any], upstream: float | Tensor = 1.0) -> Any:
    """Compare loss and all gradients with fp64; return the statistics."""
    loss, stats, grads = run(backend, call, upstream)
    truth, exact = oracle(call, stats, FP64, upstream)
    dtype = call["hidden"].dtype
    if dtype == FP64:
        assert_fp64(loss, truth, "loss")
        for name, grad in grads.items():
            if name in ("weight", "scales"):
                assert_within_budget(grad, exact[name], exact[name], BACKWARD, name)
            else:
                assert_fp64(grad, exact[name], f"gradient of {name}")
        return stats
    eager, near = oracle(call, stats, dtype, upstream)
    assert_within_budget(loss, truth, eager, FORWARD, "loss")
    assert grads.keys() == exact.keys()
    for name, grad in grads.items():
        baseline = near[name].to(grad.dtype)
        assert_within_budget(grad, exact[name], baseline, BACKWARD, f"gradient of {name}")
    return stats
