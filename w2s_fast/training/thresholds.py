"""Source of a loss's batch threshold when a step has several micro-batches.

A quantile over the batch is not a sum over micro-batches, so the thresholds of the parts are not
the threshold of the whole. ``exact`` therefore computes the logits of all rows first. The other
scopes save that forward pass for a threshold that is a little stale or noisy. Their memory is
explicit tensors, which become part of the checkpoint.
"""

from __future__ import annotations

import torch
from torch import Tensor

from w2s_fast.losses import Loss


class Thresholds:
    """The thresholds of one training.

    Attributes:
        mode: a name in ``THRESHOLD_SCOPES``, or ``none`` for a loss without a batch statistic.
        state: explicit memory. ``window``: logits, weak labels and weights of the last rows.
            ``ema``: (2,) fp64, weighted sum of thresholds and sum of weights.
    """

    def __init__(self, mode: str, loss: Loss, n_classes: int, batch_size: int) -> None:
        self.mode = mode if loss.batch_rule(n_classes) is not None else "none"
        self.state: dict[str, Tensor] = {}
        self._loss, self._size = loss, batch_size

    def rolling(self, logits: Tensor, weak: Tensor, weight: Tensor | None) -> Tensor | None:
        """Add a micro-batch and return its threshold; None: the loss uses its own rows."""
        if self.mode == "window":
            return self._window(logits.detach(), weak, weight)
        if self.mode == "ema":
            return self._ema(logits.detach(), weak, weight)
        return None

    def _window(self, logits: Tensor, weak: Tensor, weight: Tensor | None) -> Tensor | None:
        if weight is None:
            weight = torch.ones(len(logits), dtype=torch.float32, device=logits.device)
        new = {"logits": logits, "weak": weak, "weight": weight}
        for name, rows in new.items():
            old = self.state.get(name)
            both = rows if old is None else torch.cat([old.to(rows.device), rows])
            self.state[name] = both[-self._size :].clone()
        s = self.state
        return self._loss.threshold(s["logits"], s["weak"], weight=s["weight"])

    def _ema(self, logits: Tensor, weak: Tensor, weight: Tensor | None) -> Tensor | None:
        current = self._loss.threshold(logits, weak, weight=weight)
        if current is None:
            return None
        old = self.state.get("ema", torch.zeros(2, dtype=torch.float64)).to(current.device)
        decay = max(0.0, 1.0 - len(logits) / self._size)
        # The threshold of a micro-batch without rows that count is infinite and is skipped.
        sample = torch.stack([current.double(), torch.ones_like(current, dtype=torch.float64)])
        mean = torch.where(current.isinf(), old, decay * old + (1.0 - decay) * sample)
        self.state["ema"] = mean
        return torch.where(mean[1] > 0, mean[0] / mean[1], current.double()).to(current.dtype)
