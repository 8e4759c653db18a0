r"""Label rows by affinity coding: cluster similarities, and name the clusters by a few labels.

    A_v[i, j] = cosine of rows i and j of view v                      affinity matrix of a view
    r_v       = mixture of K diagonal Gaussians of the rows of A_v    (n, K) responsibilities
    r         = mixture of K Bernoulli components of the one-hot argmax of r_1 .. r_V
    class of a cluster: the one-to-one assignment with the most labeled rows right

The few labels name the clusters and decide nothing else. A row of A_v is a row's similarity to all
others; here to at most ``max_anchors`` of them, drawn at random. With more clusters than classes,

    P(c | row i) = sum_k r_ik (sum_j r_jk 1[y_j = c] + pi_c) / (sum_j r_jk + 1),     j labeled,

pi_c the share of class c among the labels: for classes that are no single cluster.

Source: Das et al. 2020, "GOGGLES: automatic image labeling with affinity coding" (arXiv
1903.04552), where views are the layers of a network.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.label_models._options import check_number
from w2s_fast.label_models.votes import as_cpu_tensor
from w2s_fast.labeling.mixture import bernoulli_mixture, gaussian_mixture
from w2s_fast.labeling.rows import check_features, check_labels


def affinity_labels(
    features: Any,
    labeled_rows: Any,
    labels: Any,
    n_classes: int,
    *,
    n_clusters: int | None = None,
    max_anchors: int = 500,
    seed: int = 0,
) -> Tensor:
    """Return class probabilities (n, K) float64 of all rows.

    Args:
        features: (n, D), or a list or tuple of arrays (n, D_v), one a view, such as the layers of
            a model.
        labeled_rows: (r,) positions of rows with a label.
        labels: (r,) integers, at least one of every class.
        n_classes: K.
        n_clusters: Number of clusters; None is K, one a class.
        max_anchors: Most rows whose similarity is taken.
        seed: Seed of anchors and of the starts of EM.

    Raises:
        W2SError: Features, rows or labels are wrong.
    """
    views = [check_features(view).double() for view in _views(features)]
    n = len(views[0])
    for number, view in enumerate(views):
        if len(view) != n:
            raise W2SError(f"view {number} has {len(view)} rows and view 0 has {n}; expected equal")
    known = _check_rows(labeled_rows, n)
    y = check_labels(labels, len(known), n_classes, min_rows=1)
    k = n_classes if n_clusters is None else n_clusters
    check_number("n_clusters", k, n_classes, n)
    check_number("max_anchors", max_anchors, n_classes)
    generator = torch.Generator().manual_seed(seed)
    anchors = torch.randperm(n, generator=generator)[:max_anchors]
    clusters = [_cluster(view, anchors, k, seed + v) for v, view in enumerate(views)]
    probs = clusters[0]
    if len(clusters) > 1:
        chosen = [torch.nn.functional.one_hot(r.argmax(1), k) for r in clusters]
        probs = bernoulli_mixture(torch.cat(chosen, 1).double(), k, seed)
    one_hot = torch.nn.functional.one_hot(y, n_classes).double()
    if k == n_classes:
        return probs[:, _clusters_of_classes(probs[known], one_hot)]
    counts = probs[known].T @ one_hot + one_hot.mean(0)  # (k, K), with one pseudo-row a cluster
    return probs @ (counts / counts.sum(1, keepdim=True))


def _views(features: Any) -> list[Any]:
    """Return the views; nested lists of numbers are one view."""
    several = isinstance(features, list | tuple) and len(features) > 0
    if several and all(len(getattr(view, "shape", ())) == 2 for view in features):
        return list(features)
    return [features]


def _check_rows(rows: Any, n: int) -> Tensor:
    index = as_cpu_tensor(rows, "labeled_rows cannot be read as integers (r,)")
    if index.ndim != 1 or index.dtype == torch.bool or index.is_floating_point():
        raise W2SError(
            f"labeled_rows have dtype {index.dtype} and shape {tuple(index.shape)}; expected "
            "positions of rows, (r,) integers"
        )
    index = index.long()
    wrong = (index < 0) | (index >= n)
    if bool(wrong.any()):
        raise W2SError(f"labeled_rows have {int(index[wrong][0])}; expected 0 to {n - 1}")
    if len(index.unique()) != len(index):
        raise W2SError("labeled_rows name a row twice; expected different rows")
    return index


def _cluster(x: Tensor, anchors: Tensor, n_clusters: int, seed: int) -> Tensor:
    unit = torch.nn.functional.normalize(x - x.mean(0), dim=1)
    return gaussian_mixture(unit @ unit[anchors].T, n_clusters, seed)


def _clusters_of_classes(probs: Tensor, one_hot: Tensor) -> Tensor:
    """Return the cluster of each class (K,), so that the most labeled rows are right."""
    from scipy.optimize import linear_sum_assignment

    _, cluster = linear_sum_assignment((one_hot.T @ probs).numpy(), maximize=True)
    return torch.from_numpy(cluster)
