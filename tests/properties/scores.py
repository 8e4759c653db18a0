"""Properties of order statistics and of balanced labels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from properties.cases import DTYPES, Record, mostly, pick
from properties.inputs import lay_out
from w2s_fast.ops import use_backend
from w2s_fast.ops.balanced.api import balanced_bias, class_counts
from w2s_fast.ops.quantile.api import kth_value, quantile, top_fraction_mask
from w2s_fast.testing import FORWARD, assert_within_budget


@dataclass(frozen=True, repr=False)
class Scores(Record):
    """Scores to rank."""

    n: int = 1
    dtype: str = "fp32"
    seed: int = 0
    grid: float = 0.0  # 0: all differ, else multiples of it
    offset: float = 0.0
    special: tuple[tuple[int, float], ...] = ()  # (place, value)
    keep: float = 1.0  # share
    share: float = 0.5
    stride: int = 1

    def build(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Scores (N,) and mask."""
        g = torch.Generator().manual_seed(self.seed)
        x = 4 * torch.randn(self.n, generator=g, dtype=torch.float64)
        if self.grid:
            x = (x / self.grid).round() * self.grid
        x = (x + self.offset).to(DTYPES[self.dtype])
        for at, value in self.special:
            x[at % self.n] = value
        x = torch.stack([x] * self.stride, 1)[:, 0]
        keep = None if self.keep == 1 else torch.rand(self.n, generator=g) < self.keep
        return x, keep


def scores(small: bool = False) -> st.SearchStrategy[Scores]:
    """Few or many, with ties, infinities, signed zeros, numbers next to 0, and masks."""
    special = pick(0.0, -0.0, math.inf, -math.inf, 1e-45, -1e-45, 3e38, -3e38)
    most = 40 if small else 300
    return st.builds(
        Scores,
        n=st.integers(1, most),
        dtype=pick(*DTYPES),
        seed=st.integers(0, 2**20),
        grid=mostly(0.0, 1.0, 4.0),
        offset=mostly(0.0, 1e4, -1e4),
        special=st.lists(st.tuples(st.integers(0, most), special), max_size=3).map(tuple),
        keep=pick(1.0, 0.5, 0.1, 0.0),
        share=st.one_of(pick(0.0, 0.5, 1.0), st.floats(0, 1)),
        stride=pick(1, 2),
    )


def order(backend: str, c: Scores) -> None:
    """Quantiles, k-th values and masks are those of a sort."""
    x, keep = c.build()
    scores_kept = (x if keep is None else x[keep]).double().sort().values
    n = len(scores_kept)
    with use_backend(backend):
        at = quantile(x, c.share, keep=keep)
        k = 1 + int(c.share * (n - 1)) if n else 1
        element = kth_value(x, k, keep=keep)
        mask = top_fraction_mask(x, c.share, keep=keep)
    if not n:
        assert float(at) == math.inf and bool(element.isnan()) and not bool(mask.any())
        return
    place = c.share * (n - 1)
    low, high = scores_kept[math.floor(place)], scores_kept[math.ceil(place)]
    if bool((low - high).isfinite()):
        truth = torch.lerp(low, high, place - math.floor(place))
        near = torch.quantile(scores_kept.to(at.dtype), c.share)
        assert_within_budget(at, truth, near, FORWARD, "quantile")
    elif low == high or place == math.floor(place):
        assert float(at) == float(low), f"quantile: {at} for {low}"
    else:  # between something and an infinity torch.quantile is NaN for weights below a half
        assert bool(at.isnan()) or float(at) in (float(low), float(high)), f"quantile: {at}"
    assert float(element) == float(scores_kept[k - 1]), (
        f"kth_value {element} for {scores_kept[k - 1]}"
    )
    count = round(c.share * n)
    assert int(mask.sum()) == count, f"{int(mask.sum())} in the top, not {count}"
    assert keep is None or not bool((mask & ~keep).any())
    if count:
        # The largest, and of equals the first.
        least, equal = scores_kept[n - count], x.double() == scores_kept[n - count]
        equal = equal if keep is None else equal & keep
        ties = int((scores_kept[n - count :] == least).sum())
        expected = (mask & (x.double() > least)) | (equal & (equal.cumsum(0) <= ties))
        assert torch.equal(mask, expected), "another row at the edge of the top"


