"""Configuration of the writers of transcripts: a language model of the run, or an endpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from w2s_fast.errors import nearest
from w2s_fast.sampling.endpoint_config import EndpointConfig

KINDS = ("local", "endpoint")


@dataclass(frozen=True)
class WriterConfig(EndpointConfig):
    """Writer of transcripts for the methods of debate, and of the reasons for `critique`.

    Attributes:
        kind: "local" (the untrained student's language model) or "endpoint" (a server with OpenAI's
            protocol).
        url: Address of the endpoint, ending in /chat/completions or /completions. A server that
            takes the key in the address: /chat/completions?api-key={key}.
        model: Name of the model at the endpoint.
        key_variable: Environment variable that holds the endpoint's key; empty: no key. The key
            itself is never written to a file.
        temperature: Sampling temperature; 0 writes the most likely text, higher values make the
            members of an ensemble differ more.
        max_tokens: Largest number of tokens of a turn.
        workers: Number of parallel requests per process.
        retries: Number of retries of a request while the endpoint is busy.
        timeout_s: Largest duration of a request in seconds, from its start to the end of its reply.
    """

    setting = "transcript_writer"

    kind: str = "local"
    temperature: float = 0.7
    max_tokens: int = 256

    def _problem(self) -> str | None:
        if self.kind not in KINDS:
            hint = nearest(self.kind, KINDS)
            return f"kind={self.kind!r}: expected one of {', '.join(KINDS)}{hint}"
        if self.kind == "endpoint":
            return super()._problem()
        if problem := self._value_problem():
            return problem
        given = next((n for n in ("url", "model", "key_variable") if getattr(self, n)), None)
        return given and f"{given} is given, but kind is 'local'; use kind=endpoint"

    @property
    def content(self) -> dict[str, Any]:
        """Settings that can change the texts."""
        names = ["kind", "temperature", "max_tokens"]
        names += ["url", "model"] if self.kind == "endpoint" else []
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class CriticConfig(WriterConfig):
    """Writer of the critiques for the method `critique`: as ``WriterConfig``, but "local" is the
    untrained weak model, which has to be a language model."""

    setting = "critic_writer"
