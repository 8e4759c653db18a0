"""Many small jobs in one process: its memory, threads, files and children stay what they were.

A case is one job. After every round of jobs the process is sampled. The first third of the samples
is warm-up: imports, caches and the allocator's pools. Afterwards a resource that leaks grows with
the number of rounds. Memory may grow by ``GROWTH_MIB`` in all, by the slope of a line through the
samples (Theil and Sen, which a peak does not move); the least of any other count may not rise.
"""

from __future__ import annotations

import functools
import gc
import itertools
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from helpers.support_calls import BY_NAME
from helpers.support_losses import DRIVERS
from helpers.tiny_lms import ARCHITECTURES, batch, tiny_lm
from helpers.toy_run import config
from helpers.toy_sweep import toy_sweep
from scipy.stats import theilslopes

from campaigns.outcome import Outcome
from tools.support_matrix.table import NO, Entry, Option, cell
from w2s_fast import patch, unpatch
from w2s_fast.losses import LOSSES, make_loss
from w2s_fast.ops import dispatch
from w2s_fast.pipeline.experiment import label
from w2s_fast.pipeline.experiment import run as run_experiment
from w2s_fast.probing.linear_heads import HeadRun, predict_heads, train_heads
from w2s_fast.sweeps import sweep
from w2s_fast.training import TrainConfig

# Of a whole campaign after its warm-up; a leak of a page a job makes more in an hour.
GROWTH_MIB = 16.0
MIN_SAMPLES = 9  # after the warm-up; fewer show no slope


def _run(index: int, folder: Path) -> None:
    """A whole run: trainings, labels, predictions, scores, plot and page."""
    run_experiment(config(folder, seeds=[index], losses=["xent", "logconf"]))


def _run_of_transformers(index: int, folder: Path) -> None:
    """Transformers with checkpoints, a probe on their hidden states and two supervisors."""
    student = {"source": "scratch", "hidden": 8, "layers": 1, "heads": 2}
    train = {"epochs": 1, "batch_size": 16, "checkpoint_every": 1}
    run_experiment(
        config(folder, seeds=[index], student=student, student_train=train,
               methods=["probe_filter", "ensemble:members=2"])
    )  # fmt: skip


def _stored_run(index: int, folder: Path) -> None:
    """The same run twice: the second reads everything from the store."""
    for _ in range(2):
        run_experiment(config(folder, seeds=[index]))


def _label(index: int, folder: Path) -> None:
    label(config(folder, seeds=[index]))


def _sweep(index: int, folder: Path) -> None:
    """A sweep of one cell, which starts a process."""
    cfg = toy_sweep(folder, weak_models=("bow",))
    sweep(replace(cfg, run=replace(cfg.run, seeds=(index,), losses=("xent",))))


@functools.cache
def _calls() -> list[tuple[str, Option, str, torch.dtype]]:
    """Every cell of docs/support.md that is served here, but those that compile."""
    calls = []
    entries: Iterable[tuple[str, Entry]] = BY_NAME.items()
    for (name, entry), dtype in itertools.product(entries, (torch.float32, torch.bfloat16)):
        for option, backend in itertools.product(entry.options, dispatch.BACKENDS):
            missing = dispatch.missing(backend) or "compiled" in option.call
            if not missing and cell(entry, option, backend, dtype).state != NO:
                calls.append((name, option, backend, dtype))
    return [calls[i] for i in np.random.default_rng(0).permutation(len(calls))]


def _losses(index: int, folder: Path) -> None:
    """Loss calls on every backend, each against fp64."""
    calls = _calls()
    for i in range(4):
        name, option, backend, dtype = calls[(4 * index + i) % len(calls)]
        DRIVERS[name](backend, dtype, option)


def _patched(index: int, folder: Path) -> None:
    """Steps of a patched language model."""
    lm = patch(tiny_lm(list(ARCHITECTURES)[index % len(ARCHITECTURES)]), loss="logconf")
    optimizer = torch.optim.AdamW(lm.parameters(), lr=1e-3)
    for step in range(3):
        lm(**batch(index + step), weak_step=step, weak_frac=step / 3).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    unpatch(lm)


