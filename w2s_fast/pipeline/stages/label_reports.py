"""What methods made of the items of generation tasks, as results.json has it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from w2s_fast.pipeline.artifacts import LABEL_REPORT, LOG
from w2s_fast.pipeline.jobs import JobPlan


def label_reports(jobs: JobPlan, folders: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Return what every stage that a student depends on has to report, see ``_report``.

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
            if job.name in folders and (report := _report(job.stage, folders[job.name])):
                key = seed, student, job.name
                rows[key] = {"seed": seed, "name": student, "stage": job.name, "report": report}
    return list(rows.values())


def _report(stage: str, folder: Path) -> dict[str, Any]:
    """Return the report of a stage, and of a student the prompts that lost their beginning."""
    if stage == "text_labels":
        return json.loads((folder / LABEL_REPORT).read_bytes())
    if stage != "student":
        return {}
    truncated = json.loads((folder / LOG).read_bytes()).get("truncated_prompts", 0)
    return {"truncated_prompts": truncated} if truncated else {}
