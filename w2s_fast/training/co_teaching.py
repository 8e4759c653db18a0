r"""Co-teaching: two students trained together hand each other the rows with the smallest losses.

The rows of a step, over all processes, are divided by their place: A ranks the even ones by its
cross-entropy to the weak labels and hands the R with the smallest to B, which learns them; B ranks
the odd ones for A. With n rows of a half that count, at fraction t of the steps,

    R = max(1, floor((1 - forget min(1, t / ramp)) n))

Wrong labels are learned late, so their losses stay large; the peer, which has learned other rows,
does not repeat the errors that a student has begun to learn. Ranks are of predictions without
dropout and of unweighted losses; ties are broken by the place in the step. Each student learns the
mean over the rows it was handed.

Sources: Han et al. 2018 (arXiv 1804.06872), where both students rank the whole batch; they differ
there by their initial weights. Students here begin with the same pretrained weights, and would
remain equal: each has a half of its own, as in Chen et al. 2022 (arXiv 2206.13140), stage 2. The
ramp is by steps; Han et al. take 10 of 200 epochs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from w2s_fast.errors import W2SError
from w2s_fast.losses._base import LossContext, LossOut
from w2s_fast.losses._wrapping import WrappingLoss
from w2s_fast.training.step_targets import StepTargets


@dataclass(frozen=True, kw_only=True)
class CoTeaching(StepTargets):
    """Exchange of the rows with the smallest losses between two students.

    Attributes:
        forget: share of the rows that are not handed on after the ramp, about that of wrong labels;
            in [0, 0.9].
        ramp: fraction of the steps over which this share rises from 0.
    """

    branches: ClassVar[int] = 2
    forget: float = 0.3
    ramp: float = 0.1

    def __post_init__(self) -> None:
        self._check_range("forget", 0.0, 0.9)
        self._check_range("ramp", 0.0, 1.0)

    def kept_share(self, step_frac: float) -> float:
        """Return the share of the rows that are handed on at a fraction of the steps."""
        if step_frac >= self.ramp:
            return 1 - self.forget
        return 1 - self.forget * step_frac / self.ramp

    def rows(
        self, logits: Tensor, weak: Tensor, weight: Tensor, step_frac: float
    ) -> tuple[Tensor, Tensor]:
        """Return the labels, and the weights (..., R, 2) with which A and B learn each row.

        The weights of a student add up to those of all rows, so its loss is the mean over its own.
        """
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        losses = -(weak.to(logits)[..., None, :] * logits.log_softmax(-1)).sum(-1)
        even = torch.arange(weak.shape[-2], device=weak.device) % 2 == 0
        weight = weight.to(logits)[..., None, :]
        ranked = losses.flip(-1).transpose(-1, -2)  # (..., 2, R): A learns what B ranks
        counted = torch.stack([~even, even]) & (weight != 0)
        own = _smallest(ranked, counted, self.kept_share(step_frac)) * weight
        total = own.sum(-1, keepdim=True)
        own = torch.where(total > 0, own * weight.sum(-1, keepdim=True) / total, own)
        return weak, own.transpose(-1, -2)


def _smallest(losses: Tensor, counted: Tensor, share: float) -> Tensor:
    """Return (..., R) bool: the share of the counted rows with the smallest losses."""
    n = counted.sum(-1, keepdim=True)
    # (1 - 0.41) * 100 is 59 up to rounding.
    kept = (share * n.double() + 1e-6).floor().clamp_min(1)
    order = torch.where(counted, losses, float("inf")).argsort(dim=-1, stable=True)
    first = torch.arange(order.shape[-1], device=order.device) < kept
    return counted & torch.zeros_like(counted).scatter(-1, order, first)


class Twins(nn.Module):
    """Two students in one module: ``first`` is the result, ``second`` its peer.

    Predictions are those of the first. Inside of ``paired`` the logits are those of both,
    (B, 2, C).

    Args:
        first, second: models of one architecture.
    """

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first: Any = first
        self.second: Any = second
        self.n_classes = self.first.n_classes
        self._paired = False

    @contextlib.contextmanager
    def paired(self) -> Iterator[None]:
        """Return the logits of both students inside the block."""
        self._paired = True
        try:
            yield
        finally:
            self._paired = False

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return (B, C) logits of the first student, (B, 2, C) of both inside of ``paired``."""
        first: Tensor = self.first(*inputs)
        return torch.stack([first, self.second(*inputs)], 1) if self._paired else first

    def gradient_checkpointing(self, on: bool) -> None:
        """Turn recomputation of activations in backward on or off."""
        for model in (self.first, self.second):
            switch = getattr(model, "gradient_checkpointing", None)
            if not callable(switch):
                raise W2SError(
                    f"{type(model).__name__} has no gradient checkpointing; set "
                    "gradient_checkpointing=false"
                )
            switch(on)


def students_of(model: nn.Module) -> tuple[nn.Module, ...]:
    """Return both students of ``Twins``, or the model itself."""
    return (model.first, model.second) if isinstance(model, Twins) else (model,)


def paired(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Return ``Twins.paired``, or for other models a context that does nothing."""
    return model.paired() if isinstance(model, Twins) else contextlib.nullcontext()


@dataclass(frozen=True, kw_only=True)
class TwinLoss(WrappingLoss):
    """The sum of a loss over two students, each with its row weights, threshold and state.

    ``logits`` are (n, 2, C) and ``weight`` (n, 2); metrics count the rows of both.
    """

    def init_state(self) -> Tensor | None:
        """See ``Loss.init_state``; (2, ...)."""
        state = self.loss.init_state()
        return None if state is None else torch.stack([state, state])

    def threshold(
        self,
        logits: Tensor,
        weak: Tensor,
        *,
        weight: Tensor | None = None,
        state: Tensor | None = None,
    ) -> Tensor | None:
        """See ``Loss.threshold``; (2, ...), of each student."""
        assert weight is not None
        return _stacked(
            self.loss.threshold(logits[:, i], weak, weight=weight[:, i], state=_of(state, i))
            for i in (0, 1)
        )

    def advance(
        self,
        logits: Tensor,
        weak: Tensor,
        *,
        weight: Tensor | None = None,
        state: Tensor | None = None,
    ) -> Tensor | None:
        """See ``Loss.advance``; (2, ...)."""
        assert weight is not None
        return _stacked(
            self.loss.advance(logits[:, i], weak, weight=weight[:, i], state=_of(state, i))
            for i in (0, 1)
        )

    def forward(self, logits: Tensor, weak: Tensor, ctx: LossContext) -> LossOut:
        """See ``Loss.forward``."""
        assert ctx.weight is not None
        first, second = (
            self.loss.forward(
                logits[:, i],
                weak,
                ctx._replace(
                    weight=ctx.weight[:, i],
                    threshold=_of(ctx.threshold, i),
                    state=_of(ctx.state, i),
                ),
            )
            for i in (0, 1)
        )
        return first._replace(
            loss_sum=first.loss_sum + second.loss_sum,
            state=_stacked(out.state for out in (first, second)),
            metrics={k: v + second.metrics[k] for k, v in first.metrics.items()},
            threshold=_stacked(out.threshold for out in (first, second)),
        )


def _of(value: Tensor | None, i: int) -> Tensor | None:
    return None if value is None else value[i]


def _stacked(values: Iterator[Tensor | None]) -> Tensor | None:
    parts = [value for value in values if value is not None]
    return torch.stack(parts) if len(parts) == 2 else None
