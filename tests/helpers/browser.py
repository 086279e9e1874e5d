"""A headless Chromium that opens a page and says what it saw.

It speaks the Chrome DevTools Protocol (https://chromedevtools.github.io/devtools-protocol/) through
a pair of pipes, so that it takes no package and no port.
"""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, NamedTuple

PATIENCE = 120  # seconds
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class Seen(NamedTuple):
    """What a browser saw of a page."""

    requests: list[str]  # every address that it asked for
    complaints: list[str]  # of the console, the page's policy and the page's own errors
    window: int  # its width, in pixels of the page
    content: int  # what the page takes: more than the window's means that it scrolls sideways
    background: str  # the computed colour of the page
    picture: bytes  # PNG of the whole page, where it was asked for


def find() -> str | None:
    """A Chromium on this machine."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


@contextlib.contextmanager
def browsing(profile: Path) -> Generator[Callable[..., Seen]]:
    """``see(path, width=390, dark=True)``: a file in a window of a width, in light or dark.

    ``picture=True`` takes a picture of it, which takes seconds.
    """
    with _browser(profile) as browser:

        def see(path: Path, *, width: int, dark: bool, picture: bool = False) -> Seen:
            return _see(browser, path, width, dark, picture)

        yield see


def _see(browser: "_Browser", path: Path, width: int, dark: bool, picture: bool) -> Seen:
    target = browser.call("Target.createTarget", url="about:blank")["targetId"]
    session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def call(method: str, **parameters: Any) -> dict[str, Any]:
        return browser.call(method, session=session, **parameters)

    def ask(expression: str) -> Any:
        return call("Runtime.evaluate", expression=expression)["result"]["value"]

    for domain in ("Page", "Network", "Log", "Runtime"):
        call(f"{domain}.enable")
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    call("Emulation.setDeviceMetricsOverride", **size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    call("Emulation.setEmulatedMedia", features=[scheme])
    browser.events.clear()
    call("Page.navigate", url=path.resolve().as_uri())
    browser.wait("Page.loadEventFired")
    shot = call("Page.captureScreenshot", captureBeyondViewport=True) if picture else {"data": ""}
    seen = Seen(
        requests=[e["params"]["request"]["url"] for e in browser.heard("requestWillBeSent")],
        complaints=[
            json.dumps(event["params"])
            for name in ("entryAdded", "consoleAPICalled", "exceptionThrown")
            for event in browser.heard(name)
        ],
        window=int(ask("innerWidth")),
        content=int(ask("document.documentElement.scrollWidth")),
        background=ask("getComputedStyle(document.body).backgroundColor"),
        picture=base64.b64decode(shot["data"]),
    )
    browser.call("Target.closeTarget", targetId=target)
    return seen


class _Browser:
    """A process, the two ends of its pipes, and the events that it sent."""

    def __init__(self, asks: int, answers: int) -> None:
        self.asks, self.answers = asks, answers
        self.events: list[dict[str, Any]] = []
        self.rest, self.number = b"", 0

    def call(self, method: str, *, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self.asks, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self.number:
            self.events.append(answer)
        assert "error" not in answer, (method, answer)
        return answer["result"]

    def wait(self, name: str) -> None:
        while not any(event.get("method") == name for event in self.events):
            self.events.append(self._next())

    def heard(self, name: str) -> list[dict[str, Any]]:
        return [e for e in self.events if e.get("method", "").endswith(f".{name}")]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.answers], [], [], PATIENCE)
            assert ready, f"the browser has said nothing for {PATIENCE} s"
            part = os.read(self.answers, 2**20)
            assert part, "the browser has gone"
            self.rest += part
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)


@contextlib.contextmanager
def _browser(profile: Path) -> Generator[_Browser]:
    program = find()
    assert program, "no Chromium"
    theirs_in, asks = os.pipe()
    answers, theirs_out = os.pipe()
    # It reads from descriptor 3 and writes to 4; the shell puts the pipes there.
    words = [
        *(program, "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu"),
        *("--disable-dev-shm-usage", "--hide-scrollbars", "--no-first-run"),
        *(f"--user-data-dir={profile}", "about:blank"),
    ]
    shell = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
    process = subprocess.Popen(
        ["bash", "-c", shell, "bash", *words],
        pass_fds=(theirs_in, theirs_out),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        yield _Browser(asks, answers)
    finally:
        os.close(asks)  # which tells it to end
        os.close(answers)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
