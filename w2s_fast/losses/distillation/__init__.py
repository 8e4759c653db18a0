"""Distillation from offline weak teachers. ``DISTILLATIONS`` names each divergence."""

from w2s_fast.losses.distillation._base import Distillation, DistillOut
from w2s_fast.losses.distillation.forward_kl import ForwardKL
from w2s_fast.losses.distillation.jsd import JSD
from w2s_fast.losses.distillation.reverse_kl import ReverseKL
from w2s_fast.specs import build

DISTILLATIONS: dict[str, type[Distillation]] = {
    "forward_kl": ForwardKL,
    "reverse_kl": ReverseKL,
    "jsd": JSD,
}

__all__ = [
    "DISTILLATIONS",
    "JSD",
    "DistillOut",
    "Distillation",
    "ForwardKL",
    "ReverseKL",
    "make_distillation",
]


def make_distillation(spec: str) -> Distillation:
    """Build a divergence from its spec, ``"jsd:beta=0.1,temperature=2.0"``.

    Raises:
        W2SError: for an unknown name or field, or a value that is not of the field's type.
    """
    return build(spec, DISTILLATIONS, Distillation, "divergence")
