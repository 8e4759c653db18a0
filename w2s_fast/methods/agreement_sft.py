"""Stage I of weak-to-strong reasoning: learn the solutions on which weak and strong model agree.

    iteration 1: w from the weak model, c from the student after a few worked examples
    iteration k: w and c from the students of D_weak and D_in_context of iteration k - 1
    D_weak = {(x, w)}, D_in_context = {(x, c)}, D_hybrid = both; items with equal answers of w and c

All texts are greedy, and every iteration selects from all items. The worked examples are prompts of
the weak split with their true answers, which reports list.

Source: Yang, Ma and Liu 2024 (arXiv 2407.13647), section 3.2. Every student starts from the
pretrained weights.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from w2s_fast.errors import W2SError
from w2s_fast.methods._base import Method, choice, number
from w2s_fast.methods._node import Node
from w2s_fast.methods._plan import Plan
from w2s_fast.methods._texts import Prompts, Samples, TextLabels
from w2s_fast.reasoning.agreement import AgreeingSets, select_agreeing
from w2s_fast.reasoning.equality import RULES, check_rule
from w2s_fast.reasoning.reading import READERS_BY_NAME

SETS = ("weak", "in_context", "hybrid")


@dataclass(frozen=True, kw_only=True)
class AgreementSFT(Method):
    """Learn the solutions whose final answers weak and strong model share.

    Attributes:
        sets: whose solutions the student learns: "weak", "in_context" or "hybrid", both.
        iterations: selections in turn, 1 to 3.
        shots: worked examples in the prompts of the first in-context solutions.
        rule: how answers are compared: "math", "number" or "string".
        read: where a solution has its answer: "marked" (after "####"), "stated" ("The answer is:")
            or a reader of ``task.read``.
    """

    kinds = ("generation",)
    sets: str = choice("hybrid", SETS)
    iterations: int = number(1, 1, 3)
    shots: int = number(4, 1)
    rule: str = choice("math", tuple(RULES))
    read: str = choice("marked", tuple(READERS_BY_NAME))

    def check_task(self, n_classes: int, n_rows: int) -> None:
        check_rule(self.rule)

    def labels(self, plan: Plan, labels: Node) -> Node:
        if labels.stage != "labels":
            raise W2SError(
                "agreement_sft compares a text of the weak model for every item; put it before "
                "methods that select or pair texts"
            )
        # The sets of one iteration are the same for every choice of ``sets`` and ``iterations``.
        common = replace(self, sets="hybrid", iterations=1)
        weak, in_context = labels, plan.samples(shots=self.shots)
        for _ in range(self.iterations - 1):
            weak, in_context = (
                plan.samples(
                    plan.student(plan.apply_texts(select, weak=weak, in_context=in_context))
                )
                for select in (common.weak_set, common.in_context_set)
            )
        select = getattr(common, f"{self.sets}_set")
        return plan.apply_texts(select, weak=weak, in_context=in_context)

    def weak_set(
        self, prompts: Prompts, weak: Samples, in_context: Samples, seed: int
    ) -> TextLabels:
        """Return the weak solutions of the items that are kept."""
        return _labels("weak", prompts, self._selected(prompts, weak, in_context))

    def in_context_set(
        self, prompts: Prompts, weak: Samples, in_context: Samples, seed: int
    ) -> TextLabels:
        """Return the strong solutions of the items that are kept."""
        return _labels("in_context", prompts, self._selected(prompts, weak, in_context))

    def hybrid_set(
        self, prompts: Prompts, weak: Samples, in_context: Samples, seed: int
    ) -> TextLabels:
        """Return both solutions of the items that are kept: two rows an item."""
        return _labels("hybrid", prompts, self._selected(prompts, weak, in_context))

    def _selected(self, prompts: Prompts, weak: Samples, in_context: Samples) -> AgreeingSets:
        first, second = ([own[0] for own in texts] for texts in (weak, in_context))
        ids, texts = prompts.ids, prompts.texts
        return select_agreeing(ids, texts, first, second, read=self.read, rule=self.rule)


def _labels(name: str, prompts: Prompts, sets: AgreeingSets) -> TextLabels:
    chosen = getattr(sets, name)
    return TextLabels(
        rows=prompts.rows_of(row["id"] for row in chosen),
        texts=[row["answer"] for row in chosen],
        report={"set": name.replace("_", " "), **asdict(sets.report)},
    )
