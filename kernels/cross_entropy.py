"""Row kernels of the weak-to-strong cross-entropy: pass, gradient from the record, fix-up.

One program a row. The row is read for its sums, and where a gradient is wanted it is read again,
from cache, and written once, possibly over itself. Nothing is tuned by running: a kernel that
overwrites its input must run exactly once, so tiles come from the table in ``_tile``.
The record (12, N) and (3, N) is laid out in ``_row_math``; formulas are those of the op.
"""

import triton
import triton.language as tl

from w2s_fast.kernels import _read as rd
from w2s_fast.kernels import _row_math as m
from w2s_fast.kernels import _targets as tg
from w2s_fast.kernels import _tile as t
from w2s_fast.kernels import _write as wr
from w2s_fast.kernels._targets import DENSE, HARD, SPARSE

KINDS = {"hard": 0, "sparse": 1, "dense": 2}
# Rules by which a row gets its self-target: RowRule in w2s_fast/ops/loss_call.py.
NONE = tl.constexpr(0)
GATE = tl.constexpr(2)
MARGIN = tl.constexpr(3)
GIVEN = tl.constexpr(4)


@triton.jit
def rows_kernel(
    z_ptr, z_stride, g_ptr, g_stride, ids_ptr, q_ptr, q_stride, rest_ptr, w_ptr, aux_ptr, at_ptr,
    scale_ptr, stats_ptr, index_ptr, topk_ptr, n_rows, n_cols, n_topk, ignore,
    smoothing, focal_gamma, max_confidence, softcap, z_loss, KIND: tl.constexpr, RULE: tl.constexpr,
    SMOOTH: tl.constexpr, FOCAL: tl.constexpr, WINDOW: tl.constexpr, ENTROPY: tl.constexpr,
    CAP: tl.constexpr, G_STEP: tl.constexpr, Q_STEP: tl.constexpr, REP: tl.constexpr,
    LANES: tl.constexpr, VEC: tl.constexpr, KBLOCK: tl.constexpr,
):  # fmt: skip
    """Write a row's record, and with ``g_ptr`` its gradient.

    Bytes: V b read (dense labels V b_q more), V b written, V b (+ V b_q) read again from cache.
    FLOPs: 9 V for the record, 6 V for the gradient, two exponentials an entry.
    8192 x 128256 bf16, hard labels: 4.2 GB of memory traffic, 0.88 ms at an H200's 4.8 TB/s.
    """
    row = tl.program_id(0).to(tl.int64)
    n = tl.zeros([], tl.int64) + n_rows
    z_ptr += row * z_stride
    ids_ptr = ids_ptr if KIND == DENSE else ids_ptr + row * n_topk
    q_row = q_ptr if q_ptr is None else q_ptr + row * q_stride
    if KIND != DENSE:  # the top-k logits arrive while the row is read
        ids = tg.load_topk(ids_ptr, q_row, n_cols, n_topk, ignore, KIND, KBLOCK)[0]
        u = tl.load(z_ptr + ids)
    top, s, ed, mean, best, mass, linear, weak_id = rd.read_row(
        z_ptr, q_row if KIND == DENSE else None, n_cols, softcap, CAP, Q_STEP, SMOOTH,
        ENTROPY, REP, LANES, VEC,
    )  # fmt: skip
    # A NaN is in the sum, but not always in the maximum.
    best = tl.where(s != s, 0, best)
    top = tl.where(s != s, float("nan"), top)
    s = tl.where(tl.abs(top) == m.INF, float("nan"), s)
    logs = tl.log(s)
    rest = 0.0
    tail = 0.0
    out_top = top
    out_sum = s
    if KIND == DENSE:
        chosen = m.diffs(tl.load(z_ptr + weak_id), top, softcap, CAP)[0]
    else:
        ids, q, real = tg.load_topk(ids_ptr, q_row, n_cols, n_topk, ignore, KIND, KBLOCK)
        d, turn = m.diffs(u, top, softcap, CAP)
        linear = tl.sum(rd.product(q, d), 0)
        mass = tl.sum(q, 0)
        if KIND == SPARSE:
            twice = tg.repeats_class(ids_ptr, n_cols, n_topk, KBLOCK)
            mass = tl.where(twice, float("nan"), mass)
        lanes = tl.arange(0, KBLOCK)
        # The first of the largest; padding is excluded.
        topk_q = tl.where(real, q, -1.0)
        first = tl.min(tl.where(topk_q == tl.max(topk_q, 0), lanes, KBLOCK), 0)
        weak_id = tl.sum(tl.where(lanes == first, ids, 0), 0)
        chosen = tl.sum(tl.where(lanes == first, d, 0.0), 0)
        if topk_ptr is not None:
            tl.store(topk_ptr + row * n_topk + lanes, d, mask=lanes < n_topk)
        if rest_ptr is not None:
            rest = tl.load(rest_ptr + row)
            mass += rest
            inside = tl.sum(tl.where(real, tl.exp(d), 0.0), 0)
            out_sum = s - inside
            tail = m.log_complement(inside / s)
            if out_sum < 0.25 * s:  # the difference cancels: sum what is outside itself
                out_top, out_sum = rd.outside_row(
                    z_ptr, ids_ptr, n_cols, n_topk, softcap, CAP, REP, LANES, VEC
                )
                tail = tl.where(out_sum == 0, -m.INF, (out_top - top) + tl.log(out_sum) - logs)
    # A weak label with a NaN in it has no top class.
    weak_id = tl.where(mass != mass, 0, weak_id)
    chosen = tl.where(mass != mass, float("nan"), chosen)
    score = 1.0 / s
    if n_cols == 2:
        one = m.diffs(tl.load(z_ptr + n_cols - 1), 0.0, softcap, CAP)[0]
        score = m.diffs(tl.load(z_ptr), one, softcap, CAP)[0]
    a = 0.0
    self_id = best
    if RULE != NONE:
        a = tl.load(aux_ptr)
        if RULE == GIVEN:
            self_id = tl.load(index_ptr + row + m.SELF * n).to(tl.int32)
        elif at_ptr is not None:
            above = score >= tl.load(at_ptr)
            if RULE == GATE:
                a = tl.where(above, a, 0.0)
            elif RULE == MARGIN:
                self_id = tl.where(above, 0, 1).to(tl.int32)
    factor = 1.0
    if FOCAL:
        factor = tl.exp(focal_gamma * tl.log(m.complement(chosen - logs)))
    if WINDOW:
        # A NaN must show in the loss, be it in a logit or in a weak label.
        factor = tl.where((1.0 / s >= max_confidence) & (mass == mass), 0.0, factor)
    kept = tl.load(ids_ptr) != ignore if KIND == HARD else row >= 0
    weight = 1.0
    if w_ptr is not None:
        weight = tl.load(w_ptr + row)
        kept = kept & (weight != 0)
    factor = tl.where(kept, factor, 0.0)
    z_part, z_slope = m.z_part(top, logs, z_loss)
    weak_loss = m.weak_part(mass, rest, linear, tail, logs, mean, smoothing, SMOOTH)
    loss = m.unless_own(weak_loss, mass, a) + z_part
    if RULE != NONE:
        z_self, turn_self = m.diffs(tl.load(z_ptr + self_id), 0.0, softcap, CAP)
        loss += tl.where(a != 0, a * (logs - (z_self - top)), 0.0)
    out = stats_ptr + row
    tl.store(out + m.LOSS * n, tl.where(factor == 0, 0.0, loss * factor))
    tl.store(out + m.MAX * n, top)
    tl.store(out + m.LOGS * n, logs)
    if ENTROPY:  # else 0, as it was made
        tl.store(out + m.ENTROPY * n, logs - ed / s)
    tl.store(out + m.MASS * n, mass)
    tl.store(out + m.LINEAR * n, linear)
    tl.store(out + m.MEAN * n, mean)
    tl.store(out + m.CHOSEN * n, chosen)
    tl.store(out + m.TAIL * n, tail)
    tl.store(out + m.COEF * n, a)
    tl.store(out + m.FACTOR * n, factor)
    tl.store(out + m.SCORE * n, score)
    tl.store(index_ptr + row + m.ARGMAX * n, best.to(tl.int64))
    tl.store(index_ptr + row + m.WEAK * n, weak_id.to(tl.int64))
    if RULE != GIVEN:  # other warps may still be reading a given one
        tl.store(index_ptr + row + m.SELF * n, self_id.to(tl.int64))
    if g_ptr is not None:
        g_ptr += row * g_stride
        scale = tl.load(scale_ptr) * weight
        scaled = tl.where(factor == 0, 0.0, factor * scale)
        slope = (tl.fma(1.0 - a, mass, a) + z_slope) / s
        base = m.even_part(a, smoothing, mass, n_cols)
        weak = (1.0 - a) * (1.0 - smoothing)
        pull = weak * rest
        out_top = tl.where(pull == 0, top, out_top)  # -inf if nothing is outside
        pull = tl.where(pull == 0, 0.0, pull / out_sum)
        q_self = 0.0
        if RULE != NONE and KIND == DENSE:
            q_self = tl.load(q_row + self_id).to(tl.float32)
        tl.debug_barrier()  # in place: every gather above must be done before the row is written
        wr.write_row(
            z_ptr, g_ptr, q_row, n_cols, top, slope, base, weak, pull, out_top, 0.0, scaled,
            softcap, KIND, rest_ptr is not None, SMOOTH, CAP, G_STEP, Q_STEP, REP, LANES, VEC,
        )  # fmt: skip
        tl.debug_barrier()  # other threads wrote the dense part of the entries that follow
        in_topk = self_id < 0
        if KIND != DENSE:
            wr.write_entries(g_ptr, ids, d, turn, q, real, slope, base, weak, self_id, a, scaled)
            in_topk = tg.contains(ids, real, self_id)
        if RULE != NONE:
            wr.write_self(
                g_ptr, self_id, z_self, turn_self, q_self, in_topk == 0, top, slope, base, weak,
                pull, out_top, 0.0, a, scaled, rest_ptr is not None,
            )  # fmt: skip


