"""Training mode without its noise: dropout off while gradient checkpointing still works.

Switching a transformers model to eval() turns dropout off but gradient checkpointing too. So the
model stays in train mode and every dropout probability is 0 for the time being.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

from w2s_fast.errors import W2SError
from w2s_fast.training.config import TrainConfig


@contextlib.contextmanager
def training_mode(model: nn.Module, cfg: TrainConfig) -> Iterator[None]:
    """Train mode, dropout and gradient checkpointing as configured; all undone afterwards."""
    was_training = model.training
    changed = [] if cfg.dropout else _dropout_rates(model)
    model.train()
    for owner, name, _ in changed:
        setattr(owner, name, 0.0)
    if cfg.gradient_checkpointing:
        _checkpointing(model, True)
    try:
        yield
    finally:
        for owner, name, rate in changed:
            setattr(owner, name, rate)
        if cfg.gradient_checkpointing:
            _checkpointing(model, False)
        model.train(was_training)


def _dropout_rates(model: nn.Module) -> list[tuple[Any, str, float]]:
    """(owner, attribute, value) of every rate: dropout modules, and floats named like one.

    Attention modules of transformers keep their rate as a number, on themselves or in the config.
    """
    found: dict[tuple[int, str], tuple[Any, str, float]] = {}
    for module in model.modules():
        names = ["p"] if isinstance(module, nn.modules.dropout._DropoutNd) else []
        owners = [(module, names + _rates(module))]
        config = getattr(module, "config", None)
        if config is not None:
            owners.append((config, _rates(config)))
        for owner, attributes in owners:
            for name in attributes:
                found[id(owner), name] = (owner, name, getattr(owner, name))
    return list(found.values())


def _rates(owner: Any) -> list[str]:
    return [k for k, v in vars(owner).items() if "drop" in k and isinstance(v, float) and v > 0]


def _checkpointing(model: nn.Module, on: bool) -> None:
    switch = getattr(model, "gradient_checkpointing", None)
    if not callable(switch):
        raise W2SError(
            f"{type(model).__name__} has no gradient checkpointing; set "
            "gradient_checkpointing=false"
        )
    switch(on)
