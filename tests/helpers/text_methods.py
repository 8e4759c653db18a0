"""Methods of generation tasks, small enough for runs of seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from w2s_fast.methods import Method, Node, PairLabels, Plan, Prompts, Samples, TextLabels, number


@dataclass(frozen=True, kw_only=True)
class Twice(Method):
    """Learn the weak completion and one of the untrained student after examples."""

    kinds = ("generation",)
    shots: int = number(2, 0)

    def labels(self, plan: Plan, labels: Node) -> Node:
        return plan.apply_texts(self.both, weak=labels, own=plan.samples(shots=self.shots))

    def both(self, prompts: Prompts, weak: Samples, own: Samples, seed: int) -> TextLabels:
        """Return two rows an item, without those that are blank."""
        rows = [(i, t) for i, texts in enumerate(zip(weak, own, strict=True)) for [t] in texts]
        kept = [(i, text) for i, text in rows if text.strip()]
        blank = [prompts.ids[i] for i, text in rows if not text.strip()]
        items, texts = zip(*kept, strict=True)
        report = {"kept": len(kept), "blank": blank}
        return TextLabels(rows=np.array(items), texts=texts, report=report)


@dataclass(frozen=True, kw_only=True)
class Contrast(Method):
    """Prefer the weak completion to a sample of the student that has learned it."""

    kinds = ("generation",)
    loss: str = "dpo"
    n: int = number(3, 1)

    def labels(self, plan: Plan, labels: Node) -> Node:
        samples = plan.samples(plan.student(labels), n=self.n, temperature=1.0)
        return plan.apply_texts(self.pairs, pairs=True, weak=labels, samples=samples)

    def initial(self, plan: Plan, labels: Node) -> Node:
        return plan.student(labels)

    def training(self, plan: Plan) -> Mapping[str, Any]:
        return {"loss": self.loss}

    def pairs(self, prompts: Prompts, weak: Samples, samples: Samples, seed: int) -> PairLabels:
        """Return a pair for every item with a sample that is another text."""
        rows, chosen, rejected, same = [], [], [], []
        for i, ([text], drawn) in enumerate(zip(weak, samples, strict=True)):
            other = next((s for s in drawn if s.strip() and s != text), None)
            if other is None or not text.strip():
                same.append(prompts.ids[i])
                continue
            rows.append(i)
            chosen.append(text)
            rejected.append(other)
        q = np.full(len(rows), 0.9)
        report = {"pairs": len(rows), "same": same}
        return PairLabels(rows=np.array(rows), chosen=chosen, rejected=rejected, q=q, report=report)
