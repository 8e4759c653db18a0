"""Weights of a module as tensors by name, and as one safetensors file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from w2s_fast.errors import W2SError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


def save_weights(model: nn.Module, path: str | Path) -> None:
    """Write a model's weights as one safetensors file, whole or not at all."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file({k: t.detach().contiguous() for k, t in module_tensors(model).items()}, temporary)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as e:
        temporary.unlink(missing_ok=True)
        raise W2SError(f"weights could not be written to {path}: {' '.join(str(e).split())}") from e


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load what ``save_weights`` wrote into a model built from the same configuration.

    Raises:
        W2SError: if the file cannot be read or does not fit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as e:
        raise W2SError(f"weights {path} cannot be read: {' '.join(str(e).split())}") from e
    load_module(model, tensors)


def module_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, tied ones once."""
    out: dict[str, Tensor] = {}
    seen: set[tuple[int, torch.Size]] = set()
    for name, t in module.state_dict(keep_vars=True).items():
        key = (t.data_ptr(), t.shape)
        if t.numel() == 0 or key not in seen:
            seen.add(key)
            out[name] = t
    return out


def load_module(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copy saved tensors into a module of the same architecture.

    Raises:
        W2SError: if names or shapes do not fit.
    """
    own = module_tensors(module)
    for name in sorted({*own, *tensors}):
        there, here = tensors.get(name), own.get(name)
        if there is None or here is None or there.shape != here.shape:
            raise W2SError(
                f"saved weights do not fit the model at {name!r}: saved "
                f"{None if there is None else tuple(there.shape)}, expected "
                f"{None if here is None else tuple(here.shape)}; build the model they came from"
            )
        here.detach().copy_(there)
