"""Transcripts of arguments that a weak model reads: protocols, and writers of the turns.

A protocol turns texts into prompts, turn by turn; a writer turns prompts into texts: the strong
model itself, or any OpenAI-compatible endpoint. Neither reads a true label. ``PROTOCOLS`` maps
names to protocols; a spec is ``name`` or ``name:turns=3``.
"""

from __future__ import annotations

from w2s_fast.debate.config import CriticConfig, WriterConfig
from w2s_fast.debate.critique import Answer, Critique
from w2s_fast.debate.local import LocalWriter
from w2s_fast.debate.protocols import Consultancy, Debate, MarketMaking, Protocol, Writer
from w2s_fast.sampling.endpoint_client import EndpointClient as EndpointWriter
from w2s_fast.specs import build

PROTOCOLS: dict[str, type[Protocol]] = {
    "debate": Debate,
    "consultancy": Consultancy,
    "market_making": MarketMaking,
    "answer": Answer,
    "critique": Critique,
}

__all__ = [
    "PROTOCOLS",
    "CriticConfig",
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
        W2SError: A name or field is unknown, or a value does not fit.
    """
    return build(spec, PROTOCOLS, Protocol, "protocol")
