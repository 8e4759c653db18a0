"""The strong view of a batch: rows without some of their tokens, or without some of their features.

Every draw is a function of the training's seed, the step, the place of the row in the step and the
token, so micro-batches, processes and resumed trainings see the same views.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from w2s_fast.training.data import Batch, derived_seed

_STREAM = 2  # tells these draws from other ones of the same seed and step


def strong_view(batch: Batch, places: Sequence[int], rate: float, seed: int, step: int) -> Batch:
    """Return the batch without a share of its tokens, or of its features.

    Tokens are removed with probability ``rate``, and the others move together; the first and the
    last one of each row remain. Cached features, which are one vector a row, have dropout: entries
    are 0 with probability ``rate`` and the others are divided by 1 - ``rate``.

    Args:
        batch: (B, T) tokens, (B, T, D) cached states of tokens, or (B, D) cached features.
        places: place in the step of each example; an example may have several adjacent rows.
        rate: in [0, 1).
        seed: of the training.
        step: of the training, from 0.
    """
    x, mask = batch.input_ids, batch.attention_mask
    if x.is_floating_point() and x.dim() == 2:
        return batch._replace(input_ids=dropped_features(x, places, rate, seed, step))
    n, length = mask.shape
    draws = torch.from_numpy(_uniforms(places, n, length, seed, step)).to(mask.device)
    place = torch.arange(length, device=mask.device)
    end = (place == 0) | (place == mask.sum(1, keepdim=True) - 1)
    kept = (mask != 0) & ((draws >= rate) | end)
    order = (~kept).to(torch.int8).argsort(dim=1, stable=True)

    def moved(t: Any) -> Any:
        if t is None:
            return None
        return t.gather(1, order) if t.dim() == 2 else t[torch.arange(n)[:, None], order]

    return Batch(moved(x), moved(kept.to(mask.dtype)), moved(batch.token_type_ids))


def dropped_features(x: Tensor, places: Sequence[int], rate: float, seed: int, step: int) -> Tensor:
    """Return features (B, D) with dropout, at least in fp32; see ``strong_view``."""
    draws = torch.from_numpy(_uniform_rows(places, len(x), x.shape[1], seed, step)).to(x.device)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return (x / (1 - rate)).masked_fill_(draws < rate, 0.0)


def _uniforms(places: Sequence[int], n: int, length: int, seed: int, step: int) -> np.ndarray:
    """Return (n, length) numbers in [0, 1); a longer row begins with those of a shorter one."""
    rows = n // len(places)
    out = np.empty((n, length), np.float32)
    bits = _bits(seed, step)
    generator, state = np.random.Generator(bits), bits.state
    for i in range(n):  # a place in the generator's counter for each row
        state["state"]["counter"][2:] = int(places[i // rows]), i % rows
        bits.state = state
        generator.random(dtype=np.float32, out=out[i])
    return out


def _uniform_rows(places: Sequence[int], n: int, width: int, seed: int, step: int) -> np.ndarray:
    """Return (n, width) such numbers where every row of the step has this width: in one draw."""
    rows, last = n // len(places), max(places)
    draws = np.random.Generator(_bits(seed, step)).random((last + 1, rows * width), np.float32)
    return draws[np.asarray(places, np.int64)].reshape(n, width)


def _bits(seed: int, step: int) -> np.random.Philox:
    return np.random.Philox(key=derived_seed(seed, step, _STREAM))
