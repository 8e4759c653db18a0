"""One request to an OpenAI-compatible endpoint, retried if a retry can help."""

from __future__ import annotations

import http.client
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from random import Random
from typing import Any

from w2s_fast.debate.config import WriterConfig
from w2s_fast.errors import W2SError

BACKOFF_S = 1.0  # before the second try; doubled for each further try
LONGEST_S = 60.0
_BUSY = (408, 409, 425, 429, 500, 502, 503, 504)
_EXCERPT = 200


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follow no redirect, which would send the key to another address."""

    def redirect_request(self, *_: Any) -> None:
        return None


class _Retryable(Exception):
    """A request that can be retried after ``wait_s``, if the endpoint gives it."""

    def __init__(self, why: str, wait_s: float = 0.0) -> None:
        super().__init__(why)
        self.wait_s = wait_s


def request_text(
    cfg: WriterConfig, body: Mapping[str, Any], key: str, stop: threading.Event
) -> str:
    """Return the text with which the endpoint answers.

    Args:
        cfg: Address and number of tries.
        body: The request.
        key: Sent as a bearer token if it is not empty; no message shows it.
        stop: Set if the answer is not needed any more.

    Raises:
        W2SError: The endpoint rejects the request, returns no completion, or is busy for all tries.
    """
    tries = cfg.retries + 1
    for number in range(tries):
        try:
            return _text(cfg, _once(cfg, body, key))
        except _Retryable as e:
            why = str(e)
            # Random within the second half, so that requests rejected together are retried apart.
            wait = BACKOFF_S * 2**number * Random(f"{body}/{number}").uniform(0.5, 1)
            if number + 1 == tries or stop.wait(min(LONGEST_S, max(wait, e.wait_s))):
                break
    raise W2SError(
        f"{cfg.url} did not answer in {tries} tries ({why}); answers so far are kept: run the same "
        "command again, with fewer transcript_writer.workers or more transcript_writer.retries"
    )


def _once(cfg: WriterConfig, body: Mapping[str, Any], key: str) -> bytes:
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(cfg.url, json.dumps(body).encode(), headers)
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=cfg.timeout_s) as reply:
            return reply.read()
    except urllib.error.HTTPError as e:
        with e:
            if e.code in _BUSY:
                raise _Retryable(f"HTTP {e.code}", _seconds(e.headers.get("Retry-After"))) from None
            raise W2SError(_rejection(cfg, e, key)) from None
    except urllib.error.URLError as e:
        reason = e.reason
        if isinstance(reason, ConnectionRefusedError):
            raise _Retryable("connection refused; is the server running?") from None
        raise _Retryable(f"{reason}") from None
    except (OSError, http.client.HTTPException) as e:
        raise _Retryable(f"{type(e).__name__} {e}".strip()) from None


def _rejection(cfg: WriterConfig, error: urllib.error.HTTPError, key: str) -> str:
    if error.code in (401, 403):
        credential = f"the key in {cfg.key_variable}" if key else "a request without a key"
        fix = "check that key" if key else "set transcript_writer.key_variable"
        return f"{cfg.url} rejects {credential} (HTTP {error.code}); {fix}"
    reply = " ".join(error.read(4096).decode(errors="replace").split())
    reply = reply.replace(key, "***") if key else reply
    return (
        f"{cfg.url} rejects the request (HTTP {error.code}: {reply[:_EXCERPT]}); check "
        f"transcript_writer.url, transcript_writer.model={cfg.model!r} and "
        f"transcript_writer.max_tokens={cfg.max_tokens}"
    )


def _text(cfg: WriterConfig, reply: bytes) -> str:
    """Return the answer in a reply of either endpoint; null is an empty text."""
    try:
        choice = json.loads(reply)["choices"][0]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        if not isinstance(text, str | None):
            raise TypeError
    except (ValueError, KeyError, IndexError, TypeError):
        start = " ".join(reply.decode(errors="replace").split())[:_EXCERPT]
        raise W2SError(
            f"{cfg.url} did not answer with a completion ({start!r}); expected JSON with choices, "
            "as OpenAI-compatible servers send it"
        ) from None
    return text or ""


def _seconds(header: str | None) -> float:
    try:
        return max(0.0, float(header or 0))
    except ValueError:
        return 0.0  # a date: use the usual wait
