"""Verifiers of generated responses whose true labels and rates are known."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class PlantedVerifiers(NamedTuple):
    """Scores (N, m) in [0, 1], problems (N,), gold (N,) bool, and rates (m,) of the verifiers."""

    scores: np.ndarray
    problems: np.ndarray
    gold: np.ndarray
    tpr: np.ndarray
    fpr: np.ndarray


def planted_verifiers(
    n: int, responses: int, m: int, balance: float = 0.3, seed: int = 0
) -> PlantedVerifiers:
    """Draw verifiers that err independently; a score is above 1/2 if the verifier accepts."""
    rng = np.random.default_rng(seed)
    problems = np.repeat(np.arange(n), responses)
    gold = rng.random(n * responses) < balance
    advantage = 0.1 + 0.7 * np.linspace(0, 1, m) ** 3  # TPR - FPR: few are good
    fpr = (1 - advantage) * rng.uniform(0.3, 0.7, m)
    tpr = fpr + advantage
    accepts = rng.random((len(gold), m)) < np.where(gold[:, None], tpr, fpr)
    scores = 0.5 * rng.random(accepts.shape) + 0.5 * accepts
    return PlantedVerifiers(scores, problems, gold, tpr, fpr)
