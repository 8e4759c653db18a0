"""Batch columns as rows of a loss: which positions count, what they learn, how much they weigh.

B sequences, T tokens, V vocabulary, K listed classes a position, n rows that reach the head.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from w2s_fast.errors import W2SError, nearest
from w2s_fast.integrations.patching.values import read_targets, unpack_sparse
from w2s_fast.ops.checks import check_probs, check_weight
from w2s_fast.ops.targets import SparseTargets

COLUMNS = (
    "weak_labels", "weak_ids", "weak_probs", "weak_rest", "weak_weight", "weak_frac", "weak_step",
)  # fmt: skip


def take_columns(given: dict[str, Any]) -> dict[str, Any]:
    """Take the weak columns out of a forward's keywords; those that are None are not there.

    Raises:
        W2SError: for a name that looks like one and is none: transformers would swallow it; for
            ``SparseTargets`` beside the columns that they are.
    """
    found = {name: given.pop(name) for name in list(given) if name.startswith("weak_")}
    for name in found:
        if name not in COLUMNS:
            raise W2SError(
                f"no weak column is called {name!r}; expected some of {', '.join(COLUMNS)}"
                f"{nearest(name, COLUMNS)}"
            )
    return unpack_sparse({name: value for name, value in found.items() if value is not None})


class Rows(NamedTuple):
    """What the head and the loss get.

    Attributes:
        hidden: (n, D).
        weak: (n,), (n, V) or ``SparseTargets`` of n rows.
        weight: (n,) row weights over their sum, or over ``num_items_in_batch``; 0 takes out.
    """

    hidden: Tensor
    weak: Tensor | SparseTargets
    weight: Tensor


def read_rows(
    labels: Tensor | None,
    shift_labels: Tensor | None,
    columns: dict[str, Any],
    size: tuple[int, int],
    vocabulary: int,
    hidden: Tensor,
    n_items: Tensor | int | None,
) -> Rows:
    """Rows of a batch; see ``patch`` for the columns.

    Eagerly these are the labelled positions alone, which the host has to know. Compiled code must
    not wait for them: it gets every position, those without a label at weight 0.

    Raises:
        W2SError: if a column is no tensor of its kind, or does not fit the others, the batch or the
            vocabulary.
    """
    given = {"labels": labels, "shift_labels": shift_labels, **columns}
    columns = read_targets(given, size, hidden.device)
    labels, shift_labels = columns.pop("labels"), columns.pop("shift_labels")
    weak = _weak(columns, size, vocabulary)
    weight = _weight(columns.get("weak_weight"), size, hidden)
    labels = _labels(labels, shift_labels, weak, columns, size)
    counts = _counts(labels, weak)
    weak = labels if weak is None else weak
    assert weak is not None
    ahead = 0 if shift_labels is not None else 1
    counts = counts[:, ahead:]
    rows = None if torch.compiler.is_compiling() else _places(counts, size[1])
    weight = _pick(weight, rows, ahead)
    weak = _pick_weak(weak, rows, ahead)
    if rows is None:
        weight = torch.where(counts.flatten(), weight, 0.0)
        hidden = hidden[:, : size[1] - ahead].flatten(0, 1)
    else:
        hidden = hidden.flatten(0, 1).index_select(0, rows)
        _check_mass(weak)
    return Rows(hidden, weak, _normalised(weight, n_items))


def _labels(
    labels: Tensor | None,
    shift_labels: Tensor | None,
    weak: Tensor | SparseTargets | None,
    columns: dict[str, Any],
    size: tuple[int, int],
) -> Tensor | None:
    """(B, T) labels, of whichever column they are; None where weak columns are alone."""
    if shift_labels is not None:
        weight = columns.get("weak_weight")
        if weak is not None or (weight is not None and weight.dim() == 2):
            raise W2SError("shift_labels came with weak columns, which are not shifted; use labels")
        labels = shift_labels
    if labels is None and weak is None:
        raise W2SError(
            "weak_weight came without targets; add labels or a weak column (a Trainer with "
            "label_smoothing_factor or compute_loss_func takes the labels away: leave these out)"
        )
    if labels is not None:
        _shape("labels", labels, size)
    return labels


def _places(counts: Tensor, length: int) -> Tensor:
    """(n,) rows of the flattened hidden states that count; the host waits for their number."""
    at = counts.nonzero()
    return at[:, 0] * length + at[:, 1]


def _check_mass(weak: Tensor | SparseTargets) -> None:
    """Soft labels of the rows that count must be probabilities; those not listed may be left out.

    Raises:
        W2SError: on the CPU, see ``check_probs``.
    """
    if not isinstance(weak, Tensor):
        probs = torch.where(weak.ids >= 0, weak.probs, 0)
        check_probs(probs if weak.rest is None else torch.cat([probs, weak.rest[:, None]], 1))
    elif weak.is_floating_point():
        check_probs(weak)


def _pick(x: Tensor, rows: Tensor | None, ahead: int) -> Tensor:
    """What belongs to some rows of the flattened hidden states, of a column (B, T, ...)."""
    if rows is None:
        return x[:, ahead:].flatten(0, 1)
    return x.flatten(0, 1).index_select(0, rows + ahead)


def _pick_weak(
    weak: Tensor | SparseTargets, rows: Tensor | None, ahead: int
) -> Tensor | SparseTargets:
    if isinstance(weak, Tensor):
        return _pick(weak, rows, ahead)
    rest = None if weak.rest is None else _pick(weak.rest, rows, ahead)
    return SparseTargets(_pick(weak.ids, rows, ahead), _pick(weak.probs, rows, ahead), rest)


def _normalised(weight: Tensor, n_items: Tensor | int | None) -> Tensor:
    """Weights over what the sum of row losses is divided by: its gradient is scaled but once."""
    if n_items is None:
        total = weight.sum()
    else:
        total = torch.as_tensor(n_items, device=weight.device).to(weight.dtype)
    return weight * torch.where(total > 0, 1 / total, 0.0)


def _counts(labels: Tensor | None, weak: Tensor | SparseTargets | None) -> Tensor:
    """(B, T) bool: positions that are marked and have something to be learned."""
    if labels is None:
        assert weak is not None
        return _says_something(weak)
    marked = labels != -100
    # Whether soft labels have mass is a pass over (B, T, V); the marks have decided already.
    dense = isinstance(weak, Tensor) and weak.is_floating_point()
    return marked if weak is None or dense else marked & _says_something(weak)


def _says_something(weak: Tensor | SparseTargets) -> Tensor:
    """(B, T) bool: positions with a hard label, an id, or some mass."""
    if not isinstance(weak, Tensor):
        return (weak.ids >= 0).any(-1)
    return weak.sum(-1) > 0 if weak.is_floating_point() else weak != -100


def _weight(weight: Tensor | None, size: tuple[int, int], hidden: Tensor) -> Tensor:
    """(B, T) row weights, of the precision of the loss."""
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    if weight is None:
        return torch.ones(size, dtype=dtype, device=hidden.device)
    if tuple(weight.shape) not in ((size[0],), size):
        raise W2SError(
            f"weak_weight has shape {tuple(weight.shape)}; expected {(size[0],)} or {size}"
        )
    weight = weight.detach().to(dtype)
    check_weight(weight.flatten())
    return weight.unsqueeze(1).expand(size) if weight.dim() == 1 else weight


def _weak(
    columns: dict[str, Any], size: tuple[int, int], vocabulary: int
) -> Tensor | SparseTargets | None:
    """The weak columns as one target (B, T, ...); None if there are none."""
    labels, ids, probs, rest = (
        columns.get(c) for c in ("weak_labels", "weak_ids", "weak_probs", "weak_rest")
    )
    if labels is not None:
        if not all(c is None for c in (ids, probs, rest)):
            raise W2SError("weak_labels came with weak_ids or weak_probs; expected one of the two")
        return _dense_or_hard(labels, size, vocabulary)
    if ids is None and probs is None:
        if rest is not None:
            raise W2SError("weak_rest came without weak_ids and weak_probs")
        return None
    if ids is None or probs is None:
        missing = "weak_ids" if ids is None else "weak_probs"
        raise W2SError(f"{missing} is missing; sparse weak labels are weak_ids with weak_probs")
    if ids.dim() != 3 or ids.is_floating_point():
        raise W2SError(
            f"weak_ids has shape {tuple(ids.shape)} and dtype {ids.dtype}; expected integers "
            f"({size[0]}, {size[1]}, K)"
        )
    if ids.shape[2] == 0:
        raise W2SError(
            "weak_ids list no classes (K = 0); expected at least one, id -1 where a position has "
            "none, or leave weak_ids and weak_probs out"
        )
    _shape("weak_ids", ids, (*size, ids.shape[2]))
    _shape("weak_probs", probs, tuple(ids.shape))
    if rest is not None:
        _shape("weak_rest", rest, size)
    return SparseTargets(ids, probs, rest)


def _dense_or_hard(labels: Tensor, size: tuple[int, int], vocabulary: int) -> Tensor:
    if not labels.is_floating_point():
        _shape("weak_labels (hard)", labels, size)
        return labels
    if labels.dim() == 3 and labels.shape[2] != vocabulary:
        raise W2SError(
            f"weak_labels are {labels.shape[2]} wide, the vocabulary of the head is {vocabulary}; "
            "give every class its column, or the listed ones as weak_ids and weak_probs"
        )
    _shape("weak_labels (soft)", labels, (*size, vocabulary))
    return labels


def _shape(name: str, t: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(t.shape) != expected:
        raise W2SError(f"{name} has shape {tuple(t.shape)}; expected {expected} to fit the batch")
