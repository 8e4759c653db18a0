"""The fused head against fp64 logits in full, in every mode, chunked and whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.linear_cases import BF16, CHUNKS, FP32, FP64, WHOLE, D, oracle, run, sample, unit_mass
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from w2s_fast.ops import native
from w2s_fast.ops.fused_linear import gemm, head_gradient, solve
from w2s_fast.ops.fused_linear.cross_entropy import linear_cross_entropy
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


@pytest.mark.parametrize("kind", ["hard", "unit", "sparse", "dense"])
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


@pytest.mark.parametrize("kind", ["hard", "unit", "sparse", "dense"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_bf16(backend: str, kind: str, reduction: str) -> None:
    call = sample("sparse" if kind == "unit" else kind, 40, 131, BF16)
    call = (call if kind == "sparse" else unit_mass(call)) | {
        "reduction": reduction,
        "memory_mib": 11 * 131 * 2 / 2**20,
    }
    check(backend, call | {"aux": 0.4, "threshold": "median"})


@pytest.mark.parametrize("kind", ["hard", "rest", "dense"])
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_padded_rows(
    backend: str, kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of a chunk are padded on a GPU; what lies between them is neither read nor counted."""
    monkeypatch.setattr(gemm, "_UNPADDED", ())
    monkeypatch.setattr(gemm, "_one_dnn", lambda x: False)  # it returns memory of its own
    new = native.new_buffer
    monkeypatch.setattr(native, "new_buffer", lambda *a, **k: new(*a, **k).fill_(torch.nan))
    for memory_mib in (WHOLE, 11 * 24 * 4 / 2**20):
        call = sample(kind, 40, 17, dtype, memory_mib=memory_mib)
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


def test_exact_threshold_in_one_pass(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hard labels, and top-k ones (on a CPU of mass 1), never look at the scores first."""
    probed = []
    probe = solve.threshold_from_scores
    monkeypatch.setattr(solve, "threshold_from_scores", lambda *a: probed.append(1) or probe(*a))
    late = {"aux": 0.4, "threshold": "median", "memory_mib": CHUNKS}
    for call in (sample("hard"), unit_mass(sample("sparse"))):
        run(backend, call | late)
    assert not probed
    run(backend, sample("sparse") | late)  # mass other than 1
    assert bool(probed) == (backend in ("ref", "cpp"))
    run(backend, sample("rest") | late)
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
