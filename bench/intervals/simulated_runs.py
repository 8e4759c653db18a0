r"""Experiments whose true accuracies are known: bases x seeds x test items, without training.

Four models: weak model, two students (the baseline and a method) and ceiling. Their true accuracies
in base b at seed s are

    weak      w            + u_s / 2
    baseline  w + gap / 2  + (v_s + e_bs) / sqrt(2)              + b_b
    method    w + 4/5 gap  + (v_s + v'_s) / 2 + e'_bs / sqrt(2)  + (b_b + b'_b) / sqrt(2)
    ceiling   w + gap      + e''_bs / 2                          + b''_b / 2

with independent normal u, v, e and b of one standard deviation: that of the baseline's accuracy
over seeds. The base's effect is as large as the seed's. If bases are crossed with seeds, u_s and
v_s are those of a seed and its data; otherwise every base has its own.

Test items are hard or easy with probability 1/2; within a kind, models err independently. A model
of accuracy a is right on an easy item with probability a + a (1 - a), on a hard one with
a - a (1 - a), so models agree on items more often than by chance. If runs draw their items from one
pool, a model mostly errs on the same items of it in all runs, as trained models do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from w2s_fast.metrics import Runs, runs_of

WEAK, BASELINE, METHOD, CEILING = range(4)
FLOOR, RECOVERED, RECOVERED_METHOD = 0.6, 0.5, 0.8
_KINDS = np.array([1.0, -1.0])  # easy and hard items
_ALIKE = 0.8  # share of the items of a pool whose chance is drawn once for all runs of a model


@dataclass(frozen=True)
class Cell:
    """One setting of the simulation.

    Attributes:
        gap: True accuracy of the ceiling - that of the weak model.
        n: Test items of a seed.
        seeds: S.
        bases: B.
        seed_sd: Standard deviation of the baseline's PGR over seeds, and over bases.
        crossed: Whether all bases have the same seeds and, with them, data and weak models.
        pool: Items that every run draws its ``n`` from; with as many as ``n`` all runs have the
            same ones. None: every run has its own.
        scale: The gap that ``seed_sd`` is a share of; None: ``gap``.
        base_effect: Whether bases differ. They do not where the gap of every base is to be ``gap``.
    """

    gap: float
    n: int
    seeds: int
    bases: int
    seed_sd: float
    crossed: bool = False
    pool: int | None = None
    scale: float | None = None
    base_effect: bool = True

    @property
    def effect_sd(self) -> float:
        """Standard deviation of an effect, in accuracy."""
        return self.seed_sd * (self.gap if self.scale is None else self.scale)


@dataclass(frozen=True, eq=False)
class Simulated:
    """Replicates of one cell.

    Attributes:
        runs: Accuracies (R, B, S, 4).
        target: (R, 4) true mean accuracies: over bases if at least three were drawn, else of the
            bases that were drawn.
        patterns: (R, S, 8) numbers of items of the first base on which (weak, baseline, ceiling)
            are right, as bits 1, 2, 4; None where seeds have items in common.
    """

    runs: Runs
    target: np.ndarray
    patterns: np.ndarray | None


def simulate(cell: Cell, replicates: int, seed: int, generalize_from: int) -> Simulated:
    """Draw replicates of a cell.

    Args:
        cell: The setting.
        replicates: R.
        seed: Of the random numbers.
        generalize_from: Fewest bases for a target over bases.
    """
    rng = np.random.default_rng(seed)
    base = _base_effects(rng, cell, replicates)
    means = FLOOR + cell.gap * np.array([0, RECOVERED, RECOVERED_METHOD, 1.0])
    truth = np.broadcast_to(means + base, (replicates, cell.bases, 4))
    target = np.broadcast_to(means, (replicates, 4))
    if cell.bases < generalize_from:
        target = truth.mean(1)
    accuracy = truth[:, :, None, :] + _run_effects(rng, cell, replicates)
    if cell.pool is not None:
        return Simulated(_items_of_pool(rng, cell, cell.pool, accuracy), target, None)
    measured, patterns = _own_items(rng, cell, accuracy)
    return Simulated(Runs(measured, crossed=cell.crossed), target, patterns)


def _base_effects(rng: np.random.Generator, cell: Cell, replicates: int) -> np.ndarray:
    """Return (R, B, 4)."""
    shared, own, ceiling = rng.normal(
        0, cell.effect_sd * cell.base_effect, (3, replicates, cell.bases)
    )
    zero = np.zeros_like(shared)
    return np.stack([zero, shared, (shared + own) / np.sqrt(2), ceiling / 2], -1)


def _run_effects(rng: np.random.Generator, cell: Cell, replicates: int) -> np.ndarray:
    """Return (R, B, S, 4)."""
    of_seed = (3, replicates, 1 if cell.crossed else cell.bases, cell.seeds)
    weak, shared, own = rng.normal(0, cell.effect_sd, of_seed)
    cells = rng.normal(0, cell.effect_sd, (3, replicates, cell.bases, cell.seeds))
    baseline = (shared + cells[0]) / np.sqrt(2)
    method = (shared + own) / 2 + cells[1] / np.sqrt(2)
    weak = np.broadcast_to(weak / 2, baseline.shape)
    return np.stack([weak, baseline, method, cells[2] / 2], -1)


def _right_probability(accuracy: np.ndarray, kind: float | np.ndarray) -> np.ndarray:
    """Return the probability that an item of this kind is right."""
    accuracy = accuracy.clip(0.0, 1.0)
    return (accuracy + kind * accuracy * (1 - accuracy)).clip(0.0, 1.0)


def _own_items(
    rng: np.random.Generator, cell: Cell, accuracy: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return measured accuracies (R, B, S, 4) and the first base's patterns (R, S, 8)."""
    replicates = len(accuracy)
    n_bases = 1 if cell.crossed else cell.bases
    n_easy = rng.binomial(cell.n, 0.5, (replicates, n_bases, cell.seeds))
    right = np.zeros(accuracy.shape, dtype=np.int64)
    patterns = np.zeros((replicates, cell.seeds, 8), dtype=np.int64)
    for kind, n_kind in zip(_KINDS, (n_easy, cell.n - n_easy), strict=True):
        p = _right_probability(accuracy, kind)
        drawn = rng.binomial(n_kind[..., None], p)
        chances = _pattern_chances(p[:, 0][..., [WEAK, BASELINE, CEILING]])
        counts = rng.multinomial(n_kind[:, 0], chances)
        bits = np.arange(8)
        for bit, model in enumerate((WEAK, BASELINE, CEILING)):
            drawn[:, 0, :, model] = counts[..., bits >> bit & 1 == 1].sum(-1)
        if cell.crossed:
            drawn[..., WEAK] = drawn[:, :1, :, WEAK]  # one weak model for all bases
        right += drawn
        patterns += counts
    return right / cell.n, patterns


