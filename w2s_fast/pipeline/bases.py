"""Which bases of a run are finished, and why others are not."""

from __future__ import annotations

from collections.abc import Container, Mapping

from w2s_fast.config import RunConfig, base_names, seeds_of_bases
from w2s_fast.pipeline.jobs import SCORED, JobPlan


def finished_bases(cfg: RunConfig, jobs: JobPlan, finished: Container[str]) -> dict[str, list[int]]:
    """Return the seeds of every base whose jobs are all finished, by name of the base.

    Args:
        cfg: The run.
        jobs: Its jobs.
        finished: Names of the finished jobs.
    """
    scored = [job for job in jobs.jobs if job.stage in SCORED]
    missing = {job.seed for job in scored if job.name not in finished}
    named = zip(base_names(cfg), seeds_of_bases(cfg), strict=True)
    return {name: seeds for name, seeds in named if not missing & set(seeds)}


def failed_bases(cfg: RunConfig, jobs: JobPlan, failed: Mapping[str, str]) -> dict[str, str]:
    """Return the first reason of each base with a failed job, by name of the base.

    Args:
        cfg: The run.
        jobs: Its jobs.
        failed: Reasons by name of the failed job.
    """
    by_name = {job.name: job for job in jobs.jobs}
    reasons: dict[str, str] = {}
    for base, seeds in zip(base_names(cfg), seeds_of_bases(cfg), strict=True):
        for name, reason in failed.items():
            if by_name[name].seed in seeds:
                reasons.setdefault(base, reason)
    return reasons
