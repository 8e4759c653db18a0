r"""Losses of embedding models: distillation of a teacher's similarities, and nested embeddings.

Contrastive distillation, over all documents of the batch, with similarities s_ij = q_i d_j^T:

    P_ij = softmax_j(s^teacher_ij / T'),   Q_ij = softmax_j(s_ij / T)
    loss_i = sum_j P_ij log(P_ij / Q_ij)

Matryoshka, over prefixes of m dimensions:

    L = sum_m a_m L(q[:, :m], d[:, :m])

Sources: contrastive distillation and Matryoshka losses of KaLM-Embedding-V2 (arXiv 2506.20923);
Matryoshka representation learning, Kusupati et al. 2022 (arXiv 2205.13147).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.ops.arguments import checked
from w2s_fast.ops.dtypes import LOGIT_DTYPES
from w2s_fast.ops.fused_linear.cross_entropy import linear_cross_entropy
from w2s_fast.ops.fused_linear.teacher.heads import TeacherHead
from w2s_fast.ops.info_nce.inputs import check_pairs, checked_weight


@checked
def contrastive_distillation(
    queries: Tensor,
    documents: Tensor,
    teacher_queries: Tensor,
    teacher_documents: Tensor,
    *,
    temperature: float = 0.05,
    teacher_temperature: float = 0.05,
    divergence: str = "forward_kl",
    normalize: bool = False,
    weight: Tensor | None = None,
    reduction: str = "mean",
    memory_mib: float | None = None,
) -> Tensor:
    """Compute the divergence of a student's similarities from a teacher's, without storing either.

    Args:
        queries: (N, D), fp32, bf16, fp16 or fp64. Gets gradients.
        documents: (M, D), same dtype: every document of the batch is scored for every query. Gets
            gradients.
        teacher_queries, teacher_documents: (N, D') and (M, D') of the teacher, any width; no
            gradients.
        temperature: T of the student's similarities, positive.
        teacher_temperature: T' of the teacher's, positive.
        divergence: ``"forward_kl"``, or another of ``linear_cross_entropy``.
        normalize: use embeddings of length 1: cosine similarities.
        weight: (N,) row weights, at least 0.
        reduction: ``"mean"`` divides by the sum of weights, ``"sum"``, or ``"none"`` for (N,).
        memory_mib: what the similarities of a chunk may take, see ``linear_cross_entropy``.

    16-bit embeddings are multiplied in fp32, and so are those of fp32 under autocast: a similarity
    rounded to 16 bits and divided by a small temperature would be off by as much as teacher and
    student differ.

    Returns:
        0-d fp32 loss ((N,) for ``"none"``; fp64 for fp64 inputs).

    Raises:
        W2SError: for shapes, dtypes, devices or options that do not fit.
    """
    check_pairs(queries, documents)
    _check_teacher(queries, documents, teacher_queries, teacher_documents)
    for name, t in (("temperature", temperature), ("teacher_temperature", teacher_temperature)):
        if not 0 < t < math.inf:
            raise W2SError(f"{name} is {t}; expected a positive number, such as 0.05")
    weight = checked_weight(weight, queries)
    with torch.autocast(queries.device.type, enabled=False):
        student = [_wide(x) for x in (queries, documents)]
        teacher = [_wide(x.detach()) for x in (teacher_queries, teacher_documents)]
        if normalize:
            student, teacher = ([F.normalize(x, dim=1) for x in xs] for xs in (student, teacher))
        loss = linear_cross_entropy(
            student[0] / temperature,
            student[1],
            teacher=[TeacherHead(1.0, teacher[0], teacher[1])],
            temperature=teacher_temperature,
            divergence=divergence,
            weight=weight,
            reduction=reduction,
            memory_mib=memory_mib,
        )
    assert isinstance(loss, Tensor)
    return loss


def matryoshka(
    loss: Callable[[Tensor, Tensor], Tensor],
    queries: Tensor,
    documents: Tensor,
    prefixes: Sequence[int],
    weights: Sequence[float] | None = None,
) -> Tensor:
    """Sum a loss over prefixes of the dimensions, so that embeddings can be cut to each of them.

    Args:
        loss: function of queries (N, m) and documents (M, m), such as ``info_nce`` with its options
            bound; it normalises each prefix if it normalises at all.
        queries, documents: (N, D) and (M, D).
        prefixes: numbers of dimensions m, from 1 to D, each once.
        weights: a_m, finite and at least 0, some above 0; None: 1 each.

    Raises:
        W2SError: prefixes or weights do not fit.
    """
    width = queries.shape[-1]
    if not prefixes or len(set(prefixes)) != len(prefixes):
        raise W2SError(f"prefixes is {list(prefixes)}; expected numbers of dimensions, each once")
    for m in prefixes:
        if isinstance(m, bool) or not isinstance(m, int) or not 1 <= m <= width:
            raise W2SError(f"prefixes has {m!r}; expected integers from 1 to {width} dimensions")
    weights = [1.0] * len(prefixes) if weights is None else list(weights)
    if len(weights) != len(prefixes) or not _are_shares(weights):
        raise W2SError(
            f"weights is {weights}; expected {len(prefixes)} finite numbers of at least 0, not all "
            "0, one for each prefix"
        )
    terms = [
        a * loss(queries[..., :m], documents[..., :m])
        for m, a in zip(prefixes, weights, strict=True)
        if a
    ]
    return torch.stack(terms).sum(0)


def _are_shares(weights: Sequence[float]) -> bool:
    return all(math.isfinite(a) and a >= 0 for a in weights) and any(weights)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _check_teacher(queries: Tensor, documents: Tensor, first: Tensor, second: Tensor) -> None:
    for name, x, n in (
        ("teacher_queries", first, len(queries)),
        ("teacher_documents", second, len(documents)),
    ):
        if x.dim() != 2 or len(x) != n or x.shape[1] != first.shape[-1]:
            raise W2SError(
                f"{name} has shape {tuple(x.shape)}; expected ({n}, {first.shape[-1]}), a row for "
                "each of the student's and one width"
            )
        if x.dtype not in LOGIT_DTYPES or x.device != queries.device:
            raise W2SError(
                f"{name} is {x.dtype} on {x.device}; expected fp32, bf16, fp16 or fp64 on "
                f"{queries.device}"
            )
