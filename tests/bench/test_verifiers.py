"""Selection by reward models: known outcomes on planted pairs, and the committed table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from bench import __main__ as bench
from bench.cases import verifiers as case
from w2s_fast.errors import W2SError


def write(folder: Path, scores: np.ndarray, first: np.ndarray, noise: float = 0.0) -> Path:
    """Write pairs (n, m, 2) of scores of A and B, and whether A is better, as the file has them."""
    path = folder / "judgebench" / "reward_scores.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for pair, a_is_better in zip(scores, first, strict=True):
        by_model = {
            f"model {j}": [[a + noise, b], [b, a - noise]] for j, (a, b) in enumerate(pair.tolist())
        }
        lines.append(json.dumps({"label": "A>B" if a_is_better else "B>A", "scores": by_model}))
    path.write_text("\n".join(lines) + "\n")
    return path


def planted(n: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw five models, of which the last is better, and some of whose scores tie."""
    rng = np.random.default_rng(seed)
    first = rng.random(n) < 0.6
    sign = np.where(first, 1.0, -1.0)
    margin = sign[:, None] * np.array([0.3, 0.3, 0.3, 0.3, 1.5]) + rng.normal(size=(n, 5))
    prompt = 20 * rng.normal(size=(n, 1))  # rewards are shifted by a function of the prompt
    scores = np.stack([prompt + margin, prompt - margin], 2).round(1)
    return scores, first


def rows_of(path: Path) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in case.measure(case.read(path))["rows"]}


def test_outcomes_are_those_of_the_pairs(tmp_path: Path) -> None:
    scores, first = planted()
    rows = rows_of(write(tmp_path, scores, first))
    margin = np.where(first, 1, -1)[:, None] * (scores[:, :, 0] - scores[:, :, 1])
    for j in range(5):
        row = rows[f"model {j}"]
        assert row["accuracy"] == pytest.approx((margin[:, j] > 0).mean())
        assert row["ties"] == (margin[:, j] == 0).sum() > 0
        shared = np.where(margin[:, j] == 0, 0.5, margin[:, j] > 0)
        assert row["accuracy_shared"] == pytest.approx(shared.mean())
    votes = np.sign(margin).sum(1)
    majority = np.where(votes == 0, 0.5, votes > 0)
    assert rows[case.MAJORITY]["accuracy_shared"] == pytest.approx(majority.mean())
    best = rows["model 4"]
    assert best["difference"] == pytest.approx(
        best["accuracy_shared"] - rows[case.MAJORITY]["accuracy_shared"]
    )
    assert 0 < best["low"] < best["difference"] < best["high"]
    assert best["estimated"] == pytest.approx(best["accuracy_shared"], abs=0.06)
    weaver = rows["Weaver, votes on pairs"]
    assert weaver["accuracy_shared"] > rows[case.MAJORITY]["accuracy_shared"] + 0.03
    assert rows["Weaver, scores within pairs"]["accuracy_shared"] > weaver["accuracy_shared"]
    # A threshold across prompts compares the prompts, not the responses.
    assert rows["Weaver, votes on responses"]["ties"] > 5 * weaver["ties"]
    assert weaver["p_holm"] < 0.05 and weaver["p"] == pytest.approx(
        binomtest(weaver["better"], weaver["better"] + weaver["worse"]).pvalue
    )


def test_nothing_depends_on_which_response_is_first(tmp_path: Path) -> None:
    scores, first = planted()
    swap = np.random.default_rng(1).random(len(first)) < 0.5
    swapped = np.where(swap[:, None, None], scores[:, :, ::-1], scores)
    rows = rows_of(write(tmp_path / "a", scores, first))
    again = rows_of(write(tmp_path / "b", swapped, first ^ swap))
    for name, row in rows.items():
        assert again[name] == pytest.approx(row, abs=1e-12), name


def test_both_orders_are_averaged(tmp_path: Path) -> None:
    scores, first = planted()
    exact, noisy = (case.read(write(tmp_path / str(e), scores, first, e)) for e in (0.0, 0.4))
    np.testing.assert_allclose(noisy.scores, exact.scores, atol=1e-9)
    assert exact.order_difference == 0 and noisy.order_difference == pytest.approx(0.8)


@pytest.mark.parametrize(
    "text",
    ["", "{", '{"label": "A>B"}', '{"label": "tie", "scores": {"m": [[1, 2], [2, 1]]}}',
     '{"label": "A>B", "scores": {"m": [1, 2]}}'],
)  # fmt: skip
def test_a_file_of_another_form_is_one_line(text: str, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "judgebench" / "reward_scores.jsonl"
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(W2SError, match=r"reward_scores.jsonl: "):
        case.read(path)
    assert bench.main(["verifiers", "--data", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_committed_results_are_from_a_clean_tree_and_consistent() -> None:
    results = json.loads((case.FOLDER / f"{case.NAME}.json").read_text())
    assert not results["environment"]["dirty"]
    rows = {row["name"]: row for row in results["rows"]}
    majority, n = rows[case.MAJORITY], results["n_pairs"]
    assert n == 350 and len(results["models"]) == 5 and results["order_difference"] == 0
    assert f"{majority['accuracy']:.3f}" == "0.611"
    assert f"{max(rows[m]['accuracy'] for m in results['models']):.3f}" == "0.643"
    for row in rows.values():
        assert row["accuracy_shared"] == pytest.approx(row["accuracy"] + row["ties"] / 2 / n)
        assert row["low"] <= row["difference"] <= row["high"]
        assert row["difference"] == pytest.approx(
            row["accuracy_shared"] - majority["accuracy_shared"]
        )
        assert row["name"] in case.table(results)
    # What the page says about the table.
    for kind in ("of responses", "within pairs"):
        row = rows[f"Weaver, scores {kind}"]
        assert row["low"] > 0 and row["accuracy"] > 0.64
    compared = [row for row in rows.values() if row is not majority]
    assert all(row["p"] <= row["p_holm"] and row["p_holm"] > 0.05 for row in compared)
    assert not results["independence"]["refuted"]
    assert all(rows[m]["estimated"] > rows[m]["accuracy_shared"] + 0.1 for m in results["models"])
