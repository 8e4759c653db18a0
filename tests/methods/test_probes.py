"""Probes on hidden states: neighbours, regressions and components with answers known by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from w2s_fast import neighbors
from w2s_fast.errors import W2SError
from w2s_fast.methods import Targets, make_method
from w2s_fast.methods._logreg import fit, out_of_fold
from w2s_fast.methods._topo import supported
from w2s_fast.methods.probes import PROBES, ProbeFilter, ProbeRelabel
from w2s_fast.neighbors import nearest


def _targets(one: list[float] | np.ndarray, weight: list[float] | None = None) -> Targets:
    p = np.asarray(one, dtype=np.float32)
    rows = None if weight is None else np.asarray(weight, dtype=np.float32)
    return Targets(np.stack([1 - p, p], 1), rows)


# Five points on a line.
LINE = np.array([[0.0], [1.0], [3.0], [7.0], [12.0]], dtype=np.float32)


def test_neighbours_of_points_on_a_line() -> None:
    x = torch.from_numpy(LINE)
    assert nearest(x, 2, torch.arange(5)).tolist() == [[1, 2], [0, 2], [1, 0], [2, 4], [3, 2]]
    # Rows outside the pool have neighbours too; a row of the pool is never its own.
    assert nearest(x, 2, torch.tensor([0, 4])).tolist() == [[4], [0], [0], [4], [0]]
    with pytest.raises(W2SError, match="1 rows are left to look for neighbors in"):
        nearest(x, 2, torch.tensor([3]))


def test_blocks_change_no_neighbour(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(97, 6, generator=torch.Generator().manual_seed(0))
    pool = torch.arange(0, 97, 2)
    whole = nearest(x, 5, pool)
    monkeypatch.setattr(neighbors, "_BLOCK", 3 * len(pool))
    assert torch.equal(nearest(x, 5, pool), whole)
    distance = (x.unsqueeze(1) - x[pool]).square().sum(2)
    distance[pool, torch.arange(len(pool))] = torch.inf
    assert torch.equal(pool[distance.argsort(1)[:, :5]], whole)


def test_knn_relabels_by_the_others() -> None:
    weak = _targets([0.9, 0.1, 0.3, 0.7, 0.5])
    out = ProbeRelabel(probe="knn", k=2).relabel(weak, LINE, seed=0)
    assert out.probs[:, 1] == pytest.approx([0.2, 0.6, 0.5, 0.4, 0.5])
    # A row of weight 0 is judged, but no neighbour, and its weight stays.
    weak = _targets([0.9, 0.1, 0.3, 0.7, 0.5], [1, 0, 2, 1, 1])
    out = ProbeRelabel(probe="knn", k=1).relabel(weak, LINE, seed=0)
    assert out.probs[:, 1] == pytest.approx([0.3, 0.9, 0.9, 0.3, 0.7])
    assert out.weight is not None and out.weight.tolist() == [1, 0, 2, 1, 1]


def test_the_filter_counts_exactly_and_breaks_ties_by_row() -> None:
    features = np.repeat(LINE, 4, axis=0)[:18] + np.linspace(0, 0.1, 18, dtype=np.float32)[:, None]
    one = np.zeros(18)
    one[[2, 7]] = 1.0  # among neighbours of class 0
    for share, gone in ((0.1, [2, 7]), (0.0, [])):
        out = ProbeFilter(contamination=share, k=3).filtered(_targets(one), features, seed=0)
        assert (~out.used).nonzero()[0].tolist() == gone
    same = _targets(np.zeros(18))
    out = ProbeFilter(contamination=0.25, k=3).filtered(same, features, seed=0)
    assert (~out.used).nonzero()[0].tolist() == [0, 1, 2, 3]  # round(4.5) is 4
    # What was out before neither counts nor comes back.
    before = _targets(np.zeros(18), [0, 1, 0] + [1] * 15)
    out = ProbeFilter(contamination=0.2, k=3).filtered(before, features, seed=0)
    assert (~out.used).nonzero()[0].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("classes", [2, 4])
def test_logreg_is_the_minimum_of_its_formula(classes: int) -> None:
    g = torch.Generator().manual_seed(classes)
    x = torch.randn(40, 3, generator=g, dtype=torch.float64)
    q = (2 * torch.randn(40, classes, generator=g, dtype=torch.float64)).softmax(1)
    weights, bias = fit(x, q, 1e-2)
    slope = x.T @ ((x @ weights + bias).softmax(1) - q) / 40
    if classes == 2:  # of one logit's weights w = w_1 - w_0, with penalty l2 |w|^2
        w = weights[:, 1] - weights[:, 0]
        assert (slope[:, 1] + 2 * 1e-2 * w).abs().max() < 1e-5
    else:
        assert (slope + 2 * 1e-2 * weights).abs().max() < 1e-5
    assert ((x @ weights + bias).softmax(1) - q).mean(0).abs().max() < 1e-5  # the bias is free


def test_logreg_judges_no_row_by_its_own_label() -> None:
    """Changing a label changes the predictions of other folds only."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(30, 2, generator=g, dtype=torch.float64)
    q = torch.rand(30, 1, generator=g, dtype=torch.float64)
    q = torch.cat([1 - q, q], 1)
    pool = torch.arange(28)  # two rows are judged only
    before = out_of_fold(x, q, pool, l2=1e-2, folds=4, seed=3)
    q[11] = 1 - q[11]
    moved = (out_of_fold(x, q, pool, l2=1e-2, folds=4, seed=3) - before).abs().sum(1) > 1e-6
    assert not moved[11] and 21 <= moved.sum() <= 23  # three folds of seven, and up to both others
    before = out_of_fold(x, q, pool, l2=1e-2, folds=4, seed=3)
    q[29] = 1 - q[29]  # a label outside the pool changes nothing
    assert torch.equal(out_of_fold(x, q, pool, l2=1e-2, folds=4, seed=3), before)
    again = out_of_fold(x, q, pool, l2=1e-2, folds=28, seed=3)
    alone, b = fit(*_scaled(x, q, pool, 5), 1e-2)
    z = (x[5] - x[pool].mean(0)) / x[pool].std(0, correction=0)
    assert again[5] == pytest.approx((z @ alone + b).softmax(0), abs=1e-6)


