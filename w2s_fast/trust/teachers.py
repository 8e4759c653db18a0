r"""Weights of several teachers, learned together with a head on the student's hidden states.

    min over v and head s of  mean_i CE(sum_k w_k p_ki, s(x_i)) + l2 |W|^2,     w = softmax(v)

p_ki are the labels of teacher k. The gradient by v_k is w_k (L_k - sum_j w_j L_j), L_k the mean
cross-entropy of the head under teacher k alone: weight moves to the teachers that the head explains
best. The loss is linear in w, so run for ever it picks one teacher; ``steps`` ends it before.

Warm-up: v = 0, and the head is first fitted to the rows whose top class is the same for all
teachers, or it would learn to explain them all alike.

Source: Jeon, Sobotka, Choi & Brbic 2025, RAVEN (arXiv 2510.21332). Its released code trains the
whole student rather than a head, and takes steps of SGD on w itself, clipped from below and scaled
to sum 1; softmax needs no clipping.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.trust._checks import check_features, check_number, check_probs

_HEAD_LR = 0.05
_WARM_UP_STEPS = 200


@dataclass(frozen=True, eq=False)
class LearnedWeights:
    """Learned weights of T teachers.

    Attributes:
        weights: (T,) float64, positive, their sum is 1.
        path: (steps + 1, T) float64, the weights after every step; the first are equal.
        pooled: (N, C) float32 labels, sum_k w_k p_ki.
        n_agreed: Rows of the warm-up.
    """

    weights: np.ndarray
    path: np.ndarray
    pooled: np.ndarray
    n_agreed: int


def teacher_weights(
    features: Any,
    teacher_probs: Any,
    *,
    rows: Any = None,
    l2: float = 0.01,
    steps: int = 200,
    rate: float = 0.1,
) -> LearnedWeights:
    """Learn how much to trust each teacher, without true labels.

    Args:
        features: (N, D) hidden states of the student.
        teacher_probs: (T, N, C) class probabilities of T >= 2 teachers.
        rows: (N,) bool, rows to learn from; None: all. The others are pooled too.
        l2: Penalty of the head, on standardised features.
        steps: Joint steps of head (Adam) and weights (gradient descent).
        rate: Step size of v.

    Raises:
        W2SError: Shapes or values do not fit, or teachers agree on fewer than two rows.
    """
    x = check_features(features)
    teachers = _check_teachers(teacher_probs, len(x))
    used = _check_rows(rows, len(x))
    if check_number("steps", steps, 0) != int(steps):
        raise W2SError(f"steps is {steps!r}; expected a whole number")
    rate, l2 = check_number("rate", rate, 0), check_number("l2", l2, 0)

    states = _standardised(x, used)
    p = torch.from_numpy(teachers)
    tops = teachers.argmax(2)
    agreed = torch.from_numpy((tops == tops[0]).all(0) & used)
    if int(agreed.sum()) < 2:
        raise W2SError(
            f"{len(p)} teachers agree on {int(agreed.sum())} of {int(used.sum())} rows; expected "
            "at least 2 to start from: leave out the teachers that disagree with all others"
        )
    learned_rows = torch.from_numpy(used)
    head = _Head(x.shape[1], teachers.shape[2], l2)
    for _ in range(_WARM_UP_STEPS):
        head.step(states[agreed], p[:, agreed].mean(0))
    states, p = states[learned_rows], p[:, learned_rows]
    v = torch.zeros(len(p), dtype=torch.float64)
    path = [v.softmax(0)]
    for _ in range(int(steps)):
        log_s = head.log_probs(states)
        losses = -(p * log_s).sum(2).mean(1)
        w = path[-1]
        v = v - rate * len(p) * w * (losses - w @ losses)
        path.append(v.softmax(0))
        head.step(states, torch.tensordot(path[-1], p, 1))
    weights = path[-1].numpy()
    pooled = np.tensordot(weights, teachers, 1).astype(np.float32)
    return LearnedWeights(weights, torch.stack(path).numpy(), pooled, int(agreed.sum()))


class _Head:
    """A linear head, trained by full-batch Adam."""

    def __init__(self, width: int, n_classes: int, l2: float) -> None:
        self.flat = torch.zeros(width + 1, n_classes, dtype=torch.float64, requires_grad=True)
        self.optimizer = torch.optim.Adam([self.flat], lr=_HEAD_LR)
        self.l2 = l2

    def step(self, states: Tensor, labels: Tensor) -> None:
        self.optimizer.zero_grad()
        log_s = (states @ self.flat[:-1] + self.flat[-1]).log_softmax(1)
        loss = -(labels * log_s).sum(1).mean() + self.l2 * self.flat[:-1].square().sum()
        loss.backward()
        self.optimizer.step()

    @torch.no_grad()
    def log_probs(self, states: Tensor) -> Tensor:
        return (states @ self.flat[:-1] + self.flat[-1]).log_softmax(1)


def _standardised(x: np.ndarray, used: np.ndarray) -> Tensor:
    deviation = x[used].std(0)
    deviation = np.where(deviation > 1e-6, deviation, np.inf)
    return torch.from_numpy((x - x[used].mean(0)) / deviation)


def _check_teachers(teacher_probs: Any, n_rows: int) -> np.ndarray:
    """Return probabilities (T, N, C) float64."""
    is_list = isinstance(teacher_probs, Sequence | np.ndarray | Tensor)
    if not is_list or len(teacher_probs) < 2:
        raise W2SError(
            f"teacher_probs has {len(teacher_probs) if is_list else 'no'} teachers; expected "
            "(teachers, rows, classes) with at least 2 teachers"
        )
    every = [check_probs(p, n_rows, f"teacher_probs[{k}]") for k, p in enumerate(teacher_probs)]
    if len({p.shape for p in every}) > 1:
        raise W2SError(
            f"teachers have {', '.join(str(p.shape[1]) for p in every)} classes; expected the same"
        )
    return np.stack(every)


def _check_rows(rows: Any, n_rows: int) -> np.ndarray:
    if rows is None:
        return np.ones(n_rows, dtype=bool)
    array = np.asarray(rows)
    if array.shape != (n_rows,) or array.dtype != bool or not array.any():
        raise W2SError(
            f"rows has shape {array.shape} and dtype {array.dtype}; expected ({n_rows},) bool with "
            "some True"
        )
    return array
