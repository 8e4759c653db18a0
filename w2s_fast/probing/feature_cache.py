"""Hidden states of a frozen model, computed once and then read from disk by every training.

A cache is one memory-mapped safetensors file: processes share its pages, and unread parts take no
memory. Its metadata identify model, layer and texts, so a cache of others is never used by mistake.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from w2s_fast.distributed.world import get_world
from w2s_fast.errors import W2SError
from w2s_fast.models.classifier import Head
from w2s_fast.models.weights import gathered, module_tensors
from w2s_fast.paths import user_path
from w2s_fast.probing.hidden_states import hidden_states
from w2s_fast.training.data import Batch, Encoded

_DTYPES = {torch.bfloat16: "BF16", torch.float32: "F32"}


def cache_features(
    model: nn.Module,
    data: Encoded,
    path: str | Path,
    layer: int | str = -1,
    dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """Return the input of a head on a layer for every row; computed unless ``path`` exists.

    Args:
        model, data, layer: see ``hidden_states``.
        path: a safetensors file, written once.
        dtype: ``torch.bfloat16`` (2 bytes a number, 8 significant bits) or ``torch.float32``.

    Returns:
        (N, D) of ``dtype``, memory-mapped.

    Raises:
        W2SError: see ``hidden_states``; or if the file at ``path`` holds something else.
    """
    metadata = {"layer": str(layer), **identity(model, data)}

    def fill(out: Tensor | None) -> None:
        states = torch.from_numpy(hidden_states(model, data, layer))  # a collective call
        if out is not None:
            out.copy_(states)

    base: Any = getattr(model, "base", model)
    config = getattr(base, "config", None)
    return cached(path, (len(data), getattr(config, "hidden_size", 0)), dtype, metadata, fill)


class CachedRows:
    """Features as rows of ``train`` and ``predict``, for a ``CachedHead``.

    Args:
        features: (N, D).
    """

    def __init__(self, features: Tensor) -> None:
        self.features = features

    def __len__(self) -> int:
        return len(self.features)

    @property
    def lengths(self) -> np.ndarray:
        """(N,) ones: a row is one vector."""
        return np.ones(len(self), dtype=np.int64)

    def digest(self) -> str:
        """See ``Encoded``."""
        h = hashlib.sha256(f"features {tuple(self.features.shape)}".encode())
        h.update(as_bytes(self.features))
        return h.hexdigest()

    def rows(self, part: slice) -> CachedRows:
        """Select contiguous rows."""
        return CachedRows(self.features[part])

    def batch(self, rows: np.ndarray, device: torch.device | str = "cpu") -> Batch:
        """Return features (B, D) in place of token ids, and a mask (B, 1) of ones."""
        x = self.features[torch.from_numpy(rows)].to(device)
        return Batch(x, torch.ones(len(rows), 1, dtype=torch.int64, device=device), None)


class CachedHead(nn.Module):
    """A ``Classifier`` without its base: a linear head on features.

    Args:
        hidden: D.
        n_classes: C.
        start: initial head, copied; None: zero.
        n_candidates: 2 for a reward model: features are those of the second completion minus those
            of the first, and the logits are the scores r(first) and r(second) up to what both
            share.
    """

    def __init__(
        self, hidden: int, n_classes: int, start: nn.Linear | None = None, n_candidates: int = 1
    ) -> None:
        super().__init__()
        self.n_classes, self.n_candidates = n_classes, n_candidates
        outputs, bias = (n_classes, True) if n_candidates == 1 else (1, False)
        self.head = Head(hidden, outputs, bias=bias, dtype=torch.float32)
        with torch.no_grad():
            for t in self.head.parameters():
                t.zero_()
            if start is not None:
                self.head.load_state_dict(start.state_dict())

    def forward(self, features: Tensor, mask: Tensor, types: Tensor | None = None) -> Tensor:
        """Return (B, C) logits of features (B, D); the mask is not used."""
        out = self.head(features)
        return out if self.n_candidates == 1 else torch.cat([torch.zeros_like(out), out], dim=1)


def cached(
    path: str | Path,
    shape: tuple[int, int],
    dtype: torch.dtype,
    metadata: Mapping[str, str],
    fill: Callable[[Tensor | None], None],
) -> Tensor:
    """Return the memory-mapped tensor at ``path``; write it first if the file does not exist.

    Under a launcher rank 0 writes; ``fill`` runs on every process, with None on the others.

    Raises:
        W2SError: for an unsupported dtype, a file that cannot be written or read, or one with other
            metadata.
    """
    if dtype not in _DTYPES:
        raise W2SError(f"a cache holds torch.bfloat16 or torch.float32; dtype is {dtype}")
    path, world = user_path(path, "path"), get_world()
    metadata = {**metadata, "dtype": str(dtype), "shape": str(list(shape))}
    if not world.broadcast_object(path.exists()):
        error = ""
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            fill(
                _create_mapped(temporary, shape, dtype, metadata) if world.is_main_process else None
            )
            if world.is_main_process:
                os.replace(temporary, path)
        except OSError as e:
            error = f"states could not be written to {path}: {e.strerror or e}"
        finally:
            temporary.unlink(missing_ok=True)
        if error := world.broadcast_object(error):
            raise W2SError(error)
    return _open(path, metadata)


def _create_mapped(
    path: Path, shape: tuple[int, int], dtype: torch.dtype, metadata: Mapping[str, str]
) -> Tensor:
    """Create a safetensors file of one tensor, mapped for writing; it may exceed the memory."""
    size = shape[0] * shape[1] * dtype.itemsize
    entry = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [0, size]}
    head = json.dumps({"__metadata__": dict(metadata), "states": entry}).encode()
    head += b" " * (-len(head) % 64)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as f:
        f.write(len(head).to_bytes(8, "little") + head)
        os.posix_fallocate(f.fileno(), 0, 8 + len(head) + size)  # raises OSError on a full disk
    raw = torch.from_file(str(path), shared=True, size=8 + len(head) + size, dtype=torch.uint8)
    return raw[8 + len(head) :].view(dtype).view(shape)


def _open(path: Path, metadata: Mapping[str, str]) -> Tensor:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as f:
            saved = f.metadata() or {}
            states = f.get_tensor("states")
    except (OSError, SafetensorError) as e:
        raise W2SError(f"{path} is not a cache of states ({e}); remove it or name another") from e
    for name, expected in metadata.items():
        if saved.get(name) != expected:
            raise W2SError(
                f"{path} holds states of another {name} ({saved.get(name)}, expected {expected}); "
                "remove it or name another"
            )
    return states


def identity(model: nn.Module, data: Encoded) -> dict[str, str]:
    """Identify states by the weights of the base, its pooling, and the rows."""
    base = getattr(model, "base", model)
    h = hashlib.sha256()
    for name, t in module_tensors(base).items():
        with gathered([t]):
            h.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
            h.update(as_bytes(t.detach().cpu()))
    return {
        "model": h.hexdigest(),
        "pooling": str(getattr(model, "pooling", "last")),
        "data": data.digest(),
    }


def as_bytes(t: Tensor) -> memoryview:
    """Return the bytes of a tensor; a contiguous one is not copied."""
    return t.contiguous().flatten().view(torch.uint8).numpy().data
