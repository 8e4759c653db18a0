"""How the CUDA kernels are launched for a row: asked of the library's own ``tiling_of_rows``."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import NamedTuple

import torch

from w2s_fast.errors import W2SError
from w2s_fast.ops.loss_call import LossSpec, RowCall
from w2s_fast.ops.targets import LossInputs

_DTYPES = {2: torch.bfloat16, 4: torch.float32}
# Bytes of shared memory that one block may use, and blocks of a cluster.
_LIMITS = {80: (166_912, 1), 90: (232_448, 8), 100: (232_448, 8)}
# Bytes from which a row is split, and of a part: kAloneBytes and kPartBytes of csrc/cuda/tile.h.
_SPLIT = (112 * 1024, 74 * 1024)


class Tiling(NamedTuple):
    """Threads and bytes of shared memory of a block; bytes of the part of a row that it copies."""

    threads: int
    shared: int
    tile: int = 0


def tiling_of_rows(
    arch: int, logits: int, labels: int, classes: int, library: ModuleType | None = None
) -> Tiling:
    """Return the tiling of the row kernels.

    Args:
        logits: bytes of a logit, 2 or 4.
        labels: bytes of a dense label; 0 for listed labels.
        library: the module of the kernels; by default the one that is built.

    Raises:
        W2SError: if neither the CUDA kernels nor their emulation are built.
    """
    library = library or _library()
    listed = torch.zeros(1, 1, dtype=torch.long)
    z = torch.empty(1, classes, dtype=_DTYPES[logits])
    dense = torch.empty(1, classes, dtype=_DTYPES[labels]) if labels else None
    p = LossInputs(z, None if labels else listed, dense, None, None, -100)
    call = RowCall(p, LossSpec(), torch.empty(0), torch.empty(0))
    s = library.tiling_of_rows(call.packed(library.RowCall, 0.0, 0.0, 1.0), *_LIMITS[arch], *_SPLIT)
    part = s["tile"] * 16 * (logits + labels) // logits if s["resident"] else 0
    return Tiling(s["threads"], s["shared"], part)


def _library() -> ModuleType:
    for name in ("_cuda", "_cuda_emulated"):
        try:
            return importlib.import_module(f"w2s_fast.{name}")
        except ModuleNotFoundError:
            continue
    raise W2SError(
        "the tiling of the CUDA kernels is not known: build them with W2S_CUDA=1, or their "
        "emulation with W2S_BUILD_EMULATION=1"
    )
