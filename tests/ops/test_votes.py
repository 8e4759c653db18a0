"""Passes over votes: the compiled core against torch, bit for bit where results are counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from w2s_fast.ops import dispatch, use_backend
from w2s_fast.ops.votes import cpp, ref

pytestmark = pytest.mark.usefixtures("isa")


def draw(n: int, m: int, k: int, seed: int, abstain: float = 0.3) -> torch.Tensor:
    """Votes (n, m) of int64; some rows and one column abstain throughout."""
    g = torch.Generator().manual_seed(seed)
    votes = torch.randint(k, (n, m), generator=g)
    votes[torch.rand(n, m, generator=g) < abstain] = -1
    votes[torch.rand(n, generator=g) < 0.1] = -1
    votes[:, seed % m] = -1
    return votes


def layouts(votes: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same votes in memory with gaps between rows, and column by column."""
    wide = torch.full((len(votes), votes.shape[1] + 5), 3, dtype=votes.dtype)
    wide[:, 2:-3] = votes
    every_other = torch.stack([votes, votes], 1).flatten(0, 1)[::2]
    return {"plain": votes, "columns": wide[:, 2:-3], "rows": every_other, "t": votes.T.clone().T}


SHAPES = {
    "n": st.integers(1, 700), "m": st.integers(1, 80), "k": st.integers(2, 9),
    "seed": st.integers(0, 10**6), "layout": st.sampled_from(["plain", "columns", "rows", "t"]),
}  # fmt: skip


@pytest.mark.parametrize("across_classes", [True, False])
@settings(max_examples=40, deadline=None)
@given(**SHAPES)
@example(n=1, m=1, k=2, seed=0, layout="plain")
@example(n=64, m=32, k=2, seed=1, layout="rows")
@example(n=20_000, m=3, k=2, seed=1, layout="plain")  # more than one block of rows
@example(n=130, m=40, k=50, seed=2, layout="columns")
@example(n=70, m=33, k=130, seed=3, layout="t")  # int16
def test_second_moments(
    n: int, m: int, k: int, seed: int, layout: str, across_classes: bool
) -> None:
    votes = layouts(ref.narrow(draw(n, m, k, seed), k))[layout]
    expected = ref.second_moments(votes, k, across_classes=across_classes)
    assert torch.equal(cpp.second_moments(votes, k, across_classes=across_classes), expected)


def test_columns_of_ones() -> None:
    """As many ones as there can be: partial sums of bytes must not overflow."""
    votes = torch.ones(20_000, 6, dtype=torch.int8)
    second = cpp.second_moments(votes, 2, across_classes=False)
    assert second[0].eq(0).all() and second[1].eq(20_000).all()


@settings(max_examples=40, deadline=None)
@given(**SHAPES)
@example(n=1, m=1, k=2, seed=0, layout="plain")
@example(n=70, m=33, k=130, seed=3, layout="t")
def test_summary(n: int, m: int, k: int, seed: int, layout: str) -> None:
    votes = draw(n, m, k, seed)
    votes[:, -1] = votes[:, 0]
    votes = layouts(ref.narrow(votes, k))[layout]
    counts, hashes, covered = cpp.summarize(votes, k)
    expected, _, expected_covered = ref.summarize(votes, k)
    assert torch.equal(counts, expected) and covered == expected_covered
    equal = (votes.unsqueeze(2) == votes.unsqueeze(1)).all(0)
    assert torch.equal(hashes[:, None] == hashes, equal)


