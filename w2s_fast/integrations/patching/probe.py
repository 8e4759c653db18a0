"""A batch of twelve tokens to try a model on, and eval mode to try it in."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from w2s_fast.integrations.patching.adapters import weight_owner


def probe_batch(lm: Any) -> dict[str, Any]:
    """Return a batch (2, 6) of ids of text tokens, some masked and some without a label."""
    v = int(weight_owner(lm.get_output_embeddings()).out_features)
    special = _special_ids(lm.config.to_dict())
    text = [i for i in range(v) if i not in special] or [0]
    picked = [text[i * max(len(text) // 12, 1) % len(text)] for i in range(12)]
    ids = torch.tensor(picked, device=head_device(lm)).view(2, 6)
    mask, labels = torch.ones_like(ids), ids.clone()
    mask[1, 4:], labels[0, :2] = 0, -100
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    has_cache = "use_cache" in inspect.signature(type(lm).forward).parameters
    return {**batch, "use_cache": False} if has_cache else batch


def head_device(lm: Any) -> torch.device:
    """Return the device of the head's weight."""
    device: torch.device = weight_owner(lm.get_output_embeddings()).weight.device
    return device


@contextmanager
def evaluating(lm: Any) -> Iterator[None]:
    """Set eval mode inside the block; restore the mode of every module afterwards."""
    training = [m for m in lm.modules() if m.training]
    lm.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _special_ids(config: dict[str, Any]) -> set[int]:
    """Return ids of image tokens, padding and the like, at any depth of a configuration."""
    ids: set[int] = set()
    for name, value in config.items():
        if isinstance(value, dict):
            ids |= _special_ids(value)
        elif str(name).endswith(("token_id", "token_index")) and isinstance(value, int):
            ids.add(value)
    return ids
