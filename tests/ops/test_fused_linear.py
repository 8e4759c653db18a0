"""The fused head against fp64 logits in full, in every mode, chunked and whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.linear_cases import BF16, CHUNKS, FP32, FP64, WHOLE, D, oracle, run, sample, unit_mass
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import w2s_fast
from w2s_fast import SparseTargets
from w2s_fast.ops import dispatch, use_backend
from w2s_fast.ops.fused_linear import chunks, gemm, head_gradient
from w2s_fast.ops.fused_linear.cross_entropy import linear_cross_entropy, reference
from w2s_fast.ops.reference import KINDS
from w2s_fast.testing import BACKWARD, FORWARD, assert_within_budget


def check(backend: str, call: dict[str, Any], upstream: float = 1.0) -> Any:
    (loss, stats), grads = run(backend, call, upstream)
    truth, exact = oracle(call, stats, FP64, upstream)
    eager, near = oracle(call, stats, call["hidden"].dtype, upstream)
    assert_within_budget(loss, truth, eager, FORWARD, "loss")
    for name, grad in grads.items():
        baseline = near[name].to(grad.dtype)
        assert_within_budget(grad, exact[name], baseline, BACKWARD, f"gradient of {name}")
    return stats


# Kind x gate x budget choose the path: at once, one pass a chunk with or without rank-1 terms,
# probe first. So this product is full.
@pytest.mark.parametrize("memory_mib", [WHOLE, CHUNKS], ids=["whole", "chunks"])
@pytest.mark.parametrize("threshold", [None, "median", 0.4], ids=["argmax", "median", "fixed"])
@pytest.mark.parametrize("kind", [*KINDS, "unit"])
def test_kind_gate_budget(
    backend: str, kind: str, threshold: str | float | None, memory_mib: float
) -> None:
    call = unit_mass(sample("sparse")) if kind == "unit" else sample(kind)
    check(backend, call | {"aux": 0.4, "threshold": threshold, "memory_mib": memory_mib}, 1.5)


@pytest.mark.parametrize("kind", ["hard", "unit", "dense"])
@pytest.mark.parametrize(
    "extra",
    [{"smoothing": 0.2}, {"softcap": 3.0}, {"z_loss": 0.02}, {"reduction": "sum"}],
    ids=lambda e: next(iter(e)),
)
def test_terms_of_the_loss(backend: str, kind: str, extra: dict[str, Any]) -> None:
    call = unit_mass(sample("sparse")) if kind == "unit" else sample(kind)
    for aux in (0.0, 0.4):
        threshold = "median" if aux else None
        check(backend, call | {"aux": aux, "threshold": threshold, "memory_mib": CHUNKS} | extra)


@pytest.mark.parametrize("kind", ["hard", "unit", "dense"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_bf16(backend: str, kind: str, reduction: str) -> None:
    call = sample("sparse" if kind == "unit" else kind, 40, 131, BF16)
    call = unit_mass(call) | {"reduction": reduction, "memory_mib": 11 * 131 * 2 / 2**20}
    check(backend, call | {"aux": 0.4, "threshold": "median"})


def test_two_classes_in_chunks(backend: str) -> None:
    """A reward head: the threshold is a quantile of margins."""
    budget = 3 * 2 * 4 / 2**20
    for kind in ("hard", "dense"):
        call = sample(kind, 11, 2, memory_mib=budget)
        del call["bias"]  # its gradient is a difference of equals here: nothing to take a budget of
        check(backend, call | {"aux": 0.4})
        check(backend, call | {"aux": 0.4, "threshold": 0.3})


def test_row_counts(backend: str) -> None:
    for n in (0, 1, 2):
        for aux in (0.0, 0.4):
            call = sample("hard", n, memory_mib=CHUNKS / 3, aux=aux)
            del call["weight"]
            (loss, _), grads = run(backend, call)
            if n == 0:
                assert loss == 0
                assert all(not g.any() for g in grads.values())
            else:
                check(backend, call)


def test_budget_changes_nothing_but_memory() -> None:
    call = sample("hard", 50, 33, aux=0.5, threshold="median")
    (whole, stats), grads = run("ref", call)
    for memory in (0.005, 0.001, 0.0002):
        (loss, again), others = run("ref", call | {"memory_mib": memory})
        assert_within_budget(loss, whole.double(), whole, FORWARD)
        assert float((stats.max_prob - stats.threshold)[stats.loss != 0].abs().min()) > 1e-5
        assert torch.equal(again.coefficient, stats.coefficient)  # no near ties: see above
        for name, grad in others.items():
            assert_within_budget(grad, grads[name].double(), grads[name], BACKWARD, name)


class Largest(TorchDispatchMode):
    """Records the largest tensor that any operator returns."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, tuple | list) else (out,):
            if isinstance(t, Tensor) and t.device.type == "cpu":
                # A view or an expanded shape takes what its storage takes.
                self.bytes = max(self.bytes, t.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_no_buffer_of_all_logits(dtype: torch.dtype, reduction: str) -> None:
    n, v = 512, 3000
    budget = 0.5
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(n, D, generator=g).to(dtype).requires_grad_()
    head = torch.randn(v, D, generator=g).to(dtype).requires_grad_()
    weak = torch.randint(0, v, (n,), generator=g)
    kw: dict[str, Any] = {"aux": 0.5, "threshold": "median", "reduction": reduction}
    with Largest() as largest:
        loss = linear_cross_entropy(hidden, head, weak, memory_mib=budget, **kw)
        loss.sum().backward()
    assert n * v * dtype.itemsize > 3 * budget * 2**20, "the test must be able to fail"
    assert largest.bytes <= max(budget * 2**20, 4 * head.numel())


def test_frozen_parts_skip_their_product(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("a product for a frozen part")

    call = sample("hard", aux=0.4, threshold="median", memory_mib=CHUNKS)
    hidden, head = call.pop("hidden"), call.pop("head")
    _, full = run("ref", call | {"hidden": hidden, "head": head})
    for reduction in ("mean", "none"):
        with monkeypatch.context() as m:
            m.setattr(head_gradient.HeadGradient, "_add_product", forbidden)
            x = hidden.clone().requires_grad_()
            linear_cross_entropy(x, head, **call, reduction=reduction).sum().backward()
        with monkeypatch.context() as m:
            m.setattr(gemm, "hidden_gradient", forbidden)
            w = head.clone().requires_grad_()
            linear_cross_entropy(hidden, w, **call, reduction=reduction).sum().backward()
        if reduction == "mean":
            assert_within_budget(x.grad, full["hidden"].double(), full["hidden"], BACKWARD)
            assert_within_budget(w.grad, full["head"].double(), full["head"], BACKWARD)


def test_exact_threshold_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hard labels, and top-k ones of mass 1, never look at the scores first."""
    probed = []
    probe = chunks.threshold_from_scores
    monkeypatch.setattr(chunks, "threshold_from_scores", lambda *a: probed.append(1) or probe(*a))
    late = {"aux": 0.4, "threshold": "median", "memory_mib": CHUNKS}
    for call in (sample("hard"), unit_mass(sample("sparse"))):
        run("ref", call | late)
    assert not probed
    run("ref", sample("sparse") | late)  # mass other than 1
    assert probed


def test_head_gradient_summed_in_fp32() -> None:
    n, v = 600, 40
    g = torch.Generator().manual_seed(0)
    hidden, head = torch.randn(n, D, generator=g), torch.randn(v, D, generator=g)
    call = {"hidden": hidden.to(BF16), "head": head.to(BF16), "weak": torch.arange(n) % v}
    errors = []
    for fp32 in (False, True):
        kw = {"memory_mib": 6 * v * 2 / 2**20, "fp32_head_gradient": fp32}
        (_, stats), grads = run("ref", call | kw)
        _, exact = oracle(call, stats, FP64, 1.0)
        errors.append((grads["head"].double() - exact["head"]).norm())
    assert errors[1] < 0.5 * errors[0]


def test_positions_and_sequences(backend: str) -> None:
    b, t = 3, 5
    call = sample("hard", b * t, memory_mib=CHUNKS, aux=0.3)
    hidden = call["hidden"].view(b, t, D)
    weak = torch.full((b, t), -100)
    weak[:, -1] = torch.tensor([2, 7, 11])
    weight = torch.rand(b, t) + 0.5
    rows = {"head": call["head"], "bias": call["bias"], "aux": 0.3}
    masked = rows | {"hidden": hidden, "weak": weak, "weight": weight}
    (a, _), grads = run(backend, masked)
    at = torch.arange(b) * t + t - 1
    some = {"positions": at, "weak": weak[:, -1], "weight": weight[:, -1]}
    (c, _), others = run(backend, rows | {"hidden": hidden} | some)
    assert_within_budget(c, a.double(), a, FORWARD)
    for name in ("hidden", "head", "bias"):
        assert_within_budget(others[name], grads[name].double(), grads[name], BACKWARD, name)
    untouched = torch.ones(b * t, dtype=torch.bool)
    untouched[at] = False
    assert not others["hidden"].flatten(0, 1)[untouched].any()


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
