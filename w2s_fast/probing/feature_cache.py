"""Hidden states of a frozen model, computed once and read from disk by every training after that.

A cache is one safetensors file, read through a memory map: processes share its pages, and what is
not read costs no memory. Its metadata say what it is of, so that the states of other texts, of
another layer or of another model are never taken for these.
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
    """What a head on this layer reads of every row; computed only if ``path`` does not hold it yet.

    Args:
        model, data, layer: see ``hidden_states``.
        path: a safetensors file, written once.
        dtype: ``torch.bfloat16`` (2 bytes a number, 8 significant bits) or ``torch.float32``.

    Returns:
        (N, D) of ``dtype``, memory-mapped.

    Raises:
        W2SError: for what ``hidden_states`` refuses, or a file of something else at ``path``.
    """
    what = {"layer": str(layer), **identity(model, data)}

    def fill(out: Tensor | None) -> None:
        states = torch.from_numpy(hidden_states(model, data, layer))  # all processes take part
        if out is not None:
            out.copy_(states)

    base: Any = getattr(model, "base", model)
    config = getattr(base, "config", None)
    return cached(path, (len(data), getattr(config, "hidden_size", 0)), dtype, what, fill)


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
        """Some of the rows, in their order."""
        return CachedRows(self.features[part])

    def batch(self, rows: np.ndarray, device: torch.device | str = "cpu") -> Batch:
        """Features (B, D) in the place of token ids, and a mask (B, 1) of ones."""
        x = self.features[torch.from_numpy(rows)].to(device)
        return Batch(x, torch.ones(len(rows), 1, dtype=torch.int64, device=device), None)


class CachedHead(nn.Module):
    """A ``Classifier`` without its base: a linear head on features.

    Args:
        hidden: D.
        n_classes: C.
        start: where the head starts, copied; None: zero.
        n_candidates: 2 of a reward model: features are those of the second completion minus those
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
        """(B, C) logits of features (B, D); the mask plays no part."""
        out = self.head(features)
        return out if self.n_candidates == 1 else torch.cat([torch.zeros_like(out), out], dim=1)


# Files ----------------------------------------------------------------------------------------


def cached(
    path: str | Path,
    shape: tuple[int, int],
    dtype: torch.dtype,
    what: Mapping[str, str],
    fill: Callable[[Tensor | None], None],
) -> Tensor:
    """The memory-mapped tensor at ``path``, filled and written first if there is no such file.

    Under a launcher rank 0 writes; ``fill`` runs on every process, with None on the others.

    Raises:
        W2SError: for a dtype that is not stored, a file that cannot be written or read, or one of
            something else.
    """
    if dtype not in _DTYPES:
        raise W2SError(f"a cache holds torch.bfloat16 or torch.float32; dtype is {dtype}")
    path, world = Path(path), get_world()
    what = {**what, "dtype": str(dtype), "shape": str(list(shape))}
    if not world.broadcast_object(path.exists()):
        error = ""
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            fill(_mapped(temporary, shape, dtype, what) if world.is_main_process else None)
            if world.is_main_process:
                os.replace(temporary, path)
        except OSError as e:
            error = f"states could not be written to {path}: {e.strerror or e}"
        finally:
            temporary.unlink(missing_ok=True)
        if error := world.broadcast_object(error):
            raise W2SError(error)
    return _opened(path, what)


def _mapped(
    path: Path, shape: tuple[int, int], dtype: torch.dtype, what: Mapping[str, str]
) -> Tensor:
    """A new safetensors file of one tensor, mapped for writing: it may be larger than memory."""
    size = shape[0] * shape[1] * dtype.itemsize
    entry = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [0, size]}
    head = json.dumps({"__metadata__": dict(what), "states": entry}).encode()
    head += b" " * (-len(head) % 64)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as f:
        f.write(len(head).to_bytes(8, "little") + head)
        os.posix_fallocate(f.fileno(), 0, 8 + len(head) + size)  # a full disk shows now, as OSError
    raw = torch.from_file(str(path), shared=True, size=8 + len(head) + size, dtype=torch.uint8)
    return raw[8 + len(head) :].view(dtype).view(shape)


def _opened(path: Path, what: Mapping[str, str]) -> Tensor:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as f:
            found = f.metadata() or {}
            states = f.get_tensor("states")
    except (OSError, SafetensorError) as e:
        raise W2SError(f"{path} is no cache of states ({e}); remove it or name another") from e
    for name, wanted in what.items():
        if found.get(name) != wanted:
            raise W2SError(
                f"{path} holds states of another {name} ({found.get(name)}, wanted {wanted}); "
                "remove it or name another"
            )
    return states


def identity(model: nn.Module, data: Encoded) -> dict[str, str]:
    """What states are of: the weights of the base, how it is pooled, and the rows."""
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
    """The bytes of a tensor in its order; a contiguous one is not copied."""
    return t.contiguous().flatten().view(torch.uint8).numpy().data
