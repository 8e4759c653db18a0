"""Results of predictions that others made, in the form of a run's results.json.

The numbers are those of a run: PGR and its intervals, and differences between students with Holm's
correction (``pipeline.run_rows``). What only a training knows is absent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from w2s_fast.comparison.manifest import (
    Manifest,
    ModelFile,
    find_model,
    read_manifest,
    seeds_by_base,
    student_names,
)
from w2s_fast.comparison.prediction_table import PredictionTable, read_predictions
from w2s_fast.comparison.table_checks import check_gold, check_items, find_warnings, groups_of_items
from w2s_fast.comparison.table_format import USUAL, TableFormat
from w2s_fast.errors import W2SError
from w2s_fast.files import content_hash
from w2s_fast.pipeline import statistics
from w2s_fast.pipeline.predictions import Predictions
from w2s_fast.pipeline.provenance import git_state, machine, versions
from w2s_fast.pipeline.run_rows import (
    ScoredRun,
    difference_rows,
    right_by_model,
    run_row,
    runs_by_base,
    summary_row,
)
from w2s_fast.report.outcomes import Outcomes, group_numbers

_BASELINES = ("xent", "naive")  # names of the baseline where the manifest gives none


def results_of_files(folder: Path, form: TableFormat = USUAL) -> dict[str, Any]:
    """Return the results of a folder of predictions.

    Args:
        folder: Has a file per model, see ``read_manifest`` and ``read_predictions``.
        form: Encoding, delimiter and quoting of the files.

    Returns:
        What ``w2s_fast.run`` returns, but without the parts that need a training, and with
        ``warnings``: one line for each doubt about the files.

    Raises:
        W2SError: A file is missing, cannot be read, or contradicts another.
    """
    return read_scores(folder, form).results()


def read_scores(folder: Path, form: TableFormat = USUAL) -> FileScores:
    """Return the scores of a folder of predictions, see ``results_of_files``."""
    manifest = read_manifest(folder)
    bases = seeds_by_base(manifest)
    tables = {model: read_predictions(folder, model, form) for model in manifest.models}
    check_gold(list(tables.values()))
    return FileScores(folder, manifest, bases, tables)


class FileScores:
    """The scores of all students at all seeds."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        bases: Mapping[str, Sequence[int]],
        tables: Mapping[ModelFile, PredictionTable],
    ) -> None:
        self.folder, self.manifest, self.bases, self.tables = folder, manifest, bases, tables
        self.base_of = {seed: name for name, seeds in bases.items() for seed in seeds}
        self._group_of = groups_of_items(list(tables.values()))
        self._ids = {seed: tuple(sorted(self._items_table(seed).ids)) for seed in self.base_of}
        self._names = {s: tuple(self._group(i) for i in ids) for s, ids in self._ids.items()}
        self._groups = group_numbers(self._names)
        self.runs = {
            name: {seed: self._run(name, seed) for seed in self.base_of}
            for name in student_names(manifest)
        }

    def results(self) -> dict[str, Any]:
        """Return the content of results.json."""
        rows, summary = [], []
        for name, own in self.runs.items():
            names = {"name": name, "method": name, "loss": ""}
            own_rows = [
                {**run_row(seed, names, run, None), "base": self.base_of[seed]}
                for seed, run in own.items()
            ]
            right = {seed: run.right for seed, run in own.items()}
            models = runs_by_base(self.bases, self._groups, right)
            n_classes = next(iter(own.values())).weak.n_classes
            summary.append(summary_row(names, own_rows, models, n_classes))
            rows += own_rows
        return {
            "design": statistics.design(models) | {"base_names": list(self.bases)},
            "differences": self._differences(),
            "runs": rows,
            "summary": summary,
            "controls": [],
            "gold": [],
            "failed": {},
            "warnings": [*self._shared_models(), *find_warnings(list(self.tables.values()))],
            "provenance": self._provenance(),
        }

    def outcomes(self) -> dict[int, Outcomes]:
        """Return which test items every model has right, by seed."""
        return {
            seed: Outcomes(
                ids,
                self._names[seed],
                right_by_model({n: own[seed] for n, own in self.runs.items()}),
            )
            for seed, ids in self._ids.items()
        }

    def _differences(self) -> list[dict[str, Any]]:
        right = {
            name: {seed: run.student.right for seed, run in own.items()}
            for name, own in self.runs.items()
        }
        baseline = self.manifest.baseline or next((n for n in _BASELINES if n in right), None)
        return difference_rows(
            self.bases, self._groups, right, {name: (name, "") for name in right}, baseline
        )

    def _run(self, name: str, seed: int) -> ScoredRun:
        """Return the predictions of a student at a seed, all in the order of the weak model's."""
        models = [self._model("weak", "", seed), self._model("student", name, seed)]
        own_ceiling = find_model(self.manifest, "ceiling", name, seed)
        ceiling = own_ceiling or self._model("ceiling", "", seed)
        tables = [self.tables[model] for model in (*models, ceiling)]
        check_items(tables)
        weak, student, top = (_predictions(table, self._ids[seed]) for table in tables)
        return ScoredRun(weak, student, top, self._groups[seed], ceiling.name)

    def _model(self, role: str, name: str, seed: int) -> ModelFile:
        model = find_model(self.manifest, role, name, seed)
        assert model is not None, "seeds_by_base has checked it"
        return model

    def _items_table(self, seed: int) -> PredictionTable:
        """Return the table of the weak model: all models of a seed have its items."""
        return self.tables[self._model("weak", "", seed)]

    def _group(self, item: str) -> str:
        name = self._group_of.get(item)
        return f"item {item}" if name is None else f"group {name}"

    def _shared_models(self) -> list[str]:
        """Return a line for each model that is the same at several seeds."""
        if len(self.base_of) < 2:
            return []
        return [
            f"{model.title} ({model.file}) is the same at every seed: intervals do not contain its "
            "own variation"
            for model in self.manifest.models
            if model.seed is None
        ]

    def _items(self, seed: int) -> str:
        """Return a digest of the ids and true classes of a seed's test items."""
        table = self._items_table(seed)
        names = [table.classes[c] for c in table.gold.tolist()]
        return content_hash(sorted(zip(table.ids, names, strict=True)))

    def _provenance(self) -> dict[str, Any]:
        return {
            "utc": datetime.now(UTC).isoformat(timespec="seconds"),
            "config": {
                "task": {"name": self.manifest.task},
                "seeds": list(self.base_of),
                "from": str(self.folder.absolute()),
            },
            "versions": versions(),
            "machine": machine(),
            "git": git_state(),
            "backends": {},
            "test_items": {str(seed): self._items(seed) for seed in self.base_of},
            "stages": {
                model.title: {
                    "folder": model.file,
                    "digest": table.digest,
                    "seconds": None,
                    "reused": False,
                }
                for model, table in self.tables.items()
            },
        }


def is_of_files(results: Mapping[str, Any]) -> bool:
    """Return whether results come from files, and not from a run."""
    return "from" in results["provenance"]["config"]


def check_output(out: Path, folder: Path) -> None:
    """Check that results of files would not replace those of a run, or lie among the files.

    Raises:
        W2SError: ``out`` has results.json of a run, or is the folder of the files.
    """
    from w2s_fast.report import RESULTS, load_results

    if out.resolve() == folder.resolve():
        raise W2SError(
            f"--out is the folder of the files, {folder}, where results would count as "
            "predictions; choose another, or leave it out for a folder inside"
        )
    if (out / RESULTS).exists() and not is_of_files(load_results(out)):
        raise W2SError(f"{out} has the results of a run; choose another folder with --out")


def _predictions(table: PredictionTable, ids: Sequence[str]) -> Predictions:
    rows = table.rows_of(ids)
    probs = table.probs[rows]
    return Predictions(probs.argmax(1), table.gold[rows], probs)
