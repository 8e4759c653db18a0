"""A batch over two classes in one launch of many programs, in phases that wait for one another.

Every phase has a program for each block of rows. A program takes the next ticket as it starts, and
the ticket names its phase and block: whoever waits for a phase waits for programs that run already,
so no program waits for one that cannot start, however few fit the device together.

0: sums over the rows that count, and counts of the leading 8 bits of the margins z_0 - z_1, as the
ordered keys of ``quantile``. 1, 2, 3: the next 8 bits of the margins that share the bits so far.
Last: every row is computed and written. The program that completes a phase finds what the next one
needs. Not more bits at a time: a histogram takes a register of every thread for each 32 bins.
With a given threshold there are two phases. Sums are in fp64, in an order that depends on the
number of rows alone, and counters are integers: results do not depend on who comes first.

Bytes: the rows once a phase, after the first from L2; 2^20 rows of fp32 logits and soft labels are
16 MB.
"""

import triton
import triton.language as tl

from w2s_fast.kernels.quantile import between, keys_of, value_of
from w2s_fast.kernels.two_class import GIVEN, load_rows, share_of, write_rows

TILE = 1024  # rows that a program holds at a time
MOST_BLOCKS = 256  # of rows; larger batches have several tiles a block
WARPS = 8
BINS = 256
DIGITS = 4
# int64 words that start at 0: a histogram for each digit, 2^32 - the smallest key above the first
# three digits, whether a NaN counts, tickets given, programs that are done, phases that are
# complete; the digits so far, the rank within the keys that share them, and the rows that count.
SIZE = DIGITS * BINS + 8
_BINS = tl.constexpr(BINS)
_DIGITS = tl.constexpr(DIGITS)
_ABOVE = tl.constexpr(DIGITS * BINS)
_UNORDERED = tl.constexpr(DIGITS * BINS + 1)
_TICKET = tl.constexpr(DIGITS * BINS + 2)
_DONE = tl.constexpr(DIGITS * BINS + 3)
_COMPLETE = tl.constexpr(DIGITS * BINS + 4)
_PREFIX = tl.constexpr(DIGITS * BINS + 5)
_RANK = tl.constexpr(DIGITS * BINS + 6)
_COUNT = tl.constexpr(DIGITS * BINS + 7)
# fp64 numbers: four sums of every block, then the divisor of the loss, and the share of the margins
# below the threshold.
SUMS = 4 * MOST_BLOCKS + 2
_MOST = tl.constexpr(MOST_BLOCKS)
_WEIGHTS = tl.constexpr(0)
_KEPT = tl.constexpr(1)
_ONE = tl.constexpr(2)
_LOSSES = tl.constexpr(3)
_DIVISOR = tl.constexpr(4 * MOST_BLOCKS)
_SHARE = tl.constexpr(4 * MOST_BLOCKS + 1)


def registers(plain: bool) -> dict[str, int]:
    """Return the option that makes room for two programs an SM, where that costs no spills.

    ``plain``: no record, smoothing, focal factor, window or soft-cap.
    """
    return {"maxnreg": 128} if plain else {}


def layout(n: int, batch_threshold: bool) -> tuple[int, int, int]:
    """Return programs, blocks of rows, and tiles of a block for a batch of ``n`` rows."""
    tiles = triton.cdiv(n, TILE * MOST_BLOCKS)
    blocks = triton.cdiv(n, TILE * tiles)
    return blocks * (DIGITS + 1 if batch_threshold else 2), blocks, tiles


@triton.jit
def total_of(sums_ptr, blocks, WHICH: tl.constexpr):
    """Add up one of the sums over the blocks."""
    lanes = tl.arange(0, _MOST)
    at = sums_ptr + WHICH * _MOST + lanes
    return tl.sum(tl.load(at, mask=lanes < blocks, other=0.0, volatile=True), 0)


@triton.jit
def position_of(share, count):
    """Return the rank of the threshold in fp64; 0 for a share that is NaN."""
    return tl.where(share >= 0, share, 0.0) * (tl.maximum(count, 1) - 1).to(tl.float64)


