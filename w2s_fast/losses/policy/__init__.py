"""Policy-gradient losses over sampled tokens. ``POLICY_LOSSES`` names each one."""

from w2s_fast.losses.policy._base import PolicyLoss, PolicyOut
from w2s_fast.losses.policy.advantages import group_advantages
from w2s_fast.losses.policy.cispo import CISPO
from w2s_fast.losses.policy.grpo import GRPO, DrGRPO
from w2s_fast.losses.policy.gspo import GSPO
from w2s_fast.losses.policy.ppo import PPO
from w2s_fast.specs import build

POLICY_LOSSES: dict[str, type[PolicyLoss]] = {
    "ppo": PPO,
    "bnpo": PPO,  # other libraries' name for GRPO divided by the number of tokens
    "grpo": GRPO,
    "dr_grpo": DrGRPO,
    "gspo": GSPO,
    "cispo": CISPO,
}

__all__ = [
    "CISPO",
    "GRPO",
    "GSPO",
    "POLICY_LOSSES",
    "PPO",
    "DrGRPO",
    "PolicyLoss",
    "PolicyOut",
    "group_advantages",
    "make_policy_loss",
]


def make_policy_loss(spec: str) -> PolicyLoss:
    """Build a policy loss from its spec, ``"grpo:clip_high=0.28,kl_coef=0.04"``.

    Raises:
        W2SError: for an unknown name or field, a value that is not of the field's type, or a field
            without a default that is missing.
    """
    return build(spec, POLICY_LOSSES, PolicyLoss, "policy loss")
