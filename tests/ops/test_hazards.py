"""What other fused losses got wrong, silently, as regression tests for ours.

A gradient scaled twice, a backward that reads overwritten logits, an upstream op whose saved output
was destroyed, a per-row upstream that was ignored, rows that are not where a kernel expects them.
Each either gives the right number here or raises.
"""

from __future__ import annotations

import gc
import importlib
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import w2s_fast
from w2s_fast import SparseTargets, W2SError, cross_entropy
from w2s_fast.ops import dispatch, use_backend
from w2s_fast.ops.logprob import api as logprob
from w2s_fast.ops.weak_loss import weak_loss
from w2s_fast.testing import BACKWARD, FORWARD, assert_within_budget

N, V = 5, 13


@pytest.fixture
def backend(backend: str) -> Iterator[str]:
    with use_backend(backend):
        yield backend


@pytest.fixture
def z() -> Tensor:
    return torch.randn(N, V, generator=torch.Generator().manual_seed(0)).requires_grad_()


@pytest.fixture
def label() -> Tensor:
    return torch.tensor([1, 4, -100, 0, 12])


def truth_of(z: Tensor, label: Tensor, times: float = 1.0) -> Tensor:
    x = z.detach().double().requires_grad_()
    (times * F.cross_entropy(x, label)).backward()
    assert x.grad is not None
    return x.grad


def check(grad: Tensor | None, z: Tensor, label: Tensor, times: float = 1.0) -> None:
    assert grad is not None
    x = z.detach().float().requires_grad_()
    (times * F.cross_entropy(x, label)).backward()
    assert x.grad is not None
    assert_within_budget(grad, truth_of(z, label, times), x.grad, BACKWARD)


def test_second_backward_equals_the_first(backend: str, z: Tensor, label: Tensor) -> None:
    for kwargs in ({}, {"aux": 0.5}, {"aux": 0.5, "threshold": "median"}):
        loss = cross_entropy(z, label, **kwargs) * 3.0
        (first,) = torch.autograd.grad(loss, z, retain_graph=True)
        (second,) = torch.autograd.grad(loss, z, retain_graph=True)
        (third,) = torch.autograd.grad(loss, z)
        assert_within_budget(second, first.double(), first, FORWARD)
        assert torch.equal(second, third)
        with pytest.raises(RuntimeError, match="second time|already been freed"):
            torch.autograd.grad(loss, z)


def test_upstream_factor_is_applied_once(backend: str, z: Tensor, label: Tensor) -> None:
    loss = cross_entropy(z, label)
    (loss * 2).backward(retain_graph=True)
    check(z.grad, z, label, 2.0)
    (loss * -0.5).backward()
    check(z.grad, z, label, 1.5)


def test_accumulation_does_not_alias_the_gradient(backend: str, z: Tensor, label: Tensor) -> None:
    """A kept first gradient must not be the buffer that the next backward writes."""
    loss = cross_entropy(z, label)
    (kept,) = torch.autograd.grad(loss, z, retain_graph=True)
    copy = kept.clone()
    torch.autograd.grad(loss * 7, z)
    assert torch.equal(kept, copy)


def test_logits_are_unchanged_and_reusable(backend: str, z: Tensor, label: Tensor) -> None:
    before = z.detach().clone()
    x = z * 1.0
    loss = cross_entropy(x, label)
    assert torch.equal(x.detach(), before)
    (loss + x.square().mean()).backward()
    reference = z.detach().double().requires_grad_()
    (F.cross_entropy(reference, label) + reference.square().mean()).backward()
    assert_within_budget(z.grad, reference.grad, reference.grad.float(), BACKWARD)


