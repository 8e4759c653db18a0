"""Measure jobs in this process, which no other job shares: neither allocator settings nor heap."""

from __future__ import annotations

import json
import sys
from functools import partial

import torch

from bench.cases import cross_entropy, linear, quantile, two_class
from bench.harness import peak_memory
from bench.harness.cpu_timing import Samples, interleave
from bench.harness.environment import environment
from bench.harness.jobs import Job, job_columns, job_rows


def measure(job: Job) -> list[dict[str, object]]:
    """Return a row per provider, and one for the floor."""
    torch.set_num_threads(job.threads)
    if job.op == "linear_cross_entropy":
        return _linear(job)
    if job.op == "trainers":
        from bench.cases import trainers

        return trainers.measure(job)
    samples, errors = _OPS[job.op](job)
    return job_rows(job, samples, errors)


def _cross_entropy(job: Job) -> tuple[dict[str, Samples], dict[str, dict[str, float]]]:
    x = cross_entropy.make_inputs(job.case, job.dtype, job.n, job.v)
    table = cross_entropy.losses(job.case, x, job.providers)
    truth = cross_entropy.truth(job.case, x)
    errors = {name: cross_entropy.errors(x, loss, truth) for name, loss in table.items()}
    return interleave(cross_entropy.candidates(x, table), job.rounds), errors


def _two_class(job: Job) -> tuple[dict[str, Samples], dict[str, dict[str, float]]]:
    logits, labels = two_class.make_inputs(job.n)
    table = two_class.losses(labels, job.providers)
    errors: dict[str, dict[str, float]] = {two_class.ENGINE: {}}
    for name, loss in table.items():
        if name not in errors:
            errors[name] = two_class.errors(logits, labels, loss)
    return interleave(two_class.candidates(logits, table, job.quick), job.rounds), errors


def _quantile(job: Job) -> tuple[dict[str, Samples], dict[str, dict[str, float]]]:
    scores = quantile.make_inputs(job.n)
    errors = {"ours": {"value_err": quantile.error(scores)}}
    return interleave(quantile.candidates(scores, job.providers), job.rounds), errors


def _linear(job: Job) -> list[dict[str, object]]:
    x = linear.make_inputs(job.case, job.dtype, job.n, job.d, job.v)
    table, skipped = linear.losses(job.case, x, job.providers)
    columns: dict[str, dict[str, float]] = {name: {} for name in table}
    if job.allocator == "stock":  # errors and memory are the same under the other allocator
        truth = linear.truth(job.case, x)
        columns = {name: linear.errors(x, loss, truth) for name, loss in table.items()}
        shape = {"case": job.case, "dtype": job.dtype, "n": job.n, "d": job.d, "v": job.v}
        prepare = partial(linear.prepare, **shape)
        for name, peak in peak_memory.peaks(
            list(table), prepare, job.threads, ["bench.cases.linear"]
        ).items():
            columns[name]["peak_mib"] = peak
    samples = interleave(linear.candidates(x, table), job.rounds)
    return job_rows(job, samples, columns) + [
        {**job_columns(job), "provider": name, "skipped": why, **environment()}
        for name, why in skipped.items()
    ]


_OPS = {"cross_entropy": _cross_entropy, "two_class": _two_class, "quantile": _quantile}


def main(args: list[str]) -> int:
    """Measure the jobs of the JSON list on the command line; print one JSON row a line."""
    for fields in json.loads(args[0]):
        job = Job(**{**fields, "providers": tuple(fields["providers"])})
        for row in measure(job):
            print(json.dumps(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
