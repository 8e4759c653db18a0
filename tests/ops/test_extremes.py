"""Infinite, NaN and huge logits and targets: every backend gives the formula's value, or NaN.

One call holds a row for each extreme. Truth is written here in plain fp64, from the same inputs.
The compiled core is run with each of its instruction sets, the narrower ones in processes of their
own: this file is their program.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

import pytest
import torch
from helpers.extreme_rows import (
    BF16,
    BLOCK,
    FP16,
    FP32,
    INF,
    LABEL,
    LEAST,
    NAN,
    NANS,
    Case,
    case,
    chosen,
    logit_rows,
    nan_of,
    times,
    truth,
)
from helpers.paths import PYTHONPATH
from torch import Tensor

import w2s_fast
from w2s_fast import SparseTargets
from w2s_fast.ops import dispatch, use_backend
from w2s_fast.ops.cross_entropy.algorithm import solve
from w2s_fast.ops.loss_call import LossSpec
from w2s_fast.ops.targets import make_inputs
from w2s_fast.ops.weak_loss import weak_loss

# Triton's interpreter computes with numpy, which warns.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def compare(name: str, rows: list[str], actual: Tensor, expected: Tensor, room: float) -> None:
    """Infinities and NaN in the same places, the rest within ``room`` of the larger of 1 and it."""
    if not actual.is_floating_point():
        off = actual != expected
    else:
        expected = expected.to(actual.dtype)
        near = (
            actual.double() - expected.double()
        ).abs() <= room * expected.double().abs().clamp_min(1)
        off = ~(near | (actual == expected) | (actual.isnan() & expected.isnan()))
    if bool(off.any()):
        i = tuple(int(x) for x in off.nonzero()[0])
        bad = sorted({rows[int(i[0])] for i in off.nonzero()})
        raise AssertionError(f"{name} of {bad}: {float(actual[i])} for {float(expected[i])} at {i}")


def call(c: Case, reduction: str, **kw: Any) -> tuple[Any, Tensor]:
    z = c.logits.clone().requires_grad_()
    out = weak_loss(z, c.weak, reduction=reduction, return_stats=True, **kw)
    out.loss.sum().backward()
    assert z.grad is not None
    return out.stats, z.grad


def self_target(c: Case, aux: float, softcap: float) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Coefficient, class and how the op is asked for them; two classes take the margin 0."""
    z, n = c.logits.double(), len(c.logits)
    if softcap:
        z = softcap * torch.tanh(z / softcap)
    if z.shape[1] == 2:
        own, kw = (
            (~(z[:, 0] - z[:, 1] >= 0)).long(),
            {"rule": "fixed", "threshold": torch.zeros(())},
        )
    else:
        top = z.amax(1, keepdim=True)
        own, kw = (z == top).double().argmax(1), {"rule": "argmax"}
    return torch.full((n,), aux).double(), own, kw | {"aux": aux}


KINDS = ("hard", "dense", "dense fp32", "sparse", "rest")


def check_table(backend: str, kind: str, v: int, dtype: torch.dtype, **kw: Any) -> None:
    aux, smoothing = kw.pop("aux", 0.0), kw.pop("smoothing", 0.0)
    softcap, reduction = kw.pop("softcap", 0.0), kw.pop("reduction", "sum")
    c, names = case(kind, v, dtype), kw.pop("names", None)
    c = c if names is None else chosen(c, names)
    a, own, rule = self_target(c, aux, softcap)
    expected = truth(c, a, own, smoothing, softcap)
    with use_backend(backend):
        stats, grad = call(c, reduction, smoothing=smoothing, softcap=softcap, **rule)
    where = f"{backend} {kind} {v} {dtype} {aux} {smoothing} {softcap} {reduction}: "
    room = {FP32: 2e-5, BF16: 2**-7, FP16: 2**-9}[dtype]
    compare(where + "gradient", c.names, grad, expected.pop("gradient"), room)
    for name, value in expected.items():
        compare(where + name, c.names, getattr(stats, name), value, 3e-5)


