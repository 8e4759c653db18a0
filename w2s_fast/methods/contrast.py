"""Stage II of weak-to-strong reasoning: prefer solutions that a majority of samples supports.

A student of the labels so far, M+, draws k samples of every prompt. Where enough of them share an
answer, a weak solution with this answer is preferred to a sample with another one; where more of
them do, and the weak solution has another answer, a sample of the majority is preferred to it
(`w2s_fast.reasoning.contrastive_pairs`). The student continues from M+, which is the reference too,
and learns these pairs by DPO or ORPO.

Source: Yang, Ma and Liu 2024 (arXiv 2407.13647), section 3.3, where M+ is the student of
"agreement_sft:sets=hybrid,iterations=2".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from w2s_fast.errors import W2SError
from w2s_fast.methods._base import Method, choice, number
from w2s_fast.methods._node import Node
from w2s_fast.methods._plan import Plan
from w2s_fast.methods._texts import PairLabels, Prompts, Samples
from w2s_fast.reasoning.equality import RULES, check_rule
from w2s_fast.reasoning.pairs import contrastive_pairs
from w2s_fast.reasoning.reading import READERS_BY_NAME

_STRENGTHS = {"dpo": "beta", "orpo": "lam"}  # field of each loss


@dataclass(frozen=True, kw_only=True)
class Contrast(Method):
    """Continue a student on pairs of a weak solution and one of its own samples.

    Attributes:
        n: samples of every prompt, at least 2.
        temperature: of the samples.
        confidence: smallest share of the samples that a majority needs.
        override_confidence: smallest share that overrules the weak answer.
        loss: "dpo" or "orpo".
        strength: beta of DPO, or lam of ORPO.
        lr_factor: learning rate of the pairs, as a factor of that of ``student_train``.
        rule, read: as in ``agreement_sft``.
    """

    kinds = ("generation",)
    n: int = number(10, 2)
    temperature: float = number(1.0, 0.01)
    confidence: float = number(0.6, 0.01, 1.0)
    override_confidence: float = number(0.8, 0.01, 1.0)
    loss: str = choice("dpo", tuple(_STRENGTHS))
    strength: float = number(0.1, 1e-4)
    lr_factor: float = number(0.1, 1e-6)
    rule: str = choice("math", tuple(RULES))
    read: str = choice("marked", tuple(READERS_BY_NAME))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.override_confidence < self.confidence:
            raise W2SError(
                f"Contrast: override_confidence is {self.override_confidence}, below "
                f"confidence={self.confidence}; expected at least as much"
            )

    def check_task(self, n_classes: int, n_rows: int) -> None:
        check_rule(self.rule)

    def initial(self, plan: Plan, labels: Node) -> Node:
        return plan.student(labels)

    def labels(self, plan: Plan, labels: Node) -> Node:
        samples = plan.samples(plan.student(labels), n=self.n, temperature=self.temperature)
        return plan.apply_texts(self.pairs, pairs=True, weak=plan.weak_labels(), samples=samples)

    def training(self, plan: Plan) -> Mapping[str, Any]:
        loss = f"{self.loss}:{_STRENGTHS[self.loss]}={self.strength:g}"
        return {"loss": loss, "lr_factor": self.lr_factor}

    def pairs(self, prompts: Prompts, weak: Samples, samples: Samples, seed: int) -> PairLabels:
        """Return at most one pair an item, one side of which is the weak solution."""
        pairs = contrastive_pairs(
            prompts.ids,
            prompts.texts,
            [own[0] for own in weak],
            samples,
            seed=seed,
            confidence=self.confidence,
            override_confidence=self.override_confidence,
            read=self.read,
            rule=self.rule,
        )
        return PairLabels(
            rows=prompts.rows_of(row["id"] for row in pairs.rows),
            chosen=[row["chosen"] for row in pairs.rows],
            rejected=[row["rejected"] for row in pairs.rows],
            report=asdict(pairs.report),
        )
