"""Upload of exported models: the hub's own client against a server on this machine."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from w2s_fast.cli.main import main
from w2s_fast.errors import W2SError
from w2s_fast.pipeline.push import check_push, push

pytest.importorskip("huggingface_hub")


class Hub(ThreadingHTTPServer):
    """The calls of an upload, with what was sent.

    Attributes:
        created: Bodies of the calls that create a repository.
        files: Content by path of the commits.
        refuse: Status with which every call is refused; 0: none.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.created: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.refuse = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self._body()
        if self.server.refuse:
            self._answer({"error": "refused here"}, self.server.refuse)
        elif self.path == "/api/repos/create":
            created = json.loads(body)
            self.server.created.append(created)
            self._answer({"url": f"{self.server.url}/{created['organization']}/{created['name']}"})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            regular = {"uploadMode": "regular", "shouldIgnore": False}
            self._answer({"files": [{"path": f["path"], **regular} for f in files]})
        elif "/commit/" in self.path:
            for line in filter(None, body.splitlines()):
                row = json.loads(line)
                if row["key"] == "file":
                    value = row["value"]
                    self.server.files[value["path"]] = base64.b64decode(value["content"])
            self._answer(
                {
                    "success": True,
                    "commitOid": "0" * 40,
                    "commitUrl": f"{self.server.url}/a/b/commit/0",
                }
            )
        else:
            self._answer({"success": True})

    def do_GET(self) -> None:
        self._answer({"sha": "0" * 40, "siblings": [], "id": "a/b", "private": True})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, value: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tmp_path / "model"
    model.mkdir()
    (model / "README.md").write_text("# a card\n")
    (model / "config.json").write_text("{}\n")
    return model


@pytest.mark.parametrize("public", [False, True])
def test_every_file_is_uploaded_and_a_new_repository_is_private(
    hub: Hub, folder: Path, public: bool
) -> None:
    push(folder, "someone/student", public=public)
    assert hub.files == {p.name: p.read_bytes() for p in folder.iterdir()}
    (created,) = hub.created
    assert created["name"] == "student" and created["organization"] == "someone"
    private = created.get("private", created.get("visibility") == "private")
    assert private is not public


@pytest.mark.parametrize("status", [401, 403, 500])
def test_a_refusal_names_the_folder_that_stays(hub: Hub, folder: Path, status: int) -> None:
    hub.refuse = status
    with pytest.raises(W2SError, match="could not be written.*hf upload someone/student"):
        push(folder, "someone/student")
    assert len(list(folder.iterdir())) == 2 and hub.files == {}


def test_a_server_that_is_gone_is_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch, hub: Hub
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(W2SError, match="could not be written"):
        push(folder, "someone/student")


@pytest.mark.parametrize("name", ["student", "a/b/c", "a b/c", "/a", "../a"])
def test_a_bad_name_is_an_error_before_anything_is_exported(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--stage", "student/0/xent", "--to", str(tmp_path / "m"), "--push", name]
    assert main(["export", *options]) == 2
    assert "expected OWNER/NAME of a model on the hub" in capsys.readouterr().err


def test_without_a_token_nothing_is_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(W2SError, match="hf auth login"):
        check_push("someone/student")


def test_public_alone_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--stage", "student/0/xent", "--to", str(tmp_path / "m"), "--public"]
    assert main(["export", *options]) == 2
    assert "--public without --push" in capsys.readouterr().err