# What a call adds to plain cross-entropy, each with the kinds of target whose code it reaches.
EXTRAS: tuple[dict[str, Any], ...] = (
    {}, {"aux": 0.4}, {"aux": 1.0}, {"smoothing": 0.1}, {"softcap": 5.0}, {"reduction": "none"},
)  # fmt: skip


def check_all(backend: str, dtype: torch.dtype, kind: str) -> None:
    for extra in EXTRAS if dtype == FP32 else EXTRAS[:1]:
        for v in (2, 37):
            if (kind, v) != ("rest", 2):
                check_table(backend, kind, v, dtype, **extra)
    if dtype != FP16:
        check_table(backend, kind, BLOCK + 101, dtype, aux=0.4)


# Triton's interpreter takes a tenth of a second a row: it gets a few, and one extra for each kind.
FEW = {
    FP32: ("plain", "all least", "least in front", "+inf at 0", "+1e+10 behind", "q inf"),
    BF16: ("plain", "-inf, one left", "NaN 7fffffff", "q NaN 7fffffff"),
    FP16: ("all -inf", "-inf at 1"),
}


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_table(backend: str, kind: str, dtype: torch.dtype) -> None:
    if backend == "triton":
        extra = EXTRAS[KINDS.index(kind)]
        check_table(backend, kind, 37, dtype, names=FEW[dtype], **extra)
    else:
        check_all(backend, dtype, kind)


def test_narrow_instruction_sets() -> None:
    """The narrower instruction sets, each chosen once in a process: both run while we wait."""
    runs = []
    for isa in ("avx2", "base"):
        env = os.environ | {
            "PYTHONPATH": PYTHONPATH, "W2S_CPU_CAPABILITY": isa, "OMP_NUM_THREADS": "1"
        }  # fmt: skip
        command = [sys.executable, __file__]
        runs.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True))
    assert [run.communicate(timeout=120)[0].strip() for run in runs] == ["ok", "ok"]


@pytest.mark.skipif(
    bool(dispatch.missing("cpp")), reason="backend cpp is missing: no compiled core"
)
@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
def test_nan_past_the_caches(dtype: torch.dtype) -> None:
    """Large gradients are stored by other instructions: one NaN label makes all of its row NaN."""
    z = torch.zeros(2, 1 << 22, dtype=dtype)
    for bits in NANS[:3]:
        q = torch.full((2, 1 << 22), 2.0**-22)
        q[1, 77] = nan_of(bits)
        grad = call(Case([], z, q, q, q, q), "sum")[1]
        assert float(grad[0].abs().amax()) < 1e-9 and bool(grad[1].isnan().all()), hex(bits)


@pytest.mark.skipif(
    bool(dispatch.missing("cpp")), reason="backend cpp is missing: no compiled core"
)
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "dense"])
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_masked_classes_cost_nothing(dtype: torch.dtype, soft: bool) -> None:
    """They made the kernel pass the row twice, 1.3 to 1.5 times the time; 1.0 is usual now."""
    g = torch.Generator().manual_seed(0)
    plain = torch.randn(16, 32000, generator=g)
    masked = {"none": plain, "ten": plain.clone(), "padding": plain.clone()}
    masked["ten"][:, 1000:32000:3100] = -INF
    masked["padding"][:, -400:] = LEAST
    weak = torch.full((16,), LABEL)
    if soft:
        weak = torch.rand(16, 32000, generator=g)
        weak[:, 1000:32000:3100] = weak[:, -400:] = 0
        weak = (weak / weak.sum(1, keepdim=True)).to(dtype)
    problems = {name: make_inputs(z.to(dtype), weak) for name, z in masked.items()}
    buffer, threads = torch.empty_like(plain, dtype=dtype), torch.get_num_threads()
    best = dict.fromkeys(problems, INF)
    torch.set_num_threads(1)
    try:
        with use_backend("cpp"):
            for _ in range(60):
                for name, p in problems.items():
                    start = time.thread_time()
                    solve(p, LossSpec(), buffer, True)
                    best[name] = min(best[name], time.thread_time() - start)
    finally:
        torch.set_num_threads(threads)
    assert max(best.values()) < 1.2 * best["none"], best


