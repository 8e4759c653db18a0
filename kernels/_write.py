"""The write pass over a row: its dense gradient, its special entries, a later factor."""

import triton
import triton.language as tl

from w2s_fast.kernels import _row_math as m
from w2s_fast.kernels import _tile as t
from w2s_fast.kernels._row_math import LOG2E
from w2s_fast.kernels._targets import DENSE


@triton.jit
def dense_part(
    u, q, top, k, b, slope, base, weak, pull, origin, bias, softcap,
    KIND: tl.constexpr, REST: tl.constexpr, SMOOTH: tl.constexpr, CAP: tl.constexpr,
):  # fmt: skip
    """Return dz/du (slope e^(z-M) - weak q - base - pull e^(z-origin-bias)) in fp32.

    Without dense labels and smoothing e^(z-M) is 2^(k z - b), see ``origin_of``; base is 0 without
    smoothing.
    """
    z = u
    if CAP:
        z, turn = m.capped(u, softcap)
    if KIND == DENSE:
        # By fma, as ``slope`` was made: where p and the target are both 1, exactly 0 is left.
        g = slope * tl.exp2((z - top) * LOG2E) - tl.fma(weak, q, base)
    elif SMOOTH:
        g = slope * tl.exp2((z - top) * LOG2E) - base
    else:
        g = slope * tl.exp2(tl.fma(z, tl.broadcast_to(k, z.shape), -b))
    if REST:
        g -= pull * tl.exp2(((z - origin) - bias) * LOG2E)
    if CAP:
        g *= turn
    return g


@triton.jit
def write_row(
    z_ptr, g_ptr, q_ptr, n_cols, top, slope, base, weak, pull, origin, bias, factor, softcap,
    KIND: tl.constexpr, REST: tl.constexpr, SMOOTH: tl.constexpr, CAP: tl.constexpr,
    G_STEP: tl.constexpr, Q_STEP: tl.constexpr, REP: tl.constexpr, LANES: tl.constexpr,
    VEC: tl.constexpr,
):  # fmt: skip
    """Write factor times the dense part of a row, rounded once, possibly over the logits.

    Bytes: the row read (from cache) and written once. Instructions an entry: 5, one of them an
    exponential; dense labels add 4, smoothing 2, a residual 5, a cap 20. Factor 0 writes exact
    zeros for any logits. The self-target and the top-k classes are overwritten by the caller. Tiles
    go backwards: what the read pass read last is still in the nearest cache. Whole tiles are
    written without masks.
    """
    head, body = t.cut(z_ptr, n_cols, VEC)
    g_body = t.body_of(g_ptr, head, G_STEP)
    cols, valid = t.edge_of(head, body, n_cols, VEC)
    block: tl.constexpr = REP * LANES * VEC
    tiles = (body + block - 1) // block
    kind = g_ptr.dtype.element_ty
    if factor == 0:
        tl.store(g_ptr + cols, tl.zeros([2 * VEC], kind), mask=valid)
        for i in range(0, tiles):
            at, inside = t.tile_at(i * block, body, REP, LANES, VEC)
            tl.store(g_body + at, tl.zeros([REP, LANES, VEC], kind), mask=inside)
    else:
        k, b = m.origin_of(top, m.FAR_32 if VEC == 4 or CAP else m.FAR_16)
        slope *= factor
        if KIND != DENSE and not SMOOTH:
            slope = slope / tl.exp2(tl.fma(m.finite(top), k, -b))
        base *= factor
        weak *= factor
        pull *= factor
        u_edge = tl.load(z_ptr + cols, mask=valid, other=0.0).to(tl.float32)
        q_edge = t.load_probs(q_ptr, cols, valid) if KIND == DENSE else u_edge
        tl.debug_barrier()  # in place: several threads hold these entries, one of them stores
        edge = dense_part(
            u_edge, q_edge, top, k, b, slope, base, weak, pull, origin, bias, softcap,
            KIND, REST, SMOOTH, CAP,
        )  # fmt: skip
        tl.store(g_ptr + cols, edge.to(kind), mask=valid)
        z_body = t.body_of(z_ptr, head, True)
        q_body = t.body_of(q_ptr, head, Q_STEP) if KIND == DENSE else z_body
        whole = body // block
        if whole < tiles:
            write_tile(
                z_body, g_body, q_body, whole * block, body, top, k, b, slope, base, weak, pull,
                origin, bias, softcap, KIND, REST, SMOOTH, CAP, True, REP, LANES, VEC,
            )  # fmt: skip
        for i in range(0, whole):
            write_tile(
                z_body, g_body, q_body, (whole - 1 - i) * block, body, top, k, b, slope, base,
                weak, pull, origin, bias, softcap, KIND, REST, SMOOTH, CAP, False, REP, LANES, VEC,
            )  # fmt: skip


