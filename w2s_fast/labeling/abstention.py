r"""Choose when a function votes and when it abstains, on labeled rows.

    confidence_i = (max_c p_ic - 1/K) / (1 - 1/K)                0 at chance, 1 at certainty
    vote_i       = argmax_c p_ic if confidence_i >= beta, else ABSTAIN
    beta         = argmax over a grid of F1(beta)
    F1           = (1/K) sum_c 2 TP_c / (V_c + N_c)

TP_c are right votes for class c, V_c all votes for it, N_c its labeled rows; an abstention is a
miss and no false alarm, so F1 weighs accuracy against coverage. Equal values of F1 go to the larger
beta. The mean is over classes, so a function that votes for the frequent class alone gains little.

Source: Varma and Re 2018, "Snuba: automating weak supervision to label training data", section 3.2,
for two classes, where beta / 2 is its beta; its code weighs F1 by class frequency and takes a grid
from 0.5 to 0.9 on the rows that fitted the function.
"""

from __future__ import annotations

import torch
from torch import Tensor

from w2s_fast.label_models.votes import ABSTAIN

STEPS = 9
TOP = 0.9  # the largest beta of the grid, unless the least one is larger


def confidence_grid(least: float) -> Tensor:
    """Return the values of beta that are compared, (9,) float64 from ``least`` to 0.9."""
    return torch.linspace(least, max(least, TOP), STEPS, dtype=torch.float64)


def classes_and_confidence(probs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the most probable class (...,) int64 and its confidence (...,) of (..., K)."""
    n_classes = probs.shape[-1]
    top, classes = probs.max(-1)
    return classes, (top - 1 / n_classes) / (1 - 1 / n_classes)


def cast_votes(classes: Tensor, confidence: Tensor, threshold: Tensor) -> Tensor:
    """Return votes (n, m) int64: the class where the confidence reaches the threshold (m,)."""
    # Confidences are computed from shares; their rounding must not turn a vote into an abstention.
    return torch.where(confidence >= threshold - 1e-9, classes, ABSTAIN)


def f1_of_votes(votes: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """Return the F1 (m,) float64 of votes (n, m), the mean over classes of the labels (n,)."""
    score = torch.zeros(votes.shape[1], dtype=torch.float64)
    for c in range(n_classes):
        voted, true = votes == c, labels == c
        right = (voted & true[:, None]).sum(0)
        score += 2 * right / (voted.sum(0) + true.sum()).clamp(min=1)
    return score / n_classes


def choose_thresholds(
    classes: Tensor, confidence: Tensor, labels: Tensor, n_classes: int, least: float
) -> tuple[Tensor, Tensor]:
    """Choose beta for every function by its F1 on labeled rows.

    Args:
        classes: (n, m) int64, most probable classes.
        confidence: (n, m), their confidence.
        labels: (n,) int64.
        n_classes: K.
        least: The least beta of the grid.

    Returns:
        (m,) float64 thresholds, and (m,) their F1.
    """
    best = torch.full((classes.shape[1],), -1.0, dtype=torch.float64)
    threshold = torch.zeros_like(best)
    for beta in confidence_grid(least).flip(0):
        score = f1_of_votes(cast_votes(classes, confidence, beta), labels, n_classes)
        better = score > best + 1e-12
        best, threshold = torch.where(better, score, best), torch.where(better, beta, threshold)
    return threshold, best
