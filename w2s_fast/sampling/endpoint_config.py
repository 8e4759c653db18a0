"""Configuration of an OpenAI-compatible endpoint."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from w2s_fast.errors import W2SError

KEY_IN_URL = "{key}"  # in an address, stands for the key
# What an address may hold beside {key}: keys have too many names to refuse each of them.
_NO_KEY = ("api-version", "api_version", "version", "v", "model", "deployment", "region")
_PLAIN = re.compile(r"[\w.:-]{1,32}", re.ASCII)
CHAT, COMPLETIONS = "/chat/completions", "/completions"


@dataclass(frozen=True)
class EndpointConfig:
    """A model behind an endpoint with OpenAI's protocol, and how it samples.

    Attributes:
        setting: What messages call the settings: the name of the section in a configuration.
        url: Address of the endpoint, ending in /chat/completions or /completions. A server that
            takes the key in the address: /chat/completions?api-key={key}.
        model: Name of the model at the endpoint.
        key_variable: Environment variable that holds the endpoint's key; empty: no key. The key
            itself is never written to a file.
        temperature: Sampling temperature; 0 writes the most likely text.
        max_tokens: Largest number of tokens of a text.
        workers: Number of parallel requests per process.
        retries: Number of retries of a request while the endpoint is busy.
        timeout_s: Largest duration of a request in seconds, from its start to the end of its reply.

    Raises:
        W2SError: A value does not fit.
    """

    setting = "endpoint"  # not annotated, so it is no field

    url: str = ""
    model: str = ""
    key_variable: str = ""
    temperature: float = 1.0
    max_tokens: int = 1024
    workers: int = 8
    retries: int = 6
    timeout_s: float = 120.0

    def __post_init__(self) -> None:
        if problem := self._problem():
            raise W2SError(f"{self.setting}.{problem}")

    def _problem(self) -> str | None:
        """Return the first setting that does not fit, and what was expected."""
        return self._value_problem() or self._endpoint_problem()

    def _value_problem(self) -> str | None:
        for name, low in (("max_tokens", 1), ("workers", 1), ("retries", 0), ("temperature", 0)):
            if not low <= getattr(self, name) < float("inf"):
                return f"{name}={getattr(self, name)}: expected at least {low}"
        if not 0 < self.timeout_s < float("inf"):
            return f"timeout_s={self.timeout_s}: expected seconds above 0"
        if self.key_variable and not re.fullmatch("[A-Z_][A-Z0-9_]*", self.key_variable):
            return (  # the value may be a key, so the message does not repeat it
                "key_variable is not an environment variable in capitals; put the key into a "
                "variable such as OPENAI_API_KEY and give that name"
            )
        return None

    def _endpoint_problem(self) -> str | None:
        example = "http://localhost:8000/v1/chat/completions"
        try:
            parts = urlsplit(self.url)
            _ = parts.port  # not before it is read
        except ValueError:  # its text may hold a password
            return f"url is not an address; expected one such as {example}"
        if parts.username or parts.password:
            return f"url contains a user name or password; use {self.setting}.key_variable instead"
        for text in (parts.query, parts.fragment):
            # Some servers take ; for &. Without a =, all of it may be a key.
            for name, value in parse_qsl(text.replace(";", "&"), keep_blank_values=True):
                if value != KEY_IN_URL and not _holds_no_key(name, value):
                    return _stored_value(name, value)
        if KEY_IN_URL in self.url and not self.key_variable:
            return f"url contains {KEY_IN_URL}, but key_variable is empty; name the key's variable"
        valid = parts.scheme in ("http", "https") and parts.hostname
        if not valid or not parts.path.endswith(COMPLETIONS):
            shown = "" if "@" in self.url else f"={self.url!r}"  # before an @ may be a password
            return (
                f"url{shown}: expected an address that ends in {CHAT} or {COMPLETIONS}, such as "
                f"{example}"
            )
        return None if self.model else "model is empty; give the name of the model at the endpoint"

    @property
    def content(self) -> dict[str, Any]:
        """Settings that can change the texts."""
        names = ("temperature", "max_tokens", "url", "model")
        return {name: getattr(self, name) for name in names}

    def key(self, env: Mapping[str, str] = os.environ) -> str:
        """Return the endpoint's key, "" if it needs none.

        Raises:
            W2SError: The variable of the key is not set, or its value is not a key.
        """
        key = env.get(self.key_variable, "").strip() if self.key_variable else ""
        if self.key_variable and not key:
            raise W2SError(
                f"{self.setting}.key_variable={self.key_variable!r}: this variable is not set "
                "in the environment; export it, or leave the setting empty for an endpoint without "
                "a key"
            )
        if not re.fullmatch("[!-~]*", key):
            raise W2SError(  # without the value
                f"the key in {self.key_variable} has spaces or characters that are not ASCII; "
                "export it again as one word"
            )
        return key


def _holds_no_key(name: str, value: str) -> bool:
    return name.lower() in _NO_KEY and _PLAIN.fullmatch(value) is not None


def _stored_value(name: str, value: str) -> str:
    """Return what is wrong with a parameter of an address, without its value."""
    word = re.fullmatch(r"[a-z][a-z._-]{0,23}", name, re.IGNORECASE) and value.strip("=")
    shown = repr(name) if word else "a parameter"  # a key alone is read as a name
    return (
        f"url contains a value of {shown}, which would be stored with the results; only "
        f"{', '.join(_NO_KEY)} may have one: put it into an environment variable, name that in "
        f"key_variable, and write {name if word else 'NAME'}={KEY_IN_URL}"
    )
