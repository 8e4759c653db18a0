"""Drive a headless Chromium over its DevTools protocol; Debian's package has all that it needs."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

REQUIRE = "W2S_REQUIRE_CHROMIUM"  # 1: a missing browser is an error, as in CI
_NAMES = ("chromium", "chromium-browser", "google-chrome")
_START_S, _CALL_S = 60, 60


def find_chromium() -> str:
    """Return the path of a browser; skip the test, or fail where one is required."""
    path = next((p for name in _NAMES if (p := shutil.which(name))), None)
    if path is None and os.environ.get(REQUIRE) == "1":
        pytest.fail(f"no Chromium in PATH, and {REQUIRE}=1: apt-get install chromium")
    if path is None:
        pytest.skip("no Chromium in PATH")
    return path


class Tab:
    """One page of a browser, and what it has reported.

    Attributes:
        errors: Errors and warnings of the console, and exceptions.
        requests: Addresses that the page has asked for.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: Any) -> None:
        self._loop, self._socket, self._number = loop, socket, 0
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._loaded = False

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        return self._loop.run_until_complete(asyncio.wait_for(self._call(method, params), _CALL_S))

    async def _call(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": params})
        while True:
            message = await self._socket.receive_json()
            if message.get("id") == self._number:
                assert "error" not in message, (method, message["error"])
                return message["result"]
            self._note(message)

    def _note(self, event: dict[str, Any]) -> None:
        name, params = event.get("method"), event.get("params", {})
        if name == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(params["exceptionDetails"])[:500])
        elif name == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.errors.append(json.dumps(params["args"])[:500])
        elif name == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.errors.append(params["entry"]["text"])
        elif name == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif name == "Page.loadEventFired":
            self._loaded = True

    def open(self, path: Path) -> None:
        """Load a file and wait until it is shown."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self._loaded = False
        self.call("Page.navigate", url=path.as_uri())
        deadline = time.monotonic() + _CALL_S
        while not self._loaded:
            assert time.monotonic() < deadline, f"{path} did not load"
            self.evaluate("0")
            time.sleep(0.02)

    def view(self, width: int, height: int = 800, *, dark: bool = False) -> None:
        """Set the size of the window and the colour scheme."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def evaluate(self, script: str) -> Any:
        """Return the value of a JavaScript expression."""
        result = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """Write the whole page as PNG."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextlib.contextmanager
def chromium_tab(folder: Path) -> Iterator[Tab]:
    """Start a browser, yield an empty tab, and end the browser.

    Args:
        folder: Empty folder for its profile.
    """
    command = [
        find_chromium(), "--headless", "--disable-gpu", "--remote-debugging-port=0",
        "--no-first-run", "--disable-background-networking", "--disable-dev-shm-usage",
        f"--user-data-dir={folder}", "about:blank",
    ]  # fmt: skip
    if os.geteuid() == 0:
        command.insert(1, "--no-sandbox")  # Chromium has no sandbox for root
    with open(folder / "browser.txt", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    loop = asyncio.new_event_loop()
    try:
        port = _port(folder, process)
        session, socket = loop.run_until_complete(_connect(port))
        try:
            yield Tab(loop, socket)
        finally:
            loop.run_until_complete(session.close())
    finally:
        process.terminate()
        process.wait(20)
        loop.close()


def _port(folder: Path, process: subprocess.Popen[bytes]) -> int:
    deadline, path = time.monotonic() + _START_S, folder / "DevToolsActivePort"
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and (lines := path.read_text().splitlines()):
            return int(lines[0])
        time.sleep(0.05)
    raise AssertionError(f"Chromium did not start: {(folder / 'browser.txt').read_text()[-800:]}")


async def _connect(port: int) -> tuple[Any, Any]:
    import aiohttp

    session = aiohttp.ClientSession()
    async with session.get(f"http://127.0.0.1:{port}/json/list") as reply:
        pages = await reply.json()
    address = next(p["webSocketDebuggerUrl"] for p in pages if p["type"] == "page")
    return session, await session.ws_connect(address, max_msg_size=0)
