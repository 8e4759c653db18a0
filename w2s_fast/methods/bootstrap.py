"""Chains of models: each labels the transfer set for the next.

With other methods between them, every round can select or change its labels:
``small_loss|strong_to_strong|confident``. All students of a chain begin with pretrained weights,
and the part that two chains have in common is computed once.

Sources: Burns et al. 2023 (arXiv 2312.09390) §4.3.1, models of increasing size; EleutherAI/w2s
``strong_to_strong``, the same model repeatedly. The rule that stops is this package's own; the plan
is known before anything is computed, so the rounds after it are trained as well.
"""

from __future__ import annotations

from dataclasses import dataclass

from w2s_fast.errors import W2SError
from w2s_fast.methods._base import ANY_KIND, Method, Targets, choice, number
from w2s_fast.methods._node import Node
from w2s_fast.methods._plan import Plan
from w2s_fast.methods._rounds import round_agreement, settled_round

STOPS = ("never", "agreement")


@dataclass(frozen=True, kw_only=True)
class Bootstrap(Method):
    """Train every one of ``intermediate_models`` on the labels of the model before it."""

    kinds = ANY_KIND

    def labels(self, plan: Plan, labels: Node) -> Node:
        """Return the labels of the last intermediate model.

        Raises:
            W2SError: There are no intermediate models.
        """
        if not plan.intermediate_models:
            raise W2SError(
                "method 'bootstrap' needs models between weak and student: set "
                "intermediate_models, e.g. --intermediate_models path/to/medium"
            )
        for position in range(plan.intermediate_models):
            labels = plan.labels(plan.intermediate(position, labels))
        return labels


@dataclass(frozen=True, kw_only=True)
class StrongToStrong(Method):
    """Relabel the transfer set with the student and train again from the pretrained weights.

    Attributes:
        rounds: number of repetitions; 0 is the naive student.
        stop: "never", or "agreement": use the labels of the first round after which the agreement
            of successive rounds does not rise. Needs classes, and at least 2 rounds.
    """

    kinds = ANY_KIND
    rounds: int = number(1, 0)
    stop: str = choice("never", STOPS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stop != "never" and self.rounds < 2:
            raise W2SError(
                f"StrongToStrong: stop is {self.stop!r} with rounds={self.rounds}, which leaves "
                "nothing to choose; expected rounds of at least 2, or stop=never"
            )

    def check_task(self, n_classes: int, n_rows: int) -> None:
        if self.stop != "never" and not n_classes:
            raise W2SError(
                f"strong_to_strong: stop={self.stop!r} compares classes, and the labels of a "
                "generation task are texts; set stop=never"
            )

    def labels(self, plan: Plan, labels: Node) -> Node:
        """Return the labels of the last student but one, or of the round that settled."""
        rounds: dict[str, Node] = {}
        own = labels
        for r in range(1, self.rounds + 1):
            own = plan.labels(plan.student(own))
            rounds[f"round{r}"] = own
        return own if self.stop == "never" else plan.apply(self.settled, weak=labels, **rounds)

    def settled(self, weak: Targets, seed: int, **rounds: Targets) -> Targets:
        """Return the labels of the round after which agreement does not rise; all rows are used."""
        own = [rounds[f"round{r}"] for r in range(1, self.rounds + 1)]
        agreement = round_agreement([weak.probs, *(t.probs for t in own)], weak.used)
        return own[settled_round(agreement) - 1]
