r"""InfoNCE of queries against documents.

Query i has one positive document y_i and the negatives that the rules below leave. With the
similarities s_ij = q_i d_j^T:

    p_i = e^(s_iy / T) / (e^(s_iy / T) + sum over negatives j of e^(s_ij / T))
    loss_i = -(1 - p_i)^gamma log p_i,                    the focal weight (1 - p_i)^gamma detached

Gradient, with w_i the row weight times the focal weight and g_ij = w_i (p_ij - [j = y_i]) / T:
dq_i = sum_j g_ij d_j and dd_j = sum_i g_ij q_i. Similarities exist for a chunk of queries at a time
and become g in place.

Sources: van den Oord et al. 2018 (arXiv 1807.03748, Eq. 4); in-batch negatives as in GradCache (Gao
et al. 2021, arXiv 2101.06983) and the MultipleNegativesRankingLoss of sentence-transformers; focal
weight of KaLM-Embedding-V2 (arXiv 2506.20923); exclusion of documents above the positive by a
margin as in Qwen3-Embedding (arXiv 2506.05176, margin 0.1); negatives of the own cluster only, MCL
(Zhang et al. 2024, arXiv 2402.11816).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from w2s_fast.ops.arguments import checked
from w2s_fast.ops.chunking import DEVICE_ROWS, MIB
from w2s_fast.ops.dispatch import Cost, Op
from w2s_fast.ops.dtypes import accumulator
from w2s_fast.ops.fused_linear.inputs import cast_for_autocast
from w2s_fast.ops.info_nce.autograd import loss_and_stats
from w2s_fast.ops.info_nce.call import Pairs
from w2s_fast.ops.info_nce.inputs import (
    check_options,
    check_pairs,
    check_symmetric,
    checked_positives,
    checked_weight,
    make_negatives,
    turned,
    unit_vectors,
)
from w2s_fast.ops.info_nce.reference import info_nce_reference, info_nce_sample

_CPU_MIB = 8.0  # of similarities: chunks of 512 queries for 4096 documents
_DEVICE_MIB = 64.0


@dataclass(slots=True)
class InfoNCEStats:
    """Statistics of each query, detached; (N,), fp32 (fp64 for fp64 inputs).

    All are 0 on queries that do not count.
    """

    loss: Tensor  # focal weight times -log p, without row weights
    lse: Tensor  # log of the sum over positive and negatives, of similarities / temperature
    positive: Tensor  # similarity to the positive
    hardest: Tensor  # largest similarity to a negative; -inf without negatives
    negatives: Tensor  # how many documents are negatives
    focal: Tensor  # focal weight (1 - p)^gamma


@checked
def info_nce(
    queries: Tensor,
    documents: Tensor,
    *,
    positives: Tensor | None = None,
    temperature: float = 0.05,
    query_groups: Tensor | None = None,
    document_groups: Tensor | None = None,
    negatives: str = "other_groups",
    margin: float | None = None,
    negative_mask: Tensor | None = None,
    focal_gamma: float = 0.0,
    symmetric: bool = False,
    normalize: bool = False,
    weight: Tensor | None = None,
    reduction: str = "mean",
    memory_mib: float | None = None,
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, InfoNCEStats]:
    """Compute InfoNCE without storing the (N, M) similarities.

    Equivalent, without groups, margin, mask and focal weight, to
    ``F.cross_entropy(queries @ documents.T / temperature, positives)``.

    Args:
        queries: (N, D), fp32, bf16, fp16 or fp64. Gets gradients. For a learned temperature pass
            queries times its reciprocal, and ``temperature=1``.
        documents: (M, D), same dtype. Gets gradients. The positives of all queries, and any number
            of further documents, such as hard negatives, which are negatives of every query.
        positives: (N,) integers, the row of each query's positive; -100 excludes the query. By
            default document i is the positive of query i, and M >= N.
        temperature: T, positive.
        query_groups, document_groups: (N,) and (M,) integer ids, such as of texts or clusters. An
            id below 0 is equal to no other.
        negatives: ``"other_groups"``: a document of the query's group is no negative (duplicates,
            several answers to one question). ``"same_group"``: only documents of the query's group
            are (MCL).
        margin: a document whose similarity exceeds that of the positive by more than this is no
            negative: it is probably relevant. Negative values exclude more. None for no such rule.
        negative_mask: (N, M) bool, False: the document is no negative of the query.
        focal_gamma: exponent gamma of the focal weight; 0 for none.
        symmetric: mean of this loss and that of the documents against the queries (CLIP, Radford
            et al. 2021). Needs M = N and the default positives; similarities are computed twice.
        normalize: use queries and documents of length 1: cosine similarities. Those of 16-bit
            embeddings are made and multiplied in fp32; under autocast they are cast to its dtype.
        weight: (N,) row weights; get gradients. A weight of 0 excludes its query; its document is
            still a negative of the others.
        reduction: ``"mean"`` divides by the sum of weights of the queries that count (0 queries
            give 0), ``"sum"``, or ``"none"`` for (N,).
        memory_mib: what the similarities of a chunk may take, in MiB; None: 8 on a CPU; on a GPU
            64, or what 1024 queries take if that is more.
        return_stats: also return ``InfoNCEStats``, with ``symmetric`` those of the queries.

    Returns:
        0-d fp32 loss ((N,) for ``"none"``; fp64 for fp64 inputs), or ``(loss, InfoNCEStats)``. A
        query without negatives has loss 0.

    Raises:
        W2SError: for shapes, dtypes, devices, ids or options that do not fit.
        RuntimeError: on a second derivative, or a tangent of forward mode.
    """
    check_pairs(queries, documents)
    check_options(temperature, focal_gamma, margin, negatives, reduction)
    weight = checked_weight(weight, queries)
    if symmetric:
        check_symmetric(positives, queries.shape[0], documents.shape[0])
    rows = checked_positives(positives, weight, queries, documents)
    if normalize:
        if not symmetric and (weight is not None or positives is not None):
            # NaN of a query that does not count would reach its gradient.
            queries = torch.where((rows >= 0).unsqueeze(1), queries, 0.0)
        queries, documents = unit_vectors(queries), unit_vectors(documents)
    queries, documents, _ = cast_for_autocast(queries, documents, None)
    pairs = Pairs(
        queries,
        documents,
        rows,
        make_negatives(
            queries, documents, query_groups, document_groups, negative_mask, negatives, margin
        ),
        temperature,
        focal_gamma,
        default_memory_mib(documents) if memory_mib is None else memory_mib,
    )
    loss, stats = loss_and_stats(pairs, weight, reduction)
    if symmetric:
        other, _ = loss_and_stats(turned(pairs), weight, reduction)
        loss = (loss + other) / 2
    return (loss, InfoNCEStats(*stats.unbind(0))) if return_stats else loss


def default_memory_mib(documents: Tensor) -> float:
    """Return the MiB of a chunk of similarities with these documents, by their device."""
    if documents.device.type == "cpu":
        return _CPU_MIB
    row = documents.shape[0] * accumulator(documents.dtype).itemsize / MIB
    return max(_DEVICE_MIB, DEVICE_ROWS * row)


def cost(n: int, v: int, dtype: torch.dtype) -> Cost:
    """Return the cost of ``v`` documents of 768 dimensions: three products, and their operands."""
    d = 768
    return Cost(bytes=2 * (n + v) * d * dtype.itemsize, flops=6 * n * v * d)


OP = Op("info_nce", info_nce_reference, info_nce_sample, cost)
