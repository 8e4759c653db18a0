"""Contract of teachers as sums of heads: memory, autograd, operators, compilation, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.teacher_cases import BF16, CHUNKS, FP32, FP64, D, N, V, run, sample, teacher_terms
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import w2s_fast
from w2s_fast import TeacherHead, W2SError
from w2s_fast.models.lm_head import LMHeadLoss
from w2s_fast.ops import use_backend
from w2s_fast.ops.fused_linear.chunks import shape_only
from w2s_fast.ops.fused_linear.cross_entropy import linear_cross_entropy
from w2s_fast.ops.fused_linear.teacher import heads
from w2s_fast.ops.fused_linear.teacher.checks import make_teacher
from w2s_fast.ops.fused_linear.teacher.divergences import DIVERGENCES
from w2s_fast.testing import BACKWARD, FORWARD, assert_within_budget

LATE = {"aux": 0.4, "threshold": "median"}


class Allocated(TorchDispatchMode):
    """The largest total of storages that are alive at once, of what operators return."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[Any, int]] = {}
        self.peak = self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, tuple | list) else (out,):
            if isinstance(t, Tensor):
                storage = t.untyped_storage()
                self.alive[storage._cdata] = storage._weak_ref(), storage.nbytes()
                self.largest = max(self.largest, storage.nbytes())
        expired = torch.UntypedStorage._expired
        self.alive = {k: (r, n) for k, (r, n) in self.alive.items() if not expired(r)}
        self.peak = max(self.peak, sum(n for _, n in self.alive.values()))
        return out


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("divergence", ["cross_entropy", "reverse_kl"])
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_two_budgets_and_no_more(dtype: torch.dtype, divergence: str, reduction: str) -> None:
    """Beside gradients: two chunks, and the copies of a few rows or classes."""
    n, v, budget = 512, 6000, 1 << 20
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g).to(dtype)

    hidden, head = normal(n, D).requires_grad_(), normal(v, D).requires_grad_()
    teacher = [(2.0, normal(n, 6), normal(v, 6)), (-1.0, normal(n, 5), normal(v, 5))]
    with Allocated() as memory:
        loss = linear_cross_entropy(
            hidden, head, teacher=teacher, memory_mib=1, divergence=divergence, reduction=reduction
        )
        loss.sum().backward()
    assert 3 * 2 * budget < n * v * 4, "the test must be able to fail"
    gradients = 3 * 4 * head.numel() + 4 * hidden.numel()
    block = 4 * (1 << 18) * (13 if divergence == "reverse_kl" else 2)
    assert memory.largest <= budget * 1.01
    assert memory.peak <= 2 * budget + gradients + block


def test_frozen_parts_and_no_gradients() -> None:
    call = sample(memory_mib=CHUNKS)
    _, _, full = run("ref", call)
    hidden, head = call.pop("hidden"), call.pop("head")
    x = hidden.clone().requires_grad_()
    linear_cross_entropy(x, head, **call).backward()
    assert_within_budget(x.grad, full["hidden"].double(), full["hidden"], BACKWARD)
    with torch.no_grad():
        assert not linear_cross_entropy(x, head, **call).requires_grad
    learned = teacher_terms(learned=True)
    learned[0].hidden[1] = 0.0
    loss = linear_cross_entropy(hidden, head, **(call | {"teacher": learned}))
    loss.backward()  # nothing but the scales
    assert learned[0].scale.grad is not None


def test_the_teacher_gets_no_gradient() -> None:
    call = sample()
    for term in call["teacher"]:
        term.hidden.requires_grad_(), term.head.requires_grad_()
    for reduction in ("mean", "none"):
        loss = linear_cross_entropy(**(call | {"reduction": reduction}))
        assert not loss.requires_grad


