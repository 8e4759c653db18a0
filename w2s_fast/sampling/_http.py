"""One request to an OpenAI-compatible endpoint, retried if a retry can help."""

from __future__ import annotations

import http.client
import json
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from random import Random
from typing import Any

from w2s_fast.errors import W2SError
from w2s_fast.sampling.endpoint_config import KEY_IN_URL, EndpointConfig

BACKOFF_S = 1.0  # before the second try; doubled for each further try
LONGEST_S = 60.0
LONGEST_REPLY = 16 << 20  # bytes; the longest turns have a few hundred thousand
_BUSY = (408, 409, 425, 429, 500, 502, 503, 504)
_EXCERPT = 200
_LONG_KEY = 16  # a shorter one, such as "none", may be a word of an answer


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
    cfg: EndpointConfig, body: Mapping[str, Any], key: str, stop: threading.Event
) -> str:
    """Return the text with which the endpoint answers.

    Args:
        cfg: Address and number of tries.
        body: The request.
        key: Sent as a bearer token, or in the place of ``{key}`` in the address; may be empty;
            no message or text shows it.
        stop: Set if the answer is not needed any more.

    Raises:
        W2SError: The endpoint rejects the request, returns no completion, or is busy for all tries.
    """
    tries = cfg.retries + 1
    for number in range(tries):
        try:
            return _text(cfg, _once(cfg, body, key), key)
        except _Retryable as e:
            why = _redact(str(e), key)
            # Random within the second half, so that requests rejected together are retried apart.
            wait = BACKOFF_S * 2**number * Random(f"{body}/{number}").uniform(0.5, 1)
            if number + 1 == tries or stop.wait(min(LONGEST_S, max(wait, e.wait_s))):
                break
    raise W2SError(
        f"{cfg.url} did not answer in {tries} tries ({why}); answers so far are kept: run the same "
        f"command again, with fewer {cfg.setting}.workers or more {cfg.setting}.retries"
    )


def _once(cfg: EndpointConfig, body: Mapping[str, Any], key: str) -> bytes:
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    url = cfg.url.replace(KEY_IN_URL, urllib.parse.quote(key, safe=""))
    if key and url == cfg.url:
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=cfg.timeout_s) as reply:
            return _read(cfg, reply)
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


def _read(cfg: EndpointConfig, reply: http.client.HTTPResponse) -> bytes:
    """Return the whole reply, which has a largest size and duration."""
    blocks, size, end = [], 0, time.monotonic() + cfg.timeout_s
    while block := reply.read1(1 << 16):
        blocks.append(block)
        size += len(block)
        if size > LONGEST_REPLY:
            raise W2SError(
                f"{cfg.url} sends a reply of more than {LONGEST_REPLY >> 20} MiB; expected a "
                "completion, as OpenAI-compatible servers send it"
            )
        if time.monotonic() > end:
            raise _Retryable(f"no whole reply in {cfg.timeout_s:g} s")
    if reply.length:
        raise http.client.IncompleteRead(b"", reply.length)
    return b"".join(blocks)


def _redact(text: str, key: str) -> str:
    for spelling in {key, urllib.parse.quote(key, safe="")} - {""}:
        text = text.replace(spelling, "***")
    return text


def _excerpt(reply: bytes, key: str) -> str:
    """Return the start of a reply as one line, without the key."""
    start = _redact(reply[: 20 * _EXCERPT + len(key)].decode(errors="replace"), key)
    return " ".join(start[: 20 * _EXCERPT].split())[:_EXCERPT]


def _rejection(cfg: EndpointConfig, error: urllib.error.HTTPError, key: str) -> str:
    if error.code in (401, 403):
        credential = f"the key in {cfg.key_variable}" if key else "a request without a key"
        fix = "check that key" if key else f"set {cfg.setting}.key_variable"
        return f"{cfg.url} rejects {credential} (HTTP {error.code}); {fix}"
    reply = _excerpt(error.read(1 << 16), key)
    return (
        f"{cfg.url} rejects the request (HTTP {error.code}: {reply}); check {cfg.setting}.url, "
        f"{cfg.setting}.model={cfg.model!r} and {cfg.setting}.max_tokens={cfg.max_tokens}"
    )


def _text(cfg: EndpointConfig, reply: bytes, key: str) -> str:
    """Return the answer in a reply of either endpoint; null is an empty text."""
    try:
        choice = json.loads(reply)["choices"][0]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        if not isinstance(text, str | None):
            raise TypeError
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        raise W2SError(
            f"{cfg.url} did not answer with a completion ({_excerpt(reply, key)!r}); expected JSON "
            "with choices, as OpenAI-compatible servers send it"
        ) from None
    return _redact(text or "", key if len(key) >= _LONG_KEY else "")


def _seconds(header: str | None) -> float:
    try:
        return max(0.0, float(header or 0))
    except ValueError:
        return 0.0  # a date: use the usual wait
