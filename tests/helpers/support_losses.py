"""Calls behind the support matrix of the losses, and ``DRIVERS``: one for each entry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from helpers.support_calls import (
    FP32,
    FP64,
    N,
    compare,
    cross_entropy,
    head_parts,
    linear,
    linear_logprobs,
    logprob,
    normal,
    quantiles,
)
from helpers.support_info_nce import info_nce_cell
from helpers.support_teacher import teacher_heads
from tools.support_matrix.table import Option
from w2s_fast.losses.distillation import DISTILLATIONS
from w2s_fast.losses.policy import POLICY_LOSSES, make_policy_loss
from w2s_fast.losses.preference import PREFERENCES, Answers
from w2s_fast.ops.pack_topk import pack_topk
from w2s_fast.testing import (
    FORWARD,
    assert_within_budget,
)


# Losses on top of the ops.
def distillation(backend: str, dtype: torch.dtype, option: Option) -> None:
    how = dict(option.call)
    names = [how.pop("only")] if "only" in how else list(DISTILLATIONS)
    t, softcap = how.get("temperature", 1.0), how.get("softcap", 0.0)
    # In fp64 the teacher is, too: what an fp32 teacher rounds off its residual is not the loss's.
    dense = normal(N, 11, seed=6).to(FP64 if dtype == FP64 else FP32).mul(2).softmax(1)
    teacher = pack_topk(dense, 4, probs=True)
    weight = torch.tensor([1.0, 0.5, 0.0, 2.0, 1.0]) if how.get("weight") else torch.ones(N)
    parts = {"logits": normal(N, 11, seed=7).mul(2).to(dtype)}
    if how.get("linear"):
        parts = head_parts(option, dtype, 11)
    for name in names:
        loss = DISTILLATIONS[name](temperature=t, rescale=bool(how.get("rescale")))

        def ours(x: dict[str, Tensor], loss: Any = loss) -> tuple[Tensor, ...]:
            known: dict[str, Any] = {"weight": weight} if how.get("weight") else {}
            f = loss.linear if how.get("linear") else loss
            data = dense if how.get("dense") else teacher
            rest = {k: v for k, v in x.items() if k == "bias"}
            first = [v for k, v in x.items() if k != "bias"]
            return (f(*first, data, softcap=softcap, **known, **rest).loss_sum,)

        def truth(x: dict[str, Tensor], name: str = name) -> tuple[Tensor, ...]:
            if "logits" in x:
                z = x["logits"]
            else:
                z = torch.nn.functional.linear(x["hidden"], x["head"], x.get("bias"))
            z = z.to(torch.promote_types(z.dtype, FP32))
            z = softcap * torch.tanh(z / softcap) if softcap else z
            p, q = (z / t).softmax(1), dense.to(z.dtype)
            if not how.get("dense"):
                p, q = (_outcomes(y, teacher.ids) for y in (p, q))
            rows = DIVERGENCES[name](q, p)
            return ((rows * weight.to(z.dtype)).sum() * (t * t if how.get("rescale") else 1),)

        compare(backend, ours, truth, parts, dtype)


def _outcomes(p: Tensor, ids: Tensor) -> Tensor:
    return torch.cat([p.gather(1, ids), p.scatter(1, ids, 0.0).sum(1, keepdim=True)], 1)


def _kl(q: Tensor, p: Tensor) -> Tensor:
    return (q * (q / p).log()).sum(1)


DIVERGENCES = {
    "forward_kl": _kl,
    "reverse_kl": lambda q, p: _kl(p, q),
    "jsd": lambda q, p: 0.5 * _kl(q, (p + q) / 2) + 0.5 * _kl(p, (p + q) / 2),
}


def preference(backend: str, dtype: torch.dtype, option: Option) -> None:
    """Run each loss in each dtype; losses/test_preference.py compares them with the papers."""
    q = torch.tensor([1.0, 0.2, 0.7, 0.5]) if option.call.get("q") else 1.0
    weight = torch.tensor([1.0, 0.0, 2.0, 0.5]) if option.call.get("weight") else None
    for name, loss in PREFERENCES.items():
        results = []
        for d in (dtype, FP64):
            a, b = (
                Answers(
                    (-normal(4, seed=s).abs() - 0.1).to(dtype).to(d).requires_grad_(),
                    (-normal(4, seed=s + 1).abs() - 0.1).to(dtype).to(d),
                    torch.tensor([1, 2, 3, 1]),
                    normal(4, seed=s + 2).to(dtype).to(d),
                )
                for s in (1, 3)
            )
            more = {"baseline": torch.tensor(0.1)} if name == "kto" else {}
            out = loss()(a, b, q, weight=weight, **more)
            out.loss_sum.backward()
            results.append((out.loss_sum, a.logp.grad, b.logp.grad))
        for actual, exact in zip(*results, strict=True):
            assert_within_budget(actual, exact, exact.to(actual.dtype), FORWARD, name)


def policy(backend: str, dtype: torch.dtype, option: Option) -> None:
    """Run each loss in each dtype; losses/test_policy.py compares them with the papers."""
    given = {name: normal(3, 4, seed=i).to(dtype) for i, name in enumerate(option.call)}
    if "weight" in given:
        given["weight"] = given["weight"].abs()
    if "mask" in given:
        given["mask"] = given["mask"] > 0
    fields = {"reference": "kl_coef=0.3", "entropy": "entropy_coef=0.2"}
    terms = [term for name, term in fields.items() if name in given]
    for name in POLICY_LOSSES:
        more = [*terms, *(["max_length=4"] if name == "dr_grpo" else [])]
        loss, results = make_policy_loss(f"{name}:{','.join(more)}"), []
        for d in (dtype, FP64):
            logp = normal(3, 4, seed=7).to(dtype).to(d).requires_grad_()
            x = {k: v if v.dtype == torch.bool else v.to(d) for k, v in given.items()}
            out = loss(logp, normal(3, 4, seed=8).to(dtype).to(d), **x)
            results.append((out.loss_sum, *torch.autograd.grad(out.loss_sum, logp)))
        for actual, exact in zip(*results, strict=True):
            assert_within_budget(actual, exact, exact.to(dtype), FORWARD, name)


DRIVERS: dict[str, Callable[[str, torch.dtype, Option], None]] = {
    "cross_entropy": cross_entropy,
    "linear_cross_entropy": linear,
    "teacher": teacher_heads,
    "topk_logprob": logprob,
    "linear_topk_logprob": linear_logprobs,
    "info_nce": info_nce_cell,
    "quantile": quantiles,
    "distillation": distillation,
    "preference": preference,
    "policy": policy,
}
