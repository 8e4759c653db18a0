r"""Interpolation with the initial weights at the coefficient that held-out weak labels prefer.

    theta(alpha) = (1 - alpha) theta_0 + alpha theta_1,   alpha = 0, 1/(points - 1), ..., 1

theta_0 are the weights that the student started from, theta_1 those that it was trained to. The
student takes the alpha whose predictions agree best with the weak labels of held-out rows, and of
equal ones the smallest, which keeps most of the pretrained model. results.json has agreement and
test accuracy at every alpha; true labels choose nothing.

Sources: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models" (WiSE-FT, arXiv 2109.01903),
equation 1, where alpha is 1/2 or chosen by true labels; Zhang et al. 2023 (BANG, arXiv 2309.17230),
who add mixup and label smoothing. ``train.interpolation`` sets one alpha instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from w2s_fast.methods._base import Method, number
from w2s_fast.methods._merge import merged
from w2s_fast.methods._node import Node
from w2s_fast.methods._plan import Plan


@dataclass(frozen=True, kw_only=True)
class Interpolate(Method):
    """Interpolate between initial and trained weights.

    Attributes:
        points: number of equally spaced coefficients from 0 to 1, from 2 to 1001.
        holdout: share of the transfer set that is held out, in [0.01, 0.5].
    """

    points: int = number(11, 2, 1001)
    holdout: float = number(0.1, 0.01, 0.5)

    def training(self, plan: Plan) -> Mapping[str, Any]:
        return {"holdout": self.holdout, "shared_holdout": True}

    def final(self, plan: Plan, student: Node) -> Node:
        return merged([student], "interpolation", points=self.points, holdout=self.holdout)
