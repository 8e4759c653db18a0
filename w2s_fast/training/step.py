"""One optimizer step: micro-batches, exact threshold, one normaliser.

    1. normaliser of all rows of the step, on every process, from the targets alone
    2. ``exact`` threshold with several micro-batches: forward all of them without gradients
    3. per micro-batch: forward, loss sum / normaliser, backward; its graph is freed
    4. clip and update

Several processes hold different rows of every micro-batch. Each knows the targets of all, so a
statistic of the batch costs one exchange of logits and nothing else does. What moves the weights
is behind ``Engine``; a sharded engine replaces that and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from w2s_fast.distributed.world import SINGLE_PROCESS, World
from w2s_fast.errors import W2SError
from w2s_fast.losses import Loss, LossOut
from w2s_fast.models.weights import load_module, module_tensors, whole
from w2s_fast.ops.lazy_logits import Projected
from w2s_fast.training.completions import AnswerBatch
from w2s_fast.training.config import TrainConfig
from w2s_fast.training.data import Batch
from w2s_fast.training.optim import MasterAdamW
from w2s_fast.training.thresholds import Thresholds

# A saved tensor by name, the same on every process; None if it was not saved.
Read = Callable[[str], Tensor | None]


class Micro(NamedTuple):
    """Rows of one forward and backward: this process's, and the targets of everyone's.

    Row i of everyone's is row i // size of process i % size. Of answers a row is a token.
    """

    batch: Batch | AnswerBatch
    weak: Tensor
    weight: Tensor | None
    all_weak: Tensor
    all_weight: Tensor | None


class Progress(NamedTuple):
    """Where a step stands: ``step`` from 0, of ``steps``."""

    step: int
    steps: int

    @property
    def frac(self) -> float:
        """step / steps, what schedules take."""
        return self.step / self.steps


class Engine(Protocol):
    """Moves weights. ``backward`` adds to the gradient, ``update`` uses it up."""

    def logits(self, batch: Batch | AnswerBatch) -> Any:
        """(B, C) logits of a micro-batch; of answers (n, V), ``Projected``."""

    def loss(self, batch: Batch | AnswerBatch, then: Callable[[Any], Tensor]) -> Tensor:
        """``then`` of the logits, called where all weights behind them are at hand."""

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add the gradient of this 0-d loss, already divided by the step's normaliser.

        ``last`` says that no other micro-batch of the step follows.
        """

    def update(self, lr: float) -> None:
        """Sum over processes, clip, take one optimizer step; the gradient is zero afterwards."""

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Weights and optimizer state, whole and by name, one at a time; all processes together."""

    def load(self, read: Read) -> None:
        """Restore what ``tensors`` gave, from any engine; all processes together."""


class PlainEngine:
    """Plain torch: the whole model on every device, gradients summed over the processes."""

    def __init__(self, model: nn.Module, cfg: TrainConfig, world: World = SINGLE_PROCESS) -> None:
        self._model, self._optimizer = model, MasterAdamW(model, cfg, world)

    def logits(self, batch: Batch | AnswerBatch) -> Any:
        """See ``Engine``."""
        return forward(self._model, batch)

    def loss(self, batch: Batch | AnswerBatch, then: Callable[[Any], Tensor]) -> Tensor:
        """See ``Engine``."""
        return forward(self._model, batch, then)

    def backward(self, loss: Tensor, last: bool) -> None:
        """See ``Engine``."""
        loss.backward()
        self._optimizer.accumulate()

    def update(self, lr: float) -> None:
        """See ``Engine``."""
        self._optimizer.step(lr)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """See ``Engine``."""
        yield from ((f"model.{k}", t) for k, t in module_tensors(self._model).items())
        yield from ((f"optimizer.{k}", t) for k, t in self._optimizer.tensors().items())

    def load(self, read: Read) -> None:
        """See ``Engine``."""
        own = module_tensors(self._model)
        load_module(self._model, {k: found(read, f"model.{k}") for k in own})
        self._optimizer.load(lambda name: read(f"optimizer.{name}"))


class StepResult(NamedTuple):
    """Detached 0-d results of one optimizer step, and the loss's state after it.

    The three numbers are sums over the rows of this process; add them up over all.
    """

    loss: Tensor  # share in the mean over the step, by its normaliser
    agreed: Tensor  # rows on which student and weak label name the same class
    rows: Tensor  # rows that count
    state: Tensor | None


def found(read: Read, name: str) -> Tensor:
    """The saved tensor ``name``.

    Raises:
        W2SError: if it was not saved.
    """
    t = read(name)
    if t is None:
        raise W2SError(f"the checkpoint has no tensor {name!r}; it is of another model")
    return t


def forward(
    model: nn.Module, batch: Batch | AnswerBatch, then: Callable[[Any], Tensor] | None = None
) -> Any:
    """Logits, or ``then`` of them; segment ids are passed only where there are any."""
    given = [t for t in batch if t is not None]
    if isinstance(batch, AnswerBatch):
        return model(*given, then=then)
    logits = model(*given)
    return logits if then is None else then(logits)


def run_step(
    engine: Engine,
    loss: Loss,
    micro: Sequence[Micro],
    thresholds: Thresholds,
    state: Tensor | None,
    at: Progress,
    lr: float,
    world: World = SINGLE_PROCESS,
) -> StepResult:
    """Take one optimizer step over ``micro``; see the module for the order of things."""
    total = torch.stack([loss.count(m.all_weak, m.all_weight) for m in micro]).sum()
    normaliser = torch.where(total > 0, total, 1.0)
    known = None
    if thresholds.mode == "exact" and len(micro) > 1:
        known = _probe(engine, loss, micro, state, world)
    sums: list[Tensor] = []
    for i, m in enumerate(micro):
        loss_sum, metrics, state = _evaluate(engine, loss, m, thresholds, state, known, at, world)
        engine.backward(loss_sum / normaliser, i == len(micro) - 1)
        zero = torch.zeros_like(total)
        agreed, rows = metrics.get("agreement", zero), metrics.get("rows", zero)
        sums.append(torch.stack([loss_sum.detach(), agreed, rows]))
        del loss_sum  # the graph goes before the next forward
    engine.update(lr)
    loss_sum, agreed, rows = torch.stack(sums).sum(0)
    return StepResult(loss_sum / normaliser, agreed, rows, state)


def _evaluate(
    engine: Engine,
    loss: Loss,
    m: Micro,
    thresholds: Thresholds,
    state: Tensor | None,
    known: Tensor | None,
    at: Progress,
    world: World,
) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
    """Loss sum of a micro-batch with its graph, metrics, and the loss's state afterwards."""
    found: list[tuple[LossOut, Tensor | None]] = []

    def then(logits: Any) -> Tensor:
        t, after = known, None
        if known is None or (state is not None and world.size > 1):
            t, after = _statistic(loss, logits, m, thresholds, state, known, world)
        out = loss(
            logits, m.weak, weight=m.weight, frac=at.frac, step=at.step, threshold=t, state=state
        )
        found.append((out, after))
        return out.loss_sum

    loss_sum = engine.loss(m.batch, then)
    out, after = found[0]
    return loss_sum, out.metrics, out.state if after is None else after


