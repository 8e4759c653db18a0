"""Pool the labels of several sources: weak model, untrained student, other methods.

If sources err on different rows, their pool errs less than each of them. ``posterior`` estimates
how often each is right; here the weights are fixed. Stacking (Wolpert 1992) would learn them from
true labels of the transfer set, which are not available.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import numpy as np

from w2s_fast.errors import W2SError
from w2s_fast.methods._balance import balance_of, matched
from w2s_fast.methods._base import Method, Targets, choice, make_method
from w2s_fast.methods._node import Node
from w2s_fast.methods._plan import Plan
from w2s_fast.methods._pool import POOLS, pool


@dataclass(frozen=True, kw_only=True)
class Combine(Method):
    """Pool named sources.

    Attributes:
        of: names joined by "+": ``weak``, the input labels; ``prior``, the untrained student's
            probabilities, shifted to the class balance of the weak labels; or a method with its
            default settings, applied to the input labels.
        weights: one number per source, joined by "+", such as "2+1"; empty: equal weights.
        pool: "mean" of the probabilities, or "log": their normalised geometric mean.
    """

    of: str = "weak+prior"
    weights: str = ""
    pool: str = choice("mean", POOLS)

    def __post_init__(self) -> None:
        super().__post_init__()
        names, weights = self.of.split("+"), self._weights()
        if weights and (len(weights) != len(names) or min(weights) < 0 or not sum(weights) > 0):
            raise W2SError(
                f"Combine: weights are {self.weights!r}; expected {len(names)} numbers joined by "
                f"'+', none negative and not all 0, one for each of {self.of}"
            )
        for name in names:
            if name not in ("weak", "prior"):
                _method(name)

    def labels(self, plan: Plan, labels: Node) -> Node:
        fixed = {"weak": labels, "prior": plan.prior()}
        nodes = [
            fixed[name] if name in fixed else _method(name).labels(plan, labels)
            for name in self.of.split("+")
        ]
        sources = {f"source{i}": node for i, node in enumerate(nodes)}
        return plan.apply(self.pooled, weak=labels, **sources)

    def pooled(self, weak: Targets, seed: int, **sources: Targets) -> Targets:
        """Return the pooled probabilities of the rows that every source uses.

        Row weights are those of the input labels.
        """
        every, used = [], np.ones(len(weak.probs), dtype=bool)
        for name, source in zip(self.of.split("+"), sources.values(), strict=True):
            probs = source.probs
            if name == "prior":
                probs = matched(probs, balance_of(weak.probs, weak.used), weak.used)
            every.append(probs)
            used &= source.used
        weak = replace(weak, probs=pool(every, self.pool, self._weights()))
        return weak if used.all() else weak.keep(used)

    def _weights(self) -> list[float]:
        try:
            return [float(w) for w in self.weights.split("+")] if self.weights else []
        except ValueError:
            raise W2SError(
                f"Combine: weights are {self.weights!r}; expected numbers joined by '+'"
            ) from None


@functools.cache
def _method(name: str) -> Method:
    return make_method(name)
