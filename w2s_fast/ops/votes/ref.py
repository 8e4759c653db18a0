"""Plain backend of passes over votes: torch on blocks of rows, products with sparse matrices.

X is built in blocks of rows, and built again in each pass if it would not fit in memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

from w2s_fast.ops.votes.blocks import row_blocks

BLOCK_CELLS = 1 << 22  # cells of the vote matrix per block
CACHED_VOTES = 1 << 23  # votes of which X and its transpose are kept, 32 bytes each
_ONE_HOT_CELLS = 1 << 18  # of a block of second moments, which stays in cache; its sums are exact
_HASHED_ROWS = 2048


def narrow(votes: Tensor, n_classes: int) -> Tensor | None:
    """Return integer votes (n, m) as int8, or int16 above 127 classes; None if one is no class."""
    low, high = (int(v) for v in torch.aminmax(votes))
    if low < -1 or high >= n_classes:
        return None
    return votes.to(torch.int8 if n_classes <= 127 else torch.int16)


def summarize(votes: Tensor, n_classes: int) -> tuple[Tensor, Tensor, int]:
    """Return votes per class and source (K, m) int64, hashes of columns (m,), rows with a vote."""
    m = votes.shape[1]
    counts = torch.zeros((n_classes + 1) * m, dtype=torch.int64)
    # Sums of products of integers are exact in float64, so equal columns hash equally.
    keys = (torch.arange(_HASHED_ROWS) * 40503 % 61 + 1).double()
    hashes = torch.zeros(m, dtype=torch.float64)
    offsets, covered = torch.arange(m) + m, 0
    for rows in row_blocks(len(votes), _HASHED_ROWS):
        part = votes[rows]
        counts += torch.bincount((part.long() * m + offsets).flatten(), minlength=len(counts))
        hashes += keys[: len(part)] @ part.double()
        covered += int((part >= 0).any(1).sum())
    return counts.view(n_classes + 1, m)[1:], hashes, covered


def second_moments(votes: Tensor, n_classes: int, *, across_classes: bool) -> Tensor:
    """Return counts of pairs of votes, (K m, K m) or (K, m, m) of the same class, float64."""
    n, m = votes.shape
    shape = (n_classes * m,) * 2 if across_classes else (n_classes, m, m)
    second = torch.zeros(shape, dtype=torch.float64)
    for rows in row_blocks(n, max(1, _ONE_HOT_CELLS // (n_classes * m))):
        classes = [votes[rows] == c for c in range(n_classes)]  # each (b, m)
        if across_classes:
            x = torch.cat(classes, 1).float()
            second += x.T @ x
        else:
            for c, x in enumerate(classes):
                second[c] += x.float().T @ x.float()
    return second


class OneHotVotes:
    """The one-hot matrix X (n, K m) of votes as sparse matrices.

    Column l m + j is 1 where source j votes for class l; an abstention is a row of zeros.

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

    def times(self, table: Tensor, bias: Tensor | None = None, *, softmax: bool = False) -> Tensor:
        """Return X @ table + bias, (n, C) float64, or its softmax.

        Args:
            table: (K, m, C) float64.
            bias: (C,) float64; None is 0.
            softmax: over the last axis.
        """
        flat = table.reshape(-1, table.shape[-1])
        out = torch.cat([x @ flat for _, x, _ in self._blocks()])
        out = out if bias is None else out + bias
        return out.softmax(1) if softmax else out

    def transposed_times(self, weights: Tensor) -> Tensor:
        """Return X^T @ weights as (K, m, C) float64, of ``weights`` (n, C) float64."""
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
