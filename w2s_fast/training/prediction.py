"""Prediction: batches of rows of like length, shared out over the processes, results in order.

The batches are a function of the rows alone, so the number of processes changes nothing; where all
have the same processor and as many threads, not even a last bit. A batch holds rows of nearly one
length up to a number of tokens: hardly any padding is computed, whatever the texts are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from w2s_fast.distributed.world import get_world
from w2s_fast.errors import W2SError
from w2s_fast.training.data import RowData, token_batches
from w2s_fast.training.step import forward


@torch.inference_mode()
def predict(
    model: nn.Module,
    data: RowData,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Class probabilities of every row.

    The model runs in eval mode and is left in the mode it came in; random state is not touched.
    Under a launcher every process calls this with the same rows, computes its share and gets all.

    Args:
        model: ``forward(input_ids, attention_mask)`` gives logits (B, C).
        data: rows to predict.
        batch_size: rows of one forward at most.
        progress: called on rank 0 with (rows done, rows).

    Returns:
        (N, C) float32 probabilities in input order.

    Raises:
        W2SError: if a probability is not finite; the model has diverged.
    """
    out = share(
        model, data, batch_size, lambda batch: forward(model, batch).float().softmax(1), progress
    )
    if not np.isfinite(out).all():
        row = int(np.flatnonzero(~np.isfinite(out).all(1))[0])
        raise W2SError(
            f"the prediction of row {row} is not finite; the model has diverged, "
            "train it with a smaller lr"
        )
    return out


def share(
    model: nn.Module,
    data: Any,
    batch_size: int,
    compute: Callable[[Any], Tensor],
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """(N, C) results of all rows in input order, each process computing its share of batches.

    Args:
        model: put in eval mode meanwhile.
        data: rows with ``lengths`` and ``batch``, such as ``Encoded``.
        batch_size, progress: see ``predict``.
        compute: (B, C) results of a batch on the model's device, the same C for every batch.
    """
    world = get_world()
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    batches = list(token_batches(data.lengths, batch_size))
    parts: list[Tensor] = []
    done = 0
    try:
        for start in range(0, len(batches), world.size):
            together = batches[start : start + world.size]
            # A partitioned model needs all of its processes in every forward.
            mine = together[min(world.rank, len(together) - 1)]
            parts.append(_gather(compute(data.batch(mine, device)), together))
            done += sum(map(len, together))
            if progress is not None and world.is_main_process:
                progress(done, len(data))
    finally:
        model.train(training)
    bucketed = torch.cat(parts).cpu().numpy()
    out = np.empty_like(bucketed)
    out[np.concatenate(batches)] = bucketed
    return out


def _gather(found: Tensor, together: list[np.ndarray]) -> Tensor:
    """Rows of all batches that the processes computed at once, batch after batch."""
    world = get_world()
    if world.size == 1:
        return found
    most = max(map(len, together))
    padded = found.new_zeros((most, found.shape[1]))
    padded[: len(found)] = found
    everyone = world.all_gather(padded).view(most, world.size, -1)
    return torch.cat([everyone[: len(rows), r] for r, rows in enumerate(together)])
