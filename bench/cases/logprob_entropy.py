"""``python -m bench logprob_entropy``: log-probabilities with entropy from a head, and TRL's.

A step is forward and backward of -mean(log p) - 0.01 mean(H) over N tokens. ``ours`` has a budget
of 256 MiB for logits, ``ours_64mib`` the default one; ``trl`` is ``ChunkedLogProbFunction`` with
the chunk of its trainers and the entropy alone; ``eager`` stores all logits. Values and gradients
of each are compared with fp64 before it is timed, and its peak memory is measured.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import w2s_fast
from bench.cases import linear
from bench.harness import peak_memory
from bench.harness.cpu_timing import Candidate, interleave
from bench.harness.environment import environment
from bench.harness.row_files import Row, add_output_options, store

SHAPES = ((1024, 1024, 32000), (4096, 512, 32000))  # N, D, V
PROVIDERS = ("ours", "ours_64mib", "trl", "eager")
_ENTROPY_COEF = 0.01
_TRL_CLASSES = 32768  # the chunk of TRL 1.16
_MEMORY_MIB = {"ours": 256.0, "ours_64mib": 64.0}

Outputs = tuple[Tensor, Tensor]  # log-probabilities and entropies, (N,)
Call = Callable[[Tensor, Tensor], Outputs]


@dataclass
class Truth:
    """fp64 results of a step."""

    outputs: Outputs
    gradients: tuple[Tensor, Tensor]  # of hidden and head


def main(args: list[str]) -> int:
    """Compare and measure the selected shapes, print and store the rows."""
    p = argparse.ArgumentParser(
        prog="python -m bench logprob_entropy", description=__doc__.splitlines()[0]
    )
    p.add_argument("--dtypes", default="fp32,bf16", help="comma-separated: %(default)s")
    heads = ",".join("x".join(map(str, s)) for s in SHAPES)
    p.add_argument("--heads", default=heads, help="NxDxV, comma-separated: %(default)s")
    p.add_argument("--rounds", type=int, default=3, help="turns of each candidate: %(default)s")
    p.add_argument("--threads", type=int, default=2, help="%(default)s")
    add_output_options(p)
    a = p.parse_args(args)
    torch.set_num_threads(a.threads)
    shapes = ["6x16x130"] if a.quick else a.heads.split(",")
    rows = []
    for dtype, shape in itertools.product(a.dtypes.split(","), shapes):
        n, d, v = map(int, shape.split("x"))
        for row in _measure(dtype, n, d, v, a):
            names = ("dtype", "n", "d", "v", "provider", "cpu_ms", "ratio_to_ours", "value_err",
                     "grad_err", "peak_mib")  # fmt: skip
            print(json.dumps({name: row[name] for name in names if name in row}), flush=True)
            rows.append(row)
    store(rows, a)
    return 0


def call_of(provider: str, ids: Tensor) -> Call:
    """Return the log-probabilities and entropies of ``ids`` (N,) from (hidden, head)."""
    if provider in _MEMORY_MIB:
        return partial(_ours, ids, _MEMORY_MIB[provider])
    return partial(_trl if provider == "trl" else _eager, ids)


def _ours(ids: Tensor, memory_mib: float, hidden: Tensor, head: Tensor) -> Outputs:
    logp, stats = w2s_fast.linear_logprob(
        hidden, head, ids, memory_mib=memory_mib, return_stats="differentiable"
    )
    return logp, stats.entropy


def _trl(ids: Tensor, hidden: Tensor, head: Tensor) -> Outputs:
    from trl.kernels import ChunkedLogProbFunction

    logp, entropy, *_ = ChunkedLogProbFunction.apply(
        hidden, head, None, ids, 1.0, _TRL_CLASSES, None, 1.0, ("entropy",)
    )
    return logp, entropy


def _eager(ids: Tensor, hidden: Tensor, head: Tensor) -> Outputs:
    z = F.linear(hidden, head)
    log_p = z.to(torch.promote_types(z.dtype, torch.float32)).log_softmax(1)
    return log_p.gather(1, ids[:, None])[:, 0], -(log_p.exp() * log_p).sum(1)


def step(x: linear.Inputs, call: Call) -> Outputs:
    """Run forward and backward; the gradients stay in the leaves."""
    logp, entropy = call(x.hidden, x.head)
    (-logp.mean() - _ENTROPY_COEF * entropy.mean()).backward()
    return logp.detach(), entropy.detach()


def prepare(
    provider: str, dtype: str, n: int, d: int, v: int
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return a step on new inputs, and its ``reset``, for ``peak_memory.peaks``."""
    x = linear.make_inputs("hard", dtype, n, d, v)
    call = call_of(provider, x.ids)
    return partial(step, x, call), partial(linear.reset, x)


def truth(x: linear.Inputs) -> Truth:
    """Return the fp64 results on the inputs, some rows at a time."""
    head = x.head.detach().double().requires_grad_()
    parts = []
    for rows in torch.arange(len(x.ids)).split(256):
        hidden = x.hidden.detach()[rows].double().requires_grad_()
        logp, entropy = _eager(x.ids[rows], hidden, head)
        (-logp.sum() - _ENTROPY_COEF * entropy.sum()).div(len(x.ids)).backward()
        assert hidden.grad is not None
        parts.append((logp.detach(), entropy.detach(), hidden.grad))
    logp, entropy, dhidden = map(torch.cat, zip(*parts, strict=True))
    assert head.grad is not None
    return Truth((logp, entropy), (dhidden, head.grad))


def errors(x: linear.Inputs, call: Call, exact: Truth) -> dict[str, float]:
    """Return the largest errors of values and of gradients, over the largest true entry."""
    linear.reset(x)
    values = step(x, call)
    assert x.hidden.grad is not None and x.head.grad is not None
    gradients = (x.hidden.grad, x.head.grad)

    def worst(ours: Outputs, true: Outputs) -> float:
        pairs = zip(ours, true, strict=True)
        return max(float((a.double() - b).abs().max() / b.abs().max()) for a, b in pairs)

    return {
        "value_err": worst(values, exact.outputs),
        "grad_err": worst(gradients, exact.gradients),
    }


def _measure(dtype: str, n: int, d: int, v: int, a: argparse.Namespace) -> list[Row]:
    x = linear.make_inputs("hard", dtype, n, d, v)
    table = {name: call_of(name, x.ids) for name in PROVIDERS}
    exact = truth(x)
    columns = {name: errors(x, call, exact) for name, call in table.items()}
    shape = {"dtype": dtype, "n": n, "d": d, "v": v}
    peaks = peak_memory.peaks(
        PROVIDERS, partial(prepare, **shape), a.threads, ["bench.cases.logprob_entropy"]
    )
    timed = {
        name: Candidate(partial(step, x, call), partial(linear.reset, x), warm=1)
        for name, call in table.items()
    }
    summaries = {name: s.summary() for name, s in interleave(timed, a.rounds).items()}
    base = summaries["ours"]["cpu_ms"]
    rows: list[Row] = []
    for name, numbers in summaries.items():
        measured = {**numbers, "ratio_to_ours": numbers["cpu_ms"] / base, **columns[name]}
        if name in peaks:
            measured["peak_mib"] = peaks[name]
        short = {k: float(f"{y:.4g}") for k, y in measured.items()}
        rows.append(
            {"op": "logprob_entropy", "case": "entropy_bonus", **shape, "allocator": "stock",
             "provider": name, "quick": a.quick, **short, **environment()}
        )  # fmt: skip
    return rows