def _statistic(
    loss: Loss,
    logits: Any,
    m: Micro,
    thresholds: Thresholds,
    state: Tensor | None,
    known: Tensor | None,
    world: World,
) -> tuple[Tensor | None, Tensor | None]:
    """Threshold of this micro-batch, and the loss's state after everyone's rows.

    None: the loss finds it in its own rows, which are all there are.
    """
    mode = thresholds.mode
    if world.size == 1:
        return thresholds.rolling(logits, m.weak, m.weight), None
    if state is None and mode in ("none", "microbatch"):
        return None, None
    z, weak, weight = _everyone(logits.detach(), world), m.all_weak, m.all_weight
    t = known
    if t is None and mode == "exact":
        t = loss.threshold(z, weak, weight=weight, state=state)
    elif t is None:
        t = thresholds.rolling(z, weak, weight)
    return t, loss.advance(z, weak, weight=weight, state=state)


@torch.no_grad()
def _probe(
    engine: Engine, loss: Loss, micro: Sequence[Micro], state: Tensor | None, world: World
) -> Tensor | None:
    """Exact threshold over the whole step. Dropout, if on, replays in the pass that follows."""
    device = micro[0].batch.input_ids.device
    rng = _random_state(device)
    logits = _joined([_everyone(engine.logits(m.batch), world) for m in micro])
    _restore_random_state(device, rng)
    weak = torch.cat([m.all_weak for m in micro])
    weights = [m.all_weight for m in micro if m.all_weight is not None]
    weight = torch.cat(weights) if weights else None
    with whole([logits.weight] if isinstance(logits, Projected) else []):
        return loss.threshold(logits, weak, weight=weight, state=state)


def _everyone(logits: Any, world: World) -> Any:
    """Logits of all processes' rows."""
    if isinstance(logits, Projected):
        return replace(logits, hidden=world.all_gather(logits.hidden))
    return world.all_gather(logits)


def _joined(parts: list[Any]) -> Any:
    """Logits of one micro-batch after the other."""
    if isinstance(parts[0], Projected):
        return replace(parts[0], hidden=torch.cat([p.hidden for p in parts]))
    return torch.cat(parts)


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _restore_random_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
