"""Shared device functions of the row kernels: how a row is cut, loaded, capped and gathered from.

A row starts anywhere: an odd vocabulary or a padded slice puts most rows off the 16-byte grid, and
a plain loop over such a row falls back to one 16-bit access an entry. So a row is cut into a head,
a body of whole 16-byte vectors, and a tail. The body moves 128 bits at a time for every V, stride
and dtype; head and tail together are fewer than two vectors.

A tile of the body is (REP, LANES, VEC): VEC entries make 16 bytes of logits, a lane is a thread,
and it holds REP vectors. Sums over REP and VEC stay within the thread.

Loads become fp32 at once and every sum is fp32; there is no 16-bit arithmetic anywhere. A row's
offset is 64-bit, columns within a row are 32-bit. -inf is the neutral logit: it marks masked lanes
and masked vocabulary alike, and no product with it is formed where 0 is meant.
"""

import triton
import triton.language as tl

INF = tl.constexpr(float("inf"))
# In loops e^x is exp2(LOG2E x): one multiplication and one instruction, where exp adds four more
# for results below 2^-126.
LOG2E = tl.constexpr(1.4426950408889634)

# Forms of the weak label.
HARD = tl.constexpr(0)
SPARSE = tl.constexpr(1)
DENSE = tl.constexpr(2)
# Rows of the floating point record; one order for all backends, checked by a test.
LOSS = tl.constexpr(0)
MAX = tl.constexpr(1)
LOGS = tl.constexpr(2)
ENTROPY = tl.constexpr(3)
MASS = tl.constexpr(4)
LINEAR = tl.constexpr(5)
MEAN = tl.constexpr(6)
CHOSEN = tl.constexpr(7)
TAIL = tl.constexpr(8)
COEF = tl.constexpr(9)
FACTOR = tl.constexpr(10)
SCORE = tl.constexpr(11)
# Rows of the integer record.
ARGMAX = tl.constexpr(0)
WEAK = tl.constexpr(1)
SELF = tl.constexpr(2)


@triton.jit
def cut(ptr, n_cols, VEC: tl.constexpr):
    """(entries before the first 16-byte boundary, entries in whole 16-byte vectors) of a row."""
    size: tl.constexpr = 16 // VEC
    head = ((0 - ptr.to(tl.int64)) & 15) // size
    head = tl.minimum(head.to(tl.int32), n_cols)
    return head, (n_cols - head) // VEC * VEC


@triton.jit
def body_of(ptr, head, STEP: tl.constexpr):
    """Where the body starts. ``STEP``: this array crosses 16-byte boundaries where logits do."""
    ptr += head
    if STEP:
        ptr = tl.multiple_of(ptr, 16)
    return ptr


@triton.jit
def tile_at(start, body, REP: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr):
    """Entries of the body in the tile at ``start``, and which of them exist: whole vectors."""
    vectors = tl.arange(0, REP)[:, None, None] * LANES + tl.arange(0, LANES)[None, :, None]
    vectors = start + vectors * VEC
    inside = tl.broadcast_to(vectors < body, (REP, LANES, VEC))
    return vectors + tl.arange(0, VEC)[None, None, :], inside


@triton.jit
def edge_of(head, body, n_cols, VEC: tl.constexpr):
    """Columns of head and tail together, and which of them exist."""
    lanes = tl.arange(0, 2 * VEC)
    cols = tl.where(lanes < VEC, lanes, lanes - VEC + head + body)
    return cols, tl.where(lanes < VEC, lanes < head, cols < n_cols)


@triton.jit
def capped(u, softcap):
    """softcap tanh(u / softcap), and its derivative.

    From t = e^(-2|x|): tanh |x| = (1 - t) / (1 + t) and the derivative 4 t / (1 + t)^2, which has
    no difference in it where tanh is 1. Near 0, where 1 - t cancels, the odd polynomial of Cephes.
    """
    x = u * (1.0 / softcap)
    y = tl.abs(x)
    t = tl.exp(-2.0 * y)
    inverse = 1.0 / (1.0 + t)
    far = (1.0 - t) * inverse
    w = x * x
    p = -5.70498872745e-3 * w + 2.06390887954e-2
    p = p * w - 5.37397155531e-2
    p = p * w + 1.33314422036e-1
    p = p * w - 3.33332819422e-1
    z = tl.where(y < 0.625, p * w * x + x, tl.where(x < 0, -far, far))
    return z * softcap, 4.0 * t * inverse * inverse


@triton.jit
def cap_slope(z, softcap, CAP: tl.constexpr):
    """The same derivative from the capped logit alone; 1 without a cap."""
    slope = tl.full(z.shape, 1.0, tl.float32)
    if CAP:
        # Rounded as IEEE says: a plain division may give 1 + 2^-23 where a logit sits at the cap.
        ratio = tl.div_rn(z, tl.zeros_like(z) + softcap)
        slope = (1.0 - ratio) * (1.0 + ratio)
    return slope