@triton.jit
def finish_sums(
    sums_ptr, words_ptr, out_ptr, at_ptr, cut, blocks, FROM: tl.constexpr, MEAN: tl.constexpr
):
    """Write normaliser and divisor, and the rank of the threshold or the one that was given."""
    total = total_of(sums_ptr, blocks, _WEIGHTS)
    tl.store(out_ptr + 1, total.to(tl.float32))
    divisor = tl.full([], 1.0, tl.float64)
    if MEAN:
        divisor = tl.where(total > 0, total, 1.0)
    tl.store(sums_ptr + _DIVISOR, divisor)
    if FROM == GIVEN:
        threshold = tl.full([], 0.0, tl.float32) + cut
        if at_ptr is not None:
            threshold = tl.load(at_ptr)
        tl.store(out_ptr + 2, threshold)
    else:
        count = total_of(sums_ptr, blocks, _KEPT).to(tl.int64)
        share = share_of(count, total_of(sums_ptr, blocks, _ONE), FROM)
        tl.store(sums_ptr + _SHARE, share)
        tl.store(words_ptr + _COUNT, count)
        tl.store(words_ptr + _RANK, tl.floor(position_of(share, count)).to(tl.int64))


@triton.jit
def walk(sums_ptr, words_ptr, out_ptr, phase):
    """Find the digit of the target rank among the counters of a phase; in the end the threshold."""
    lanes = tl.arange(0, _BINS)
    counts = tl.load(words_ptr + phase * _BINS + lanes, volatile=True).to(tl.int32)
    rank = tl.load(words_ptr + _RANK, volatile=True).to(tl.int32)
    prefix = tl.load(words_ptr + _PREFIX, volatile=True)
    below = tl.cumsum(counts, 0)
    digit = tl.sum((below <= rank).to(tl.int32), 0)
    rank -= tl.max(tl.where(below <= rank, below, 0), 0)
    same = tl.sum(tl.where(lanes == digit, counts, 0), 0)
    key = prefix * _BINS + digit
    tl.debug_barrier()  # all have read what one now writes
    tl.store(words_ptr + _RANK, rank.to(tl.int64))
    tl.store(words_ptr + _PREFIX, key)
    if phase == _DIGITS - 1:
        share = tl.load(sums_ptr + _SHARE, volatile=True)
        count = tl.load(words_ptr + _COUNT, volatile=True)
        above = tl.load(words_ptr + _ABOVE, volatile=True)
        unordered = tl.load(words_ptr + _UNORDERED, volatile=True)
        following = tl.min(tl.where((lanes > digit) & (counts > 0), lanes, _BINS), 0)
        high = tl.where(above != 0, 0x100000000 - above, key)
        high = tl.where(following < _BINS, prefix * _BINS + following, high)
        high = tl.where(rank + 1 < same, key, high)
        position = position_of(share, count)
        f = (position - tl.floor(position)).to(tl.float32)
        value = between(value_of(key), value_of(high), f)
        value = tl.where(count > 0, value, float("inf"))
        tl.store(out_ptr + 2, tl.where((unordered == 0) & (share >= 0), value, float("nan")))


