"""Tiles of the row kernels: their sizes, and how a row is cut into them and loaded.

A row starts anywhere: an odd vocabulary or a padded slice puts most rows off the 16-byte grid, and
a plain loop over such a row falls back to one 16-bit access an entry. So a row is cut into a head,
a body of whole 16-byte vectors, and a tail. The body moves 128 bits at a time for every V, stride
and dtype; head and tail together are fewer than two vectors.

A tile of the body is (REP, LANES, VEC): VEC entries make 16 bytes of logits, a lane is a thread,
and it holds REP vectors. Sums over REP and VEC stay within the thread.

Loads become fp32 at once and every sum is fp32; there is no 16-bit arithmetic anywhere. A row's
offset is 64-bit, columns within a row are 32-bit. -inf is the neutral logit: it marks masked lanes
and masked vocabulary alike, and no product with it is formed where the result must be 0.
"""

import triton
import triton.language as tl

from w2s_fast.kernels import _row_math as m
from w2s_fast.kernels._row_math import INF

# (up to this many classes, entries a thread and tile, warps). Short rows take small blocks. Long
# rows take few blocks of many threads: what the SMs have read and not yet read again should fit
# the cache. Two blocks an SM hide each other's reductions; of 132 x 2 rows of 2^17 16-bit classes
# half, 34 MB, is read again later, and an H200's L2 has 50 MB. Tests compile every line.
TILES = ((256, 8, 1), (2048, 16, 4), (16384, 16, 8), (65536, 16, 16), (2**31, 32, 16))


def tile(n_cols: int, itemsize: int, capped: bool = False) -> dict[str, int]:
    """Return ``REP``, ``LANES``, ``VEC`` and ``num_warps`` for rows of ``n_cols`` entries.

    A lane is a thread: where several threads held one entry, in place would be a race. A soft-cap
    keeps arithmetic busy, not memory, and needs the registers of the second half of a tile.
    """
    vec = 16 // itemsize
    entries, warps = next((e, w) for most, e, w in TILES if n_cols <= most)
    entries = min(entries, 16) if capped else entries
    return {"REP": entries // vec, "LANES": 32 * warps, "VEC": vec, "num_warps": warps}


def registers(itemsize: int, kind: str, capped: bool = False) -> dict[str, int]:
    """Return ``maxnreg`` of the pass over rows, where the compiler must be told.

    It would take a hundred for 16-bit logits and hard labels: one block of 16 warps an SM, 32 KB of
    loads on the way, where a B200 needs 43 KB. 64 are enough, without spills. fp32 logits have
    twice the bytes on the way; labels of other kinds would spill.
    """
    return {"maxnreg": 64} if itemsize == 2 and kind == "hard" and not capped else {}


@triton.jit
def cut(ptr, n_cols, VEC: tl.constexpr):
    """Count entries before the first 16-byte boundary, and in whole 16-byte vectors, of a row."""
    size: tl.constexpr = 16 // VEC
    head = ((0 - ptr.to(tl.int64)) & 15) // size
    head = tl.minimum(head.to(tl.int32), n_cols)
    return head, (n_cols - head) // VEC * VEC


@triton.jit
def body_of(ptr, head, STEP: tl.constexpr):
    """Return where the body starts. ``STEP``: 16-byte boundaries lie where those of logits do."""
    ptr += head
    if STEP:
        ptr = tl.multiple_of(ptr, 16)
    return ptr


@triton.jit
def tile_at(start, body, REP: tl.constexpr, LANES: tl.constexpr, VEC: tl.constexpr):
    """Return entries of the body in the tile at ``start``, and which exist: whole vectors."""
    vectors = tl.arange(0, REP)[:, None, None] * LANES + tl.arange(0, LANES)[None, :, None]
    vectors = start + vectors * VEC
    inside = tl.broadcast_to(vectors < body, (REP, LANES, VEC))
    return vectors + tl.arange(0, VEC)[None, None, :], inside


@triton.jit
def edge_of(head, body, n_cols, VEC: tl.constexpr):
    """Return the columns of head and tail together, and which of them exist."""
    lanes = tl.arange(0, 2 * VEC)
    cols = tl.where(lanes < VEC, lanes, lanes - VEC + head + body)
    return cols, tl.where(lanes < VEC, lanes < head, cols < n_cols)


@triton.jit
def load_logits(ptr, cols, inside, softcap, CAP: tl.constexpr):
    """Load logits as fp32, capped; entries that do not exist are -inf."""
    x = tl.load(ptr + cols, mask=inside, other=0.0 if CAP else -INF).to(tl.float32)
    if CAP:
        z, _ = m.capped(x, softcap)
        x = tl.where(inside, z, -INF)
    return x


@triton.jit
def load_whole(ptr, cols, softcap, CAP: tl.constexpr):
    """Load logits that all exist."""
    x = tl.load(ptr + cols).to(tl.float32)
    if CAP:
        x, _ = m.capped(x, softcap)
    return x


@triton.jit
def load_probs(ptr, cols, inside):
    """Load weak probabilities as fp32; entries that do not exist are 0."""
    return tl.load(ptr + cols, mask=inside, other=0.0).to(tl.float32)
