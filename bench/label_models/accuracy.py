"""Score label models on the training rows of WRENCH data sets; true labels serve scores only.

Models see the votes of the training split. Rows without votes are counted apart, and the constant
answer stands beside the models.
"""

from __future__ import annotations

import ast
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from w2s_fast import metrics
from w2s_fast.errors import DataWarning
from w2s_fast.label_models import (
    DawidSkene,
    MeTaL,
    TreeDawidSkene,
    Triplets,
    WeightedVote,
    covered_rows,
    majority_vote,
)

DATA_SETS = ("youtube", "sms")
_KEYWORDS = {"class_balance": "majority", "anchor": 100.0}
MODELS: dict[str, Callable[[Tensor], Tensor]] = {
    "majority_vote(votes, 2)": lambda v: majority_vote(v, 2),
    "WeightedVote(2)": lambda v: WeightedVote(2).fit(v).posterior(v),
    "DawidSkene(2)": lambda v: DawidSkene(2).fit(v).posterior(v),
    'DawidSkene(2, class_balance="majority", anchor=100.0)': (
        lambda v: DawidSkene(2, **_KEYWORDS).fit(v).posterior(v)  # type: ignore[arg-type]
    ),
    'Triplets(2, class_balance="majority")': (
        lambda v: Triplets(2, class_balance="majority").fit(v).posterior(v)
    ),
    'MeTaL(2, class_balance="majority")': (
        lambda v: MeTaL(2, class_balance="majority").fit(v).posterior(v)
    ),
    'TreeDawidSkene(2, class_balance="majority")': (
        lambda v: TreeDawidSkene(2, class_balance="majority").fit(v).posterior(v)
    ),
}


def measure(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield a row of scores for each data set and model."""
    for name in DATA_SETS:
        votes, labels = read_wrench(folder / name / "train.json")
        covered = covered_rows(votes).numpy()
        constant = np.eye(2)[np.full(len(labels), np.bincount(labels).argmax())]
        yield {"data": name, "model": "constant", **_scores(constant, labels, covered)}
        for text, fitted in MODELS.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DataWarning)  # these sources are as published
                probs = fitted(votes).numpy()
            yield {"data": name, "model": text, **_scores(probs, labels, covered)}


def read_wrench(file: Path) -> tuple[Tensor, np.ndarray]:
    """Return votes (n, m) and true labels (n,) of a WRENCH file."""
    items = json.loads(file.read_text()).values()
    votes = [_literal(item["weak_labels"]) for item in items]
    return torch.tensor(votes), np.array([int(item["label"]) for item in items])


def _literal(value: Any) -> Any:
    """Return a value; some copies of the data hold it as text."""
    return ast.literal_eval(value) if isinstance(value, str) else value


def _scores(probs: np.ndarray, labels: np.ndarray, covered: np.ndarray) -> dict[str, Any]:
    """Return scores; ties go to class 0. ``covered_``: of rows with votes."""
    numbers: dict[str, Any] = {"n": len(labels), "n_covered": int(covered.sum())}
    for prefix, rows in (("", np.ones_like(covered)), ("covered_", covered)):
        for score in (metrics.accuracy, metrics.balanced_accuracy, metrics.f1):
            value = score(probs[rows], labels[rows])
            numbers[prefix + score.__name__] = None if value is None else round(value, 4)
    return numbers
