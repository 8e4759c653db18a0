"""Compare two runs: settings, software and machine, results, and the identity of their stages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from w2s_fast import metrics
from w2s_fast.comparison.file_results import is_of_files
from w2s_fast.errors import W2SError
from w2s_fast.report import RESULTS, load_results
from w2s_fast.report.model_rows import ceiling_title

Results = Mapping[str, Any]
_FOLDERS = ("output_dir", "cache_dir")  # two runs have folders of their own
_ENVIRONMENT = ("versions", "machine", "git", "backends")


def load_run(path: Path, name: str) -> dict[str, Any]:
    """Read the results of a run, given its folder or its results.json.

    Raises:
        W2SError: There are none, or they are damaged.
    """
    if not path.exists():
        raise W2SError(f"{name}: {path} does not exist; expected the folder of a run")
    return load_results(path.parent if path.name == RESULTS else path)


def diff_runs(a: Results, b: Results) -> dict[str, Any]:
    """Return what differs between two runs.

    Args:
        a, b: The contents of their results.json.

    Returns:
        ``settings`` and ``environment``: pairs [a, b] by dotted name, of what differs. ``models``:
        accuracy and PGR of every model and seed in both runs, and ``equal``. ``differences``: by
        model, accuracy of b - a over the seeds whose test items are the same, with interval, p and
        ``p_holm``, or the ``reason`` why they cannot be compared. ``stages``: names of the stages
        that have other inputs or settings (``changed``), equal ones but other contents
        (``contents``), or are in one run (``only_a``, ``only_b``). ``equal``: whether settings,
        results and stages are.
    """
    settings = _changes(_settings(a), _settings(b))
    models = list(_models(a, b))
    stages = _stages(a, b)
    return {
        "settings": settings,
        "environment": _changes(_environment(a), _environment(b)),
        "models": models,
        "differences": _differences(a, b),
        "stages": stages,
        "equal": not settings and not any(stages.values()) and all(m["equal"] for m in models),
    }


def _settings(results: Results) -> dict[str, Any]:
    flat = dict(_flat(results["provenance"]["config"]))
    return {name: value for name, value in flat.items() if name not in _FOLDERS}


def _environment(results: Results) -> dict[str, Any]:
    facts = results["provenance"]
    return dict(_flat({name: facts.get(name) or {} for name in _ENVIRONMENT}))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested mappings by dotted name."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _changes(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return [value in a, value in b] where they differ; a missing value is None."""
    names = dict.fromkeys([*a, *b])
    return {n: [a.get(n), b.get(n)] for n in names if a.get(n) != b.get(n)}


def _scores(results: Results) -> dict[tuple[str, int], dict[str, float | None]]:
    """Return accuracy and PGR of every model, by its title and seed."""
    scores: dict[tuple[str, int], dict[str, float | None]] = {}
    for row in results["runs"]:
        seed = row["seed"]
        scores["weak supervisor", seed] = {"accuracy": row["weak"], "pgr": None}
        scores[f"student · {row['name']}", seed] = {"accuracy": row["student"], "pgr": row["pgr"]}
        title = ceiling_title(row["ceiling_name"])
        scores[title, seed] = {"accuracy": row["ceiling"], "pgr": None}
    return scores


def _models(a: Results, b: Results) -> Iterator[dict[str, Any]]:
    first, second = _scores(a), _scores(b)
    for name, seed in dict.fromkeys([*first, *second]):
        own, other = first.get((name, seed)), second.get((name, seed))
        yield {"name": name, "seed": seed, "a": own, "b": other, "equal": own == other}


def _differences(a: Results, b: Results) -> list[dict[str, Any]]:
    """Return a row for each model in both runs."""
    first, second = _scores(a), _scores(b)
    titles = dict.fromkeys(name for name, _ in first if name in {n for n, _ in second})
    rows = []
    for title in titles:
        common = [s for n, s in first if n == title and (title, s) in second]
        seeds, reason = _comparable(a, b, common)
        row: dict[str, Any] = {"name": title, "seeds": seeds, "reason": reason}
        if seeds:
            row |= _paired(a, seeds, [(first[title, s], second[title, s]) for s in seeds])
        rows.append(row)
    corrected = metrics.holm([row.get("p") for row in rows])
    return [{**row, "p_holm": p} for row, p in zip(rows, corrected, strict=True)]


def _comparable(a: Results, b: Results, common: Sequence[int]) -> tuple[list[int], str]:
    """Return the seeds with the same test items in both runs, and why the others are left out."""
    items = [results["provenance"].get("test_items", {}) for results in (a, b)]
    if not common:
        return [], "the runs have no seed in common"
    if is_of_files(a) != is_of_files(b):
        return [], "test items are known by id in one run and by content in the other"
    unknown = [s for s in common if not all(str(s) in own for own in items)]
    if unknown:
        return [], "results of an older version do not say which test items they have"
    same = [s for s in common if items[0][str(s)] == items[1][str(s)]]
    if not same:
        return [], "the test items differ at every seed"
    left = [str(s) for s in common if s not in same]
    return same, f"without seed {', '.join(left)}, whose test items differ" if left else ""


def _paired(
    a: Results, seeds: Sequence[int], pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]
) -> dict[str, Any]:
    """Return the mean of b - a, with the interval over bases or seeds."""
    accuracy = {s: [y["accuracy"], x["accuracy"]] for s, (x, y) in zip(seeds, pairs, strict=True)}
    base_of = {row["seed"]: row.get("base", "") for row in a["runs"]}
    bases: dict[str, list[list[float]]] = {}
    for seed in seeds:
        bases.setdefault(base_of[seed], []).append(accuracy[seed])
    if len({len(own) for own in bases.values()}) > 1:  # seeds that are left out, of some bases
        mean = np.mean([x - y for own in bases.values() for x, y in own])
        return {"difference": float(mean), "low": None, "high": None, "p": None}
    found = metrics.paired_difference(metrics.Runs(np.array(list(bases.values()))))
    return {"difference": found.mean, "low": found.low, "high": found.high, "p": found.p}


def _stages(a: Results, b: Results) -> dict[str, list[str]]:
    first, second = a["provenance"]["stages"], b["provenance"]["stages"]
    both = [name for name in first if name in second]
    same = [name for name in both if first[name]["folder"] == second[name]["folder"]]
    return {
        "changed": [name for name in both if name not in same],
        "contents": [n for n in same if first[n]["digest"] != second[n]["digest"]],
        "only_a": [name for name in first if name not in second],
        "only_b": [name for name in second if name not in first],
    }
