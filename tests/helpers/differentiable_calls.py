"""``CALLS``: one differentiable input of one public call in each row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import w2s_fast
from w2s_fast import SparseTargets, TeacherHead
from w2s_fast.losses import LOSSES, make_loss
from w2s_fast.losses.distillation import DISTILLATIONS, make_distillation
from w2s_fast.losses.policy import POLICY_LOSSES, make_policy_loss
from w2s_fast.losses.preference import PREFERENCES, Answers, make_preference
from w2s_fast.ops.fused_linear.teacher.reference import divergence_of
from w2s_fast.ops.lazy_logits import Projected
from w2s_fast.ops.weak_loss import weak_loss

N, D, V = 4, 3, 5
G = torch.Generator().manual_seed(0)
Z, H, W, B, U = (torch.randn(s, generator=G) for s in ((N, V), (N, D), (V, D), (V,), (N,)))
Y = torch.tensor([1, 0, 4, 2])
Q = torch.rand(N, V, generator=G).softmax(1)
SPARSE = SparseTargets(torch.tensor([[0, 2]] * N), torch.full((N, 2), 0.3), torch.full((N,), 0.4))
POSITIVE = U.abs() + 0.5
PAIR = {"reference": U.roll(1), "length": torch.full((N,), 3), "target": U.roll(3)}
ce, linear = w2s_fast.cross_entropy, w2s_fast.linear_cross_entropy
Call = Callable[[Tensor], Tensor]
# name -> (call, its differentiable input, the same in plain torch or None)
CALLS: dict[str, tuple[Call, Tensor, Call | None]] = {}
TEACHER_ROWS: dict[str, tuple[Call, Tensor, Call | None]] = {}  # no batched upstream gradients
TWO = (Z[:, :2].contiguous(), Q[:, :2].softmax(1))


def logp(z: Tensor) -> Tensor:
    """Of the labels Y."""
    return z.log_softmax(1).gather(1, Y[:, None])[:, 0]


def _weighted(z: Tensor, w: Tensor, reduction: str) -> Tensor:
    rows = -logp(z) * w
    return rows if reduction == "none" else rows.sum() / (w.sum() if reduction == "mean" else 1)


def _add_cross_entropy() -> None:
    for r in ("mean", "sum", "none"):
        kw: dict[str, Any] = {"reduction": r}
        CALLS.update({
            f"cross_entropy {r} logits": (
                lambda z, kw=kw: ce(z, Y, **kw), Z, lambda z, kw=kw: F.cross_entropy(z, Y, **kw)),
            f"cross_entropy {r} two": (lambda z, kw=kw: ce(z, TWO[1], aux=0.5, **kw), TWO[0], None),
            f"cross_entropy {r} weight": (
                lambda w, kw=kw: ce(Z, Y, weight=w, **kw), POSITIVE,
                lambda w, r=r: _weighted(Z, w, r)),
            f"weak_loss {r} logits": (
                lambda z, kw=kw: weak_loss(z, SPARSE, z_loss=0.1, **kw).loss, Z, None),
            f"weak_loss {r} projected": (
                lambda h, kw=kw: weak_loss(Projected(h, W, B), Y, **kw).loss, H, None),
            f"linear_cross_entropy {r} hidden": (
                lambda h, kw=kw: linear(h, W, Y, bias=B, **kw), H,
                lambda h, kw=kw: F.cross_entropy(h @ W.T + B, Y, **kw)),
            f"linear_cross_entropy {r} head": (
                lambda w, kw=kw: linear(H, w, Y, bias=B, **kw), W,
                lambda w, kw=kw: F.cross_entropy(H @ w.T + B, Y, **kw)),
            f"linear_cross_entropy {r} bias": (
                lambda b, kw=kw: linear(H, W, Y, bias=b, **kw), B,
                lambda b, kw=kw: F.cross_entropy(H @ W.T + b, Y, **kw)),
            f"linear_cross_entropy {r} weight": (
                lambda w, kw=kw: linear(H, W, Y, weight=w, **kw), POSITIVE,
                lambda w, r=r: _weighted(H @ W.T, w, r)),
        })  # fmt: skip


def _add_teacher() -> None:
    """The target of two heads, one of which has a differentiable scale."""
    one, two = (H.roll(1, 0), W.roll(2, 0)), (H.roll(2, 0), W.roll(1, 0))
    scale = torch.tensor(0.7)

    def plain(h: Tensor, w: Tensor, a: Tensor, reduction: str, name: str) -> Tensor:
        log_q = (1.5 * one[0] @ one[1].T + a * two[0] @ two[1].T).log_softmax(1)
        log_p = (h @ w.T).log_softmax(1)
        rows = divergence_of(name, log_p, log_q)
        return rows if reduction == "none" else getattr(rows, reduction)()

    for r, name in (("mean", "cross_entropy"), ("sum", "jsd"), ("none", "reverse_kl")):
        calls = CALLS if r != "none" else TEACHER_ROWS

        def ours(h: Tensor, w: Tensor, a: Tensor, r: str = r, name: str = name) -> Tensor:
            teacher = [TeacherHead(1.5, *one), TeacherHead(a, *two)]
            return linear(h, w, teacher=teacher, divergence=name, reduction=r)

        for part, x, at in (("hidden", H, 0), ("head", W, 1), ("scale", scale, 2)):
            others = [H, W, scale]

            def call(x: Tensor, f: Any, at: int = at, others: Any = others) -> Tensor:
                return f(*others[:at], x, *others[at + 1 :])

            calls[f"linear_cross_entropy {r} teacher {part}"] = (
                lambda x, call=call, ours=ours: call(x, ours), x,
                lambda x, call=call, r=r, name=name: call(
                    x, lambda h, w, a: plain(h, w, a, r, name)
                ),
            )  # fmt: skip


def _add_logprob() -> None:
    ids, stats = Y[:, None], {"return_stats": "differentiable"}
    frozen = w2s_fast.LMHeadLoss(torch.nn.Linear(D, V)).requires_grad_(False)
    CALLS.update({
        "topk_logprob": (lambda z: w2s_fast.topk_logprob(z, ids)[0][:, 0], Z, logp),
        "linear_topk_logprob hidden": (
            lambda h: w2s_fast.linear_topk_logprob(h, W, ids)[0][:, 0], H, lambda h: logp(h @ W.T)),
        "linear_logprob hidden": (
            lambda h: w2s_fast.linear_logprob(h, W, Y), H, lambda h: logp(h @ W.T)),
        "linear_logprob head": (
            lambda w: w2s_fast.linear_logprob(H, w, Y), W, lambda w: logp(H @ w.T)),
        "LMHeadLoss": (
            lambda h: frozen(h, Y), H,
            lambda h: F.cross_entropy(F.linear(h, frozen.weight, frozen.bias), Y)),
        "topk_logprob statistics": (
            lambda z: _of(w2s_fast.topk_logprob(z, ids, **stats)[2]), Z, _statistics),
        "linear_topk_logprob statistics": (
            lambda w: _of(w2s_fast.linear_topk_logprob(H, w, ids, **stats)[2]), W,
            lambda w: _statistics(H @ w.T)),
        "linear_logprob statistics": (
            lambda h: _of(w2s_fast.linear_logprob(h, W, Y, **stats)[1]), H,
            lambda h: _statistics(h @ W.T)),
    })  # fmt: skip


def _add_info_nce() -> None:
    """Row i of H with row Y_i of W as its positive."""
    loss, z = w2s_fast.info_nce, {"positives": Y, "temperature": 0.5}
    for r in ("mean", "sum", "none"):
        kw: dict[str, Any] = {**z, "reduction": r}
        CALLS.update({
            f"info_nce {r} queries": (
                lambda h, kw=kw: loss(h, W, **kw), H,
                lambda h, r=r: F.cross_entropy(2 * h @ W.T, Y, reduction=r)),
            f"info_nce {r} documents": (
                lambda w, kw=kw: loss(H, w, **kw), W,
                lambda w, r=r: F.cross_entropy(2 * H @ w.T, Y, reduction=r)),
            f"info_nce {r} weight": (
                lambda w, kw=kw: loss(H, W, weight=w, **kw), POSITIVE,
                lambda w, r=r: _weighted(2 * H @ W.T, w, r)),
        })  # fmt: skip


def _add_mixing() -> None:
    k = W.repeat(N, 1, 1)  # (N, V, D)

    def plain(h: Tensor, k: Tensor) -> Tensor:
        share = (2 * (h[:, None] * k).sum(2)).softmax(1)
        return (share[:, :, None] * k).sum(1, keepdim=True)

    kw: dict[str, Any] = {"rule": "list", "temperature": 0.5}
    CALLS.update({
        "mix_hard_negatives queries": (
            lambda h: w2s_fast.mix_hard_negatives(h, k, **kw).square().sum((1, 2)), H,
            lambda h: plain(h, k).square().sum((1, 2))),
        "mix_hard_negatives negatives": (
            lambda k: w2s_fast.mix_hard_negatives(H, k, **kw).square().sum((1, 2)), k,
            lambda k: plain(H, k).square().sum((1, 2))),
    })  # fmt: skip


def _of(stats: Any) -> Tensor:
    """One number a row that every statistic enters."""
    return stats.lse - 2 * stats.max_prob + 3 * stats.entropy + stats.margin.square()


def _statistics(z: Tensor) -> Tensor:
    p, two = z.softmax(1), z.topk(2, 1)[0]
    entropy = torch.special.entr(p).sum(1)
    return z.logsumexp(1) - 2 * p.amax(1) + 3 * entropy + (two[:, 0] - two[:, 1]).square()


def _add_losses() -> None:
    for name in LOSSES:
        loss, two = make_loss(name), name == "logconf_eleuther"
        z, q = TWO if two else (Z, Q)
        CALLS[f"loss {name}"] = (
            lambda z, loss=loss, q=q: loss(z, q, step_frac=0.5, step=50,
                                           state=loss.init_state()).loss_sum, z, None,
        )  # fmt: skip
    for name in PREFERENCES:
        pref = make_preference(name)
        more = {"baseline": 0.1} if name == "kto" else {}
        CALLS[f"preference {name}"] = (
            lambda x, pref=pref, more=more: (
                pref(Answers(x, **PAIR), Answers(U.roll(2) - 3, **PAIR), 0.7, **more).loss_sum
            ),
            U - 3,
            None,
        )
    for name in POLICY_LOSSES:
        policy = make_policy_loss(f"{name}:max_length=1" if name == "dr_grpo" else name)
        # The weight of CISPO is a constant, which is 1 without an old policy.
        more = {} if name == "cispo" else {"old": U[:, None] - 3}
        CALLS[f"policy {name}"] = (
            lambda x, policy=policy, more=more: policy(x[:, None], U[:, None], **more).loss_sum,
            U - 3.1,
            None,
        )
    for name in DISTILLATIONS:
        kl = make_distillation(name)
        CALLS[f"distill {name}"] = (lambda z, kl=kl: kl(z, SPARSE).loss_sum, Z, None)
        CALLS[f"distill {name} linear"] = (
            lambda h, kl=kl: kl.linear(h, W, SPARSE).loss_sum, H, None
        )  # fmt: skip


_add_cross_entropy()
_add_teacher()
_add_logprob()
_add_info_nce()
_add_mixing()
_add_losses()
