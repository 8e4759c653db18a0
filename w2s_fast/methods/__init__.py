"""Weak-to-strong methods: what happens between the weak labels and the student.

``METHODS`` names each one. A spec is ``name`` or ``name:field=value,field=value``; ``a|b`` does one
after the other; a name with a dot, ``package.module:Class``, is imported.
"""

from __future__ import annotations

from w2s_fast.errors import W2SError
from w2s_fast.methods._base import Method, Naive, Targets, student_nodes
from w2s_fast.methods._plan import Node, Plan, spec_of
from w2s_fast.methods.bootstrap import Bootstrap, StrongToStrong
from w2s_fast.methods.ccs import CCS
from w2s_fast.methods.consistent import Consistent
from w2s_fast.methods.elicit import Elicit
from w2s_fast.methods.posterior import Posterior
from w2s_fast.methods.probes import ProbeFilter, ProbeRelabel
from w2s_fast.specs import build

METHODS: dict[str, type[Method]] = {
    "naive": Naive,
    "bootstrap": Bootstrap,
    "strong_to_strong": StrongToStrong,
    "probe_relabel": ProbeRelabel,
    "probe_filter": ProbeFilter,
    "elicit": Elicit,
    "ccs": CCS,
    "consistent": Consistent,
    "posterior": Posterior,
}

__all__ = [
    "METHODS",
    "Method",
    "Node",
    "Plan",
    "Targets",
    "make_method",
    "make_steps",
    "spec_of",
    "student_nodes",
]


def make_method(spec: str) -> Method:
    """Build one method from its spec.

    Raises:
        W2SError: for an unknown name or field, or a value that does not fit.
    """
    return build(spec, METHODS, Method, "method")


def make_steps(spec: str) -> tuple[Method, ...]:
    """Build the methods of ``a|b|c``, in order.

    Raises:
        W2SError: see ``make_method``; or one of them has no name.
    """
    names = [part.strip() for part in spec.split("|")]
    if not all(names):
        raise W2SError(f"method {spec!r}: expected names with one '|' between two of them")
    return tuple(make_method(name) for name in names)
