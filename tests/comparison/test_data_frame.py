"""A data frame has one row per run and model, with the numbers of results.json."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
from helpers.run_results import make_results

import w2s_fast
from w2s_fast import W2SError

# Those of the docstring of `to_dataframe`.
DOCUMENTED = (
    "cell", "task", "base", "seed", "role", "name", "method", "loss", "n_test", "accuracy", "auroc",
    "balanced", "f1", "pgr", "pgr_low", "pgr_high", "refused", "gap", "gap_se",
    "weak_label_accuracy",
)  # fmt: skip


def test_every_model_of_every_seed_is_one_row() -> None:
    frame = w2s_fast.to_dataframe(make_results(control=True))
    counts = frame.groupby("role").size().to_dict()
    assert counts == {"weak": 2, "ceiling": 2, "control": 2, "student": 4}
    students = frame[frame.role == "student"].set_index(["name", "seed"])
    row = students.loc[("xent", 1)]
    assert row.accuracy == pytest.approx(0.9) and row.pgr == 0.5 and row.pgr_low == 0.4
    assert row.agreement_weak_wrong == 0.17 and row.n_test == 500 and row.auroc == 0.9
    weak = frame[frame.role == "weak"]
    assert weak.accuracy.tolist() == [0.8, 0.8] and weak.pgr.isna().all()
    assert frame[frame.role == "control"].accuracy.tolist() == [0.81, 0.81]
    assert set(frame.task) == {"<b>mine</b>"} and set(frame.cell) == {""}
    assert "worst_group" not in frame, "no model has one"


def test_documented_columns_are_there_without_values() -> None:
    results = make_results(control=True)
    for run in results["runs"]:
        run |= {"pgr": None, "pgr_low": None, "pgr_high": None, "refused": None}
        for score in ("auroc", "f1", "balanced"):
            run |= {f"{role}_{score}": None for role in ("weak", "student", "ceiling")}
        run["weak_label_accuracy"] = None
    for control in results["controls"]:
        control["auroc"] = None
    frame = w2s_fast.to_dataframe(results)
    assert frame.pgr.isna().all() and frame.refused.isna().all() and frame.auroc.isna().all()
    assert set(DOCUMENTED) <= set(frame)
    assert not [c for c in frame if c in ("harm_score", "worst_group") or c.startswith("ood")]


def test_the_columns_of_no_runs_are_those_of_some() -> None:
    frame = w2s_fast.to_dataframe({"cells": [], "failed": {}})
    assert len(frame) == 0 and set(DOCUMENTED) <= set(frame)


def test_controls_have_base_and_number_of_items() -> None:
    """Without them whole numbers became floats."""
    frame = w2s_fast.to_dataframe(make_results(control=True))
    control = frame[frame.role == "control"]
    assert control.n_test.tolist() == [500, 500] and frame.n_test.dtype == "int64"
    assert control.base.tolist() == frame[frame.role == "weak"].base.tolist()
    assert control.seed.dtype == "int64"


def test_a_ceiling_of_one_student_is_a_row_of_its_own() -> None:
    results = make_results()
    for run in results["runs"]:
        run["ceiling_name"] = run["name"] if run["name"] != "xent" else ""
    frame = w2s_fast.to_dataframe(results)
    assert sorted(frame[frame.role == "ceiling"].name) == ["", "", *["logconf:aux_coef=0.3"] * 2]


def write(folder: Path, name: str, values: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(values))
    return folder


def sweep_of(results: dict[str, Any]) -> dict[str, Any]:
    cells = [
        {"name": f"cell {i}", "task": f"task {i}", "runs": results["runs"], "summary": []}
        for i in (0, 1)
    ]
    return {"cells": cells, "failed": {}}


def test_folders_of_runs_and_sweeps_are_read(tmp_path: Path) -> None:
    results = make_results()
    own = w2s_fast.to_dataframe(results)
    run = w2s_fast.to_dataframe(str(write(tmp_path / "run", "results.json", results)))
    assert run.equals(own)
    sweep = w2s_fast.to_dataframe(write(tmp_path / "sweep", "sweep.json", sweep_of(results)))
    assert len(sweep) == 2 * len(own)
    assert sweep.groupby(["cell", "task"]).size().to_dict() == {
        ("cell 0", "task 0"): len(own), ("cell 1", "task 1"): len(own),
    }  # fmt: skip
    assert len(w2s_fast.to_dataframe({"cells": [], "failed": {}})) == 0


def test_what_has_no_results_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(W2SError, match=r"no results\.json in"):
        w2s_fast.to_dataframe(tmp_path)
    with pytest.raises(W2SError, match="results has the keys a; expected what"):
        w2s_fast.to_dataframe({"a": 1})
    for wrong in ([1], 1, None):
        with pytest.raises(W2SError, match=r"results is (\[1\]|1|None); expected a path"):
            w2s_fast.to_dataframe(wrong)  # type: ignore[arg-type]
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(W2SError, match=r"sweep\.json cannot be read"):
        w2s_fast.to_dataframe(tmp_path)
    usual = builtins.__import__

    def without_pandas(name: str, *rest: Any, **more: Any) -> Any:
        if name == "pandas":
            raise ImportError(name)
        return usual(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without_pandas)
    with pytest.raises(W2SError, match="pip install pandas"):
        w2s_fast.to_dataframe(make_results())