@settings(max_examples=60, deadline=None)
@given(
    k=st.integers(2, 300), n=st.integers(1, 40), m=st.integers(1, 20), seed=st.integers(0, 10**6),
    dtype=st.sampled_from([torch.int8, torch.int16, torch.int32, torch.int64]),
    layout=st.sampled_from(["plain", "columns", "rows", "t"]),
)  # fmt: skip
def test_narrow(k: int, n: int, m: int, seed: int, dtype: torch.dtype, layout: str) -> None:
    k = min(k, 100) if dtype == torch.int8 else k
    votes = draw(n, m, k, seed).to(dtype)
    narrowed = cpp.narrow(layouts(votes)[layout], k)
    assert narrowed is not None and torch.equal(narrowed, ref.narrow(votes, k))
    assert narrowed.dtype == (torch.int8 if k <= 127 else torch.int16)
    info, row, source = torch.iinfo(dtype), seed % n, seed % m
    for wrong in (k, k + 256, k + 2**16, 2**32, -2, -(2**32), 2**63 - 1, info.max, info.min):
        if info.min <= wrong <= info.max and not -1 <= wrong < k:
            spoiled = votes.clone()
            spoiled[row, source] = wrong
            assert cpp.narrow(layouts(spoiled)[layout], k) is None


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint16, np.int64])
def test_votes_that_are_narrow_already_are_not_copied(dtype: type) -> None:
    votes = torch.from_numpy(np.ones((4, 3), dtype))
    narrowed = cpp.narrow(votes.long() if dtype in (np.uint8, np.uint16) else votes, 3)
    assert (narrowed.data_ptr() == votes.data_ptr()) == (dtype is np.int8)


@settings(max_examples=60, deadline=None)
@given(c=st.integers(1, 6), softmax=st.booleans(), **SHAPES)
@example(n=3000, m=50, k=2, seed=0, layout="plain", c=2, softmax=True)  # five sources a code
@example(n=3000, m=7, k=3, seed=0, layout="rows", c=3, softmax=False)
@example(n=40, m=30, k=300, seed=0, layout="t", c=7, softmax=True)  # codes of two bytes
@example(n=40, m=30, k=255, seed=0, layout="plain", c=1, softmax=False)
def test_products(n: int, m: int, k: int, seed: int, layout: str, c: int, softmax: bool) -> None:
    votes = layouts(ref.narrow(draw(n, m, k, seed, abstain=0.8), k))[layout]
    g = torch.Generator().manual_seed(seed)
    table = torch.randn(k, m, c, generator=g).double()
    bias, weights = torch.randn(c, generator=g).double(), torch.rand(n, c, generator=g).double()
    ours, plain = cpp.OneHotVotes(votes, k), ref.OneHotVotes(votes, k)
    close = {"rtol": 1e-11, "atol": 1e-12}
    torch.testing.assert_close(
        ours.times(table, bias, softmax=softmax), plain.times(table, bias, softmax=softmax), **close
    )
    torch.testing.assert_close(ours.times(table), plain.times(table), **close)
    torch.testing.assert_close(
        ours.transposed_times(weights), plain.transposed_times(weights), **close
    )


@pytest.mark.parametrize("n_threads", [2, 3])
def test_results_do_not_depend_on_the_number_of_threads(n_threads: int) -> None:
    votes = ref.narrow(draw(5000, 60, 3, 0), 3)
    g = torch.Generator().manual_seed(0)
    table, weights = torch.randn(3, 60, 3, generator=g).double(), torch.rand(5000, 3, generator=g)

    def results() -> list[torch.Tensor]:
        x = cpp.OneHotVotes(votes, 3)
        second = cpp.second_moments(votes, 3, across_classes=True)
        return [second, x.times(table, softmax=True), x.transposed_times(weights.double())]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = results()
        torch.set_num_threads(n_threads)
        together = results()
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_posteriors_far_from_a_half_keep_their_digits() -> None:
    """A small probability is not one minus a large one."""
    x = cpp.OneHotVotes(torch.zeros(1, 1, dtype=torch.int8), 2)
    table = torch.tensor([[[50.0, 0.0]], [[0.0, 0.0]]]).double()
    probs = x.times(table, softmax=True)[0]
    assert float(probs[1]) == pytest.approx(float(torch.tensor(-50.0).double().exp()), rel=1e-12)


def test_the_backend_of_host_memory() -> None:
    assert dispatch.host_backend("votes") is cpp
    with use_backend("ref"):
        assert dispatch.host_backend("votes") is ref
    with use_backend("triton"):  # of a GPU: votes are in host memory all the same
        assert dispatch.host_backend("votes") is cpp
