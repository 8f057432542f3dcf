"""A headless Chromium on a pipe, by its DevTools protocol: nothing to install beside the browser."""

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

PATH = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(PATH is None, reason="needs Chromium: apt-get install chromium")

_TIMEOUT_S = 60.0
_KEYS = {
    "Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowRight": 39,
    "ArrowUp": 38, "ArrowDown": 40,
}  # fmt: skip


class Chromium:
    """A browser with one page, which hears of every request and every word on the console."""

    def __init__(self, folder: Path) -> None:
        assert PATH is not None
        ours, theirs = _pipe(), _pipe()
        self._to, self._from = theirs[1], ours[0]
        flags = [
            "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-breakpad",
            "--disable-crash-reporter", "--host-resolver-rules=MAP * ~NOTFOUND", "--hide-scrollbars",
            f"--user-data-dir={folder / 'profile'}", "--remote-debugging-pipe", "about:blank",
        ]  # fmt: skip
        # A home of its own: the real one may be read-only.
        home = {"HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "XDG_CACHE_HOME": str(folder)}
        self._pid = os.posix_spawn(
            PATH,
            [PATH, *flags],
            {**os.environ, **home},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_DUP2, theirs[0], 3),
                (os.POSIX_SPAWN_DUP2, ours[1], 4),
            ],
            setpgroup=0,
        )
        os.close(theirs[0])
        os.close(ours[1])
        self._left, self._count = b"", 0
        self.requests: list[str] = []
        self.errors: list[str] = []
        self._loaded = False
        self._session = ""
        (target,) = (one for one in self.call("Target.getTargets")["targetInfos"] if one["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        """End the browser and what it started."""
        for descriptor in (self._to, self._from):
            os.close(descriptor)
        deadline = time.monotonic() + 10  # a browser ends when its pipe does
        while os.waitpid(self._pid, os.WNOHANG) == (0, 0):
            if time.monotonic() > deadline:
                os.killpg(self._pid, signal.SIGKILL)
                os.waitpid(self._pid, 0)
                break
            time.sleep(0.02)

    def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        """What a command of the protocol gives; raises AssertionError where it fails."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": arguments}
        if self._session:
            message["sessionId"] = self._session
        text = json.dumps(message).encode() + b"\0"
        while text:
            text = text[os.write(self._to, text) :]
        while True:
            answer = self._read()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return answer["result"]

    def open(self, path: Path, *, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
        """Load a page, with an empty book of requests and errors."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.requests, self.errors, self._loaded = [], [], False
        self.call("Page.navigate", url=path.as_uri())
        while not self._loaded:
            self._read()

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        told = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def press(self, key: str, times: int = 1) -> None:
        """Press a key, or type a letter."""
        code = _KEYS.get(key, ord(key.upper()[0]))
        common = {"key": key, "windowsVirtualKeyCode": code}
        text = {"Enter": "\r", " ": " "}.get(key, key if len(key) == 1 else "")
        for _ in range(times):
            kind = "keyDown" if text else "rawKeyDown"
            self.call("Input.dispatchKeyEvent", type=kind, **common, **({"text": text} if text else {}))
            self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def picture(self, path: Path, *, whole: bool = False, height: int = 0) -> Path:
        """A screenshot, of the whole page or its top."""
        clip = {}
        if height:
            size = self.call("Page.getLayoutMetrics")["cssLayoutViewport"]
            clip = {"clip": {"x": 0, "y": 0, "width": size["clientWidth"], "height": height, "scale": 1}}
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=whole or bool(height), **clip)
        path.write_bytes(base64.b64decode(shot["data"]))
        return path

    def _read(self) -> dict[str, Any]:
        """The next answer or event; notes what the event says."""
        while b"\0" not in self._left:
            ready, _, _ = select.select([self._from], [], [], _TIMEOUT_S)
            part = os.read(self._from, 1 << 20) if ready else b""
            assert part, "Chromium does not answer"
            self._left += part
        text, self._left = self._left.split(b"\0", 1)
        told = json.loads(text)
        method, said = told.get("method"), told.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(said["request"]["url"])
        elif method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Runtime.exceptionThrown":
            self.errors.append(str(said["exceptionDetails"]))
        elif method == "Log.entryAdded":
            self.errors.append(said["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and said["type"] in ("error", "warning"):
            self.errors.append(str(said["args"]))
        return told


def _pipe() -> tuple[int, int]:
    """A pipe beyond the numbers that the browser needs for its own ends."""
    ends = os.pipe()
    high = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    return high[0], high[1]
