r"""Logistic regression of an event on hidden states, with weights that depend on a class.

    z_i = a + A_c + (u + U_c) . x_i + b t_i,     c the class predicted for row i
    min  mean_i BCE(z_i, r_i) + l2 (|u|^2 + |U|^2 + |A|^2 + b^2)

x_i (D,) are standardised features, t_i is the standardised log-odds of the predicted class. The
same hidden state supports one class and contradicts another, which no weights shared by all classes
could express.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_STEPS = 200


@dataclass(frozen=True, eq=False)
class Fit:
    """Fitted weights, all float64.

    Attributes:
        shared: (D,) u.
        by_class: (D, C) U.
        offsets: (C,) a + A_c.
        slope: b.
    """

    shared: Tensor
    by_class: Tensor
    offsets: Tensor
    slope: Tensor

    def logits(self, x: Tensor, t: Tensor, classes: Tensor) -> Tensor:
        """Return z (n,) of features (n, D), log-odds (n,) and predicted classes (n,) int64."""
        by_class = x @ (self.shared[:, None] + self.by_class)
        own = by_class.gather(1, classes[:, None])[:, 0]
        return own + self.offsets[classes] + self.slope * t


def fit(x: Tensor, t: Tensor, classes: Tensor, event: Tensor, n_classes: int, l2: float) -> Fit:
    """Fit the weights by L-BFGS.

    Args:
        x: (n, D) float64 standardised features.
        t: (n,) float64 standardised log-odds.
        classes: (n,) int64 predicted classes.
        event: (n,) float64, 1 where the event happened.
        n_classes: C.
        l2: Penalty.
    """
    width = x.shape[1]
    sizes = [width, width * n_classes, n_classes, 1, 1]
    flat = x.new_zeros(sum(sizes)).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [flat],
        max_iter=_STEPS,
        tolerance_grad=1e-7,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def unpack(parameters: Tensor) -> Fit:
        u, by_class, offsets, slope, intercept = parameters.split(sizes)
        return Fit(u, by_class.view(width, n_classes), offsets + intercept, slope[0])

    def closure() -> Tensor:
        optimizer.zero_grad()
        z = unpack(flat).logits(x, t, classes)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(z, event)
        loss = loss + l2 * flat[:-1].square().sum()  # the intercept is free
        loss.backward()
        return loss

    optimizer.step(closure)
    return unpack(flat.detach())
