"""Names and sizes of the GPU measurements; this module needs neither torch nor a GPU."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Case:
    """Providers that are timed together.

    Attributes:
        loss: a case of the op.
        d: hidden size of a head.
        target_ms: what we aim for on an H200; 0 for no target.
    """

    op: str
    loss: str
    dtype: str
    n: int
    v: int
    d: int
    providers: tuple[str, ...]
    target_ms: float = 0.0


@dataclass(frozen=True)
class Group:
    """Cases that share a process and a time limit."""

    cases: tuple[Case, ...]
    seconds: int


_OWN = ("ours", "ours_triton", "eager", "compile")
_HARD = (*_OWN, "liger", "quack", "flash_attn")
_HEAD = ("ours", "ours_triton", "eager", "compile", "torch_lce", "liger", "cce", "quack")
_LOSSES = {"hard": _HARD, "dense": _OWN, "logconf_hard": _OWN}


def _dense(dtype: str, v: int) -> list[Case]:
    return [
        Case("cross_entropy", loss, dtype, 8192, v, 0, providers)
        for loss, providers in _LOSSES.items()
    ]


def _targets() -> dict[str, Group]:
    """Return the measurements that have a target, the most informative first."""
    rows = {"hard": 1.0, "dense": 1.5, "logconf_hard": 1.1}
    dense = [replace(c, target_ms=rows[c.loss]) for c in _dense("bf16", 128256)]
    shape = ("bf16", 4096, 128256, 4096)
    head = Case("linear", "hard", *shape, _HEAD, target_ms=18.3)
    topk = Case("linear", "logconf_topk", *shape, _OWN, target_ms=18.3)
    small = Case("two_class", "logconf", "fp32", 32, 2, 0, _OWN, target_ms=0.01)
    return {
        "targets_dense": Group(tuple(dense), 38),
        "targets_two_class": Group((small,), 20),
        "targets_linear": Group((head, topk), 45),
    }


def _groups() -> dict[str, Group]:
    others = [("fp32", 128256), ("bf16", 50257), ("fp32", 50257)]
    groups = {f"dense_{v}_{dtype}": Group(tuple(_dense(dtype, v)), 30) for dtype, v in others}
    head = Case("linear", "hard", "bf16", 8192, 50257, 1024, _HEAD)
    select = Case("quantile", "median", "fp32", 1 << 25, 1, 0, ("ours", "sort", "kthvalue"))
    return (
        _targets()
        | {"linear_50257_bf16": Group((head,), 25), "quantile": Group((select,), 12)}
        | groups
    )


CASES = _groups()