# Logits of two classes with infinite margins, and their quantile's two neighbours.
MARGINS = {
    "between both infinities": [[0.0, -INF], [-INF, 0.0]],
    "above -inf": [[-INF, 0.0], [5.0, 0.0]],
    "below +inf": [[3.0, 0.0], [0.0, -INF]],
    "all -inf": [[-INF, 0.0], [-INF, 1.0]],
    "three": [[-INF, 0.0], [LEAST, 0.0], [0.0, LEAST], [0.0, -INF]],
    "a gap that overflows": [[0.0, 3e38], [3e38, 0.0]],
}


@pytest.mark.parametrize("rule", ["prior", "median"])
@pytest.mark.parametrize("name", MARGINS)
def test_quantile_of_infinite_margins(backend: str, name: str, rule: str) -> None:
    """As the docstring of the loss has it, by probabilities, between which nothing is infinite."""
    z = torch.tensor(MARGINS[name])
    p = z.double().softmax(1)
    weak = torch.tensor([0, 1, 0, 1][: len(z)])
    at = torch.quantile(p[:, 0], weak.double().mean() if rule == "prior" else 0.5)
    own = torch.stack([p[:, 0] >= at, p[:, 0] < at], 1).double()
    target = 0.5 * torch.nn.functional.one_hot(weak, 2) + 0.5 * own
    rows = -times(target, z.double().log_softmax(1)).sum(1)
    for reduction in ("sum", "none"):
        x = z.clone().requires_grad_()
        with use_backend(backend):
            out = weak_loss(x, weak, aux=0.5, rule=rule, reduction=reduction, return_stats=True)
            out.loss.sum().backward()
        compare("loss", [name] * 4, out.stats.loss, rows, 1e-6)
        compare("gradient", [name] * 4, x.grad, p - target, 1e-6)
        assert torch.equal(out.stats.hard_class, own.argmax(1))


def test_quantile_beside_infinity(backend: str) -> None:
    for x, q, expected in (
        ([-INF, INF], 0.5, INF), ([-INF, 5.0], 0.25, 5.0), ([-INF, 5.0], 0.75, 5.0),
        ([5.0, INF], 0.25, INF), ([5.0, INF], 0.75, INF), ([-INF, 5.0, INF], 0.5, 5.0),
        ([-INF, -INF, 1.0], 0.5, -INF), ([-INF, INF, INF], 0.75, INF), ([-INF, INF], 0.0, -INF),
        ([-3e38, 3e38], 0.5, 0.0), ([-3e38, 3e38], 0.75, 1.5e38), ([-3e38, 3e38], 0.25, -1.5e38),
    ):  # fmt: skip
        with use_backend(backend):
            actual = float(w2s_fast.quantile(torch.tensor(x), q))
        assert actual == pytest.approx(expected, rel=1e-6), (x, q)


