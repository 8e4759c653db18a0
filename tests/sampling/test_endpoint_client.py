"""The client of endpoints: requests, retries, answers stored once, and no key in a file."""

from __future__ import annotations

import json
import re
import threading
import warnings
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from helpers.endpoint import KEY, chat, echo

from w2s_fast.errors import W2SError
from w2s_fast.files import content_hash
from w2s_fast.sampling import _http
from w2s_fast.sampling._cache import AnswerCache
from w2s_fast.sampling._redaction import excerpt
from w2s_fast.sampling.endpoint_client import EndpointClient
from w2s_fast.store import StoreWarning

pytest_plugins = ("helpers.endpoint",)


def test_both_endpoints_are_asked_as_they_expect(serve: Any, tmp_path: Path) -> None:
    server = serve()
    writer = EndpointClient(server.config(temperature=0.5, max_tokens=9), tmp_path)
    assert writer(["one", "two"], [5, 6]) == ["on one", "on two"]
    assert sorted(server.requests, key=lambda r: r["seed"]) == [
        {"model": "strong", "messages": [{"role": "user", "content": text}],
         "temperature": 0.5, "max_tokens": 9, "seed": seed}
        for text, seed in (("one", 5), ("two", 6))
    ]  # fmt: skip
    assert server.keys == [None, None]
    old = serve(
        lambda n, body: (200, {}, json.dumps({"choices": [{"text": body["prompt"]}]}).encode())
    )
    assert EndpointClient(old.config("/completions"), tmp_path)(["one"], [1]) == ["one"]


def test_a_busy_endpoint_is_asked_again(serve: Any, tmp_path: Path) -> None:
    def busy(number: int, body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        if number <= 2:
            return (429, {"Retry-After": "0"}, b"later") if number == 1 else (503, {}, b"")
        return echo(number, body)

    server = serve(busy)
    assert EndpointClient(server.config(workers=1), tmp_path)(["x"], [0]) == ["on x"]
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("reply", "changes", "problem", "n_requests"),
    [
        ((429, {}, b""), {}, r"did not answer in 3 tries \(HTTP 429\)", 3),
        ((401, {}, b"bad " + KEY.encode()), {"key_variable": "W2S_KEY"},
         r"rejects the key in W2S_KEY \(HTTP 401\)", 1),
        ((401, {}, b""), {}, "rejects a request without a key", 1),
        ((404, {}, b"no model of key " + KEY.encode()), {"key_variable": "W2S_KEY"},
         r"HTTP 404: no model of key \*\*\*", 1),
        ((302, {"Location": "http://127.0.0.1:9/v1/completions"}, b""), {}, "HTTP 302", 1),
        ((200, {}, b"<html>"), {}, "did not answer with a completion \\('<html>'\\)", 1),
        ((200, {}, b"Authorization: Bearer " + KEY.encode()), {"key_variable": "W2S_KEY"},
         r"completion \('Authorization: Bearer \*\*\*'\)", 1),
        ((200, {}, b" " * 3990 + KEY.encode()), {"key_variable": "W2S_KEY"}, "a completion", 1),
        ((200, {}, b'{"choices": ' + b"[" * 200_000), {}, "expected JSON with choices", 1),
        ((200, {}, b" " * 70_000), {}, "sends a reply of more than 0 MiB", 1),
        ((200, {"Content-Length": "9" * 5}, b"{}"), {"retries": 0}, "IncompleteRead", 1),
        ((200, {}, b'{"choices": []}'), {}, "expected JSON with choices", 1),
        ((200, {}, b'{"choices": [{"text": 3}]}'), {}, "expected JSON with choices", 1),
        ((200, {}, chat(None)), {}, "answered 1 prompts with empty texts", 1),
        ((200, {}, chat("yes " * 5000)), {}, "20000 characters although .*max_tokens=256", 1),
        ((200, {}, chat("yes " * 5000)), {"max_tokens": 1}, "expected at most 10000", 1),
    ],
)  # fmt: skip
def test_what_an_endpoint_cannot_do_is_one_line(
    serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    reply: Any, changes: dict[str, Any], problem: str, n_requests: int,
) -> None:  # fmt: skip
    monkeypatch.setenv("W2S_KEY", KEY + "\n")
    monkeypatch.setattr(_http, "LONGEST_REPLY", 250_000 if b"[[" in reply[2] else 65_536)
    server = serve(lambda *_: reply)
    with pytest.raises(W2SError, match=problem) as err:
        EndpointClient(server.config(**changes), tmp_path)(["x"], [0])
    assert "\n" not in str(err.value) and KEY[:6] not in str(err.value)
    assert "20000" not in problem or not list(tmp_path.iterdir()), "the answer is kept"
    assert len(server.requests) == n_requests


