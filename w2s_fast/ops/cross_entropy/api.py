r"""Weak-to-strong cross-entropy: one read and one write of the logits for every threshold.

    L        = (1/Z) sum_i w_i r_i [ (1-a_i) C_i + a_i (lse_i - z_{i,h_i}) + y lse_i^2 ]
    C_i      = (1-e) [ sum_v q_iv (lse_i - z_iv) - rest_i log(1 - sum_{v in K_i} p_iv) ]
               + e m_i mean_v (lse_i - z_iv),                       m_i = sum_v q_iv + rest_i
    dL/dz_iv = (w_i r_i / Z) { ((1-a_i) m_i + a_i + 2 y lse_i) p_iv
               - (1-a_i) [ (1-e) (q_iv + [v not in K_i] rest_i p_iv / P_i) + e m_i / V ]
               - a_i [v = h_i] },             P_i = student's mass outside K_i

N rows, V classes; z logits, p = softmax(z), lse = log sum exp z; q weak target (hard, dense, or
top-k classes K_i with a residual), w row weight, r row factor (focal, window; detached), e label
smoothing, y z-loss. With a soft-cap c the logits are z = c tanh(u / c) of the given u,
dz/du = 1 - (z/c)^2.
The self-target (a_i, h_i) is the student's own hardened prediction, detached:

    two classes   h_i = 0 iff z_i0 - z_i1 >= t, a_i = aux;  t = quantile of the margins at the mean
                  weak P(class 1) ("prior"), at 1/2 ("median"), or given
    more classes  h_i = argmax_v z_iv; a_i = aux, on every row ("argmax") or where
                  max_v p_iv >= t, t = batch median ("median") or given;
                  or h_i = argmax_v (z_iv + b_v), a_i = aux, b such that the hard classes are as
                  frequent as the weak ones ("prior", see ``balanced``)

Ties with a threshold: see ``quantile``. Near ties are decided by the rounding of the scores.

A product with 0 is 0: a class of logit -inf costs nothing where it has no weak mass, and makes the
loss +inf where it has some (label smoothing gives it some). A row whose logits hold NaN, +inf or
nothing but -inf has no softmax, one whose weak label holds NaN no target: its loss and gradient are
NaN. A NaN threshold opens no gate and, of two classes, chooses class 1.

Source: Burns et al. 2023 (arXiv 2312.09390), Eq. 1 and its openai/weak-to-strong implementation;
the form above rewrites both as one cross-entropy against a detached target.
"""

from __future__ import annotations

import torch
from torch import Tensor

from w2s_fast.ops.arguments import checked
from w2s_fast.ops.cross_entropy.algorithm import make_spec
from w2s_fast.ops.cross_entropy.autograd import differentiable_loss
from w2s_fast.ops.cross_entropy.statistics import differentiable_stats, loss_with_values
from w2s_fast.ops.dispatch import Cost, Op
from w2s_fast.ops.reference import cross_entropy_reference, cross_entropy_sample
from w2s_fast.ops.results import Stats, check_return_stats, make_stats
from w2s_fast.ops.targets import SparseTargets, make_inputs
from w2s_fast.ops.vocab_parallel.entry import logits_take_dtensors


@checked
@logits_take_dtensors
def cross_entropy(
    logits: Tensor,
    weak: Tensor | SparseTargets,
    *,
    weight: Tensor | None = None,
    aux: float | Tensor = 0.0,
    threshold: str | float | None = None,
    smoothing: float = 0.0,
    softcap: float = 0.0,
    z_loss: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    inplace: bool = False,
    return_stats: bool | str = False,
) -> Tensor | tuple[Tensor, Stats]:
    """Compute the cross-entropy with weak labels and the student's own hardened prediction.

    Equivalent, for soft labels and two classes, to

        p = softmax(logits); t = quantile(p[:, 0], weak[:, 1].mean())
        own = stack([p[:, 0] >= t, p[:, 0] < t], 1).detach()
        F.cross_entropy(logits, (1 - aux) * weak + aux * own)

    Args:
        logits: (N, V) student logits, fp32, bf16, fp16 or fp64. Gets gradients. A DTensor of
            placement Shard(1), as loss parallelism makes it, is never gathered: the other
            arguments are the same on every rank, or DTensors, and the loss is a plain tensor,
            equal on every rank. Eager only, V > 2, without ``inplace``.
        weak: weak labels: int (N,), float (N, V), or ``SparseTargets``; constants.
        weight: (N,) row weights; get gradients. A weight of 0 excludes its row from the batch.
        aux: self-target coefficient in [0, 1]; a 0-d tensor avoids recompiling a schedule.
        threshold: two classes: ``"prior"`` (default), ``"median"`` or a float, the P(class 1)
            above which the hard class is 1. More classes: ``"argmax"`` (default, every row),
            ``"median"`` or a float, the top probability from which on a row takes the self-target,
            or up to 64 classes ``"prior"``: every row takes the class that ``balanced_bias`` gives
            it, so that the hard classes are as frequent as the weak ones.
        smoothing: label smoothing e in [0, 1).
        softcap: the logits of the formula are softcap tanh(logits / softcap); 0 for none.
        z_loss: factor of lse^2 in every row's loss (PaLM, arXiv 2204.02311, Sec. 5); 0 for none.
        ignore_index: hard label that excludes its row from the batch.
        reduction: ``"mean"`` divides by the sum of weights of the rows that count (their number
            without weights; 0 rows give 0), ``"sum"``, or ``"none"`` for (N,).
        inplace: let the gradient overwrite the logits (eager mean and sum only; a hint under
            ``torch.compile``). The logits must not be used afterwards.
        return_stats: also return ``Stats``. ``"differentiable"``: its lse, max_prob, entropy and
            margin get gradients; every reduction then writes the gradient of the logits in
            backward, in blocks of rows and into a buffer of its own.

    Returns:
        0-d fp32 loss ((N,) for ``"none"``; fp64 for fp64 logits), or ``(loss, Stats)``.

    Raises:
        W2SError: for shapes, dtypes, coefficients or thresholds that do not fit.
        RuntimeError: on a second derivative, a tangent of forward mode, or a second backward after
            ``inplace=True``.
    """
    p = make_inputs(logits, weak, weight, ignore_index, solves=True)
    with_gradients = check_return_stats(return_stats)
    kept = bool(return_stats)
    spec = make_spec(p, aux, threshold, smoothing, softcap, z_loss, record=kept, entropy=kept)
    if with_gradients:
        loss, result, values = loss_with_values(p, spec, weight, reduction)
        return loss, differentiable_stats(make_stats(p, result), values)
    loss, result = differentiable_loss(p, spec, logits, weight, reduction, inplace)
    return (loss, make_stats(p, result)) if return_stats else loss


def cost(n: int, v: int, dtype: torch.dtype) -> Cost:
    """Return the cost with hard or top-k weak labels: one read and one write of the logits."""
    return Cost(bytes=2 * n * v * dtype.itemsize, flops=26 * n * v)


OP = Op("cross_entropy", cross_entropy_reference, cross_entropy_sample, cost)
