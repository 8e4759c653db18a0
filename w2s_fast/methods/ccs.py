"""Contrast-consistent search: labels from an unsupervised direction in the student's hidden states.

Every text is read twice, followed by the word of each class, and an unsupervised direction
separates the two; see ``_direction`` for the equations. Two classes only. The weak labels decide
only the sign of the direction.

Source: Burns et al. 2022 (arXiv 2212.03827), where true labels decide the sign.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from w2s_fast.errors import W2SError
from w2s_fast.methods._base import Method, Targets, choice, layer_field, number
from w2s_fast.methods._direction import consistent, normalised, principal, truth
from w2s_fast.methods._node import Node
from w2s_fast.methods._plan import Plan
from w2s_fast.methods.elicit import CALIBRATIONS, calibrated

DIRECTIONS = ("ccs", "crc")


@dataclass(frozen=True, kw_only=True)
class CCS(Method):
    """Replace the labels by probabilities along the student's truth direction.

    Attributes:
        direction: ``ccs``, the search; ``crc``, the first principal component of the differences.
        layer: layer of the hidden states: "half", "last", or a number; 0 is the embeddings. The
            source uses the last.
        restarts: number of random starts of the search.
        calibrate: as in ``Elicit``. Normalisation puts the boundary in the middle of the rows, so
            it matters for unbalanced classes.
    """

    direction: str = choice("ccs", DIRECTIONS)
    layer: str = layer_field("last")
    restarts: int = number(10, 1)
    calibrate: str = choice("none", CALIBRATIONS)

    def check_task(self, n_classes: int, n_rows: int) -> None:
        """See ``Method``: two classes are contrasted."""
        if n_classes != 2:
            raise W2SError(
                f"method 'ccs' contrasts two classes, the task has {n_classes}; use 'elicit' or a "
                "probe"
            )

    def labels(self, plan: Plan, labels: Node) -> Node:
        first, second = (plan.features(layer=self.layer, word=c) for c in (0, 1))
        return plan.apply(self.read, weak=labels, first=first, second=second)

    def read(self, weak: Targets, first: np.ndarray, second: np.ndarray, seed: int) -> Targets:
        """Return labels from hidden states (N, D) float32 after the words of class 0 and class 1.

        Raises:
            W2SError: There are more than two classes.
        """
        self.check_task(weak.probs.shape[1], len(weak.probs))
        used = torch.from_numpy(weak.used.nonzero()[0])
        x0, x1 = (normalised(torch.tensor(x), used) for x in (first, second))
        if self.direction == "ccs":
            u, b = consistent(x0[used], x1[used], self.restarts, seed)
        else:
            u, b = principal((x1 - x0)[used], seed), x0.new_zeros(())
        p = truth(x0, x1, u, b)
        agree = (p[used] > 0.5) == (torch.tensor(weak.probs)[used, 1] > 0.5)
        if agree.double().mean() < 0.5:
            p = 1 - p
        probs = torch.stack([1 - p, p], 1).numpy()
        return replace(weak, probs=calibrated(probs, weak, self.calibrate))
