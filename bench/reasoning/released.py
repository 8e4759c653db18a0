"""Counts and accuracies of the files that Yang, Ma and Liu (2024) released for GSM8K, Llama2-7b.

The data folder holds gair_gsm8k/, the files of GAIR-NLP/weak-to-strong-reasoning under
data/llama_factory/gsm8k by the names of ``FILES``, and gsm8k/, train.jsonl and test.jsonl of
openai/grade-school-math. They are not part of the repository.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from w2s_fast.errors import W2SError
from w2s_fast.reasoning import (
    Verdict,
    check_pairs,
    compare_answers,
    marked_answer,
    select_agreeing,
)

FILES = (
    "full_weak",
    *(f"iter{i}_{kind}" for i in (1, 2) for kind in ("weak", "icl", "hybrid")),
    "iter2_hybrid_paired",
)
# The files hold what was selected, so no item may have different answers.
EXPECTED = {
    "weak solutions": 7000,
    "iteration 1: items": 2683,
    "iteration 1: weak texts that are in the full set": 2683,
    "iteration 1: different answers": 0,
    "iteration 1: answers that differ as strings": 13,
    "iteration 1: hybrid is the multiset union": 1,
    "iteration 2: items": 4022,
    "iteration 2: different answers": 0,
    "iteration 2: hybrid is the multiset union": 1,
    "pairs": 2563,
    "pairs: the weak text is chosen": 866,
    "pairs: the weak text is rejected": 1697,
}
_QUESTION = ("Question: ", "\nAnswer:")
Item = dict[str, Any]


def measure(folder: Path) -> Iterator[Item]:
    """Yield a row for every count and accuracy.

    Raises:
        W2SError: A file is missing or does not have the fields of the release.
    """
    files = {name: _read(folder / "gair_gsm8k" / f"{name}.json") for name in FILES}
    full = {row["id"]: row for row in files["full_weak"]}
    yield _count("weak solutions", len(full))
    for iteration in (1, 2):
        yield from _stage_one(iteration, files, full)
    yield from _pairs(files["iter2_hybrid_paired"], full)
    yield from _accuracies(files, _gold(folder / "gsm8k"))


def _stage_one(
    iteration: int, files: Mapping[str, list[Item]], full: Mapping[int, Item]
) -> Iterator[Item]:
    weak, icl, hybrid = (files[f"iter{iteration}_{k}"] for k in ("weak", "icl", "hybrid"))
    name = f"iteration {iteration}"
    in_context = {row["id"]: row["output"] for row in icl}
    columns = (
        [row["id"] for row in weak],
        [row["content"] for row in weak],
        [row["output"] for row in weak],
        [in_context[row["id"]] for row in weak],
    )
    reports = {rule: select_agreeing(*columns, rule=rule).report for rule in ("math", "string")}
    yield _count(f"{name}: items", len(weak))
    if iteration == 1:
        same = [full[row["id"]]["output"] == row["output"] for row in weak]
        yield _count(f"{name}: weak texts that are in the full set", sum(same))
    yield _count(f"{name}: equal answers", len(reports["math"].kept))
    yield _listed(f"{name}: no readable answer", reports["math"].unreadable)
    yield _listed(f"{name}: different answers", reports["math"].different)
    yield {
        **_listed(f"{name}: answers that differ as strings", reports["string"].different),
        "answers": [_answers(i, columns) for i in reports["string"].different],
    }
    union = Counter(map(_key, weak)) + Counter(map(_key, icl))
    yield _count(f"{name}: hybrid is the multiset union", int(union == Counter(map(_key, hybrid))))


def _pairs(pairs: list[Item], full: Mapping[int, Item]) -> Iterator[Item]:
    ids = [row["id"] for row in pairs]
    chosen, rejected = ([row["output"][side] for row in pairs] for side in (0, 1))
    faults = check_pairs(ids, chosen, rejected)
    yield _count("pairs", len(pairs))
    for side, texts in (("chosen", chosen), ("rejected", rejected)):
        n = sum(full[i]["output"] == text for i, text in zip(ids, texts, strict=True))
        yield _count(f"pairs: the weak text is {side}", n)
    for fault in ("equal_texts", "equal_answers", "empty", "unreadable_chosen"):
        yield _listed(f"pairs: {fault.replace('_', ' ')}", getattr(faults, fault))
    yield _listed("pairs: unreadable rejected", faults.unreadable_rejected)


def _accuracies(files: Mapping[str, list[Item]], gold: Mapping[str, str]) -> Iterator[Item]:
    for name in FILES[:-1]:
        yield _accuracy(name, [(r["content"], r["output"]) for r in files[name]], gold)
    pairs = files[FILES[-1]]
    for side, label in enumerate(("chosen", "rejected")):
        texts = [(row["instruction"], row["output"][side]) for row in pairs]
        yield _accuracy(f"{FILES[-1]}, {label}", texts, gold)


def _accuracy(name: str, texts: Sequence[tuple[str, str]], gold: Mapping[str, str]) -> Item:
    """Return the accuracy of the texts whose question has a true answer, and Wilson's interval.

    The two rows of an item in a hybrid set are not independent: its interval is that of the items.
    """
    known = [(_question(p), text) for p, text in texts if _question(p) in gold]
    verdicts = [compare_answers(marked_answer(text), gold[q]) for q, text in known]
    n_right = verdicts.count(Verdict.EQUAL)
    rows_per_item = 2 if "hybrid" in name and "paired" not in name else 1
    n = len(known) // rows_per_item
    interval = binomtest(round(n_right / rows_per_item), n).proportion_ci(method="wilson")
    return {
        "kind": "accuracy",
        "name": name,
        "n_rows": len(texts),
        "n_rows_with_gold": len(known),
        "accuracy": n_right / len(known),
        "low": float(interval.low),
        "high": float(interval.high),
        "n_unreadable": verdicts.count(Verdict.UNREADABLE),
        "n_undecided": verdicts.count(Verdict.UNDECIDED),
    }


def _read(path: Path) -> list[Item]:
    try:
        rows = json.loads(path.read_text())
        if not all(isinstance(row["id"], int) and "output" in row for row in rows):
            raise TypeError("a row without id or output")
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise W2SError(
            f"{path}: {type(e).__name__} {e}; expected a file of the release, see "
            "bench/reasoning/released.py"
        ) from e
    return rows


def _gold(folder: Path) -> dict[str, str]:
    """Return question -> true answer, of both splits of GSM8K."""
    answers = {}
    for name in ("train.jsonl", "test.jsonl"):
        try:
            rows = [json.loads(line) for line in (folder / name).read_text().splitlines()]
            answers |= {row["question"].strip(): marked_answer(row["answer"]) for row in rows}
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise W2SError(
                f"{folder / name}: {type(e).__name__} {e}; expected lines with question and answer"
            ) from e
    return answers


def _question(prompt: str) -> str:
    return prompt.removeprefix(_QUESTION[0]).removesuffix(_QUESTION[1]).strip()


def _key(row: Item) -> tuple[Any, ...]:
    return row["id"], row["content"], row["output"]


def _answers(item_id: int, columns: tuple[list[Any], ...]) -> list[Any]:
    i = columns[0].index(item_id)
    return [item_id, marked_answer(columns[2][i]), marked_answer(columns[3][i])]


def _count(name: str, n: int) -> Item:
    return {"kind": "count", "name": name, "n": n, "expected": EXPECTED.get(name)}


def _listed(name: str, ids: Sequence[Any]) -> Item:
    return {**_count(name, len(ids)), "ids": list(ids)}
