"""Engines: how gradients are accumulated and weights are updated, in plain torch or DeepSpeed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from torch import Tensor, nn

from w2s_fast.distributed.world import SINGLE_PROCESS, World
from w2s_fast.errors import W2SError
from w2s_fast.models.weights import load_module, module_tensors
from w2s_fast.training.completion_pairs import PairBatch
from w2s_fast.training.completions import CompletionBatch
from w2s_fast.training.config import TrainConfig
from w2s_fast.training.data import Batch
from w2s_fast.training.optim import MasterAdamW

# Reads a saved tensor by name, the same on every process; None if it was not saved.
ReadTensor = Callable[[str], Tensor | None]
AnyBatch = Batch | CompletionBatch | PairBatch
# A function of the logits of a micro-batch, evaluated inside the model's forward.
LogitsFn = Callable[[Any], Tensor]


class Engine(Protocol):
    """Updates weights: ``backward`` accumulates gradients, ``update`` applies and clears them."""

    @property
    def skips_overflow(self) -> bool:
        """Whether a step whose gradient is not finite changes nothing, as with fp16."""

    def logits(self, batch: AnyBatch) -> Any:
        """Return (B, C) logits of a micro-batch; for completions (n, V) ``Projected``, for pairs
        their answers (B, 2, 3)."""

    def loss(self, batch: AnyBatch, logits_fn: LogitsFn) -> Tensor:
        """Return ``logits_fn(logits)``, called where sharded weights are gathered."""

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add the gradient of this 0-d loss, already divided by the step's normaliser.

        Args:
            loss: share of this micro-batch in the loss of the step.
            last: whether this is the last micro-batch of the step.
        """

    def update(self, lr: float) -> Tensor:
        """Sum gradients over processes, clip, take one optimizer step, and clear the gradients.

        Returns:
            0-d L2 norm of the gradient before clipping: inf if the gradient is not finite, NaN if
            the engine did not compute one.
        """

    def masters(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the trained weights in the optimizer's precision, whole; a collective call."""

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield weights and optimizer state, whole and by name; a collective call."""

    def load(self, read: ReadTensor) -> None:
        """Restore the ``tensors`` of any engine; a collective call."""


class PlainEngine:
    """Plain torch: the whole model on every device, gradients summed over the processes."""

    def __init__(self, model: nn.Module, cfg: TrainConfig, world: World = SINGLE_PROCESS) -> None:
        self._model, self._optimizer = model, MasterAdamW(model, cfg, world)

    @property
    def skips_overflow(self) -> bool:
        """See ``Engine``."""
        return False

    def logits(self, batch: AnyBatch) -> Any:
        """See ``Engine``."""
        return forward(self._model, batch)

    def loss(self, batch: AnyBatch, logits_fn: LogitsFn) -> Tensor:
        """See ``Engine``."""
        return forward(self._model, batch, logits_fn)

    def backward(self, loss: Tensor, last: bool) -> None:
        """See ``Engine``."""
        loss.backward()
        self._optimizer.accumulate()

    def update(self, lr: float) -> Tensor:
        """See ``Engine``."""
        return self._optimizer.step(lr)

    def masters(self) -> Iterator[tuple[str, Tensor]]:
        """See ``Engine``."""
        yield from self._optimizer.masters.items()

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """See ``Engine``."""
        yield from ((f"model.{k}", t) for k, t in module_tensors(self._model).items())
        yield from ((f"optimizer.{k}", t) for k, t in self._optimizer.tensors().items())

    def load(self, read: ReadTensor) -> None:
        """See ``Engine``."""
        names = module_tensors(self._model)
        load_module(self._model, {k: read_required(read, f"model.{k}") for k in names})
        self._optimizer.load(
            lambda name: read(f"optimizer.{name}"), lambda name: read(f"model.{name}")
        )


def read_required(read: ReadTensor, name: str) -> Tensor:
    """Read the saved tensor ``name``.

    Raises:
        W2SError: if it was not saved.
    """
    t = read(name)
    if t is None:
        raise W2SError(f"the checkpoint has no tensor {name!r}; it is of another model")
    return t


def forward(model: nn.Module, batch: AnyBatch, logits_fn: LogitsFn | None = None) -> Any:
    """Return logits, or ``logits_fn`` of them; segment ids are passed only if there are any.

    The logits of pairs are their ``PairBatch.answers``.
    """
    if isinstance(batch, PairBatch):
        return _forward_pairs(model, batch, logits_fn)
    inputs = [t for t in batch if t is not None]
    if isinstance(batch, CompletionBatch):
        return model(*inputs, logits_fn=logits_fn)
    logits = model(*inputs)
    return logits if logits_fn is None else logits_fn(logits)


def _forward_pairs(model: nn.Module, batch: PairBatch, logits_fn: LogitsFn | None) -> Any:
    """Compute the answers inside the head, where a sharded one is gathered."""

    def of_logits(z: Any) -> Tensor:
        answers = batch.answers(z)
        return answers if logits_fn is None else logits_fn(answers)

    inputs = batch.input_ids, batch.attention_mask, batch.positions
    return model(*inputs, logits_fn=of_logits, packing=batch.packing)