def _scaled(
    x: torch.Tensor, q: torch.Tensor, pool: torch.Tensor, left_out: int
) -> tuple[torch.Tensor, torch.Tensor]:
    rows = pool[pool != left_out]
    return (x[rows] - x[pool].mean(0)) / x[pool].std(0, correction=0), q[rows]


def test_topo_keeps_the_largest_component_that_points_back() -> None:
    """Two blobs on a line, a small second blob of class 1, and a stray one in class 0."""
    one = [0.0, 0.1, 0.2, 0.3, 0.4]  # class 0
    two = [5.0, 5.1, 5.2, 5.3, 5.4]  # class 1
    far = [9.0, 9.1]  # class 1, points only at itself
    stray = [0.25]  # class 1 in the middle of class 0
    x = torch.tensor([*one, *two, *far, *stray]).unsqueeze(1)
    hard = torch.tensor([0] * 5 + [1] * 8)
    probs = torch.nn.functional.one_hot(hard, 2).float()
    rows = supported(x, probs, torch.arange(13), k=3, contamination=0.0)
    assert rows.tolist() == list(range(10))
    # The second step drops, of what is left, the rows farthest from their neighbours' mean label.
    soft = probs.clone()
    soft[3] = torch.tensor([0.6, 0.4])
    rows = supported(x, soft, torch.arange(13), k=3, contamination=4 / 13)
    assert rows.tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    rows = supported(x, soft, torch.arange(13), k=3, contamination=3 / 13)
    assert rows.tolist() == list(range(10))
    out = ProbeRelabel(probe="topo", k=3, contamination=0.0).relabel(
        Targets(probs.numpy()), x.numpy(), seed=0
    )
    assert out.probs[12].tolist() == [1, 0] and out.probs[10].tolist() == [0, 1]


def test_strongly_connected_is_more_than_connected() -> None:
    """Row 3 points at the triangle 0 1 2 and nothing points back: it is out."""
    x = torch.tensor([[0.0], [0.1], [0.05], [3.0]])
    probs = torch.tensor([[1.0, 0.0]]).expand(4, 2)
    assert supported(x, probs, torch.arange(4), k=2, contamination=0.0).tolist() == [0, 1, 2]


@pytest.mark.parametrize("probe", PROBES)
def test_probes_find_flipped_labels(probe: str) -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 300)
    features = (6 * np.eye(8)[truth] + rng.normal(size=(300, 8))).astype(np.float32)
    hard = np.where(rng.random(300) < 0.2, (truth + 1) % 3, truth)
    weak = Targets(np.eye(3, dtype=np.float32)[hard])
    wrong = (hard != truth).mean()
    method = make_method(f"probe_relabel:probe={probe},k=15,contamination={wrong}")
    assert isinstance(method, ProbeRelabel)
    out = method.relabel(weak, features, seed=0)
    assert (out.probs.argmax(1) == truth).mean() > 0.93 and np.allclose(out.probs.sum(1), 1)
    drop = ProbeFilter(probe=probe, k=15, contamination=wrong).filtered(weak, features, seed=0)
    assert (~drop.used).sum() == round(wrong * 300)
    assert (hard == truth)[drop.used].mean() > 0.95
