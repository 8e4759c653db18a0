"""``python -m bench.gpu.parity``: every backend against the reference in fp64, on the device.

The calls are few and small: they show within a minute whether a backend is right at all on this
machine. The tests of the ops say it in full.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import w2s_fast
from w2s_fast.ops.dispatch import use_backend
from w2s_fast.ops.reference import KINDS, Own, cross_entropy_reference, cross_entropy_sample
from w2s_fast.ops.weak_loss import weak_loss
from w2s_fast.testing import BACKWARD, FORWARD, assert_within_budget, available_backends

_ROWS = 9
_DTYPES = (torch.bfloat16, torch.float32)
Check = Callable[[], None]


def dense_calls(device: str) -> Iterator[tuple[str, Check]]:
    """Yield losses of logits by form of the weak label, classes and dtype, with a batch gate."""
    for v in (2, 131, 50257):
        for kind in KINDS:
            for dtype in _DTYPES:
                if (v, kind) != (2, "rest"):  # both classes are among the top two
                    yield (
                        f"cross_entropy {kind} {v} {dtype}",
                        lambda c=(v, kind, dtype): dense(device, *c),
                    )


def dense(device: str, v: int, kind: str, dtype: torch.dtype) -> None:
    """Check one loss with its gradient; the decisions of its gate are shared.

    Raises:
        AssertionError: for an error over the budget.
    """
    call = cross_entropy_sample(_ROWS, v, dtype, device, seed=v, kind=kind)
    logits, terms = call.pop("logits"), {"aux": 0.4, "smoothing": 0.1}
    z = logits.clone().requires_grad_()
    rule = "prior" if v == 2 else "median"
    out = weak_loss(z, **call, **terms, rule=rule, reduction="sum", return_stats=True)
    out.loss.backward()
    stats = out.stats
    assert stats is not None
    zero = torch.zeros((), device=device)
    own = Own(stats.coefficient.double().nan_to_num(0.0), stats.hard_class, stats.max_prob, zero)
    truth = _reference(logits.double(), call, terms, own)
    eager = _reference(logits.to(torch.float32), call, terms, own)
    assert z.grad is not None
    assert_within_budget(out.loss.detach(), truth[0], eager[0], FORWARD, "loss")
    assert_within_budget(z.grad, truth[1], eager[1].to(dtype), BACKWARD, "gradient")


def _reference(z: Tensor, call: dict[str, Any], terms: dict[str, Any], own: Own) -> list[Tensor]:
    z = z.clone().requires_grad_()
    loss = cross_entropy_reference(z, **call, **terms, own=own, reduction="sum")
    loss.backward()
    assert z.grad is not None
    return [loss.detach(), z.grad]


def other_calls(device: str) -> Iterator[tuple[str, Check]]:
    """Yield a fused head in chunks, top-k log-probabilities and an order statistic."""
    for dtype in _DTYPES:
        yield f"linear_cross_entropy {dtype}", lambda d=dtype: head(device, d)
        yield f"topk_logprob {dtype}", lambda d=dtype: topk(device, d)
    yield "quantile", lambda: order_statistic(device)


def head(device: str, dtype: torch.dtype) -> None:
    """Check the gradients of a fused head whose logits take several chunks.

    Raises:
        AssertionError: for an error over the budget.
    """
    n, d, v = 96, 64, 4099
    g = torch.Generator().manual_seed(0)
    parts = [torch.randn(s, generator=g).to(device, dtype) for s in ((n, d), (v, d))]
    ids = torch.randint(v, (n,), generator=g).to(device)
    leaves = [t.clone().requires_grad_() for t in parts]
    chunk = 32 * v * dtype.itemsize / 2**20
    w2s_fast.linear_cross_entropy(*leaves, ids, memory_mib=chunk).backward()
    wide, eager = (_head_in_full(parts, ids, as_dtype) for as_dtype in (torch.float64, dtype))
    for got, true, near in zip(leaves, wide, eager, strict=True):
        assert got.grad is not None
        assert_within_budget(got.grad, true, near, BACKWARD, "gradient")


def _head_in_full(parts: list[Tensor], ids: Tensor, dtype: torch.dtype) -> list[Tensor]:
    leaves = [t.to(dtype, copy=True).requires_grad_() for t in parts]
    logits = torch.nn.functional.linear(*leaves)
    wide = logits.to(torch.promote_types(dtype, torch.float32))
    torch.nn.functional.cross_entropy(wide, ids).backward()
    return [t.grad for t in leaves if t.grad is not None]


def topk(device: str, dtype: torch.dtype) -> None:
    """Check log-probabilities of the top classes.

    Raises:
        AssertionError: for an error over the budget.
    """
    logits = torch.randn(_ROWS, 4099, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    ids = logits.topk(5).indices
    logp, _ = w2s_fast.topk_logprob(logits, ids)
    truth, eager = (
        logits.to(t).log_softmax(1).gather(1, ids) for t in (torch.float64, torch.float32)
    )
    assert_within_budget(logp, truth, eager, FORWARD, "log-probabilities")


def order_statistic(device: str) -> None:
    """Check that a quantile between scores is that of torch.

    Raises:
        AssertionError: if it differs.
    """
    scores = torch.randn(5001, generator=torch.Generator().manual_seed(2)).to(device)
    for q in (0.0, 0.3, 0.5, 1.0):
        expected = torch.quantile(scores.double(), q)
        near = torch.quantile(scores, q)
        assert_within_budget(w2s_fast.quantile(scores, q), expected, near, FORWARD, f"quantile {q}")


def parity(backend: str, device: str) -> dict[str, Any]:
    """Run all calls on a backend; return its row."""
    failed, calls = [], 0
    with use_backend(backend):
        for make in (dense_calls, other_calls):
            for name, check in make(device):
                calls += 1
                try:
                    check()
                except Exception as e:  # every other call still says something
                    failed.append(f"{name}: {type(e).__name__}: {e}".splitlines()[0][:300])
    return {"kind": "parity", "backend": backend, "calls": calls, "failed": failed}


def main(device: str = "cuda") -> int:
    """Print a row a backend; return 1 if a call failed."""
    worst = 0
    for backend in available_backends():
        if backend != "cpp" or device == "cpu":
            row = parity(backend, device)
            print(json.dumps(row), flush=True)
            worst |= bool(row["failed"])
    return worst


if __name__ == "__main__":
    sys.exit(main())
