"""What w2s_fast is compared with: the same losses in plain PyTorch.

``logconf`` is the auxiliary confidence loss of openai/weak-to-strong (``logconf_loss_fn``) with its
two-class threshold replaced by the batch median of the top probability, so that it holds for any
number of classes. Like the original it takes dense labels and computes in fp32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def logconf(logits: Tensor, labels: Tensor, coef: float = 0.5) -> Tensor:
    """Confidence loss, any number of classes. logits, labels (N, V); 0-d fp32 mean."""
    logits = logits.float()
    labels = labels.float()
    preds = torch.softmax(logits, dim=-1)
    top, chosen = preds.max(dim=-1)
    threshold = torch.quantile(top, 0.5)
    strong = torch.zeros_like(preds).scatter_(1, chosen[:, None], 1.0)
    share = (coef * (top >= threshold)).detach()[:, None]
    target = labels * (1 - share) + strong * share
    return F.cross_entropy(logits, target, reduction="none").mean()


def logconf_gather(logits: Tensor, ids: Tensor, coef: float = 0.5) -> Tensor:
    """The same for hard labels, rewritten without dense targets: what a careful user may do."""
    logp = torch.log_softmax(logits.float(), dim=-1)
    top, chosen = logp.detach().max(dim=-1)
    share = coef * (top.exp() >= torch.quantile(top.exp(), 0.5))
    weak = logp.gather(1, ids[:, None])[:, 0]
    own = logp.gather(1, chosen[:, None])[:, 0]
    return -((1 - share) * weak + share * own).mean()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Plain cross-entropy with hard (N,) or dense (N, V) labels."""
    return F.cross_entropy(logits, labels)


def logconf_two_class(logits: Tensor, labels: Tensor, coef: float = 0.5) -> Tensor:
    """``logconf_loss_fn`` of openai/weak-to-strong: two classes, quantile at the weak prior."""
    logits = logits.float()
    labels = labels.float()
    preds = torch.softmax(logits, dim=-1)
    threshold = torch.quantile(preds[:, 0], labels.mean(dim=0)[1])
    own = torch.stack([preds[:, 0] >= threshold, preds[:, 0] < threshold], dim=1)
    target = labels * (1 - coef) + own.detach() * coef
    return F.cross_entropy(logits, target, reduction="none").mean()


def linear_cross_entropy(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """``cross_entropy`` behind a head, logits in fp32 as Hugging Face models compute it."""
    logits = F.linear(hidden, head).float()
    return F.cross_entropy(logits, labels.float() if labels.is_floating_point() else labels)


def linear_logconf(hidden: Tensor, head: Tensor, labels: Tensor, coef: float = 0.5) -> Tensor:
    """``logconf`` behind a head; labels (N, V)."""
    return logconf(F.linear(hidden, head), labels, coef)
