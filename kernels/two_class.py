"""Rows of two classes, and a batch of them in one program: losses, gradient, record, threshold.

All rows are in registers, a few a thread. The threshold is the exact quantile of the margins
z_0 - z_1: the key of rank k is found bit by bit, the largest number that at most k keys lie below;
32 counts over the block, no counters in memory. Formulas are those of the op. Larger batches:
``two_class_grid``.
"""

import triton
import triton.language as tl

from w2s_fast.kernels import _row_math as m
from w2s_fast.kernels._targets import HARD
from w2s_fast.kernels.quantile import between, keys_of, value_of

# Blocks of rows: a batch takes the smallest that holds it, so few are compiled. Warps for each.
BLOCKS = {128: 4, 1024: 8, 2048: 16}
MOST_ROWS = 2048
ROWS = 1024  # of a program where several share a batch
WARPS = 8
# Where the threshold comes from: ThresholdFrom in w2s_fast/ops/loss_call.py.
GIVEN = tl.constexpr(0)
PRIOR = tl.constexpr(1)


@triton.jit
def log1p_of(e):
    """Return log(1 + e) for e in [0, 1] as 2 artanh(e / (2 + e)); relative error below 2e-7."""
    u = e / (2.0 + e)
    w = u * u
    p = w * (2.0 / 13) + 2.0 / 11
    p = p * w + 2.0 / 9
    p = p * w + 2.0 / 7
    p = p * w + 2.0 / 5
    p = p * w + 2.0 / 3
    return (p * w + 2.0) * u


@triton.jit
def quantile_of(scores, kept, q):
    """Return the exact ``q``-quantile of the kept scores of a block, as the op ``quantile``."""
    count = tl.sum(kept.to(tl.int32), 0)
    known = (q >= 0.0) & (q <= 1.0)  # not a NaN
    position = tl.where(known, q, 0.0) * (tl.maximum(count, 1) - 1).to(tl.float64)
    rank = tl.floor(position).to(tl.int32)
    keys = keys_of(scores + 0.0)
    at = tl.full([], 0, tl.int64)
    bit = tl.full([], 0x80000000, tl.int64)
    for _ in range(32):
        below = tl.sum((kept & (keys < at + bit)).to(tl.int32), 0)
        at = tl.where(below <= rank, at + bit, at)
        bit = bit // 2
    up_to = tl.sum((kept & (keys <= at)).to(tl.int32), 0)
    above = tl.min(tl.where(kept & (keys > at), keys, 0x100000000), 0)
    above = tl.where((rank + 1 < up_to) | (above == 0x100000000), at, above)
    value = between(value_of(at), value_of(above), (position - tl.floor(position)).to(tl.float32))
    value = tl.where(count > 0, value, m.INF)
    ordered = tl.max((kept & (scores != scores)).to(tl.int32), 0) == 0
    return tl.where(ordered & known, value, float("nan"))


@triton.jit
def share_of(count, one, FROM: tl.constexpr):
    """Return the share of the margins below the threshold: 1/2, or the mean weak P(class 1).

    Of ``count`` rows that count, whose weak P(class 1) sum to ``one``.
    """
    share = tl.full([], 0.5, tl.float64)
    if FROM == PRIOR:
        share = one / tl.maximum(count, 1).to(tl.float64)
        share = tl.where(share < 0, 0.0, tl.where(share > 1, 1.0, share))  # NaN stays
    return share


@triton.jit
def load_weak(ids_ptr, q_ptr, q_stride, rows, inside, ignore, KIND: tl.constexpr):
    """Load the weak mass of both classes, and whether the labels let the rows count.

    A label outside the classes turns its row's mass into NaN.
    """
    counts = inside
    if KIND == HARD:
        ids = tl.load(ids_ptr + rows, mask=inside, other=0)
        counts = inside & (ids != ignore)
        q0 = (counts & (ids == 0)).to(tl.float32)
        q1 = (counts & (ids == 1)).to(tl.float32)
        q1 = tl.where(counts & ((ids < 0) | (ids > 1)), float("nan"), q1)
    else:
        at = q_ptr + rows * q_stride
        q0 = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        q1 = tl.load(at + 1, mask=inside, other=0.0).to(tl.float32)
    return q0, q1, counts


@triton.jit
def load_rows(
    z_ptr, z_stride, ids_ptr, q_ptr, q_stride, w_ptr, rows, inside, ignore, softcap,
    KIND: tl.constexpr, CAP: tl.constexpr, CHECK: tl.constexpr,
):  # fmt: skip
    """Load both logits (after the soft-cap) with their slopes, weak mass, who counts, and weights.

    ``CHECK``: a weight that is negative or NaN ends the program, in a kernel compiled with debug.
    """
    at = z_ptr + rows * z_stride
    z0, turn0 = m.diffs(tl.load(at, mask=inside, other=0.0), 0.0, softcap, CAP)
    z1, turn1 = m.diffs(tl.load(at + 1, mask=inside, other=0.0), 0.0, softcap, CAP)
    q0, q1, kept = load_weak(ids_ptr, q_ptr, q_stride, rows, inside, ignore, KIND)
    weight = tl.full(rows.shape, 1.0, tl.float32)
    if w_ptr is not None:
        weight = tl.load(w_ptr + rows, mask=inside, other=0.0)
        if CHECK:
            tl.device_assert(weight >= 0, "w2s_fast: a row weight is negative or NaN")
        kept = kept & (weight != 0)
    return z0, turn0, z1, turn1, q0, q1, kept, weight


