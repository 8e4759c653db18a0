"""The record that row kernels fill, and the rule by which a row picks its self-target.

Every backend writes the same twelve numbers and three class ids a row. All by-products, the loss
after a late threshold, and the gradient can be made from them and the logits alone.
M is the row maximum, S = sum_v exp(z_v - M); logits appear only as differences from M, so nothing
is lost at |z| = 1e4.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from torch import Tensor


class Stat(IntEnum):
    """Rows of the (12, N) floating point record."""

    LOSS = 0  # row loss, without the row weight; exactly 0 on rows that do not count
    MAX = 1  # M
    LOGS = 2  # log S, so lse = M + log S
    ENTROPY = 3  # of the student's distribution, nats
    MASS = 4  # total weak mass, the residual included
    LINEAR = 5  # sum_v w_v (z_v - M) over listed classes
    MEAN = 6  # mean_v (z_v - M); written only when label smoothing is on
    CHOSEN = 7  # z_c - M for the weak label's top class c
    TAIL = 8  # log of the student's mass outside the listed classes; only with a residual
    COEF = 9  # self-target coefficient a of this row, after its gate
    FACTOR = 10  # focal and window factor; 0 on rows that do not count
    SCORE = 11  # what thresholds compare: z_0 - z_1 for two classes, else max_v p_v


class Index(IntEnum):
    """Rows of the (3, N) int64 record."""

    ARGMAX = 0  # first class with the largest logit
    WEAK = 1  # the weak label's top class
    SELF = 2  # the hard class of the self-target


class Knobs(NamedTuple):
    """What shapes a row's loss besides its targets.

    ``rule`` is ``none`` (a = 0), ``argmax`` (a on every row), ``gate`` (a where SCORE >=
    threshold), ``margin`` (two classes: hard class 0 iff SCORE >= threshold) or ``given`` (a on
    every row, whose hard class the caller has written into SELF).
    """

    rule: str = "none"
    aux: float | Tensor = 0.0
    threshold: Tensor | None = None
    smoothing: float = 0.0
    gamma: float = 0.0
    cap: float = float("inf")
    softcap: float = 0.0
    z_loss: float = 0.0
