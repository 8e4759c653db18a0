"""Read a run: its results, the scores of its models, and which test items they have right."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from w2s_fast.errors import W2SError
from w2s_fast.report import RESULTS, load_results
from w2s_fast.report.model_rows import ceiling_title
from w2s_fast.report.outcomes import (
    OUTCOMES,
    WEAK,
    Outcomes,
    ceiling_model,
    read_outcomes,
    student_model,
)

Results = Mapping[str, Any]
OutcomesBySeed = Mapping[int, Outcomes]


class Score(NamedTuple):
    """Scores of a model at a seed.

    Attributes:
        accuracy: On the test items.
        pgr: None where it is not reported, and of models that are no students.
    """

    accuracy: float
    pgr: float | None


def load_run(path: Path, name: str) -> dict[str, Any]:
    """Read the results of a run, given its folder or its results.json.

    Raises:
        W2SError: There are none, or they are damaged.
    """
    if not path.exists():
        raise W2SError(f"{name}: {path} does not exist; expected the folder of a run")
    return load_results(_folder(path))


def load_outcomes(path: Path, results: Results) -> dict[int, Outcomes] | None:
    """Read which test items the models of a run have right; None if an older version wrote none.

    Args:
        path: Folder of the run, or its results.json.
        results: What ``load_run`` returns.

    Raises:
        W2SError: The file is damaged, or is not of these results.
    """
    outcomes = read_outcomes(_folder(path))
    for (model, seed), score in model_scores(results).items() if outcomes else ():
        own = outcomes[seed].right.get(model) if outcomes and seed in outcomes else None
        if own is None or not np.isclose(own.mean(), score.accuracy, rtol=0, atol=1e-6):
            raise W2SError(
                f"{_folder(path) / OUTCOMES} is not of the results beside it: {model} at seed "
                f"{seed} differs; run again, or remove the file to compare accuracies alone"
            )
    return outcomes


def _folder(path: Path) -> Path:
    return path.parent if path.name == RESULTS else path


def model_scores(results: Results) -> dict[tuple[str, int], Score]:
    """Return the scores of every model, by its name in outcomes and its seed."""
    scores: dict[tuple[str, int], Score] = {}
    for row in results["runs"]:
        seed = row["seed"]
        scores[WEAK, seed] = Score(row["weak"], None)
        scores[student_model(row["name"]), seed] = Score(row["student"], row["pgr"])
        scores[ceiling_model(row["ceiling_name"]), seed] = Score(row["ceiling"], None)
    return scores


def model_title(model: str) -> str:
    """Return how tables call a model of outcomes."""
    role, _, name = model.partition("/")
    if role == WEAK:
        return "weak supervisor"
    return f"student · {name}" if role == "student" else ceiling_title(name)
