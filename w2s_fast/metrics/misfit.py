r"""Misfit of a student to its supervisor: how far apart their predictions are, without true labels.

With student s and weak model w, class probabilities of N items,

    squared          mean_i sum_c (s_ic - w_ic)^2
    kl_student_weak  mean_i KL(s_i || w_i)
    kl_weak_student  mean_i KL(w_i || s_i)
    disagreement     share of items whose top classes differ

The first two are also lower bounds of the gain, E(w) - E(s) for an error E against true labels:

    Brier score   E(w) - E(s) >= squared           (Charikar et al. 2024, arXiv 2405.15116, Thm. 1)
    NLL           E(w) - E(s) >= kl_student_weak   (Mulgund & Pabbaraju 2025, arXiv 2502.11107)

if the student is the model of a convex class that is nearest to the weak model in that distance, on
all data, and the class contains the truth. Trained networks are at best near that: read the bounds
as what to expect of a student that generalizes, not as a guarantee.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from w2s_fast.errors import W2SError
from w2s_fast.metrics._probabilities import checked_probs, log_probs


@dataclass(frozen=True)
class Misfit:
    """Distances between the predictions of a student and its weak model, see the module.

    Attributes:
        squared: Squared distance, in [0, 2]; the bound of the gain in Brier score.
        kl_student_weak: KL(student || weak), nats; the bound of the gain in NLL.
        kl_weak_student: KL(weak || student), nats.
        disagreement: Share of items with different top classes.
    """

    squared: float
    kl_student_weak: float
    kl_weak_student: float
    disagreement: float


def misfit(student: np.ndarray, weak: np.ndarray) -> Misfit:
    """Return the misfit of ``student`` (N, C) to ``weak`` (N, C), class probabilities.

    A probability of 0 counts as the smallest number of its dtype, so that KL is finite.

    Raises:
        W2SError: The arrays are no probabilities, or differ in shape.
    """
    s, w = checked_probs(student, "student"), checked_probs(weak, "weak")
    if s.shape != w.shape:
        raise W2SError(
            f"student has shape {s.shape}, weak {w.shape}; expected predictions of the same items "
            "and classes"
        )
    log_ratio = log_probs(student, "student") - log_probs(weak, "weak")
    return Misfit(
        squared=float(((s - w) ** 2).sum(1).mean()),
        kl_student_weak=float((s * log_ratio).sum(1).mean()),
        kl_weak_student=float(-(w * log_ratio).sum(1).mean()),
        disagreement=float((s.argmax(1) != w.argmax(1)).mean()),
    )
