"""Hidden states of a layer, pooled to one vector a row, as the input of probes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from w2s_fast.errors import W2SError
from w2s_fast.models.classifier import pool
from w2s_fast.training.data import Batch, Encoded
from w2s_fast.training.prediction import map_batches


@torch.inference_mode()
def hidden_states(
    model: nn.Module, data: Encoded, layer: int | str = -1, batch_size: int = 64
) -> np.ndarray:
    """Return the input of a head on a layer for every row.

    Batches are distributed as in ``predict``; the model runs in eval mode and is returned to its
    mode.

    Args:
        model: from ``build_model``, with its own pooling, or a transformers base model, whose last
            token is used.
        data: rows to read.
        layer: 0 is the embedding, L the output of the last of L layers with the final norm;
            negative numbers count from the end, ``"last"`` is L and ``"half"`` L // 2.
        batch_size: maximum rows of one forward.

    Returns:
        (N, D) float32 in input order; for preferences the second minus the first completion, of
        which the log-odds of a reward model are a linear function.

    Raises:
        W2SError: for a layer that the model does not have, or a model without hidden states.
    """
    base: Any = getattr(model, "base", model)
    if not hasattr(base, "config"):
        raise W2SError(f"{type(model).__name__} has no layers to read; use a transformers model")
    pooling = getattr(model, "pooling", "last")
    index = _layer_index(layer, base.config.num_hidden_layers)

    def compute(batch: Batch) -> Tensor:
        segments = {} if batch.token_type_ids is None else {"token_type_ids": batch.token_type_ids}
        out = base(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            output_hidden_states=True,
            **segments,
        )
        pooled = pool(out.hidden_states[index], batch.attention_mask, pooling).float()
        return pooled[1::2] - pooled[::2] if data.n_candidates == 2 else pooled

    return map_batches(model, data, batch_size, compute)


def _layer_index(layer: int | str, layers: int) -> int:
    """Return the index of a layer among the L + 1 states."""
    if layer in ("half", "last"):
        return layers // 2 if layer == "half" else layers
    if not isinstance(layer, int) or not -layers - 1 <= layer <= layers:
        raise W2SError(
            f"layer is {layer!r}; expected {-layers - 1} to {layers}, 'half' or 'last' for a model "
            f"of {layers} layers"
        )
    return layer % (layers + 1)
