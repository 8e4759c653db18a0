"""Plain backend of the balanced labels: exact in numpy on the CPU, fixed steps on other devices.

The exact solver starts at each row's largest logit and moves one row at a time along the cheapest
chain of classes from one with too many rows to one with too few.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from w2s_fast.ops.balanced import device


def solve(z: Tensor, counts: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Return bias (K,) and hard (N,) int64 of finite logits (N, K), for counted rows only."""
    if z.device.type != "cpu":
        return device.solve(z, counts, counted)
    price, labels = _assign(z[counted].double().numpy(), counts.numpy())
    hard = torch.zeros(z.shape[0], dtype=torch.int64)
    hard[counted] = torch.from_numpy(labels)
    return torch.from_numpy(price), hard


def _assign(z: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    k = z.shape[1]
    hard = z.argmax(1)
    price = np.zeros(k)
    while True:
        loss, row = _cheapest(z, hard)
        excess = np.bincount(hard, minlength=k) - counts
        if not (excess > 0).any():
            return _widest(loss), hard
        length, before, end = _shortest(loss + price[:, None] - price, excess)
        price += np.minimum(length, length[end])
        at = end
        while before[at] >= 0:
            hard[row[before[at], at]] = at
            at = before[at]


def _cheapest(z: np.ndarray, hard: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (K, K) least loss of a row that moves from class a to b, and that row."""
    k = z.shape[1]
    loss, row = np.full((k, k), np.inf), np.full((k, k), -1)
    for a in range(k):
        rows = np.flatnonzero(hard == a)
        if rows.size:
            moved = z[rows, a : a + 1] - z[rows]
            best = moved.argmin(0)
            loss[a], row[a] = moved[best, np.arange(k)], rows[best]
    return loss, row


def _shortest(cost: np.ndarray, excess: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Run Dijkstra from all classes with too many rows to the nearest with too few."""
    k = len(excess)
    length, before = np.where(excess > 0, 0.0, np.inf), np.full(k, -1)
    done = np.zeros(k, dtype=bool)
    while True:
        a = int(np.where(done, np.inf, length).argmin())
        if excess[a] < 0:
            return length, before, a
        done[a] = True
        reach = length[a] + np.maximum(cost[a], 0.0)
        nearer = ~done & (reach < length)
        length[nearer], before[nearer] = reach[nearer], a


def _widest(loss: np.ndarray) -> np.ndarray:
    """Return biases that leave every row the largest margin that all rows can have at once."""
    k = len(loss)
    weight = loss.copy()
    np.fill_diagonal(weight, np.inf)
    walks = [np.zeros(k)]  # Karp 1978: least weight of a walk of m edges that ends in each class
    for _ in range(k):
        walks.append((walks[-1][:, None] + weight).min(0))
    with np.errstate(invalid="ignore"):
        means = [(walks[k] - walks[m]) / (k - m) for m in range(k)]
    worst = np.max([np.where(np.isnan(m), -np.inf, m) for m in means], axis=0)
    margin = worst[np.isfinite(walks[k])].min(initial=np.inf)
    margin = 1.0 if margin == np.inf else max(float(margin), 0.0)
    bias = np.zeros(k)
    for _ in range(k):
        bias = np.minimum(bias, (bias[:, None] + weight - margin).min(0))
    return bias - bias.mean()
