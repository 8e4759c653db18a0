"""The README.md of an exported model: what it is, what it learned, how good it is, its origin.

The block at its head is the metadata that the Hugging Face hub reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from w2s_fast.config import RunConfig, model_of, train_of
from w2s_fast.pipeline.jobs import Job
from w2s_fast.pipeline.provenance import git_state, versions
from w2s_fast.report.model_rows import format_interval, format_number

_PIPELINES = {
    "classification": "text-classification",
    "preference": "text-classification",
    "generation": "text-generation",
}
_ROLES = {
    "weak": "A weak model, trained on true labels.",
    "student": "A student, trained on the labels of a weak model alone.",
    "intermediate": "A model between weak model and student, trained on labels of the one before.",
    "ceiling": "A ceiling: the student's model, trained on true labels.",
    "control": "A control: the student's model without pretraining, trained on weak labels.",
}
_USE = """```python
from w2s_fast.pipeline.exported import load_exported

probabilities = load_exported("path/to/this/folder").predict(["a text"])  # (1, C)
```
"""


def model_card(
    cfg: RunConfig, job: Job, kind: str, results: Mapping[str, Any] | None = None
) -> str:
    """Return the model card of a trained stage, in Markdown.

    Args:
        cfg: Configuration of the run.
        job: Stage that trained the model.
        kind: Kind of the task; ``generation`` for a language model of another kind, too.
        results: results.json of the run; None: the card has no scores.
    """
    lines = [
        "---", "library_name: transformers", f"pipeline_tag: {_PIPELINES[kind]}", "tags:",
        "- weak-to-strong", "- w2s-fast", "---", "", f"# {job.name}", "", _ROLES[job.stage], "",
        *_facts(cfg, job), "",
    ]  # fmt: skip
    lines += ["## Scores", "", *_scores(job, results), ""]
    if kind != "generation":
        lines += ["## Use", "", *_USE.splitlines(), ""]
    lines += ["## Provenance", "", *_provenance(), ""]
    return "\n".join(lines)


def _facts(cfg: RunConfig, job: Job) -> list[str]:
    role = job.setting("role")
    train, task = train_of(cfg, role), cfg.task
    rows = {
        "task": task.name,
        "rows": f"{task.n_weak} weak, {task.n_transfer} transfer, {task.n_test} test",
        "starts from": _name(model_of(cfg, role).source),
        "weak model": _name(cfg.weak.source),
        "method and loss": job.name.split("/", 2)[2] if job.stage == "student" else "–",
        "seed": job.seed,
        "training": f"{train.epochs} epochs, batches of {train.batch_size}, lr {train.lr:g}",
    }
    return ["| | |", "| --- | --- |", *(f"| {k} | {_cell(v)} |" for k, v in rows.items())]


def _name(source: str) -> str:
    """Return the last folder of a path: the folders above are those of one machine."""
    return source.rstrip("/").rpartition("/")[2]


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|")


def _scores(job: Job, results: Mapping[str, Any] | None) -> list[str]:
    if results is None:
        return ["The run has no results yet; they are written when all of its stages are finished."]
    if job.stage != "student":
        return _accuracies(job, results)
    name = job.name.split("/", 2)[2]
    run = next((r for r in results["runs"] if (r["seed"], r["name"]) == (job.seed, name)), None)
    total = next((s for s in results["summary"] if s["name"] == name), None)
    if run is None or total is None:
        return ["This model is not among the results of the run."]
    return [
        "| | weak model | this student | ceiling | PGR | interval |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        f"| seed {job.seed} | {_three(run)} | {format_number(run['pgr'], 2)} |  |",
        f"| mean of {total['seeds']} seeds | {_three(total)} | "
        f"{format_number(total['pgr_mean'], 2)} | {format_interval(total)} |",
        "",
        f"Accuracy on {run['n_test']} test items. PGR = (student − weak) / (ceiling − weak), with "
        f"a {total['level']:.0%} interval over the runs; – where it is not reported.",
        *_gold(results, name),
    ]


def _three(row: Mapping[str, Any]) -> str:
    return " | ".join(format_number(row[model]) for model in ("weak", "student", "ceiling"))


def _accuracies(job: Job, results: Mapping[str, Any]) -> list[str]:
    """Return the accuracy of a weak model or a ceiling on the test items."""
    runs = [r for r in results["runs"] if r["seed"] == job.seed]
    if job.stage not in ("weak", "ceiling") or not runs or job.setting("member", 0):
        return ["Results of the run have no accuracy of this model."]
    return [f"Accuracy {runs[0][job.stage]:.3f} on {runs[0]['n_test']} test items."]


def _gold(results: Mapping[str, Any], name: str) -> list[str]:
    uses = [use["use"] for use in results["gold"] if use["name"] == name]
    return ["", "Further uses of true labels: " + "; ".join(uses) + "."] if uses else []


def _provenance() -> list[str]:
    known = ", ".join(f"{name} {v}" for name, v in versions().items() if v is not None)
    git = git_state()
    commit = (
        f", commit {git['commit'][:12]}{' with changes' if git['dirty'] else ''}" if git else ""
    )
    return [f"Exported by w2s-fast: {known}{commit}."]
