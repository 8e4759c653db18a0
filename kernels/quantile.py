"""Exact quantile by radix select: three histograms of order-preserving keys, then one minimum.

A score's key is its fp32 bit pattern made monotone as an unsigned integer. Eleven, eleven and ten
bits at a time, a global histogram of the keys that match the prefix so far shows which bin holds
rank k; after three rounds the prefix is the k-th key. Its successor is found by a minimum. All
counters are integers, so the result does not depend on the order of the atomics. Scores on several
devices take ``histogram_kernel`` instead, whose counts are added up before the next round.

Every program derives the prefix from the finished rounds again (a cumulative sum of 2048 counters)
instead of waiting for a launch that would store it.
"""

import triton
import triton.language as tl

BINS = 2048
# The int64 buffer: three histograms, the smallest key above rank k, whether a NaN was met.
ABOVE = 3 * BINS
UNORDERED = 3 * BINS + 1
SIZE = 3 * BINS + 2
BLOCK = 1024

_BINS = tl.constexpr(BINS)
_ABOVE = tl.constexpr(ABOVE)
_UNORDERED = tl.constexpr(UNORDERED)


@triton.jit
def keys_of(x):
    """Map fp32 to int64 in [0, 2^32) that sorts like x (-0 before +0; NaN anywhere)."""
    bits = x.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF
    return tl.where(bits >= 0x80000000, 0xFFFFFFFF - bits, bits + 0x80000000)


@triton.jit
def value_of(key):
    """Return the fp32 number of a key."""
    bits = tl.where(key >= 0x80000000, key - 0x80000000, 0xFFFFFFFF - key)
    return bits.to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def exists(q_ptr, count, KTH: tl.constexpr):
    """Return whether there is such a rank; ``finish`` returns NaN if not."""
    q = tl.load(q_ptr)
    return (q >= 0) & (q < count) if KTH else (q >= 0.0) & (q <= 1.0)


@triton.jit
def position_of(q_ptr, count, KTH: tl.constexpr):
    """Return the target rank in fp64: ``q`` with KTH, else q (count - 1); 0 unless ``exists``."""
    q = tl.load(q_ptr)
    q = tl.where(exists(q_ptr, count, KTH), q, 0).to(tl.float64)
    return q if KTH else q * (tl.maximum(count, 1) - 1).to(tl.float64)


@triton.jit
def descend(hist_ptr, q_ptr, ROUNDS: tl.constexpr, KTH: tl.constexpr):
    """Return (prefix, rank within it, keys that share it, total) after ``ROUNDS`` histograms."""
    lanes = tl.arange(0, _BINS)
    total = tl.sum(tl.load(hist_ptr + lanes), 0)
    rank = tl.floor(position_of(q_ptr, total, KTH)).to(tl.int64)
    prefix = tl.full([], 0, tl.int64)
    same = total
    for r in tl.static_range(ROUNDS):
        counts = tl.load(hist_ptr + r * _BINS + lanes)
        below = tl.cumsum(counts, 0)
        digit = tl.sum((below <= rank).to(tl.int64), 0)
        rank -= tl.max(tl.where(below <= rank, below, 0), 0)
        same = tl.sum(tl.where(lanes == digit, counts, 0), 0)
        prefix = prefix * (1024 if r == 2 else _BINS) + digit
    return prefix, rank, same, total


