"""One read of a row: its softmax sums, its largest entry, and its sums with dense weak labels.

A thread keeps a running maximum and sums of its own, so nothing crosses threads before the end of
the row: no barrier in the loop, and the next tile's loads need not wait for this one's reduction.
"""

import triton
import triton.language as tl

from w2s_fast.kernels import _row_math as m
from w2s_fast.kernels import _tile as t
from w2s_fast.kernels._row_math import FAR_16, FAR_32, INF, LOG2E, finite

# 2^-200 is 0 in fp32, so no smaller exponent matters; and 0 (-200) is 0 where 0 (-inf) is NaN.
_LOWEST = tl.constexpr(-200.0)


@triton.jit
def inner_sum(x):
    """Reduce (REP, LANES, VEC) to (LANES,), within each thread."""
    return tl.sum(tl.sum(x, 2), 0)


@triton.jit
def inner_max(x):
    """Reduce (REP, LANES, VEC) to (LANES,), within each thread."""
    return tl.max(tl.max(x, 2), 0)


@triton.jit
def shift_of(top, new_top):
    """Return by how much earlier entries fall when their maximum ``top`` becomes ``new_top``."""
    return tl.where(new_top == INF, 0.0, tl.where(top == -INF, 0.0, top - new_top))


@triton.jit
def product(q, d):
    """Return q d, and 0 where one of them is 0 even if the other is infinite."""
    return tl.where((q != 0) & (d != 0), q * d, 0.0)


