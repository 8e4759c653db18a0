"""Names and sizes of the GPU measurements; this module needs neither torch nor a GPU."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """Providers that are timed together; ``loss`` is a case of the op, ``d`` the hidden size."""

    op: str
    loss: str
    dtype: str
    n: int
    v: int
    d: int
    providers: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """Cases that share a process and a time limit."""

    cases: tuple[Case, ...]
    seconds: int


_OWN = ("ours", "ours_triton", "eager", "compile")
_HARD = (*_OWN, "liger", "quack", "flash_attn")
_HEAD = ("ours", "ours_triton", "eager", "compile", "torch_lce", "liger", "cce", "quack")
_LOSSES = {"hard": _HARD, "dense": _OWN, "logconf_hard": _OWN}


def _groups() -> dict[str, Group]:
    groups = {}
    for v in (128256, 50257):
        for dtype in ("bf16", "fp32"):
            cases = [
                Case("cross_entropy", loss, dtype, 8192, v, 0, providers)
                for loss, providers in _LOSSES.items()
            ]
            groups[f"dense_{v}_{dtype}"] = Group(tuple(cases), 38)
    for n, d, v in ((4096, 4096, 128256), (8192, 1024, 50257)):
        case = Case("linear", "hard", "bf16", n, v, d, _HEAD)
        groups[f"linear_{v}_bf16"] = Group((case,), 30)
    select = Case("quantile", "median", "fp32", 1 << 25, 1, 0, ("ours", "sort", "kthvalue"))
    small = Case("two_class", "logconf", "fp32", 32, 2, 0, _OWN)
    return groups | {"quantile": Group((select,), 12), "two_class": Group((small,), 20)}


CASES = _groups()
