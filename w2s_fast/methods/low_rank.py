r"""Low-rank students: every linear layer a product W ~ U V of a share of its parameters.

    1. U, V by singular value decomposition of the pretrained weights
    2. the low-rank model learns the hidden states of the full one on the transfer texts, without
       labels, while max |U V - W| of every layer stays near a bound
    3. the student is finetuned from there, its layers still products

A student of lower rank fits fewer of the errors of the weak labels, at less memory for gradients
and optimizer. ``models.low_rank`` and ``losses.features`` have the equations. The ceiling has the
same model.

Source: Guo, Wang & Kankanhalli 2023 (PELA, arXiv 2310.10700).
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
class LowRank(Method):
    """Finetune a student whose linear layers are products of low rank.

    Attributes:
        share: of the parameters of each layer that stay, in [0.01, 1].
        distil: learn the full model's hidden states first, with the settings of ``student_train``.
        bound: deviation max |U V - W| of a layer that costs nothing.
        strength: weight of the squared deviation beyond it.
    """

    share: float = number(0.5, 0.01, 1.0)
    distil: bool = True
    bound: float = number(0.001, 0.0)
    strength: float = number(1.0, 0.0)

    def training(self, plan: Plan) -> Mapping[str, Any]:
        if not self.distil:
            return {"low_rank": self.share}
        settings = {"share": self.share, "bound": self.bound, "strength": self.strength}
        return {"low_rank": self.share, "start": plan.compressed(**settings)}

    def final(self, plan: Plan, student: Node) -> Node:
        """Return the student.

        Raises:
            W2SError: Its backbone is frozen.
        """
        if dict(student.settings).get("freeze"):
            raise W2SError(
                "low_rank trains the layers of a backbone, and a method freezes it; expected "
                "low_rank without probe"
            )
        return student
