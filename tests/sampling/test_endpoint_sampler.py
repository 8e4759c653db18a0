"""Samples of an endpoint: one request each, with a seed of its own, and none twice."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from helpers.endpoint import chat

from w2s_fast.errors import W2SError
from w2s_fast.sampling import EndpointConfig, EndpointSampler, Sampler

pytest_plugins = ("helpers.endpoint",)


def config(server: Any, **changes: Any) -> EndpointConfig:
    url = f"{server.base}/chat/completions"
    return EndpointConfig(**{"url": url, "model": "strong", "retries": 0, "workers": 3} | changes)


def by_seed(number: int, body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
    return 200, {}, chat(f"{body['messages'][0]['content']} {body['seed']}")


def test_requests_have_seeds_of_their_own_and_are_stored(serve: Any, tmp_path: Path) -> None:
    server = serve(by_seed)
    own = EndpointSampler(config(server, temperature=0.4, max_tokens=7), tmp_path)
    assert isinstance(own, Sampler)
    got = own.sample(["one", "two", "one"], 3, seed=5)
    assert got[0] == got[2] and len({t for own_texts in got for t in own_texts}) == 6
    assert [[t.split()[0] for t in own_texts] for own_texts in got[:2]] == [
        ["one"] * 3,
        ["two"] * 3,
    ]
    assert len(server.requests) == 6, "equal prompts are requested once"
    assert {(r["temperature"], r["max_tokens"]) for r in server.requests} == {(0.4, 7)}
    assert all(0 <= r["seed"] < 2**31 for r in server.requests)
    assert own.sample(["two"], 2, seed=5) == [got[1][:2]] and len(server.requests) == 6
    again = EndpointSampler(config(server, temperature=0.4, max_tokens=7), tmp_path)
    assert again.sample(["two", "one"], 3, seed=5) == [got[1], got[0]]
    assert len(server.requests) == 6, "stored answers are read by the next process"
    other = own.sample(["one"], 3, seed=6)
    assert not set(other[0]) & set(got[0]) and len(server.requests) == 9


def test_equal_prompts_are_not_requested_at_the_same_time(serve: Any, tmp_path: Path) -> None:
    def slow(number: int, body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        time.sleep(0.2)
        return by_seed(number, body)

    server = serve(slow)
    got = EndpointSampler(config(server, workers=2), tmp_path).sample(["one", "one"], 1)
    assert got[0] == got[1] and len(server.requests) == 1


def test_messages_name_the_settings(serve: Any, tmp_path: Path) -> None:
    refused = serve(lambda *_: (404, {}, b"no"))
    with pytest.raises(
        W2SError, match="check endpoint.url, endpoint.model='strong' and endpoint.m"
    ):
        EndpointSampler(config(refused), tmp_path).sample(["x"], 1)
    busy = serve(lambda *_: (429, {}, b""))
    with pytest.raises(W2SError, match="with fewer endpoint.workers or more endpoint.retries"):
        EndpointSampler(config(busy), tmp_path).sample(["x"], 1)
    empty = serve(lambda *_: (200, {}, chat("")))
    with pytest.raises(W2SError, match="answered 2 prompts with empty texts"):
        EndpointSampler(config(empty), tmp_path).sample(["x"], 2)
    with pytest.raises(W2SError, match="expected a list of at least one text"):
        EndpointSampler(config(empty), tmp_path).sample([], 2)
    assert len(empty.requests) == 2


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"url": "http://x/v1", "model": "m"}, "endpoint.url='http://x/v1': expected an address"),
        ({"url": "http://x/completions"}, "endpoint.model is empty"),
        ({"url": "http://x/completions", "model": "m", "max_tokens": 0}, "endpoint.max_tokens=0"),
        ({"url": "http://u:p@x/completions", "model": "m"}, "use endpoint.key_variable instead"),
    ],
)
def test_wrong_settings(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(W2SError, match=problem):
        EndpointConfig(**values)


def test_the_key_is_looked_up_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("W2S_KEY", raising=False)
    cfg = EndpointConfig(url="http://x/completions", model="m", key_variable="W2S_KEY")
    with pytest.raises(W2SError, match="endpoint.key_variable='W2S_KEY': this variable is not set"):
        EndpointSampler(cfg, tmp_path)
