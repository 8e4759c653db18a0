r"""An alarm when a student starts to fit errors of its weak labels, without true labels.

a_k is the share of training texts on which the student predicts the weak label at evaluation k, and
A the accuracy of the weak labels, estimated on texts whose true labels are known. A student that is
always right agrees with a share A. So one that has reached A and agrees with more and more labels
is likely to learn wrong ones:

    k0   the first evaluation with a_k >= A - 2 se(A)
    k    the first after k0 with a_k - a_k0 > max(MIN_RISE, Z se), and at the next evaluation too

se is that of the mean change over the same texts. Labels without errors (A = 1) cannot raise it.
The rule was chosen by experiments; docs/diagnostics.md says how often it is right.
"""

from __future__ import annotations

import math

import numpy as np

from w2s_fast.errors import W2SError

Z = 2.5  # standard errors of the rise
MIN_RISE = 0.01


def fit_alarm(agrees: np.ndarray, weak_accuracy: float, n_labelled: int) -> int | None:
    """Return the evaluation at which a student starts to fit errors of its weak labels, or None.

    Args:
        agrees: (K, N) bool, at each of K evaluations during a training, whether the student
            predicts the weak label of each of N training texts.
        weak_accuracy: A, between 0 and 1.
        n_labelled: Number of texts with true labels that A was estimated from.

    Raises:
        W2SError: An argument does not fit.
    """
    values = np.asarray(agrees)
    if values.ndim != 2 or not values.size or values.dtype != bool:
        raise W2SError(
            f"agrees has shape {values.shape} and dtype {values.dtype}; expected bool "
            "(evaluations, texts)"
        )
    if not 0 <= weak_accuracy <= 1 or n_labelled < 1:
        raise W2SError(
            f"weak_accuracy is {weak_accuracy} of {n_labelled} texts; expected a share in [0, 1] "
            "of at least one text"
        )
    se = math.sqrt(weak_accuracy * (1 - weak_accuracy) / n_labelled)
    reached = values.mean(1) >= weak_accuracy - 2 * se
    if not reached.any():
        return None
    change = values.astype(np.int8) - values[reached.argmax()].astype(np.int8)
    rise = change.mean(1)
    limit = np.maximum(MIN_RISE, Z * change.std(1) / math.sqrt(values.shape[1]))
    fits = (rise > limit) & (np.arange(len(values)) > reached.argmax())
    twice = fits[:-1] & fits[1:]
    return int(twice.argmax()) if twice.any() else None
