"""Delta learning: prefer the texts of a weak generator to those of a weaker one.

Two generators of the run write a completion of every transfer prompt; that of the stronger one is
chosen, without a judge. By default they are the weak model and the same model trained on half of
the weak split. ``direction=reversed`` exchanges the sides and ``train=sft`` finetunes on the chosen
ones alone: the two controls of the paper.

Source: Geng et al. 2025 (arXiv 2507.06187). There, both generators are instruction-tuned models of
other sizes, and the student is a finetuned model that is better than both: ``base=naive`` starts
from the student of the weak labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from w2s_fast.errors import W2SError
from w2s_fast.methods._base import Method, choice, number, preference_loss
from w2s_fast.methods._node import Node
from w2s_fast.methods._plan import Plan
from w2s_fast.methods._texts import PairLabels, Prompts, Samples, TextLabels

GENERATORS = ("weak", "half", "intermediate", "student")


@dataclass(frozen=True, kw_only=True)
class Delta(Method):
    """Learn pairs of two generators by a preference loss.

    Attributes:
        chosen: Generator of the preferred texts: "weak" (the weak model), "half" (trained on half
            of the weak split), "intermediate" (the first of ``intermediate_models``, trained on
            the weak labels) or "student" (the untrained student).
        rejected: Generator of the other texts.
        shots: Prompts of the weak split with true answers before each prompt of "student".
        direction: "normal", or "reversed" to exchange the sides.
        train: "pairs", or "sft" to finetune on the chosen texts without a contrast.
        loss: Preference loss of the pairs, with at most one setting.
        base: What the student starts from: "pretrained", or "naive", the student of the weak
            labels.
    """

    kinds = ("generation",)

    chosen: str = choice("weak", GENERATORS)
    rejected: str = choice("half", GENERATORS)
    shots: int = number(0, 0)
    direction: str = choice("normal", ("normal", "reversed"))
    train: str = choice("pairs", ("pairs", "sft"))
    loss: str = preference_loss("dpo_norm:beta=5")
    base: str = choice("pretrained", ("pretrained", "naive"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chosen == self.rejected:
            raise W2SError(
                f"{type(self).__name__}: chosen and rejected are both {self.chosen!r}, whose texts "
                "are equal; expected two generators"
            )

    def labels(self, plan: Plan, labels: Node) -> Node:
        # The same labels for every loss and start, so that they are made once.
        maker = Delta(chosen=self.chosen, rejected=self.rejected, direction=self.direction)
        pairs = self.train == "pairs"
        function = maker.pairs if pairs else maker.answers
        stronger, weaker = (
            self._texts(plan, labels, name) for name in (self.chosen, self.rejected)
        )
        return plan.apply_texts(function, pairs=pairs, stronger=stronger, weaker=weaker)

    def initial(self, plan: Plan, labels: Node) -> Node | None:
        return plan.student(labels) if self.base == "naive" else None

    def training(self, plan: Plan) -> Mapping[str, Any]:
        return {"loss": self.loss} if self.train == "pairs" else {}

    def pairs(self, prompts: Prompts, stronger: Samples, weaker: Samples, seed: int) -> PairLabels:
        """Return at most one pair an item, and what became of every item."""
        rows, report = self._pair(prompts, stronger, weaker)
        return PairLabels(
            rows=prompts.rows_of(row["id"] for row in rows),
            chosen=[row["chosen"] for row in rows],
            rejected=[row["rejected"] for row in rows],
            report=report,
        )

    def answers(
        self, prompts: Prompts, stronger: Samples, weaker: Samples, seed: int
    ) -> TextLabels:
        """Return the chosen sides of the pairs."""
        rows, report = self._pair(prompts, stronger, weaker)
        return TextLabels(
            rows=prompts.rows_of(row["id"] for row in rows),
            texts=[row["chosen"] for row in rows],
            report=report,
        )

    def _texts(self, plan: Plan, labels: Node, generator: str) -> Node:
        if generator == "weak":
            return labels
        if generator == "half":
            return plan.samples(plan.weak_model(fold=0))
        if generator == "student":
            return plan.samples(shots=self.shots)
        if not plan.intermediate_models:
            raise W2SError(
                f"{type(self).__name__} takes texts of an intermediate model, and the run has "
                "none; set intermediate_models"
            )
        return plan.samples(plan.intermediate(0, labels))

    def _pair(self, prompts: Prompts, stronger: Samples, weaker: Samples) -> tuple[Any, Any]:
        from w2s_fast.preference_pairs import delta_pairs, reversed_pairs

        sides = ([text for (text,) in texts] for texts in (stronger, weaker))
        found = delta_pairs(prompts.ids, prompts.texts, *sides)
        rows = found.rows if self.direction == "normal" else reversed_pairs(found.rows)
        report = {name: list(ids) for name, ids in vars(found.report).items()}
        return rows, {**report, "paired": len(rows)}


@dataclass(frozen=True, kw_only=True)
class WSPO(Delta):
    """Learn how training has changed the weak model (arXiv 2410.18640), on the pairs of `Delta`.

    The target is the log-ratio of the weak model of the run to its untrained model. In the paper
    the weak model is aligned by a preference loss; here its training is that of the run.
    """

    loss: str = preference_loss("wspo")