@triton.jit
def gradient_kernel(
    z_ptr, z_stride, g_ptr, g_stride, ids_ptr, q_ptr, q_stride, rest_ptr, scale_ptr, scale_stride,
    stats_ptr, index_ptr, n_rows, n_cols, n_topk, ignore, smoothing, softcap, z_loss,
    KIND: tl.constexpr, SMOOTH: tl.constexpr, CAP: tl.constexpr, G_STEP: tl.constexpr,
    Q_STEP: tl.constexpr, REP: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr,
    KBLOCK: tl.constexpr,
):  # fmt: skip
    """Write a row's gradient from its record: no reduction over the row.

    Bytes: V b (+ V b_q) read, V b written. FLOPs: 6 V, one exponential an entry (see ``_write``).
    The classes of the record may be -1: they lie in another shard of the vocabulary.
    """
    row = tl.program_id(0).to(tl.int64)
    z_ptr += row * z_stride
    g_ptr += row * g_stride
    ids_ptr = ids_ptr if KIND == DENSE else ids_ptr + row * n_topk
    q_row = q_ptr if q_ptr is None else q_ptr + row * q_stride
    n = tl.zeros([], tl.int64) + n_rows
    out = stats_ptr + row
    top = tl.load(out + m.MAX * n)
    logs = tl.load(out + m.LOGS * n)
    mass = tl.load(out + m.MASS * n)
    a = tl.load(out + m.COEF * n)
    factor = tl.load(out + m.FACTOR * n)
    self_id = tl.load(index_ptr + row + m.SELF * n).to(tl.int32)
    factor = tl.where(factor == 0, 0.0, factor * tl.load(scale_ptr + row * scale_stride))
    _, z_slope = m.z_part(top, logs, z_loss)
    slope = (tl.fma(1.0 - a, mass, a) + z_slope) * tl.exp(-logs)
    base = m.even_part(a, smoothing, mass, n_cols)
    weak = (1.0 - a) * (1.0 - smoothing)
    pull = 0.0
    bias = 0.0
    if rest_ptr is not None:
        pull = weak * tl.load(rest_ptr + row)
        bias = tl.where(pull == 0, 0.0, logs + tl.load(out + m.TAIL * n))
    # The row is gone once it is written, possibly in place: gather from it first.
    local = (self_id >= 0) & (self_id < n_cols)
    u_self = tl.load(z_ptr + self_id, mask=local, other=0.0)
    z_self, turn_self = m.diffs(u_self, 0.0, softcap, CAP)
    q_self = 0.0
    if KIND == DENSE:
        q_self = tl.load(q_row + self_id, mask=local, other=0.0).to(tl.float32)
    else:
        ids, q, real = tg.load_topk(ids_ptr, q_row, n_cols, n_topk, ignore, KIND, KBLOCK)
        d, turn = m.diffs(tl.load(z_ptr + ids), top, softcap, CAP)
    tl.debug_barrier()
    wr.write_row(
        z_ptr, g_ptr, q_row, n_cols, top, slope, base, weak, pull, top, bias, factor, softcap,
        KIND, rest_ptr is not None, SMOOTH, CAP, G_STEP, Q_STEP, REP, LANES, VEC,
    )  # fmt: skip
    tl.debug_barrier()  # other threads wrote the dense part of the entries that follow
    if KIND != DENSE:
        wr.write_entries(g_ptr, ids, d, turn, q, real, slope, base, weak, self_id, a, factor)
        local = local & (tg.contains(ids, real, self_id) == 0)
    wr.write_self(
        g_ptr, self_id, z_self, turn_self, q_self, local, top, slope, base, weak, pull, top, bias,
        a, factor, rest_ptr is not None,
    )  # fmt: skip