@triton.jit
def write_rows(
    z0, turn0, z1, turn1, q0, q1, kept, weight, threshold, scale, rows, inside, n,
    g_ptr, g_stride, aux_ptr, stats_ptr, index_ptr, losses_ptr,
    aux, smoothing, focal_gamma, max_confidence, z_loss,
    OWN: tl.constexpr, SMOOTH: tl.constexpr, FOCAL: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """Write gradient, record and weighted losses on request; return the weighted losses.

    ``OWN``: rows take the self-target of their margin. ``aux_ptr`` replaces ``aux``. ``scale`` is
    the factor of a row's gradient besides its weight, a number or one a row.
    """
    score = z0 - z1
    nan = (z0 != z0) | (z1 != z1)
    top = tl.where(nan, float("nan"), tl.maximum(z0, z1))
    d0 = z0 - top
    d1 = z1 - top
    lower = tl.minimum(d0, d1)
    e = tl.exp(lower)
    e = tl.where(nan | (tl.abs(top) == m.INF), float("nan"), e)
    logs = log1p_of(e)
    best1 = z1 > z0
    mass = q0 + q1
    linear = tl.where((q0 != 0) & (d0 != 0), q0 * d0, 0.0)
    linear += tl.where((q1 != 0) & (d1 != 0), q1 * d1, 0.0)
    mean = 0.5 * (d0 + d1)
    # A weak label with a NaN in it has no top class.
    weak1 = (q1 > q0) & (mass == mass)
    chosen = tl.where(mass == mass, tl.where(weak1, d1, d0), float("nan"))
    none = tl.zeros(z0.shape, tl.float32)
    a = none
    self1 = best1
    if OWN:
        a = none + (tl.load(aux_ptr) if aux_ptr is not None else aux)
        self1 = (score >= threshold) == 0
    factor = tl.full(z0.shape, 1.0, tl.float32)
    if FOCAL:
        # 1 - p of the weak class is p of the other one: no cancellation.
        miss = tl.exp(tl.where(weak1, d0, d1) - logs)
        factor = tl.exp(focal_gamma * tl.log(miss))
    if WINDOW:
        factor = tl.where(tl.exp(-logs) >= max_confidence, 0.0, factor)
    if FOCAL or WINDOW:
        # A NaN must show in the loss, be it in a logit or in a weak label.
        factor = tl.where(chosen == chosen, factor, chosen)
    factor = tl.where(kept, factor, 0.0)
    z_part, z_slope = m.z_part(top, logs, z_loss)
    loss = m.weak_part(mass, none, linear, none, logs, mean, smoothing, SMOOTH)
    loss = m.unless_own(loss, mass, a) + z_part
    if OWN:
        loss += tl.where(a != 0, a * (logs - tl.where(self1, d1, d0)), 0.0)
    loss = tl.where(factor == 0, 0.0, loss * factor)
    if stats_ptr is not None:
        out = stats_ptr + rows
        tl.store(out + m.LOSS * n, loss, mask=inside)
        tl.store(out + m.MAX * n, top, mask=inside)
        tl.store(out + m.LOGS * n, logs, mask=inside)
        tl.store(
            out + m.ENTROPY * n, logs - tl.where(e != 0, e / (1.0 + e) * lower, 0.0), mask=inside
        )
        tl.store(out + m.MASS * n, mass, mask=inside)
        tl.store(out + m.LINEAR * n, linear, mask=inside)
        tl.store(out + m.MEAN * n, mean, mask=inside)
        tl.store(out + m.CHOSEN * n, chosen, mask=inside)
        tl.store(out + m.TAIL * n, none, mask=inside)
        tl.store(out + m.COEF * n, a, mask=inside)
        tl.store(out + m.FACTOR * n, factor, mask=inside)
        tl.store(out + m.SCORE * n, score, mask=inside)
        place = index_ptr + rows
        tl.store(place + m.ARGMAX * n, best1.to(tl.int64), mask=inside)
        tl.store(place + m.WEAK * n, weak1.to(tl.int64), mask=inside)
        tl.store(place + m.SELF * n, self1.to(tl.int64), mask=inside)
    if losses_ptr is not None:
        tl.store(losses_ptr + rows, loss * weight, mask=inside)
    if g_ptr is not None:
        slope = (tl.fma(1.0 - a, mass, a) + z_slope) / (1.0 + e)
        base = m.even_part(a, smoothing, mass, 2)
        weak = (1.0 - a) * (1.0 - smoothing)
        by = factor * (weight * scale)
        # By fma, as ``slope`` was made: where p and the target are both 1, exactly 0 is left.
        g0 = slope * tl.exp(d0) - tl.fma(weak, q0, tl.where(self1, 0.0, a)) - base
        g1 = slope * tl.exp(d1) - tl.fma(weak, q1, tl.where(self1, a, 0.0)) - base
        g0 = tl.where(by == 0, 0.0, g0 * (by * turn0))
        g1 = tl.where(by == 0, 0.0, g1 * (by * turn1))
        to = g_ptr + rows * g_stride
        kind = g_ptr.dtype.element_ty
        tl.debug_barrier()  # in place: every row has been read
        tl.store(to, g0.to(kind), mask=inside)
        tl.store(to + 1, g1.to(kind), mask=inside)
    return loss * weight


@triton.jit
def two_class_kernel(
    z_ptr, z_stride, g_ptr, g_stride, ids_ptr, q_ptr, q_stride, w_ptr, aux_ptr, at_ptr, stats_ptr,
    index_ptr, losses_ptr, out_ptr, n, cut, ignore, aux, smoothing, focal_gamma, max_confidence,
    softcap, z_loss, KIND: tl.constexpr, FROM: tl.constexpr, OWN: tl.constexpr, MEAN: tl.constexpr,
    SMOOTH: tl.constexpr, FOCAL: tl.constexpr, WINDOW: tl.constexpr, CAP: tl.constexpr,
    CHECK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write loss, normaliser and threshold to ``out_ptr`` (3), and what else is asked for.

    That is the gradient (N, 2), the record, and the weighted losses (N,) of rows. A threshold that
    is given is at ``at_ptr``, or ``cut``.
    """
    rows = tl.arange(0, BLOCK).to(tl.int64)
    inside = rows < n
    z0, turn0, z1, turn1, q0, q1, kept, weight = load_rows(
        z_ptr, z_stride, ids_ptr, q_ptr, q_stride, w_ptr, rows, inside, ignore, softcap, KIND, CAP,
        CHECK,
    )  # fmt: skip
    total = tl.sum(tl.where(kept, weight, 0.0).to(tl.float64), 0)
    threshold = tl.full([], 0.0, tl.float32) + cut
    if FROM != GIVEN:
        count = tl.sum(kept.to(tl.int32), 0)
        one = tl.sum(tl.where(kept, q1, 0.0).to(tl.float64), 0)
        threshold = quantile_of(z0 - z1, kept, share_of(count, one, FROM))
    elif at_ptr is not None:
        threshold = tl.load(at_ptr)
    divisor = tl.full([], 1.0, tl.float64)
    if MEAN:
        divisor = tl.where(total > 0, total, 1.0)
    losses = write_rows(
        z0, turn0, z1, turn1, q0, q1, kept, weight, threshold, (1.0 / divisor).to(tl.float32),
        rows, inside, n, g_ptr, g_stride, aux_ptr, stats_ptr, index_ptr, losses_ptr, aux, smoothing,
        focal_gamma, max_confidence, z_loss, OWN, SMOOTH, FOCAL, WINDOW,
    )  # fmt: skip
    tl.store(out_ptr, (tl.sum(losses.to(tl.float64), 0) / divisor).to(tl.float32))
    tl.store(out_ptr + 1, total.to(tl.float32))
    tl.store(out_ptr + 2, threshold)


@triton.jit
def two_class_gradient_kernel(
    z_ptr, z_stride, g_ptr, g_stride, ids_ptr, q_ptr, q_stride, w_ptr, aux_ptr, out_ptr, up_ptr,
    up_stride, n, ignore, aux, smoothing, focal_gamma, max_confidence, softcap, z_loss,
    KIND: tl.constexpr, OWN: tl.constexpr, MEAN: tl.constexpr, SMOOTH: tl.constexpr,
    FOCAL: tl.constexpr, WINDOW: tl.constexpr, CAP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the gradient of a finished forward pass, times the upstream factor of each row.

    ``out_ptr`` (3) has the normaliser and the threshold of that pass.
    """
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = rows < n
    z0, turn0, z1, turn1, q0, q1, kept, weight = load_rows(
        z_ptr, z_stride, ids_ptr, q_ptr, q_stride, w_ptr, rows, inside, ignore, softcap, KIND, CAP,
        False,
    )  # fmt: skip
    scale = tl.load(up_ptr + rows * up_stride, mask=inside, other=0.0)
    if MEAN:
        total = tl.load(out_ptr + 1)
        scale /= tl.where(total > 0, total, 1.0)
    write_rows(
        z0, turn0, z1, turn1, q0, q1, kept, weight, tl.load(out_ptr + 2), scale, rows, inside, n,
        g_ptr, g_stride, aux_ptr, None, None, None, aux, smoothing, focal_gamma, max_confidence,
        z_loss, OWN, SMOOTH, FOCAL, WINDOW,
    )  # fmt: skip
