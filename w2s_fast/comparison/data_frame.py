"""Results as a pandas data frame: one row per run and model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2s_fast.errors import W2SError
from w2s_fast.paths import user_path
from w2s_fast.pipeline.predictions import SCORE_NAMES
from w2s_fast.report import load_results
from w2s_fast.sweeps.sweep_files import SWEEP

if TYPE_CHECKING:
    import pandas as pd

_RUN = ("pgr", "pgr_low", "pgr_high", "refused", "gap", "gap_se", "weak_label_accuracy")
_NESTED = ("agreement", "misfit", "gain")  # their columns are NAME_FIELD
_MODEL = ("cell", "task", "base", "seed", "role", "name", "method", "loss", "n_test", "accuracy")
_OPTIONAL = ("harm_score", "worst_group", "ood", "ood_worst_group")  # of some tasks only
_TEXTS = ("cell", "task", "base", "role", "name", "method", "loss", "refused")


def to_dataframe(results: Mapping[str, Any] | str | Path) -> pd.DataFrame:
    """Return results as a data frame with one row per run and model.

    Args:
        results: What ``run`` or ``sweep`` returns, or the folder of a run or of a sweep.

    Returns:
        Columns ``cell`` (name in a sweep, else ""), ``task``, ``base``, ``seed``, ``role`` ("weak",
        "student", "ceiling" or "control"), ``name``, ``method`` and ``loss`` (of students; ``name``
        of a ceiling is the student that it belongs to), ``n_test``, ``accuracy``, further scores
        (``auroc``, ``balanced``, ``f1``, ...), and of students ``pgr`` with ``pgr_low`` and
        ``pgr_high``, ``refused`` (why it is omitted), ``gap``, ``gap_se``, ``weak_label_accuracy``,
        ``agreement_*``, ``misfit_*``, ``gain_*``. What a model does not have is missing (NaN or
        None); the columns are always there, but for ``harm_score``, ``worst_group``, ``ood`` and
        ``ood_worst_group``, which only some tasks have.

    Raises:
        W2SError: pandas is not installed, or there are no results.
    """
    try:
        import pandas as pd
    except ImportError as err:
        raise W2SError(
            "to_dataframe needs pandas, which is not installed: pip install pandas"
        ) from err
    values = results if isinstance(results, Mapping) else _load(user_path(results, "results"))
    if not isinstance(values.get("cells", values.get("runs")), list):
        raise W2SError(
            f"results has the keys {', '.join(map(str, values)) or 'none'}; expected what run() or "
            "sweep() returns"
        )
    return _typed(pd.DataFrame(list(_rows(values)), columns=_columns(values)))


def _columns(results: Mapping[str, Any]) -> list[str]:
    """Return the columns: the documented ones, and those that a row has besides."""
    found = {key: None for row in _rows(results) for key, value in row.items() if value is not None}
    fixed = (*_MODEL, *(name for name in SCORE_NAMES if name not in _OPTIONAL or name in found))
    return list(dict.fromkeys((*fixed, *_RUN, *found)))


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a frame whose numbers are numbers also where a column has none."""
    empty = [name for name in frame if name not in _TEXTS and frame[name].isna().all()]
    return frame.astype(dict.fromkeys(empty, float))


def _load(path: Path) -> dict[str, Any]:
    """Read the results in the folder of a run or a sweep."""
    sweep = path / f"{SWEEP}.json"
    if not sweep.exists():
        return load_results(path)
    try:
        values: dict[str, Any] = json.loads(sweep.read_bytes())
    except (OSError, ValueError, RecursionError) as err:
        raise W2SError(f"{sweep} cannot be read ({err}); run `w2s-fast sweep` again") from err
    return values


def _rows(results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    if "cells" in results:
        for cell in results["cells"]:
            names = {"cell": cell["name"], "task": cell["task"]}
            yield from _rows_of_run(cell, names)
    else:
        task = results["provenance"]["config"]["task"]["name"]
        yield from _rows_of_run(results, {"cell": "", "task": task})


def _rows_of_run(results: Mapping[str, Any], names: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a row per model; students share their weak model and mostly their ceiling."""
    seen: set[tuple[str, str, int]] = set()
    for run in results["runs"]:
        for role, name in (
            ("weak", ""),
            ("student", run["name"]),
            ("ceiling", run["ceiling_name"]),
        ):
            if (role, name, run["seed"]) not in seen:
                seen.add((role, name, run["seed"]))
                yield {**names, **_row(run, role, name)}
    first = {run["seed"]: run for run in reversed(results["runs"])}
    for control in results.get("controls", ()):
        run = first.get(control["seed"], {})
        of_seed = {"base": run.get("base", ""), "n_test": run.get("n_test")}
        yield {**names, **of_seed, "role": "control", "name": "", **control}


def _row(run: Mapping[str, Any], role: str, name: str) -> dict[str, Any]:
    row = {
        "base": run.get("base", ""),
        "seed": run["seed"],
        "role": role,
        "name": name,
        "method": run["method"] if role == "student" else None,
        "loss": run["loss"] if role == "student" else None,
        "n_test": run["n_test"],
        "accuracy": run[role],
        **{score: run.get(f"{role}_{score}") for score in SCORE_NAMES},
    }
    if role != "student":
        return row
    nested = {
        f"{part}_{field}": value for part in _NESTED for field, value in run.get(part, {}).items()
    }
    return {**row, **{key: run[key] for key in _RUN}, **nested}
