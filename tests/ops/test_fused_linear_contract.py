"""Contract of the fused head: autograd, operators, compilation, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.linear_cases import BF16, CHUNKS, FP32, FP64, D, run, sample
from torch import Tensor

import w2s_fast
from w2s_fast import SparseTargets
from w2s_fast.ops import dispatch, use_backend
from w2s_fast.ops.fused_linear.cross_entropy import linear_cross_entropy, reference
from w2s_fast.testing import BACKWARD, FORWARD, assert_within_budget


def test_autocast() -> None:
    call = sample("hard", 20, 33)
    with torch.autocast("cpu", torch.bfloat16):
        (loss, _), grads = run("ref", call)
    low = {k: v.to(BF16) if k in ("hidden", "head", "bias") else v for k, v in call.items()}
    (expected, _), others = run("ref", low)
    assert torch.equal(loss, expected)
    assert grads["head"].dtype == FP32
    assert torch.equal(grads["head"].to(BF16), others["head"])


def test_fp64_gradcheck() -> None:
    call = sample("rest", 5, 7, FP64, aux=0.4, memory_mib=2 * 7 * 8 / 2**20, softcap=4.0)
    hidden, head, bias = (call.pop(k).requires_grad_() for k in ("hidden", "head", "bias"))
    weak = call.pop("weak")
    weight = call.pop("weight").double()

    def f(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return linear_cross_entropy(x, w, weak, bias=b, weight=weight, **call)

    assert torch.autograd.gradcheck(f, (hidden, head, bias))
    call["reduction"] = "none"
    assert torch.autograd.gradcheck(f, (hidden, head, bias))


@pytest.mark.parametrize("kind", ["hard", "rest"])
def test_opcheck(kind: str) -> None:
    from w2s_fast.ops.fused_linear.chunks import shape_only
    from w2s_fast.ops.targets import attach_targets

    call = sample(kind, 5, 7)
    hidden, head, bias = (call[k].requires_grad_() for k in ("hidden", "head", "bias"))
    p = attach_targets(shape_only(5, 7, hidden), call["weak"], call["weight"], -100)
    targets = (p.ids, p.probs, p.rest, p.weight)
    aux = torch.tensor(0.3)
    rule = (aux, None, "argmax", -100, 0.1, 0.0, float("inf"), 4.0, 0.1, 1e-4, False)
    args = (hidden, head, bias, *targets, *rule)
    torch.library.opcheck(torch.ops.w2s_fast.linear_weak_ce, args)
    _, stats, index, _ = torch.ops.w2s_fast.linear_weak_ce(*args)
    up = torch.ones(()).expand(5)
    plain = (hidden.detach(), head.detach(), bias.detach())
    back = (stats, index, -100, 0.1, 0.0, float("inf"), 4.0, 0.1, 1e-4, False)
    for needs_grad in ([True] * 3, [True, False, False]):
        torch.library.opcheck(
            torch.ops.w2s_fast.linear_weak_ce_backward, (up, *plain, *targets, *back, needs_grad)
        )


def test_compile_fullgraph() -> None:
    call = sample("hard", aux=0.4, threshold="median", memory_mib=CHUNKS)
    (loss, _), grads = run("ref", call)
    hidden, head = (call.pop(k).clone().requires_grad_() for k in ("hidden", "head"))

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(x: Tensor, w: Tensor) -> Tensor:
        return linear_cross_entropy(x * 1.0, w, **call)

    with use_backend("ref"):
        out = step(hidden, head)
        out.backward()
    assert_within_budget(out, loss.double(), loss, FORWARD)
    assert_within_budget(hidden.grad, grads["hidden"].double(), grads["hidden"], BACKWARD)
    assert_within_budget(head.grad, grads["head"].double(), grads["head"], BACKWARD)


# The hazards of a fused head.
def test_second_backward_is_the_first() -> None:
    call = sample("hard", aux=0.4, threshold="median", memory_mib=CHUNKS)
    hidden, head = (call.pop(k).requires_grad_() for k in ("hidden", "head"))
    loss = linear_cross_entropy(hidden, head, **call) * 2.0
    loss.backward(retain_graph=True)
    first = hidden.grad.clone(), head.grad.clone()
    hidden.grad = head.grad = None
    loss.backward()
    assert torch.equal(hidden.grad, first[0]) and torch.equal(head.grad, first[1])


def test_inputs_survive_and_double_backward_raises() -> None:
    call = sample("hard", memory_mib=CHUNKS)
    hidden, head = (call.pop(k).requires_grad_() for k in ("hidden", "head"))
    before = hidden.detach().clone(), head.detach().clone()
    loss = linear_cross_entropy(hidden, head, **call)
    with pytest.raises(RuntimeError, match="linear_cross_entropy is not differentiable twice"):
        torch.autograd.grad(loss, hidden, create_graph=True)
    assert torch.equal(hidden, before[0]) and torch.equal(head, before[1])
    rows = linear_cross_entropy(hidden, head, **call, reduction="none")
    (grad,) = torch.autograd.grad(rows.sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="linear_cross_entropy is not differentiable twice"):
        grad.sum().backward()


def test_nan_in_one_row_stays_there() -> None:
    call = sample("hard", memory_mib=CHUNKS)
    call["hidden"][5] = float("nan")
    call["weight"][5] = 1.0
    call["weak"][5] = 2
    (loss, _), grads = run(
        "cpp" if not dispatch.missing("cpp") else "ref", call | {"reduction": "none"}
    )
    assert loss.isnan().nonzero().flatten().tolist() == [5]
    assert grads["hidden"].isnan().any(1).nonzero().flatten().tolist() == [5]


def test_tied_head_and_accumulation() -> None:
    """The head is the embedding: both gradients arrive in one leaf, twice."""
    g = torch.Generator().manual_seed(0)
    table = torch.randn(33, D, generator=g).requires_grad_()
    twin = table.detach().clone().requires_grad_()
    ids = torch.randint(0, 33, (2, 9), generator=g)
    for w in (table, twin):
        for row in ids:
            hidden = torch.nn.functional.embedding(row, w).tanh()
            if w is table:
                loss = linear_cross_entropy(hidden, w, row.roll(-1), memory_mib=CHUNKS)
            else:
                loss = torch.nn.functional.cross_entropy(hidden @ w.t(), row.roll(-1))
            loss.backward()
    assert_within_budget(table.grad, twin.grad.double(), twin.grad, BACKWARD)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head": torch.zeros(D, 17)}, r"expected \(V, D\) with D = 16; is it transposed"),
        ({"head": torch.zeros(0)}, "partitioned"),
        ({"head": torch.zeros(17, D, dtype=BF16)}, "bring them to one dtype"),
        ({"hidden": torch.zeros(8)}, r"expected \(N, D\) or \(B, T, D\)"),
        ({"hidden": torch.zeros(8, D, dtype=torch.int64)}, "expected fp32"),
        ({"bias": torch.zeros(3)}, r"bias has shape \(3,\); expected \(17,\)"),
        ({"memory_mib": 1e-9}, "one row of 17 logits takes"),
        ({"memory_mib": 0}, "expected a positive number"),
        ({"positions": torch.zeros(8, dtype=torch.bool)}, r"expected \(M,\) integers"),
        ({"weak": torch.zeros(3, dtype=torch.int64)}, r"expected \(8,\)"),
        ({"softcap": -1.0}, "softcap is -1.0"),
        ({"smoothing": 1.0}, "smoothing is 1.0"),
        ({"z_loss": float("nan")}, "z_loss is nan"),
        ({"reduction": "avg"}, "reduction is 'avg'"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_bad_input(change: dict[str, Any], message: str) -> None:
    call = sample("hard") | change
    with pytest.raises(w2s_fast.W2SError, match=message):
        linear_cross_entropy(call.pop("hidden"), call.pop("head"), call.pop("weak"), **call)


def test_label_outside_the_classes() -> None:
    call = sample("hard", memory_mib=CHUNKS)
    call["weak"][7] = 17
    with pytest.raises(w2s_fast.W2SError, match=r"\[17\] in row 7"):
        run("cpp" if not dispatch.missing("cpp") else "ref", call)


def test_reference_is_the_definition() -> None:
    call = sample("dense", dtype=FP64)
    loss = reference(call["hidden"], call["head"], call["weak"], bias=call["bias"])
    z = call["hidden"] @ call["head"].T + call["bias"]
    assert torch.allclose(loss, -(call["weak"] * z.log_softmax(1)).sum())


def test_sparse_targets_of_sequences(backend: str) -> None:
    """(B, T, K) ids and probabilities and a (B, T) rest are their rows."""
    g = torch.Generator().manual_seed(9)
    hidden, head = torch.randn(2, 5, 4, generator=g), torch.randn(17, 4, generator=g)
    q = torch.randn(2, 5, 17, generator=g).softmax(-1)
    probs, ids = q.topk(3, dim=-1)
    rest = 1 - probs.sum(-1)
    for r in (rest, None):
        flat = None if r is None else r.flatten()
        rows = SparseTargets(ids.flatten(0, 1), probs.flatten(0, 1), flat)
        with use_backend(backend):
            actual = linear_cross_entropy(hidden, head, SparseTargets(ids, probs, r))
            expected = linear_cross_entropy(hidden.flatten(0, 1), head, rows)
        assert torch.equal(actual, expected)
