"""Prediction: batches of rows of similar length, distributed over the processes, results in order.

The batches are a function of the rows alone, so results do not depend on the number of processes;
they are bitwise identical where all processes have the same processor and number of threads. A
batch holds rows of nearly one length up to a number of tokens, so little padding is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from w2s_fast.distributed.world import World, get_world
from w2s_fast.errors import W2SError
from w2s_fast.training.completion_pairs import CompletionPairs
from w2s_fast.training.data import RowData, token_batches
from w2s_fast.training.engine import forward
from w2s_fast.training.train_mode import eval_mode


@torch.inference_mode()
def predict(
    model: nn.Module,
    data: RowData,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Predict class probabilities of every row.

    The model runs in eval mode and is returned to its mode; random state is not touched. Under a
    launcher every process calls this with the same rows, computes its share and receives all.

    Args:
        model: ``forward(input_ids, attention_mask)`` returns logits (B, C).
        data: rows to predict.
        batch_size: maximum rows of one forward.
        progress: called on rank 0 with (rows done, rows).

    Returns:
        (N, C) float32 probabilities in input order.

    Raises:
        W2SError: if a probability is not finite, because the model has diverged, or for pairs.
    """
    if isinstance(data, CompletionPairs):
        raise W2SError("the data are CompletionPairs; expected rows of classes, use predict_pairs")
    probs = map_batches(
        model, data, batch_size, lambda batch: forward(model, batch).float().softmax(1), progress
    )
    finite = np.isfinite(probs).all(1)
    if not finite.all():
        raise W2SError(
            f"the prediction of row {int(np.flatnonzero(~finite)[0])} is not finite; the model has "
            "diverged, train it with a smaller lr"
        )
    return probs


def map_batches(
    model: nn.Module,
    data: Any,
    batch_size: int,
    compute: Callable[[Any], Tensor],
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Apply ``compute`` to all rows in batches, distributed over the processes.

    Args:
        model: put in eval mode meanwhile.
        data: rows with ``lengths`` and ``batch``, such as ``Encoded``.
        batch_size, progress: see ``predict``.
        compute: (B, C) results of a batch on the model's device, the same C for every batch.

    Returns:
        (N, C) results of all rows in input order, on every process.
    """
    world = get_world()
    device = next(model.parameters()).device
    batches = list(token_batches(data.lengths, batch_size))
    parts: list[Tensor] = []
    with eval_mode(model):
        for own, group in distributed_batches(batches, world, progress):
            parts.append(_all_gather(compute(data.batch(own, device)), group, world))
    sorted_results = torch.cat(parts).cpu().numpy()
    results = np.empty_like(sorted_results)
    results[np.concatenate(batches)] = sorted_results
    return results


def distributed_batches(
    batches: Sequence[np.ndarray],
    world: World,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[np.ndarray, Sequence[np.ndarray]]]:
    """Yield this process's batch and the group of batches that are computed at the same time.

    In the last group a process without a batch repeats the last one: a partitioned model needs all
    processes in every forward. ``progress`` is called on rank 0 with (rows done, rows).
    """
    done, total = 0, sum(map(len, batches))
    for start in range(0, len(batches), world.size):
        group = batches[start : start + world.size]
        yield group[min(world.rank, len(group) - 1)], group
        done += sum(map(len, group))
        if progress is not None and world.is_main_process:
            progress(done, total)


def _all_gather(results: Tensor, group: Sequence[np.ndarray], world: World) -> Tensor:
    """Return the results of a group of batches, batch after batch."""
    if world.size == 1:
        return results
    most = max(map(len, group))
    padded = results.new_zeros((most, results.shape[1]))
    padded[: len(results)] = results
    gathered = world.all_gather(padded).view(most, world.size, -1)
    return torch.cat([gathered[: len(rows), r] for r, rows in enumerate(group)])
