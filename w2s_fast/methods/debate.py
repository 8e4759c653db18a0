"""Weak labels from models that read the strong model's arguments; the student reads texts alone.

Source: Lang, Huang & Li 2025 (arXiv 2501.13124). The untrained strong model argues about every text
of the weak and transfer splits. Weak models learn the true labels of the weak split with the
transcript after each text, and label the transfer split in the same way; the student learns the
mean of their labels. The default is four members and three turns; more did not help there. The
floor remains the weak model without transcripts. Consultancy and market-making are the paper's
baselines.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from w2s_fast.methods._base import Method, Targets, choice, number
from w2s_fast.methods._node import Node
from w2s_fast.methods._plan import Plan
from w2s_fast.methods._pool import POOLS, pool

ENSEMBLES = ("debate", "finetune")


@dataclass(frozen=True, kw_only=True)
class Consultancy(Method):
    """One copy of the strong model argues for a class drawn at random.

    Attributes:
        members: number of weak models whose labels are pooled.
        ensemble: how members differ: "debate", each reads its own sample of the transcripts;
            "finetune", by their seeds, with the same transcripts.
        pool: "mean" of the probabilities, or "log": their normalised geometric mean.
    """

    # A preference model scores each dialogue alone, so it could not read an argument about both.
    kinds = ("classification",)
    judged: ClassVar[bool] = False
    members: int = number(1, 1)
    ensemble: str = choice("debate", ENSEMBLES)
    pool: str = choice("mean", POOLS)

    @property
    def protocol(self) -> str:
        """Spec of ``debate.PROTOCOLS``."""
        return "consultancy"

    def labels(self, plan: Plan, labels: Node) -> Node:
        members = {f"member{i}": self._member(plan, i) for i in range(self.members)}
        return plan.apply(self.pooled, weak=labels, **members)

    def _member(self, plan: Plan, number: int) -> Node:
        """Return the labels of a weak model that reads transcripts in training and prediction."""
        sample, start = (number, 0) if self.ensemble == "debate" else (0, number)
        weak_split, transfer = (
            plan.transcripts(self.protocol, split, sample, self.judged)
            for split in ("weak", "transfer")
        )
        return plan.labels(plan.weak_model(start, weak_split), "transfer", transfer)

    def pooled(self, weak: Targets, seed: int, **members: Targets) -> Targets:
        """Return the pooled probabilities, with the row weights of the input labels."""
        return replace(weak, probs=pool([m.probs for m in members.values()], self.pool))


@dataclass(frozen=True, kw_only=True)
class MarketMaking(Consultancy):
    """One copy argues for the class that the weak model ranks second."""

    judged = True

    @property
    def protocol(self) -> str:
        return "market_making"


@dataclass(frozen=True, kw_only=True)
class Debate(Consultancy):
    """Two copies argue for two different classes, drawn at random.

    Attributes:
        members, ensemble, pool: as ``Consultancy``.
        turns: number of turns of both together, at least 2.
    """

    members: int = number(4, 1)
    turns: int = number(3, 2)

    @property
    def protocol(self) -> str:
        return f"debate:turns={self.turns}"
