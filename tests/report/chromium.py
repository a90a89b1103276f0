"""A headless Chromium for tests, driven by its DevTools protocol over two pipes: no package is needed for it."""

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

_FLAGS = [
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    *("--disable-extensions", "--disable-background-networking", "--remote-debugging-pipe"),
]


class Tab:
    """A page that is open in the browser.

    Attributes:
        complaints: errors and warnings of the console, exceptions, and what the content policy has blocked.
        requests: addresses of everything that was asked for, but for ``data:``.
    """

    def __init__(self, to_browser: int, from_browser: int, patience: float = 60.0) -> None:
        self._to, self._from, self._patience = to_browser, from_browser, patience
        self._number, self._session, self._left = 0, "", b""
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._loaded: set[str] = set()  # navigations that have come to their end
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Page.setLifecycleEventsEnabled", enabled=True)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and wait for its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer}"
                return dict(answer["result"])
            self._note(answer)

    def _receive(self) -> dict[str, Any]:
        until = time.monotonic() + self._patience
        while b"\0" not in self._left:
            ready, _, _ = select.select([self._from], [], [], max(0.0, until - time.monotonic()))
            assert ready, "the browser does not answer"
            self._left += os.read(self._from, 1 << 16)
        first, _, self._left = self._left.partition(b"\0")
        return dict(json.loads(first))

    def _note(self, event: dict[str, Any]) -> None:
        name, found = event.get("method", ""), event.get("params", {})
        if name == "Page.lifecycleEvent" and found["name"] == "load":
            self._loaded.add(found["loaderId"])
        elif name == "Runtime.exceptionThrown":
            self.complaints.append(str(found["exceptionDetails"]))
        elif name == "Log.entryAdded" and found["entry"]["level"] in ("error", "warning"):
            self.complaints.append(found["entry"]["text"])
        elif name == "Runtime.consoleAPICalled" and found["type"] in ("error", "warning", "assert"):
            self.complaints.append(str(found["args"]))
        elif name == "Network.requestWillBeSent" and not found["request"]["url"].startswith("data:"):
            self.requests.append(found["request"]["url"])

    def open(self, page: Path) -> float:
        """Open a file and wait until it is loaded; returns the seconds that took."""
        start = time.perf_counter()
        navigation = self.call("Page.navigate", url=page.resolve().as_uri())["loaderId"]
        while navigation not in self._loaded:
            self._note(self._receive())
        return time.perf_counter() - start

    def run(self, script: str) -> Any:
        """Value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def show(self, width: int, height: int, dark: bool = False, scripts: bool = True) -> None:
        """Set the size of the window in pixels, the colour scheme, and whether JavaScript runs."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Emulation.setScriptExecutionDisabled", value=not scripts)

    def place_of(self, script: str) -> tuple[float, float]:
        """Centre of an element in the window, scrolled into view."""
        centre = self.run(
            f"(() => {{ const e = {script}; e.scrollIntoView({{block: 'center', behavior: 'instant'}}); "
            "const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        return float(centre[0]), float(centre[1])

    def click(self, x: float, y: float) -> None:
        """Press and release the left button at a place in the window."""
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def press(self, key: str) -> None:
        """Press and release a key, such as ``"ArrowRight"``."""
        codes = {"ArrowRight": 39, "ArrowLeft": 37, "Home": 36, "End": 35, "Enter": 13}
        text = {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=codes[key], **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=codes[key])

    def picture(self, whole: bool = False) -> bytes:
        """A PNG of the window, or of the whole page."""
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(answer["data"])


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Tab]:
    """A tab of a new browser, which is ended afterwards.

    Args:
        profile: an empty folder.
    """
    assert CHROMIUM is not None
    command_read, command_write = os.pipe()
    answer_read, answer_write = os.pipe()
    # The browser reads from descriptor 3 and writes to 4.
    actions = [(os.POSIX_SPAWN_DUP2, command_read, 100), (os.POSIX_SPAWN_DUP2, answer_write, 101)]
    actions += [(os.POSIX_SPAWN_DUP2, 100, 3), (os.POSIX_SPAWN_DUP2, 101, 4)]
    quiet = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_WRONLY, 0) for number in (1, 2)]
    process = os.posix_spawn(
        CHROMIUM,
        [CHROMIUM, *_FLAGS, f"--user-data-dir={profile}"],
        os.environ,
        file_actions=[*actions, *quiet],
        setpgroup=0,
    )
    for descriptor in (command_read, answer_write):
        os.close(descriptor)
    try:
        yield Tab(command_write, answer_read)
    finally:
        for descriptor in (command_write, answer_read):
            os.close(descriptor)
        os.killpg(process, signal.SIGKILL)
        os.waitpid(process, 0)
