r"""The target of a teacher that is a sum of heads, for one chunk of rows at a time.

    u_m = softcap_m(h_m W_m^T + b_m)      the logits of term m, (N, V)
    t   = sum_m a_m u_m / T               in fp32 (fp64 for a student in fp64), see target_dtype
    q   = softmax(t)

h_m (N, D_m) are stored hidden states, W_m (V, D_m) a head, a_m a coefficient, T the temperature.
Storing h_m and one head takes N D_m + V D_m numbers where logits take N V. In fp32 the terms are
products of one tile of classes at a time, added while the tile is in the caches.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from w2s_fast.ops.cross_entropy.ref import soft_capped
from w2s_fast.ops.fused_linear import gemm

CROSS_ENTROPY = "cross_entropy"
# Entries of a block of rows that a pass works on at a time on a CPU: 1 MiB in fp32.
_BLOCK = 1 << 18


class TeacherHead(NamedTuple):
    """One term of a teacher's logits: ``scale * softcap(hidden @ head.T + bias)``.

    Attributes:
        scale: the coefficient, a finite number or a 0-d tensor. A tensor that requires grad gets a
            gradient; the other fields get none.
        hidden: (N, D) or (B, T, D) last hidden states of the teacher, fp32, bf16, fp16 or fp64. The
            width D may differ between terms and from the student's.
        head: (V, D) weight of the teacher's language-model head, same dtype as ``hidden``.
        bias: (V,) of the head, or None.
        softcap: soft-cap of the teacher's logits; 0 for none.
    """

    scale: float | Tensor
    hidden: Tensor
    head: Tensor
    bias: Tensor | None = None
    softcap: float = 0.0


class Teacher(NamedTuple):
    """The M terms of a call, checked, and what is computed from them."""

    scales: Tensor  # (M,) in the dtype of the target
    hidden: list[Tensor]  # M of (N, D_m)
    heads: list[Tensor]  # M of (V, D_m)
    biases: list[Tensor | None]  # M of (V,)
    softcaps: list[float]
    learned: list[bool]  # whether a scale needs a gradient
    temperature: float = 1.0
    divergence: str = CROSS_ENTROPY
    beta: float = 0.5

    @property
    def has_own_pass(self) -> bool:
        """Whether rows go through ``DivergenceRows`` in place of the kernels of dense labels."""
        return self.divergence != CROSS_ENTROPY or any(self.learned)

    def tensors(self) -> list[Tensor | None]:
        """Return every tensor, to be saved for backward."""
        return [self.scales, *self.hidden, *self.heads, *self.biases]

    def with_tensors(self, saved: list[Any]) -> Teacher:
        """Return the teacher whose ``tensors`` these are."""
        m = len(self.heads)
        hidden, heads, biases = saved[1 : m + 1], saved[m + 1 : 2 * m + 1], saved[2 * m + 1 :]
        return self._replace(scales=saved[0], hidden=hidden, heads=heads, biases=biases)


class Target:
    """The target of a chunk of rows, in a buffer (rows, V) that all chunks share.

    Args:
        dtype: see ``target_dtype``.
        as_logits: t instead of q, for row passes that take the softmax themselves.
    """

    def __init__(self, teacher: Teacher, rows: int, dtype: torch.dtype, as_logits: bool) -> None:
        self.teacher, self.as_logits = teacher, as_logits
        self.buffer = gemm.matrix_buffer(rows, teacher.heads[0].shape[0], teacher.scales, dtype)

    def chunk(self, rows: slice) -> Tensor:
        """Return (n, V): the target of some rows, valid until the next call."""
        out = self.buffer[: rows.stop - rows.start]
        if out.dtype == self.teacher.scales.dtype:
            _sum_terms(self.teacher, rows, out)
        else:
            _sum_products(self.teacher, rows, out)
        if not self.as_logits:
            for at in row_blocks(out):
                out[at] = torch.softmax(out[at], 1)
        return out


def target_dtype(teacher: Teacher, like: Tensor, as_logits: bool) -> torch.dtype:
    """Return the dtype of a ``Target``: 16 bits where its products are rounded to them anyway.

    Half the bytes of a row make twice the rows of a chunk, and each term is then one product of
    whole rows: the library adds it to the buffer in fp32 and rounds once.
    """
    acc = teacher.scales.dtype
    narrow = like.dtype.itemsize < acc.itemsize and like.device.type == "cpu"
    if not as_logits or not narrow or gemm.upcasts(like):
        return acc
    plain = all(h.dtype == like.dtype for h in teacher.hidden) and not any(teacher.softcaps)
    return like.dtype if plain and not any(teacher.learned) else acc


def probabilities(teacher: Teacher) -> Tensor:
    """Return q of every row, (N, V): for few classes."""
    n = teacher.hidden[0].shape[0]
    return Target(teacher, n, teacher.scales.dtype, False).chunk(slice(0, n))


def _sum_products(teacher: Teacher, rows: slice, out: Tensor) -> None:
    """Fill ``out`` in its own dtype: every term is added by its product."""
    factors = (teacher.scales / teacher.temperature).tolist()
    biases = [f * b.float() for f, b in zip(factors, teacher.biases, strict=True) if b is not None]
    if biases:
        out.copy_(torch.stack(biases).sum(0))
    beta = 1.0 if biases else 0.0
    # The largest term comes last: what is rounded before it is small.
    for m in sorted(range(len(factors)), key=lambda m: abs(factors[m])):
        hidden, head = teacher.hidden[m][rows], teacher.heads[m]
        torch.addmm(out, hidden, head.t(), beta=beta, alpha=factors[m], out=out)
        beta = 1.0


def _sum_terms(teacher: Teacher, rows: slice, out: Tensor) -> None:
    # Tiles outside, terms inside: the sum of a tile is still in the caches when a term is added.
    factors = (teacher.scales / teacher.temperature).unbind()
    terms = [_TermLogits(teacher, m, rows) for m in range(len(factors))]
    for at in _tiles(teacher, out.shape[0]):
        tile = out[:, at]
        for m, (term, factor) in enumerate(zip(terms, factors, strict=True)):
            if m == 0:
                torch.mul(term(at), factor, out=tile)
            else:
                tile.addcmul_(term(at), factor)


def _tiles(teacher: Teacher, n: int) -> Iterator[slice]:
    """Yield tiles of classes for products with n rows, of a size for the widest head."""
    return gemm.tiles(max(teacher.heads, key=lambda head: head.shape[1]), n)


class _TermLogits:
    """Computes u_m of some rows, one tile of classes at a time, in the dtype of the target."""

    def __init__(self, teacher: Teacher, m: int, rows: slice) -> None:
        self.hidden, self.head = teacher.hidden[m][rows], teacher.heads[m]
        self.bias, self.softcap = teacher.biases[m], teacher.softcaps[m]
        self.dtype = teacher.scales.dtype
        self.upcasts = gemm.upcasts(self.hidden)
        if self.upcasts:
            self.hidden = self.hidden.float()
        self.room = self.hidden.new_empty(0)

    def __call__(self, at: slice) -> Tensor:
        head = self.head[at]
        if self.upcasts:  # into one buffer: new ones would cost a page fault a page
            if not self.room.numel():
                self.room = torch.empty(head.shape, dtype=torch.float32)
            head = self.room[: len(head)].copy_(head)
        z = gemm.wide_product(self.hidden, head, self.dtype)
        if self.bias is not None:
            z += self.bias[at]
        return soft_capped(z, self.softcap)


class Slopes:
    """The derivatives dL_i/da_m of row losses by the scales, collected chunk by chunk.

    Attributes:
        values: (M, N), without row weights; 0 for a scale that needs none. None if none does.
    """

    def __init__(self, teacher: Teacher | None) -> None:
        self.teacher, self.values = teacher, None
        if teacher is not None and any(teacher.learned):
            shape = len(teacher.heads), teacher.hidden[0].shape[0]
            self.values = teacher.scales.new_zeros(shape)

    def add(self, rows: slice, dtarget: Tensor | None) -> None:
        """Fill some rows from dL/dt (n, V): dL_i/da_m = sum_v dL_i/dt_iv u_m,iv / T."""
        if self.teacher is None or self.values is None or dtarget is None:
            return
        for m, learned in enumerate(self.teacher.learned):
            if not learned:
                continue
            total, term = self.values[m, rows], _TermLogits(self.teacher, m, rows)
            for at in _tiles(self.teacher, dtarget.shape[0]):
                # A class that the teacher rules out (-inf) has derivative 0.
                total += torch.where(dtarget[:, at] == 0, 0.0, dtarget[:, at] * term(at)).sum(1)
            total /= self.teacher.temperature


def row_blocks(x: Tensor) -> Iterator[slice]:
    """Yield slices of the rows of (n, V): copies stay in a CPU's caches; elsewhere quarters."""
    n, v = x.shape
    on_cpu = x.device.type == "cpu"
    step = max(_BLOCK // v, torch.get_num_threads()) if on_cpu else max(1, -(-n // 4))
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))