def test_only_learned_scales_cost_products(monkeypatch: pytest.MonkeyPatch) -> None:
    products = []
    term_logits = heads._TermLogits
    monkeypatch.setattr(
        heads, "_TermLogits", lambda t, m, rows: products.append(m) or term_logits(t, m, rows)
    )
    call = sample()
    terms = teacher_terms(learned=True)
    for teacher, expected in (
        (call["teacher"], [0, 1]),
        ([call["teacher"][0], terms[1]], [0, 1, 1]),
        (terms, [0, 1, 0, 1]),
    ):
        products.clear()
        head = call["head"].clone().requires_grad_()
        linear_cross_entropy(**(call | {"head": head, "teacher": teacher})).backward()
        assert products == expected


def test_threshold_pass_computes_no_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []
    chunk = heads.Target.chunk
    monkeypatch.setattr(heads.Target, "chunk", lambda t, r: rows.append(r) or chunk(t, r))
    call = sample(memory_mib=CHUNKS, **LATE)
    run("cpp", call)
    assert [r.start for r in rows] == [0, 4, 8] or [r.start for r in rows] == [0, 3, 6]


@pytest.mark.parametrize("divergence", ["cross_entropy", "jsd"])
def test_second_backward_and_double_backward(divergence: str) -> None:
    call = sample(divergence=divergence, memory_mib=CHUNKS, **LATE)
    hidden, head = (call.pop(k).requires_grad_() for k in ("hidden", "head"))
    loss = linear_cross_entropy(hidden, head, **call) * 2.0
    loss.backward(retain_graph=True)
    first = hidden.grad.clone(), head.grad.clone()
    hidden.grad = head.grad = None
    loss.backward()
    assert torch.equal(hidden.grad, first[0]) and torch.equal(head.grad, first[1])
    for reduction in ("mean", "none"):
        rows = linear_cross_entropy(hidden, head, **call, reduction=reduction)
        with pytest.raises(RuntimeError, match="linear_cross_entropy is not differentiable twice"):
            (grad,) = torch.autograd.grad(rows.sum(), hidden, create_graph=True)
            grad.sum().backward()


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_fp64_gradcheck(divergence: str) -> None:
    call = sample(
        FP64, 4, 7, divergence=divergence, memory_mib=2 * 7 * 8 / 2**20, softcap=4.0, aux=0.3,
        temperature=2.0,
    )  # fmt: skip
    hidden, head, bias = (call.pop(k).requires_grad_() for k in ("hidden", "head", "bias"))
    weight, teacher = call.pop("weight").double(), call.pop("teacher")
    teacher[0].hidden[1] = 0.3
    scale = torch.tensor(1.2, dtype=FP64, requires_grad=True)

    def f(x: Tensor, w: Tensor, b: Tensor, a: Tensor) -> Tensor:
        terms = [teacher[0], teacher[1]._replace(scale=a)]
        return linear_cross_entropy(x, w, teacher=terms, bias=b, weight=weight, **call)

    assert torch.autograd.gradcheck(f, (hidden, head, bias, scale))
    call["reduction"] = "none"
    assert torch.autograd.gradcheck(f, (hidden, head, bias, scale))


@pytest.mark.parametrize("divergence", ["cross_entropy", "reverse_kl"])
def test_opcheck(divergence: str) -> None:
    call = sample(FP32, 5, 7, learned=True)
    hidden, head, bias = (call[k].requires_grad_() for k in ("hidden", "head", "bias"))
    teacher = make_teacher(call["teacher"], 5, 7, hidden, 1.5, divergence)
    teacher = teacher._replace(scales=teacher.scales.detach().requires_grad_())
    rule = (torch.tensor(0.3), None, "argmax", -100, 0.0, 0.0, float("inf"), 4.0, 0.1)
    args = (hidden, head, bias, *teacher, None, None, None, call["weight"], *rule, 1e-4, False)
    torch.library.opcheck(torch.ops.w2s_fast.linear_teacher_loss, args)
    with torch.no_grad():
        _, stats, index, _, slopes = torch.ops.w2s_fast.linear_teacher_loss(*args)
    up = torch.ones(()).expand(5)
    plain = (hidden.detach(), head.detach(), bias.detach())
    fixed = teacher._replace(scales=teacher.scales.detach())
    back = (call["weight"], stats, index, slopes, -100, 0.0, 0.0, float("inf"), 4.0, 0.1)
    for needs in ([True] * 3, [True, False, False]):
        torch.library.opcheck(
            torch.ops.w2s_fast.linear_teacher_loss_backward,
            (up, *plain, *fixed, *back, 1e-4, False, needs),
        )
    assert shape_only(5, 7, hidden).shape == (5, 7)


