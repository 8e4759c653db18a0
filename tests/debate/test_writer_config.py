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