@triton.jit
def fixup_kernel(
    g_ptr, g_stride, ids_ptr, q_ptr, w_ptr, rest_ptr, at_ptr, scale_ptr, stats_ptr, index_ptr,
    topk_ptr, n_rows, n_cols, n_topk, ignore, smoothing, softcap, z_loss, tolerance,
    KIND: tl.constexpr, SMOOTH: tl.constexpr, CAP: tl.constexpr, REP: tl.constexpr,
    LANES: tl.constexpr, VEC: tl.constexpr, KBLOCK: tl.constexpr,
):  # fmt: skip
    """Close the gate of a row whose score is below the threshold: coefficient, loss, gradient.

    The gradient was written with the gate open and its logits may be gone. The top-k entries and
    the self class are overwritten from the record; the others, p times a number, are rescaled only
    where that number changes by more than ``tolerance`` (weak mass other than 1).

    Bytes: about 100 and K entries a closed row; V b read and written where it is rescaled.
    """
    row = tl.program_id(0).to(tl.int64)
    n = tl.zeros([], tl.int64) + n_rows
    out = stats_ptr + row
    a = tl.load(out + m.COEF * n)
    closed = (tl.load(out + m.SCORE * n) >= tl.load(at_ptr)) == 0
    if closed & (a != 0):
        top = tl.load(out + m.MAX * n)
        logs = tl.load(out + m.LOGS * n)
        mass = tl.load(out + m.MASS * n)
        z_part, z_slope = m.z_part(top, logs, z_loss)
        factor = tl.load(out + m.FACTOR * n)
        rest = 0.0
        if rest_ptr is not None:
            rest = tl.load(rest_ptr + row)
        loss = m.weak_part(
            mass, rest, tl.load(out + m.LINEAR * n), tl.load(out + m.TAIL * n), logs,
            tl.load(out + m.MEAN * n), smoothing, SMOOTH,
        ) + z_part  # fmt: skip
        tl.debug_barrier()  # every warp has read the coefficient that one thread now overwrites
        tl.store(out + m.COEF * n, 0.0)
        tl.store(out + m.LOSS * n, tl.where(factor == 0, 0.0, loss * factor))
        if g_ptr is not None:
            g_ptr += row * g_stride
            scale = tl.load(scale_ptr)
            if w_ptr is not None:
                scale *= tl.load(w_ptr + row)
            scaled = tl.where(factor == 0, 0.0, factor * scale)
            opened = (1.0 - a) * mass + a + z_slope
            closed_to = mass + z_slope
            if KIND == SPARSE:  # noqa: SIM102 - the outer test is made at compile time
                if tl.abs(closed_to - opened) > tolerance * tl.abs(opened):
                    wr.scale_row(g_ptr, n_cols, closed_to / opened, REP, LANES, VEC)
                    tl.debug_barrier()
            slope = closed_to * tl.exp(-logs)
            self_id = tl.load(index_ptr + row + m.SELF * n)
            ids, q, real = tg.load_topk(
                ids_ptr + row * n_topk, q_ptr if q_ptr is None else q_ptr + row * n_topk,
                n_cols, n_topk, ignore, KIND, KBLOCK,
            )  # fmt: skip
            lanes = tl.arange(0, KBLOCK)
            d = tl.load(topk_ptr + row * n_topk + lanes, mask=lanes < n_topk, other=0.0)
            turn = m.cap_slope(d + top, softcap, CAP)
            # The self-target was the largest logit: z - M = 0.
            own = tl.where(scaled == 0, 0.0, slope * scaled * m.cap_slope(top, softcap, CAP))
            outside = tg.contains(ids, real, self_id) == 0
            tl.store(g_ptr + self_id, own.to(g_ptr.dtype.element_ty), mask=outside)
            wr.write_entries(g_ptr, ids, d, turn, q, real, slope, 0.0, 1.0, -1, 0.0, scaled)


@triton.jit
def scale_kernel(
    g_ptr, g_stride, by_ptr, n_cols, REP: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr
):  # fmt: skip
    """Multiply a tile by a 0-d factor; a factor of 1 (the usual upstream) touches nothing.

    Bytes: V b read and written, 0 for a factor of 1. FLOPs: V.
    """
    by = tl.load(by_ptr).to(tl.float32)
    if by != 1.0:
        g_ptr += tl.program_id(0).to(tl.int64) * g_stride
        head, body = t.cut(g_ptr, n_cols, VEC)
        if tl.program_id(1) == 0:
            wr.scale_edge(g_ptr, head, body, n_cols, by, VEC)
        start = tl.program_id(1) * (REP * LANES * VEC)
        wr.scale_tile(t.body_of(g_ptr, head, True), start, body, by, REP, LANES, VEC)
