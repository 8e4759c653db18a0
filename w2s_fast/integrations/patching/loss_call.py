"""One forward with targets: what stands in for ``F.cross_entropy`` inside the model's own forward.

B sequences, T tokens, V vocabulary, n rows of logits that the model's loss looks at.
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
    """Targets of one forward, and the loss of the logits that come with them.

    Attributes:
        lm, state, head: the model, what it carries, its head.
        labels: (B, T), or None where weak columns alone say what is learned.
        shifted: labels came as ``shift_labels``.
        columns: the weak columns, without progress.
        n_items: what a sum of rows is divided by; None where the model divides, or takes means.
        size: (B, T) of the batch.
        calls: cross-entropies so far; a model with multi-token prediction has several.
        loss: the last of them.
        logits: the last of them.
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
        """The fused loss in place of ``F.cross_entropy(logits, target, ...)``; 0-d.

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
            self._refuse_shape(target)
        target = target.to(logits.device)
        rows = (target != ignore).nonzero()[:, 0]
        at = logits.positions.flatten()[rows]
        if self.shifted and not self._aligned(target[rows], at, 0, self.size):
            raise W2SError(
                f"the loss of {type(self.lm).__name__} does not take shift_labels as they are; "
                "give it labels"
            )
        given = self._weak_rows if self.columns else self._own_rows
        loss = self.state.loss_sum(
            self.lm, given(logits, target[rows], at, ignore, reduction), self.head, logits.form(),
            smoothing,
        )  # fmt: skip
        self.loss, self.logits = loss, logits
        return loss

    def compare_output(self, out: Any) -> None:
        """Look at what the model gave; only a comparison does."""

    def _is_xent(self) -> bool:
        return type(self.state.loss) is Xent

    def _own_rows(
        self, logits: LazyLogits, target: Tensor, at: Tensor, ignore: int, reduction: str
    ) -> Rows:
        """Rows of the model's own targets, whatever shift, mask or ignored index made them."""
        if ignore != IGNORE and bool((target == IGNORE).any()):
            raise W2SError(
                f"ignore_index={ignore} came with labels of {IGNORE}, which is no class then; "
                f"write {ignore} there"
            )
        hidden = logits.hidden.flatten(0, -2).index_select(0, at)
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        weight = torch.ones(len(at), dtype=dtype, device=hidden.device)
        if reduction == "mean":
            return Rows(hidden, target, weight / max(len(at), 1))
        if self.n_items is None:
            return Rows(hidden, target, weight)
        n = torch.as_tensor(self.n_items, device=hidden.device).to(dtype)
        return Rows(hidden, target, weight * torch.where(n != 0, 1 / n, 0.0))

    def _weak_rows(
        self, logits: LazyLogits, target: Tensor, at: Tensor, ignore: int, reduction: str
    ) -> Rows:
        """Rows of the weak columns, where the model's loss takes labels from."""
        hidden, ahead = logits.hidden, int(not self.shifted)
        size = (int(hidden.shape[0]), int(hidden.shape[-2]))
        if hidden.dim() != 3 or not self._aligned(target, at, ahead, size):
            raise W2SError(
                f"the loss of {type(self.lm).__name__} does not shift its labels by one token "
                "inside each sequence, so weak columns cannot follow them; leave the columns out"
            )
        marks = self.labels
        if marks is not None:
            marks = torch.full((size[0] * size[1],), IGNORE, device=hidden.device)
            marks = marks.index_put((at + ahead,), target.to(marks.dtype)).view(size)
        n = self.n_items if reduction == "sum" else None
        n = 1 if n is None and reduction == "sum" else n
        shifted = marks if self.shifted else None
        return read_rows(marks, shifted, self.columns, size, logits.width, hidden, n)

    def _aligned(self, target: Tensor, at: Tensor, ahead: int, size: tuple[int, int]) -> bool:
        """Whether the row at (b, t) has the label of (b, t + ahead)."""
        if not bool((at % size[1] + ahead < size[1]).all()):
            return False
        if self.labels is None:  # every position was marked: none may be missing
            return len(at) == size[0] * (size[1] - ahead)
        given = self.labels.to(target.device)
        return given.numel() == size[0] * size[1] and torch.equal(
            given.flatten()[at + ahead], target
        )

    def _refuse_shape(self, target: Tensor) -> NoReturn:
        shape = tuple(target.shape if self.labels is None else self.labels.shape)
        raise W2SError(f"labels has shape {shape}; expected {self.size} to fit the batch")
