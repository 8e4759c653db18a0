r"""Base class of the policy losses: a sum over sampled tokens, and its normaliser.

    L   = sum_t c_t [ -S(r_t, A_t) + kl_coef k_t - entropy_coef H_t ]
    r_t = exp(log pi(t) - log pi_old(t)),    k_t = e^d - d - 1,  d = log pi_ref(t) - log pi(t)

A is the advantage, S the surrogate of a loss, c the token weights divided as the loss normalises.
k is the unbiased estimate of KL(pi || pi_ref) of Schulman, "Approximating KL Divergence" (2020),
as GRPO uses it (arXiv 2402.03300, Eq. 4). A loss takes log-probabilities, not a model: those of
the policy come from ``w2s_fast.linear_logprob``, the others are constants. Ratios above e^80 count
as e^80, without a gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.losses._fields import RangeChecked
from w2s_fast.losses._tensor_checks import check_values
from w2s_fast.ops.arguments import check_methods
from w2s_fast.ops.checks import check_total, check_weight_dtype

_LARGEST = torch.finfo(torch.float64).max
_MOST_NATS = 80.0  # e^80 times an advantage is a number of fp32


class PolicyOut(NamedTuple):
    """Result of one call over B sequences of T tokens, or over N tokens.

    Attributes:
        loss_sum: 0-d, differentiable, SUM of weighted token losses.
        count: 0-d normaliser: the weighted number of tokens, or of sequences for the losses that
            average over sequences.
        metrics: detached 0-d SUMS over the tokens that count: ``tokens``, their number;
            ``clipped``, how many the surrogate clips; ``ratio``; ``old_kl``, estimates of
            KL(old policy || policy); ``reference_kl`` and ``entropy`` where they are given.
    """

    loss_sum: Tensor
    count: Tensor  # type: ignore[assignment]  # shadows tuple.count
    metrics: dict[str, Tensor]


class Tokens(NamedTuple):
    """The checked tokens of one call, all in one shape and in fp32 or wider.

    Numbers of tokens that do not count are 0, so that a NaN there cannot reach a gradient.
    """

    logp: Tensor
    old: Tensor
    advantage: Tensor
    reference: Tensor | None
    entropy: Tensor | None
    weight: Tensor
    mask: Tensor  # bool: the tokens that count


@dataclass(frozen=True, kw_only=True)
class PolicyLoss(RangeChecked):
    """Base of all policy losses. A new one overrides ``surrogate``, and the hooks it needs.

    Attributes:
        kl_coef: factor of the divergence from the reference, at least 0.
        entropy_coef: factor of the entropy bonus, at least 0.
    """

    kl_coef: float = 0.0
    entropy_coef: float = 0.0

    def __init_subclass__(cls) -> None:
        """Check the argument types of every call; see ``checked``."""
        check_methods(cls, ("__call__",))

    def __post_init__(self) -> None:
        self._check_range("kl_coef", 0.0)
        self._check_range("entropy_coef", 0.0)

    def surrogate(self, ratio: Tensor, t: Tokens) -> Tensor:
        """Return the objective of every token, which is maximised."""
        raise TypeError(f"{type(self).__name__} must define surrogate")

    def is_clipped(self, ratio: Tensor, advantage: Tensor) -> Tensor:
        """Return which tokens have no gradient because of the clip."""
        raise TypeError(f"{type(self).__name__} must define is_clipped")

    def log_ratio(self, t: Tokens) -> Tensor:
        """Return log(policy / old policy) of every token."""
        return t.logp - t.old

    def normalise(self, t: Tokens) -> tuple[Tensor, Tensor]:
        """Return the factor of every token's loss, and the 0-d normaliser."""
        return t.weight, t.weight.sum()

    def __call__(
        self,
        logp: Tensor,
        advantage: Tensor,
        *,
        old: Tensor | None = None,
        reference: Tensor | None = None,
        entropy: Tensor | None = None,
        mask: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> PolicyOut:
        """Compute the sum of the token losses.

        Args:
            logp: (B, T) or (N,) log-probabilities of the sampled tokens; get gradients.
            advantage: in the shape of ``logp``, or (B,) for one number a sequence.
            old: the same log-probabilities under the policy that sampled the tokens; None: they
                are those of ``logp``, every ratio is 1.
            reference: the same under the reference policy, for ``kl_coef``.
            entropy: entropies of the policy at the tokens, for ``entropy_coef``; get gradients.
                Those of ``linear_logprob(..., return_stats="differentiable")``.
            mask: in the shape of ``logp``; 0 or False takes a token out.
            weight: as ``advantage``, token weights >= 0; 0 takes a token out, even if its numbers
                are not finite.

        Raises:
            W2SError: for shapes, dtypes or devices that do not fit, a coefficient without its
                tensor, an advantage that is not finite or a negative weight (values are checked
                on the CPU only).
        """
        t = self._tokens(logp, advantage, old, reference, entropy, mask, weight)
        log_ratio = self.log_ratio(t)
        ratio = log_ratio.clamp_max(_MOST_NATS).exp()  # 0 times an infinite ratio would be NaN
        loss, metrics = -self.surrogate(ratio, t), _metrics(self, log_ratio.detach(), t)
        if t.reference is not None:
            kl = _k3(t.reference - t.logp)
            metrics["reference_kl"] = _sum(kl.detach(), t.mask)
            if self.kl_coef:
                loss = loss + self.kl_coef * kl
        if t.entropy is not None and self.entropy_coef:
            loss = loss - self.entropy_coef * t.entropy
        factor, count = self.normalise(t)
        check_total(count)
        return PolicyOut(_sum(loss * factor, t.mask), count, metrics)

    def _tokens(
        self,
        logp: Tensor,
        advantage: Tensor,
        old: Tensor | None,
        reference: Tensor | None,
        entropy: Tensor | None,
        mask: Tensor | None,
        weight: Tensor | None,
    ) -> Tokens:
        _check_coefficients(self, reference, entropy)
        _check_logp(logp)
        advantage = _by_token("advantage", advantage, logp)
        for name, x in (("old", old), ("reference", reference), ("entropy", entropy)):
            _check_like(name, x, logp)
        _check_like("mask", mask, logp)
        if weight is not None:
            check_weight_dtype(weight)
            weight = _by_token("weight", weight, logp)
            check_values("weight", weight, 0, math.inf, "weights of at least 0")
        acc = torch.promote_types(logp.dtype, torch.float32)
        counted = torch.ones_like(logp, dtype=torch.bool) if mask is None else mask != 0
        if weight is not None:
            counted = counted & (weight != 0)

        def filled(x: Tensor) -> Tensor:
            return torch.where(counted, x.to(acc), 0.0)

        def constant(x: Tensor | None) -> Tensor | None:
            return None if x is None else filled(x.detach())

        scale = counted.to(acc) if weight is None else filled(weight.detach())
        advantage = filled(advantage.detach())
        check_values("advantage", advantage, -_LARGEST, _LARGEST, "finite numbers")
        return Tokens(
            filled(logp),
            filled((logp if old is None else old).detach()),
            advantage,
            constant(reference),
            None if entropy is None else filled(entropy),
            scale,
            counted,
        )


check_methods(PolicyLoss, ("__call__",))


def sequence_lengths(t: Tokens, name: str) -> Tensor:
    """Return the (B, 1) numbers of tokens that count, at least 1; ``name`` is that of the loss."""
    if t.mask.dim() != 2:
        raise W2SError(
            f"logp has shape {tuple(t.mask.shape)}; {name} averages over sequences, expected "
            "(B, T), one row a sequence"
        )
    return t.mask.sum(1, keepdim=True).clamp_min(1).to(t.logp.dtype)


def _metrics(loss: PolicyLoss, log_ratio: Tensor, t: Tokens) -> dict[str, Tensor]:
    ratio = log_ratio.exp()
    sums = {
        "tokens": t.mask,
        "clipped": loss.is_clipped(ratio, t.advantage),
        "ratio": ratio,
        # Tokens are samples of the old policy: here its divergence from the new one is estimated.
        "old_kl": _k3((t.logp - t.old).detach()),
    }
    if t.entropy is not None:
        sums["entropy"] = t.entropy.detach()
    return {name: _sum(x.to(t.logp.dtype), t.mask) for name, x in sums.items()}


def _k3(d: Tensor) -> Tensor:
    """Return e^d - d - 1, without cancellation for small d."""
    return torch.expm1(d) - d


def _sum(x: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, x, 0.0).sum()


def _check_coefficients(loss: PolicyLoss, reference: Tensor | None, entropy: Tensor | None) -> None:
    for field, name, x in (
        ("kl_coef", "reference", reference),
        ("entropy_coef", "entropy", entropy),
    ):
        value = getattr(loss, field)
        if value and x is None:
            raise W2SError(
                f"{type(loss).__name__} has {field}={value:g} and no {name}; pass {name}=, or set "
                f"{field} to 0"
            )


def _check_logp(logp: Tensor) -> None:
    if logp.dim() not in (1, 2) or not logp.is_floating_point():
        raise W2SError(
            f"logp has shape {tuple(logp.shape)} and dtype {logp.dtype}; expected floating point "
            "log-probabilities, (B, T) or (N,)"
        )


def _by_token(name: str, x: Tensor, logp: Tensor) -> Tensor:
    """Return ``x`` in the shape of ``logp``, of which it may have the first dimension alone."""
    if logp.dim() == 2 and x.dim() == 1 and x.shape[0] == logp.shape[0]:
        x = x.unsqueeze(1).expand_as(logp)
    _check_like(name, x, logp)
    return x


def _check_like(name: str, x: Tensor | None, logp: Tensor) -> None:
    if x is None:
        return
    if x.shape != logp.shape:
        raise W2SError(
            f"{name} has shape {tuple(x.shape)}; expected that of logp, {tuple(logp.shape)}"
        )
    if x.device != logp.device:
        raise W2SError(f"{name} is on {x.device}, logp on {logp.device}; move one of them")
    if x.is_complex():
        raise W2SError(f"{name} has dtype {x.dtype}; expected real numbers")
