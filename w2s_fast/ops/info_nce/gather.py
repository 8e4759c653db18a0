"""Documents of all ranks as negatives of the queries of each."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.ops.quantile.distributed import check_group
from w2s_fast.ops.transforms import refuse_transforms


def gather_documents(documents: Tensor, group: Any = None) -> tuple[Tensor, int]:
    """Gather the documents of all ranks, with gradients; every rank must call.

    Every rank gets the same documents, those of rank 0 first. Backward sums over ranks the
    gradients of each document at the rank that made it: where parameters' gradients are then
    averaged over ranks, as DistributedDataParallel does, they are those of the mean loss over the
    queries of all ranks.

    Args:
        documents: (M, D), of the same shape and dtype on every rank. Get gradients.
        group: a process group; None for all processes.

    Returns:
        (R M, D), and the row at which this rank's documents begin: with ``info_nce``, add it to
        ``positives``.

    Raises:
        W2SError: without a process group, for no matrix, or for shapes that differ over ranks; the
            latter on every rank.
        RuntimeError: in a ``torch.func`` transform.
    """
    if group is None:
        group = dist.group.WORLD if dist.is_available() else None
    check_group(group)
    if documents.dim() != 2:
        raise W2SError(f"documents have shape {tuple(documents.shape)}; expected (M, D)")
    refuse_transforms("gather_documents", documents)
    _check_shapes(documents, group)
    gathered: Tensor = _Gather.apply(documents, group)
    return gathered, dist.get_rank(group) * documents.shape[0]


def _check_shapes(documents: Tensor, group: Any) -> None:
    mine = torch.tensor(documents.shape, device=documents.device)
    shapes = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(shapes, mine, group=group)
    found = [tuple(shape.tolist()) for shape in shapes]
    if len(set(found)) > 1:
        raise W2SError(
            f"documents have shapes {found} on ranks 0 to {len(found) - 1}; expected one shape: "
            "drop the last incomplete batch"
        )


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, documents: Tensor, group: Any) -> Tensor:
        ctx.group, ctx.rows = group, documents.shape[0]
        parts = [torch.empty_like(documents) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, documents.contiguous(), group=group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total = grad.contiguous().clone()
        # Not reduce_scatter, which gloo does not have in every release.
        dist.all_reduce(total, group=ctx.group)
        first = dist.get_rank(ctx.group) * ctx.rows
        return total[first : first + ctx.rows], None