@triton.jit
def write_tile(
    z_body, g_body, q_body, start, body, top, k, b, slope, base, weak, pull, origin, bias, softcap,
    KIND: tl.constexpr, REST: tl.constexpr, SMOOTH: tl.constexpr, CAP: tl.constexpr,
    MASKED: tl.constexpr, REP: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """Write the gradient of one tile; of the last one only a part may exist."""
    at, inside = t.tile_at(start, body, REP, LANES, VEC)
    mask = inside if MASKED else None
    # Neither what is read here nor what is written is needed again by this kernel.
    u = tl.load(z_body + at, mask=mask, eviction_policy="evict_first")
    q = u
    if KIND == DENSE:
        q = tl.load(q_body + at, mask=mask, eviction_policy="evict_first")
    g = dense_part(
        u.to(tl.float32), q.to(tl.float32), top, k, b, slope, base, weak, pull, origin, bias,
        softcap, KIND, REST, SMOOTH, CAP,
    )  # fmt: skip
    tl.store(g_body + at, g.to(g_body.dtype.element_ty), mask=mask, eviction_policy="evict_first")


@triton.jit
def write_entries(g_ptr, ids, d, turn, q, real, slope, base, weak, self_id, a, factor):
    """Overwrite entries of top-k classes with values made in fp32; ``turn`` is dz/du.

    Targets are added up first and by fma, as ``slope`` was.
    """
    g = slope * tl.exp(d) - tl.fma(weak, q, tl.where(ids == self_id, a, 0.0)) - base
    g = tl.where(factor == 0, 0.0, g * (factor * turn))
    tl.store(g_ptr + ids, g.to(g_ptr.dtype.element_ty), mask=real)


@triton.jit
def write_self(
    g_ptr, self_id, z, turn, q, valid, top, slope, base, weak, pull, origin, bias, a, factor,
    REST: tl.constexpr,
):  # fmt: skip
    """Overwrite the entry of a self-target outside the top k."""
    g = slope * tl.exp(z - top) - tl.fma(weak, q, a) - base
    if REST:
        g -= pull * tl.exp((z - origin) - bias)
    g *= factor * turn
    tl.store(g_ptr + self_id, g.to(g_ptr.dtype.element_ty), mask=valid & (a != 0) & (factor != 0))


@triton.jit
def scale_edge(g_ptr, head, body, n_cols, by, VEC: tl.constexpr):
    """Multiply head and tail of a row in place."""
    cols, inside = t.edge_of(head, body, n_cols, VEC)
    g = t.load_probs(g_ptr, cols, inside) * by
    tl.debug_barrier()  # several threads hold these entries, one of them stores
    tl.store(g_ptr + cols, g.to(g_ptr.dtype.element_ty), mask=inside)


@triton.jit
def scale_tile(
    g_body, start, body, by, REP: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr
):  # fmt: skip
    """Multiply one tile of a row's body in place."""
    at, inside = t.tile_at(start, body, REP, LANES, VEC)
    g = t.load_probs(g_body, at, inside) * by
    tl.store(g_body + at, g.to(g_body.dtype.element_ty), mask=inside)


@triton.jit
def scale_row(
    g_ptr, n_cols, by, REP: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr
):  # fmt: skip
    """Multiply a row in place: read and written once."""
    head, body = t.cut(g_ptr, n_cols, VEC)
    scale_edge(g_ptr, head, body, n_cols, by, VEC)
    g_body = t.body_of(g_ptr, head, True)
    for start in range(0, body, REP * LANES * VEC):
        scale_tile(g_body, start, body, by, REP, LANES, VEC)
