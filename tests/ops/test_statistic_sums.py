"""Sums of row statistics that a two-class call makes itself, against those of its record."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from w2s_fast.losses import Xent, make_loss
from w2s_fast.losses._base import summed_metrics
from w2s_fast.ops.weak_loss import weak_loss

N = 301  # more rows than the kernel handles at once
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def targets(kind: str, g: torch.Generator) -> Tensor:
    """Labels with rows that do not count (hard), or that are ties and have no mass (soft)."""
    if kind == "hard":
        y = torch.randint(0, 2, (N,), generator=g)
        y[::7] = -100
        return y
    p = torch.rand(N, generator=g)
    p[::5], p[1::50] = 0.5, 0.0
    q = torch.stack([1 - p, p], 1)
    q[2] = 0.0
    return q


def weights(kind: str, g: torch.Generator) -> Tensor | None:
    """Row weights, some of them 0."""
    if kind == "no":
        return None
    w = torch.rand(N, generator=g)
    w[3::11] = 0.0
    return w.requires_grad_(kind == "learned")


@pytest.mark.parametrize(
    ("dtype", "label", "weight", "rule"),
    list(
        itertools.product(
            DTYPES, ("hard", "soft"), ("no", "given", "learned"), ("none", "prior", "median")
        )
    ),
)
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "eval"])
def test_sums_are_those_of_the_record(
    dtype: str, label: str, weight: str, rule: str, grad: bool
) -> None:
    g = torch.Generator().manual_seed(0)
    z = (4 * torch.randn(N, 2, generator=g)).to(DTYPES[dtype])
    z[::9, 1] = z[::9, 0]
    z.requires_grad_(grad)
    weak, w = targets(label, g), weights(weight, g)
    options = {"weight": w, "rule": rule, "aux": 0.0 if rule == "none" else 0.4}
    summed = weak_loss(z, weak, return_sums=True, **options)
    rows = weak_loss(z, weak, return_stats=True, **options)
    assert summed.sums is not None and summed.stats is None and rows.stats is not None
    mask = torch.ones(N, dtype=torch.bool) if label == "soft" else weak != -100
    if w is not None:
        mask &= w != 0
    expected = summed_metrics(mask, rows.stats.agreement, rows.stats.max_prob, rows.stats.entropy)
    torch.testing.assert_close(summed.sums._asdict(), expected)
    assert torch.equal(summed.loss, rows.loss) and torch.equal(summed.count, rows.count)
    assert (summed.threshold is None) == (rule == "none")
    if rule != "none":
        assert torch.equal(summed.threshold, rows.threshold)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("counts", [True, False])
def test_rows_without_probabilities_agree_with_no_class(bad: float, counts: bool) -> None:
    z = torch.tensor([[2.0, 0.0], [bad, bad], [0.0, 1.0]])
    weak = torch.tensor([0, 0 if counts else -100, 0])
    out = Xent()(z, weak)
    assert out.metrics["rows"] == (3 if counts else 2) and out.metrics["agreement"] == 1
    assert out.metrics["max_prob"].isnan() == counts and out.metrics["entropy"].isnan() == counts


def test_a_label_that_is_no_number_agrees_with_no_class() -> None:
    z, weak = (
        torch.tensor([[2.0, 0.0], [0.0, 1.0]]),
        torch.tensor([[float("nan"), 0.5], [0.1, 0.9]]),
    )
    metrics = Xent()(z, weak).metrics
    assert metrics["agreement"] == 1 and metrics["max_prob"] == z.softmax(1).amax(1).sum()


@pytest.mark.parametrize("n", [0, 1, 255, 256, 257])
def test_any_number_of_rows(n: int) -> None:
    z, weak = torch.randn(n, 2), torch.rand(n, 2).softmax(1)
    metrics = make_loss("logconf")(z, weak, step_frac=0.5).metrics
    p = z.softmax(1)
    assert metrics["rows"] == n
    torch.testing.assert_close(metrics["max_prob"], p.amax(1).sum())
    torch.testing.assert_close(metrics["entropy"], torch.special.entr(p).sum())
    torch.testing.assert_close(
        metrics["agreement"], (p.argmax(1) == weak.argmax(1)).sum(dtype=torch.float32)
    )
