"""``python -m bench.gpu.gpu_worker PART``: measure a part on the CUDA device, print JSON rows."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.cases import cross_entropy, linear, quantile, two_class
from bench.gpu import event_timing, gpu_providers
from bench.gpu.gpu_cases import CASES, Case
from w2s_fast.ops import dispatch, use_backend

_TIMED = 2.5  # seconds a case spends on timed turns


def emit(**row: Any) -> None:
    """Print a row at once, so that a crash of a later case does not lose it."""
    short = {k: float(f"{x:.4g}") if isinstance(x, float) else x for k, x in row.items()}
    print(json.dumps(short), flush=True)


def forced(provider: str) -> Any:
    """Force the backend of ``ours_triton``; ``ours`` uses the default backend."""
    return use_backend("triton") if provider == "ours_triton" else nullcontext()


def backend_name(op: str, dtype: torch.dtype) -> str:
    """Return the name of the default backend of CUDA tensors."""
    module = dispatch.backend(op, torch.empty(0, dtype=dtype, device="cuda")).__name__
    return next(b for b in dispatch.BACKENDS if dispatch.MODULES[op][b] == module)


def distinct_providers(case: Case, op: str) -> list[str]:
    """Return the providers, without ``ours_triton`` if Triton is the default backend."""
    is_default = backend_name(op, cross_entropy.DTYPES[case.dtype]) == "triton"
    return [p for p in case.providers if not (is_default and p == "ours_triton")]


def measure(
    case: Case,
    calls: dict[str, Callable[[], Any]],
    before: Callable[[str], None],
    moved: dict[str, float],
    errors: Callable[[str], dict[str, float]],
) -> None:
    """Measure errors, peak memory, then time of every call; ``moved``: minimal bytes and flops."""
    columns = {"op": case.op, "case": case.loss, "dtype": case.dtype, "n": case.n, "v": case.v}
    columns |= {"d": case.d} if case.d else {}
    columns |= {"target_ms": case.target_ms} if case.target_ms else {}

    def drop(name: str, error: Exception) -> None:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        emit(kind="skipped", **columns, provider=name, why=reason)

    measured: dict[str, dict[str, float]] = {}
    for name in list(calls):
        try:
            with forced(name):
                measured[name] = errors(name)
                before(name)
                calls[name]()  # compiles, which peak memory must not include
                measured[name]["peak_mib"] = event_timing.peak_mib(
                    partial(before, name), calls[name]
                )
        except Exception as e:  # another library may not support this GPU
            drop(name, e)
            del calls[name]
        torch.cuda.empty_cache()

    def run(name: str) -> None:
        with forced(name):
            calls[name]()

    times = event_timing.interleave({n: partial(run, n) for n in calls}, before, _TIMED, drop)
    for name, time_ms in times.items():
        ms = time_ms["ms_p50"]
        row: dict[str, Any] = {"provider": name, **time_ms, **measured[name]}
        row |= {"ratio_to_ours": ms / times["ours"]["ms_p50"]} if "ours" in times else {}
        row |= {"gbps": moved["bytes"] / ms / 1e6} if moved.get("bytes") else {}
        row |= {"tflops": moved["flops"] / ms / 1e9} if moved.get("flops") else {}
        if name.startswith("ours"):
            op = "quantile" if case.op == "quantile" else "cross_entropy"
            with forced(name):
                row["backend"] = backend_name(op, cross_entropy.DTYPES[case.dtype])
        emit(kind="time", **columns, **row)


def dense(case: Case) -> None:
    """Measure forward and backward of the loss from logits; a buffer stands in for the model."""
    x = cross_entropy.make_inputs(case.loss, case.dtype, case.n, case.v, "cuda")
    table = gpu_providers.dense_losses(case, x, distinct_providers(case, "cross_entropy"), emit)
    truth = cross_entropy.truth(case.loss, x)
    seed = torch.zeros((), device="cuda", requires_grad=True)
    work = torch.empty_like(x.logits)  # some overwrite the logits with the gradient

    def step(name: str) -> None:
        logits = work if name in gpu_providers.INPLACE else x.logits
        table[name](cross_entropy.Upstream.apply(seed, [logits])).backward()

    def before(name: str) -> None:
        seed.grad = None
        if name in gpu_providers.INPLACE:
            work.copy_(x.logits)

    passes = 3 if isinstance(x.ours, Tensor) and x.ours.dim() == 2 else 2
    moved = {"bytes": passes * x.logits.nbytes}
    calls = {name: partial(step, name) for name in table}
    measure(case, calls, before, moved, lambda n: cross_entropy.errors(x, table[n], truth))


def head(case: Case) -> None:
    """Measure forward and backward of the loss from hidden states."""
    x = linear.make_inputs(case.loss, case.dtype, case.n, case.d, case.v, "cuda")
    table = gpu_providers.linear_losses(case, x, distinct_providers(case, "cross_entropy"), emit)
    truth = linear.truth(case.loss, x)
    calls: dict[str, Callable[[], Any]] = {
        name: partial(linear.step, x, call) for name, call in table.items()
    }
    moved = {"flops": 6.0 * case.n * case.v * case.d}
    measure(
        case, calls, lambda _: linear.reset(x), moved, lambda n: linear.errors(x, table[n], truth)
    )


def order_statistic(case: Case) -> None:
    """Measure the median of many scores."""
    scores = quantile.make_inputs(case.n).cuda()
    candidates = quantile.candidates(scores, case.providers)
    calls: dict[str, Callable[[], Any]] = {n: c.call for n, c in candidates.items()}

    def errors(name: str) -> dict[str, float]:
        return {"value_err": quantile.error(scores)} if name == "ours" else {}

    measure(case, calls, lambda _: None, {"bytes": scores.nbytes}, errors)


def small_batch(case: Case) -> None:
    """Measure the confidence loss of a small batch over two classes, dominated by launches."""
    logits, labels = (t.cuda() for t in two_class.make_inputs(case.n))
    names = distinct_providers(case, "cross_entropy")
    table = two_class.losses(labels, names)
    if "ours_triton" in names:
        table["ours_triton"] = table["ours"]
    leaf = logits.clone().requires_grad_()

    def step(name: str) -> None:
        table[name](leaf).backward()

    def before(_: str) -> None:
        leaf.grad = None

    calls = {name: partial(step, name) for name in table}
    measure(case, calls, before, {}, lambda n: two_class.errors(logits, labels, table[n]))


RUN = {
    "cross_entropy": dense,
    "linear": head,
    "quantile": order_statistic,
    "two_class": small_batch,
}


def main(args: list[str]) -> int:
    """Measure the named part; return the exit code."""
    torch.manual_seed(0)
    if args == ["ceilings"]:
        emit(kind="ceilings", **event_timing.ceilings())
        return 0
    start = time.monotonic()
    failed = 0
    for case in CASES[args[0]].cases:
        try:
            RUN[case.op](case)
        except torch.cuda.OutOfMemoryError as e:
            emit(kind="skipped", op=case.op, case=case.loss, dtype=case.dtype, n=case.n, v=case.v,
                provider="all", why=str(e).splitlines()[0][:300])  # fmt: skip
        except torch.AcceleratorError:
            raise  # the device is unusable in this process
        except Exception as e:
            failed = 1
            print(f"{case}: {type(e).__name__}: {e}", file=sys.stderr)
        torch.cuda.empty_cache()
    print(f"{time.monotonic() - start:.1f} s", file=sys.stderr)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
