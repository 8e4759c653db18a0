"""Contrast-consistent search: what the student holds true, read off its hidden states.

Every text is read twice, followed by the word of either class, and an unsupervised direction tells
the two apart; see ``_direction`` for the equations. Two classes only. Which end of it is class 1 is
decided by agreement with the weak labels, which are used for nothing else.

Source: Burns et al. 2022 (arXiv 2212.03827), where the sign is decided by true labels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from w2s_fast.errors import W2SError
from w2s_fast.methods._base import Method, Targets
from w2s_fast.methods._direction import consistent, normalised, principal, truth
from w2s_fast.methods._layers import check_layer
from w2s_fast.methods._plan import Node, Plan
from w2s_fast.methods.elicit import CALIBRATIONS, calibrated

DIRECTIONS = ("ccs", "crc")


@dataclass(frozen=True, kw_only=True)
class CCS(Method):
    """Probabilities along the student's truth direction take the labels' place.

    Attributes:
        direction: ``ccs``, the search; ``crc``, the first principal component of the differences.
        layer: whose hidden states, as in the probes; the source uses the last.
        restarts: of the search.
        calibrate: as in ``Elicit``; normalisation puts the boundary in the middle of the rows, so
            it matters where classes are not balanced.
    """

    direction: str = "ccs"
    layer: str = "last"
    restarts: int = 10
    calibrate: str = "none"

    def __post_init__(self) -> None:
        self._one_of("direction", DIRECTIONS)
        check_layer(self)
        self._check("restarts", 1)
        self._one_of("calibrate", CALIBRATIONS)

    def labels(self, plan: Plan, labels: Node) -> Node:
        """See ``Method.labels``."""
        first, second = (plan.features(layer=self.layer, word=c) for c in (0, 1))
        return plan.apply(self.read, weak=labels, first=first, second=second)

    def read(self, weak: Targets, first: np.ndarray, second: np.ndarray, seed: int) -> Targets:
        """Labels from hidden states (N, D) float32 after the words of class 0 and of class 1.

        Raises:
            W2SError: if there are more than two classes.
        """
        if (classes := weak.probs.shape[1]) != 2:
            raise W2SError(
                f"method 'ccs' contrasts two classes, the task has {classes}; use 'elicit' or a "
                "probe"
            )
        kept = torch.from_numpy(weak.kept.nonzero()[0])
        x0, x1 = (normalised(torch.tensor(x), kept) for x in (first, second))
        if self.direction == "ccs":
            u, b = consistent(x0[kept], x1[kept], self.restarts, seed)
        else:
            u, b = principal((x1 - x0)[kept], seed), x0.new_zeros(())
        p = truth(x0, x1, u, b)
        agree = (p[kept] > 0.5) == (torch.tensor(weak.probs)[kept, 1] > 0.5)
        if agree.double().mean() < 0.5:
            p = 1 - p
        probs = torch.stack([1 - p, p], 1).numpy()
        return replace(weak, probs=calibrated(probs, weak, self.calibrate))
