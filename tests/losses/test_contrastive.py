"""Contrastive distillation and nested embeddings against plain PyTorch in fp64, and by hand."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from w2s_fast import W2SError, info_nce
from w2s_fast.losses.contrastive import contrastive_distillation, matryoshka


def _embeddings(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    shapes = {"queries": (7, 5), "documents": (11, 5), "teacher_queries": (7, 9),
              "teacher_documents": (11, 9)}  # fmt: skip
    return {name: torch.randn(s, generator=g, dtype=torch.float64).to(dtype)
            for name, s in shapes.items()}  # fmt: skip


def _plain(e: dict[str, Tensor], t: float, t2: float, normalize: bool) -> Tensor:
    """Return the KL divergence (N,) of every query, from the whole tables."""
    a, b, c, d = (F.normalize(x, dim=1) if normalize else x for x in e.values())
    log_q, log_p = (a @ b.T / t).log_softmax(1), (c @ d.T / t2).log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_against_whole_tables(normalize: bool, reduction: str) -> None:
    """Values and gradients, with row weights and temperatures that differ."""
    e = _embeddings()
    weight = torch.tensor([1.0, 0.0, 2.0, 0.5, 1.0, 3.0, 0.1], dtype=torch.float64)
    grads = []
    for fused in (True, False):
        for name in ("queries", "documents"):
            e[name] = e[name].detach().requires_grad_()
        if fused:
            out = contrastive_distillation(
                **e, temperature=0.7, teacher_temperature=1.3, normalize=normalize,
                weight=weight, reduction=reduction, memory_mib=0.0003,
            )  # fmt: skip
        else:
            rows = weight * _plain(e, 0.7, 1.3, normalize)
            out = {"mean": rows.sum() / weight.sum(), "sum": rows.sum(), "none": rows}[reduction]
        out.sum().backward()
        grads.append((out.detach(), e["queries"].grad, e["documents"].grad))
    for got, want in zip(*grads, strict=True):
        assert got is not None and want is not None
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)
    assert grads[0][0].abs().max() > 0.1


def test_a_student_like_its_teacher_has_no_loss() -> None:
    e = _embeddings()
    same = {"queries": e["teacher_queries"], "documents": e["teacher_documents"]}
    both = {**e, **{k: v.clone().requires_grad_() for k, v in same.items()}}
    loss = contrastive_distillation(**both)
    loss.backward()
    assert abs(float(loss.detach())) < 1e-12
    assert both["queries"].grad is not None and both["queries"].grad.abs().max() < 1e-12


def test_the_teacher_gets_no_gradient() -> None:
    e = {name: x.requires_grad_() for name, x in _embeddings().items()}
    contrastive_distillation(**e).backward()
    assert e["queries"].grad is not None
    assert e["teacher_queries"].grad is None and e["teacher_documents"].grad is None


def test_bf16_embeddings_are_multiplied_in_fp32() -> None:
    """At a small temperature, similarities rounded to bf16 would be off by whole units."""
    low = _embeddings(torch.bfloat16)
    got = contrastive_distillation(**low, temperature=0.02, teacher_temperature=0.02)
    want = _plain({k: v.double() for k, v in low.items()}, 0.02, 0.02, False).mean()
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("auto", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_rounds_nothing(auto: torch.dtype, normalize: bool) -> None:
    low = _embeddings(torch.float32)
    results = []
    for on in (False, True):
        leaves = {k: low[k].clone().requires_grad_() for k in ("queries", "documents")}
        with torch.autocast("cpu", auto, enabled=on):
            loss = contrastive_distillation(**low | leaves, normalize=normalize)
        results.append((loss, *torch.autograd.grad(loss, tuple(leaves.values()))))
    for plain, cast in zip(*results, strict=True):
        assert torch.equal(cast, plain)


def test_other_divergences_are_those_of_the_op() -> None:
    e = _embeddings()
    log_q = (e["queries"] @ e["documents"].T).log_softmax(1)
    log_p = (e["teacher_queries"] @ e["teacher_documents"].T).log_softmax(1)
    want = (log_q.exp() * (log_q - log_p)).sum(1).mean()
    got = contrastive_distillation(
        **e, temperature=1.0, teacher_temperature=1.0, divergence="reverse_kl"
    )
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


def test_matryoshka_sums_over_prefixes() -> None:
    e = _embeddings()
    q, d = (e[name].requires_grad_() for name in ("queries", "documents"))
    loss = functools.partial(info_nce, temperature=0.5, normalize=True)
    got = matryoshka(loss, q, d, (2, 5), (0.5, 2.0))
    want = sum(
        a * F.cross_entropy(F.normalize(q[:, :m], dim=1) @ F.normalize(d[:, :m], dim=1).T / 0.5,
                            torch.arange(7)) for m, a in ((2, 0.5), (5, 2.0))
    )  # fmt: skip
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)
    ones = matryoshka(loss, q, d, (2, 5))
    torch.testing.assert_close(ones, loss(q[:, :2], d[:, :2]) + loss(q, d))
    distill = functools.partial(
        contrastive_distillation,
        teacher_queries=e["teacher_queries"],
        teacher_documents=e["teacher_documents"],
    )
    cut = distill(q[:, :3], d[:, :3])
    torch.testing.assert_close(matryoshka(distill, q, d, (3,)), cut)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"teacher_queries": torch.ones(6, 9)},
            r"teacher_queries has shape \(6, 9\); expected",
        ),
        ({"teacher_documents": torch.ones(11, 8)}, r"teacher_documents has shape \(11, 8\)"),
        ({"teacher_documents": torch.ones(11, 9).long()}, "teacher_documents is torch.int64"),
        ({"documents": torch.ones(11, 4, dtype=torch.float64)}, "documents have shape"),
        ({"temperature": 0.0}, "temperature is 0.0; expected a positive number"),
        ({"teacher_temperature": -1.0}, "teacher_temperature is -1.0"),
        ({"weight": -torch.ones(7)}, "weight"),
        ({"divergence": "kl"}, "divergence"),
        ({"reduction": "max"}, "reduction"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(W2SError, match=message):
        contrastive_distillation(**{**_embeddings(), **change})


@pytest.mark.parametrize(
    ("prefixes", "weights", "message"),
    [
        ((), None, "prefixes is \\[\\]"),
        ((2, 2), None, "each once"),
        ((6,), None, "prefixes has 6; expected integers from 1 to 5"),
        ((0,), None, "prefixes has 0"),
        ((2.0,), None, "prefixes has 2.0"),
        ((2, 5), (1.0,), "expected 2 finite numbers"),
        ((2, 5), (0.0, 0.0), "not all 0"),
        ((2, 5), (1.0, float("inf")), "expected 2 finite numbers"),
    ],
)
def test_prefixes_that_do_not_fit_are_named(prefixes: Any, weights: Any, message: str) -> None:
    e = _embeddings()
    with pytest.raises(W2SError, match=message):
        matryoshka(info_nce, e["queries"], e["documents"], prefixes, weights)