@triton.jit
def read_row(
    z_ptr, q_ptr, n_cols, softcap, CAP: tl.constexpr, Q_STEP: tl.constexpr, SMOOTH: tl.constexpr,
    ENTROPY: tl.constexpr, REP: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """Read a row once, and its dense weak labels if ``q_ptr`` is given.

    Bytes: the row (and its labels) once. Instructions an entry: 6, one of them an exponential;
    the entropy adds 2, dense labels 7, smoothing 3, a cap 20. Whole tiles are read without masks.

    Returns:
        M, S = sum e^d, sum e^d d (0 without ``ENTROPY``), mean d, first argmax, and for dense
        labels sum q, sum q d and q's first argmax, with d = z - M.
    """
    NEAR: tl.constexpr = q_ptr is None and not SMOOTH  # d itself is not needed
    FAR: tl.constexpr = FAR_32 if VEC == 4 or CAP else FAR_16
    head, body = t.cut(z_ptr, n_cols, VEC)
    z_body = t.body_of(z_ptr, head, True)
    q_body = q_ptr if q_ptr is None else t.body_of(q_ptr, head, Q_STEP)
    share = 1.0 / n_cols  # of each entry in the mean: a sum of masked logits would overflow
    top = tl.full([LANES], -INF, tl.float32)
    k, b = m.origin_of(top, FAR)
    q_top = tl.full([LANES], -INF, tl.float32)
    tile = tl.zeros([LANES], tl.int32)
    q_tile = tl.zeros([LANES], tl.int32)
    s = tl.zeros([LANES], tl.float32)
    ey = tl.zeros([LANES], tl.float32)
    total = tl.zeros([LANES], tl.float32)
    mass = tl.zeros([LANES], tl.float32)
    linear = tl.zeros([LANES], tl.float32)
    block: tl.constexpr = REP * LANES * VEC
    whole = body // block * block
    for start in range(0, whole, block):
        top, k, b, tile, s, ey, total, mass, linear, q_top, q_tile = add_tile(
            z_body, q_body, start, body, softcap, share, top, k, b, tile, s, ey, total, mass,
            linear, q_top, q_tile, CAP, SMOOTH, ENTROPY, NEAR, FAR, False, REP, LANES, VEC,
        )  # fmt: skip
    if whole < body:
        top, k, b, tile, s, ey, total, mass, linear, q_top, q_tile = add_tile(
            z_body, q_body, whole, body, softcap, share, top, k, b, tile, s, ey, total, mass,
            linear, q_top, q_tile, CAP, SMOOTH, ENTROPY, NEAR, FAR, True, REP, LANES, VEC,
        )  # fmt: skip
    # Head and tail, once the maximum of all is known, then the threads' sums.
    cols, valid = t.edge_of(head, body, n_cols, VEC)
    x_edge = t.load_logits(z_ptr, cols, valid, softcap, CAP)
    best_top = tl.maximum(tl.max(top, 0), tl.max(x_edge, 0))
    base = finite(best_top)
    drop = shift_of(top, best_top)
    d_edge = x_edge - base
    if NEAR:
        k_best, b_best = m.origin_of(best_top, FAR)
        y_edge = tl.fma(x_edge, k_best, -b_best)
        fall = fall_of(top, k, b, best_top, k_best, b_best)
    else:
        y_edge = d_edge * LOG2E
        fall = drop * LOG2E
    keep = tl.exp2(fall)
    e_edge = tl.exp2(y_edge)
    if SMOOTH:
        count = (body // VEC - tl.arange(0, LANES) + LANES - 1) // LANES * VEC  # a thread's entries
        total += drop * (count * share)
    linear += product(mass, drop)
    sum_ey, sum_e, sum_q, sum_qd = sums_of(
        keep * (ey + tl.maximum(fall, _LOWEST) * s), keep * s, mass, linear
    )
    sum_e += tl.sum(e_edge, 0)
    if ENTROPY:
        sum_ey += tl.sum(e_edge * tl.maximum(y_edge, _LOWEST), 0)
    if NEAR:  # from powers relative to b to powers relative to the maximum
        y_best = tl.fma(base, k_best, -b_best)
        sum_ey = (sum_ey - y_best * sum_e) / tl.exp2(y_best)
        sum_e = sum_e / tl.exp2(y_best)
    sum_d = tl.full([], 0.0, tl.float32)
    if SMOOTH:
        sum_d = tl.sum(total, 0) + tl.sum(tl.where(valid, d_edge * share, 0.0), 0)
    weak = tl.full([], 0, tl.int32)
    if q_ptr is not None:
        q_edge = t.load_probs(q_ptr, cols, valid)
        sum_qd += tl.sum(product(q_edge, d_edge), 0)
        sum_q += tl.sum(q_edge, 0)
        q_best = tl.maximum(tl.max(q_top, 0), tl.max(tl.where(valid, q_edge, -INF), 0))
        weak = tl.min(tl.where(valid & (q_edge == q_best), cols, n_cols - 1), 0)
        for r in tl.static_range(REP):
            q_at, q_valid = winners(q_top == q_best, q_tile, r, body, LANES, VEC)
            q_again = t.load_probs(q_body, q_at, q_valid)
            weak = tl.minimum(weak, first_of(q_valid & (q_again == q_best), head + q_at, n_cols))
    best = tl.min(tl.where(valid & (x_edge == best_top), cols, n_cols - 1), 0)
    for r in tl.static_range(REP):
        x_at, x_valid = winners(top == best_top, tile, r, body, LANES, VEC)
        x_again = t.load_logits(z_body, x_at, x_valid, softcap, CAP)
        best = tl.minimum(best, first_of(x_valid & (x_again == best_top), head + x_at, n_cols))
    return best_top, sum_e, sum_ey / LOG2E, sum_d, best, sum_q, sum_qd, weak


@triton.jit
def add_tile(
    z_body, q_body, start, body, softcap, share, top, k, b, tile, s, ey, total, mass, linear,
    q_top, q_tile, CAP: tl.constexpr, SMOOTH: tl.constexpr, ENTROPY: tl.constexpr,
    NEAR: tl.constexpr, FAR: tl.constexpr, MASKED: tl.constexpr, REP: tl.constexpr,
    LANES: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """Return the sums of each thread after one more tile; of the last one only a part may exist."""
    at, inside = t.tile_at(start, body, REP, LANES, VEC)
    if MASKED:
        x = t.load_logits(z_body, at, inside, softcap, CAP)
    else:
        x = t.load_whole(z_body, at, softcap, CAP)
    tile_top = inner_max(x)
    tile = tl.where(tile_top > top, start, tile)
    new_top = tl.maximum(top, tile_top)
    shift = shift_of(top, new_top)
    if NEAR:
        new_k, new_b = m.origin_of(new_top, FAR)
        y = tl.fma(x, tl.broadcast_to(new_k[None, :, None], x.shape), -new_b[None, :, None])
        fall = fall_of(top, k, b, new_top, new_k, new_b)
        k = new_k
        b = new_b
    else:
        d = x - finite(new_top)[None, :, None]
        y = d * LOG2E
        fall = shift * LOG2E
    e = tl.exp2(y)
    alpha = tl.exp2(fall)
    if ENTROPY:
        part = inner_sum(e * tl.maximum(y, _LOWEST))
        ey = alpha * (ey + tl.maximum(fall, _LOWEST) * s) + part
    s = alpha * s + inner_sum(e)
    if SMOOTH:
        seen = start // LANES  # entries of this thread in earlier tiles
        total += shift * (seen * share)
        total += inner_sum(tl.where(inside, d * share, 0.0) if MASKED else d * share)
    if q_body is not None:
        q = t.load_probs(q_body, at, inside) if MASKED else tl.load(q_body + at).to(tl.float32)
        linear += product(mass, shift) + inner_sum(product(q, d))
        mass += inner_sum(q)
        q_tile_top = inner_max(tl.where(inside, q, -INF) if MASKED else q)
        q_tile = tl.where(q_tile_top > q_top, start, q_tile)
        q_top = tl.maximum(q_top, q_tile_top)
    return new_top, k, b, tile, s, ey, total, mass, linear, q_top, q_tile


@triton.jit
def fall_of(top, k, b, new_top, new_k, new_b):
    """Return by how much exponents fall when their origin moves from (k, b) to (new_k, new_b)."""
    fall = tl.where(k == new_k, b - new_b, _LOWEST)  # the scales differ: nothing is left
    return tl.where(new_top == INF, 0.0, tl.where(top == -INF, 0.0, fall))


@triton.jit
def sums_of(a, b, c, d):
    """Sum four (LANES,), in one round through shared memory instead of four."""
    ac, bd = tl.split(tl.sum(tl.join(tl.join(a, c), tl.join(b, d)), 0))
    sum_a, sum_c = tl.split(ac)
    sum_b, sum_d = tl.split(bd)
    return sum_a, sum_b, sum_c, sum_d


@triton.jit
def winners(hit, tile, r, body, LANES: tl.constexpr, VEC: tl.constexpr):
    """Locate vector ``r`` of the tile in which a thread met the overall maximum, if it did.

    Reading a few vectors again costs less than carrying an index an entry.
    """
    at, _ = t.tile_at(r * LANES * VEC, body, 1, LANES, VEC)
    at += (tile // VEC * VEC)[None, :, None]  # a multiple, and known to be
    return at, (at // VEC * VEC < body) & hit[None, :, None]


@triton.jit
def first_of(hit, cols, n_cols):
    """Return the first column of a tile that is hit; the last of the row if none is (NaN)."""
    return tl.min(tl.min(tl.min(tl.where(hit, cols, n_cols - 1), 2), 0), 0)


@triton.jit
def outside_row(
    z_ptr, ids_ptr, n_cols, n_topk, softcap, CAP: tl.constexpr,
    REP: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """Return (max, sum e^(z - max)) over classes outside the top k; (-inf, 0) if there are none.

    Costs ``n_topk`` comparisons an entry, so callers use it only where S minus the top-k part
    would cancel.
    """
    head, body = t.cut(z_ptr, n_cols, VEC)
    z_body = t.body_of(z_ptr, head, True)
    top = tl.full([LANES], -INF, tl.float32)
    s = tl.zeros([LANES], tl.float32)
    for start in range(0, body, REP * LANES * VEC):
        at, inside = t.tile_at(start, body, REP, LANES, VEC)
        x = t.load_logits(z_body, at, inside, softcap, CAP)
        for k in range(0, n_topk):
            x = tl.where(head + at == tl.load(ids_ptr + k).to(tl.int32), -INF, x)
        new_top = tl.maximum(top, inner_max(x))
        origin = finite(new_top)
        shift = shift_of(top, new_top)
        e = tl.exp2((x - origin[None, :, None]) * LOG2E)
        s = tl.exp2(shift * LOG2E) * s + inner_sum(e)
        top = new_top
    cols, valid = t.edge_of(head, body, n_cols, VEC)
    edge = t.load_logits(z_ptr, cols, valid, softcap, CAP)
    for k in range(0, n_topk):
        edge = tl.where(cols == tl.load(ids_ptr + k).to(tl.int32), -INF, edge)
    best_top = tl.maximum(tl.max(top, 0), tl.max(edge, 0))
    base = finite(best_top)
    keep = tl.exp2(shift_of(top, best_top) * LOG2E)
    return best_top, tl.sum(keep * s, 0) + tl.sum(tl.exp2((edge - base) * LOG2E), 0)
