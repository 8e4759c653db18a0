"""Votes: what is refused, and what a summary finds."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.planted_votes import planted

from w2s_fast import W2SError
from w2s_fast.errors import DataWarning
from w2s_fast.label_models import (
    DawidSkene,
    MeTaL,
    Triplets,
    covered_rows,
    posterior,
    summarize_votes,
)
from w2s_fast.label_models.votes import check_votes
from w2s_fast.ops.votes import ref


@pytest.mark.parametrize(
    ("votes", "message"),
    [
        ([[0, 1], [3, 0]], "vote of source 0 for row 1 is 3; expected 0 to 2"),
        ([[0, 1], [0, -2]], "vote of source 1 for row 1 is -2; expected 0 to 2"),
        ([0, 1], "shape (2,); expected (rows, sources)"),
        (np.zeros((0, 3), int), "shape (0, 3)"),
        (np.array([[0.0, np.nan]]), "dtype torch.float64; expected integer class ids"),
        ([[True, False]], "dtype torch.bool"),
        ([["ham"]], "cannot be read as an integer matrix"),
    ],
)
def test_wrong_votes_are_named(votes: Any, message: str) -> None:
    with pytest.raises(W2SError, match=re.escape(message)):
        check_votes(votes, 3)


@pytest.mark.parametrize("n_classes", [1, 2.0, True])
def test_wrong_number_of_classes(n_classes: Any) -> None:
    with pytest.raises(W2SError, match="n_classes is"):
        check_votes([[0, 0]], n_classes)


def test_votes_of_many_classes_are_not_cut_off() -> None:
    votes = check_votes([[0, 299], [128, -1]], 300)
    assert votes.tolist() == [[0, 299], [128, -1]]


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint8, np.uint16, np.uint64])
def test_integer_arrays_of_any_type(dtype: type) -> None:
    assert check_votes(np.array([[0, 1], [2, 1]], dtype), np.int64(3)).tolist() == [[0, 1], [2, 1]]
    with pytest.raises(W2SError, match="vote of source 1 for row 0 is 7"):
        check_votes(np.array([[0, 7]], dtype), 3)


def test_memory_maps_are_read_without_a_warning(tmp_path: Path) -> None:
    p = planted(300, 5, [0.5, 0.5])
    np.save(tmp_path / "votes.npy", p.votes.numpy())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        m = DawidSkene(2).fit(np.load(tmp_path / "votes.npy", mmap_mode="r"))
    torch.testing.assert_close(m.rates, DawidSkene(2).fit(p.votes).rates)


def test_summary() -> None:
    #         0  1   2   3   4  5   6: equal to 0; 5: equal to 4; 1 and 3 never change
    votes = [
        [0, 1, -1, -1, 2, 2, 0],
        [1, 1, 2, -1, 0, 0, 1],
        [-1, 1, 2, -1, -1, -1, -1],
    ]
    s = summarize_votes(votes, 3)
    assert (s.n_rows, s.n_uncovered) == (3, 0)
    assert s.coverage.tolist() == pytest.approx([2 / 3, 1, 2 / 3, 0, 2 / 3, 2 / 3, 2 / 3])
    assert s.constant == (1, 3)
    assert s.duplicates == ((0, 6), (4, 5))
    assert s.one_sided == (2,)


def test_uncovered_rows_are_counted() -> None:
    votes = torch.tensor([[0, -1], [-1, -1], [-1, 1], [-1, -1]])
    assert covered_rows(votes).tolist() == [True, False, True, False]
    assert summarize_votes(votes, 2).n_uncovered == 2


def test_duplicates_over_several_blocks_of_rows() -> None:
    votes = planted(20_000, 4, [0.5, 0.5]).votes
    copied = torch.cat([votes, votes[:, [2]]], 1)
    assert summarize_votes(copied, 2).duplicates == ((2, 4),)
    copied[-1, 4] = 1 - copied[-1, 2].clamp(min=0)
    assert summarize_votes(copied, 2).duplicates == ()


def test_columns_of_equal_hash_are_no_duplicates() -> None:
    votes = torch.full((100, 3), -1)
    votes[0, 0] = votes[61, 1] = votes[5, 2] = 1  # rows 0 and 61 have the same key
    assert summarize_votes(votes, 2).duplicates == ()


def test_fewer_than_three_sources_that_vary() -> None:
    votes = planted(200, 3, [0.5, 0.5]).votes
    votes[:, 1] = 1
    with pytest.raises(W2SError, match="2 of 3 sources vary.*at least 3"):
        DawidSkene(2).fit(votes)


def test_no_votes_at_all() -> None:
    with pytest.raises(W2SError, match="every source abstains for every row"):
        DawidSkene(2).fit([[-1] * 4] * 3)


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("model", [DawidSkene, Triplets, MeTaL])
def test_constant_and_duplicated_sources_are_warned_about(model: Any, k: int) -> None:
    """Closed forms find them in their moments."""
    votes = planted(600, 6, [1 / k] * k, accuracy=(0.8, 0.9)).votes
    fit = model(k, class_balance="uniform").fit
    constant = torch.cat([votes, torch.zeros(600, 1, dtype=torch.int64)], 1)
    with pytest.warns(DataWarning, match="source 6 has the same vote in every row") as caught:
        fit(constant)
    assert caught[0].filename == __file__  # the warning points at the call of fit
    with pytest.warns(DataWarning, match=r"2 groups of sources .*\(0, 6, 8; 2, 7\)"):
        fit(torch.cat([votes, votes[:, [0, 2, 0]]], 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(votes)
    rarer = torch.where(torch.arange(600) % 2 == 0, votes[:, 0], -1)  # agrees, but is no copy
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(torch.cat([votes, rarer[:, None]], 1))
        fit(torch.cat([rarer[:, None], votes], 1))
    silent = torch.full((600, 2), -1)  # equal, but constant: one warning is enough
    with pytest.warns(DataWarning) as caught:
        fit(torch.cat([votes, silent], 1))
    assert [str(w.message)[:12] for w in caught] == ["sources 6, 7"]


@pytest.mark.parametrize("model", [Triplets, MeTaL])
def test_closed_forms_of_too_few_votes(model: Any) -> None:
    votes = planted(200, 3, [0.5, 0.5]).votes
    votes[:, 1] = 1
    with pytest.raises(W2SError, match="2 of 3 sources vary.*at least 3"):
        model(2).fit(votes)
    with pytest.raises(W2SError, match="every source abstains for every row"):
        model(2).fit([[-1] * 4] * 3)


@pytest.mark.parametrize("cached", [True, False])
def test_sparse_products_equal_dense_ones(cached: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ref, "BLOCK_CELLS", 100)  # 20 rows a block, the last one shorter
    monkeypatch.setattr(ref, "CACHED_VOTES", 10**6 if cached else 0)
    votes = planted(70, 5, [0.5, 0.3, 0.2]).votes
    dense = torch.stack([votes == c for c in range(3)], 1).double()  # (n, K, m)
    x = ref.OneHotVotes(votes, 3)
    table, weights = torch.randn(3, 5, 4).double(), torch.randn(70, 2).double()
    torch.testing.assert_close(x.times(table), torch.einsum("nkm,kmc->nc", dense, table))
    expected = torch.einsum("nkm,nc->kmc", dense, weights)
    torch.testing.assert_close(x.transposed_times(weights), expected)


def test_sparse_products_of_many_classes() -> None:
    """36,000 columns: more than 16 bits can number."""
    g = torch.Generator().manual_seed(0)
    votes = check_votes(torch.randint(-1, 300, (40, 120), generator=g), 300)
    x, weights = ref.OneHotVotes(votes, 300), torch.rand(40, 2, generator=g).double()
    dense = torch.stack([votes == c for c in range(300)], 1).double()
    expected = torch.einsum("nkm,nc->kmc", dense, weights)
    torch.testing.assert_close(x.transposed_times(weights), expected)


def test_lists_of_numbers_keep_their_digits() -> None:
    """Python's floats are fp64; torch would make them fp32."""
    prior, rates = [0.6, 0.4], [[[0.7, 0.1, 0.2], [0.3, 0.6, 0.1]]] * 3
    votes = [[0, 1, -1], [1, 1, 0]]
    exact = posterior(votes, np.array(prior), np.array(rates))
    torch.testing.assert_close(posterior(votes, prior, rates), exact, rtol=1e-14, atol=0)
