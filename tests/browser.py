"""A headless Chromium that does what a person does: opens a page, clicks, types, looks.

It is spoken to through the DevTools protocol on two pipes, messages of JSON that end in a zero byte, so that nothing
but Chromium is needed.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = [
    "chromium",
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
]
PATIENCE = 60  # seconds, of a busy machine

needs_chromium = pytest.mark.skipif(not shutil.which(CHROMIUM[0]), reason="needs Chromium")


class Browser:
    """One page. ``errors`` is all that went wrong in it, ``requests`` every address that it asked for."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._write, self._read, self._left = to_browser, from_browser, b""
        self._number, self._session = 0, ""
        self.errors: list[str] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Ask for something, and wait for the answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        os.write(
            self._write, json.dumps(message | ({"sessionId": self._session} if self._session else {})).encode() + b"\0"
        )
        while True:
            answer = self._message()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._left:
            received = os.read(self._read, 2**20)
            assert received, "the browser is gone"
            self._left += received
        raw, _, self._left = self._left.partition(b"\0")
        message = json.loads(raw)
        event, about = message.get("method"), message.get("params", {})
        if event == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(about["exceptionDetails"]))
        if event == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning", "assert"):
            self.errors.append(json.dumps(about["args"]))
        if event == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            self.errors.append(json.dumps(about["entry"]))
        if event == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"])
        return message

    def open(self, page: Path, width: int = 1280, height: int = 1500) -> None:
        """Show a file in a window of this size, and wait until it is drawn."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Page.navigate", url=page.as_uri())
        self.wait_for("document.readyState === 'complete' && location.protocol === 'file:'")

    def value(self, expression: str) -> Any:
        """What an expression is in the page; promises are waited for."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait_for(self, expression: str) -> Any:
        """What an expression is as soon as it is true."""
        end = time.monotonic() + PATIENCE
        while not (found := self.value(expression)):
            assert time.monotonic() < end, f"never true: {expression}"
            time.sleep(0.02)
        return found

    def click(self, selector: str) -> None:
        """Press and release the mouse in the middle of an element."""
        x, y = self.place(selector)
        self.point(x, y)
        self.drag(x, y, x, y)

    def place(self, selector: str) -> tuple[float, float]:
        """The middle of an element, scrolled into the window."""
        x, y = self.value(
            f"(() => {{ const one = document.querySelector({json.dumps(selector)}); "
            "one.scrollIntoView({block: 'nearest'}); const box = one.getBoundingClientRect(); "
            "return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        return x, y

    def drag(self, x: float, y: float, to_x: float, to_y: float) -> None:
        """Press the mouse, move it, and release it."""
        left = {"button": "left", "buttons": 1, "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, **left)
        if (x, y) != (to_x, to_y):
            self.call("Input.dispatchMouseEvent", type="mouseMoved", x=to_x, y=to_y, **left)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", x=to_x, y=to_y, **left | {"buttons": 0})

    def point(self, x: float, y: float) -> None:
        """Move the mouse."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def press(self, key: str) -> None:
        """Press and release a key, by its name in the DOM."""
        code = {"Enter": 13, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Escape": 27}[key]
        text = {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, windowsVirtualKeyCode=code, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, windowsVirtualKeyCode=code)

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self.call("Input.insertText", text=text)

    def close(self) -> None:
        """End the browser."""
        self._session = ""
        self.call("Browser.close")

    def screenshot(self) -> bytes:
        """The window as PNG."""
        return b64decode(self.call("Page.captureScreenshot", format="png")["data"])


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A browser with an empty profile in this folder."""
    to_browser, from_browser = os.pipe(), os.pipe()
    # The protocol is spoken on the descriptors 3 and 4: the pipes are put there from out of their way.
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_browser[0], from_browser[1])]
    code = f"import os, sys; os.dup2({ends[0]}, 3); os.dup2({ends[1]}, 4); os.execvp(sys.argv[1], sys.argv[1:])"
    command = [*CHROMIUM, "--remote-debugging-pipe", f"--user-data-dir={profile}"]
    process = subprocess.Popen([sys.executable, "-c", code, *command], pass_fds=ends, stderr=subprocess.DEVNULL)
    for end in (*ends, to_browser[0], from_browser[1]):
        os.close(end)
    try:
        browser = Browser(to_browser[1], from_browser[0])
        yield browser
        browser.close()
        process.wait(PATIENCE)
    finally:
        process.kill()
        process.wait()
        for end in (to_browser[1], from_browser[0]):
            os.close(end)