def test_nobody_listens(serve: Any, tmp_path: Path) -> None:
    server = serve()
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(W2SError, match="connection refused; is the server running"):
        EndpointClient(server.config(), tmp_path)(["x"], [0])


def test_one_refusal_ends_the_others(serve: Any, tmp_path: Path) -> None:
    """The first prompt would wait for its next try; the second one says there is no use."""
    slow = threading.Event()

    def reply(number: int, body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        if "first" in body["messages"][0]["content"]:
            slow.set()
            return 429, {"Retry-After": "50"}, b""
        slow.wait(5)
        return 400, {}, b"no"

    with pytest.raises(W2SError, match="HTTP 400: no"):
        EndpointClient(serve(reply).config(workers=2), tmp_path)(["first", "second"], [0, 0])


def test_an_answer_is_paid_for_once(serve: Any, tmp_path: Path) -> None:
    limit = 4

    def reply(number: int, body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        return echo(number, body) if number <= limit else (400, {}, b"out of money")

    server = serve(reply)
    prompts, seeds = [f"p{i}" for i in range(10)], list(range(10))
    with pytest.raises(W2SError, match="out of money"):
        EndpointClient(server.config(workers=1), tmp_path)(prompts, seeds)
    (file,) = tmp_path.glob("answers-*.jsonl")
    file.write_bytes(file.read_bytes() + b'\n["half a li')  # what a kill leaves behind
    limit, before = 100, len(server.requests)
    with pytest.warns(StoreWarning, match="1 of 5 answers .* requesting them again"):
        EndpointClient(server.config(), tmp_path)
    writer = EndpointClient(server.config(workers=1), tmp_path, process=1)
    assert writer(prompts, seeds) == [f"on p{i}" for i in range(10)]
    assert len(server.requests) - before == 6
    EndpointClient(server.config(), tmp_path, process=1)(prompts, seeds)
    assert len(server.requests) - before == 6
    other = EndpointClient(server.config(temperature=0.1), tmp_path, process=1)
    other(prompts[:1], seeds[:1])
    assert len(server.requests) - before == 7, "another temperature is another question"


@pytest.mark.parametrize("blank", ["", None, " \n"])
def test_a_blank_answer_is_requested_again(serve: Any, tmp_path: Path, blank: str | None) -> None:
    """An overloaded server may send one; kept, it would fail the same command for ever."""
    well: set[str] = set()

    def reply(number: int, body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        known = body["messages"][0]["content"] in well
        return echo(number, body) if known else (200, {}, chat(blank))

    server = serve(reply)
    cfg = server.config(workers=1)
    for _ in range(2):
        with pytest.raises(W2SError, match="answered 1 prompts with empty texts"):
            EndpointClient(cfg, tmp_path)(["x"], [0])
    assert len(server.requests) == 2
    older = AnswerCache(tmp_path, 9)
    older.put(content_hash([cfg.url, server.requests[0]]), blank or "")  # older versions kept it
    well = {"y"}
    assert EndpointClient(cfg, tmp_path)(["x", "y"], [0, 1]) == [blank or "", "on y"]
    well = {"x", "y"}
    assert EndpointClient(cfg, tmp_path)(["x", "y"], [0, 1]) == ["on x", "on y"]
    assert len(server.requests) == 5, "what is not blank is paid for once"


def test_a_damaged_answer_is_no_answer(tmp_path: Path) -> None:
    """Every byte of the file, one of its bits, and every length: the stored text, or none."""
    texts = {"a" * 64: "first answer", "b" * 64: "second\nanswer \u00e9"}
    cache = AnswerCache(tmp_path)
    for key, text in texts.items():
        cache.put(key, text)
    (file,) = tmp_path.glob("answers-*.jsonl")
    whole = file.read_bytes()
    bits = [bytes([*whole[:i], b ^ 1 << i % 8, *whole[i + 1 :]]) for i, b in enumerate(whole)]
    for content in [*bits, *(whole[:n] for n in range(len(whole)))]:
        file.write_bytes(content)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = AnswerCache(tmp_path)
        answers = {key: found.get(key) for key in texts}
        assert all(answers[key] in (text, None) for key, text in texts.items())
        assert len(said) <= 1 and set(found._texts) <= set(texts)


def test_the_key_arrives_and_stays_out_of_files(
    serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line break at its end is no part of it; an answer that repeats it is stored without it."""
    monkeypatch.setenv("W2S_KEY", f"{KEY}\n")
    server = serve(lambda *_: (200, {}, chat(f"my key is {KEY}")))
    writer = EndpointClient(server.config(key_variable="W2S_KEY"), tmp_path)
    assert writer(["x"], [0]) == ["my key is ***"]
    assert server.keys == [f"Bearer {KEY}"]
    in_url = server.config("/chat/completions?v=1&api-key={key}", key_variable="W2S_KEY")
    assert EndpointClient(in_url, tmp_path)(["y"], [0]) == ["my key is ***"]
    assert server.keys[1] is None and server.paths[1].endswith(f"?v=1&api-key={KEY}")
    assert KEY not in "".join(p.read_text() for p in tmp_path.iterdir())
    monkeypatch.setenv("W2S_KEY", "none")
    server = serve(lambda *_: (200, {}, chat("there is none")))
    assert EndpointClient(server.config(key_variable="W2S_KEY"), tmp_path)(["z"], [0]) == [
        "there is none"
    ]
    for value in (f"{KEY}\nX-Other: 1", f"{KEY} x", f"{KEY}\u2026"):
        monkeypatch.setenv("W2S_KEY", value)
        with pytest.raises(W2SError, match="has spaces or characters that are not ASCII") as err:
            EndpointClient(in_url, tmp_path)
        assert KEY not in str(err.value)


_ODD_KEY = "sk-abc/def+ghi0123456789=="  # with characters that are escaped
_ECHOES = {
    "as it is": str,
    "slashes": lambda key: key.replace("/", "\\/"),
    "JSON": lambda key: key.replace("+", "\\u002b").replace("=", "\\u003D"),
    "all of it": lambda key: "".join(f"\\u{ord(c):04X}" for c in key),
    "JSON in JSON": lambda key: json.dumps(json.dumps(key.replace("/", "\\/")))[3:-3],
    "an address": lambda key: quote(key, safe=""),
    "lower case": lambda key: quote(key, safe="").lower().replace("abc", "%61bc"),
    "an address in an address": lambda key: quote(quote(key, safe=""), safe=""),
    "HTML": lambda key: key.replace("+", "&plus;").replace("/", "&#47;").replace("=", "&#x3D;"),
    "HTML in HTML": lambda key: escape(key.replace("+", "&#43;")),
}


@pytest.mark.parametrize("spell", _ECHOES.values(), ids=_ECHOES.keys())
def test_no_spelling_of_the_key_is_shown(
    serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spell: Callable[[str], str]
) -> None:
    """Servers repeat the headers of a request in an error, or a model in an answer."""
    monkeypatch.setenv("W2S_KEY", _ODD_KEY)
    echoed = f'{{"headers": {{"authorization": "Bearer {spell(_ODD_KEY)}"}}}}'
    for status in (400, 200):
        server = serve(lambda *_, status=status: (status, {}, echoed.encode()))
        with pytest.raises(W2SError, match=r"Bearer (\*\*\*|\\+\*\*\*)\"") as err:
            EndpointClient(server.config(key_variable="W2S_KEY"), tmp_path)(["x"], [0])
        assert "0123456789" not in str(err.value) and "abc" not in str(err.value)
    server = serve(lambda *_: (200, {}, chat(echoed)))
    (answer,) = EndpointClient(server.config(key_variable="W2S_KEY"), tmp_path)(["x"], [0])
    assert "***" in answer and "0123456789" not in answer


@pytest.mark.parametrize("before", [0, 150, 3900, 3990, 4000, 5000, 66_000])
def test_no_part_of_the_key_is_shown(before: int) -> None:
    """Where a long reply is cut, a spelling of the key may be cut too; blanks are not shown."""
    reply = " " * before + "".join(f"\\u{ord(c):04x}" for c in _ODD_KEY) * 40
    for text in (reply, reply.encode(), reply[:-200]):
        assert not re.search("u00", excerpt(text, _ODD_KEY))
    assert excerpt("x " * 9000, "") == "x " * 100


def test_half_a_surrogate_pair(serve: Any, tmp_path: Path) -> None:
    """A text that cannot be encoded is repaired, also when it comes from the stored answers."""
    server = serve(lambda *_: (200, {}, chat("so \ud83d sure")))
    for _ in range(2):
        assert EndpointClient(server.config(), tmp_path)(["x"], [0]) == ["so ? sure"]
    assert len(server.requests) == 1


def test_a_reply_that_never_ends(serve: Any, tmp_path: Path) -> None:
    """``timeout_s`` bounds the whole request, not the pauses in it."""
    server = serve(lambda *_: (200, {"X-Slow": "0.05"}, b" " * 1000))
    with pytest.raises(W2SError, match=r"no whole reply in 0.3 s"):
        EndpointClient(server.config(timeout_s=0.3, retries=0), tmp_path)(["x"], [0])
