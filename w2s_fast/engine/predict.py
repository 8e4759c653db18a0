"""Prediction: length-bucketed batches, results in the order of the input."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from w2s_fast.engine.data import Encoded, length_buckets
from w2s_fast.engine.step import forward
from w2s_fast.errors import W2SError


@torch.inference_mode()
def predict(
    model: nn.Module,
    data: Encoded,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Class probabilities of every row.

    The model runs in eval mode and is left in the mode it came in; random state is not touched.

    Args:
        model: ``forward(input_ids, attention_mask)`` gives logits (B, C).
        data: rows to predict.
        batch_size: rows of one forward.
        progress: called after each batch with (rows done, rows).

    Returns:
        (N, C) float32 probabilities in input order.

    Raises:
        W2SError: if a probability is not finite; the model has diverged.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    parts, order, done = [], [], 0
    try:
        for rows in length_buckets(data.lengths, batch_size):
            logits = forward(model, data.batch(rows, device))
            parts.append(logits.float().softmax(1))
            order.append(rows)
            done += len(rows)
            if progress is not None:
                progress(done, len(data))
    finally:
        model.train(training)
    bucketed = torch.cat(parts).cpu().numpy()
    out = np.empty_like(bucketed)
    out[np.concatenate(order)] = bucketed
    if not np.isfinite(out).all():
        row = int(np.flatnonzero(~np.isfinite(out).all(1))[0])
        raise W2SError(
            f"the prediction of row {row} is not finite; the model has diverged, "
            "train it with a smaller lr"
        )
    return out
