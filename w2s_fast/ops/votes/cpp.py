"""CPU backend of passes over votes: csrc/cpu/votes.cpp and csrc/cpu/vote_codes.cpp.

Second moments and counts are exact, so they equal those of ``ref`` bit for bit; sums of other
numbers differ by the order of summation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from w2s_fast.ops import native

_TABLE_BYTES = 1 << 18  # of joint tables, which stay in the cache of a core
_CODES = 256  # joint votes of a group of sources, one byte


def narrow(votes: Tensor, n_classes: int) -> Tensor | None:
    """Return integer votes (n, m) as int8, or int16 above 127 classes; None if one is no class.

    Votes of that type are returned as they are if their rows are contiguous.
    """
    dtype = torch.int8 if n_classes <= 127 else torch.int16
    votes = _rows(votes)
    keep = votes.dtype == dtype
    out = votes if keep else torch.empty(votes.shape, dtype=dtype)
    (n, m), size = votes.shape, votes.dtype.itemsize
    good = native.core().check_votes(
        votes.data_ptr(), size, _stride(votes), n, m, n_classes, dtype.itemsize,
        0 if keep else out.data_ptr(),
    )  # fmt: skip
    return out if good else None


def summarize(votes: Tensor, n_classes: int) -> tuple[Tensor, Tensor, int]:
    """Return votes per class and source (K, m) int64, hashes of columns (m,), rows with a vote."""
    votes = _checked(votes, n_classes)
    m = votes.shape[1]
    counts = torch.zeros(n_classes, m, dtype=torch.int64)
    hashes = torch.zeros(m, dtype=torch.int64)
    packed = _arguments(votes, n_classes)
    covered = native.core().summarize_votes(*packed, counts.data_ptr(), hashes.data_ptr())
    return counts, hashes, covered


def second_moments(votes: Tensor, n_classes: int, *, across_classes: bool) -> Tensor:
    """Return counts of pairs of votes, (K m, K m) or (K, m, m) of the same class, float64."""
    votes = _checked(votes, n_classes)
    m = votes.shape[1]
    shape = (n_classes * m,) * 2 if across_classes else (n_classes, m, m)
    second = torch.zeros(shape, dtype=torch.float64)
    packed = _arguments(votes, n_classes)
    native.core().second_moments(*packed, across_classes, second.data_ptr())
    return second


class OneHotVotes:
    """The one-hot matrix X (n, K m) of votes, stored as joint codes of groups of sources.

    Column l m + j is 1 where source j votes for class l; an abstention is a row of zeros.

    Attributes:
        votes: checked votes (n, m).
        n_classes: K.
    """

    def __init__(self, votes: Tensor, n_classes: int) -> None:
        self.votes, self.n_classes = votes, n_classes
        n, m = votes.shape
        self._symbols = n_classes + 1
        self._size = _group_size(n, m, self._symbols)
        self._groups = -(-m // self._size)
        self._digits = _digits(self._size, self._symbols) if self._size > 1 else None
        dtype = torch.uint8 if self._symbols <= _CODES else torch.uint16
        self._codes = torch.empty(n, self._groups, dtype=dtype)
        checked = _checked(votes, n_classes)
        packed = _arguments(checked, n_classes)
        native.core().encode_votes(*packed, self._size, dtype.itemsize, self._codes.data_ptr())

    def __len__(self) -> int:
        return len(self.votes)

    def times(self, table: Tensor, bias: Tensor | None = None, *, softmax: bool = False) -> Tensor:
        """Return X @ table + bias, (n, C) float64, or its softmax.

        Args:
            table: (K, m, C) float64.
            bias: (C,) float64; None is 0.
            softmax: over the last axis.
        """
        if softmax and table.shape[-1] == 2:
            return self._sigmoid(table, bias)
        c = table.shape[-1]
        joint = self._joint(table)
        bias = table.new_zeros(c) if bias is None else bias.contiguous()
        out = table.new_empty(len(self), c)
        native.core().sum_tables(
            *self._described(), joint.data_ptr(), c, bias.data_ptr(), softmax, out.data_ptr()
        )
        return out

    def transposed_times(self, weights: Tensor) -> Tensor:
        """Return X^T @ weights as (K, m, C) float64, of ``weights`` (n, C) float64."""
        c = weights.shape[1]
        sums = weights.new_zeros(self._groups, self._symbols**self._size, c)
        weights = weights.contiguous()
        native.core().sum_weights(*self._described(), weights.data_ptr(), c, sums.data_ptr())
        if self._digits is not None:
            sums = self._digits @ sums
        by_source = sums.view(-1, self._symbols, c)  # (groups size, K + 1, C)
        return by_source[: self.votes.shape[1], 1:].transpose(0, 1)

    def _sigmoid(self, table: Tensor, bias: Tensor | None) -> Tensor:
        """Return the softmax of two columns, which needs one pass over their difference."""
        offset = None if bias is None else bias[1:] - bias[:1]
        log_odds = self.times(table[..., 1:] - table[..., :1], offset)[:, 0]
        return torch.stack([-log_odds, log_odds], 1).sigmoid_()

    def _described(self) -> tuple[int, int, int, int, int]:
        """Return address and shape of the codes as the core takes them."""
        address, size = self._codes.data_ptr(), self._codes.dtype.itemsize
        return address, size, len(self), self._groups, self._symbols**self._size

    def _joint(self, table: Tensor) -> Tensor:
        """Return tables of all joint votes of every group, (groups, (K + 1)^size, C)."""
        k, m, c = table.shape
        single = table.new_zeros(self._groups * self._size, k + 1, c)
        single[:m, 1:] = table.transpose(0, 1)
        if self._digits is None:
            return single
        return self._digits.T @ single.view(self._groups, -1, c)


def _group_size(n: int, m: int, symbols: int) -> int:
    """Return how many sources share a code: lookups of all rows against entries of tables."""

    def cost(size: int) -> float:
        entries = -(-m // size) * symbols**size
        fits = symbols**size <= _CODES and entries * (symbols - 1) * 8 <= _TABLE_BYTES
        return n * -(-m // size) + 2 * entries if fits or size == 1 else float("inf")

    return min(range(1, 9), key=cost)


def _digits(size: int, symbols: int) -> Tensor:
    """Return (size symbols, symbols^size): 1 where the source has the symbol in the code."""
    codes = torch.arange(symbols**size)
    each = torch.stack([codes // symbols**i % symbols for i in range(size)])
    ones = torch.nn.functional.one_hot(each, symbols)  # (size, codes, symbols)
    return ones.transpose(1, 2).flatten(0, 1).double()


def _rows(votes: Tensor) -> Tensor:
    """Return votes whose rows are contiguous, though rows may lie apart."""
    return votes if votes.stride(1) == 1 or votes.shape[1] == 1 else votes.contiguous()


def _checked(votes: Tensor, n_classes: int) -> Tensor:
    """Return checked votes of any integer type as the core takes them."""
    votes = votes if votes.dtype in (torch.int8, torch.int16) else _narrowed(votes, n_classes)
    return _rows(votes)


def _narrowed(votes: Tensor, n_classes: int) -> Tensor:
    return votes.to(torch.int8 if n_classes <= 127 else torch.int16)


def _stride(votes: Tensor) -> int:
    return votes.stride(0)


def _arguments(votes: Tensor, n_classes: int) -> tuple[int, int, int, int, int, int]:
    """Return checked votes as the core takes them."""
    n, m = votes.shape
    return votes.data_ptr(), votes.dtype.itemsize, _stride(votes), n, m, n_classes