def test_inplace_after_an_op_that_saved_its_output_raises(
    backend: str, z: Tensor, label: Tensor
) -> None:
    loss = cross_entropy(z.softmax(1), label, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_inplace_logits_used_by_another_loss_raise(backend: str, z: Tensor, label: Tensor) -> None:
    x = z * 1.0
    other = x.exp().sum() + x.square().sum()  # both save x or their output
    loss = cross_entropy(x, label, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (loss + other).backward()


def test_inplace_second_backward_raises(backend: str, z: Tensor, label: Tensor) -> None:
    loss = cross_entropy(z * 1.0, label, inplace=True)
    loss.backward(retain_graph=True)
    check(z.grad, z, label)
    with pytest.raises(RuntimeError, match="overwritten"):
        loss.backward()


def test_inplace_where_it_would_be_wrong_is_refused(backend: str, label: Tensor) -> None:
    leaf = torch.zeros(N, V, requires_grad=True)
    for logits, what in (
        (leaf, "leaf"),
        ((leaf[:1] * 1.0).expand(N, V), "overlapping"),
        ((leaf * 1.0).t().contiguous().t(), "column stride"),
    ):
        with pytest.raises(W2SError, match=what):
            cross_entropy(logits, label, inplace=True)


@pytest.mark.parametrize("bad", [-0.5, float("nan")])
def test_weights_that_are_no_weights_are_refused(backend: str, bad: float) -> None:
    z, weak = torch.zeros(3, 4), torch.tensor([0, 1, 2])
    with pytest.raises(W2SError, match=rf"weight\[1\] is {bad}"):
        cross_entropy(z, weak, weight=torch.tensor([1.0, bad, 0.0]))


def test_inplace_without_grad_leaves_the_logits(backend: str, z: Tensor, label: Tensor) -> None:
    x = z.detach().clone()
    cross_entropy(x, label, aux=0.5, inplace=True)
    assert torch.equal(x, z.detach())
    with torch.no_grad():
        cross_entropy(z, label, aux=0.5, inplace=True)


def test_logits_changed_before_backward_raise(backend: str, z: Tensor, label: Tensor) -> None:
    x = z * 1.0
    loss = cross_entropy(x, label)
    loss.backward(retain_graph=True)
    with torch.no_grad():
        x.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_per_row_upstream(backend: str, z: Tensor, label: Tensor) -> None:
    up = torch.tensor([0.0, -2.0, 5.0, 0.5, 1.0])
    cross_entropy(z, label, reduction="none").backward(up)
    x = z.detach().double().requires_grad_()
    F.cross_entropy(x, label, reduction="none").backward(up.double())
    assert_within_budget(z.grad, x.grad, x.grad.float(), BACKWARD)
    assert bool((z.grad[0] == 0).all()) and bool((z.grad[2] == 0).all())


def test_expanded_upstream_of_rows(backend: str, z: Tensor, label: Tensor) -> None:
    cross_entropy(z, label, reduction="none").sum().backward()  # stride 0
    check(z.grad, z, label, 4.0)


def test_nan_of_an_ignored_row_does_not_leak_through_the_upstream(
    backend: str, label: Tensor
) -> None:
    z = torch.zeros(N, V)
    z[2] = float("nan")
    z.requires_grad_()
    up = torch.tensor([1.0, 1.0, float("nan"), 1.0, 1.0])
    cross_entropy(z, label, reduction="none").backward(up)
    assert bool((z.grad[2] == 0).all()) and bool(z.grad.isfinite().all())


def test_rows_of_a_wider_matrix(backend: str, label: Tensor) -> None:
    wide = torch.randn(N, V + 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
    cross_entropy(wide[:, 1 : V + 1], label, aux=0.0).backward()
    check(wide.grad[:, 1 : V + 1], wide[:, 1 : V + 1], label)
    assert bool((wide.grad[:, 0] == 0).all()) and bool((wide.grad[:, V + 1 :] == 0).all())


def test_every_second_row_and_transposed_logits(backend: str, label: Tensor) -> None:
    base = torch.randn(2 * N, V, generator=torch.Generator().manual_seed(2)).requires_grad_()
    cross_entropy(base[::2], label).backward()
    check(base.grad[::2], base[::2], label)
    columns = torch.randn(V, N, generator=torch.Generator().manual_seed(3)).requires_grad_()
    cross_entropy(columns.t(), label).backward()
    check(columns.grad.t(), columns.t(), label)


def test_int32_and_strided_labels(backend: str, z: Tensor, label: Tensor) -> None:
    wide = torch.stack([label, label * 0], 1).int()
    cross_entropy(z, wide[:, 0]).backward()
    check(z.grad, z, label)


def test_double_backward_raises(backend: str, z: Tensor, label: Tensor) -> None:
    for reduction in ("mean", "none"):
        loss = cross_entropy(z, label, reduction=reduction).sum()
        with pytest.raises(RuntimeError, match="not differentiable twice"):
            (grad,) = torch.autograd.grad(loss, z, create_graph=True)
            grad.sum().backward()


UNFIT = (
    torch.tensor([1, V, 0, 0, 0]),
    torch.tensor([1, -7, 0, 0, 0]),
    SparseTargets(torch.tensor([[0], [V + 5], [0], [0], [0]]), torch.ones(N, 1)),
    SparseTargets(torch.tensor([[0, 1], [2, 2], [-1, -1], [0, -1], [-1, 0]]), torch.ones(N, 2) / 2),
    SparseTargets(torch.tensor([[3, 1, 2], [2, -1, 2]] * 2 + [[0, 1, 2]]), torch.ones(N, 3) / 3),
)


def test_labels_that_do_not_fit(backend: str, z: Tensor) -> None:
    """A class that does not exist or is listed twice: one error for all, named by its row."""
    for weak in UNFIT:
        with pytest.raises(W2SError, match=r"in row 1 is outside the classes"):
            cross_entropy(z, weak)
        if isinstance(weak, SparseTargets):
            with pytest.raises(W2SError, match=r"ids .* in row 1 is outside the classes"):
                w2s_fast.topk_logprob(z, weak.ids)
            with pytest.raises(W2SError, match=r"in row 1 is outside the classes"):
                w2s_fast.linear_cross_entropy(torch.eye(N), z.detach().t().contiguous(), weak)


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_labels_that_no_host_has_seen(
    backend: str, z: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU an error would need a sync: the row is NaN, and the others are what they are."""
    if why := dispatch.missing(backend):
        pytest.skip(f"backend {backend} is missing: {why}")
    module = importlib.import_module(f"w2s_fast.ops.cross_entropy.{backend}")
    monkeypatch.setattr(module, "check_labels", lambda p: None)
    monkeypatch.setattr(logprob, "unfit_rows", lambda ids, v: torch.empty(0))
    unfit = torch.tensor([False, True, False, False, False])
    for weak in UNFIT:
        unfit[3] = weak is UNFIT[-1]
        for reduction in ("sum", "none"):
            z.grad = None
            with use_backend(backend):
                loss, stats = cross_entropy(z, weak, reduction=reduction, return_stats=True)
                loss.sum().backward()
            assert torch.equal(stats.loss.isnan(), unfit)
            assert torch.equal(z.grad.isnan().all(1), unfit)
            assert torch.equal(z.grad.isfinite().all(1), ~unfit)
        if isinstance(weak, SparseTargets):
            z.grad = None
            with use_backend(backend):
                logp, tail = w2s_fast.topk_logprob(z, weak.ids)
                (logp.sum() + tail.sum()).backward()
            assert torch.equal(logp.isnan().any(1), unfit) and torch.equal(tail.isnan(), unfit)
            assert torch.equal(z.grad.isnan().all(1), unfit)


def test_empty_batch_keeps_a_graph(backend: str) -> None:
    """A rank without rows still takes part in backward, with an empty gradient."""
    for v in (2, V):
        z = torch.zeros(0, v, requires_grad=True)
        loss = cross_entropy(z, torch.zeros(0, dtype=torch.int64), aux=0.5)
        loss.backward()
        assert float(loss.detach()) == 0.0 and z.grad.shape == (0, v)


def test_loss_without_any_row_is_zero_with_zero_gradient(backend: str, z: Tensor) -> None:
    loss = cross_entropy(z, torch.full((N,), -100), aux=0.5)
    loss.backward()
    assert float(loss.detach()) == 0.0 and bool((z.grad == 0).all())


def test_aux_tensor_is_not_captured_by_reference(backend: str, z: Tensor, label: Tensor) -> None:
    """A schedule or a rolling threshold that moves on in place must not change a gradient."""
    aux, at = torch.tensor(0.5), torch.tensor(0.2)
    loss = weak_loss(z, label, aux=aux, rule="fixed", threshold=at).loss
    (first,) = torch.autograd.grad(loss, z, retain_graph=True)
    aux.fill_(0.0)
    at.fill_(1.0)
    (second,) = torch.autograd.grad(loss, z)
    assert_within_budget(second, first.double(), first, FORWARD)


@pytest.mark.parametrize(
    ("logits", "weak", "kwargs", "message"),
    [
        (torch.zeros(2, 3, 4), torch.zeros(2), {}, "flatten"),
        (torch.zeros(2, 3, dtype=torch.int64), torch.tensor([0, 1]), {}, "torch.int64"),
        (torch.zeros(2, 0), torch.tensor([0, 1]), {}, "no classes"),
        (torch.zeros(2, 3), torch.zeros(2, 4), {}, r"\(2, 4\); expected \(2, 3\)"),
        (torch.zeros(2, 3), torch.tensor([0, 1, 2]), {}, r"\(3,\); expected \(2,\)"),
        (torch.zeros(2, 3), [0, 1], {}, "list"),
        (torch.zeros(2, 3), torch.tensor([0, 1]), {"weight": torch.ones(3)}, "weight"),
        (torch.zeros(2, 3), torch.tensor([0, 1]), {"aux": 1.5}, "aux is 1.5"),
        (torch.zeros(2, 3), torch.tensor([0, 1]), {"aux": 0.5, "threshold": "mediam"}, "median"),
        (
            torch.zeros(2, 65),
            torch.tensor([0, 1]),
            {"aux": 0.5, "threshold": "prior"},
            "2 to 64 classes",
        ),
        (torch.zeros(2, 2), torch.tensor([0, 1]), {"aux": 0.5, "threshold": 1.2}, "1.2"),
        (torch.zeros(2, 3), torch.tensor([0, 1]), {"reduction": "avg"}, "avg"),
        (torch.zeros(2, 3), SparseTargets(torch.zeros(2, 4).long(), torch.ones(2, 4)), {}, r"1..3"),
    ],
)
def test_bad_input_is_one_line_that_names_the_value(
    logits: Tensor, weak: Any, kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(W2SError, match=message) as error:
        cross_entropy(logits, weak, **kwargs)
    assert "\n" not in str(error.value)


# A loss that owns its own graph in a cycle keeps logits and gradient until the garbage collector
# happens to run: gigabytes at a large vocabulary.
def test_a_dropped_loss_frees_its_graph_at_once() -> None:
    gc.collect()
    gc.disable()
    try:
        for backward in (False, True):
            logits = torch.randn(4, 7, requires_grad=True) * 1.0
            alive = weakref.ref(logits)
            loss = cross_entropy(logits, torch.tensor([0, 1, 2, 3]), aux=0.5)
            if backward:
                loss.backward()
            del loss, logits
            assert alive() is None
    finally:
        gc.enable()
