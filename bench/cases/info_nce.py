"""``python -m bench info_nce``: InfoNCE with in-batch negatives, time and peak memory.

A step is forward and backward of the mean over N queries with as many documents, temperature 0.05,
one group id a document. ``ours`` masks equal ids; ``plain`` has no mask. The others have none
either: ``eager`` and ``compile`` are ``F.cross_entropy(q @ d.T / T, arange(N))``, and
``sentence_transformers`` is ``CachedMultipleNegativesRankingLoss`` on embeddings that are given,
with mini-batches of as many rows as a chunk of ours (skipped where it cannot be imported). Every
gradient is compared with fp64 before it is timed.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import w2s_fast
from bench.harness import peak_memory
from bench.harness.cpu_timing import Candidate, interleave
from bench.harness.environment import environment
from bench.harness.row_files import Row, add_output_options, store

SHAPES = ((4096, 384), (4096, 768), (8192, 384), (8192, 768))  # N = M, D
PROVIDERS = ("ours", "plain", "eager", "compile", "sentence_transformers")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TEMPERATURE = 0.05
_ROWS = 512  # mini-batch of sentence-transformers

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Inputs:
    """Embeddings of length 1, queries leaning towards their documents, and a group id each."""

    queries: Tensor
    documents: Tensor
    groups: Tensor

    def reset(self) -> None:
        """Drop the gradients."""
        self.queries.grad = self.documents.grad = None


def main(args: list[str]) -> int:
    """Compare and measure the selected shapes, print and store the rows."""
    p = argparse.ArgumentParser(
        prog="python -m bench info_nce", description=__doc__.splitlines()[0]
    )
    p.add_argument("--dtypes", default="fp32,bf16", help="comma-separated: %(default)s")
    shapes = ",".join("x".join(map(str, s)) for s in SHAPES)
    p.add_argument("--shapes", default=shapes, help="NxD, comma-separated: %(default)s")
    p.add_argument("--rounds", type=int, default=5, help="turns of each candidate: %(default)s")
    p.add_argument("--threads", type=int, default=2, help="%(default)s")
    add_output_options(p)
    a = p.parse_args(args)
    torch.set_num_threads(a.threads)
    rows = []
    for dtype, shape in itertools.product(
        a.dtypes.split(","), ["24x8"] if a.quick else a.shapes.split(",")
    ):
        n, d = map(int, shape.split("x"))
        for row in _measure(dtype, n, d, a):
            names = ("dtype", "n", "d", "provider", "cpu_ms", "ratio_to_ours", "grad_err",
                     "peak_mib", "skipped")  # fmt: skip
            print(json.dumps({name: row[name] for name in names if name in row}), flush=True)
            rows.append(row)
    store(rows, a)
    return 0


def make_inputs(dtype: str, n: int, d: int) -> Inputs:
    """Return the inputs of a case, the same in every process."""
    g = torch.Generator().manual_seed(0)
    documents = F.normalize(torch.randn(n, d, generator=g), dim=1)
    queries = F.normalize(documents + 0.1 * torch.randn(n, d, generator=g), dim=1)
    groups = torch.randint(0, 4 * n, (n,), generator=g)
    one, two = (x.to(DTYPES[dtype]).requires_grad_() for x in (queries, documents))
    return Inputs(one, two, groups)


def loss_of(provider: str, groups: Tensor) -> Loss:
    """Return the loss of queries and documents."""
    if provider == "ours":
        return partial(
            w2s_fast.info_nce, temperature=TEMPERATURE, query_groups=groups, document_groups=groups
        )
    if provider == "plain":
        return partial(w2s_fast.info_nce, temperature=TEMPERATURE)
    if provider == "sentence_transformers":
        return _sentence_transformers()
    return _compiled() if provider == "compile" else eager


def eager(queries: Tensor, documents: Tensor) -> Tensor:
    """Compute the loss as its formula."""
    labels = torch.arange(len(queries))
    return F.cross_entropy(queries @ documents.t() / TEMPERATURE, labels)


@cache
def _compiled() -> Any:
    return torch.compile(eager)


def _sentence_transformers() -> Loss:
    from sentence_transformers.losses import CachedMultipleNegativesRankingLoss
    from sentence_transformers.util import dot_score

    model = torch.nn.Sequential(torch.nn.Identity())  # not called: embeddings are given
    loss = CachedMultipleNegativesRankingLoss(
        model, scale=1 / TEMPERATURE, similarity_fct=dot_score, mini_batch_size=_ROWS
    )

    def step(queries: Tensor, documents: Tensor) -> Tensor:
        # Makes the gradients chunk by chunk, as its cached backward does.
        return loss.calculate_loss([[queries], [documents]], with_backward=True)

    return step


def step(x: Inputs, loss: Loss) -> Tensor:
    """Run forward and backward; the gradients stay in the leaves."""
    out = loss(x.queries, x.documents)
    if out.requires_grad:
        out.backward()
    return out.detach()


def prepare(
    provider: str, dtype: str, n: int, d: int
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return a step on new inputs, and its ``reset``, for ``peak_memory.peaks``."""
    x = make_inputs(dtype, n, d)
    return partial(step, x, loss_of(provider, x.groups)), x.reset


