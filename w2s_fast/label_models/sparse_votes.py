"""Votes as a sparse one-hot matrix X (n, K m), and its products with dense tables.

Column l m + j is 1 where source j votes for class l; an abstention is a row of zeros. Both products
of EM cost one pass over the votes that were cast. X is built in blocks of rows, and built again in
each pass if it would not fit in memory, so memory does not grow with n.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

from w2s_fast.label_models.votes import row_blocks

BLOCK_CELLS = 1 << 22  # cells of the vote matrix per block
CACHED_VOTES = 1 << 23  # votes of which X and its transpose are kept, 32 bytes each


class SparseVotes:
    """The one-hot matrix X of votes, with ``times`` and ``transposed_times``.

    Attributes:
        votes: checked votes (n, m).
        n_classes: K.
    """

    def __init__(self, votes: Tensor, n_classes: int) -> None:
        self.votes, self.n_classes = votes, n_classes
        self._cache: list[tuple[slice, Tensor, Tensor]] | None = None
        if int((votes >= 0).sum()) <= CACHED_VOTES:
            self._cache = list(self._build())

    def __len__(self) -> int:
        return len(self.votes)

    def times(self, table: Tensor) -> Tensor:
        """Return X @ table, (n, C) float64, of ``table`` (K, m, C)."""
        flat = table.reshape(-1, table.shape[-1])
        return torch.cat([x @ flat for _, x, _ in self._blocks()])

    def transposed_times(self, weights: Tensor) -> Tensor:
        """Return X^T @ weights as (K, m, C) float64, of ``weights`` (n, C)."""
        m, c = self.votes.shape[1], weights.shape[1]
        total = weights.new_zeros(self.n_classes * m, c)
        for rows, _, transposed in self._blocks():
            total += transposed @ weights[rows]
        return total.view(self.n_classes, m, c)

    def _blocks(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        return iter(self._cache) if self._cache is not None else self._build()

    def _build(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        n, m = self.votes.shape
        for rows in row_blocks(n, max(1, BLOCK_CELLS // m)):
            block = self.votes[rows]
            cast = block >= 0
            ends = torch.cat([cast.new_zeros(1, dtype=torch.int64), cast.sum(1).cumsum(0)])
            row_ids, sources = cast.nonzero(as_tuple=True)
            columns = block[row_ids, sources].long() * m + sources
            # Of one row, classes before sources; short keys are sorted three times as fast.
            keys = columns.short() if self.n_classes * m < 2**15 else columns
            order = keys.argsort(stable=True)
            counts = torch.bincount(columns, minlength=self.n_classes * m)
            starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
            yield rows, *self._pair(ends, columns, starts, row_ids[order], len(block), m)

    def _pair(
        self, ends: Tensor, columns: Tensor, starts: Tensor, row_ids: Tensor, n: int, m: int
    ) -> tuple[Tensor, Tensor]:
        """Return a block of X and its transpose as CSR tensors."""
        ones = torch.ones(len(columns), dtype=torch.float64, device=columns.device)
        width = self.n_classes * m
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR")  # products are all we use
            x = torch.sparse_csr_tensor(ends, columns, ones, (n, width), check_invariants=False)
            transposed = torch.sparse_csr_tensor(
                starts, row_ids, ones, (width, n), check_invariants=False
            )
        return x, transposed
