"""Check the terms of a teacher against the student's call, before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from w2s_fast.errors import W2SError, nearest
from w2s_fast.ops.arguments import check_number
from w2s_fast.ops.dtypes import LOGIT_DTYPES, accumulator
from w2s_fast.ops.fused_linear.inputs import cast_for_autocast
from w2s_fast.ops.fused_linear.teacher.divergences import DIVERGENCES
from w2s_fast.ops.fused_linear.teacher.heads import CROSS_ENTROPY, Teacher, TeacherHead
from w2s_fast.ops.logprob.api import check_scale
from w2s_fast.ops.transforms import active, values
from w2s_fast.ops.vocab_parallel.dtensor import has_dtensor

_TERM = "(scale, hidden, head), w2s_fast.TeacherHead or a tuple in its order"


def make_teacher(
    terms: Sequence[TeacherHead | tuple[Any, ...]],
    n: int,
    v: int,
    like: Tensor,
    temperature: float = 1.0,
    divergence: str = CROSS_ENTROPY,
    beta: float = 0.5,
) -> Teacher:
    """Return the checked teacher of a call with n rows and V classes.

    Args:
        terms: ``TeacherHead`` or tuples in its order.
        like: the student's hidden states, for device and dtype.
        temperature, divergence, beta: see ``linear_cross_entropy``.

    Raises:
        W2SError: for a term that does not fit; the message names it.
    """
    check_options(temperature, divergence, beta)
    if isinstance(terms, TeacherHead) or not isinstance(terms, list | tuple) or not terms:
        shown = "an empty list" if terms in ([], ()) else type(terms).__name__
        raise W2SError(f"teacher is {shown}; expected a list of at least one term {_TERM}")
    parts = [_term(f"teacher[{m}]", t, n, v, like) for m, t in enumerate(terms)]
    acc = accumulator(like.dtype)
    scales = [_as_scale(t.scale, acc, like.device) for t in parts]
    return Teacher(
        torch.stack(scales),
        [t.hidden for t in parts],
        [t.head for t in parts],
        [t.bias for t in parts],
        [float(t.softcap) for t in parts],
        [_is_learned(t.scale) for t in parts],
        float(temperature), divergence, float(beta),
    )  # fmt: skip


def check_target(
    weak: Any,
    teacher: Any,
    temperature: float = 1.0,
    divergence: str = CROSS_ENTROPY,
    smoothing: float = 0.0,
) -> None:
    """Raise ``W2SError`` unless one target is given, with options that it has."""
    if (weak is None) == (teacher is None):
        both = "both" if weak is not None else "neither"
        raise W2SError(f"weak and teacher: {both} given; expected exactly one of them")
    if teacher is None and (temperature != 1.0 or divergence != CROSS_ENTROPY):
        raise W2SError(
            f"temperature {temperature} and divergence {divergence!r} are of a teacher; expected "
            "teacher=[...] with them. w2s_fast.losses.distillation has divergences of top-k labels"
        )
    if divergence != CROSS_ENTROPY and smoothing:
        raise W2SError(
            f"smoothing is {smoothing} with divergence {divergence!r}; expected 0, label smoothing "
            "is for the cross-entropy"
        )


def check_options(temperature: float, divergence: str, beta: float) -> None:
    """Raise ``W2SError`` for options of a teacher that do not exist or are out of range."""
    check_scale(temperature, 0.0)
    if divergence not in DIVERGENCES:
        raise W2SError(
            f"divergence is {divergence!r}; expected one of {tuple(DIVERGENCES)}"
            f"{nearest(str(divergence), DIVERGENCES)}"
        )
    check_number("beta", beta)
    if not 0.0 < beta < 1.0:
        raise W2SError(f"beta is {beta}; expected a weight of the teacher in (0, 1), for 'jsd'")


def _term(name: str, term: Any, n: int, v: int, like: Tensor) -> TeacherHead:
    if not isinstance(term, tuple) or not 3 <= len(term) <= len(TeacherHead._fields):
        size = f" of {len(term)} values" if isinstance(term, tuple) else ""
        raise W2SError(f"{name} is {type(term).__name__}{size}; expected {_TERM}")
    scale, hidden, head, bias, softcap = TeacherHead(*term)
    for part, t in (("hidden", hidden), ("head", head), ("bias", bias)):
        if not isinstance(t, Tensor) and not (part == "bias" and t is None):
            raise W2SError(f"{name}.{part} is {type(t).__name__}; expected a tensor")
        if has_dtensor(t):
            raise W2SError(
                f"{name}.{part} is a DTensor; expected a plain tensor, use .full_tensor()"
            )
    _check_scale(f"{name}.scale", scale)
    check_number(f"{name}.softcap", softcap)
    if not 0 <= softcap < math.inf:
        raise W2SError(f"{name}.softcap is {softcap}; expected a number in [0, inf), 0 for none")
    hidden = _rows(name, hidden.detach(), n)
    hidden, head, bias = cast_for_autocast(
        hidden, head.detach(), None if bias is None else bias.detach()
    )
    _check_shapes(name, hidden, head, bias, v)
    for part, t in (("hidden", hidden), ("head", head), ("bias", bias)):
        if t is not None and t.device != like.device:
            raise W2SError(
                f"{name}.{part} is on {t.device}, the student's hidden states on {like.device}; "
                "move one of them"
            )
    return TeacherHead(scale, hidden, head, bias, softcap)


def _check_scale(name: str, scale: Any) -> None:
    if isinstance(scale, Tensor):
        if scale.dim() or not scale.is_floating_point():
            raise W2SError(
                f"{name} has shape {tuple(scale.shape)} and dtype {scale.dtype}; expected a number "
                "or a 0-d floating point tensor"
            )
        if scale.device.type != "cpu" or torch.compiler.is_compiling():
            return
        numbers = values(scale).detach().flatten().tolist()  # several under vmap
    else:
        check_number(name, scale)
        numbers = [float(scale)]
    for number in numbers:
        if not math.isfinite(number):
            raise W2SError(f"{name} is {number}; expected a finite coefficient")


def _rows(name: str, hidden: Tensor, n: int) -> Tensor:
    if hidden.dim() in (2, 3):
        hidden = hidden.flatten(0, -2)
        if hidden.shape[0] == n:
            return hidden
    raise W2SError(
        f"{name}.hidden has shape {tuple(hidden.shape)}; expected (N, D) or (B, T, D) with {n} "
        "rows, one for each labelled row of the student"
    )


def _check_shapes(name: str, hidden: Tensor, head: Tensor, bias: Tensor | None, v: int) -> None:
    if hidden.dtype not in LOGIT_DTYPES:
        raise W2SError(f"{name}.hidden has dtype {hidden.dtype}; expected fp32, bf16, fp16 or fp64")
    if head.dim() != 2 or head.shape[1] != hidden.shape[1]:
        transposed = head.dim() == 2 and head.shape[0] == hidden.shape[1]
        raise W2SError(
            f"{name}.head has shape {tuple(head.shape)}; expected (V, D) with D = "
            f"{hidden.shape[1]}{'; is it transposed?' if transposed else ''}"
        )
    if head.shape[0] != v:
        raise W2SError(
            f"{name}.head has {head.shape[0]} classes, the student's head {v}; expected one "
            "vocabulary, leave out the rows that pad the larger head"
        )
    if bias is not None and tuple(bias.shape) != (v,):
        raise W2SError(f"{name}.bias has shape {tuple(bias.shape)}; expected ({v},)")
    for part, t in (("head", head), ("bias", bias)):
        if t is not None and t.dtype != hidden.dtype:
            raise W2SError(
                f"{name}.{part} is {t.dtype}, its hidden states {hidden.dtype}; expected one "
                "dtype, convert one of them"
            )


def _as_scale(scale: float | Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    if isinstance(scale, Tensor):
        return scale.to(device, dtype)
    return torch.full((), float(scale), dtype=dtype, device=device)


def _is_learned(scale: float | Tensor) -> bool:
    # Inside a transform, whether a level follows the scale is not visible here.
    return (
        isinstance(scale, Tensor) and torch.is_grad_enabled() and (scale.requires_grad or active())
    )