def _available() -> dict[str, str]:
    """Return provider -> why it cannot run, empty if it can."""
    try:
        _sentence_transformers()
    except ImportError as e:
        return {"sentence_transformers": str(e)}
    return {}


def _gradients(x: Inputs, loss: Loss) -> tuple[Tensor, Tensor]:
    x.reset()
    step(x, loss)
    assert x.queries.grad is not None and x.documents.grad is not None
    return x.queries.grad, x.documents.grad


def _exact(x: Inputs, masked: bool) -> tuple[Tensor, Tensor]:
    """Return the gradients in fp64."""
    one, two = (t.detach().double().requires_grad_() for t in (x.queries, x.documents))
    z = one @ two.t() / TEMPERATURE
    if masked:
        same = x.groups[:, None] == x.groups
        z = z.masked_fill(same.fill_diagonal_(False), -torch.inf)
    F.cross_entropy(z, torch.arange(len(one))).backward()
    assert one.grad is not None and two.grad is not None
    return one.grad, two.grad


def _error(made: tuple[Tensor, Tensor], exact: tuple[Tensor, Tensor]) -> float:
    """Return the largest error over the largest entry."""
    return max(
        float((a.double() - b).abs().max() / b.abs().max())
        for a, b in zip(made, exact, strict=True)
    )


def _measure(dtype: str, n: int, d: int, a: argparse.Namespace) -> list[Row]:
    x, skipped = make_inputs(dtype, n, d), _available()
    names = [name for name in PROVIDERS if name not in skipped]
    table = {name: loss_of(name, x.groups) for name in names}
    exact = {masked: _exact(x, masked) for masked in (True, False)}
    wrong = {k: _error(_gradients(x, f), exact[k == "ours"]) for k, f in table.items()}
    del exact
    shape = {"dtype": dtype, "n": n, "d": d}
    peaks = peak_memory.peaks(names, partial(prepare, **shape), a.threads, ["bench.cases.info_nce"])
    timed = {
        name: Candidate(partial(step, x, loss), x.reset, warm=1) for name, loss in table.items()
    }
    summaries = {name: s.summary() for name, s in interleave(timed, a.rounds).items()}
    base = summaries["ours"]["cpu_ms"]
    fixed = {"op": "info_nce", "case": "in_batch", **shape, "v": n, "allocator": "stock",
             "quick": a.quick, **environment()}  # fmt: skip
    rows: list[Row] = [{**fixed, "provider": name, "skipped": why} for name, why in skipped.items()]
    for name, numbers in summaries.items():
        measured = {
            **numbers, "ratio_to_ours": numbers["cpu_ms"] / base, "grad_err": wrong[name],
        }  # fmt: skip
        if name in peaks:
            measured["peak_mib"] = peaks[name]
        short = {k: float(f"{y:.4g}") for k, y in measured.items()}
        rows.append({**fixed, "provider": name, **short})
    return rows
