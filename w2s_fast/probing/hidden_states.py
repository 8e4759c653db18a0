"""Hidden states of a layer, pooled to one vector a row: what probes of a model read."""

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
    """The vector that a head on this layer would read, of every row.

    Batched and shared out as in ``predict``; the model runs in eval mode and comes back as it was.

    Args:
        model: of ``build_model``, pooled as it pools itself, or a transformers base model, of which
            the last token is read.
        data: rows to read.
        layer: 0 is the embedding, L the output of the last of L layers with the final norm;
            negative ones count from the end, ``"last"`` is L and ``"half"`` L // 2.
        batch_size: rows of one forward at most.

    Returns:
        (N, D) float32 in input order; of preferences second minus first completion, of which the
        log-odds of a reward model are a linear function.

    Raises:
        W2SError: for a layer that the model does not have, or a model without hidden states.
    """
    base: Any = getattr(model, "base", model)
    if not hasattr(base, "config"):
        raise W2SError(f"{type(model).__name__} has no layers to read; use a transformers model")
    how = getattr(model, "pooling", "last")
    at = _index(layer, base.config.num_hidden_layers)

    def compute(batch: Batch) -> Tensor:
        segments = {} if batch.token_type_ids is None else {"token_type_ids": batch.token_type_ids}
        out = base(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            output_hidden_states=True,
            **segments,
        )
        pooled = pool(out.hidden_states[at], batch.attention_mask, how).float()
        return pooled[1::2] - pooled[::2] if data.n_candidates == 2 else pooled

    return map_batches(model, data, batch_size, compute)


def _index(layer: int | str, layers: int) -> int:
    """Position among the L + 1 states."""
    if layer in ("half", "last"):
        return layers // 2 if layer == "half" else layers
    if not isinstance(layer, int) or not -layers - 1 <= layer <= layers:
        raise W2SError(
            f"layer is {layer!r}; expected {-layers - 1} to {layers}, 'half' or 'last' for a model "
            f"of {layers} layers"
        )
    return layer % (layers + 1)
