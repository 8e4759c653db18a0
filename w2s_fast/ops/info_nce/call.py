"""The records of an InfoNCE call: its inputs, which documents are negatives, and one row pass."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from w2s_fast.ops.dtypes import accumulator

EXCLUDED = -1  # as a positive: the query does not count
NO_MARGIN = float("inf")


class Stat(enum.IntEnum):
    """Rows of the record (6, N), fp32 (fp64 for fp64 inputs); 0 on rows that do not count."""

    LOSS = 0  # focal weight times the loss
    LSE = 1  # log of the sum over positive and negatives, of scaled similarities
    POSITIVE = 2  # similarity to the positive
    HARDEST = 3  # largest similarity to a negative; -inf without negatives
    NEGATIVES = 4  # how many documents are negatives
    FOCAL = 5  # the focal weight (1 - p)^gamma


class Negatives(NamedTuple):
    """Which documents are negatives of a query, besides that its positive is none.

    Attributes:
        query_groups, document_groups: (N,) and (M,) int64, both or none. Ids of no group differ.
        within: negatives are the documents of the query's own group, else those of the others.
        mask: (N, M) bool, False excludes a document.
        margin: a document whose similarity exceeds that of the positive by more than this is
            excluded; inf for none.
    """

    query_groups: Tensor | None = None
    document_groups: Tensor | None = None
    mask: Tensor | None = None
    within: bool = False
    margin: float = NO_MARGIN

    def of_rows(self, rows: slice) -> Negatives:
        """Return the rules for some of the queries."""
        groups, mask = self.query_groups, self.mask
        return self._replace(
            query_groups=None if groups is None else groups[rows],
            mask=None if mask is None else mask[rows],
        )

    def all_others(self) -> bool:
        """Return whether every document but the positive is a negative."""
        return self.query_groups is None and self.mask is None and self.margin == NO_MARGIN


class Pairs(NamedTuple):
    """The inputs of a call.

    Attributes:
        queries: (N, D). documents: (M, D), same dtype.
        positives: (N,) int64, the row of each query's positive; ``EXCLUDED`` excludes the query.
        negatives: which documents are negatives.
        temperature: divisor of the similarities.
        focal_gamma: exponent of the focal weight; 0 for none.
        memory_mib: what the similarities of a chunk may take.
    """

    queries: Tensor
    documents: Tensor
    positives: Tensor
    negatives: Negatives
    temperature: float
    focal_gamma: float
    memory_mib: float


@dataclass(slots=True)
class RowsCall:
    """One pass over the similarities of n queries.

    Attributes:
        similarities: (n, M), fp32 or fp64; overwritten.
        positives: (n,) int64.
        negatives: the rules for these queries.
        scale: 1 / temperature.
        focal_gamma: see ``Pairs``.
        stats: (6, n) the record, written; its rows may lie apart.
        weight: (n,) factor of each row's gradient, in the dtype of the record; None for 1.
        grad: (n, M), written: weight dloss/d(scaled similarities). May be ``similarities`` itself,
            or have 16 bits. None for no gradient.
    """

    similarities: Tensor
    positives: Tensor
    negatives: Negatives
    scale: float
    focal_gamma: float
    stats: Tensor
    weight: Tensor | None = None
    grad: Tensor | None = None


def new_stats(queries: Tensor) -> Tensor:
    """Return an uninitialised record (6, N)."""
    shape = (len(Stat), queries.shape[0])
    return torch.empty(shape, dtype=accumulator(queries.dtype), device=queries.device)
