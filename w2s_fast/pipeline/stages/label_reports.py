"""What methods made of the items of generation tasks, as results.json has it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from w2s_fast.pipeline.artifacts import LABEL_REPORT
from w2s_fast.pipeline.jobs import JobPlan


def label_reports(jobs: JobPlan, folders: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Return the report of every stage ``text_labels`` that a student depends on.

    Args:
        jobs: Jobs of the run.
        folders: Folders of the finished jobs, by name.
    """
    by_name = {job.name: job for job in jobs.jobs}
    rows: dict[tuple[int, str, str], dict[str, Any]] = {}
    for (seed, student), entry in jobs.entries.items():
        pending = [entry.student]
        while pending:
            job = by_name[pending.pop()]
            pending += job.needs
            if job.stage == "text_labels" and job.name in folders:
                report = json.loads((folders[job.name] / LABEL_REPORT).read_bytes())
                key = seed, student, job.name
                rows[key] = {"seed": seed, "name": student, "stage": job.name, "report": report}
    return list(rows.values())
