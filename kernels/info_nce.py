"""InfoNCE's row pass: rules, sum over the negatives, record, and the gradient in place.

One program a query. Its similarities are read once for their sum, and where a gradient is wanted
they are read again, from cache, and written once, possibly over themselves. The rules are applied
to what is read, both times: nothing of the size of the matrix is made. The record (6, N) is that of
w2s_fast/ops/info_nce/call.py, the formula that of ``ref.py`` beside it.
"""

import triton
import triton.language as tl

from w2s_fast.kernels import _read as rd
from w2s_fast.kernels import _tile as t
from w2s_fast.kernels._row_math import INF, LOG2E

# Rows of the record; a test compares them with ``Stat``.
LOSS = tl.constexpr(0)
LSE = tl.constexpr(1)
POSITIVE = tl.constexpr(2)
HARDEST = tl.constexpr(3)
NEGATIVES = tl.constexpr(4)
FOCAL = tl.constexpr(5)


@triton.jit
def negatives(
    x, cols, inside, at, groups_ptr, own, mask_ptr, most, WITHIN: tl.constexpr,
    MARGIN: tl.constexpr,
):  # fmt: skip
    """Replace by -inf what is no negative: past the row, the positive, what a rule excludes."""
    kept = inside & (cols != at)
    if groups_ptr is not None:
        same = tl.load(groups_ptr + cols, mask=inside, other=0) == own
        kept = kept & (same if WITHIN else same == 0)
    if mask_ptr is not None:
        kept = kept & (tl.load(mask_ptr + cols, mask=inside, other=0) != 0)
    if MARGIN:
        kept = kept & ((x > most) == 0)  # a NaN stays, and shows in the loss
    return tl.where(kept, x, -INF)


@triton.jit
def log1p(e):
    """Compute log(1 + e) for 0 <= e <= 1: the rounding of 1 + e cancels (Kahan)."""
    u = 1.0 + e
    return tl.where(u == 1.0, e, tl.log(u) * (e / (u - 1.0)))


@triton.jit
def info_nce_kernel(
    s_ptr, s_stride, g_ptr, g_stride, positives_ptr, own_ptr, groups_ptr, mask_ptr, w_ptr,
    stats_ptr, stats_stride, n_cols, margin, scale, focal_gamma, WITHIN: tl.constexpr,
    MARGIN: tl.constexpr, FOCAL_WEIGHT: tl.constexpr, G_STEP: tl.constexpr, REP: tl.constexpr,
    LANES: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """Write a query's record, and with ``g_ptr`` weight dloss/d(scaled similarities).

    Bytes: 4 M read, 8 M of group ids from cache, and with a gradient 4 M read again from cache and
    4 M or 2 M written. FLOPs: 6 M for the sum, 3 M for the gradient, one exponential an entry each.
    """
    row = tl.program_id(0).to(tl.int64)
    s_ptr += row * s_stride
    stats_ptr += row
    mask_row = mask_ptr if mask_ptr is None else mask_ptr + row * n_cols
    at = tl.load(positives_ptr + row)
    counted = at >= 0
    known = counted & (at < n_cols)
    at = tl.where(known, at, 0).to(tl.int32)
    positive = tl.load(s_ptr + at)
    own = at if groups_ptr is None else tl.load(own_ptr + row)
    most = positive + margin
    by = scale * LOG2E
    head, body = t.cut(s_ptr, n_cols, VEC)
    s_body = t.body_of(s_ptr, head, True)
    step: tl.constexpr = REP * LANES * VEC

    # Each thread has a maximum, a sum and a count of its own: no barrier in the loop.
    top = tl.full([LANES], -INF, tl.float32)
    total = tl.zeros([LANES], tl.float32)
    count = tl.zeros([LANES], tl.float32)
    for start in range(0, body, step):
        cols, inside = t.tile_at(start, body, REP, LANES, VEC)
        x = tl.load(s_body + cols, mask=inside, other=0.0)
        x = negatives(x, cols + head, inside, at, groups_ptr, own, mask_row, most, WITHIN, MARGIN)
        new_top = tl.maximum(top, rd.inner_max(x))
        e = tl.exp2((x - rd.finite(new_top)[None, :, None]) * by)
        total = total * tl.exp2(rd.shift_of(top, new_top) * by) + rd.inner_sum(e)
        count += rd.inner_sum((x != -INF).to(tl.float32))
        top = new_top
    edge, valid = t.edge_of(head, body, n_cols, VEC)
    x_edge = tl.load(s_ptr + edge, mask=valid, other=0.0)
    x_edge = negatives(x_edge, edge, valid, at, groups_ptr, own, mask_row, most, WITHIN, MARGIN)
    hardest = tl.maximum(tl.max(top, 0), tl.max(x_edge, 0))
    origin = rd.finite(hardest)
    sums = total * tl.exp2(rd.shift_of(top, hardest) * by)
    z = tl.sum(sums, 0) + tl.sum(tl.exp2((x_edge - origin) * by), 0)
    number = tl.sum(count, 0) + tl.sum((x_edge != -INF).to(tl.float32), 0)
    # Beside +inf there is no probability.
    z = tl.where(hardest == INF, float("nan"), z)

    scaled = positive * scale
    rest = origin * scale + tl.log(z)
    r = tl.where(scaled == INF, float("nan"), rest - scaled)
    e = tl.exp(-tl.abs(r))
    more = log1p(e)
    miss = tl.where(r > 0, 1.0, e) / (1.0 + e)  # 1 - p
    focal = 1.0
    if FOCAL_WEIGHT:
        focal = tl.exp(focal_gamma * tl.log(miss))
    loss = focal * (tl.where(r > 0, r, 0.0) + more)
    lse = tl.where(r > 0, rest, scaled) + more
    slope = focal * miss
    share = tl.where(z == 0, 0.0, slope / z)
    # A positive that is no document breaks its row; an excluded query has zeros.
    keep = tl.where(known, 1.0, float("nan"))
    for name in tl.static_range(6):
        value = loss
        if name == LSE:
            value = lse
        elif name == POSITIVE:
            value = positive
        elif name == HARDEST:
            value = hardest
        elif name == NEGATIVES:
            value = number
        elif name == FOCAL:
            value = focal * keep
        tl.store(stats_ptr + name * stats_stride, tl.where(counted, value * keep, 0.0))
    if g_ptr is not None:
        g_ptr += row * g_stride
        weight = 1.0 if w_ptr is None else tl.load(w_ptr + row)
        share = tl.where(counted, share * weight * keep, 0.0)
        pull = tl.where(counted, -slope * weight * keep, 0.0)
        kind = g_ptr.dtype.element_ty
        g_edge = tl.exp2((x_edge - origin) * by) * share
        g_edge = tl.where(counted, tl.where(edge == at, pull, g_edge), 0.0)
        tl.store(g_ptr + edge, g_edge.to(kind), mask=valid)
        g_body = t.body_of(g_ptr, head, G_STEP)
        for start in range(0, body, step):
            cols, inside = t.tile_at(start, body, REP, LANES, VEC)
            x = tl.load(s_body + cols, mask=inside, other=0.0)
            x = negatives(
                x, cols + head, inside, at, groups_ptr, own, mask_row, most, WITHIN, MARGIN
            )
            g = tl.exp2((x - origin) * by) * share
            # A select, not a product: 0 times a NaN would be NaN.
            g = tl.where(counted, tl.where(cols + head == at, pull, g), 0.0)
            tl.store(g_body + cols, g.to(kind), mask=inside)
