r"""Advantages of completions relative to the others of their prompt.

    A_i = (R_i - mean of its group) / (s + eps),      s: standard deviation, or 1 without eps

Source: Shao et al., arXiv 2402.03300, Sec. 4.1.2. With ``scale="none"`` they are those of
Liu et al., arXiv 2503.20783, which are not biased towards prompts of small spread.
"""

from __future__ import annotations

import torch
from torch import Tensor

from w2s_fast.errors import W2SError
from w2s_fast.losses._tensor_checks import check_values
from w2s_fast.ops.arguments import check_number, checked

SCALES = ("group", "batch", "none")
_LARGEST = torch.finfo(torch.float64).max


@checked
def group_advantages(
    rewards: Tensor, size: int, *, scale: str = "group", eps: float = 1e-4
) -> Tensor:
    """Compute (B,) advantages from rewards of groups of completions.

    Args:
        rewards: (B,) one number a completion; the ``size`` completions of a prompt follow one
            another. For ``scale="batch"`` those of all ranks.
        size: completions of a prompt, at least 2.
        scale: divide by the standard deviation (unbiased) of the group, of the whole batch, or not.
        eps: added to the standard deviation, above 0: equal rewards have advantage 0.

    Raises:
        W2SError: for a number of rewards that ``size`` does not divide, rewards that are not
            finite (on the CPU), or an unknown scale.
    """
    if rewards.dim() != 1 or rewards.is_complex():
        raise W2SError(
            f"rewards have shape {tuple(rewards.shape)} and dtype {rewards.dtype}; expected (B,) "
            "real numbers, one a completion"
        )
    if size < 2 or rewards.shape[0] % size:
        raise W2SError(
            f"size is {size} for {rewards.shape[0]} rewards; expected at least 2 completions a "
            "prompt, and a number of rewards that it divides"
        )
    if scale not in SCALES:
        raise W2SError(f"scale is {scale!r}; expected one of {SCALES}")
    check_number("eps", eps)
    if not eps > 0:
        raise W2SError(f"eps is {eps}; expected a number above 0")
    check_values("rewards", rewards, -_LARGEST, _LARGEST, "finite numbers")
    acc = torch.promote_types(rewards.dtype, torch.float32)
    groups = rewards.detach().to(acc).view(-1, size)
    if not groups.numel():  # torch warns of the spread of nothing
        return groups.flatten()
    advantages = groups - groups.mean(1, keepdim=True)
    if scale == "group":
        advantages = advantages / (groups.std(1, keepdim=True) + eps)
    elif scale == "batch":
        advantages = advantages / (groups.std() + eps)
    return advantages.flatten()