@dataclass(frozen=True, repr=False)
class Balance(Record):
    """Logits and class frequencies."""

    n: int = 1
    k: int = 3
    dtype: str = "fp32"
    seed: int = 0
    grid: float = 0.0
    offset: float = 0.0
    prior: str = "random"
    keep: float = 1.0
    infinite: int = 0  # entries at -inf
    layout: str = "plain"


def balances(small: bool = False) -> st.SearchStrategy[Balance]:
    """Few rows: the truth is an assignment problem."""
    return st.builds(
        Balance,
        n=st.integers(0, 12 if small else 40),
        k=st.integers(2, 9),
        dtype=pick(*DTYPES),
        seed=st.integers(0, 2**20),
        grid=mostly(0.0, 1.0, 4.0),
        offset=mostly(0.0, 1e3),
        prior=pick("random", "equal", "one", "some zero", "large"),
        keep=pick(1.0, 0.5, 0.0),
        infinite=pick(0, 1, 5),
        layout=pick("plain", "padded", "columns", "transposed"),
    )


def _balance_inputs(c: Balance) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    g = torch.Generator().manual_seed(c.seed)
    z = 2 * torch.randn(c.n, c.k, generator=g, dtype=torch.float64)
    if c.grid:
        z = (z / c.grid).round() * c.grid
    for i in range(c.infinite if c.n else 0):
        z[(c.seed + 7 * i) % c.n, (c.seed + 3 * i) % c.k] = -math.inf
    prior = torch.rand(c.k, generator=g)
    if c.prior == "equal":
        prior = torch.ones(c.k)
    elif c.prior == "one":
        prior = torch.eye(c.k)[c.seed % c.k]
    elif c.prior == "some zero":
        prior[c.seed % c.k] = 0.0
    elif c.prior == "large":
        prior = prior * 1e6
    keep = None if c.keep == 1 else torch.rand(c.n, generator=g) < c.keep
    return lay_out((z + c.offset).to(DTYPES[c.dtype]), c.layout), prior, keep


def balanced(backend: str, c: Balance) -> None:
    """Counts are exact, and no labeling with these counts has a larger sum of logits."""
    z, prior, keep = _balance_inputs(c)
    scores_kept = torch.ones(c.n, dtype=torch.bool) if keep is None else keep
    with use_backend(backend):
        bias, hard = balanced_bias(z, prior, keep=keep)
    assert bool(bias.isfinite().all()), f"bias {bias}"
    n = int(scores_kept.sum())
    if not n or c.k == 2:
        if n:
            _two(c, z, prior, scores_kept, bias, hard)
        return
    counts = class_counts(prior, torch.tensor(n))
    found = torch.bincount(hard[scores_kept], minlength=c.k)
    assert torch.equal(found, counts), f"class counts {found.tolist()}, not {counts.tolist()}"
    # By the rows' own chances: of an impossible class as little as can be. The number that stands
    # for it outweighs all others, and leaves their sum its digits.
    exact = z[scores_kept].double().nan_to_num(neginf=-1e7)
    seats = torch.repeat_interleave(torch.arange(c.k), counts)
    best = exact[:, seats].numpy()
    rows, at = linear_sum_assignment(best, maximize=True)
    truth = exact[torch.arange(n), seats[at]]
    ours = exact[torch.arange(n), hard[scores_kept]]
    impossible = [int((x <= -1e7).sum()) for x in (ours, truth)]
    assert impossible[0] == impossible[1], f"{impossible[0]} rows of -inf, not {impossible[1]}"
    sums = [x[x > -1e7].sum() for x in (ours, truth)]
    wide = exact.dtype if c.dtype == "fp64" else torch.float32
    assert_within_budget(sums[0].to(wide), sums[1], sums[1].to(wide), FORWARD, "sum of logits")


def _two(
    c: Balance,
    z: torch.Tensor,
    prior: torch.Tensor,
    scores_kept: torch.Tensor,
    bias: torch.Tensor,
    hard: torch.Tensor,
) -> None:
    """Two classes: the threshold is a quantile of the margins, ties are class 0."""
    wide = z.to(bias.dtype)
    margin = (wide[:, 0] - wide[:, 1]).double()
    if not bool(margin[scores_kept].isfinite().all()):
        return
    share = float(prior.double()[1] / prior.double().sum())
    at = torch.quantile(margin[scores_kept], share)
    # Both neighbours of a rank may round onto the row there.
    sure = scores_kept & ((margin - at).abs() > 1e-5 * at.abs().clamp_min(1.0))
    assert torch.equal(hard[sure], (margin < at).long()[sure]), "labels of two classes"
