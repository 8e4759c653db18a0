r"""A probe of a supervisor's errors: can they be predicted from what a student sees?

Errors that a simple model of the inputs predicts are systematic: a student can learn them as it
learns the task. Errors that it cannot predict look random to it, and average out. The probe is the
cross-fitted logistic regression of ``fit_trust`` on the inputs and the class that the supervisor
chose. Its confidence is left out: where it is unsure errors are likelier, learnable or not.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from w2s_fast import metrics
from w2s_fast.trust.model import fit_trust

N_WORDS = 200  # features of ``word_features``
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class ErrorProbe:
    """Scores of a probe of errors, on rows that it was not fitted to; intervals are (low, high).

    Attributes:
        n: Rows.
        accuracy: Share of rows that the probe rightly calls right or wrong.
        base_rate: Share that a constant reaches, right on every row or wrong on every row.
        gain, gain_interval: ``accuracy - base_rate``; its interval resamples groups of rows.
        auroc, auroc_interval: P(a wrong row looks more like an error than a right one); 0.5 if
            errors cannot be told.
    """

    n: int
    accuracy: float
    base_rate: float
    gain: float
    gain_interval: tuple[float, float]
    auroc: float
    auroc_interval: tuple[float, float]

    @property
    def learnable(self) -> bool:
        """Whether the interval of the AUROC is above 0.5."""
        return self.auroc_interval[0] > 0.5

    def as_dict(self) -> dict[str, Any]:
        """Return the scores as plain values for JSON."""
        return {**asdict(self), "learnable": self.learnable}


def probe_errors(
    features: Any, probs: Any, labels: Any, *, groups: Any = None, seed: int = 0
) -> ErrorProbe:
    """Fit and score a probe of a supervisor's errors, by cross-fitting.

    Args:
        features: (n, D) of the inputs: hidden states of a model that has not learned these labels,
            or ``word_features``.
        probs: (n, C) class probabilities of the supervisor, which must not be trained on these
            rows.
        labels: (n,) true classes.
        groups: (n,) names of groups of related rows, kept in one fold; None: every row is a group.
        seed: Seed of the folds and of the bootstrap.

    Raises:
        W2SError: As ``fit_trust``; 10 right and 10 wrong rows are needed.
    """
    p = metrics.checked_probs(probs)
    chosen = p.argmax(1)
    right = chosen == metrics.checked_labels(labels, *p.shape)
    model = fit_trust(features, np.eye(p.shape[1])[chosen], right, groups=groups, seed=seed)
    names = np.arange(len(right)) if groups is None else np.asarray(groups)
    group = np.unique(names, return_inverse=True)[1]
    hit = (model.cross_fitted >= 0.5) == right
    constant = right == (right.mean() >= 0.5)
    accuracy, base_rate = float(hit.mean()), float(constant.mean())
    return ErrorProbe(
        n=len(right),
        accuracy=accuracy,
        base_rate=base_rate,
        gain=accuracy - base_rate,
        gain_interval=metrics.difference_item_interval(hit, constant, group),
        auroc=model.scores.auroc,
        auroc_interval=model.scores.auroc_interval,
    )


def word_features(texts: Sequence[str], n_words: int = N_WORDS) -> np.ndarray:
    """Return which of the most frequent words each text has, (N, D) float64 of 0 and 1.

    A word is a run of letters and digits, in lower case. Words that every text has are left out.

    Args:
        texts: N texts.
        n_words: Most words, D at most; ties in frequency are broken by the alphabet.
    """
    words = [frozenset(_WORD.findall(text.lower())) for text in texts]
    counts = Counter(word for own in words for word in own)
    varying = [(-n, word) for word, n in counts.items() if n < len(texts)]
    column = {word: i for i, (_, word) in enumerate(sorted(varying)[:n_words])}
    features = np.zeros((len(texts), max(1, len(column))))
    for row, own in enumerate(words):
        features[row, [column[word] for word in own if word in column]] = 1.0
    return features
