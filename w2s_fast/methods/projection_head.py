r"""Train the student with a projection head, drop it, and train a linear head on the features.

    1. backbone and head with a projection between them:  W relu(x A + a) B
    2. the features x of that backbone, frozen, and a linear head on them

The features before a projection are specialised less to the labels of the training, which are weak
here. Both trainings learn the same weak labels with the settings of ``student_train``.

Source: Xue et al. 2024 (arXiv 2403.11391): layer-wise feature weighting in contrastive and in
supervised learning; the pre-projection features are more robust where labels are coarse or
spurious. ``models.classifier.Projection`` has the network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from w2s_fast.errors import W2SError
from w2s_fast.methods._base import Method, number
from w2s_fast.methods._node import Node
from w2s_fast.methods._plan import Plan


@dataclass(frozen=True, kw_only=True)
class ProjectionHead(Method):
    """Finetune with a projection head, then train a head on the features before it.

    Attributes:
        width: of both layers of the projection, from 1 to 65536.
    """

    width: int = number(256, 1, 65536)

    def training(self, plan: Plan) -> Mapping[str, Any]:
        return {"projection": self.width}

    def final(self, plan: Plan, student: Node) -> Node:
        """Return the head on the features of the student's backbone.

        Raises:
            W2SError: The student's backbone is frozen, or it is made of other students.
        """
        settings = dict(student.settings)
        if settings.get("freeze") or settings.get("merge") or settings.get("prefixes"):
            raise W2SError(
                "projection_head trains a backbone, and a method before it freezes it or gives it "
                "another head; expected projection_head first, without probe and matryoshka"
            )
        training = {k: v for k, v in settings.items() if k not in ("role", "projection")}
        labels = dict(student.needs)["labels"]
        return plan.student(labels, **training, freeze=True, start=plan.backbone(student))
