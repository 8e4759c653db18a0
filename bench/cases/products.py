"""``python -m bench products``: time a 16-bit head with and without 16-bit CPU instructions.

torch multiplies bf16 and fp16 matrices slowly on CPUs without instructions for them. ``ours`` takes
16-bit hidden states and head; ``upcast`` is the alternative of a caller, eager PyTorch on fp32
copies made in every step; ``eager`` multiplies in 16 bit. ``avx2`` limits this machine to AVX2,
``native`` uses all of its instructions.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import w2s_fast
from bench.cases import linear
from bench.harness.cpu_timing import Candidate, interleave
from bench.harness.environment import child_environment, environment
from bench.harness.row_files import Row, add_output_options, store
from bench.harness.spawn import select_names
from w2s_fast.ops.fused_linear import gemm

LIMITS = {
    "native": {},
    "avx2": {
        "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "W2S_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
}  # fmt: skip
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
SHAPES = ((256, 512, 8000), (512, 1024, 32000))  # N, D, V
_MEMORY_MIB = 16
_MAX_EMULATED = 1e10  # operations of a product, above which eager without instructions is omitted


def main(args: list[str]) -> int:
    """Measure every limit in a process of its own, print and store the rows."""
    p = argparse.ArgumentParser(
        prog="python -m bench products", description=__doc__.splitlines()[0]
    )
    p.add_argument("--limits", default=",".join(LIMITS), help="comma-separated: %(default)s")
    add_output_options(p)
    p.add_argument("--job", help=argparse.SUPPRESS)
    a = p.parse_args(args)
    if a.job:
        return _worker(a.job, a.quick)
    rows = [row for name in select_names(a.limits, LIMITS) for row in _spawn(name, a.quick)]
    for row in rows:
        columns = ("case", "dtype", "n", "d", "v", "provider", "cpu_ms", "ratio_to_ours", "through")
        print(json.dumps({k: row[k] for k in columns}), flush=True)
    store(rows, a)
    return 0


def _spawn(limit: str, quick: bool) -> list[Row]:
    """Measure under a limit of the instruction set in a new process."""
    command = [sys.executable, "-m", "bench", "products", "--job", limit]
    done = subprocess.run(
        command + ["--quick"] * quick, env=child_environment(**LIMITS[limit]),
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def _worker(limit: str, quick: bool) -> int:
    shapes = ((6, 16, 130),) if quick else SHAPES
    for dtype, (n, d, v) in itertools.product(_DTYPES, shapes):
        for row in _measure(limit, dtype, n, d, v, quick):
            print(json.dumps(row), flush=True)
    return 0


def losses(x: linear.Inputs) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Return provider -> loss of (hidden, head)."""

    def upcast(hidden: Tensor, head: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(hidden.float(), head.float()), x.ids)

    def eager(hidden: Tensor, head: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(hidden, head).float(), x.ids)

    ours = partial(w2s_fast.linear_cross_entropy, weak=x.ours, memory_mib=_MEMORY_MIB)
    return {"ours": ours, "upcast": upcast, "eager": eager}


def _measure(limit: str, dtype: str, n: int, d: int, v: int, quick: bool) -> list[Row]:
    x = linear.make_inputs("hard", "fp32", n, d, v)
    x.hidden, x.head = (t.detach().to(_DTYPES[dtype]).requires_grad_() for t in (x.hidden, x.head))
    has_instructions = gemm.has_kernels(_DTYPES[dtype])
    table = losses(x)
    if not has_instructions and n * d * v > _MAX_EMULATED:
        del table["eager"]  # takes minutes per step
    timed = {
        name: Candidate(partial(linear.step, x, loss), partial(linear.reset, x), warm=1)
        for name, loss in table.items()
    }
    summaries = {name: s.summary() for name, s in interleave(timed, 1 if quick else 5).items()}
    columns = {"op": "products", "case": limit, "dtype": dtype, "n": n, "d": d, "v": v}
    columns |= {
        "allocator": "stock",
        "quick": quick,
        "through": dtype if has_instructions else "fp32",
    }
    base = summaries["ours"]["cpu_ms"]
    rows: list[Row] = []
    for name, numbers in summaries.items():
        short = {k: float(f"{y:.4g}") for k, y in numbers.items()}
        ratio = {"ratio_to_ours": float(f"{numbers['cpu_ms'] / base:.4g}")}
        rows.append({**columns, "provider": name, **short, **ratio, **environment()})
    return rows
