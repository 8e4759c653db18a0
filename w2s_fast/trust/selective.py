r"""Labels of the strong model where it knows the answer, weak labels elsewhere.

    q_i = own_i if P(IK)_i >= threshold, else weak_i

P(IK), the probability that the strong model's own answer is right, is ``fit_trust`` with the own
probabilities in place of the weak ones.

Source: Lang, Huang & Li 2025, "Selective weak-to-strong generalization" (arXiv 2511.14166); P(IK)
is of Kadavath et al. 2022 (arXiv 2207.05221).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from w2s_fast.errors import W2SError
from w2s_fast.trust._checks import check_number, check_probs
from w2s_fast.trust.weights import check_trust


def selective_labels(
    own: Any, weak: Any, knows: Any, *, threshold: float = 0.7
) -> tuple[np.ndarray, np.ndarray]:
    """Choose between the strong model's own labels and the weak labels.

    Args:
        own: (N, C) class probabilities of the strong model.
        weak: (N, C) weak labels.
        knows: (N,) P(IK).
        threshold: Smallest P(IK) of a row that gets its own label.

    Returns:
        Labels (N, C) float32, and (N,) bool, True where they are the strong model's own.

    Raises:
        W2SError: Shapes or values do not fit.
    """
    labels = check_probs(weak, name="weak")
    answers = check_probs(own, len(labels), name="own")
    known = check_trust(knows, "knows")
    if answers.shape != labels.shape or known.shape != (len(labels),):
        raise W2SError(
            f"own has shape {answers.shape} and knows {known.shape}; expected {labels.shape} and "
            f"({len(labels)},), those of the weak labels"
        )
    chosen = known >= check_number("threshold", threshold, 0, 1)
    return np.where(chosen[:, None], answers, labels).astype(np.float32), chosen