@triton.jit
def load_logits(ptr, cols, inside, softcap, CAP: tl.constexpr):
    """Logits as fp32, capped; entries that do not exist are -inf."""
    x = tl.load(ptr + cols, mask=inside, other=0.0 if CAP else -INF).to(tl.float32)
    if CAP:
        z, _ = capped(x, softcap)
        x = tl.where(inside, z, -INF)
    return x


@triton.jit
def diffs(u, top, softcap, CAP: tl.constexpr):
    """(z - top, dz/du) of stored logits u."""
    z = u.to(tl.float32)
    turn = tl.full(z.shape, 1.0, tl.float32)
    if CAP:
        z, turn = capped(z, softcap)
    return z - top, turn


@triton.jit
def load_probs(ptr, cols, inside):
    """Weak probabilities as fp32; entries that do not exist are 0."""
    return tl.load(ptr + cols, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def load_listed(
    ids_ptr, q_ptr, n_cols, n_listed, ignore, KIND: tl.constexpr, KBLOCK: tl.constexpr
):  # fmt: skip
    """(ids, probs, whether real) of a row's listed classes.

    Padding has id 0 and probability 0. A label outside the classes turns its probability, hence
    the row's mass, loss and gradient, into NaN and is not used as an address.
    """
    lanes = tl.arange(0, KBLOCK)
    ids = tl.load(ids_ptr + lanes, mask=lanes < n_listed, other=-1)
    real = lanes < n_listed
    real = real & (ids != ignore) if KIND == HARD else real & (ids >= 0)
    inside = (ids >= 0) & (ids < n_cols)
    q = real.to(tl.float32)
    if q_ptr is not None:
        q = tl.where(real, tl.load(q_ptr + lanes, mask=lanes < n_listed, other=0.0), 0.0)
    q = tl.where(real & (inside == 0), float("nan"), q.to(tl.float32))
    return tl.where(real & inside, ids, 0).to(tl.int32), q, real & inside


@triton.jit
def listed_twice(ids_ptr, n_cols, n_listed, KBLOCK: tl.constexpr):
    """Whether a class of the row is listed more than once. K comparisons of K ids."""
    lanes = tl.arange(0, KBLOCK)
    ids = tl.load(ids_ptr + lanes, mask=lanes < n_listed, other=-1)
    again = tl.zeros([KBLOCK], tl.int32)
    for k in range(0, n_listed):
        again = again | ((ids == tl.load(ids_ptr + k)) & (lanes > k) & (ids >= 0)).to(tl.int32)
    return tl.max(again, 0) != 0


@triton.jit
def contains(ids, real, wanted):
    """Whether one of the listed classes is ``wanted``."""
    return tl.max((real & (ids == wanted)).to(tl.int32), 0) != 0


@triton.jit
def complement(x):
    """1 - e^x for x <= 0."""
    y = 1.0 - tl.exp(x)
    return tl.where(y < 0, 0.0, y)  # not maximum(y, 0), which loses NaN


@triton.jit
def log_complement(x):
    """log(1 - x) for 0 <= x < 1; near 0 by -2 artanh(x / (2 - x)), with the error of x."""
    s = x / (2.0 - x)
    t = s * s
    near = 1.0 + t * (1.0 / 3 + t * (1.0 / 5 + t * (1.0 / 7 + t * (1.0 / 9))))
    return tl.where(x < 0.25, -2.0 * s * near, tl.log(1.0 - x))


@triton.jit
def weak_part(mass, rest, linear, tail, logs, mean, smoothing, SMOOTH: tl.constexpr):
    """Cross-entropy with the weak label alone."""
    loss = (mass - rest) * logs - linear - tl.where(rest != 0, rest * tail, 0.0)
    if SMOOTH:
        even = smoothing * mass
        loss = (1.0 - smoothing) * loss + tl.where(even != 0, even * (logs - mean), 0.0)
    return loss


@triton.jit
def even_part(a, smoothing, mass, n_cols):
    """What label smoothing takes off every entry; 0 without it, though the mass be infinite."""
    return tl.where(smoothing != 0, (1.0 - a) * smoothing * mass / n_cols, 0.0)


@triton.jit
def unless_own(loss, mass, a):
    """(1 - a) loss; a coefficient of 1 takes out an impossible label (+inf), but no NaN."""
    out = (a == 1.0) & (tl.abs(loss) == INF) & (tl.abs(mass) < INF)
    return tl.where(out, 0.0, (1.0 - a) * loss)


@triton.jit
def z_part(top, logs, z_loss):
    """(z_loss lse^2, what it adds to the factor of p in the gradient); 0 without z-loss."""
    lse = top + logs
    return tl.where(z_loss != 0, z_loss * lse * lse, 0.0), tl.where(
        z_loss != 0, 2.0 * z_loss * lse, 0.0
    )
