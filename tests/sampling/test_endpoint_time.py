"""``timeout_s`` bounds a whole request, and a connection that is cut is a reason to ask again."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from helpers.endpoint import chat

from w2s_fast.errors import W2SError
from w2s_fast.sampling import EndpointConfig, _http
from w2s_fast.sampling.endpoint_client import EndpointClient

TIMEOUT_S = 0.5
OK = b"HTTP/1.1 200 OK\r\n"
Script = Callable[[int], Iterable[bytes]]  # what a server sends to its nth connection


def drip(start: bytes, byte: bytes = b"a") -> Script:
    """Send ``start``, then something every 50 ms without end."""

    def script(number: int) -> Iterator[bytes]:
        yield start
        while True:
            time.sleep(0.05)
            yield byte

    return script


def sized(text: bytes) -> bytes:
    return OK + b"Content-Length: %d\r\n\r\n" % len(text) + text


class Bytes:
    """A server of bytes: reads a request, sends what the script gives, closes the connection."""

    def __init__(
        self, script: Script, *, reads: bool = True, tls: ssl.SSLContext | None = None
    ) -> None:
        self.n_requests = 0
        self.socket = socket.create_server(("127.0.0.1", 0))
        self._script, self._reads, self._tls = script, reads, tls
        threading.Thread(target=self._accept, daemon=True).start()

    def config(self, scheme: str = "http", **changes: Any) -> EndpointConfig:
        url = f"{scheme}://127.0.0.1:{self.socket.getsockname()[1]}/v1/chat/completions"
        values = {"model": "m", "timeout_s": TIMEOUT_S, "retries": 0} | changes
        return EndpointConfig(url=url, **values)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self.socket.accept()
                self.n_requests += 1
                threading.Thread(
                    target=self._serve, args=(client, self.n_requests), daemon=True
                ).start()

    def _serve(self, client: socket.socket, number: int) -> None:
        with suppress(OSError), client:
            if self._tls is not None:
                client = self._tls.wrap_socket(client, server_side=True)
            if self._reads:
                _read_request(client)
            for part in self._script(number):
                client.sendall(part)


def _read_request(client: socket.socket) -> None:
    stream = client.makefile("rb")
    size = 0
    while (line := stream.readline()) not in (b"\r\n", b""):
        name, _, value = line.partition(b":")
        size = int(value) if name.lower() == b"content-length" else size
    stream.read(size)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Bytes]]:
    monkeypatch.setattr(_http, "BACKOFF_S", 0.01)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    servers: list[Bytes] = []

    def start(script: Script, **options: Any) -> Bytes:
        servers.append(Bytes(script, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.socket.close()


HANGS = {
    "headers": drip(OK + b"X-A: "),
    "status line": drip(b"HTTP/1.1 200 "),
    "100 Continue": drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "body of an error": drip(b"HTTP/1.1 400 Bad\r\nContent-Length: 60000\r\n\r\n"),
    "chunk size": drip(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"0"),
    "trailer": drip(OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: a\r\n"),
    "body": drip(OK + b"Content-Length: 60000\r\n\r\n"),
    "body without length": drip(OK + b"\r\n" + chat("yes"), b" "),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("script", HANGS.values(), ids=HANGS.keys())
def test_no_part_of_a_reply_lasts_longer(
    serve: Callable[..., Bytes], script: Script, tmp_path: Path
) -> None:
    client = EndpointClient(serve(script).config(), tmp_path)
    begin = time.monotonic()
    with pytest.raises(W2SError, match=r"in 1 tries \(no whole reply in 0.5 s\)"):
        client(["x"], [0])
    assert time.monotonic() - begin < TIMEOUT_S + 15
    assert not list(tmp_path.iterdir())


@pytest.mark.timeout(60)
def test_neither_does_a_handshake_or_a_proxy(
    serve: Callable[..., Bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = serve(drip(b"\x16\x03\x03\x40\x00", b"\x02"), reads=False)
    begin = time.monotonic()
    with pytest.raises(W2SError, match="no whole reply in 0.5 s"):
        EndpointClient(tls.config("https"), tmp_path)(["x"], [0])
    proxy = serve(drip(b"HTTP/1.1 200 OK\r\nX-A: "))
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.delenv("no_proxy", raising=False)
    address = f"http://127.0.0.1:{proxy.socket.getsockname()[1]}"
    monkeypatch.setenv("https_proxy", address)
    cfg = EndpointConfig(
        url="https://h.invalid/completions", model="m", timeout_s=TIMEOUT_S, retries=0
    )
    with pytest.raises(W2SError, match="no whole reply in 0.5 s"):
        EndpointClient(cfg, tmp_path)(["x"], [0])
    assert proxy.n_requests == 1
    assert time.monotonic() - begin < 2 * TIMEOUT_S + 10


CUTS = {
    "nothing": b"",
    "after the status line": OK,
    "within the headers": OK + b"Content-Type: appl",
    "within a body without length": OK + b'\r\n{"choices": [{"message": {"content": "cut',
    "within a body": OK + b"Content-Length: 99\r\n\r\n{",
    "within a chunk": OK + b"Transfer-Encoding: chunked\r\n\r\nff\r\n{",
    "within the body of an error": b"HTTP/1.1 400 Bad\r\nContent-Length: 99\r\n\r\n" + b"half",
    "no HTTP": b"\x00\xff" * 40_000,
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS.keys())
def test_a_connection_that_is_cut_is_tried_again(
    serve: Callable[..., Bytes], cut: bytes, tmp_path: Path
) -> None:
    server = serve(lambda n: [cut if n < 3 else sized(chat("yes"))])
    cfg = server.config(timeout_s=10.0, retries=2)
    assert EndpointClient(cfg, tmp_path)(["x"], [0]) == ["yes"]
    assert server.n_requests == 3
    always = serve(lambda n: [cut])
    with pytest.raises(W2SError, match="did not answer in 2 tries") as err:
        EndpointClient(always.config(timeout_s=10.0, retries=1), tmp_path / "none")(["x"], [0])
    assert len(str(err.value)) < 600 and "\n" not in str(err.value)


@pytest.mark.parametrize("header", ["", "Transfer-Encoding: chunked\r\n"])
def test_a_whole_reply_needs_no_length(
    serve: Callable[..., Bytes], header: str, tmp_path: Path
) -> None:
    text = chat("yes")
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(text), text) if header else text
    server = serve(lambda n: [OK + header.encode() + b"\r\n" + body])
    assert EndpointClient(server.config(timeout_s=10.0), tmp_path)(["x"], [0]) == ["yes"]


@pytest.mark.timeout(60)
@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl for a certificate")
def test_tls(serve: Callable[..., Bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replies arrive, drips end, and a certificate that is not trusted is refused."""
    certificate = tmp_path / "both.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=x",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    certificate.write_bytes(b"".join((tmp_path / f).read_bytes() for f in ("key.pem", "cert.pem")))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = serve(lambda n: [sized(chat("yes"))] if n == 2 else drip(OK)(n), tls=context)
    with pytest.raises(W2SError, match="certificate verify failed"):
        EndpointClient(server.config("https", timeout_s=20.0), tmp_path / "out")(["x"], [0])
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    trusting = EndpointClient(server.config("https", timeout_s=20.0), tmp_path / "out")
    assert trusting(["x"], [0]) == ["yes"]
    with pytest.raises(W2SError, match="no whole reply in 1 s"):
        EndpointClient(server.config("https", timeout_s=1.0), tmp_path / "out")(["y"], [0])