@pytest.mark.parametrize("v", [2, 37])
@pytest.mark.parametrize("kind", ["hard", "dense", "sparse"])
def test_rows_that_do_not_count(backend: str, kind: str, v: int) -> None:
    """Weight 0 or an ignored label: loss and gradient are exactly 0, whatever the row holds."""
    extremes = [NAN] if backend == "triton" else [NAN, INF, -INF, LEAST, 1e30]
    z = torch.tensor(extremes)[:, None].repeat(1, v)
    z = torch.cat([z, torch.zeros(1, v)])
    n = len(z)
    for counted, reduction in ((1, "none"), (1, "mean"), (0, "mean")):  # 0: no row at all
        weight = torch.zeros(n).index_fill(0, torch.tensor([n - 1]), float(counted))
        weak: Any = torch.where(weight > 0, LABEL, -100)
        kw: dict[str, Any] = {} if kind == "hard" else {"weight": weight}
        if kind == "dense":
            weak = torch.where(weight[:, None] > 0, 1 / v, NAN).expand(n, v)
        elif kind == "sparse":
            weak = SparseTargets(
                torch.full((n, 1), LABEL), torch.where(weight > 0, 1.0, NAN)[:, None]
            )
        kw |= {"aux": 0.5, "rule": "median", "smoothing": 0.1, "z_loss": 0.1}
        x = z.clone().requires_grad_()
        with use_backend(backend):
            loss = weak_loss(x, weak, reduction=reduction, **kw).loss
            loss.sum().backward()
        assert bool(loss.isfinite().all()) and bool(x.grad.isfinite().all())
        assert bool((x.grad[: n - counted] == 0).all())


def test_factors_and_z_loss(backend: str) -> None:
    """Focal, window and z-loss: an impossible label counts in full, a masked class not at all."""
    z = torch.tensor([[0.0, 1.0, -INF], [0.0, -INF, 1.0], [0.0, NAN, 1.0], [-INF, 0.0, -INF]])
    y = torch.full((4,), LABEL)
    wide = z.double()
    logp = wide.log_softmax(1)[:, LABEL]
    for kw, expected in (
        ({"focal_gamma": 2.0}, times((1 - logp.exp()) ** 2, -logp)),
        ({"max_confidence": 0.9}, torch.where(wide.softmax(1).amax(1) >= 0.9, 0.0, -logp)),
        ({"z_loss": 0.1}, 0.1 * wide.logsumexp(1) ** 2 - logp),
    ):
        x = z.clone().requires_grad_()
        with use_backend(backend):
            out = weak_loss(x, y, return_stats=True, **kw)
            out.loss.backward()
        compare(str(kw), ["a", "b", "c", "d"], out.stats.loss, expected, 1e-6)
        assert x.grad.isfinite().all(1).tolist() == [True, True, False, True]


# Each makes the factor of the first row of ``_sure`` 0.
FACTORS = {"focal": {"focal_gamma": 2.0}, "window": {"max_confidence": 0.9}}


def _sure(v: int, lower: float, dtype: torch.dtype) -> Tensor:
    """A row whose first class is certain, and one whose factor is not 0."""
    z = torch.tensor([[0.0, lower], [0.0, 1.0]], dtype=dtype)
    return torch.nn.functional.pad(z, (0, v - 2), value=-INF)


def _losses(backend: str, z: Tensor, weak: Tensor, **kw: Any) -> tuple[Tensor, Tensor]:
    x = z.clone().requires_grad_()
    with use_backend(backend):
        loss = weak_loss(x, weak, **kw).loss
        loss.sum().backward()
    assert x.grad is not None
    return loss.detach(), x.grad


