"""``python -m bench trainers``: whole training steps in trainers, as they are and with ours.

The steps are those of ``trainer_steps``. Before anything is timed, every candidate's loss and
gradient are compared with the first one's; a candidate that differs stops the run. Candidates take
turns in one process per case, dtype and allocator, see ``bench.run``; peak memory is that of a
second step in a process of its own, see ``bench.harness.peak_memory``.
"""

from __future__ import annotations

import argparse
import itertools
from functools import partial
from pathlib import Path

import torch

from bench.cases.linear import Unavailable
from bench.cases.trainer_steps import PROVIDERS, Shape, Step, make_step, prepare
from bench.harness import peak_memory, row_files
from bench.harness.cpu_timing import Candidate, interleave
from bench.harness.environment import environment
from bench.harness.jobs import Job, asked, rows
from bench.harness.spawn import ALLOCATORS, show, spawn

OP = "trainers"
LENGTH, VOCABULARY = 512, 128256
BATCH = {"sft": 2, "dpo": 2, "labels": 4}  # sequences
_QUICK_LENGTH, _QUICK_VOCABULARY = 16, 600
_ROUNDS = 3
# dtype -> largest relative difference of the loss, and of the gradient of the embeddings (L2).
# fp32: sums of some thousand rows in another order; bf16: logits rounded at 2^-9, in other places.
BUDGET = {"fp32": (1e-5, 1e-3), "bf16": (1e-2, 5e-2)}
# A DPO loss near 1 is a function of four sums over 256 tokens, of some -3300 each, times beta: in
# fp32 their last digits make 4 x 0.1 x 2^-12; in bf16 256 rounded logits make 0.1 x 16 x 5 x 2^-9.
PAIRS = {"fp32": (1e-4, 1e-3), "bf16": (2e-2, 5e-2)}
_PRELOAD = ("bench.cases.trainer_steps", "transformers.trainer", "transformers.models.llama")


def parser() -> argparse.ArgumentParser:
    """The options of ``python -m bench trainers``."""
    p = argparse.ArgumentParser(
        prog="python -m bench trainers", description=__doc__.splitlines()[0]
    )
    p.add_argument("--cases", default=",".join(PROVIDERS), help="comma-separated: %(default)s")
    p.add_argument("--dtypes", default=",".join(BUDGET), help="%(default)s")
    p.add_argument("--allocator", default=",".join(ALLOCATORS), help="%(default)s")
    p.add_argument("--rounds", type=int, default=_ROUNDS, help="turns: %(default)s")
    p.add_argument("--threads", type=int, default=2, help="%(default)s")
    p.add_argument("--quick", action="store_true", help="toy sizes: does it run, not how fast")
    p.add_argument("--out", type=Path, help="file the rows are added to")
    p.add_argument("--record", action="store_true", help="add them to bench/results/cpu")
    return p


def jobs(a: argparse.Namespace) -> list[Job]:
    """All jobs the options ask for."""
    length, vocabulary = (_QUICK_LENGTH, _QUICK_VOCABULARY) if a.quick else (LENGTH, VOCABULARY)
    wanted = itertools.product(
        _known(a.dtypes, BUDGET), _known(a.allocator, ALLOCATORS), _known(a.cases, PROVIDERS)
    )
    return [
        Job(OP, case, dtype, BATCH[case] * length, vocabulary, allocator, a.threads,
            PROVIDERS[case], 1 if a.quick else a.rounds, a.quick, 256)
        for dtype, allocator, case in wanted
    ]  # fmt: skip


def _known(text: str, names: object) -> list[str]:
    known = list(names)  # type: ignore[call-overload]
    for name in text.split(","):
        if name not in known:
            raise SystemExit(f"bench: unknown {name!r}; expected some of {known}")
    return text.split(",")


def measure(job: Job) -> list[dict[str, object]]:
    """One row per candidate; one that cannot run here has a row that says why."""
    length = _QUICK_LENGTH if job.quick else LENGTH
    shape = Shape(job.case, job.dtype, job.n // length, length, job.v)
    steps, skipped = make_all(job.providers, shape)
    about = compared(steps, (PAIRS if job.case == "dpo" else BUDGET)[job.dtype])
    if job.allocator == "stock":  # memory is the same under the other one
        ready = partial(prepare, shape=shape)
        for name, peak in peak_memory.peaks(list(steps), ready, job.threads, _PRELOAD).items():
            about[name]["peak_mib"] = peak
    candidates = {name: Candidate(s, s.reset, warm=1) for name, s in steps.items()}
    found = rows(job, interleave(candidates, job.rounds), about)
    size = {"batch": shape.batch, "length": shape.length}
    found = [{**row, **size} for row in found]
    return found + [
        {**asked(job), "provider": name, "skipped": why, **size, **environment()}
        for name, why in skipped.items()
    ]


def make_all(providers: tuple[str, ...], shape: Shape) -> tuple[dict[str, Step], dict[str, str]]:
    """Candidate -> step, and candidate -> why it does not take part."""
    steps, skipped = {}, {}
    for name in providers:
        try:
            steps[name] = make_step(name, shape)
        except Unavailable as e:
            skipped[name] = str(e)
    return steps, skipped


def compared(steps: dict[str, Step], budget: tuple[float, float]) -> dict[str, dict[str, float]]:
    """Relative differences from the first candidate's loss and gradient, before any update.

    Raises:
        SystemExit: if one is beyond its budget: what is fast and wrong is not timed.
    """
    about: dict[str, dict[str, float]] = {}
    first: tuple[float, torch.Tensor] | None = None
    for name, step in steps.items():
        loss, grad = step.backward(), step.gradient()
        step.optimizer.step()  # makes its states
        step.reset()
        first = first or (loss, grad)
        errors = (
            abs(loss - first[0]) / abs(first[0]),
            float((grad - first[1]).norm() / first[1].norm()),
        )
        for what, error, limit in zip(("loss", "gradient"), errors, budget, strict=True):
            if not error <= limit:
                raise SystemExit(
                    f"bench: the {what} of {name} differs from that of {next(iter(steps))} by "
                    f"{error:.1e}; expected at most {limit:.0e}"
                )
        about[name] = {"loss": loss, "loss_err": errors[0], "grad_err": errors[1]}
    return about


def main(args: list[str]) -> int:
    """Measure, print, and store where ``--out`` or ``--record`` say."""
    a = parser().parse_args(args)
    wanted = jobs(a)
    groups = [[job] for job in wanted]
    if a.quick:  # a toy run shares one process per allocator
        groups = [[j for j in wanted if j.allocator == name] for name in ALLOCATORS]
    for group in filter(None, groups):
        measured = []
        for row in spawn(group):
            measured.append(row)
            print(show(row), flush=True)
        if a.out:
            row_files.save(a.out, measured)
        if a.record:
            row_files.record(measured)
    return 0
