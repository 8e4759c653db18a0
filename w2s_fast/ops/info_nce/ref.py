"""Plain backend of InfoNCE's row pass, in torch; fp64 goes here, so gradient checks test it."""

from __future__ import annotations

import torch
from torch import Tensor

from w2s_fast.ops.info_nce.call import NO_MARGIN, RowsCall, Stat


def rows(call: RowsCall) -> None:
    """Fill the record and, with ``grad``, write weight dloss/d(scaled similarities).

    With n the negatives of a row and s its scaled similarities, r = logsumexp(s_n) - s_positive:
    loss = log(1 + e^r), the probability of the positive is 1 / (1 + e^r), and the gradient is
    (1 - p) softmax(s_n) on the negatives and -(1 - p) on the positive.
    """
    counted = call.positives >= 0
    at = torch.where(counted, call.positives, 0).unsqueeze(1)
    positive = call.similarities.gather(1, at)
    kept = negatives_of(call, positive).scatter_(1, at, False)
    s = call.similarities.masked_fill_(~kept, -torch.inf)
    hardest = s.amax(1)
    s.mul_(call.scale)
    rest = s.logsumexp(1)
    scaled = positive.squeeze(1) * call.scale
    # An infinite similarity that is not masked has no probability.
    broken = (rest == torch.inf) | (scaled == torch.inf)
    r = torch.where(broken, torch.nan, rest - scaled)
    loss = torch.logaddexp(r, torch.zeros_like(r))
    miss = torch.sigmoid(r)
    focal = miss**call.focal_gamma if call.focal_gamma else torch.ones_like(miss)
    negatives, lse = (s != -torch.inf).sum(1), torch.logaddexp(rest, scaled)
    record = [focal * loss, lse, positive.squeeze(1), hardest, negatives, focal]
    for stat, values in zip(Stat, record, strict=True):
        call.stats[stat] = torch.where(counted, values, 0)
    if call.grad is None:
        return
    slope = focal * miss if call.weight is None else focal * miss * call.weight
    # Without negatives the sum is 0; e^(-inf - 0) is 0 as well.
    origin = torch.where(rest == -torch.inf, 0, rest).unsqueeze(1)
    g = s.sub_(origin).exp_().mul_(slope.unsqueeze(1)).scatter_(1, at, -slope.unsqueeze(1))
    call.grad.copy_(g.masked_fill_(~counted.unsqueeze(1), 0))


def negatives_of(call: RowsCall, positive: Tensor) -> Tensor:
    """Return (n, M) bool: the documents that no rule excludes, the positive perhaps among them."""
    rules, s = call.negatives, call.similarities
    kept = torch.ones_like(s, dtype=torch.bool)
    if rules.query_groups is not None and rules.document_groups is not None:
        same = rules.query_groups.unsqueeze(1) == rules.document_groups
        kept &= same if rules.within else ~same
    if rules.mask is not None:
        kept &= rules.mask
    if rules.margin != NO_MARGIN:
        kept &= ~(s > positive + rules.margin)  # a NaN stays, and shows in the loss
    return kept