@pytest.mark.parametrize("v", [2, 3])
@pytest.mark.parametrize("kind", ["focal", "window", "window hard"])
def test_a_factor_of_0_removes_an_impossible_label(backend: str, kind: str, v: int) -> None:
    """0 times an infinite loss is 0: the row does not count."""
    weak = torch.tensor([[0.6, 0.4, 0.0], [0.3, 0.7, 0.0]])[:, :v]
    weak = torch.tensor([1, 1]) if kind.endswith("hard") else weak
    factor = FACTORS[kind.split()[0]]
    for dtype, reduction in ((FP32, "sum"), (FP32, "none"), (FP16, "sum")):
        z = _sure(v, -INF, dtype)
        expected, slope = _losses("ref", z[1:].double(), weak[1:], reduction="sum", **factor)
        loss, grad = _losses(backend, z, weak, reduction=reduction, **factor)
        assert float(loss.sum()) == pytest.approx(float(expected), rel=1e-6)
        assert not bool(grad[0].any())
        torch.testing.assert_close(grad[1:].double(), slope, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("v", [2, 3])
@pytest.mark.parametrize("factor", FACTORS)
def test_a_factor_of_0_keeps_a_nan_label(backend: str, factor: str, v: int) -> None:
    for q in ([NAN, 0.5, 0.0], [0.5, NAN, 0.0]):
        weak = torch.tensor([q, [0.3, 0.7, 0.0]])[:, :v]
        for dtype, reduction in ((FP32, "sum"), (FP32, "none"), (FP16, "sum")):
            z = _sure(v, -60.0, dtype)
            loss, grad = _losses(backend, z, weak, reduction=reduction, **FACTORS[factor])
            assert bool((loss if reduction == "sum" else loss[0]).isnan())
            assert bool(grad[0].isnan().all()) and bool(grad[1].isfinite().all())


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_logprob_tails(backend: str, dtype: torch.dtype) -> None:
    rows = logit_rows(37, dtype)
    if backend == "triton":
        rows = {k: rows[k] for k in ("plain", "-inf, one left", "all least", "+inf at 0", "+1e+10")}
    z, names = torch.stack(list(rows.values())), list(rows)
    ids = torch.tensor([LABEL, -1, 36]).repeat(len(z), 1)
    wide = z.double().log_softmax(1)
    wide = torch.where(z.isnan().any(1, keepdim=True), NAN, wide)
    logp = wide.gather(1, ids.clamp_min(0))
    logp[:, 1] = 0
    outside = wide.index_fill(1, torch.tensor([LABEL, 36]), -INF)
    x = z.clone().requires_grad_()
    with use_backend(backend):
        actual, tail = w2s_fast.topk_logprob(x, ids)
        actual[:, 0].sum().backward()
    compare("logp", names, actual, logp, 3e-5)
    compare("tail", names, tail, outside.logsumexp(1), 3e-5)
    hot = torch.nn.functional.one_hot(ids[:, 0], 37)
    compare("gradient", names, x.grad, hot - wide.exp(), {FP32: 2e-5, BF16: 2**-7}[dtype])


def test_linear_logprob_of_masked_classes() -> None:
    """A bias of -inf masks a class; hidden states of 1 and a head of logits."""
    z = torch.tensor([[0.0, 1.0, -INF, 2.0]])
    hidden, head = torch.zeros(1, 1), torch.zeros(4, 1)
    logp, tail = w2s_fast.linear_topk_logprob(hidden, head, torch.tensor([[1, 3]]), bias=z[0])
    assert logp[0].tolist() == pytest.approx(z.log_softmax(1)[0, [1, 3]].tolist())
    assert float(tail) == pytest.approx(float(z.log_softmax(1)[0, 0]))
    _, tail = w2s_fast.linear_topk_logprob(hidden, head, torch.tensor([[0, 1, 3]]), bias=z[0])
    assert float(tail) == -INF


def main() -> None:
    for dtype in (FP32, BF16, FP16):
        for kind in ("hard", "dense", "dense fp32", "rest"):
            check_all("cpp", dtype, kind)
    print("ok")


if __name__ == "__main__":
    main()


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_one_class(backend: str, z_loss: float) -> None:
    """Its probability is 1: nothing is left of the label's part, and the z-loss is z_loss z^2."""
    z = torch.tensor([[0.0], [-3.0], [1e4], [0.25]]).requires_grad_()
    for weak in (torch.tensor([0, 0, 0, -100]), torch.tensor([[1.0], [0.3], [1.0], [0.0]])):
        with use_backend(backend):
            out = weak_loss(z, weak, z_loss=z_loss, reduction="none")
            (grad,) = torch.autograd.grad(out.loss.sum(), z)
        x = z.detach().double()[:3]
        torch.testing.assert_close(out.loss[:3].double(), z_loss * x[:, 0] ** 2, rtol=1e-6, atol=0)
        torch.testing.assert_close(grad[:3].double(), 2 * z_loss * x, rtol=1e-6, atol=2e-7)
