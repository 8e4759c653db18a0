r"""Completions that the weak model prefers more after its training than before it.

    y+ ~ softmax((1 + a) z_w - a z_w0)     tokens with p_w >= plausible max p_w alone
    sft      the student learns y+
    pairs    it continues from there, and prefers y+ to y_w0 by a preference loss

z_w are the logits of the weak model and z_w0 those before its training; what its training has
changed is extrapolated by a, and its other habits are not. y_w0 is what the untrained weak model
writes.

Source: Jiang et al. 2025, ConG (arXiv 2510.07884), contrastive decoding between a weak model before
and after its alignment, then finetuning (ConG-S) and DPO. There the weak model is aligned by
preferences; here its training is that of the run, so it learns true answers. That the rejected text
is the untrained model's is this package's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from w2s_fast.methods._base import Method, choice, number, preference_loss
from w2s_fast.methods._node import Node
from w2s_fast.methods._plan import Plan
from w2s_fast.methods._texts import PairLabels, Prompts, Samples, TextLabels


@dataclass(frozen=True, kw_only=True)
class ConG(Method):
    """Learn texts of the weak model, contrasted with itself before its training.

    The input labels are replaced.

    Attributes:
        strength: a, at least 0; 0 are the weak model's own texts.
        plausible: share of the largest probability that a token needs, in [0, 1].
        train: "pairs", or "sft" to finetune on the contrasted texts alone.
        loss: preference loss of the pairs, with at most one setting.
        lr_factor: learning rate of the pairs, as a factor of that of ``student_train``.
    """

    kinds = ("generation",)
    strength: float = number(0.4, 0.0)
    plausible: float = number(0.1, 0.0, 1.0)
    train: str = choice("pairs", ("pairs", "sft"))
    loss: str = preference_loss("dpo:beta=0.1")
    lr_factor: float = number(0.1, 1e-6)

    def labels(self, plan: Plan, labels: Node) -> Node:
        if self.train == "sft":
            return self._texts(plan)
        before = plan.samples(role="weak")
        # Functions read no field: labels of equal texts are made once.
        return plan.apply_texts(
            ConG().pairs, pairs=True, contrasted=self._contrasted(plan), before=before
        )

    def initial(self, plan: Plan, labels: Node) -> Node | None:
        return plan.student(self._texts(plan)) if self.train == "pairs" else None

    def training(self, plan: Plan) -> Mapping[str, Any]:
        return {"loss": self.loss, "lr_factor": self.lr_factor} if self.train == "pairs" else {}

    def _texts(self, plan: Plan) -> Node:
        return plan.apply_texts(ConG().answers, contrasted=self._contrasted(plan))

    def _contrasted(self, plan: Plan) -> Node:
        return plan.samples(plan.weak_model(), contrast=self.strength, plausible=self.plausible)

    def answers(self, prompts: Prompts, contrasted: Samples, seed: int) -> TextLabels:
        """Return the contrasted text of every item that is not blank."""
        rows = [i for i, (text,) in enumerate(contrasted) if text.strip()]
        blank = [item for item, (text,) in zip(prompts.ids, contrasted, strict=True)
                 if not text.strip()]  # fmt: skip
        return TextLabels(
            rows=prompts.rows_of(prompts.ids[i] for i in rows),
            texts=[contrasted[i][0] for i in rows],
            report={"blank": blank},
        )

    def pairs(
        self, prompts: Prompts, contrasted: Samples, before: Samples, seed: int
    ) -> PairLabels:
        """Return at most one pair an item, and what became of every item."""
        from w2s_fast.preference_pairs import delta_pairs

        sides = ([text for (text,) in texts] for texts in (contrasted, before))
        found = delta_pairs(prompts.ids, prompts.texts, *sides)
        report = {name: list(ids) for name, ids in vars(found.report).items()}
        return PairLabels(
            rows=prompts.rows_of(row["id"] for row in found.rows),
            chosen=[row["chosen"] for row in found.rows],
            rejected=[row["rejected"] for row in found.rows],
            report={**report, "paired": len(found.rows)},
        )
