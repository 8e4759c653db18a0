"""Compare two runs: settings, software and machine, results, and the identity of their stages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from w2s_fast.comparison.run_differences import run_differences
from w2s_fast.comparison.run_scores import OutcomesBySeed, Results, model_scores, model_title
from w2s_fast.report.outcomes import OUTCOMES

_FOLDERS = ("output_dir", "cache_dir")  # two runs have folders of their own
_ENVIRONMENT = ("versions", "machine", "git", "backends")


def diff_runs(
    a: Results, b: Results, outcomes: tuple[OutcomesBySeed | None, OutcomesBySeed | None]
) -> dict[str, Any]:
    """Return what differs between two runs.

    Args:
        a, b: The contents of their results.json.
        outcomes: What ``load_outcomes`` returns for both. Where one is None, differences are those
            of accuracies, whose intervals lack what test items of several seeds add.

    Returns:
        ``settings`` and ``environment``: pairs [a, b] by dotted name, of what differs. ``models``:
        accuracy and PGR of every model and seed in both runs, and ``equal``. ``differences``: by
        model, accuracy of b - a over the seeds whose test items are the same, with interval, p and
        ``p_holm``, or the ``reason`` why they cannot be compared. ``notes``: what their intervals
        lack. ``stages``: names of the stages that have other inputs or settings (``changed``),
        equal ones but other contents (``contents``), or are in one run (``only_a``, ``only_b``).
        ``equal``: whether settings, results and stages are.
    """
    settings = _changes(_settings(a), _settings(b))
    models = list(_models(a, b))
    stages = _stages(a, b)
    return {
        "settings": settings,
        "environment": _changes(_environment(a), _environment(b)),
        "models": models,
        "differences": run_differences(a, b, outcomes),
        "notes": _notes(outcomes),
        "stages": stages,
        "equal": not settings and not any(stages.values()) and all(m["equal"] for m in models),
    }


def _notes(outcomes: tuple[OutcomesBySeed | None, OutcomesBySeed | None]) -> list[str]:
    lacking = [name for name, own in zip("AB", outcomes, strict=True) if own is None]
    return [
        f"{name} has no {OUTCOMES}: intervals lack what test items of several seeds add"
        for name in lacking
    ]


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


def _models(a: Results, b: Results) -> Iterator[dict[str, Any]]:
    first, second = model_scores(a), model_scores(b)
    for name, seed in dict.fromkeys([*first, *second]):
        scores = [run.get((name, seed)) for run in (first, second)]
        own, other = (None if score is None else score._asdict() for score in scores)
        yield {"name": model_title(name), "seed": seed, "a": own, "b": other, "equal": own == other}


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
