"""Forests of dependent sources: their roots and parents, and the joint of any two sources.

In a forest P(L_i, L_j | Y = c) is P(L_i | c) times the product of transitions along the path from i
to j, and the product of both marginals where there is no path.
"""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from w2s_fast.errors import W2SError


def parents_of(pairs: tuple[tuple[int, int], ...], n_sources: int) -> list[int]:
    """Return the parent of every source in a forest, -1 for roots.

    Raises:
        W2SError: The pairs have a cycle.
    """
    neighbours: list[list[int]] = [[] for _ in range(n_sources)]
    for i, j in pairs:
        neighbours[i].append(j)
        neighbours[j].append(i)
    parents: list[int | None] = [None] * n_sources
    for root in range(n_sources):
        if parents[root] is not None:
            continue
        parents[root], queue = -1, deque([root])
        while queue:
            at = queue.popleft()
            for other in neighbours[at]:
                if parents[other] is None:
                    parents[other] = at
                    queue.append(other)
                elif other != parents[at]:
                    raise W2SError(
                        f"dependencies {list(pairs)} have a cycle through source {other}; expected "
                        "a forest: leave out one of its pairs"
                    )
    return [-1 if p is None else p for p in parents]


def forest_joint(
    prior: Tensor, rates: Tensor, parents: list[int], conditionals: dict[int, Tensor]
) -> Tensor:
    """Return P(Y = c, L_i = a, L_j = b) at [c, i, a, j, b], (K, m, K+1, m, K+1).

    Args:
        prior: (K,) class probabilities.
        rates: (m, K, K+1) of the roots; those of other sources follow from the conditionals.
        parents: of every source, -1 for roots.
        conditionals: source -> (K, K+1, K+1) P(L_j = a | L_parent = b, Y = c) at [c, b, a].
    """
    steps, marginals = _transitions(rates, parents, conditionals)
    stacked = torch.stack(marginals, 1)  # (K, m, K+1)
    joint = torch.einsum("c,cia,cjb->ciajb", prior, stacked, stacked)
    for i in range(len(parents)):
        paths = {i: torch.diag_embed(prior[:, None] * marginals[i])}  # (K, L_i, L_j)
        queue = deque([i])
        while queue:
            at = queue.popleft()
            for other, step in steps[at].items():
                if other not in paths:
                    paths[other] = joint[:, i, :, other, :] = paths[at] @ step
                    queue.append(other)
    return joint


def _transitions(
    rates: Tensor, parents: list[int], conditionals: dict[int, Tensor]
) -> tuple[list[dict[int, Tensor]], list[Tensor]]:
    """Return P(neighbour | source, class) of every source and its neighbours, and marginals."""
    marginals: dict[int, Tensor] = {j: rates[j] for j, p in enumerate(parents) if p < 0}
    steps: list[dict[int, Tensor]] = [{} for _ in parents]
    waiting = deque(conditionals)
    while waiting:
        j = waiting.popleft()
        p = parents[j]
        if p not in marginals:
            waiting.append(j)
            continue
        pair = marginals[p][:, :, None] * conditionals[j]  # (K, L_p, L_j)
        marginals[j] = pair.sum(1)
        steps[p][j] = conditionals[j]
        steps[j][p] = (pair / marginals[j][:, None].clamp(min=1e-300)).transpose(1, 2)
    return steps, [marginals[j] for j in range(len(parents))]
