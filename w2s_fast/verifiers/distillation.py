"""Rows that distil combined verifiers into one cross-encoder of problem and response.

The soft label of a row is (P(wrong), P(right)). Cross-entropy with it is binary cross-entropy of
the difference of the two logits, so the losses for soft labels train the student. The columns are
those that other parts of the package read: the task ``local`` (text, text_pair, label, group) draws
splits that no problem crosses, and ``read_labels`` (id, probs, weight) returns the soft labels of a
split.

Source: arXiv 2506.18203, section on distillation, which regresses the score with a squared error.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from w2s_fast.errors import W2SError
from w2s_fast.tasks._split import make_examples
from w2s_fast.verifiers.rows import check_problems, check_row_scores, sequence, shown


def distillation_rows(
    problems: Sequence[Hashable],
    prompts: Sequence[str],
    responses: Sequence[str],
    probs: Any,
    weight: Any = None,
) -> list[dict[str, Any]]:
    """Build a training row for every response: texts, soft label, weight and group.

    Args:
        problems: (N,) names of problems; rows of one problem form a group.
        prompts: N texts of problems.
        responses: N texts.
        probs: (N,) probabilities that a response is right.
        weight: (N,) row weights of at least 0; None is 1.

    Returns:
        N rows with the columns ``id`` (as the task ``local`` names the row), ``text``,
        ``text_pair``, ``label`` (the more probable class: 1 for right, 0 for wrong), ``probs``
        (wrong, right), ``weight`` and ``group``.

    Raises:
        W2SError: Lengths differ, a text is empty, or a probability or a weight is wrong.
    """
    p = check_row_scores(probs)
    known = check_problems(problems, len(p))
    questions, answers = (
        _texts(name, texts, len(p))
        for name, texts in (("prompts", prompts), ("responses", responses))
    )
    _check_range("probs", p, 1.0, "a probability from 0 to 1: apply the logistic function")
    w = np.ones(len(p)) if weight is None else check_row_scores(weight)
    if len(w) != len(p):
        raise W2SError(f"weight has {len(w)} numbers for {len(p)} rows; expected one a row")
    _check_range("weight", w, np.inf, "a number of at least 0")
    labels = (p > 0.5).astype(np.int64)
    ids = make_examples(questions, labels.tolist(), answers).ids
    columns = zip(ids, questions, answers, labels.tolist(), p.tolist(), w.tolist(), strict=True)
    return [
        {
            "id": name, "text": prompt, "text_pair": response, "label": label,
            "probs": [1 - q, q], "weight": row_weight, "group": str(known.names[problem]),
        }
        for (name, prompt, response, label, q, row_weight), problem in zip(
            columns, known.index.tolist(), strict=True
        )
    ]  # fmt: skip


def _texts(name: str, values: Sequence[str], n_rows: int) -> list[str]:
    texts = sequence(name, values)
    if len(texts) != n_rows:
        raise W2SError(f"{name} has {len(texts)} texts for {n_rows} rows; expected one for each")
    for row, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise W2SError(f"{name}[{row}] is {shown(text)}; expected a text that is not blank")
    return texts


def _check_range(name: str, values: np.ndarray, high: float, expected: str) -> None:
    outside = (values < 0) | (values > high)
    if outside.any():
        row = int(np.flatnonzero(outside)[0])
        raise W2SError(f"{name}[{row}] is {values[row]:g}; expected {expected}")
