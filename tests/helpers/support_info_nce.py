"""How ``info_nce`` is called for one cell of docs/support.md, and what it is compared with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from helpers.support_calls import FP32, N, compare, normal, same_compiled, twice
from tools.support_matrix.table import Option
from w2s_fast.ops.info_nce.api import info_nce
from w2s_fast.ops.info_nce.reference import info_nce_reference

_DOCUMENTS = N + 4


def info_nce_cell(backend: str, dtype: torch.dtype, option: Option) -> None:
    how = dict(option.call)
    m = N if how.get("symmetric") else _DOCUMENTS
    parts = {"queries": normal(N, 24, seed=1), "documents": normal(m, 24, seed=2)}
    parts = {name: (t / 24**0.5).to(dtype) for name, t in parts.items()}
    frozen, positives = how.pop("frozen", None), how.pop("positives", False)
    given: dict[str, Any] = {"temperature": how.pop("temperature", 0.1)}
    if positives:
        given["positives"] = torch.tensor([3, 0, 8, 8, -100])
    if how.pop("groups", False):
        groups = torch.tensor([0, 1, 1, -1, 2, 0, 1, -1, 2])
        given |= {"query_groups": groups[:N], "document_groups": groups}
    if how.pop("negative_mask", False):
        given["negative_mask"] = normal(N, m, seed=3) > -0.5
    if how.pop("weight", False):
        parts["weight"] = torch.tensor([0.5, 0.0, 2.0, 1.0, 1.5])
    compiled, again = how.pop("compiled", False), how.pop("twice", False)
    stats, memory = how.pop("return_stats", False), how.pop("memory_mib", 8.0)
    given |= how

    def ours(x: dict[str, Tensor]) -> tuple[Tensor, ...]:
        if not stats:
            return (info_nce(**x, **given, memory_mib=memory),)
        loss, record = info_nce(**x, **given, return_stats=True)
        return loss, record.lse - 2 * record.positive + record.hardest

    def truth(x: dict[str, Tensor]) -> tuple[Tensor, ...]:
        loss = info_nce_reference(**x, **given)
        wide = torch.promote_types(loss.dtype, FP32)
        return (loss.to(wide), _statistics(x).to(wide)) if stats else (loss.to(wide),)

    def _statistics(x: dict[str, Tensor]) -> Tensor:
        s = x["queries"].detach() @ x["documents"].detach().t()
        others = s.clone().fill_diagonal_(-torch.inf).amax(1)
        return (s / given["temperature"]).logsumexp(1) - 2 * s.diagonal() + others

    if compiled:
        same_compiled(backend, lambda q: ours(parts | {"queries": q})[0], parts["queries"])
    elif again:
        twice(backend, lambda q: ours(parts | {"queries": q})[0], parts["queries"])
    else:
        compare(backend, ours, truth, parts, dtype, frozen)