def _probe(index: int, folder: Path) -> None:
    """Heads with every loss on the same features."""
    g = np.random.default_rng(index)
    features = torch.from_numpy(g.normal(size=(60, 8)))
    soft = g.dirichlet([1.0, 1.0], 60)
    runs = [HeadRun(soft, make_loss(name)) for name in LOSSES]
    heads = train_heads(features, runs, TrainConfig(epochs=1, batch_size=16, lr=1e-2), index)
    predict_heads(features, heads)


JOBS: dict[str, Callable[[int, Path], None]] = {
    "run": _run,
    "run of transformers": _run_of_transformers,
    "stored run": _stored_run,
    "label": _label,
    "loss calls": _losses,
    "patched steps": _patched,
    "probe": _probe,
    "sweep": _sweep,
}


def sample(temporary: Path) -> dict[str, float]:
    """Return what this process holds: memory in MiB, and counts."""
    gc.collect()
    me = Path("/proc/self")
    pages = int((me / "statm").read_text().split()[1])
    tasks = list((me / "task").iterdir())
    return {
        "memory": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
        "open files": len(os.listdir(me / "fd")),
        "threads": len(tasks),
        "child processes": sum(len((t / "children").read_text().split()) for t in tasks),
        "temporary files": sum(1 for _ in temporary.rglob("*")),
        "shared memory": len(os.listdir("/dev/shm")),
    }


def faults(samples: list[dict[str, float]]) -> Iterator[str]:
    """Yield one line for each resource that grows after the warm-up."""
    steady = samples[len(samples) // 3 :]
    if len(steady) < MIN_SAMPLES:
        return
    for name in steady[0]:
        values = [s[name] for s in steady]
        if name == "memory":
            grown = theilslopes(values).slope * len(values)
            if grown > GROWTH_MIB:
                yield f"memory grew by {grown:.1f} MiB in {len(values)} rounds of jobs"
        else:
            half = len(values) // 2
            before, after = min(values[:half]), min(values[half:])
            if after > before:
                yield f"{name}: never below {after:.0f} in the second half, {before:.0f} before"


def run(
    cases: Iterable[int],
    seed: int,
    folder: Path,
    jobs: dict[str, Callable[[int, Path], None]] | None = None,
) -> Outcome:
    """Run the jobs in turn; a case is one of them."""
    outcome, samples = Outcome(), []
    jobs = JOBS if jobs is None else jobs
    temporary = folder / "tmp"
    temporary.mkdir()
    before = tempfile.tempdir
    tempfile.tempdir = str(temporary)  # so that only this process's are counted
    last = 0
    try:
        for last in cases:
            name = list(jobs)[last % len(jobs)]
            out = folder / "out"
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    jobs[name](1000 * seed + last // len(jobs), out)
            except Exception as e:
                outcome.fail(last, f"{name}: {type(e).__name__}: {e}")
            shutil.rmtree(out, ignore_errors=True)
            outcome.cases += 1
            outcome.count(f"jobs: {name}")
            if last % len(jobs) == len(jobs) - 1:
                samples.append(sample(temporary))
                if len(samples) % 10 == 1:
                    print(len(samples), samples[-1], file=sys.stderr, flush=True)
    finally:
        tempfile.tempdir = before
    for line in faults(samples):
        outcome.fail(last, line)
    outcome.count("rounds of jobs", len(samples))
    if 0 < len(samples) - len(samples) // 3 < MIN_SAMPLES:
        outcome.count("rounds too few to judge growth")
    if samples:
        for when, values in (("after warm-up", samples[len(samples) // 3]), ("last", samples[-1])):
            for name, value in values.items():
                unit = "MiB of memory" if name == "memory" else name
                outcome.count(f"{when}: {unit}", round(value))
    return outcome