@pytest.mark.parametrize("divergence", ["cross_entropy", "jsd"])
def test_compile_fullgraph(divergence: str) -> None:
    call = sample(divergence=divergence, learned=True, memory_mib=CHUNKS, **LATE)
    loss, _, grads = run("ref", call)
    hidden, head = (call.pop(k).clone().requires_grad_() for k in ("hidden", "head"))
    teacher = call.pop("teacher")
    scale = teacher[0].scale.detach().clone().requires_grad_()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(x: Tensor, w: Tensor, a: Tensor) -> Tensor:
        terms = [teacher[0]._replace(scale=a), teacher[1]]
        return linear_cross_entropy(x * 1.0, w, teacher=terms, **call)

    with use_backend("ref"):
        out = step(hidden, head, scale)
        out.backward()
    assert_within_budget(out, loss.double(), loss, FORWARD)
    assert_within_budget(hidden.grad, grads["hidden"].double(), grads["hidden"], BACKWARD)
    torch.testing.assert_close(scale.grad, grads["scales"][0])


def test_vmap_maps_the_states_of_a_teacher() -> None:
    call = sample()
    term = call["teacher"][1]
    several = torch.stack([term.hidden, 2 * term.hidden, term.hidden.flip(0)])

    def f(states: Tensor) -> Tensor:
        teacher = [term._replace(hidden=states)]
        return linear_cross_entropy(call["hidden"], call["head"], teacher=teacher)

    expected = torch.stack([f(one) for one in several])
    torch.testing.assert_close(torch.func.vmap(f)(several), expected)


def test_autocast() -> None:
    call = sample(FP32, 20, 33)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _, grads = run("ref", call)
    low = {k: t.to(BF16) if k in ("hidden", "head", "bias") else t for k, t in call.items()}
    low["teacher"] = [
        t._replace(hidden=t.hidden.to(BF16), head=t.head.to(BF16),
                   bias=None if t.bias is None else t.bias.to(BF16)) for t in call["teacher"]
    ]  # fmt: skip
    expected, _, others = run("ref", low)
    assert torch.equal(loss, expected)
    assert torch.equal(grads["head"].to(BF16), others["head"])


def test_module_that_owns_the_head() -> None:
    call = sample()
    call["teacher"][0].hidden[1] = 0.0
    module = LMHeadLoss(torch.nn.Linear(D, V))
    expected = linear_cross_entropy(
        call["hidden"], module.weight, teacher=call["teacher"], bias=module.bias
    )
    assert torch.equal(module(call["hidden"], teacher=call["teacher"]), expected)