@triton.jit
def two_class_grid_kernel(
    z_ptr, z_stride, g_ptr, g_stride, ids_ptr, q_ptr, q_stride, w_ptr, aux_ptr, at_ptr, stats_ptr,
    index_ptr, losses_ptr, out_ptr, words_ptr, sums_ptr, n, blocks, tiles, cut, ignore, aux,
    smoothing, focal_gamma, max_confidence, softcap, z_loss, KIND: tl.constexpr, FROM: tl.constexpr,
    OWN: tl.constexpr, MEAN: tl.constexpr, SMOOTH: tl.constexpr, FOCAL: tl.constexpr,
    WINDOW: tl.constexpr, CAP: tl.constexpr, CHECK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write what ``two_class_kernel`` writes; the grid and its sizes come from ``layout``.

    ``words_ptr`` (SIZE) is zero, ``sums_ptr`` (SUMS) is not read before it is written.
    """
    LAST: tl.constexpr = 1 if FROM == GIVEN else _DIGITS
    ticket = tl.atomic_add(words_ptr + _TICKET, 1)
    phase = ticket // blocks
    block = ticket - phase * blocks
    while tl.atomic_add(words_ptr + _COMPLETE, 0, sem="acquire") < phase:
        pass
    prefix = tl.load(words_ptr + _PREFIX, volatile=True)
    shift = 32 // _DIGITS * (_DIGITS - 1 - phase)
    weights = tl.full([], 0.0, tl.float64)
    count = tl.full([], 0, tl.int64)
    one = tl.full([], 0.0, tl.float64)
    losses = tl.full([], 0.0, tl.float64)
    bins = tl.zeros([_BINS], tl.int32)
    above = tl.full([], 0, tl.int64)
    unordered = tl.full([], 0, tl.int32)
    for tile in range(tiles):
        rows = (block * tiles + tile) * BLOCK + tl.arange(0, BLOCK)
        inside = rows < n
        # One load for all phases: each sees the same bits of a margin.
        z0, turn0, z1, turn1, q0, q1, kept, weight = load_rows(
            z_ptr, z_stride, ids_ptr, q_ptr, q_stride, w_ptr, rows, inside, ignore, softcap, KIND,
            CAP, CHECK,
        )  # fmt: skip
        score = z0 - z1
        if phase == LAST:
            divisor = tl.load(sums_ptr + _DIVISOR, volatile=True)
            of_rows = write_rows(
                z0, turn0, z1, turn1, q0, q1, kept, weight, tl.load(out_ptr + 2, volatile=True),
                (1.0 / divisor).to(tl.float32), rows, inside, n, g_ptr, g_stride, aux_ptr,
                stats_ptr, index_ptr, losses_ptr, aux, smoothing, focal_gamma, max_confidence,
                z_loss, OWN, SMOOTH, FOCAL, WINDOW,
            )  # fmt: skip
            losses += tl.sum(of_rows.to(tl.float64), 0)
        else:
            if phase == 0:
                weights += tl.sum(tl.where(kept, weight, 0.0).to(tl.float64), 0)
                count += tl.sum(kept.to(tl.int32), 0)
                one += tl.sum(tl.where(kept, q1, 0.0).to(tl.float64), 0)
            if FROM != GIVEN:
                unordered = tl.maximum(unordered, tl.max((kept & (score != score)).to(tl.int32), 0))
                key = keys_of(score + 0.0)
                lead = (key >> shift) // _BINS
                digit = ((key >> shift) % _BINS).to(tl.int32)
                bins += tl.histogram(digit, _BINS, mask=kept & (lead == prefix))
                # 2^32 - key, so the zero that the word starts with means "none".
                higher = tl.where(kept & (lead > prefix), 0x100000000 - key, 0)
                above = tl.maximum(above, tl.max(higher, 0))
    if phase == LAST:
        tl.store(sums_ptr + _LOSSES * _MOST + block, losses)
    else:
        if phase == 0:
            tl.store(sums_ptr + _WEIGHTS * _MOST + block, weights)
            tl.store(sums_ptr + _KEPT * _MOST + block, count.to(tl.float64))
            tl.store(sums_ptr + _ONE * _MOST + block, one)
            tl.atomic_max(words_ptr + _UNORDERED, unordered.to(tl.int64), sem="relaxed")
        if FROM != GIVEN:
            at = words_ptr + phase * _BINS + tl.arange(0, _BINS)
            tl.atomic_add(at, bins.to(tl.int64), mask=bins > 0, sem="relaxed")
            tl.atomic_max(words_ptr + _ABOVE, above, mask=phase == _DIGITS - 1, sem="relaxed")
    tl.debug_barrier()  # what this program wrote is there before it says so
    done = tl.atomic_add(words_ptr + _DONE, 1)
    if done == (phase + 1) * blocks - 1:
        if phase == LAST:
            divisor = tl.load(sums_ptr + _DIVISOR, volatile=True)
            tl.store(out_ptr, (total_of(sums_ptr, blocks, _LOSSES) / divisor).to(tl.float32))
        else:
            if phase == 0:
                finish_sums(sums_ptr, words_ptr, out_ptr, at_ptr, cut, blocks, FROM, MEAN)
                tl.debug_barrier()  # the rank is there
            if FROM != GIVEN:
                walk(sums_ptr, words_ptr, out_ptr, phase)
            tl.debug_barrier()
            tl.atomic_add(words_ptr + _COMPLETE, 1)
