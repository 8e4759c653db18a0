"""Rows of a loss from the columns of a batch: positions, targets and weights.

B sequences, T tokens, V vocabulary, K classes a position, n rows that reach the head.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from w2s_fast.errors import W2SError, nearest
from w2s_fast.integrations.patching.column_types import read_targets, unpack_sparse
from w2s_fast.losses.hidden_teacher import TeacherStates
from w2s_fast.ops.checks import check_probs, check_total, check_weight
from w2s_fast.ops.targets import SparseTargets

Weak = Tensor | SparseTargets | TeacherStates
COLUMNS = (
    "weak_labels", "weak_ids", "weak_probs", "weak_rest", "weak_states", "weak_weight", "weak_frac",
    "weak_step",
)  # fmt: skip


def pop_columns(inputs: dict[str, Any]) -> dict[str, Any]:
    """Remove the weak columns from a forward's keywords and return those that are not None.

    Raises:
        W2SError: for an unknown name that begins with ``weak_``, which transformers would ignore;
            for ``SparseTargets`` together with the columns that they replace.
    """
    columns = {name: inputs.pop(name) for name in list(inputs) if name.startswith("weak_")}
    for name in columns:
        if name not in COLUMNS:
            raise W2SError(
                f"no weak column is called {name!r}; expected some of {', '.join(COLUMNS)}"
                f"{nearest(name, COLUMNS)}"
            )
    return unpack_sparse({name: value for name, value in columns.items() if value is not None})


class Rows(NamedTuple):
    """Inputs of the head and the loss.

    Attributes:
        hidden: (n, D).
        weak: (n,), (n, V), ``SparseTargets`` or ``TeacherStates`` of n rows.
        weight: (n,) row weights divided by their sum, or by ``num_items_in_batch``; 0 takes a row
            out.
    """

    hidden: Tensor
    weak: Weak
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
    """Make the rows of a batch; see ``patch`` for the columns.

    In eager mode these are the labelled positions alone, which synchronises with the device.
    Compiled code gets every position, with weight 0 for those without a label.

    Raises:
        W2SError: if a column has the wrong type, or does not fit the others, the batch or the
            vocabulary.
    """
    given = {"labels": labels, "shift_labels": shift_labels, **columns}
    columns = read_targets(given, size, hidden.device)
    labels, shift_labels = columns.pop("labels"), columns.pop("shift_labels")
    weak = _teacher_states(columns, size) or _weak_targets(columns, size, vocabulary)
    weight = _row_weights(columns.get("weak_weight"), size, hidden)
    labels = _labels(labels, shift_labels, weak, columns, size)
    counts = _position_mask(labels, weak)
    weak = labels if weak is None else weak
    assert weak is not None
    ahead = 0 if shift_labels is not None else 1
    counts = counts[:, ahead:]
    rows = None if torch.compiler.is_compiling() else _flat_rows(counts, size[1])
    weight = _select(weight, rows, ahead)
    weak = _select_weak(weak, rows, ahead)
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
    weak: Weak | None,
    columns: dict[str, Any],
    size: tuple[int, int],
) -> Tensor | None:
    """Return (B, T) labels of either column; None if there are only weak columns."""
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
    if labels is None and isinstance(weak, TeacherStates):
        raise W2SError(
            "weak_states came without labels; expected labels, which mark the positions that count"
        )
    if labels is not None:
        _check_shape("labels", labels, size)
    return labels


def _flat_rows(counts: Tensor, length: int) -> Tensor:
    """Return (n,) rows of the flattened hidden states that count; synchronises with the device."""
    index = counts.nonzero()
    return index[:, 0] * length + index[:, 1]


def _check_mass(weak: Weak) -> None:
    """Check that soft labels of the rows that count are probabilities; top-k may sum to less.

    Raises:
        W2SError: on the CPU, see ``check_probs``.
    """
    if isinstance(weak, SparseTargets):
        probs = torch.where(weak.ids >= 0, weak.probs, 0)
        check_probs(probs if weak.rest is None else torch.cat([probs, weak.rest[:, None]], 1))
    elif isinstance(weak, Tensor) and weak.is_floating_point():
        check_probs(weak)


def _select(x: Tensor, rows: Tensor | None, ahead: int) -> Tensor:
    """Select the entries of a column (B, T, ...) for rows of the flattened hidden states."""
    if rows is None:
        return x[:, ahead:].flatten(0, 1)
    return x.flatten(0, 1).index_select(0, rows + ahead)


def _select_weak(weak: Weak, rows: Tensor | None, ahead: int) -> Weak:
    if isinstance(weak, Tensor):
        return _select(weak, rows, ahead)
    if isinstance(weak, TeacherStates):  # beside the student's states, one token before the labels
        length = weak.hidden.shape[1] - ahead
        return TeacherStates(
            weak.hidden[:, :length].flatten(0, 1) if rows is None else _select(weak.hidden, rows, 0)
        )
    rest = None if weak.rest is None else _select(weak.rest, rows, ahead)
    return SparseTargets(_select(weak.ids, rows, ahead), _select(weak.probs, rows, ahead), rest)


def _normalised(weight: Tensor, n_items: Tensor | int | None) -> Tensor:
    """Divide the weights, instead of the loss sum, so that gradients are scaled once."""
    if n_items is None:
        total = weight.sum()
    else:
        total = torch.as_tensor(n_items, device=weight.device).to(weight.dtype)
    check_total(total)
    return weight * torch.where(total > 0, 1 / total, 0.0)


def _position_mask(labels: Tensor | None, weak: Weak | None) -> Tensor:
    """Return (B, T) bool: positions that are marked and have a target."""
    if labels is None:
        assert weak is not None and not isinstance(weak, TeacherStates)
        return _has_target(weak)
    marked = labels != -100
    if weak is None or isinstance(weak, TeacherStates):
        return marked
    # Checking the mass of dense soft labels would be a pass over (B, T, V).
    dense = isinstance(weak, Tensor) and weak.is_floating_point()
    return marked if dense else marked & _has_target(weak)


def _has_target(weak: Tensor | SparseTargets) -> Tensor:
    """Return (B, T) bool: positions with a hard label, an id, or some mass."""
    if not isinstance(weak, Tensor):
        return (weak.ids >= 0).any(-1)
    return weak.sum(-1) > 0 if weak.is_floating_point() else weak != -100


def _row_weights(weight: Tensor | None, size: tuple[int, int], hidden: Tensor) -> Tensor:
    """Return (B, T) row weights in the precision of the loss."""
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


def _teacher_states(columns: dict[str, Any], size: tuple[int, int]) -> TeacherStates | None:
    """Return the states (B, T, S) of a teacher; None if there are none."""
    states = columns.get("weak_states")
    if states is None:
        return None
    targets = ("weak_labels", "weak_ids", "weak_probs", "weak_rest")
    for name in targets:
        if columns.get(name) is not None:
            raise W2SError(f"weak_states came with {name}; expected one kind of weak targets")
    width = states.shape[2] if states.dim() == 3 else "S"
    if states.dim() != 3 or not states.is_floating_point() or tuple(states.shape[:2]) != size:
        raise W2SError(
            f"weak_states has shape {tuple(states.shape)} and dtype {states.dtype}; expected "
            f"floating point ({size[0]}, {size[1]}, {width}) to fit the batch"
        )
    return TeacherStates(states)


def _weak_targets(
    columns: dict[str, Any], size: tuple[int, int], vocabulary: int
) -> Tensor | SparseTargets | None:
    """Combine the weak columns into one target (B, T, ...); None if there are none."""
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
    _check_shape("weak_ids", ids, (*size, ids.shape[2]))
    _check_shape("weak_probs", probs, tuple(ids.shape))
    if rest is not None:
        _check_shape("weak_rest", rest, size)
    return SparseTargets(ids, probs, rest)


def _dense_or_hard(labels: Tensor, size: tuple[int, int], vocabulary: int) -> Tensor:
    if not labels.is_floating_point():
        _check_shape("weak_labels (hard)", labels, size)
        return labels
    if labels.dim() == 3 and labels.shape[2] != vocabulary:
        raise W2SError(
            f"weak_labels are {labels.shape[2]} wide, the vocabulary of the head is {vocabulary}; "
            "pass one entry for every class, or the top classes as weak_ids and weak_probs"
        )
    _check_shape("weak_labels (soft)", labels, (*size, vocabulary))
    return labels


def _check_shape(name: str, t: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(t.shape) != expected:
        raise W2SError(f"{name} has shape {tuple(t.shape)}; expected {expected} to fit the batch")
