"""The rows of one forward and backward."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from w2s_fast.training.contrast import Pairs
from w2s_fast.training.engine import AnyBatch


class MicroBatch(NamedTuple):
    """Rows of one forward and backward: those of this process, and the weak labels of all
    processes.

    Row i of ``all_weak`` is row i // size of process i % size. For completions a row is a token.
    """

    batch: AnyBatch
    weak: Tensor
    weight: Tensor | None
    all_weak: Tensor
    all_weight: Tensor | None
    gold: Tensor | None = None  # of this process, see ``LossContext``
    weak_view: AnyBatch | None = None  # the rows that a first pass predicts; None: ``batch``
    pairs: Pairs | None = None  # of the contrastive term
    initial: Tensor | None = None  # states of this process, see ``Anchor``
    share: Tensor | None = None  # of this process's rows in their mixtures, see ``mixup``
