"""A real server on this machine that answers as an OpenAI-compatible endpoint does."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from w2s_fast.debate import WriterConfig
from w2s_fast.sampling import _http

KEY = "sk-secret-0123456789"


class Server:
    """Answers what ``reply`` gives, (status, headers, body), for a number and a request."""

    def __init__(self, reply: Callable[[int, dict[str, Any]], tuple[int, dict[str, str], bytes]]):
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.paths: list[str] = []
        server, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    server.requests.append(body)
                    server.keys.append(self.headers.get("Authorization"))
                    server.paths.append(self.path)
                    number = len(server.requests)
                status, headers, text = reply(number, body)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(text)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                pause_s = float(headers.get("X-Slow", 0))
                with contextlib.suppress(OSError):  # the client may be gone
                    for at in range(0, len(text), 100 if pause_s else len(text) or 1):
                        self.wfile.write(text[at : at + 100 if pause_s else None])
                        time.sleep(pause_s)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.base = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def config(self, path: str = "/chat/completions", **changes: Any) -> WriterConfig:
        values = {"model": "strong", "retries": 2, "timeout_s": 5.0, "workers": 3, **changes}
        return WriterConfig(kind="endpoint", url=self.base + path, **values)


def chat(text: str | None) -> bytes:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


def echo(number: int, body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
    return 200, {}, chat(f"on {body['messages'][0]['content']}")


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Server]]:
    monkeypatch.setattr(_http, "BACKOFF_S", 0.01)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    servers: list[Server] = []

    def start(reply: Any = echo) -> Server:
        servers.append(Server(reply))
        return servers[-1]

    yield start
    for server in servers:
        server.http.shutdown()
        server.http.server_close()
