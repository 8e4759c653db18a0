"""Modes of a model: training without dropout but with gradient checkpointing, and evaluation.

``eval()`` of a transformers model turns off dropout and gradient checkpointing. To keep the latter,
the model stays in train mode and its dropout probabilities are set to 0.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from w2s_fast.errors import W2SError
from w2s_fast.training.config import TrainConfig


@contextlib.contextmanager
def training_mode(model: nn.Module, cfg: TrainConfig) -> Iterator[None]:
    """Set train mode, dropout and gradient checkpointing as configured; undo all afterwards."""
    was_training = model.training
    changed = [] if cfg.dropout else _dropout_rates(model)
    model.train()
    for owner, name, _ in changed:
        setattr(owner, name, 0.0)
    if cfg.gradient_checkpointing:
        _set_gradient_checkpointing(model, True)
    try:
        yield
    finally:
        for owner, name, rate in changed:
            setattr(owner, name, rate)
        if cfg.gradient_checkpointing:
            _set_gradient_checkpointing(model, False)
        model.train(was_training)


def check_no_layer_drop(model: nn.Module, cfg: TrainConfig) -> None:
    """Raise `W2SError` if ranks of ZeRO would skip different layers, whose weights they share."""
    for _, name, rate in _dropout_rates(model) if cfg.dropout else ():
        if "layerdrop" in name:
            raise W2SError(
                f"the model has {name}={rate}: its processes would skip different layers, which "
                f"zero_stage={cfg.zero_stage} cannot sum; use dropout=false or zero_stage=0"
            )


@contextlib.contextmanager
def replayed_random(device: torch.device) -> Iterator[None]:
    """Restore the random state of the device at the end, so what follows draws the same again."""
    cuda = device.type == "cuda"
    state = torch.cuda.get_rng_state(device) if cuda else torch.get_rng_state()
    try:
        yield
    finally:
        if cuda:
            torch.cuda.set_rng_state(state, device)
        else:
            torch.set_rng_state(state)


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Set eval mode; return the model to its mode afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _dropout_rates(model: nn.Module) -> list[tuple[Any, str, float]]:
    """Return (owner, attribute, value) of the rates of dropout modules and floats named like one.

    Attention modules of transformers keep their rate as a number, on themselves or in the config.
    """
    rates: dict[tuple[int, str], tuple[Any, str, float]] = {}
    for module in model.modules():
        names = ["p"] if isinstance(module, nn.modules.dropout._DropoutNd) else []
        owners = [(module, names + _rate_names(module))]
        config = getattr(module, "config", None)
        if config is not None:
            owners.append((config, _rate_names(config)))
        for owner, attributes in owners:
            for name in attributes:
                rates[id(owner), name] = (owner, name, getattr(owner, name))
    return list(rates.values())


def _rate_names(owner: Any) -> list[str]:
    return [k for k, v in vars(owner).items() if "drop" in k and isinstance(v, float) and v > 0]


def _set_gradient_checkpointing(model: nn.Module, on: bool) -> None:
    switch = getattr(model, "gradient_checkpointing", None)
    if not callable(switch):
        raise W2SError(
            f"{type(model).__name__} has no gradient checkpointing; set "
            "gradient_checkpointing=false"
        )
    switch(on)
