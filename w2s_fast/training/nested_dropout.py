r"""Nested dropout: a head reads the first k entries of its input, with k drawn anew in every step.

    P(k) = exp(-(k / sigma)^2) / sum_j exp(-(j / sigma)^2),   k = 1 .. D
    h_j = 0 for j > k, the others as they are

Early entries learn what explains most of the labels; later ones, which few steps train, add what is
left, errors of the weak labels among it. One k holds for all rows of a step, on all processes and
in both passes of an exact threshold. It is a function of seed and step, so a resumed training draws
the same ones. There is no factor 1/p: the weights that remain have learned to do without the rest.

After the training the head keeps the width with the highest accuracy on held-out rows by their WEAK
labels: the columns after it are set to 0 (``truncate_head``). Without held-out rows it keeps all.

Source: Chen et al. 2022, "Compressing Features for Learning with Noisy Labels" (arXiv 2206.13140),
after Rippel et al. 2014 (arXiv 1402.0915). There clean validation rows select k.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from w2s_fast.errors import W2SError
from w2s_fast.models.weights import gathered
from w2s_fast.training.data import RowData, check_weak_labels, derived_seed
from w2s_fast.training.engine import forward
from w2s_fast.training.head_input import HeadInput, head_of
from w2s_fast.training.prediction import map_batches

_STREAM = 1  # tells the draws of widths from other ones of the same seed and step


def width_probabilities(size: int, sigma: float) -> np.ndarray:
    """Return P(k) (D,) fp64 of the widths k = 1 .. D = ``size``.

    Raises:
        W2SError: there is no entry, or ``sigma`` is not above 0.
    """
    if size < 1 or not 0 < sigma < float("inf"):
        raise W2SError(
            f"nested dropout of {size} entries with sigma={sigma}; expected at least one entry and "
            "a finite sigma above 0"
        )
    k = np.arange(1, size + 1, dtype=np.float64)
    mass = np.exp(-(k * k - 1) / sigma**2)  # relative to k = 1, which does not underflow
    return np.asarray(mass / mass.sum())


def nested_width(size: int, sigma: float, seed: int, step: int) -> int:
    """Return the number of entries, 1 to ``size``, that step ``step`` (from 0) keeps.

    Raises:
        W2SError: see ``width_probabilities``.
    """
    uniform = derived_seed(seed, step, _STREAM, 0) / 2**63
    total = np.cumsum(width_probabilities(size, sigma))
    return min(int(np.searchsorted(total, uniform, side="right")) + 1, size)


def best_widths(hidden: Tensor, weight: Tensor, bias: Tensor | None, weak: Tensor) -> Tensor:
    """Return the width of each head with the highest accuracy on these rows.

    The accuracy of every width from 1 to D is computed in one pass, in fp64. Of equal ones the
    largest width is kept.

    Args:
        hidden: (N, D) inputs of the heads. (N W, D) for heads with one output that score W
            candidates of an example.
        weight: (H, O, D); O classes, or 1.
        bias: (H, O), or None.
        weak: (N,) int64 classes that count as right.

    Returns:
        (H,) int64 widths.
    """
    hidden, weight = hidden.double(), weight.double()
    n, heads = len(weak), len(weight)
    z = hidden.new_zeros(heads, len(hidden), weight.shape[1])
    if bias is not None:
        z += bias.double()[:, None]
    best = torch.full((heads,), -1, device=z.device)
    widths = torch.ones(heads, dtype=torch.int64, device=z.device)
    for k in range(weight.shape[2]):
        z.addcmul_(hidden[None, :, k, None], weight[:, None, :, k])
        right = (_classes(z, n) == weak).sum(1)
        better = right >= best
        best, widths = torch.where(better, right, best), torch.where(better, k + 1, widths)
    return widths


def _classes(z: Tensor, n: int) -> Tensor:
    """Return the classes (H, N) of outputs (H, N W, O)."""
    if z.shape[2] == 1 and z.shape[1] == n:  # a score of the second candidate minus the first
        return (z[:, :, 0] > 0).long()
    return z.reshape(len(z), n, -1).argmax(2)


def truncate_head(
    model: nn.Module,
    data: RowData,
    weak_labels: np.ndarray,
    weight: np.ndarray | None = None,
    batch_size: int = 64,
) -> int:
    """Set the columns of a trained head after its best width to 0; a collective call.

    Args:
        model: trained with ``TrainConfig.nested_dropout``.
        data: N rows that it was not trained on.
        weak_labels: (N,) hard or (N, C) soft weak labels of these rows, see ``train``.
        weight: (N,) row weights, or None; rows of weight 0 do not count.
        batch_size: maximum rows of one forward.

    Returns:
        The width that is left, 1 to D.

    Raises:
        W2SError: the model has no linear head, labels do not fit, or no row counts.
    """
    head = head_of(model, "nested dropout")
    check_weak_labels(weak_labels, weight, len(data), getattr(model, "n_classes", None))
    classes = weak_labels if weak_labels.ndim == 1 else weak_labels.argmax(1)
    used = (classes >= 0) & (True if weight is None else weight > 0)
    if not used.any():
        raise W2SError(f"none of {len(data)} held-out rows counts; expected at least one label")
    hidden = _head_inputs(model, head, data, batch_size)
    candidates = len(hidden) // len(data)
    hidden = hidden.view(len(data), candidates, -1)[torch.from_numpy(used)].flatten(0, 1)
    bias: Tensor | None = head.bias
    with gathered([head.weight] if bias is None else [head.weight, bias]):
        w = head.weight.detach().double().cpu()[None].clone()
        b = None if bias is None else bias.detach().double().cpu()[None].clone()
    width = int(best_widths(hidden, w, b, torch.from_numpy(classes[used].astype(np.int64))))
    with gathered([head.weight], change=True), torch.no_grad():
        head.weight[:, width:] = 0.0
    return width


def _head_inputs(model: nn.Module, head: nn.Linear, data: RowData, batch_size: int) -> Tensor:
    """Return the inputs (N W, D) of the head for all rows."""
    inputs = HeadInput(head)

    def of_batch(batch: Any) -> Tensor:
        n = len(forward(model, batch))
        assert inputs.last is not None
        wide = torch.promote_types(inputs.last.dtype, torch.float32)
        return inputs.last.to(wide).reshape(n, -1)

    try:
        with torch.inference_mode():
            rows = map_batches(model, data, batch_size, of_batch)
    finally:
        inputs.close()
    return torch.from_numpy(rows).reshape(-1, inputs.size)
