"""A headless Chromium, told what to do over its DevTools protocol."""

from __future__ import annotations

import base64
import contextlib
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
_START_S = 60.0


class Browser:
    """One page.

    Attributes:
        complaints: errors that the page's scripts raised or its console was told.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._next = 0
        self.complaints: list[str] = []

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A call of the protocol, and its result."""
        self._next += 1
        await self._socket.send_json({"id": self._next, "method": method, "params": parameters})
        while True:
            message = await self._socket.receive_json(timeout=_START_S)
            if message.get("id") == self._next:
                assert "error" not in message, message
                return message["result"]
            self._listen(message)

    def _listen(self, message: dict[str, Any]) -> None:
        if message.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(str(message["params"]["exceptionDetails"]))
        if message.get("method") == "Log.entryAdded":
            self.complaints.append(message["params"]["entry"]["text"])

    async def value(self, expression: str) -> Any:
        """What a JavaScript expression is worth."""
        found = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def wait_for(self, expression: str, seconds: float = 60.0) -> Any:
        """Waits until an expression is true, and returns it."""
        until = time.monotonic() + seconds
        while not (found := await self.value(expression)):
            assert time.monotonic() < until, f"never true: {expression}"
            await self.call("Runtime.evaluate", expression="1")
            time.sleep(0.1)
        return found

    async def open(self, url: str) -> None:
        """Goes to a page."""
        await self.call("Page.navigate", url=url)

    async def prefer(self, scheme: str) -> None:
        """ "light" or "dark"."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        await self.call("Emulation.setEmulatedMedia", features=features)

    async def picture(self, path: Path) -> None:
        """Writes what is seen, as PNG."""
        found = await self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(found["data"]))


@contextlib.asynccontextmanager
async def browser(profile: Path, width: int = 1080, height: int = 860) -> AsyncIterator[Browser]:
    """A browser with one empty page.

    Args:
        profile: an empty folder of its own.
    """
    assert CHROMIUM is not None
    process = subprocess.Popen(
        [
            *(CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *("--remote-debugging-port=0", f"--user-data-dir={profile}", "--no-first-run"),
            *(f"--window-size={width},{height}", "about:blank"),
        ],
        stderr=subprocess.DEVNULL,
    )
    try:
        address = profile / "DevToolsActivePort"
        until = time.monotonic() + _START_S
        while not address.exists() or "\n" not in address.read_text():
            assert process.poll() is None, "Chromium ended"
            assert time.monotonic() < until, "Chromium did not start"
            time.sleep(0.1)
        port = address.read_text().splitlines()[0]
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json") as answer:
                pages = [t for t in await answer.json() if t["type"] == "page"]
            async with session.ws_connect(
                pages[0]["webSocketDebuggerUrl"], max_msg_size=2**26
            ) as socket:
                page = Browser(socket)
                for domain in ("Page", "Runtime", "Log"):
                    await page.call(f"{domain}.enable")
                size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
                await page.call("Emulation.setDeviceMetricsOverride", **size)
                yield page
    finally:
        process.terminate()
        process.wait(30)
