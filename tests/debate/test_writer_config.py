"""Settings of the transcript writer: what does not fit is one line, and repeats no key."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.endpoint import KEY

from w2s_fast.debate import WriterConfig
from w2s_fast.errors import W2SError


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"kind": "endpoints"}, "did you mean 'endpoint'"),
        (
            {"url": "http://x/v1/completions"},
            "transcript_writer.url is given, but kind is 'local'",
        ),
        ({"kind": "endpoint", "url": "http://x/v1", "model": "m"}, "ends in /chat/completions"),
        ({"kind": "endpoint", "url": "x/completions", "model": "m"}, "expected an address"),
        ({"kind": "endpoint", "url": "http://x/completions"}, "transcript_writer.model is empty"),
        ({"kind": "endpoint", "url": "http://u:p@x/completions"}, "contains a user name"),
        (
            {"kind": "endpoint", "url": f"http://x/completions?api-key={KEY}", "model": "m"},
            "url contains a value of 'api-key'",
        ),
        ({"kind": "endpoint", "url": f"http://x/v1?v=1&access_token={KEY}"}, "of 'access_token'"),
        (
            {"kind": "endpoint", "url": "http://x/completions?key={key}", "model": "m"},
            "key_variable is empty",
        ),
        ({"kind": "endpoint", "url": "http://[x/completions", "model": "m"}, "is not an address"),
        ({"key_variable": KEY}, "is not an environment variable"),
        ({"temperature": -1.0}, "transcript_writer.temperature=-1.0"),
        ({"temperature": float("nan")}, "transcript_writer.temperature=nan"),
        ({"workers": 0}, "transcript_writer.workers=0"),
        ({"timeout_s": 0.0}, "transcript_writer.timeout_s=0"),
    ],
)
def test_bad_settings(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(W2SError, match=problem) as err:
        WriterConfig(**values)
    assert KEY not in str(err.value)


@pytest.mark.parametrize(
    "query",
    [
        *(f"?{name}={KEY}" for name in ("code", "pwd", "jwt", "bearer", "sig", "k", "API%2Dkey",
          "user", "access", "apiKey")),
        f"?v=1;api_key={KEY}", f"?v=1&{KEY}", f"?{KEY}", f"?{KEY}==", f"?={KEY}", f"#{KEY}",
        f"?api-version={{key}}&code={KEY}", f"#v={{key}}&t={KEY}", f"?token={KEY}{{key}}",
        f"?api-version={'v' * 30}-{KEY}", f"?v={KEY}%20x",
    ],
)  # fmt: skip
def test_no_key_is_stored_with_an_address(query: str) -> None:
    """Only what is known to be no key may stand in an address, by name and form."""
    url = f"https://h/v1/chat/completions{query}"
    with pytest.raises(W2SError, match="would be stored with the results") as err:
        WriterConfig(kind="endpoint", url=url, model="m", key_variable="W2S_KEY")
    assert KEY not in str(err.value) and KEY[:8] not in str(err.value)


@pytest.mark.parametrize(
    "url",
    [
        f"u:{KEY}@h/completions",
        f"//u:{KEY}@h/completions",
        f"http://u:{KEY}@[h/completions",
        f"http://h:{KEY}/completions",
        f"http://u:{KEY}@\u2100.c/",
    ],
)
def test_no_message_repeats_a_password(url: str) -> None:
    with pytest.raises(W2SError, match="transcript_writer.url") as err:
        WriterConfig(kind="endpoint", url=url, model="m")
    assert KEY not in str(err.value)


@pytest.mark.parametrize(
    "query",
    [
        "?api-version=2024-10-21-preview",
        "?API-Version=1&v=2",
        "",
        "?version=1.2&model=gpt-4o",
        "?code={key}",
        "?deployment=a_b&subscription-key={key}",
    ],
)
def test_addresses_without_a_key(query: str) -> None:
    url = f"https://h/v1/chat/completions{query}"
    assert WriterConfig(kind="endpoint", url=url, model="m", key_variable="W2S_KEY").url == url
