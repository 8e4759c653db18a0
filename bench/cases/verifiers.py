"""``python -m bench verifiers``: selection by several reward models, for docs/verifiers.md.

    python -m bench verifiers --data DIR            # print the table
    python -m bench verifiers --data DIR --record   # replace the committed results (clean tree)

The data folder holds judgebench/reward_scores.jsonl: per line ``label`` ("A>B" or "B>A") and
``scores``, per reward model the scores of both responses in both orders, [[A, B], [B, A]]. They
come from the outputs that JudgeBench publishes and are not part of the repository.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import binomtest

from bench.harness.environment import environment
from bench.harness.row_files import RESULTS
from w2s_fast import metrics
from w2s_fast import verifiers as V
from w2s_fast.errors import W2SError
from w2s_fast.label_models import DawidSkene, GaussianScores, independence_test, majority_vote
from w2s_fast.report.model_rows import level_text

FOLDER = RESULTS / "verifiers"
PAGE = "docs/verifiers.md"
NAME = "judgebench"
BALANCE = 0.5  # one of two responses is right, by construction of the data
MAJORITY = "majority vote"


class Scored(NamedTuple):
    """Scored pairs as rows: response A and response B of each pair, one after the other.

    Attributes:
        models: m names of reward models.
        scores: (2 n, m), the mean over both orders.
        pairs: (2 n,) names of pairs.
        gold: (2 n,) bool, True for the better response.
        order_difference: Largest change of a score when the order is reversed.
    """

    models: tuple[str, ...]
    scores: np.ndarray
    pairs: np.ndarray
    gold: np.ndarray
    order_difference: float


def read(path: Path) -> Scored:
    """Read scored pairs.

    Raises:
        W2SError: The file is missing, or a line does not have the fields of the module docstring.
    """
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        models = tuple(sorted(lines[0]["scores"]))
        both = np.array([[line["scores"][m] for m in models] for line in lines], dtype=np.float64)
        first_is_better = np.array([{"A>B": True, "B>A": False}[line["label"]] for line in lines])
    except (OSError, ValueError, KeyError, IndexError, TypeError) as e:
        raise W2SError(
            f"{path}: {type(e).__name__} {e}; expected lines with label and scores, see "
            "bench/cases/verifiers.py"
        ) from e
    if both.shape[1:] != (len(models), 2, 2):
        raise W2SError(f"{path}: scores have shape {both.shape}; expected two orders of two scores")
    forward, backward = both[:, :, 0], both[:, :, 1, ::-1]  # (n, m, response)
    return Scored(
        models,
        ((forward + backward) / 2).transpose(0, 2, 1).reshape(-1, len(models)),
        np.repeat(np.arange(len(lines)), 2),
        np.stack([first_is_better, ~first_is_better], 1).reshape(-1),
        float(np.abs(forward - backward).max()),
    )


def measure(data: Scored) -> dict[str, Any]:
    """Return the row of every selection; none but the scoring uses the true labels."""
    by_pair = V.binarize_within_problems(data.scores, data.pairs, BALANCE)
    by_response = V.binarize(data.scores, V.quantile_thresholds(data.scores, BALANCE))
    model = _label_model(by_pair)
    pairs = data.scores.reshape(-1, 2, len(data.models))
    centred = (pairs - pairs.mean(1, keepdims=True)).reshape(data.scores.shape)
    selections = {
        **dict(zip(data.models, data.scores.T, strict=True)),
        MAJORITY: majority_vote(by_pair, 2)[:, 1].numpy(),
        "naive average": V.naive_average(V.min_max_scores(data.scores)),
        "Weaver, votes on responses": _log_odds(_label_model(by_response), by_response),
        "Weaver, votes on pairs": _log_odds(model, by_pair),
        "Weaver, scores of responses": _gaussian_log_odds(data.scores),
        "Weaver, scores within pairs": _gaussian_log_odds(centred),
    }
    outcomes = {
        name: V.selection_outcomes(scores, data.pairs, data.gold)
        for name, scores in selections.items()
    }
    rows = [_row(name, outcome, outcomes[MAJORITY]) for name, outcome in outcomes.items()]
    for row, p in zip(rows, metrics.holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = p
    estimated = _estimated_accuracy(model)
    for row in rows:
        if row["name"] in data.models:
            row["estimated"] = float(estimated[data.models.index(row["name"])])
    return {
        "name": NAME,
        "n_pairs": len(data.gold) // 2,
        "models": list(data.models),
        "order_difference": data.order_difference,
        "independence": _independence(by_pair[::2]),
        "rows": rows,
    }


def _label_model(votes: np.ndarray) -> DawidSkene:
    return DawidSkene(2, class_balance=[1 - BALANCE, BALANCE]).fit(votes)


def _log_odds(model: DawidSkene, votes: np.ndarray) -> np.ndarray:
    return V.weaver_log_odds(votes, model.prior, model.rates)


def _gaussian_log_odds(scores: np.ndarray) -> np.ndarray:
    model = GaussianScores(class_balance=[1 - BALANCE, BALANCE]).fit(scores)
    return V.gaussian_log_odds(scores, model.prior, model.means, model.within)


def _estimated_accuracy(model: DawidSkene) -> np.ndarray:
    """Return the share of right votes that the model estimates for each source, (m,)."""
    right = model.rates[:, 0, 0] + model.rates[:, 1, 1]
    return (right / (1 - model.rates[:, :, 2]).sum(1)).numpy()


def _independence(votes: np.ndarray) -> dict[str, Any]:
    """Test independence given a latent class; one row per pair, as its second row is the mirror."""
    test = independence_test(_label_model(votes), votes)
    m = votes.shape[1]
    p_values = test.p_values.numpy()[np.triu_indices(m, 1)]
    return {
        "refuted": bool(test.refuted),
        "least_p": float(p_values.min()),
        "n_tests": len(p_values),
    }


def _row(name: str, right: np.ndarray, majority: np.ndarray) -> dict[str, Any]:
    better, worse = int((right > majority).sum()), int((right < majority).sum())
    low, high = metrics.difference_item_interval(right, majority, np.arange(len(right)))
    return {
        "name": name,
        "accuracy": float((right == 1).mean()),
        "ties": int(((right > 0) & (right < 1)).sum()),
        "accuracy_shared": float(right.mean()),
        "difference": float((right - majority).mean()),
        "low": low,
        "high": high,
        "better": better,
        "worse": worse,
        "p": None if name == MAJORITY else _sign_test(better, worse),
    }


def _sign_test(better: int, worse: int) -> float:
    """Return the two-sided p of as many better as worse pairs (McNemar's exact test)."""
    return float(binomtest(better, better + worse).pvalue) if better + worse else 1.0


def table(results: Mapping[str, Any]) -> str:
    """Return the selections as a Markdown table."""
    lines = [
        f"| selection | accuracy, ties are wrong | ties | accuracy, ties count half | − {MAJORITY} "
        f"| {level_text()} interval | pairs better / worse | p, Holm | estimated accuracy |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in results["rows"]:
        compared = row["name"] != MAJORITY
        cells = [
            row["name"],
            f"{row['accuracy']:.3f}", str(row["ties"]), f"{row['accuracy_shared']:.3f}",
            f"{row['difference']:+.3f}" if compared else "",
            f"{row['low']:+.3f} – {row['high']:+.3f}" if compared else "",
            f"{row['better']} / {row['worse']}" if compared else "",
            f"{row['p_holm']:.3f}" if compared else "",
            f"{row['estimated']:.3f}" if "estimated" in row else "",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def blocks() -> dict[str, Callable[[Any], str]]:
    """Return marker -> what makes its text in docs/verifiers.md."""
    return {NAME: lambda _: _block()}


def _block() -> str:
    path = FOLDER / f"{NAME}.json"
    if not path.exists():
        return "No rows have been recorded yet: `python -m bench verifiers --record`.\n"
    results = json.loads(path.read_text())
    test = results["independence"]
    made = (
        f"{results['n_pairs']} pairs. Independence of the votes on pairs given a latent class is "
        f"{'refuted' if test['refuted'] else 'not refuted'}: the least of {test['n_tests']} p "
        f"values is {test['least_p']:.3f} before Holm's correction. "
        f"Commit {results['environment']['git_sha']}."
    )
    return f"{table(results)}\n{made}\n"


def main(args: list[str]) -> int:
    """Measure and print; exit code 2 for bad input."""
    p = argparse.ArgumentParser(
        prog="python -m bench verifiers", description=__doc__.splitlines()[0]
    )
    p.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    p.add_argument(
        "--record", action="store_true", help="replace the committed results (clean tree)"
    )
    options = p.parse_args(args)
    facts = environment()
    if options.record and facts["dirty"]:
        print("bench verifiers: --record needs a clean tree; commit first", file=sys.stderr)
        return 2
    try:
        results = measure(read(options.data / NAME / "reward_scores.jsonl"))
    except W2SError as e:
        print(f"bench verifiers: {e}", file=sys.stderr)
        return 2
    print(table(results))
    if options.record:
        FOLDER.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**results, "environment": facts}, indent=1)
        (FOLDER / f"{NAME}.json").write_text(text + "\n")
    return 0
