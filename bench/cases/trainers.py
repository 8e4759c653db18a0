"""``python -m bench trainers``: time whole training steps in trainers, with and without ours.

The steps are in ``trainer_steps``. Before anything is timed, loss and gradient of every candidate
are compared with those of the first; a candidate that differs stops the run. Candidates take turns
in one process per case, dtype and allocator, see ``bench.run``; peak memory is measured on a second
step in a process of its own, see ``bench.harness.peak_memory``.
"""

from __future__ import annotations

import argparse
import itertools
from functools import partial

import torch

from bench.cases.linear import Unavailable
from bench.cases.trainer_steps import PROVIDERS, SIZES, Shape, Step, make_step, prepare
from bench.harness import peak_memory
from bench.harness.cpu_timing import Candidate, interleave
from bench.harness.environment import environment
from bench.harness.jobs import Job, job_columns, job_rows
from bench.harness.row_files import add_output_options
from bench.harness.spawn import ALLOCATORS, measure_groups, select_names

OP = "trainers"
LENGTH = 512
BATCH = {"sft": 2, "dpo": 2, "dpo_smollm2": 2, "labels": 4}  # sequences
VOCABULARY = {"sft": 128256, "dpo": 128256, "dpo_smollm2": 49152, "labels": 128256}
_QUICK_LENGTH, _QUICK_VOCABULARY = 16, 600
_ROUNDS = 3
# dtype -> largest relative difference of the loss, and of the gradient of the embeddings (L2).
# fp32: sums of thousands of rows in another order; bf16: logits rounded to 2^-9 at other places.
BUDGET = {"fp32": (1e-5, 1e-3), "bf16": (1e-2, 5e-2)}
# A DPO loss near 1 depends on four sums over 256 tokens, of about -3300 each, times beta: the last
# digits in fp32 add 4 x 0.1 x 2^-12; 256 rounded logits in bf16 add 0.1 x 16 x 5 x 2^-9.
DPO_BUDGET = {"fp32": (1e-4, 1e-3), "bf16": (2e-2, 5e-2)}
# 30 layers instead of 2, and a loss of 0.057, whose relative error is 17 times as large. With equal
# references packed and padded pairs agree to 1e-15 in fp64; in fp32 they differ by 2.4e-4.
DEEP_BUDGET = {"fp32": (1e-3, 1e-3), "bf16": (2e-1, 2e-1)}
BUDGETS = {"dpo": DPO_BUDGET, "dpo_smollm2": DEEP_BUDGET}
_PRELOAD = ("bench.cases.trainer_steps", "transformers.trainer", "transformers.models.llama")


def parser() -> argparse.ArgumentParser:
    """Return the parser of ``python -m bench trainers``."""
    p = argparse.ArgumentParser(
        prog="python -m bench trainers", description=__doc__.splitlines()[0]
    )
    p.add_argument("--cases", default=",".join(PROVIDERS), help="comma-separated: %(default)s")
    p.add_argument("--dtypes", default=",".join(BUDGET), help="%(default)s")
    p.add_argument("--allocator", default=",".join(ALLOCATORS), help="%(default)s")
    p.add_argument("--rounds", type=int, default=_ROUNDS, help="turns: %(default)s")
    p.add_argument("--threads", type=int, default=2, help="%(default)s")
    add_output_options(p)
    return p


def jobs(a: argparse.Namespace) -> list[Job]:
    """Return the jobs that the options select."""
    length = _QUICK_LENGTH if a.quick else LENGTH
    selected = itertools.product(
        select_names(a.dtypes, BUDGET),
        select_names(a.allocator, ALLOCATORS),
        select_names(a.cases, PROVIDERS),
    )
    return [
        Job(OP, case, dtype, BATCH[case] * length,
            _QUICK_VOCABULARY if a.quick else VOCABULARY[case], allocator, a.threads,
            PROVIDERS[case], 1 if a.quick else a.rounds, a.quick,
            SIZES[_model_name(case, a.quick)]["hidden_size"])
        for dtype, allocator, case in selected
    ]  # fmt: skip


def measure(job: Job) -> list[dict[str, object]]:
    """Return a row per candidate; for one that cannot run here, the row has the reason."""
    length = _QUICK_LENGTH if job.quick else LENGTH
    model = _model_name(job.case, job.quick)
    shape = Shape(job.case, job.dtype, job.n // length, length, job.v, model)
    steps, skipped = make_steps(job.providers, shape)
    columns = compare_losses(steps, BUDGETS.get(job.case, BUDGET)[job.dtype])
    if job.allocator == "stock":  # memory is the same under the other allocator
        ready = partial(prepare, shape=shape)
        for name, peak in peak_memory.peaks(list(steps), ready, job.threads, _PRELOAD).items():
            columns[name]["peak_mib"] = peak
    candidates = {name: Candidate(s, s.reset, warm=1) for name, s in steps.items()}
    rows = job_rows(job, interleave(candidates, job.rounds), columns)
    size = {"batch": shape.batch, "length": shape.length}
    rows = [{**row, **size} for row in rows]
    return rows + [
        {**job_columns(job), "provider": name, "skipped": why, **size, **environment()}
        for name, why in skipped.items()
    ]


def _model_name(case: str, quick: bool) -> str:
    return "smollm2" if case == "dpo_smollm2" and not quick else "small"


def make_steps(providers: tuple[str, ...], shape: Shape) -> tuple[dict[str, Step], dict[str, str]]:
    """Return candidate -> step, and candidate -> the reason why it is not measured."""
    steps, skipped = {}, {}
    for name in providers:
        try:
            steps[name] = make_step(name, shape)
        except Unavailable as e:
            skipped[name] = str(e)
    return steps, skipped


def compare_losses(
    steps: dict[str, Step], budget: tuple[float, float]
) -> dict[str, dict[str, float]]:
    """Return relative differences from the first candidate's loss and gradient before any update.

    Raises:
        SystemExit: A difference exceeds its budget; wrong candidates are not timed.
    """
    columns: dict[str, dict[str, float]] = {}
    first: tuple[float, torch.Tensor] | None = None
    for name, step in steps.items():
        loss, grad = step.backward(), step.gradient()
        step.optimizer.step()  # allocates its states
        step.reset()
        first = first or (loss, grad)
        errors = (
            abs(loss - first[0]) / abs(first[0]),
            float((grad - first[1]).norm() / first[1].norm()),
        )
        for quantity, error, limit in zip(("loss", "gradient"), errors, budget, strict=True):
            if not error <= limit:
                raise SystemExit(
                    f"bench: the {quantity} of {name} differs from that of {next(iter(steps))} by "
                    f"{error:.1e}; expected at most {limit:.0e}"
                )
        columns[name] = {"loss": loss, "loss_err": errors[0], "grad_err": errors[1]}
    return columns


def main(args: list[str]) -> int:
    """Measure the selected jobs, print and store their rows."""
    a = parser().parse_args(args)
    selected = jobs(a)
    groups = [[job] for job in selected]
    if a.quick:  # a toy run shares one process per allocator
        groups = [[j for j in selected if j.allocator == name] for name in ALLOCATORS]
    measure_groups(filter(None, groups), a)
    return 0
