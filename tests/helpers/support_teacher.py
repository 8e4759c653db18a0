"""The call behind the support matrix of teachers that are sums of heads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from helpers.support_calls import (
    N,
    compare,
    head_parts,
    normal,
    options_of,
    same_compiled,
    shown_buffer,
    twice,
)
from tools.support_matrix.table import Option
from w2s_fast import TeacherHead
from w2s_fast.ops.fused_linear.cross_entropy import linear_cross_entropy
from w2s_fast.ops.fused_linear.teacher.reference import teacher_reference
from w2s_fast.ops.reference import Own

_NOT_OF_THE_TRUTH = ("memory_mib", "aux", "threshold", "main_grad")


def teacher_heads(backend: str, dtype: torch.dtype, option: Option) -> None:
    parts = head_parts(option, dtype)
    if option.call.get("weight"):
        parts["weight"] = torch.tensor([0.5, 0.0, 2.0, 1.0, 1.5])
    if option.call.get("learned"):
        parts["scale"] = torch.tensor(0.7).to(dtype)
    v = option.call.get("vocabulary", 17)
    states, head = (normal(*s, seed=i) for i, s in ((5, (N, 6)), (6, (v, 6))))
    other = normal(N, 4, seed=7), normal(v, 4, seed=8), normal(v, seed=9)
    # Rows, unless the option is a reduction: in 16 bits a mean of five is exact by luck.
    usual = "mean" if option.call.get("compiled") else "none"
    kw = {"reduction": usual} | options_of(option, "teacher", "learned", "vocabulary")
    gate: list[Own] = []

    def terms(scale: Any, dtype: torch.dtype) -> list[TeacherHead]:
        first = TeacherHead(scale, states.to(dtype), head.to(dtype))
        return [first, TeacherHead(-0.3, *(t.to(dtype) for t in other), softcap=5.0)]

    def ours(x: dict[str, Tensor]) -> tuple[Tensor, ...]:
        x = dict(x)
        data, scale = (x.pop("hidden"), x.pop("head")), x.pop("scale", 1.3)
        teacher = terms(scale, data[0].dtype)
        more = kw | ({"main_grad": shown_buffer(*data)} if kw.get("main_grad") else {})
        loss, s = linear_cross_entropy(*data, teacher=teacher, return_stats=True, **x, **more)
        at = torch.zeros(())
        gate.append(Own(s.coefficient.double().nan_to_num(0.0), s.hard_class, s.max_prob, at))
        return (loss,)

    def truth(x: dict[str, Tensor]) -> tuple[Tensor, ...]:
        x = dict(x)
        scale, dtype = x.pop("scale", 1.3), x["hidden"].dtype
        known = {k: w for k, w in kw.items() if k not in _NOT_OF_THE_TRUTH}
        return (teacher_reference(**x, teacher=terms(scale, dtype), own=gate[0], **known),)

    if option.call.get("compiled"):
        same_compiled(backend, lambda h: ours(parts | {"hidden": h})[0], parts["hidden"])
    elif option.call.get("twice"):
        twice(backend, lambda h: ours(parts | {"hidden": h})[0], parts["hidden"])
    else:
        compare(backend, ours, truth, parts, dtype)
