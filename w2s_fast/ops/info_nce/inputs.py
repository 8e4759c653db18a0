"""Checks of what InfoNCE is called with, before anything is computed."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.ops.checks import check_dense, check_weight, check_weight_dtype
from w2s_fast.ops.dtypes import LOGIT_DTYPES, accumulator, autocast_dtype
from w2s_fast.ops.info_nce.call import EXCLUDED, NO_MARGIN, Negatives, Pairs
from w2s_fast.ops.results import check_reduction
from w2s_fast.ops.transforms import values

IGNORE = -100
SOURCES = ("other_groups", "same_group")


def check_pairs(queries: Tensor, documents: Tensor) -> None:
    """Raise ``W2SError`` where queries (N, D) and documents (M, D) do not fit together."""
    check_dense("queries", queries)
    check_dense("documents", documents)
    if queries.dtype not in LOGIT_DTYPES:
        raise W2SError(f"queries have dtype {queries.dtype}; expected fp32, bf16, fp16 or fp64")
    if queries.dim() != 2:
        raise W2SError(
            f"queries have shape {tuple(queries.shape)}; expected (N, D), one embedding a row"
        )
    if documents.dim() != 2 or documents.shape[1] != queries.shape[1] or not documents.shape[0]:
        raise W2SError(
            f"documents have shape {tuple(documents.shape)}; expected (M, D) with M of 1 or more "
            f"and D = {queries.shape[1]}; hard negatives (N, K, D) are flattened and appended"
        )
    one_dtype = autocast_dtype(documents) == autocast_dtype(queries)
    if not one_dtype or documents.device != queries.device:
        raise W2SError(
            f"documents are {documents.dtype} on {documents.device}, queries {queries.dtype} on "
            f"{queries.device}; bring them to one dtype and device, or run under torch.autocast"
        )


def unit_vectors(x: Tensor) -> Tensor:
    """Return rows of length 1, in fp32 where ``x`` has 16 bits.

    There a length may be infinite or, rounded, move all similarities of its row the same way.
    """
    return F.normalize(x.to(accumulator(x.dtype)), dim=-1)


def check_options(
    temperature: float, focal_gamma: float, margin: float | None, negatives: str, reduction: str
) -> None:
    """Raise ``W2SError`` for an option out of its range."""
    check_reduction(reduction)
    if not 0 < temperature < math.inf:
        raise W2SError(f"temperature is {temperature}; expected a positive number, such as 0.05")
    if not 0 <= focal_gamma < math.inf:
        raise W2SError(f"focal_gamma is {focal_gamma}; expected a number >= 0, such as 0.5")
    if margin is not None and not math.isfinite(margin):
        raise W2SError(f"margin is {margin}; expected a number such as 0.1, or None for no margin")
    if negatives not in SOURCES:
        raise W2SError(f"negatives is {negatives!r}; expected one of {SOURCES}")


def checked_weight(weight: Tensor | None, queries: Tensor) -> Tensor | None:
    """Return row weights (N,) in the precision of the record.

    Raises:
        W2SError: for a shape, dtype, device or value that does not fit.
    """
    if weight is None:
        return None
    n = queries.shape[0]
    if tuple(weight.shape) != (n,) or weight.device != queries.device:
        raise W2SError(
            f"weight has shape {tuple(weight.shape)} on {weight.device}; expected ({n},) on "
            f"{queries.device}"
        )
    check_weight_dtype(weight)
    check_weight(weight)
    return weight.to(accumulator(queries.dtype))


def checked_positives(
    positives: Tensor | None, weight: Tensor | None, queries: Tensor, documents: Tensor
) -> Tensor:
    """Return (N,) int64 rows of documents, ``EXCLUDED`` where a query does not count.

    Raises:
        W2SError: for a shape, dtype, device or row that does not fit.
    """
    n, m = queries.shape[0], documents.shape[0]
    if positives is None:
        if m < n:
            raise W2SError(
                f"there are {m} documents for {n} queries; expected document i to be the positive "
                "of query i, or positives (N,) with the row of each query's positive"
            )
        rows = torch.arange(n, device=queries.device)
    else:
        rows = _integers("positives", positives, n, queries)
        _check_rows(rows, m)
        rows = torch.where(rows == IGNORE, EXCLUDED, rows)
    return rows if weight is None else torch.where(weight.detach() != 0, rows, EXCLUDED)


def make_negatives(
    queries: Tensor,
    documents: Tensor,
    query_groups: Tensor | None,
    document_groups: Tensor | None,
    mask: Tensor | None,
    negatives: str,
    margin: float | None,
) -> Negatives:
    """Return the rules of a call; raises ``W2SError`` for what does not fit."""
    n, m = queries.shape[0], documents.shape[0]
    within = negatives == "same_group"
    if (query_groups is None) != (document_groups is None):
        missing = "query_groups" if query_groups is None else "document_groups"
        raise W2SError(f"{missing} is None; expected both, query_groups and document_groups")
    if within and query_groups is None:
        raise W2SError(
            "negatives is 'same_group' without groups; expected query_groups and document_groups"
        )
    if query_groups is not None and document_groups is not None:
        query_groups = _integers("query_groups", query_groups, n, queries)
        document_groups = _integers("document_groups", document_groups, m, queries)
        # An id below 0 is equal to no other: not to that of a document below 0 either.
        query_groups = torch.where(query_groups < 0, -1, query_groups)
        document_groups = torch.where(document_groups < 0, -2, document_groups)
    if mask is not None:
        shape = tuple(mask.shape)
        if mask.dtype != torch.bool or shape != (n, m) or mask.device != queries.device:
            raise W2SError(
                f"negative_mask is {mask.dtype} {shape} on {mask.device}; expected bool {(n, m)} "
                f"on {queries.device}, False where a document is no negative"
            )
        mask = mask.contiguous()
    return Negatives(
        query_groups, document_groups, mask, within, NO_MARGIN if margin is None else float(margin)
    )


def turned(x: Pairs) -> Pairs:
    """Return the documents as queries; needs document i to be the positive of query i."""
    rules = x.negatives
    return x._replace(
        queries=x.documents,
        documents=x.queries,
        negatives=rules._replace(
            query_groups=rules.document_groups,
            document_groups=rules.query_groups,
            mask=None if rules.mask is None else rules.mask.t().contiguous(),
        ),
    )


def check_symmetric(positives: Tensor | None, n: int, m: int) -> None:
    """Raise ``W2SError`` unless document i is the positive of query i, and of no other."""
    if positives is not None or n != m:
        raise W2SError(
            f"symmetric=True with {'positives' if positives is not None else f'{m} documents'} for "
            f"{n} queries; expected N documents, document i the positive of query i"
        )


def _integers(name: str, x: Tensor, length: int, queries: Tensor) -> Tensor:
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        raise W2SError(f"{name} have dtype {x.dtype}; expected integers")
    if tuple(x.shape) != (length,) or x.device != queries.device:
        raise W2SError(
            f"{name} have shape {tuple(x.shape)} on {x.device}; expected ({length},) on "
            f"{queries.device}"
        )
    return x.to(torch.int64).contiguous()


def _check_rows(rows: Tensor, m: int) -> None:
    """Raise on the CPU; on an accelerator the loss of a wrong row is NaN, as the host cannot wait.

    Raises:
        W2SError: naming the first row that is neither a document nor -100.
    """
    if rows.device.type != "cpu" or torch.compiler.is_compiling():
        return
    rows = values(rows).flatten()
    wrong = ((rows < 0) & (rows != IGNORE)) | (rows >= m)
    if bool(wrong.any()):
        raise W2SError(
            f"positives has {int(rows[wrong][0])}; expected rows of documents, 0 to {m - 1}, or "
            f"{IGNORE} for a query that does not count"
        )
