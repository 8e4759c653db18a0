"""Weak-to-strong losses. ``LOSSES`` names each one; ``make_loss`` builds one from its spec.

A spec is ``name`` or ``name:field=value,field=value``, the same in Python, YAML and on the command
line. A name with a dot, ``package.module:Class``, is imported.
"""

from __future__ import annotations

from dataclasses import fields

from w2s_fast.losses._base import Loss, LossContext, LossOut
from w2s_fast.losses.entropy import EntropyEleuther, EntropyMin
from w2s_fast.losses.evidential import Evidential
from w2s_fast.losses.focal import Focal
from w2s_fast.losses.gce import GCE
from w2s_fast.losses.logconf import LogConf, LogConfEleuther, LogConfOpenAI, LogConfPaper
from w2s_fast.losses.product import Product
from w2s_fast.losses.reverse_ce import ReverseCE
from w2s_fast.losses.reverse_kl import ReverseKL
from w2s_fast.losses.smoothing import Smoothing
from w2s_fast.losses.window import Window
from w2s_fast.losses.xent import HardXent, Xent
from w2s_fast.specs import build

LOSSES: dict[str, type[Loss]] = {
    "xent": Xent,
    "hard_xent": HardXent,
    "logconf": LogConf,
    "logconf_paper": LogConfPaper,
    "logconf_openai": LogConfOpenAI,
    "logconf_eleuther": LogConfEleuther,
    "product": Product,
    "window": Window,
    "smoothing": Smoothing,
    "focal": Focal,
    "gce": GCE,
    "reverse_ce": ReverseCE,
    "reverse_kl": ReverseKL,
    "evidential": Evidential,
    "entropy_min": EntropyMin,
    "entropy_eleuther": EntropyEleuther,
}

__all__ = ["LOSSES", "Loss", "LossContext", "LossOut", "canonical_spec", "make_loss"]


def make_loss(spec: str) -> Loss:
    """Build a loss from its spec.

    ``make_loss("logconf:aux_coef=0.75,warmup_frac=0.2")`` is equivalent to
    ``LogConf(aux_coef=0.75, warmup_frac=0.2)``.

    Raises:
        W2SError: for an unknown name or field, or a value that is not a number.
    """
    return build(spec, LOSSES, Loss, "loss")


def canonical_spec(spec: str) -> str:
    """Return the spec with its name and every field written out: equal losses, equal specs.

    Raises:
        W2SError: see ``make_loss``.
    """
    loss = make_loss(spec)
    names = {loss_type: name for name, loss_type in LOSSES.items()}
    imported = ":".join(spec.strip().split(":")[:2])  # package.module:Class
    name = names.get(type(loss), imported)
    values = ((f.name, getattr(loss, f.name)) for f in fields(loss))
    # Fields of other types cannot be given in a spec, so they have their default.
    written = [f"{key}={value}" for key, value in values if isinstance(value, int | float | str)]
    return ":".join([name, *filter(None, [",".join(written)])])
