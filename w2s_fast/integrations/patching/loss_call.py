"""Replacement of ``F.cross_entropy`` inside the own forward of a patched model.

B sequences, T tokens, V vocabulary, n rows of logits in the model's loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.integrations.patching.columns import Rows, read_rows
from w2s_fast.integrations.patching.lazy_logits import LazyLogits
from w2s_fast.integrations.patching.state import State
from w2s_fast.losses.xent import Xent

IGNORE = -100


@dataclass
class LossCall:
    """Targets of one forward, and the loss of its logits.

    Attributes:
        lm, state, head: the model, its state and its head.
        labels: (B, T), or None if the weak columns are the only targets.
        shifted: whether labels came as ``shift_labels``.
        columns: the weak columns, without progress.
        n_items: divisor of a sum of rows; None if the model divides, or takes means.
        size: (B, T) of the batch.
        calls: cross-entropies so far; a model with multi-token prediction has several.
        loss: of the last call.
        logits: of the last call.
    """

    lm: Any
    state: State
    labels: Tensor | None
    shifted: bool
    columns: dict[str, Any]
    n_items: Tensor | int | None
    size: tuple[int, int]
    head: Any = None
    calls: int = 0
    loss: Tensor | None = None
    logits: LazyLogits | None = None

    def cross_entropy(
        self, logits: LazyLogits, target: Tensor, ignore: int, reduction: str, smoothing: float
    ) -> Tensor:
        """Compute the 0-d fused loss in place of ``F.cross_entropy(logits, target, ...)``.

        Raises:
            W2SError: if targets do not fit, or the model's loss cannot take the weak columns.
        """
        self.calls += 1
        if self.calls > 1 and (self.columns or (self.lm.training and not self._is_xent())):
            raise W2SError(
                f"{type(self.lm).__name__} adds the cross-entropy of further tokens (multi-token "
                "prediction) to its loss; expected loss='xent' and no weak columns there; switch "
                "that part of the model off in its configuration"
            )
        if len(target) != len(logits):
            self._raise_shape(target)
        target = target.to(logits.device)
        rows = (target != ignore).nonzero()[:, 0]
        positions = logits.positions.flatten()[rows]
        if self.shifted and not self._aligned(target[rows], positions, 0, self.size):
            raise W2SError(
                f"the loss of {type(self.lm).__name__} does not use shift_labels unchanged; pass "
                "labels instead"
            )
        make_rows = self._weak_rows if self.columns else self._own_rows
        loss_rows = make_rows(logits, target[rows], positions, ignore, reduction)
        loss = self.state.loss_sum(self.lm, loss_rows, self.head, logits.transform(), smoothing)
        self.loss, self.logits = loss, logits
        return loss

    def compare_output(self, out: Any) -> None:
        """Check the output of the model; only ``verify`` overrides this."""

    def _is_xent(self) -> bool:
        return type(self.state.loss) is Xent

    def _own_rows(
        self, logits: LazyLogits, target: Tensor, positions: Tensor, ignore: int, reduction: str
    ) -> Rows:
        """Make rows from the model's own targets, after its shift, mask and ignored index."""
        if ignore != IGNORE and bool((target == IGNORE).any()):
            raise W2SError(
                f"ignore_index={ignore} came with labels of {IGNORE}, which is then no valid "
                f"class; use {ignore} there"
            )
        hidden = logits.hidden.flatten(0, -2).index_select(0, positions)
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        weight = torch.ones(len(positions), dtype=dtype, device=hidden.device)
        if reduction == "mean":
            return Rows(hidden, target, weight / max(len(positions), 1))
        if self.n_items is None:
            return Rows(hidden, target, weight)
        n = torch.as_tensor(self.n_items, device=hidden.device).to(dtype)
        return Rows(hidden, target, weight * torch.where(n != 0, 1 / n, 0.0))

    def _weak_rows(
        self, logits: LazyLogits, target: Tensor, positions: Tensor, ignore: int, reduction: str
    ) -> Rows:
        """Make rows from the weak columns at the positions of the model's labels."""
        hidden, ahead = logits.hidden, int(not self.shifted)
        size = (int(hidden.shape[0]), int(hidden.shape[-2]))
        if hidden.dim() != 3 or not self._aligned(target, positions, ahead, size):
            raise W2SError(
                f"the loss of {type(self.lm).__name__} does not shift its labels by one token "
                "inside each sequence, so weak columns cannot follow them; leave the columns out"
            )
        labels = self.labels
        if labels is not None:
            labels = torch.full((size[0] * size[1],), IGNORE, device=hidden.device)
            labels = labels.index_put((positions + ahead,), target.to(labels.dtype)).view(size)
        n = self.n_items if reduction == "sum" else None
        n = 1 if n is None and reduction == "sum" else n
        shift_labels = labels if self.shifted else None
        return read_rows(labels, shift_labels, self.columns, size, logits.width, hidden, n)

    def _aligned(
        self, target: Tensor, positions: Tensor, ahead: int, size: tuple[int, int]
    ) -> bool:
        """Return whether the row at (b, t) has the label of (b, t + ahead)."""
        if not bool((positions % size[1] + ahead < size[1]).all()):
            return False
        if self.labels is None:  # every position was marked: none may be missing
            return len(positions) == size[0] * (size[1] - ahead)
        given = self.labels.to(target.device)
        return given.numel() == size[0] * size[1] and torch.equal(
            given.flatten()[positions + ahead], target
        )

    def _raise_shape(self, target: Tensor) -> NoReturn:
        shape = tuple(target.shape if self.labels is None else self.labels.shape)
        raise W2SError(f"labels has shape {shape}; expected {self.size} to fit the batch")
