"""Weak targets in their three forms, checked once and passed to every backend as ``LossInputs``.

N rows, V classes, K top-k classes a row. Hard labels are int (N,); dense soft labels are float
(N, V); sparse labels name K classes a row and the mass of all the others together.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.ops.checks import (
    check_class_dtype,
    check_dense,
    check_weight,
    check_weight_dtype,
    class_error,
)
from w2s_fast.ops.dtypes import LOGIT_DTYPES, accumulator


class SparseTargets(NamedTuple):
    r"""Top-k weak labels: K classes a row, their probabilities, and the remaining mass.

    The remaining mass is the probability of the event "none of these classes", so the loss is

        -sum_k probs_k log p_(ids_k)  -  rest log(1 - sum_k p_(ids_k)),

    the cross-entropy on the coarser partition: it makes no assumption on how a teacher spread the
    mass that it did not report. With ``rest=None`` the probabilities are used as they are.

    Attributes:
        ids: (N, K) integer class ids, different from one another within a row; a negative id is
            padding and its probability is not read. A class that does not exist or is listed twice
            is an error on the CPU; on a GPU its row's loss and gradient are NaN.
        probs: (N, K) floating point probabilities, >= 0.
        rest: (N,) floating point mass of all other classes, >= 0, or None for 0.
    """

    ids: Tensor
    probs: Tensor
    rest: Tensor | None = None


class LossInputs(NamedTuple):
    """Logits and targets of one loss call, checked and in the form that backends read.

    ``ids`` is (N, K) for hard (K = 1) and sparse targets, else None. ``probs`` is (N, K) for
    sparse, (N, V) for dense, None for hard targets. ``weight`` carries no gradient here. Dense
    targets may be given as logits to a backend with ``READS_TARGET_LOGITS``, for V > 2.
    """

    logits: Tensor  # (N, V), column stride 1
    ids: Tensor | None  # (N, K) int64, contiguous
    probs: Tensor | None  # (N, K) accumulator dtype, or (N, V) accumulator or logits dtype
    rest: Tensor | None  # (N,) accumulator dtype
    weight: Tensor | None  # (N,) accumulator dtype
    ignore_index: int
    probs_are_logits: bool = False  # dense targets are softmax(probs)

    @property
    def kind(self) -> str:
        """``hard``, ``sparse`` or ``dense``."""
        if self.ids is None:
            return "dense"
        return "hard" if self.probs is None else "sparse"

    @property
    def width(self) -> int:
        """K, the number of top-k classes a row; 0 for dense targets."""
        return 0 if self.ids is None else self.ids.shape[1]

    @property
    def accumulator(self) -> torch.dtype:
        """fp64 for fp64 logits, else fp32."""
        return accumulator(self.logits.dtype)

    def counted(self) -> Tensor:
        """Return (N,) bool: rows that count. An ignored label or a weight of 0 excludes a row."""
        n = self.logits.shape[0]
        counted = torch.ones(n, dtype=torch.bool, device=self.logits.device)
        if self.kind == "hard" and self.ids is not None:
            counted = self.ids[:, 0] != self.ignore_index
        return counted if self.weight is None else counted & (self.weight != 0)

    def some_counted(self) -> Tensor | None:
        """Return the same; None where the form of the inputs shows that all rows count."""
        return None if self.weight is None and self.kind != "hard" else self.counted()


def check_labels(p: LossInputs) -> None:
    """Raise ``W2SError`` for a row with a class that does not exist, or with the same class twice.

    The host cannot check labels on a device without waiting: there the row's loss and gradient are
    NaN.
    """
    if p.ids is None or p.ids.device.type != "cpu":
        return
    bad = unfit_rows(p.ids, p.logits.shape[1], None if p.probs is not None else p.ignore_index)
    if bad.numel():
        raise label_error(p, int(bad[0]))


def unfit_rows(ids: Tensor, v: int, ignore_index: int | None = None) -> Tensor:
    """Return the rows of ids (N, K) with a class >= v or the same class twice; negative: padding.

    Hard labels have an ``ignore_index`` instead of padding.
    """
    wrong = (ids >= v).any(1)
    if ignore_index is not None:
        wrong = ((ids != ignore_index) & ((ids < 0) | (ids >= v))).any(1)
    elif ids.shape[1] > 1:
        ordered = ids.sort(1).values
        wrong = wrong | ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(1)
    return wrong.nonzero().squeeze(1)


def label_error(p: LossInputs, row: int) -> W2SError:
    """Return the error for the labels of ``row``."""
    assert p.ids is not None
    ids, v = p.ids[row].tolist(), p.logits.shape[1]
    if p.probs is None:
        return class_error(ids, row, v, p.ignore_index)
    return topk_error("weak label", p.ids, row, v)


def topk_error(name: str, ids: Tensor, row: int, v: int) -> W2SError:
    """Return the error for top-k ids (N, K) that do not fit in ``row``."""
    return W2SError(
        f"{name} {ids[row].tolist()} in row {row} is outside the classes or listed twice; expected "
        f"different classes 0..{v - 1}, or a negative id for padding"
    )


def make_inputs(
    logits: Tensor,
    weak: Tensor | SparseTargets,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    solves: bool = False,
) -> LossInputs:
    """Check shapes, dtypes and devices and convert the targets to the form that backends read.

    Args:
        logits: (N, V) fp32, bf16, fp16 or fp64. Any row stride; a column stride other than 1 is
            copied.
        weak: integer (N,), floating point (N, V), or ``SparseTargets``.
        weight: (N,) row weights, or None for 1.
        ignore_index: hard label that excludes its row from the loss.
        solves: the inputs go to ``cross_entropy.algorithm.solve``, whose kernel of two classes
            checks row weights on a device itself.

    Raises:
        W2SError: if a shape, dtype or device does not fit; the message names the value.
    """
    check_logits(logits)
    if logits.stride(1) != 1 and logits.shape[1] > 1:
        logits = logits.contiguous()
    n, v = logits.shape  # that kernel has 32-bit counters
    by_kernel = solves and v == 2 and n < 2**30 and not isinstance(weak, SparseTargets)
    return attach_targets(logits, weak, weight, ignore_index, by_kernel)


def check_logits(logits: Tensor) -> None:
    """Raise ``W2SError`` unless logits are (N, V >= 1) of a dtype the kernels read."""
    if logits.dim() != 2 or logits.dtype not in LOGIT_DTYPES:
        raise W2SError(
            f"logits have shape {tuple(logits.shape)} and dtype {logits.dtype}; expected (N, V) in "
            "fp32, bf16, fp16 or fp64 (flatten batch and time first: logits.flatten(0, 1))"
        )
    check_dense("logits", logits)
    if logits.shape[1] == 0:
        raise W2SError("logits have no classes (V = 0); expected V >= 1")


def attach_targets(
    logits: Tensor,
    weak: Tensor | SparseTargets,
    weight: Tensor | None,
    ignore_index: int,
    by_kernel: bool = False,
) -> LossInputs:
    """Check the targets of logits that are already checked, or that stand for a shape only.

    ``by_kernel``: see ``check_weight``.
    """
    if not -(2**63) <= ignore_index < 2**63:
        raise W2SError(f"ignore_index is {ignore_index}; expected an integer of 64 bits")
    n, v = logits.shape
    acc = accumulator(logits.dtype)
    ids, probs, rest = _targets(weak, n, v, acc, logits.dtype)
    weight = _checked_weight(weight, n, acc, by_kernel)
    device = logits.device
    for t in (ids, probs, rest, weight):
        if t is not None and t.device != device:
            name = "rest" if t is rest else "weight" if t is weight else "weak"
            raise W2SError(f"{name} is on {t.device}, logits on {device}; move one of them")
    return LossInputs(logits, ids, probs, rest, weight, ignore_index)


def without_targets(logits: Tensor, weight: Tensor | None) -> LossInputs:
    """Check the weights of a call whose dense targets are made later, chunk by chunk."""
    weight = _checked_weight(weight, logits.shape[0], accumulator(logits.dtype))
    if weight is not None and weight.device != logits.device:
        raise W2SError(f"weight is on {weight.device}, logits on {logits.device}; move one of them")
    return LossInputs(logits, None, None, None, weight, -100)


def _checked_weight(
    weight: Tensor | None, n: int, acc: torch.dtype, by_kernel: bool = False
) -> Tensor | None:
    if weight is None:
        return None
    _expect("weight", weight, (n,))
    check_weight_dtype(weight)
    weight = weight.detach().to(acc).contiguous()
    check_weight(weight, by_kernel)
    return weight


def _targets(
    weak: Tensor | SparseTargets, n: int, v: int, acc: torch.dtype, dtype: torch.dtype
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    if isinstance(weak, SparseTargets):
        return _sparse(weak, n, v, acc)
    if not isinstance(weak, Tensor):
        raise W2SError(
            f"weak is {type(weak).__name__}; expected an int tensor (N,), a float tensor (N, V) "
            "or w2s_fast.SparseTargets(ids, probs, rest)"
        )
    if weak.is_floating_point():
        hint = "; hard labels must be integers: weak.long()" if weak.dim() == 1 else ""
        _expect("weak (soft labels)", weak, (n, v), hint)
        weak = weak.detach() if weak.requires_grad else weak
        weak = weak if weak.dtype in (acc, dtype) else weak.to(acc)
        return None, weak if weak.stride(1) == 1 or v == 1 else weak.contiguous(), None
    _expect("weak (hard labels)", weak, (n,))
    check_class_dtype(weak)
    return weak.to(torch.int64).unsqueeze(1).contiguous(), None, None


def _sparse(
    weak: SparseTargets, n: int, v: int, acc: torch.dtype
) -> tuple[Tensor, Tensor, Tensor | None]:
    ids, probs, rest = weak
    if ids.dim() != 2 or not 1 <= ids.shape[1] <= v or ids.is_floating_point():
        raise W2SError(
            f"SparseTargets.ids has shape {tuple(ids.shape)} and dtype {ids.dtype}; expected "
            f"integers (N, K) = ({n}, 1..{v})"
        )
    _expect("SparseTargets.ids", ids, (n, ids.shape[1]))
    _expect("SparseTargets.probs", probs, tuple(ids.shape))
    if rest is not None:
        _expect("SparseTargets.rest", rest, (n,))
        rest = rest.detach().to(acc).contiguous()
    return ids.to(torch.int64).contiguous(), probs.detach().to(acc).contiguous(), rest


def _expect(name: str, t: Tensor, shape: tuple[int, ...], hint: str = "") -> None:
    if t.shape != shape:
        raise W2SError(
            f"{name} has shape {tuple(t.shape)}; expected {shape} to fit the logits{hint}"
        )
    check_dense(name, t)
