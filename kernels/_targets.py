"""The top-k classes of a row: ids, probabilities, and whether they fit."""

import triton
import triton.language as tl

# Forms of the weak label.
HARD = tl.constexpr(0)
SPARSE = tl.constexpr(1)
DENSE = tl.constexpr(2)


@triton.jit
def load_topk(
    ids_ptr, q_ptr, n_cols, n_topk, ignore, KIND: tl.constexpr, KBLOCK: tl.constexpr
):  # fmt: skip
    """Load (ids, probs, whether real) of a row's top-k classes.

    Padding has id 0 and probability 0. A label outside the classes turns its probability, hence
    the row's mass, loss and gradient, into NaN and is not used as an address.
    """
    lanes = tl.arange(0, KBLOCK)
    ids = tl.load(ids_ptr + lanes, mask=lanes < n_topk, other=-1)
    real = lanes < n_topk
    real = real & (ids != ignore) if KIND == HARD else real & (ids >= 0)
    inside = (ids >= 0) & (ids < n_cols)
    q = real.to(tl.float32)
    if q_ptr is not None:
        q = tl.where(real, tl.load(q_ptr + lanes, mask=lanes < n_topk, other=0.0), 0.0)
    q = tl.where(real & (inside == 0), float("nan"), q.to(tl.float32))
    return tl.where(real & inside, ids, 0).to(tl.int32), q, real & inside


@triton.jit
def repeats_class(ids_ptr, n_cols, n_topk, KBLOCK: tl.constexpr):
    """Return whether a class of the row is listed more than once. K comparisons of K ids."""
    lanes = tl.arange(0, KBLOCK)
    ids = tl.load(ids_ptr + lanes, mask=lanes < n_topk, other=-1)
    again = tl.zeros([KBLOCK], tl.int32)
    for k in range(0, n_topk):
        again = again | ((ids == tl.load(ids_ptr + k)) & (lanes > k) & (ids >= 0)).to(tl.int32)
    return tl.max(again, 0) != 0


@triton.jit
def contains(ids, real, class_id):
    """Return whether one of the top-k classes is ``class_id``."""
    return tl.max((real & (ids == class_id)).to(tl.int32), 0) != 0
