"""Long rows on the CPU: summed in parts, and shared by threads where there are fewer rows.

A part has 16384 classes; two threads share rows of more than about 100000.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from w2s_fast.ops import dispatch, use_backend
from w2s_fast.ops.cross_entropy import cpp
from w2s_fast.ops.loss_call import LossSpec, RowCall, new_record
from w2s_fast.ops.reference import KINDS, cross_entropy_sample
from w2s_fast.ops.targets import make_inputs
from w2s_fast.testing import assert_cross_entropy, run_cross_entropy

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
PART, LONG = 1 << 14, 150_001
INF, NAN = float("inf"), float("nan")

pytestmark = pytest.mark.skipif(
    bool(dispatch.missing("cpp")), reason=f"backend cpp is missing: {dispatch.missing('cpp')}"
)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def sample(kind: str, n: int, v: int, dtype: torch.dtype = FP32, **kw: Any) -> dict[str, Any]:
    return cross_entropy_sample(n, v, dtype, "cpu", n + v, kind=kind) | kw


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_threads_change_no_bit(threads: None, kind: str, n: int) -> None:
    """Record and gradient, in one pass and from the record, in place and beside the logits."""
    terms: tuple[dict[str, Any], ...] = ({}, {"smoothing": 0.1}, {"softcap": 20.0})
    for dtype, term in zip((FP32, BF16, FP16), terms, strict=True):
        for reduction in ("sum", "none"):
            call = sample(kind, n, LONG, dtype, aux=0.4, rule="argmax", **term)
            call |= {"reduction": reduction, "inplace": reduction == "sum"}
            results = []
            for count in (1, 2):
                torch.set_num_threads(count)
                out, grad, _ = run_cross_entropy("cpp", call)
                assert out.stats is not None
                values = (out.stats.loss, out.stats.lse, out.stats.entropy, out.stats.argmax, grad)
                results.append([x.nan_to_num(7.0) for x in values])
            assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_several_threads_work_on_one_row(threads: None) -> None:
    """Seen by their CPU time, which a busy machine does not change; waiting threads sleep."""
    call = sample("hard", 1, 4_000_000)
    p = make_inputs(call["logits"], call["weak"])
    one = RowCall(p, LossSpec(), *new_record(p), grad=torch.empty_like(p.logits))
    own, whole = time.thread_time(), time.process_time()
    for _ in range(10):
        cpp.rows(one)
    own, whole = time.thread_time() - own, time.process_time() - whole
    assert own < 0.7 * whole


@pytest.mark.parametrize("kind", KINDS)
def test_parts_match_fp64(threads: None, kind: str) -> None:
    for v in (PART, PART + 1, 3 * PART + 17, LONG):
        assert_cross_entropy("cpp", sample(kind, 3, v, aux=0.4, rule="argmax", smoothing=0.1))


def rows_of_parts() -> Tensor:
    """Logits of which parts differ: where the largest ones are, and where none is finite."""
    g = torch.Generator().manual_seed(3)
    z = torch.randn(10, 4 * PART, generator=g)
    z[0, 2 * PART + 5] = 90.0  # far above the point where every part starts
    z[1, PART:] -= 300.0
    z[2, : 3 * PART] -= 300.0
    z[3, : PART // 2] = -INF  # no finite logit in the first blocks
    z[4, : 3 * PART] = -INF
    z[5, PART : 2 * PART] = -INF
    z[6] += 1e4
    z[7, : 2 * PART] -= 1e4
    z[8] *= 30.0
    z[9] -= 1e4  # the parts without a finite logit are not taken as near 0
    z[9, : PART // 2] = z[9, 2 * PART :] = -INF
    return z


@pytest.mark.parametrize("kind", ["hard", "dense"])
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_parts_that_differ(threads: None, kind: str, dtype: torch.dtype) -> None:
    z = rows_of_parts().to(dtype)
    weak: Tensor = z.argmax(1)
    if kind == "dense":
        weak = torch.where(z.isinf(), 0.0, z.float().div(8).softmax(1))
    # The focal factor reads the weak label's top class, which lies in any part.
    terms = {"aux": 0.3, "rule": "argmax", "focal_gamma": 1.5}
    for rows in (slice(None), slice(0, 1), slice(4, 5)):
        assert_cross_entropy("cpp", {"logits": z[rows], "weak": weak[rows], **terms})
    finite = ~z.isinf().any(1)  # the mean of the others is -inf
    call = {"logits": z[finite], "weak": weak[finite], "smoothing": 0.1, **terms}
    assert_cross_entropy("cpp", call)


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("at", [7, 2 * PART + 9, LONG - 1])
def test_a_part_without_a_softmax_spoils_the_row(threads: None, bad: float, at: int) -> None:
    z = torch.zeros(1, LONG)
    z[0, at] = bad
    with use_backend("cpp"):
        out, grad, _ = run_cross_entropy(
            "cpp", {"logits": z, "weak": torch.tensor([3]), "aux": 0.3, "rule": "argmax"}
        )
    assert out.stats is not None
    assert bool(out.loss.isnan()) and bool(grad.isnan().all()) and bool(out.stats.lse.isnan())


def test_the_first_of_equal_maxima_is_found(threads: None) -> None:
    z = torch.zeros(1, LONG)
    z[0, [PART + 3, 3 * PART, LONG - 2]] = 5.0
    out, _, _ = run_cross_entropy("cpp", {"logits": z, "weak": torch.tensor([0])})
    assert out.stats is not None and out.stats.argmax.tolist() == [PART + 3]
