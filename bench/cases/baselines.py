"""Baselines of w2s_fast: the same losses in plain PyTorch.

``logconf`` is the auxiliary confidence loss of openai/weak-to-strong (``logconf_loss_fn``) with its
two-class threshold replaced by the batch median of the top probability, which is defined for any
number of classes. Like the original it takes dense labels and computes in fp32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def topk_labels(ids: Tensor, k: int, n_classes: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return ids and probabilities (N, k) of weak labels whose first class is ``ids`` (N,)."""
    top_ids = (ids[:, None] + 17 * torch.arange(k, device=ids.device)) % n_classes
    probs = torch.rand(len(ids), k, generator=g, device=g.device)
    return top_ids, probs / probs.sum(dim=1, keepdim=True)


def relative_errors(
    loss: Tensor, grad: Tensor, true_loss: float, true_grad: Tensor
) -> dict[str, float]:
    """Return relative errors: of a loss, and of its gradient over the largest true entry."""
    return {
        "loss_err": abs(loss.item() - true_loss) / abs(true_loss),
        "grad_err": ((grad.double() - true_grad).abs().max() / true_grad.abs().max()).item(),
    }


def logconf(logits: Tensor, labels: Tensor, coef: float = 0.5) -> Tensor:
    """Return the mean confidence loss, 0-d fp32, for any number of classes; inputs (N, V)."""
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
    """Return the same loss for hard labels (N,), without dense targets."""
    logp = torch.log_softmax(logits.float(), dim=-1)
    top, chosen = logp.detach().max(dim=-1)
    share = coef * (top.exp() >= torch.quantile(top.exp(), 0.5))
    weak = logp.gather(1, ids[:, None])[:, 0]
    own = logp.gather(1, chosen[:, None])[:, 0]
    return -((1 - share) * weak + share * own).mean()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy for hard (N,) or dense (N, V) labels."""
    return F.cross_entropy(logits, labels)


def logconf_two_class(logits: Tensor, labels: Tensor, coef: float = 0.5) -> Tensor:
    """Return ``logconf_loss_fn`` of openai/weak-to-strong: two classes, quantile at the prior."""
    logits = logits.float()
    labels = labels.float()
    preds = torch.softmax(logits, dim=-1)
    threshold = torch.quantile(preds[:, 0], labels.mean(dim=0)[1])
    own = torch.stack([preds[:, 0] >= threshold, preds[:, 0] < threshold], dim=1)
    target = labels * (1 - coef) + own.detach() * coef
    return F.cross_entropy(logits, target, reduction="none").mean()


def linear_cross_entropy(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """Return ``cross_entropy`` of a head's fp32 logits, as Hugging Face models compute it."""
    logits = F.linear(hidden, head).float()
    return F.cross_entropy(logits, labels.float() if labels.is_floating_point() else labels)


def linear_teacher(
    hidden: Tensor, head: Tensor, terms: list[tuple[float, Tensor, Tensor]]
) -> Tensor:
    """Return the cross-entropy against the softmax of a sum of scaled logits of other heads."""
    with torch.no_grad():
        logits = sum(a * F.linear(states, other) for a, states, other in terms)
        labels = torch.softmax(torch.as_tensor(logits).float(), dim=1)
    return F.cross_entropy(F.linear(hidden, head).float(), labels)


def linear_logconf(hidden: Tensor, head: Tensor, labels: Tensor, coef: float = 0.5) -> Tensor:
    """Return ``logconf`` of a head's logits; labels (N, V)."""
    return logconf(F.linear(hidden, head), labels, coef)
