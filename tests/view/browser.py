"""A headless Chromium to look at pages with, spoken to through a pipe in its debugging protocol: no library needed."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

_FLAGS = (
    "--headless=new", "--no-sandbox", "--no-first-run", "--disable-extensions", "--disable-background-networking",
    "--disable-dev-shm-usage", "--mute-audio", "--hide-scrollbars", "--force-color-profile=srgb",
    "--remote-debugging-pipe",
)  # fmt: skip
SOFTWARE = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader")


class Browser:
    """One page of one browser process.

    said: console messages, exceptions and log entries of the page that are errors or warnings.
    requested: addresses that the page asked for.
    """

    def __init__(self, profile: Path, *flags: str, size: tuple[int, int] = (960, 600), patience: float = 120) -> None:
        assert CHROMIUM is not None
        self.said: list[str] = []
        self.requested: list[str] = []
        self._patience = patience
        self._id = 0
        self._answers: dict[int, dict[str, Any]] = {}
        self._unread = b""
        self._session: str | None = None
        commands, self._write = os.pipe()
        self._read, replies = os.pipe()
        window = f"--window-size={size[0]},{size[1]}"
        arguments = [CHROMIUM, *_FLAGS, *(flags or SOFTWARE), window, f"--user-data-dir={profile}", "about:blank"]

        def place_pipes() -> None:  # in the child: the browser reads 3 and writes 4, which may be other ends just now
            ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (commands, replies)]
            for place, end in zip((3, 4), ends, strict=True):
                os.dup2(end, place)

        self._process = subprocess.Popen(
            arguments, preexec_fn=place_pipes, pass_fds=(3, 4), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(commands)
        os.close(replies)
        try:
            self._attach(*size)
        except BaseException:
            self.close()
            raise

    def _attach(self, width: int, height: int) -> None:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.resize(width, height)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End this browser, and no other."""
        try:
            self._session = None
            self.call("Browser.close")
            self._process.wait(20)
        except (OSError, RuntimeError, TimeoutError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        os.close(self._write)
        os.close(self._read)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer. Raises: RuntimeError with what was refused; TimeoutError."""
        self._id += 1
        message = {"id": self._id, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + self._patience
        while self._id not in self._answers:
            self._receive(until, method)
        answer = self._answers.pop(self._id)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _receive(self, until: float, method: str) -> None:
        if not select.select([self._read], [], [], max(0, until - time.monotonic()))[0]:
            raise TimeoutError(f"the browser did not answer {method} in {self._patience:g} s")
        data = os.read(self._read, 1 << 20)
        if not data:
            raise RuntimeError(f"the browser ended in {method}")
        *messages, self._unread = (self._unread + data).split(b"\0")
        for message in map(json.loads, messages):
            if "id" in message:
                self._answers[message["id"]] = message
            else:
                self._note(message["method"], message.get("params", {}))

    def _note(self, method: str, event: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requested.append(event["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.said.append(str(event["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and event["type"] in ("error", "warning", "assert"):
            self.said.append(str(event["args"]))
        elif method == "Log.entryAdded" and event["entry"]["level"] in ("error", "warning"):
            self.said.append(event["entry"]["text"])

    def open(self, page: Path, fragment: str = "") -> None:
        """Go to a file (and a fragment of it), and wait until its script has run."""
        self.call("Page.navigate", url="about:blank")  # to another fragment of the same file is no new beginning
        self.call("Page.navigate", url=page.as_uri() + (f"#{fragment}" if fragment else ""))
        until = time.monotonic() + self._patience
        while not self.run("document.readyState === 'complete' && location.protocol === 'file:'"):
            if time.monotonic() > until:
                raise TimeoutError(f"{page} was not loaded in {self._patience:g} s")
            time.sleep(0.05)

    def run(self, expression: str) -> Any:
        """The value of an expression in the page; a promise is waited for. Raises: RuntimeError where it throws."""
        result = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(str(result["exceptionDetails"]))
        return result["result"].get("value")

    def next_frame(self) -> None:
        """Wait until what was changed has been drawn."""
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

    def resize(self, width: int, height: int) -> None:
        """Make the window so large."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def screenshot(self) -> bytes:
        """The page as a PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
