"""Calls of ``info_nce`` for its tests, and what they return."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from w2s_fast.ops.info_nce.reference import info_nce_sample
from w2s_fast.testing import BACKWARD, FORWARD, device


def sample(n: int, m: int, dtype: torch.dtype, **options: Any) -> dict[str, Any]:
    if options.get("negative_mask") is True:
        g = torch.Generator().manual_seed(1)
        options["negative_mask"] = (torch.rand(n, m, generator=g) < 0.7).to(device())
    return info_nce_sample(n, m, dtype, device(), n + m, **options)


Results = list[tuple[str, Tensor, float]]


def results(f: Any, call: dict[str, Any], dtype: torch.dtype) -> Results:
    """Loss and gradients of a call whose embeddings are converted to ``dtype``."""
    leaves = {
        k: call[k].clone().to(dtype).detach().requires_grad_() for k in ("queries", "documents")
    }
    if call.get("weight") is not None:
        wide = torch.promote_types(dtype, torch.float32)
        leaves["weight"] = call["weight"].clone().to(wide).detach().requires_grad_()
    loss = f(**{**call, **leaves})
    (loss * torch.arange(1, loss.numel() + 1, device=loss.device).view(loss.shape)).sum().backward()
    grads = [(k, t.grad, BACKWARD) for k, t in leaves.items() if t.grad is not None]
    return [("loss", loss.detach(), FORWARD), *grads]
