"""What was measured of each method: the tables of docs/method_cards.md, from committed results."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from bench.cases import w2s
from bench.evidence import table
from bench.reasoning import word_problems
from bench.report.measured_rows import markdown
from w2s_fast import metrics

PAGE = "docs/method_cards.md"
FAMILIES = {  # marker -> methods with a card in that section
    "chains": ("naive", "bootstrap", "strong_to_strong"),
    "several": (
        "ensemble", "teacher_weights", "combine", "born_again", "ensem_w2s", "bayesian",
    ),
    "debate": ("debate", "consultancy", "market_making", "critique"),
    "selection": (
        "confident", "resample", "agree", "agree_prior", "self_consistency", "knn_filter",
        "small_loss", "trajectory", "conformal", "confidence_weighted",
    ),
    "trust": ("trust", "selective"),
    "training": (
        "probe", "early_stop", "ground_truth_early_stop", "generative_finetuning", "easy_to_hard",
        "anchor",
    ),
    "noise": (
        "nested_dropout", "co_teaching", "mean_teacher", "fixmatch", "self_training", "mixup",
    ),
    "weights": ("soup", "greedy_soup", "interpolate"),
    "heads": ("low_rank", "matryoshka", "prototype_head", "projection_head"),
    "states": (
        "prototype", "probe_relabel", "probe_filter", "elicit", "ccs", "consistent", "posterior",
        "debias",
    ),
    "texts": ("agreement_sft", "contrast", "delta", "wspo", "tree_pairs", "cong"),
    "deception": ("explicit_conflict", "implicit_conflict"),
}  # fmt: skip
_NONE = "No method of this section is in the committed experiments.\n"
_LOSS = re.compile(r"\+(\w+)[^|]*$")  # of a name such as "confident|probe+xent"
# Column -> name of a student without its loss -> an entry of ``differences``.
Columns = dict[str, dict[str, Mapping[str, Any]]]


def blocks() -> dict[str, Callable[[Any], str]]:
    """Return marker -> what makes its text in docs/method_cards.md."""
    return {
        family: lambda _, methods=methods: measured(columns(), methods)
        for family, methods in FAMILIES.items()
    }


@functools.cache
def columns() -> Columns:
    """Return the differences to plain cross-entropy of each committed experiment."""
    found: Columns = {}
    for group in table.committed():
        if group.protocol.startswith("probe"):
            title = f"{table.set_title(group.data)}, {table.supervisor_title(group.supervisor)}"
            found.setdefault(title, {}).update(
                _by_method(
                    {s.name: s.difference for s in group.students if s.difference is not None}
                )
            )
    tasks = {"embedded task": (w2s.FOLDER, w2s.EMBEDDED)}
    tasks["word problems"] = (word_problems.FOLDER, tuple(word_problems.METHODS))
    for title, (folder, names) in tasks.items():
        found[title] = {}
        for path in (folder / f"{name}.json" for name in names):
            differences = json.loads(path.read_text())["differences"] if path.exists() else []
            found[title] |= _by_method({d["name"]: d for d in differences})
    return found


def _by_method(differences: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return the students of plain cross-entropy: ``confident|probe+xent`` becomes ``confident``.

    The step of the probe protocol that all of its students share is left out.
    """
    found = {}
    for name, difference in differences.items():
        loss = _LOSS.search(name)
        if loss is not None and loss[1] == "xent":
            method = name[: loss.start()].removesuffix("|probe").removeprefix("probe|")
            found[method] = difference
    return found


def measured(found: Columns, methods: tuple[str, ...]) -> str:
    """Return a table of the changes of accuracy, a line for each setting of the methods."""
    names = {name: None for column in found.values() for name in column}
    specs = {name: None for method in methods for name in names if method in methods_of(name)}
    if not specs:
        return _NONE
    used = {title: own for title, own in found.items() if any(spec in own for spec in specs)}
    lines = [
        ["`" + spec.replace("|", "\\|") + "`", *(_cell(own.get(spec)) for own in used.values())]
        for spec in specs
    ]
    return markdown(["method", *used], lines, 1)


def methods_of(name: str) -> list[str]:
    """Return the methods of a student's name, one for each step, without settings."""
    return [step.partition(":")[0] for step in name.split("|")]


def _cell(difference: Mapping[str, Any] | None) -> str:
    if difference is None:
        return "–"
    p = difference["p_holm"]
    star = "\\*" if p is not None and p < 1 - metrics.LEVEL else ""
    return f"{difference['difference']:+.3f}{star}"
