"""Arithmetic of one row and the layout of its record; formulas are those of the op."""

import triton
import triton.language as tl

INF = tl.constexpr(float("inf"))
# In loops e^x is exp2(LOG2E x): one multiplication and one instruction, where exp adds four more
# for results below 2^-126.
LOG2E = tl.constexpr(1.4426950408889634)

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


# Beyond these maxima other logits differ so much that their probability is 0: any step of 16-bit
# logits there, in fp32 one of 32.
FAR_16 = tl.constexpr(2.0**20)
FAR_32 = tl.constexpr(2.0**30)


@triton.jit
def finite(x):
    """Replace an infinity by 0: any finite origin gives exp(-inf) = 0 where -inf would give NaN.

    Beside +inf the sum of exponentials is then +inf, or NaN where there is a NaN.
    """
    return tl.where(tl.abs(x) == INF, 0.0, x)


@triton.jit
def origin_of(top, FAR: tl.constexpr):
    """Return (k, b) of the exponents y = k z - b: one fma an entry, rounded once.

    b is k top, rounded, so that y is not 0 but ``fma(top, k, -b)`` at the maximum, by whose power
    sums are divided in the end. k is log2 e, or 1 where products of logits may overflow.
    """
    top = finite(top)
    k = tl.where(tl.abs(top) < FAR, LOG2E, 1.0)
    return k, tl.fma(top, k, 0.0)  # not a product, of which a later sum would make one fma


@triton.jit
def capped(u, softcap):
    """Return softcap tanh(u / softcap), and its derivative.

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
    """Return the same derivative from the capped logit alone; 1 without a cap."""
    slope = tl.full(z.shape, 1.0, tl.float32)
    if CAP:
        # IEEE rounding: a plain division may give 1 + 2^-23 where a logit sits at the cap.
        ratio = tl.div_rn(z, tl.zeros_like(z) + softcap)
        slope = (1.0 - ratio) * (1.0 + ratio)
    return slope


@triton.jit
def diffs(u, top, softcap, CAP: tl.constexpr):
    """Return (z - top, dz/du) of stored logits u."""
    z = u.to(tl.float32)
    turn = tl.full(z.shape, 1.0, tl.float32)
    if CAP:
        z, turn = capped(z, softcap)
    return z - top, turn


@triton.jit
def complement(x):
    """Return 1 - e^x for x <= 0."""
    y = 1.0 - tl.exp(x)
    return tl.where(y < 0, 0.0, y)  # not maximum(y, 0), which loses NaN


@triton.jit
def log_complement(x):
    """Return log(1 - x) for 0 <= x < 1; near 0 by -2 artanh(x / (2 - x)), with the error of x."""
    s = x / (2.0 - x)
    t = s * s
    near = 1.0 + t * (1.0 / 3 + t * (1.0 / 5 + t * (1.0 / 7 + t * (1.0 / 9))))
    return tl.where(x < 0.25, -2.0 * s * near, tl.log(1.0 - x))


@triton.jit
def weak_part(mass, rest, linear, tail, logs, mean, smoothing, SMOOTH: tl.constexpr):
    """Return the cross-entropy with the weak label alone."""
    loss = (mass - rest) * logs - linear - tl.where(rest != 0, rest * tail, 0.0)
    if SMOOTH:
        even = smoothing * mass
        loss = (1.0 - smoothing) * loss + tl.where(even != 0, even * (logs - mean), 0.0)
    return loss


@triton.jit
def even_part(a, smoothing, mass, n_cols):
    """Return what label smoothing subtracts from an entry; 0 without, even for infinite mass."""
    return tl.where(smoothing != 0, (1.0 - a) * smoothing * mass / n_cols, 0.0)


@triton.jit
def unless_own(loss, mass, a):
    """Return (1 - a) loss; a coefficient of 1 removes an impossible label (+inf), but no NaN."""
    out = (a == 1.0) & (tl.abs(loss) == INF) & (tl.abs(mass) < INF)
    return tl.where(out, 0.0, (1.0 - a) * loss)


@triton.jit
def z_part(top, logs, z_loss):
    """Return z_loss lse^2 and what it adds to the factor of p in the gradient; 0 without."""
    lse = top + logs
    return tl.where(z_loss != 0, z_loss * lse * lse, 0.0), tl.where(
        z_loss != 0, 2.0 * z_loss * lse, 0.0
    )
