"""Two runs are compared setting by setting, and seed by seed where the test items are the same."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.run_results import make_results
from helpers.toy_run import config
from rich.console import Console

import w2s_fast
from w2s_fast import metrics
from w2s_fast.cli.main import main
from w2s_fast.comparison.diff_tables import print_diff
from w2s_fast.comparison.run_diff import diff_runs
from w2s_fast.comparison.run_scores import load_outcomes
from w2s_fast.errors import W2SError
from w2s_fast.report.outcomes import Outcomes, read_outcomes, write_outcomes

SEEDS = (0, 1, 2)


def three_seeds(shift: float = 0.0) -> dict[str, Any]:
    """Results of three seeds; ``shift`` is added to the student's accuracy, more at later seeds."""
    results = make_results(("xent",))
    (first, _) = results["runs"]
    results["runs"] = [
        {**first, "seed": s, "student": 0.9 + shift * (1 + s / 10), "pgr": 0.5 + shift}
        for s in SEEDS
    ]
    results["provenance"]["config"]["seeds"] = list(SEEDS)
    results["provenance"]["test_items"] = {str(s): f"items {s}" for s in SEEDS}
    return results


def diff_of(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """Compare results of an older version, which lack outcomes."""
    return diff_runs(a, b, (None, None))


def student_row(diff: dict[str, Any]) -> dict[str, Any]:
    return next(row for row in diff["differences"] if row["name"] == "student · xent")


def test_a_run_equals_itself_wherever_its_folders_are() -> None:
    a, b = three_seeds(), three_seeds()
    a["provenance"]["config"]["output_dir"] = "a"
    b["provenance"]["config"]["output_dir"] = "b"
    diff = diff_of(a, b)
    assert diff["equal"] and not diff["settings"] and not diff["environment"]
    assert student_row(diff)["difference"] == 0


def test_settings_and_environment_are_named_by_dotted_paths() -> None:
    a, b = three_seeds(), three_seeds()
    b["provenance"]["config"]["task"]["n_test"] = 7
    b["provenance"]["config"]["seeds"] = [0]
    b["provenance"]["versions"]["python"] = "3.12"
    b["provenance"]["git"] = {"commit": "f" * 40, "dirty": False}
    diff = diff_of(a, b)
    assert diff["settings"] == {"task.n_test": [None, 7], "seeds": [[0, 1, 2], [0]]}
    assert diff["environment"] == {
        "versions.python": ["3.11", "3.12"],
        "git.commit": [None, "f" * 40],
        "git.dirty": [None, False],
    }
    assert not diff["equal"]


def test_another_machine_alone_is_no_difference() -> None:
    a, b = three_seeds(), three_seeds()
    b["provenance"]["machine"]["cpu"] = "another"
    diff = diff_of(a, b)
    assert diff["equal"] and diff["environment"] == {"machine.cpu": ["a cpu", "another"]}


def test_differences_are_paired_over_seeds() -> None:
    diff = diff_of(three_seeds(), three_seeds(0.05))
    row = student_row(diff)
    pairs = np.array([[[0.9 + 0.05 * (1 + s / 10), 0.9] for s in SEEDS]])
    expected = metrics.paired_difference(metrics.Runs(pairs))
    assert (row["difference"], row["low"], row["high"], row["p"]) == pytest.approx(
        (expected.mean, expected.low, expected.high, expected.p)
    )
    assert row["difference"] > 0 and row["seeds"] == [0, 1, 2] and not diff["equal"]
    assert row["p_holm"] == pytest.approx(3 * row["p"]), "of three models"
    own = next(m for m in diff["models"] if m["name"] == "student · xent" and m["seed"] == 1)
    assert own["a"]["pgr"] == 0.5 and own["b"]["pgr"] == pytest.approx(0.55)


def with_outcomes(
    n_items: int, groups: dict[int, list[str]], seed: int, chance: float
) -> tuple[dict[str, Any], dict[int, Outcomes]]:
    """Results of three seeds and their outcomes; the student is right with this chance."""
    rng = np.random.default_rng(seed)
    results, outcomes = three_seeds(), {}
    for row in results["runs"]:
        chances = {"weak": 0.8, "student/xent": chance, "ceiling": 0.9}
        right = {model: rng.random(n_items) < p for model, p in chances.items()}
        row |= {m.split("/")[0]: float(r.mean()) for m, r in right.items()}
        ids = tuple(f"{row['seed']}-{i}" for i in range(n_items))
        outcomes[row["seed"]] = Outcomes(ids, tuple(groups[row["seed"]]), right)
    return results, outcomes


@pytest.mark.parametrize("n_shared", [0, 40, 200])
def test_test_items_of_several_seeds_widen_the_interval(n_shared: int) -> None:
    n = 200
    groups = {s: [f"{i if i < n_shared else (s, i)}" for i in range(n)] for s in SEEDS}
    a, in_a = with_outcomes(n, groups, 1, 0.7)
    b, in_b = with_outcomes(n, groups, 2, 0.8)
    shuffled = {s: shuffle(own) for s, own in in_b.items()}  # ids tell which items are the same
    row = student_row(diff_runs(a, b, (in_a, shuffled)))
    right = [[np.stack([own[s].right["student/xent"] for own in (in_b, in_a)]) for s in SEEDS]]
    numbers = [
        [np.array([i if i < n_shared else n * (s + 1) + i for i in range(n)]) for s in SEEDS]
    ]
    expected = metrics.paired_difference(metrics.runs_of(right, numbers))
    assert (row["difference"], row["low"], row["high"], row["p"]) == pytest.approx(
        (expected.mean, expected.low, expected.high, expected.p)
    )
    alone = student_row(diff_of(a, b))
    assert row["difference"] == pytest.approx(alone["difference"])
    assert (row["high"] != pytest.approx(alone["high"])) == (n_shared > 0)


def shuffle(outcomes: Outcomes) -> Outcomes:
    """The same outcomes in another order of the items."""
    order = np.random.default_rng(0).permutation(len(outcomes.ids))
    ids, groups = (tuple(column[i] for i in order) for column in (outcomes.ids, outcomes.groups))
    return Outcomes(ids, groups, {m: right[order] for m, right in outcomes.right.items()})


def test_a_single_seed_has_an_interval_over_its_items() -> None:
    groups = {s: [f"{s} {i}" for i in range(300)] for s in SEEDS}
    (a, in_a), (b, in_b) = with_outcomes(300, groups, 1, 0.6), with_outcomes(300, groups, 2, 0.9)
    a["runs"], b["runs"] = a["runs"][:1], b["runs"][:1]
    row = student_row(diff_runs(a, b, (in_a, in_b)))
    assert row["low"] < row["difference"] < row["high"] and row["p"] is None and row["low"] > 0.1
    assert student_row(diff_of(a, b))["low"] is None


def test_outcomes_of_other_items_are_refused() -> None:
    groups = {s: [f"{s} {i}" for i in range(50)] for s in SEEDS}
    (a, in_a), (b, in_b) = with_outcomes(50, groups, 1, 0.6), with_outcomes(50, groups, 2, 0.9)
    other = {s: Outcomes(("new", *own.ids[1:]), own.groups, own.right) for s, own in in_b.items()}
    with pytest.raises(W2SError, match="have other items at seed 0"):
        diff_runs(a, b, (in_a, other))


def test_outcomes_of_other_results_are_refused(tmp_path: Path) -> None:
    groups = {s: [f"{s} {i}" for i in range(50)] for s in SEEDS}
    results, outcomes = with_outcomes(50, groups, 1, 0.7)
    write_outcomes(tmp_path, outcomes)
    assert load_outcomes(tmp_path, results) is not None
    results["runs"][1]["student"] += 0.02
    with pytest.raises(W2SError, match="not of the results beside it: student/xent at seed 1"):
        load_outcomes(tmp_path / "results.json", results)
    write_outcomes(tmp_path, {0: outcomes[0]})
    with pytest.raises(W2SError, match="at seed 1 differs"):
        load_outcomes(tmp_path, results)
    assert load_outcomes(tmp_path / "nowhere", results) is None


@pytest.mark.parametrize(
    ("items", "seeds", "reason"),
    [
        ({"0": "items 0", "1": "items 1", "2": "x"}, [0, 1], "without seed 2, whose test items"),
        ({"0": "x", "1": "x", "2": "x"}, [], "the test items differ at every seed"),
        (None, [], "results of an older version do not say"),
    ],
)
def test_only_seeds_with_the_same_items_are_compared(
    items: dict[str, str] | None, seeds: list[int], reason: str
) -> None:
    b = three_seeds(0.1)
    if items is None:
        del b["provenance"]["test_items"]
    else:
        b["provenance"]["test_items"] = items
    row = student_row(diff_of(three_seeds(), b))
    assert row["seeds"] == seeds and row["reason"].startswith(reason)
    assert ("difference" in row) == bool(seeds)
    if seeds:
        assert row["low"] is None, "two seeds have no interval"


def test_bases_are_what_intervals_are_over() -> None:
    a, b = three_seeds(), three_seeds(0.05)
    for results in (a, b):
        for row in results["runs"]:
            row["base"] = f"base {row['seed']}"
    over_bases = student_row(diff_of(a, b))
    assert over_bases["low"] is not None
    for row in a["runs"]:
        row["base"] = "one" if row["seed"] < 2 else "two"
    assert student_row(diff_of(a, b))["low"] is None
    assert student_row(diff_of(a, b))["difference"] == pytest.approx(over_bases["difference"])


def test_runs_without_a_common_seed_and_models_of_one_run() -> None:
    b = three_seeds()
    for row in b["runs"]:
        row["seed"] += 10
        row["name"] = "gce"
    diff = diff_of(three_seeds(), b)
    reasons = {row["name"]: row["reason"] for row in diff["differences"]}
    assert reasons == dict.fromkeys(
        ("weak supervisor", "ceiling"), "the runs have no seed in common"
    )
    own = next(m for m in diff["models"] if m["name"] == "student · gce")
    assert own["a"] is None and not own["equal"]


def test_stages_are_compared_by_identity_and_contents() -> None:
    a, b = three_seeds(), three_seeds()
    stage = a["provenance"]["stages"]["weak/0"]
    a["provenance"]["stages"] = {n: dict(stage) for n in ("same", "moved", "other", "mine")}
    b["provenance"]["stages"] = {n: dict(stage) for n in ("same", "moved", "other", "yours")}
    b["provenance"]["stages"]["moved"]["folder"] = "weak-2"
    b["provenance"]["stages"]["other"]["digest"] = "0" * 64
    diff = diff_of(a, b)
    assert diff["stages"] == {
        "changed": ["moved"], "contents": ["other"], "only_a": ["mine"], "only_b": ["yours"],
    }  # fmt: skip
    assert not diff["equal"]


def test_everything_that_differs_is_printed() -> None:
    b = three_seeds(0.05)
    b["provenance"]["config"]["task"]["n_test"] = 7
    b["provenance"]["test_items"]["2"] = "x"
    b["provenance"]["stages"]["weak/0"]["folder"] = "weak-2"
    stream = io.StringIO()
    print_diff(diff_of(three_seeds(), b), Console(file=stream, width=100))
    text = " ".join(stream.getvalue().split())
    for words in (
        "task.n_test – 7", "student · xent 1 0.900 0.955 +0.055 0.50 0.55", "ceiling 0 1.000",
        "without seed 2, whose test items differ", "A has no outcomes.parquet: intervals lack",
        "B has no outcomes.parquet",
        "stages with other settings or inputs: weak/0", "student · xent 2 +0.05",
    ):  # fmt: skip
        assert words in text, words
    assert "are equal" not in text


@pytest.mark.slow
def test_the_command_compares_two_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = str(tmp_path / "cache")
    for name, losses in (("a", ["xent"]), ("b", ["xent", "gce"])):
        w2s_fast.run(config(tmp_path / name, cache_dir=cache, losses=losses))
    outcomes = read_outcomes(tmp_path / "b")
    assert outcomes is not None and list(outcomes[0].right) == [
        "weak", "student/xent", "ceiling", "student/gce",
    ]  # fmt: skip
    a, b = (str(tmp_path / name) for name in ("a", "b"))
    assert main(["diff", a, f"{a}/results.json"]) == 0
    assert "settings, results and stages are equal" in capsys.readouterr().out
    assert main(["diff", a, b, "--json"]) == 1
    diff = json.loads(capsys.readouterr().out)
    assert diff["settings"] == {"losses": [["xent"], ["xent", "gce"]]}
    assert diff["stages"] == {
        "changed": ["report"], "contents": [], "only_a": [], "only_b": ["student/0/gce"],
    }  # fmt: skip
    assert student_row(diff)["seeds"] == [0] and student_row(diff)["difference"] == 0
    assert diff["notes"] == [], "and the outcomes are of these results"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "diff takes two runs and --json; found none"),
        (["a"], "found a"),
        (["a", "b", "c"], "found a b c"),
        (["a", "--jason"], "found a --jason"),
        (["nowhere", "nowhere"], "A: nowhere does not exist"),
        (["", "b"], "A is empty"),
    ],
)
def test_wrong_arguments_are_one_line(
    args: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diff", *args]) == 2
    assert words in capsys.readouterr().err


def test_results_of_two_runs_are_not_changed() -> None:
    a, b = three_seeds(), three_seeds(0.1)
    before = copy.deepcopy([a, b])
    diff_of(a, b)
    assert [a, b] == before
