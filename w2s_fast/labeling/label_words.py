r"""Turn zero-shot probabilities of class words into votes.

    q_ic ∝ p_ic balance_c / prior_c,         vote_i = argmax_c q_ic if max_c q_ic >= threshold

A language model prefers some class words whatever the text is. ``prior`` is that preference: the
probabilities of the words for a text without content (contextual calibration), or by default their
mean over the rows (batch calibration). Without calibration one class often gets all votes.

Sources: Zhao et al. 2021 (arXiv 2102.09690), contextual calibration; Zhou et al. 2023 (arXiv
2309.17249), batch calibration.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from w2s_fast.errors import DataWarning, W2SError
from w2s_fast.label_models._options import check_number
from w2s_fast.label_models.posterior import check_distribution
from w2s_fast.label_models.votes import ABSTAIN, as_cpu_tensor, check_classes

_ROUNDING = 1e-3  # half-precision probabilities of a row sum to one within this


def label_word_votes(
    probs: Any, *, threshold: float = 0.7, class_balance: Any = None, prior: Any = None
) -> Tensor:
    """Return votes (n,) int64 of zero-shot class probabilities, ``ABSTAIN`` below a threshold.

    Args:
        probs: (n, K) probabilities of the class words; rows sum to one.
        threshold: Least calibrated probability of a vote, from 1/K to 1.
        class_balance: (K,) expected shares of the classes; None is uniform.
        prior: (K,) probabilities of the words without content; None takes the mean over the rows.

    Raises:
        W2SError: An argument is wrong, or a class word has probability 0 in every row.
    """
    p = _check_probs(probs)
    n_classes = p.shape[1]
    check_number("threshold", threshold, 1 / n_classes, 1.0)
    uniform = [1 / n_classes] * n_classes
    balance = check_distribution(uniform if class_balance is None else class_balance, n_classes)
    words = p.mean(0) if prior is None else check_distribution(prior, n_classes)
    if not bool((words > 0).all()):
        c = int((words <= 0).nonzero()[0])
        raise W2SError(
            f"the words of class {c} have probability 0 in every row; expected a positive prior: "
            "choose words that the model may predict"
        )
    calibrated = p * (balance / words)
    calibrated = calibrated / calibrated.sum(1, keepdim=True)
    top, classes = calibrated.max(1)
    votes = torch.where(top >= threshold, classes, ABSTAIN)
    if not bool((votes >= 0).any()):
        warnings.warn(
            f"no calibrated probability reaches the threshold {threshold:g}; the largest is "
            f"{float(top.max()):.3f}: lower the threshold",
            DataWarning,
            stacklevel=2,
        )
    return votes


def _check_probs(probs: Any) -> Tensor:
    p = as_cpu_tensor(probs, "probs cannot be read as numbers (n, K)").double()
    if p.ndim != 2 or 0 in p.shape:
        raise W2SError(f"probs have shape {tuple(p.shape)}; expected (rows, classes)")
    check_classes(p.shape[1])
    wrong = ~((p >= 0) & (p <= 1 + _ROUNDING))  # true for NaN
    if bool(wrong.any()):
        row, c = (int(i) for i in wrong.nonzero()[0])
        raise W2SError(
            f"probs[{row}, {c}] is {float(p[row, c]):g}; expected a probability: pass "
            "logits.softmax(-1)"
        )
    sums = p.sum(1)
    off = (sums - 1).abs() > _ROUNDING
    if bool(off.any()):
        row = int(off.nonzero()[0])
        raise W2SError(
            f"row {row} of probs sums to {float(sums[row]):.4f}; expected 1: normalize over the "
            "class words"
        )
    return p
