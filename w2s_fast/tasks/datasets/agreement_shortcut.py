"""A spurious feature in the texts of `agreement`: adverbs before a text that go with its label.

Predictivity is how often the feature agrees with the label, availability how easily it is read.
Source: Hermann et al. 2024, On the Foundations of Shortcut Learning (arXiv 2310.16228), Sec. 2.
"""

from __future__ import annotations

from random import Random

from w2s_fast.tasks._agreement_config import N_ADVERBS, ShortcutConfig

AGREES, CONFLICTS = "agrees", "conflicts"  # subgroups of items
CARRIERS = (("again", "here"), ("never", "often"))  # adverbs of the values 0 and 1
NEUTRAL = ("still", "today")


def add_shortcut(rng: Random, text: str, label: int, cfg: ShortcutConfig) -> tuple[str, str]:
    """Return the text after its adverbs, and whether they agree with the label.

    Args:
        rng: Source of randomness.
        text: A prefix without adverbs.
        label: Its label, 0 or 1.
        cfg: Predictivity and availability, which is at least 1.
    """
    agrees = rng.random() < cfg.predictivity
    carriers = CARRIERS[label if agrees else 1 - label]
    adverbs = [rng.choice(carriers) for _ in range(cfg.availability)]
    adverbs += [rng.choice(NEUTRAL) for _ in range(N_ADVERBS - cfg.availability)]
    rng.shuffle(adverbs)
    return " ".join([*adverbs, text]), AGREES if agrees else CONFLICTS
