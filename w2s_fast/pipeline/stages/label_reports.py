"""What methods made of the items of generation tasks, as results.json has it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from w2s_fast.methods import PairLabels, TextLabels
from w2s_fast.pipeline.artifacts import LABEL_REPORT, LOG
from w2s_fast.pipeline.jobs import JobPlan
from w2s_fast.pipeline.text_files import read_text_labels
from w2s_fast.tasks import TaskData


def label_reports(
    jobs: JobPlan, folders: Mapping[str, Path], data: Mapping[int, TaskData]
) -> list[dict[str, Any]]:
    """Return what every stage that a student depends on has to report, see ``_report``.

    Args:
        jobs: Jobs of the run.
        folders: Folders of the finished jobs, by name.
        data: Splits by seed.
    """
    by_name = {job.name: job for job in jobs.jobs}
    rows: dict[tuple[int, str, str], dict[str, Any]] = {}
    for (seed, student), entry in jobs.entries.items():
        pending = [entry.student]
        while pending:
            job = by_name[pending.pop()]
            pending += job.needs
            if job.name in folders and (
                report := _report(job.stage, folders[job.name], data[seed])
            ):
                key = seed, student, job.name
                rows[key] = {"seed": seed, "name": student, "stage": job.name, "report": report}
    return list(rows.values())


def _report(stage: str, folder: Path, data: TaskData) -> dict[str, Any]:
    """Return the report of a stage, and of a student the prompts that lost their beginning."""
    if stage == "text_labels":
        right = _true_answers(read_text_labels(folder, data.transfer.ids), data)
        report = json.loads((folder / LABEL_REPORT).read_bytes())
        return {**report, **({"true answers": right} if right else {})}
    if stage != "student":
        return {}
    truncated = json.loads((folder / LOG).read_bytes()).get("truncated_prompts", 0)
    return {"truncated_prompts": truncated} if truncated else {}


def _true_answers(labels: TextLabels | PairLabels, data: TaskData) -> dict[str, int]:
    """Return how many completions have the true answer, of pairs by side.

    None for tasks that are not scored by answers, and for pairs of steps, which have none.
    """
    answers = data.transfer.answers
    if data.read is None or answers is None or data.harm_score is not None:
        return {}
    if isinstance(labels, TextLabels):
        sides = {"texts": labels.texts}
    elif labels.prefixes is None:
        sides = {"chosen": labels.chosen, "rejected": labels.rejected}
    else:
        return {}
    gold = [data.read(answers[row]) for row in labels.rows]
    return {
        side: sum(g != "" and data.read(text) == g for text, g in zip(texts, gold, strict=True))
        for side, texts in sides.items()
    }
