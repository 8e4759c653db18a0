"""Compare Dawid-Skene with crowd-kit's, an implementation of the same equations on data frames."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from bench.label_models.resources import simulated_votes
from w2s_fast.label_models import DawidSkene

N, M, K = 400, 6, 3


def agreement() -> Iterator[dict[str, Any]]:
    """Yield the largest difference between the posteriors; nothing without crowd-kit."""
    if not importlib.util.find_spec("crowdkit"):
        return
    votes, _ = simulated_votes(N, M, K, 0.7)
    votes = votes[(votes >= 0).any(1)]  # crowd-kit's data frame has no rows without votes
    model = DawidSkene(K, abstain="missing", smoothing=1e-9, tolerance=1e-12).fit(votes)
    difference = float((model.posterior(votes) - _crowd_kit(votes)).abs().max())
    yield {
        "provider": "crowd-kit", "n": len(votes), "m": M, "k": K,
        "largest_difference": float(f"{difference:.1e}"),
    }  # fmt: skip


def _crowd_kit(votes: Tensor) -> Tensor:
    """Return the posteriors (n, K) of crowd-kit."""
    import pandas as pd
    from crowdkit.aggregation import DawidSkene as CrowdKit

    rows, sources = (votes >= 0).nonzero(as_tuple=True)
    columns = {"task": rows, "worker": sources, "label": votes[rows, sources]}
    frame = pd.DataFrame({name: column.numpy() for name, column in columns.items()})
    fitted = CrowdKit(n_iter=10_000, tol=1e-13).fit(frame)
    return torch.tensor(fitted.probas_.reindex(range(len(votes)))[list(range(K))].to_numpy().copy())
