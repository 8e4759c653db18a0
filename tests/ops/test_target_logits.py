"""Dense targets given as logits: the row kernel's own softmax, and the 16-bit target it allows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.teacher_cases import BF16, FP16, FP32, check, sample
from torch import Tensor

from w2s_fast import TeacherHead
from w2s_fast.ops.cross_entropy import cpp, ref
from w2s_fast.ops.fused_linear import gemm, late_gate
from w2s_fast.ops.fused_linear.cross_entropy import linear_cross_entropy
from w2s_fast.ops.fused_linear.head_gradient import HeadGradient
from w2s_fast.ops.fused_linear.teacher.checks import make_teacher
from w2s_fast.ops.fused_linear.teacher.heads import Target, target_dtype
from w2s_fast.ops.loss_call import LossSpec, RowCall, RowRule, Stat, new_record
from w2s_fast.ops.targets import LossInputs
from w2s_fast.testing import BACKWARD, FORWARD, assert_within_budget

N, V = 5, 4099  # more than a block of the row sums, and no multiple of a vector
DTYPES = [(FP32, FP32), (BF16, BF16), (BF16, FP32), (FP16, FP16), (FP16, FP32)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def passed(serve: Any, logits: Tensor, probs: Tensor, as_logits: bool, spec: LossSpec) -> RowCall:
    """Both phases of a row pass; the gradient is that of phase ``gradient``."""
    weight = torch.linspace(0.5, 2, N)
    weight[1] = 0
    p = LossInputs(logits, None, probs, None, weight, -100, as_logits)
    ones = torch.ones((), dtype=p.accumulator)
    call = RowCall(p, spec, *new_record(p), RowRule.ARGMAX, grad=torch.empty_like(logits))
    call.scale = ones
    serve.rows(call)
    assert call.grad is not None
    first, call.grad = call.grad, torch.full_like(logits, torch.nan)
    call.row_scale = weight.to(p.accumulator)
    serve.gradient(call)
    assert torch.equal(first.nan_to_num(7), call.grad.nan_to_num(7))
    return call


@pytest.mark.parametrize("softcap", [0.0, 4.0])
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_softmax_of_the_row_pass(
    isa: str, dtypes: tuple[torch.dtype, torch.dtype], softcap: float
) -> None:
    """Record and gradient are those of probabilities that fp64 made of the same logits."""
    logits, t = (3 * normal(N, V, seed=i) for i in (1, 2))
    logits, t = logits.to(dtypes[0]), t.to(dtypes[1])
    t[2, 7] = 60.0  # one class has all of the mass
    t[3] -= 300.0  # far from 0, and 16 bits leave few values
    spec = LossSpec(aux=0.3, smoothing=0.1, softcap=softcap)
    ours = passed(cpp, logits, t, True, spec)
    exact = passed(ref, logits.double(), t.double().softmax(1), False, spec)
    near = passed(ref, logits, t.float().softmax(1), False, spec)
    for stat in Stat:
        if stat != Stat.TAIL:
            rows = (c.stats[stat] for c in (ours, exact, near))
            assert_within_budget(*rows, FORWARD, stat.name)
    assert ours.grad is not None and exact.grad is not None and near.grad is not None
    assert_within_budget(ours.grad, exact.grad, near.grad, BACKWARD, "gradient")
    assert torch.equal(ours.index, exact.index)


def test_edges_of_the_softmax(isa: str) -> None:
    """A class ruled out has mass 0; NaN, and a row without a finite logit, stay NaN."""
    logits, t = normal(N, V, seed=1), normal(N, V, seed=2)
    t[0, 5] = logits[0, 5] = -torch.inf
    t[2, 1], t[3] = torch.nan, -torch.inf
    call = passed(cpp, logits, t, True, LossSpec(aux=0.3))
    row_loss, grad = call.stats[0], call.grad
    assert grad is not None
    assert row_loss[0].isfinite() and row_loss[4].isfinite()
    assert grad[0, 5] == 0 and grad[0].isfinite().all()
    assert row_loss[2].isnan() and row_loss[3].isnan()
    assert grad[2].isnan().any() and grad[3].isnan().any()
    assert row_loss[1] == 0 and not grad[1].any()


def terms(n: int, v: int, scales: tuple[float, ...], biases: bool) -> list[TeacherHead]:
    return [
        TeacherHead(
            a,
            normal(n, 40 + m, seed=m).to(BF16),
            normal(v, 40 + m, seed=9 + m).to(BF16) / 4,
            normal(v, seed=20 + m).to(BF16) if biases else None,
        )
        for m, a in enumerate(scales)
    ]


@pytest.mark.skipif(not gemm.has_kernels(BF16), reason="this CPU multiplies in fp32")
@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("scales", [(0.7,), (2.0, -1.0), (0.5, 3.0, -1.5), (0.0, 1.0)], ids=str)
def test_sum_of_products_in_16_bits(scales: tuple[float, ...], biases: bool) -> None:
    """The target of a chunk is in 16 bits, and nearer to fp64 than a sum of rounded terms."""
    n, v = 80, 600
    teacher = make_teacher(terms(n, v, scales, biases), n, v, torch.empty(n, 1, dtype=BF16), 1.5)
    dtype = target_dtype(teacher, torch.empty(0, dtype=BF16), True)
    target = Target(teacher, 50, dtype, True)
    target.buffer.fill_(torch.nan)  # what the buffer held is not read
    t = target.chunk(slice(30, 80))
    assert t.dtype == dtype == BF16
    eager, truth = torch.zeros(50, v, dtype=BF16), torch.zeros(50, v, dtype=torch.float64)
    for a, hidden, head, bias, _ in terms(n, v, scales, biases):
        eager += a / 1.5 * torch.nn.functional.linear(hidden[30:], head, bias)
        wide = (x if x is None else x.double() for x in (hidden[30:], head, bias))
        truth += a / 1.5 * torch.nn.functional.linear(*wide)
    # The largest term is added last: the other order is 0.85 of eager's squared error for (2, -1).
    share = 0.7 if scales == (2.0, -1.0) else 1.0
    assert (t - truth).square().mean() <= share * (eager - truth).square().mean()
    torch.testing.assert_close(t.double(), truth, rtol=2**-7, atol=2**-7 * float(truth.abs().max()))


@pytest.mark.skipif(not gemm.has_kernels(BF16), reason="this CPU multiplies in fp32")
def test_16_bit_target_only_where_products_round(monkeypatch: pytest.MonkeyPatch) -> None:
    n, v, like = 4, 6, torch.empty(4, 1, dtype=BF16)
    plain = terms(n, v, (1.0, 2.0), True)

    def dtype_of(some: list[TeacherHead], student: Tensor = like, as_logits: bool = True) -> Any:
        return target_dtype(make_teacher(some, n, v, student), student, as_logits)

    assert dtype_of(plain) == BF16
    assert dtype_of(plain, as_logits=False) == FP32
    assert dtype_of(plain, torch.empty(4, 1)) == FP32
    assert dtype_of([plain[0]._replace(softcap=3.0)]) == FP32
    assert dtype_of([plain[0]._replace(scale=torch.tensor(1.0, requires_grad=True))]) == FP32
    wide = TeacherHead(1.0, *(t.float() for t in plain[0][1:3]))
    assert dtype_of([plain[0], wide]) == FP32
    monkeypatch.setattr(gemm, "has_kernels", lambda dtype: False)
    assert dtype_of(plain) == FP32


@pytest.mark.parametrize("divergence", ["cross_entropy", "jsd"])
@pytest.mark.parametrize("extra", [{}, {"reduction": "none"}, {"softcap": 5.0}], ids=str)
def test_loss_with_a_16_bit_target(divergence: str, extra: dict[str, Any]) -> None:
    """Whole call against fp64, in one chunk, in two and in three."""
    n, v = 96, 600
    for rows in (n, n // 2, n // 3):
        options = {"divergence": divergence, "memory_mib": rows * v * 2 / 2**20, **extra}
        call = sample(BF16, n, v, temperature=2.0, **options)
        call["teacher"] = terms(n, v, (1.5, -0.5), True)
        if "reduction" not in extra:
            call |= {"aux": 0.4, "threshold": "median"}
        check("cpp", call, 1.5)


def test_corrections_after_two_chunks_are_summed_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gates that close late add entries to the head's gradient: more than two parts."""
    n, d, v = 64, 16, 200
    hidden, head = normal(n, d, seed=1).to(BF16), normal(v, d, seed=2).to(BF16)
    made: list[torch.dtype] = []
    close = late_gate._add_rank_one
    monkeypatch.setattr(
        late_gate, "_add_rank_one", lambda *a: made.append(a[3].head.head.dtype) or close(*a)
    )
    options = {"memory_mib": n // 2 * v * 2 / 2**20, "aux": 0.5, "threshold": "median"}
    leaves = hidden.requires_grad_(), head.requires_grad_()
    linear_cross_entropy(*leaves, torch.arange(n), **options).backward()
    assert made == [FP32]


def test_two_chunks_need_no_fp32_head_gradient() -> None:
    """The second product is added to the first: as exact as a sum in fp32 of rounded products."""
    n, d, v = 256, 64, 512
    dlogits, hidden = normal(2, n, v, seed=1).to(BF16), normal(2, n, d, seed=2).to(BF16)
    head = torch.empty(v, d, dtype=BF16)
    error, dtypes = {}, {}
    truth = sum(a.double().t() @ b.double() for a, b in zip(dlogits, hidden, strict=True))
    for parts in (2, 3):
        grads = HeadGradient(head, True, parts, with_bias=False)
        assert grads.head is not None
        dtypes[parts] = grads.head.dtype
        for a, b in zip(dlogits, hidden, strict=True):
            grads.add(a.clone(), b)
        made, _ = grads.result()
        assert made is not None and made.dtype == BF16
        error[parts] = (made - truth).square().mean()
    assert dtypes == {2: BF16 if gemm.has_kernels(BF16) else FP32, 3: FP32}
    assert error[2] <= error[3]