@triton.jit
def count_kernel(
    x_ptr, keep_ptr, q_ptr, hist_ptr, n,
    ROUND: tl.constexpr, BLOCK: tl.constexpr, KTH: tl.constexpr,
):  # fmt: skip
    """Count the next digit of the keys that match the prefix, in rounds 0, 1 and 2.

    Round 3: the smallest key above the k-th, if no equal key follows it.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if keep_ptr is not None:
        inside = inside & (tl.load(keep_ptr + at, mask=inside, other=0) != 0)
    key = keys_of(x)
    if ROUND == 0:
        tl.atomic_add(hist_ptr + (key >> 21), 1, mask=inside)
        tl.atomic_max(hist_ptr + _UNORDERED + 0 * at, 1, mask=inside & (x != x))
    else:
        prefix, rank, same, _ = descend(hist_ptr, q_ptr, ROUND, KTH)
        if ROUND == 1:
            tl.atomic_add(
                hist_ptr + _BINS + ((key >> 10) & 2047), 1, mask=inside & ((key >> 21) == prefix)
            )
        elif ROUND == 2:
            tl.atomic_add(
                hist_ptr + 2 * _BINS + (key & 1023), 1, mask=inside & ((key >> 10) == prefix)
            )
        else:
            # Stored as 2^32 - key, so the zero that the buffer starts with means "none".
            above = tl.max(tl.where(inside & (key > prefix), 0x100000000 - key, 0), 0)
            tl.atomic_max(hist_ptr + _ABOVE, above, mask=rank + 1 >= same)


@triton.jit
def between(low, high, f):
    """Interpolate between neighbouring scores at fraction ``f``, as ``torch.lerp`` does."""
    gap = high - low
    inner = tl.where(f < 0.5, low + f * gap, high - gap * (1.0 - f))
    # Beside an infinity the upper neighbour; a gap that overflows, without the gap.
    inf: tl.constexpr = float("inf")
    open = (low == -inf) | (high == inf)
    wide = tl.where(open, high, low * (1.0 - f) + high * f)
    inner = tl.where(gap == inf, wide, inner)
    # inf - inf is NaN, and neither equal neighbours nor an exact rank need interpolation.
    return tl.where((low == high) | (f == 0.0), low, inner)


@triton.jit
def finish_kernel(q_ptr, hist_ptr, out_ptr, KTH: tl.constexpr):
    """Interpolate between the k-th score and its successor, as ``torch.lerp`` does."""
    prefix, rank, same, total = descend(hist_ptr, q_ptr, 3, KTH)
    value = value_of(prefix)
    if not KTH:
        position = position_of(q_ptr, total, KTH)
        f = (position - tl.floor(position)).to(tl.float32)
        above = tl.load(hist_ptr + _ABOVE)
        next_one = (rank + 1 < same) | (above == 0)
        high = tl.where(next_one, value, value_of(0x100000000 - above))
        value = tl.where(total > 0, between(value, high, f), float("inf"))
    ordered = (tl.load(hist_ptr + _UNORDERED) == 0) & exists(q_ptr, total, KTH)
    tl.store(out_ptr, tl.where(ordered, value, float("nan")))


@triton.jit
def histogram_kernel(
    x_ptr, keep_ptr, prefix_ptr, hist_ptr, n,
    SHIFT: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Count the digit at SHIFT over the keys whose leading digits are ``prefix``.

    In the first round the counter behind the bins becomes the number of NaN.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if keep_ptr is not None:
        inside = inside & (tl.load(keep_ptr + at, mask=inside, other=0) != 0)
    key = keys_of(x)
    if SHIFT + BITS == 32:
        tl.atomic_add(hist_ptr + _BINS + 0 * at, 1, mask=inside & (x != x))
    else:
        inside = inside & ((key >> (SHIFT + BITS)) == tl.load(prefix_ptr))
    tl.atomic_add(hist_ptr + ((key >> SHIFT) & ((1 << BITS) - 1)), 1, mask=inside)


@triton.jit
def successor_kernel(x_ptr, keep_ptr, from_ptr, least_ptr, n, BLOCK: tl.constexpr):
    """Set ``least`` to 2^32 - (smallest key above that of ``from``); it starts at 0, for none."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if keep_ptr is not None:
        inside = inside & (tl.load(keep_ptr + at, mask=inside, other=0) != 0)
    # NaN is not above anything.
    above = tl.where(inside & (x > tl.load(from_ptr)), 0x100000000 - keys_of(x), 0)
    tl.atomic_max(least_ptr, tl.max(above, 0))