def _pattern_chances(p: np.ndarray) -> np.ndarray:
    """Return (..., 8) chances of the patterns of three independent models (..., 3)."""
    bits = np.arange(8)[:, None] >> np.arange(3) & 1
    chances = np.where(bits == 1, p[..., None, :], 1 - p[..., None, :]).prod(-1)
    return chances / chances.sum(-1, keepdims=True)


def _items_of_pool(rng: np.random.Generator, cell: Cell, pool: int, accuracy: np.ndarray) -> Runs:
    """Return runs that are scored on items of one pool, item by item."""
    shape = (cell.bases, cell.seeds)
    each = []
    for one in accuracy:
        kinds = rng.choice(_KINDS, pool)
        items = rng.permuted(np.broadcast_to(np.arange(pool), (*shape, pool)), axis=-1)
        items = items[..., : cell.n]
        p = _right_probability(one[..., None], kinds[items][..., None, :])
        chance = rng.random(p.shape, dtype=np.float32)
        alike = rng.random(pool) < _ALIKE
        of_item = rng.random((pool, 4), dtype=np.float32)[items].swapaxes(-1, -2)
        right = np.where(alike[items][..., None, :], of_item, chance) < p
        each.append(runs_of([list(base) for base in right], [list(base) for base in items]))
    accuracy, common, within = (
        np.stack([getattr(r, name) for r in each]) for name in ("accuracy", "common", "within")
    )
    return Runs(accuracy, common=common, within=within)
