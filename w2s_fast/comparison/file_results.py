"""Results of predictions that others made, in the form of a run's results.json.

The numbers are those of a run: PGR and its intervals, and differences between students with Holm's
correction (``pipeline.run_rows``). What only a training knows is absent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

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
from w2s_fast.errors import W2SError
from w2s_fast.files import content_hash
from w2s_fast.pipeline import statistics
from w2s_fast.pipeline.predictions import Predictions
from w2s_fast.pipeline.provenance import git_state, machine, versions
from w2s_fast.pipeline.run_rows import (
    ScoredRun,
    difference_rows,
    run_row,
    runs_by_base,
    summary_row,
)

_BASELINES = ("xent", "naive")  # names of the baseline where the manifest gives none


def results_of_files(folder: Path) -> dict[str, Any]:
    """Return the results of a folder of predictions.

    Args:
        folder: Has a file per model, see ``read_manifest`` and ``read_predictions``.

    Returns:
        What ``w2s_fast.run`` returns, but without the parts that need a training, and with
        ``warnings``: one line for each doubt about the files.

    Raises:
        W2SError: A file is missing, cannot be read, or contradicts another.
    """
    manifest = read_manifest(folder)
    bases = seeds_by_base(manifest)
    tables = {model: read_predictions(folder, model) for model in manifest.models}
    check_gold(list(tables.values()))
    return _Scores(manifest, bases, tables).results(folder)


class _Scores:
    """The scores of all students at all seeds."""

    def __init__(
        self,
        manifest: Manifest,
        bases: Mapping[str, Sequence[int]],
        tables: Mapping[ModelFile, PredictionTable],
    ) -> None:
        self.manifest, self.bases, self.tables = manifest, bases, tables
        self.base_of = {seed: name for name, seeds in bases.items() for seed in seeds}
        self._group_of = groups_of_items(list(tables.values()))
        names = sorted({self._group(item) for table in tables.values() for item in table.ids})
        self._numbers = {name: number for number, name in enumerate(names)}
        self.runs = {
            name: {seed: self._run(name, seed) for seed in self.base_of}
            for name in student_names(manifest)
        }
        self.groups = {s: run.groups for s, run in next(iter(self.runs.values())).items()}

    def results(self, folder: Path) -> dict[str, Any]:
        rows, summary = [], []
        for name, own in self.runs.items():
            names = {"name": name, "method": name, "loss": ""}
            own_rows = [
                {**run_row(seed, names, run, None), "base": self.base_of[seed]}
                for seed, run in own.items()
            ]
            right = {seed: run.right for seed, run in own.items()}
            models = runs_by_base(self.bases, self.groups, right)
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
            "provenance": self._provenance(folder),
        }

    def _differences(self) -> list[dict[str, Any]]:
        right = {
            name: {seed: run.student.right for seed, run in own.items()}
            for name, own in self.runs.items()
        }
        baseline = self.manifest.baseline or next((n for n in _BASELINES if n in right), None)
        return difference_rows(
            self.bases, self.groups, right, {name: (name, "") for name in right}, baseline
        )

    def _run(self, name: str, seed: int) -> ScoredRun:
        """Return the predictions of a student at a seed, all in the order of the weak model's."""
        models = [self._model("weak", "", seed), self._model("student", name, seed)]
        own_ceiling = find_model(self.manifest, "ceiling", name, seed)
        ceiling = own_ceiling or self._model("ceiling", "", seed)
        tables = [self.tables[model] for model in (*models, ceiling)]
        check_items(tables)
        ids = tuple(sorted(tables[0].ids))
        weak, student, top = (_predictions(table, ids) for table in tables)
        return ScoredRun(weak, student, top, self._groups(ids), ceiling.name)

    def _model(self, role: str, name: str, seed: int) -> ModelFile:
        model = find_model(self.manifest, role, name, seed)
        assert model is not None, "seeds_by_base has checked it"
        return model

    def _groups(self, ids: tuple[str, ...]) -> np.ndarray:
        """Return the numbers of the items' groups, which are the same at all seeds."""
        return np.array([self._numbers[self._group(name)] for name in ids])

    def _group(self, item: str) -> str:
        # An item without a group is alone: the name of a group does not begin with a null.
        return self._group_of.get(item, f"\0{item}")

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
        table = self.tables[self._model("weak", "", seed)]
        names = [table.classes[c] for c in table.gold.tolist()]
        return content_hash(sorted(zip(table.ids, names, strict=True)))

    def _provenance(self, folder: Path) -> dict[str, Any]:
        return {
            "utc": datetime.now(UTC).isoformat(timespec="seconds"),
            "config": {
                "task": {"name": self.manifest.task},
                "seeds": list(self.base_of),
                "from": str(folder.absolute()),
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
