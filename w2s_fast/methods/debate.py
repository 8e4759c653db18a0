"""The supervisor labels with the strong model's arguments before it; the student never sees them.

Source: Lang, Huang & Li 2025 (arXiv 2501.13124): the strong model, untrained, argues about every
text of both halves; weak models learn the true labels of their half with the transcript behind each
text, and label the transfer set so; the student learns the mean of their labels from the texts
alone. Four members; more turns than three, or more members, did not help there. The floor remains
the weak model without transcripts. Consultancy and market-making are the baselines of the paper.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from w2s_fast.methods._base import Method, Targets
from w2s_fast.methods._plan import Node, Plan
from w2s_fast.methods._pool import POOLS, pool

ENSEMBLES = ("debate", "finetune")


@dataclass(frozen=True, kw_only=True)
class Consultancy(Method):
    """One copy of the strong model argues a class drawn at random.

    Attributes:
        members: weak models whose labels are pooled.
        ensemble: what members differ in: "debate", the transcripts they read, each a sample of its
            own; "finetune", their seeds, all with one transcript.
        pool: "mean" of the probabilities, or "log": their normalised geometric mean.
    """

    kinds = (
        "classification",
    )  # two dialogues are scored one at a time: none of them is "the first"
    judged: ClassVar[bool] = False
    members: int = 1
    ensemble: str = "debate"
    pool: str = "mean"

    def __post_init__(self) -> None:
        self._check("members", 1)
        self._one_of("ensemble", ENSEMBLES)
        self._one_of("pool", POOLS)

    @property
    def protocol(self) -> str:
        """A spec of ``debate.PROTOCOLS``."""
        return "consultancy"

    def labels(self, plan: Plan, labels: Node) -> Node:
        """See ``Method.labels``."""
        members = {f"member{i}": self._member(plan, i) for i in range(self.members)}
        return plan.apply(self.pooled, weak=labels, **members)

    def _member(self, plan: Plan, number: int) -> Node:
        """Labels of a weak model that reads transcripts, in its training and now."""
        sample, start = (number, 0) if self.ensemble == "debate" else (0, number)
        learned, read = (
            plan.transcripts(self.protocol, split, sample, self.judged)
            for split in ("weak", "transfer")
        )
        return plan.labels(plan.weak_model(start, learned), "transfer", read)

    def pooled(self, weak: Targets, seed: int, **members: Targets) -> Targets:
        """Pooled probabilities; of the labels that came in only the row weights stay."""
        return replace(weak, probs=pool([m.probs for m in members.values()], self.pool))


@dataclass(frozen=True, kw_only=True)
class MarketMaking(Consultancy):
    """One copy argues the class that the weak model did not pick; of several, its second choice."""

    judged = True

    @property
    def protocol(self) -> str:
        """See ``Consultancy.protocol``."""
        return "market_making"


@dataclass(frozen=True, kw_only=True)
class Debate(Consultancy):
    """Two copies argue two different classes, drawn at random.

    Attributes:
        members, ensemble, pool: as ``Consultancy``.
        turns: of both together.
    """

    members: int = 4
    turns: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("turns", 2)

    @property
    def protocol(self) -> str:
        """See ``Consultancy.protocol``."""
        return f"debate:turns={self.turns}"
