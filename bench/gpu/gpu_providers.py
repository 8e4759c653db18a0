"""Inputs and providers of the GPU measurements: ours, PyTorch's, and kernels of other libraries.

Other libraries are imported by their current names and called as documented; one that is not
installed, or has changed its names, is skipped with a row that has the reason.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from bench.cases import cross_entropy, linear
from bench.cases.linear import Unavailable
from bench.gpu.gpu_cases import Case

INPLACE = ("liger",)  # these overwrite the logits with the gradient
Loss = Callable[..., Tensor]


def dense_losses(
    case: Case, x: cross_entropy.Inputs, names: Sequence[str], emit: Callable[..., None]
) -> dict[str, Loss]:
    """Return provider -> loss of the logits; emit a row for each that cannot run."""
    table = dict(cross_entropy.losses(case.loss, x, names))
    if "ours_triton" in names:
        table["ours_triton"] = table["ours"]
    return table | _available(_DENSE, x.ids, case, names, emit)


def linear_losses(
    case: Case, x: linear.Inputs, names: Sequence[str], emit: Callable[..., None]
) -> dict[str, Loss]:
    """Return provider -> loss of (hidden, head); emit a row for each that cannot run."""
    portable = [name for name in names if name not in (*_LINEAR, "ours_triton")]
    table, skipped = linear.losses(case.loss, x, portable)
    for name, why in skipped.items():
        _skip(emit, case, name, why)
    if "ours_triton" in names:
        table["ours_triton"] = table["ours"]
    return dict(table) | _available(_LINEAR, x.ids, case, names, emit)


def _available(
    makers: dict[str, Callable[[Tensor], Loss]],
    ids: Tensor,
    case: Case,
    names: Sequence[str],
    emit: Callable[..., None],
) -> dict[str, Loss]:
    available = {}
    for name in [n for n in names if n in makers]:
        try:
            available[name] = makers[name](ids)
        except Unavailable as e:
            _skip(emit, case, name, str(e))
    return available


def _skip(emit: Callable[..., None], case: Case, provider: str, why: str) -> None:
    emit(kind="skipped", op=case.op, case=case.loss, dtype=case.dtype, n=case.n, v=case.v,
        provider=provider, why=why, **({"d": case.d} if case.d else {}))  # fmt: skip


def _get(module: str, name: str) -> Any:
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as e:  # a library built for another torch may raise anything on import
        raise Unavailable(f"{module}.{name}: {type(e).__name__}: {e}".splitlines()[0]) from e


def _liger(ids: Tensor) -> Loss:
    return partial(_get("liger_kernel.transformers.functional", "liger_cross_entropy"), target=ids)


def _quack(ids: Tensor) -> Loss:
    return partial(_get("quack.cross_entropy", "cross_entropy"), target=ids, reduction="mean")


def _flash(ids: Tensor) -> Loss:
    call = _get("flash_attn.losses.cross_entropy", "CrossEntropyLoss")()
    return lambda logits: call(logits, ids)


def _cce(ids: Tensor) -> Loss:
    call = _get("cut_cross_entropy", "linear_cross_entropy")
    return lambda hidden, head: call(hidden, head, ids)


def _liger_head(ids: Tensor) -> Loss:
    name = "liger_fused_linear_cross_entropy"
    call = _get("liger_kernel.transformers.functional", name)
    return lambda hidden, head: call(hidden, head, ids)


def _quack_head(ids: Tensor) -> Loss:
    call = _get("quack.linear_cross_entropy", "chunked_linear_cross_entropy")
    return lambda hidden, head: call(hidden, head, ids)


_DENSE: dict[str, Callable[[Tensor], Loss]] = {
    "liger": _liger, "quack": _quack, "flash_attn": _flash,
}  # fmt: skip
_LINEAR: dict[str, Callable[[Tensor], Loss]] = {
    "liger": _liger_head, "quack": _quack_head, "cce": _cce,
}  # fmt: skip
