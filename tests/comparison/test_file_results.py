"""Results of files equal those of a run with these predictions, in numbers and in form."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.prediction_files import (
    ACCURACY,
    draw,
    write_csv,
    write_folder,
    write_jsonl,
    write_seed,
)
from helpers.task_data import local_config, numbered_rows, write_rows
from helpers.toy_run import config
from rich.console import Console

import w2s_fast
from w2s_fast import W2SError, metrics
from w2s_fast.cli.main import main
from w2s_fast.comparison.file_results import read_scores, results_of_files
from w2s_fast.comparison.run_diff import diff_runs
from w2s_fast.comparison.run_scores import load_outcomes
from w2s_fast.pipeline.artifacts import TEST
from w2s_fast.pipeline.context import load_data
from w2s_fast.report.check_results import problem
from w2s_fast.report.terminal import print_results


@pytest.fixture(scope="module")
def three_seeds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("three")
    write_folder(folder)
    return results_of_files(folder)


def test_accuracies_and_pgr_are_those_of_the_files(three_seeds: dict[str, Any]) -> None:
    assert problem(three_seeds) == "" and three_seeds["warnings"] == []
    weak, top = ACCURACY["weak"], ACCURACY["ceiling"]
    for row in three_seeds["runs"]:
        own = ACCURACY[f"student-{row['name']}"]
        assert (row["weak"], row["student"], row["ceiling"]) == (weak, own, top)
        assert row["pgr"] == pytest.approx((own - weak) / (top - weak))
        assert row["pgr_low"] < row["pgr"] < row["pgr_high"]
    assert [r["seed"] for r in three_seeds["runs"]] == [0, 1, 2] * 2
    assert three_seeds["design"]["over"] == ["seeds"]
    (difference,) = three_seeds["differences"]
    assert (difference["name"], difference["baseline"]) == ("logconf", "xent")
    assert difference["difference"] == pytest.approx(0.05)
    assert 0 < difference["p"] < 1 and difference["p_holm"] == difference["p"]


@pytest.mark.slow
@pytest.mark.parametrize("shared", [False, True], ids=["test items of each seed", "of all seeds"])
def test_a_run_and_the_files_of_its_predictions_have_the_same_numbers(
    shared: bool, tmp_path: Path
) -> None:
    """Also where every seed takes a whole test file, with groups, in an order of its own."""
    cfg = config(tmp_path / "run", losses=["xent", "logconf"], seeds=[0, 1, 2])
    if shared:
        train = write_rows(tmp_path / "train.csv", numbered_rows(120))
        test_file = write_rows(tmp_path / "test.csv", numbered_rows(60, start=120))
        task = local_config(train, test_path=str(test_file), n_test=60, group="doc")
        cfg = dataclasses.replace(cfg, task=task)
    run = w2s_fast.run(cfg)
    folder = tmp_path / "files"
    folder.mkdir()
    for seed in cfg.seeds:
        test = load_data(cfg.task, seed).test
        columns = zip(test.labels.tolist(), test.groups, strict=True)
        facts = dict(zip(test.ids, columns, strict=True))
        names = {f"weak/{seed}": "weak", f"ceiling/{seed}": "ceiling"}
        names |= {f"student/{seed}/{loss}": f"student-{loss}" for loss in cfg.losses}
        for stage, name in names.items():
            _write_facts(
                Path(run["provenance"]["store"], run["provenance"]["stages"][stage]["folder"]),
                facts,
                folder / f"{name}.seed{seed}.parquet",
            )
    files = results_of_files(folder)
    drop = {"method", "loss", "weak_label_accuracy", "fit", "base", "calibration"}
    if shared:  # these texts tie, up to the rounding of probabilities that are normalised
        drop |= {f"{model}_auroc" for model in ("weak", "student", "ceiling")}
    for part in ("runs", "summary"):
        expected = sorted(map(_plain(drop), run[part]), key=_who)
        actual = sorted(map(_plain(drop), files[part]), key=_who)
        assert actual == expected
    assert files["differences"] == run["differences"]


def _write_facts(stage: Path, facts: dict[str, tuple[int, str]], path: Path) -> None:
    """Write the predictions of a stage with the true class and the group of every item."""
    table = pq.read_table(stage / TEST)
    rng = np.random.default_rng(len(list(path.parent.iterdir())))
    order = rng.permutation(table.num_rows)  # files need no common order
    table = table.take(order)
    gold, groups = zip(*(facts[name] for name in table["id"].to_pylist()), strict=True)
    pq.write_table(table.append_column("gold", [gold]).append_column("group", [groups]), path)


def _plain(drop: set[str]) -> Any:
    def approximate(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: approximate(v) for k, v in value.items() if k not in drop}
        return pytest.approx(value, rel=1e-6) if isinstance(value, float) else value

    return lambda row: {k: v for k, v in approximate(row).items() if k != "rounding_sd"}


def _who(row: dict[str, Any]) -> tuple[str, int]:
    return row["name"], row.get("seed", 0)


def test_seeds_that_share_test_items_share_their_error(tmp_path: Path) -> None:
    drawn, right, items = draw(0), [], np.arange(400)
    for seed in (0, 1, 2):
        probs = {**drawn["probs"], "student-xent": np.roll(drawn["probs"]["student-xent"], seed)}
        write_seed(tmp_path, seed, {**drawn, "probs": probs})
        models = ("weak", "student-xent", "ceiling")
        right.append(np.stack([(probs[m] > 0.5) == (drawn["gold"] == 1) for m in models]))
    expected = metrics.pgr_interval(metrics.runs_of([right], [[items] * 3]))
    alone = metrics.pgr_interval(metrics.runs_of([right], [[items + 400 * s for s in range(3)]]))
    summary = next(s for s in results_of_files(tmp_path)["summary"] if s["name"] == "xent")
    assert (summary["pgr_low"], summary["pgr_high"]) == pytest.approx(expected)
    assert expected != pytest.approx(alone)


def test_the_order_of_rows_changes_nothing(tmp_path: Path) -> None:
    """In any file: of a seed, or of seeds that share their items."""
    results = []
    for shuffled in (False, True):
        folder = tmp_path / str(shuffled)
        folder.mkdir()
        for seed in (0, 1, 2):
            drawn = draw(seed, n=60)
            drawn["gold"] = draw(0, n=60)["gold"]
            for k, (name, probs) in enumerate(drawn["probs"].items()):
                order = np.random.default_rng(10 * seed + k).permutation(60)
                order = order if shuffled else np.arange(60)
                ids = [drawn["ids"][i] for i in order]
                write_csv(
                    folder / f"{name}.seed{seed}.csv", ids, drawn["gold"][order], probs[order]
                )
        results.append(results_of_files(folder))
    for part in ("runs", "summary", "differences"):
        assert results[0][part] == results[1][part]


def test_a_single_seed_has_intervals_over_its_items(tmp_path: Path) -> None:
    write_seed(tmp_path, None, draw(7))
    results = results_of_files(tmp_path)
    assert results["design"]["seeds"] == 1 and results["differences"][0]["low"] is not None
    assert results["summary"][0]["pgr_low"] == results["runs"][0]["pgr_low"]


@pytest.mark.parametrize("file", ["weak", "student-xent", "ceiling", "all"])
def test_items_of_a_group_are_resampled_together(tmp_path: Path, file: str) -> None:
    """Whichever file names the groups."""
    drawn = draw(7)
    write_seed(tmp_path, None, drawn)
    for name in drawn["probs"] if file == "all" else [file]:
        _write_groups(tmp_path, drawn, name)
    right = {k: (p > 0.5) == (drawn["gold"] == 1) for k, p in drawn["probs"].items()}
    expected = metrics.Outcomes(
        right["weak"], right["student-logconf"], right["ceiling"], np.arange(400) % 4
    )
    rows = {row["name"]: row for row in results_of_files(tmp_path)["runs"]}
    assert rows["logconf"]["gap_se"] == pytest.approx(metrics.paired_gap_se(expected))


def test_cells_of_parquet_files_are_read_as_those_of_csv_files(tmp_path: Path) -> None:
    """Bytes are text, and NaN is nothing."""
    drawn = draw(7)
    write_seed(tmp_path, None, drawn)
    expected = results_of_files(tmp_path)["summary"]
    (tmp_path / "weak.csv").unlink()
    columns = {"id": [i.encode() for i in drawn["ids"]], "gold": drawn["gold"]}
    columns["prob"] = drawn["probs"]["weak"]
    pq.write_table(pa.table(columns), tmp_path / "weak.parquet")
    assert results_of_files(tmp_path)["summary"] == expected
    groups = np.arange(400) / 10
    groups[2] = np.nan
    pq.write_table(pa.table(columns | {"group": groups}), tmp_path / "weak.parquet")
    with pytest.raises(W2SError, match=r"weak\.parquet: row 3 has no group; fill it"):
        results_of_files(tmp_path)


def test_files_that_contradict_each_other_about_groups(tmp_path: Path) -> None:
    drawn = draw(7)
    write_seed(tmp_path, None, drawn)
    _write_groups(tmp_path, drawn, "weak")
    _write_groups(tmp_path, drawn, "student-xent", 5)
    with pytest.raises(
        W2SError, match=r"item 'item 4' has group '\d' in .* and '\d' in .*; correct"
    ):
        results_of_files(tmp_path)


def _write_groups(folder: Path, drawn: dict[str, Any], name: str, n_groups: int = 4) -> None:
    (folder / f"{name}.csv").unlink()
    columns = zip(drawn["ids"], drawn["gold"].tolist(), drawn["probs"][name].tolist(), strict=True)
    write_jsonl(
        folder / f"{name}.jsonl",
        [
            {"id": n, "gold": g, "prob": p, "group": i % n_groups}
            for i, (n, g, p) in enumerate(columns)
        ],
    )


def test_results_do_not_lie_among_the_predictions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_seed(tmp_path, None, draw(7))
    assert main(["report", "--from", str(tmp_path), "--out", f"{tmp_path}/."]) == 2
    assert "--out is the folder of the files" in capsys.readouterr().err
    assert not (tmp_path / "results.json").exists()


def test_bases_have_seeds_of_their_own(tmp_path: Path) -> None:
    entries = []
    for base in range(3):
        for seed in (2 * base, 2 * base + 1):
            drawn = draw(seed)
            write_seed(tmp_path, seed, drawn | {"ids": [f"{seed}/{i}" for i in drawn["ids"]]})
            for name in ACCURACY:
                role, _, student = name.partition("-")
                own = {"file": f"{name}.seed{seed}.csv", "role": role, "seed": seed}
                if student:
                    own |= {"name": student, "base": f"model {base}"}
                entries.append(own)
    (tmp_path / "roles.yaml").write_text(
        json.dumps({"models": entries, "task": "mine", "baseline": "logconf"})
    )
    results = results_of_files(tmp_path)
    assert results["design"]["over"] == ["bases", "seeds"] and results["design"]["bases"] == 3
    assert [r["base"] for r in results["runs"][:6]] == [f"model {b}" for b in (0, 0, 1, 1, 2, 2)]
    assert results["provenance"]["config"]["task"] == {"name": "mine"}
    assert [d["name"] for d in results["differences"]] == ["xent"]
    entries[0]["seed"] = 9
    (tmp_path / "roles.yaml").write_text(json.dumps({"models": entries}))
    with pytest.raises(W2SError, match="no weak for seed 0"):
        results_of_files(tmp_path)


def test_a_ceiling_of_one_student_is_used_for_it_alone(tmp_path: Path) -> None:
    drawn = draw(3, {**ACCURACY, "ceiling-logconf": 0.95})
    write_seed(tmp_path, 0, drawn)
    rows = {row["name"]: row for row in results_of_files(tmp_path)["runs"]}
    assert rows["logconf"]["ceiling"] == 0.95 and rows["logconf"]["ceiling_name"] == "logconf"
    assert rows["xent"]["ceiling"] == 0.9 and rows["xent"]["ceiling_name"] == ""


def test_a_model_without_seed_serves_all_and_a_note_says_so(tmp_path: Path) -> None:
    drawn = draw(0)
    shared = {k: drawn["probs"][k] for k in ("weak", "ceiling")}
    write_seed(tmp_path, None, {**drawn, "probs": shared})
    for seed in (0, 1, 2):
        students = {"student-xent": np.roll(drawn["probs"]["student-xent"], seed)}
        write_seed(tmp_path, seed, {**drawn, "probs": students})
    results = results_of_files(tmp_path)
    assert [r["seed"] for r in results["runs"]] == [0, 1, 2]
    assert sum("the same at every seed" in line for line in results["warnings"]) == 2


@pytest.mark.slow
def test_the_command_writes_what_a_run_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = draw(1)
    drawn["probs"]["student-logconf"] = drawn["probs"]["student-xent"]
    write_seed(tmp_path, None, drawn)
    assert main(["report", "--from", str(tmp_path)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "student logconf (student-logconf.csv) and student xent (student-xent.csv)" in text
    assert "the same file" in text and "weak labels of the transfer set" not in text
    out = tmp_path / "report"
    assert {p.name for p in out.iterdir()} == {
        "results.json", "outcomes.parquet", "plot.png", "plot.svg", "report.html",
    }  # fmt: skip
    stored = json.loads((out / "results.json").read_text())
    assert problem(stored) == ""
    stream = io.StringIO()
    print_results(stored, Console(file=stream, width=80))
    assert main(["report", "--out", str(out)]) == 0  # and it is read back as a run's


def test_results_of_a_run_are_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], three_seeds: dict[str, Any]
) -> None:
    write_seed(tmp_path, None, draw(1))
    out = tmp_path / "run"
    out.mkdir()
    config = {k: v for k, v in three_seeds["provenance"]["config"].items() if k != "from"}
    run = {**three_seeds, "provenance": {**three_seeds["provenance"], "config": config}}
    (out / "results.json").write_text(json.dumps(run))
    assert main(["report", "--from", str(tmp_path), "--out", str(out)]) == 2
    assert "has the results of a run; choose another folder with --out" in capsys.readouterr().err
    assert json.loads((out / "results.json").read_text()) == run


def test_outcomes_of_files_are_of_their_results(tmp_path: Path) -> None:
    """Groups have their names, and an item without one is a group of its own."""
    out = tmp_path / "report"
    write_folder(tmp_path)
    assert main(["report", "--from", str(tmp_path)]) == 0
    results = json.loads((out / "results.json").read_text())
    outcomes = load_outcomes(out, results)
    assert outcomes is not None and list(outcomes) == [0, 1, 2]
    for own in outcomes.values():
        assert set(own.right) == {"weak", "student/xent", "student/logconf", "ceiling"}
        assert own.ids == tuple(sorted(own.ids)) and own.groups[0] == f"item {own.ids[0]}"


def test_classes_may_have_names_and_files_other_formats(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    classes = ("no", "maybe", "yes")
    gold = rng.integers(0, 3, 300)
    for name, sharpness in (("weak", 1.0), ("student-a", 2.0), ("ceiling", 4.0)):
        z = rng.normal(size=(300, 3)) + sharpness * np.eye(3)[gold]
        probs = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        rows = [
            {
                "id": i,
                "gold": classes[g],
                **{f"prob_{c}": v for c, v in zip(classes, p, strict=True)},
            }
            for i, (g, p) in enumerate(zip(gold, probs.tolist(), strict=True))
        ]
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    (row,) = results_of_files(tmp_path)["runs"]
    assert row["weak"] < row["student"] < row["ceiling"]
    assert row["weak_f1"] is not None


def test_results_of_files_are_compared_where_the_items_are_the_same(tmp_path: Path) -> None:
    """By id and class; seed 1 has another item, seed 2 the items in another order."""
    a, b = tmp_path / "a", tmp_path / "b"
    for folder in (a, b):
        folder.mkdir()
        write_folder(folder)
    for name in draw(0)["probs"]:
        file = b / f"{name}.seed1.csv"
        file.write_text(file.read_text().replace("1/item 3,", "1/new,"))
        head, *rows = (b / f"{name}.seed2.csv").read_text().splitlines()
        (b / f"{name}.seed2.csv").write_text("\n".join([head, *rows[::-1]]) + "\n")
    (first, in_first), (second, in_second) = (
        (scores.results(), scores.outcomes()) for scores in map(read_scores, (a, b))
    )
    for row in diff_runs(first, second, (in_first, in_second))["differences"]:
        assert row["seeds"] == [0, 2] and row["difference"] == 0
        assert row["reason"] == "without seed 1, whose test items differ"
    run = copy.deepcopy(second)
    del run["provenance"]["config"]["from"]
    (reason,) = {row["reason"] for row in diff_runs(first, run, (None, None))["differences"]}
    assert reason == "test items are known by id in one run and by content in the other"
