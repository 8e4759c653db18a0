"""Transcripts for a weak model to read: who argues what, in which order, and who writes it.

A protocol turns texts into prompts, turn by turn; a writer turns prompts into texts: the strong
model itself, or any OpenAI-compatible endpoint. Neither is ever given a true label. ``PROTOCOLS``
names the protocols; a spec is ``name`` or ``name:turns=3``.
"""

from __future__ import annotations

from w2s_fast.debate.config import WriterConfig
from w2s_fast.debate.endpoint import EndpointWriter
from w2s_fast.debate.local import LocalWriter
from w2s_fast.debate.protocols import Consultancy, Debate, MarketMaking, Protocol, Writer
from w2s_fast.specs import build

PROTOCOLS: dict[str, type[Protocol]] = {
    "debate": Debate,
    "consultancy": Consultancy,
    "market_making": MarketMaking,
}

__all__ = [
    "PROTOCOLS",
    "EndpointWriter",
    "LocalWriter",
    "Protocol",
    "Writer",
    "WriterConfig",
    "make_protocol",
]


def make_protocol(spec: str) -> Protocol:
    """Build a protocol from its spec.

    Raises:
        W2SError: for an unknown name or field, or a value that does not fit.
    """
    return build(spec, PROTOCOLS, Protocol, "protocol")
