r"""Pool the labels of several weak models with learned weights.

    q_i = sum_k w_k p_ki,     w learned together with a head on the student's hidden states

Equations and differences from the source: ``w2s_fast.trust.teachers``.

Source: Jeon, Sobotka, Choi & Brbic 2025, RAVEN (arXiv 2510.21332).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from w2s_fast.methods._base import Method, Targets, layer_field, number
from w2s_fast.methods._node import Node
from w2s_fast.methods._plan import Plan
from w2s_fast.methods._rows import member_labels
from w2s_fast.trust import teacher_weights


@dataclass(frozen=True, kw_only=True)
class TeacherWeights(Method):
    """Pool the labels of several weak models, the more trustworthy ones with more weight.

    Attributes:
        members: number of weak models, at least 2; the input labels count as the first.
        steps: joint steps of weights and head; more steps favor fewer teachers.
        rate: step size of the weights.
        layer: layer of the hidden states: "half", "last", or a number; 0 is the embeddings.
        l2: penalty of the head, on features scaled to deviation 1.
    """

    members: int = number(4, 2)
    steps: int = number(200, 0)
    rate: float = number(0.1, 0.0)
    layer: str = layer_field("half")
    l2: float = number(0.01, 0.0)

    def labels(self, plan: Plan, labels: Node) -> Node:
        features = plan.features(layer=self.layer)
        members = member_labels(plan, self.members)
        return plan.apply(self.pooled, weak=labels, features=features, **members)

    def pooled(self, weak: Targets, features: np.ndarray, seed: int, **members: Targets) -> Targets:
        """Return the pooled probabilities, with the row weights of the input labels."""
        learned = teacher_weights(
            features[weak.used],
            [t.probs[weak.used] for t in (weak, *members.values())],
            steps=self.steps,
            rate=self.rate,
            l2=self.l2,
        )
        probs = weak.probs.copy()
        probs[weak.used] = learned.pooled
        return replace(weak, probs=probs)
