"""One request to an OpenAI-compatible endpoint, retried if a retry can help."""

from __future__ import annotations

import http.client
import json
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from random import Random
from typing import Any

from w2s_fast.errors import W2SError
from w2s_fast.sampling._deadline import Deadline
from w2s_fast.sampling._redaction import excerpt, redact
from w2s_fast.sampling.endpoint_config import KEY_IN_URL, EndpointConfig

BACKOFF_S = 1.0  # before the second try; doubled for each further try
LONGEST_S = 60.0
LONGEST_REPLY = 16 << 20  # bytes; the longest turns have a few hundred thousand
_BUSY = (408, 409, 425, 429, 500, 502, 503, 504)
_KEY_REJECTED = (401, 403)
_LONG_KEY = 16  # a shorter one, such as "none", may be a word of an answer


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
            why = excerpt(str(e), key)
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
    with Deadline(cfg.timeout_s) as deadline:
        try:
            with deadline.open(request) as reply:
                if reply.status in _BUSY:
                    wait_s = _seconds(reply.headers.get("Retry-After"))
                    raise _Retryable(f"HTTP {reply.status}", wait_s)
                if reply.status in _KEY_REJECTED:
                    raise W2SError(_key_rejection(cfg, reply.status, key))
                text = _read(cfg, reply, deadline)
        except (OSError, http.client.HTTPException) as e:
            why = f"no whole reply in {cfg.timeout_s:g} s" if deadline.over else _reason(e, key)
            raise _Retryable(why) from None
    if not 200 <= reply.status < 300:
        raise W2SError(_rejection(cfg, reply.status, text, key))
    return text


def _read(cfg: EndpointConfig, reply: http.client.HTTPResponse, deadline: Deadline) -> bytes:
    """Return the whole reply, which has a largest size.

    Raises:
        OSError, http.client.HTTPException: It is not whole.
    """
    blocks, size = [], 0
    sized = reply.chunked or reply.length is not None
    while block := reply.read1(1 << 16):
        blocks.append(block)
        size += len(block)
        if size > LONGEST_REPLY:
            raise W2SError(
                f"{cfg.url} sends a reply of more than {LONGEST_REPLY >> 20} MiB; expected a "
                "completion, as OpenAI-compatible servers send it"
            )
    if deadline.over:  # which ends a reply as a server may end it
        raise TimeoutError
    if reply.length:
        raise http.client.IncompleteRead(b"", reply.length)
    text = b"".join(blocks)
    if not sized and 200 <= reply.status < 300 and not _is_json(text):
        raise http.client.IncompleteRead(text)  # a connection that is cut ends it like any other
    return text


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _reason(error: Exception, key: str) -> str:
    """Return why there is no whole reply."""
    if isinstance(error, urllib.error.URLError):
        refused = isinstance(error.reason, ConnectionRefusedError)
        return "connection refused; is the server running?" if refused else f"{error.reason}"
    if isinstance(error, http.client.IncompleteRead) and error.partial:
        return f"the connection ended after {excerpt(error.partial, key)!r}"
    return f"{type(error).__name__} {error}".strip()


def _key_rejection(cfg: EndpointConfig, status: int, key: str) -> str:
    credential = f"the key in {cfg.key_variable}" if key else "a request without a key"
    fix = "check that key" if key else f"set {cfg.setting}.key_variable"
    return f"{cfg.url} rejects {credential} (HTTP {status}); {fix}"


def _rejection(cfg: EndpointConfig, status: int, reply: bytes, key: str) -> str:
    return (
        f"{cfg.url} rejects the request (HTTP {status}: {excerpt(reply, key)}); check "
        f"{cfg.setting}.url, {cfg.setting}.model={cfg.model!r} and "
        f"{cfg.setting}.max_tokens={cfg.max_tokens}"
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
            f"{cfg.url} did not answer with a completion ({excerpt(reply, key)!r}); expected JSON "
            "with choices, as OpenAI-compatible servers send it"
        ) from None
    return redact(text or "", key if len(key) >= _LONG_KEY else "")


def _seconds(header: str | None) -> float:
    try:
        return max(0.0, float(header or 0))
    except ValueError:
        return 0.0  # a date: use the usual wait
