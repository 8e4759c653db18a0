"""Malformed replies of an endpoint that writes transcripts, from a real server on this machine."""

from __future__ import annotations

import functools
import gzip
import json
from pathlib import Path
from random import Random
from typing import Any

from helpers.endpoint import Server

from campaigns.malformed.attempt import SECRET, Attempt
from campaigns.malformed.inputs import run, toy_settings, write_settings
from campaigns.malformed.settings import Make

Reply = tuple[int, dict[str, str], bytes]


@functools.cache
def _server() -> tuple[Server, list[Reply]]:
    """Return the one server of this process, and the one reply that it gives."""
    reply: list[Reply] = []
    return Server(lambda number, body: reply[0]), reply


def _replies(*replies: Reply, may_pass: bool = False, **writer: Any) -> Make:
    def make(folder: Path, rng: Random) -> Attempt:
        server, reply = _server()
        reply[:] = [rng.choice(replies)]
        settings = toy_settings(
            methods=["debate"],
            transcript_writer={
                "kind": "endpoint", "url": f"{server.base}/chat/completions", "model": "strong",
                "retries": 0, "timeout_s": 3.0, "key_variable": "CAMPAIGN_KEY", **writer,
            },
        )  # fmt: skip
        settings["task"] |= {"n_weak": 4, "n_transfer": 4, "n_test": 4}
        return Attempt(
            run(write_settings(folder / "run.yaml", settings)),
            ("127.0.0.1",),
            may_pass,
            {"CAMPAIGN_KEY": SECRET, "NO_PROXY": "127.0.0.1"},
            computes=("transcripts",),
        )

    return make


def _ok(*bodies: bytes | str, may_pass: bool = False, **headers: str) -> Make:
    return _replies(
        *((200, headers, b if isinstance(b, bytes) else b.encode()) for b in bodies),
        may_pass=may_pass,
    )


def _choice(value: Any) -> str:
    return json.dumps({"choices": [{"message": value}]})


_RIGHT = _choice({"content": "yes"})
FAULTS: dict[str, Make] = {
    "no reply": _ok(""),
    "no JSON": _ok("<html>busy</html>", "yes", "{", "data: {}\n\n", "\x00", "NaN"),
    "other JSON": _ok("[]", "3", "null", '"a"', "{}", "true"),
    "no choices": _ok('{"choices": []}', '{"choices": null}', '{"choices": {}}', '{"choices": 3}'),
    "other choices": _ok('{"choices": [3]}', '{"choices": [null]}', '{"choices": [[]]}'),
    "no message": _ok(_choice(None), _choice(3), _choice([]), _choice({}), _choice("yes")),
    "other content": _ok(*(_choice({"content": c}) for c in (3, [], {}, True, ["yes"], 0.5))),
    "empty content": _ok(_choice({"content": ""}), _choice({"content": None}),
        _choice({"content": " "})),
    "nested deeply": _ok('{"choices": ' + "[" * 200_000, '{"a":' * 50_000),
    "digits": _ok('{"choices": [' + "9" * 6000 + "]}"),
    "other encoding": _ok(_RIGHT.encode("utf-16"), b"\xff\xfe\xfd", _RIGHT.encode("utf-32"),
        may_pass=True),
    "byte order mark": _ok(b"\xef\xbb\xbf" + _RIGHT.encode(), may_pass=True),
    "packed": _ok(gzip.compress(_RIGHT.encode()), gzip.compress(b"x")[:9],
        **{"Content-Encoding": "gzip"}),
    "key in the reply": _ok(SECRET, f'{{"error": "Bearer {SECRET}"}}', _choice([SECRET])),
    "half a surrogate pair": _ok('{"choices": [{"message": {"content": "\\ud800"}}]}',
        may_pass=True),
    "control characters": _ok(_choice({"content": "\x1b[2J\x07\r\nyes"}), may_pass=True),
    "long": _ok(_choice({"content": "yes " * 200_000})),
    "too long": _ok(b" " * (17 << 20)),
    "shorter than said": _ok(_RIGHT, **{"Content-Length": "999999"}),
    "longer than said": _ok(_RIGHT, **{"Content-Length": "7"}),
    "length is no number": _ok(_RIGHT, **{"Content-Length": "many"}, may_pass=True),
    "redirect": _replies(
        *((code, {"Location": to}, b"") for code in (301, 302, 307, 308)
          for to in ("http://127.0.0.1:9/v1", "file:///etc/passwd", "", "/"))
    ),
    "status": _replies(*((code, {}, b"why") for code in (400, 402, 404, 405, 413, 418, 422, 501,
        599, 999))),
    "not allowed": _replies(*((code, {}, SECRET.encode()) for code in (401, 403))),
    "busy": _replies(*((code, {}, b"later") for code in (408, 409, 425, 429, 500, 502, 503, 504))),
    "busy until": _replies(
        *((429, {"Retry-After": after}, b"") for after in ("x", "-1", "nan", "inf", "1e999",
        "Wed, 21"))
    ),
    "error in a right reply": _ok('{"error": {"message": "overloaded"}}',
        '{"error": "quota", "choices": []}'),
    "nothing in the body": _replies((204, {}, b""), (205, {}, b""), (206, {}, b"")),
}  # fmt: skip