# Bad input.
H, W = torch.zeros(N, 4), torch.zeros(V, 4)


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ([], "teacher is an empty list; expected a list of at least one term"),
        (TeacherHead(1.0, H, W), "teacher is TeacherHead; expected a list"),
        (H, "teacher is Tensor; expected a list"),
        ([H], r"teacher\[0\] is Tensor; expected \(scale, hidden, head\)"),
        ([(1.0, H)], r"teacher\[0\] is tuple of 2 values; expected \(scale, hidden, head\)"),
        ([(1.0, H, W), (1.0, H, "W")], r"teacher\[1\].head is str; expected a tensor"),
        ([(1.0, None, W)], r"teacher\[0\].hidden is NoneType; expected a tensor"),
        ([(1.0, H, W, 3.0)], r"teacher\[0\].bias is float; expected a tensor"),
        ([("x", H, W)], r"teacher\[0\].scale is the str 'x'; expected a number"),
        ([(float("inf"), H, W)], r"teacher\[0\].scale is inf; expected a finite coefficient"),
        ([(float("nan"), H, W)], r"teacher\[0\].scale is nan; expected a number"),
        ([(torch.tensor(float("nan")), H, W)], "expected a finite coefficient"),
        ([(torch.ones(2), H, W)], r"teacher\[0\].scale has shape \(2,\)"),
        ([(torch.tensor(2), H, W)], "expected a number or a 0-d floating point tensor"),
        ([(1.0, H[:5], W)], r"teacher\[0\].hidden has shape \(5, 4\); expected \(N, D\) .* with 9"),
        ([(1.0, H[0], W)], r"teacher\[0\].hidden has shape \(4,\)"),
        ([(1.0, H, W.T)], r"expected \(V, D\) with D = 4; is it transposed"),
        ([(1.0, H, W[:, :3])], r"teacher\[0\].head has shape \(17, 3\); expected \(V, D\)"),
        ([(1.0, H, torch.zeros(19, 4))], "has 19 classes, the student's head 17; expected one voc"),
        ([(1.0, H, W.to(BF16))], r"teacher\[0\].head is torch.bfloat16, its hidden states"),
        ([(1.0, H.long(), W)], r"teacher\[0\].hidden has dtype torch.int64"),
        ([(1.0, H, W, torch.zeros(3))], r"teacher\[0\].bias has shape \(3,\); expected \(17,\)"),
        ([(1.0, H, W, torch.zeros(V, dtype=BF16))], r"teacher\[0\].bias is torch.bfloat16"),
        ([(1.0, H, W, None, -1.0)], r"teacher\[0\].softcap is -1.0; expected a number in \[0, inf"),
        ([(1.0, H.to("meta"), W)], r"teacher\[0\].hidden is on meta"),
    ],
    ids=str,
)
def test_bad_terms(teacher: Any, message: str) -> None:
    with pytest.raises(W2SError, match=message):
        linear_cross_entropy(torch.zeros(N, D), torch.zeros(V, D), teacher=teacher)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weak": torch.zeros(N, dtype=torch.int64)}, "both given; expected exactly one"),
        ({"teacher": None}, "neither given; expected exactly one"),
        ({"temperature": 0.0}, "temperature is 0.0; expected a number above 0"),
        ({"divergence": "kl"}, "divergence is 'kl'; expected one of"),
        ({"divergence": "reverse_kd"}, "did you mean 'reverse_kl'"),
        ({"beta": 1.0, "divergence": "jsd"}, r"beta is 1.0; expected .* in \(0, 1\)"),
        ({"divergence": "jsd", "smoothing": 0.1}, "smoothing is 0.1 with divergence 'jsd'"),
        ({"weight": torch.ones(3)}, r"weight has shape \(3,\); expected \(9,\)"),
        ({"weight": -torch.ones(N)}, "expected a number >= 0"),
        ({"weight": torch.ones(N, device="meta")}, "weight is on meta"),
        ({"memory_mib": 4 * V / 2**20 - 1e-9}, "expected at least that"),
        ({"threshold": "prior", "aux": 0.3}, "is for 2 to 2 classes"),
    ],
    ids=str,
)
def test_bad_options(change: dict[str, Any], message: str) -> None:
    call = {"weak": None, "teacher": [(1.0, H, W)]} | change
    with pytest.raises(W2SError, match=message):
        linear_cross_entropy(torch.zeros(N, D), torch.zeros(V, D), **call)


def test_options_of_a_teacher_need_one() -> None:
    for extra in ({"temperature": 2.0}, {"divergence": "reverse_kl"}):
        with pytest.raises(W2SError, match=r"expected teacher=\[...\] with them"):
            w2s_fast.linear_cross_entropy(
                torch.zeros(2, D), torch.zeros(V, D), torch.zeros(2, dtype=torch.int64), **extra
            )
