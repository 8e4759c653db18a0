"""Preference losses with soft weak labels. ``PREFERENCES`` names each one."""

from w2s_fast.errors import PreferenceWarning
from w2s_fast.losses.preference._base import Answers, Preference, PreferenceOut
from w2s_fast.losses.preference.bradley_terry import BradleyTerry
from w2s_fast.losses.preference.cpo import CPO
from w2s_fast.losses.preference.dpo import DPO, DPONorm
from w2s_fast.losses.preference.ipo import IPO
from w2s_fast.losses.preference.kto import KTO
from w2s_fast.losses.preference.orpo import ORPO
from w2s_fast.losses.preference.simpo import SimPO
from w2s_fast.losses.preference.wspo import WSPO
from w2s_fast.specs import build

PREFERENCES: dict[str, type[Preference]] = {
    "dpo": DPO,
    "dpo_norm": DPONorm,
    "ipo": IPO,
    "simpo": SimPO,
    "orpo": ORPO,
    "cpo": CPO,
    "kto": KTO,
    "bradley_terry": BradleyTerry,
    "wspo": WSPO,
}

__all__ = [
    "CPO",
    "DPO",
    "IPO",
    "KTO",
    "ORPO",
    "PREFERENCES",
    "WSPO",
    "Answers",
    "BradleyTerry",
    "DPONorm",
    "Preference",
    "PreferenceOut",
    "PreferenceWarning",
    "SimPO",
    "make_preference",
]


def make_preference(spec: str) -> Preference:
    """Build a preference loss from its spec, ``"dpo:beta=0.2,label_smoothing=0.1"``.

    Raises:
        W2SError: for an unknown name or field, or a value that is not of the field's type.
    """
    return build(spec, PREFERENCES, Preference, "preference loss")
