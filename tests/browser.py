"""Debian's Chromium without a window, driven over a pipe by its DevTools protocol.

Standard library only: the protocol over a pipe is JSON with a NUL after each message.
"""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

PATIENCE_SEC = 60


class Browser:
    """One page, created by `opened`."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read = write, read
        self._buffer = b""
        self._last = 0
        self._session = ""
        self.console: list[str] = []

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a protocol command and return its result."""
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._last:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result
            if answer.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown"):
                self.console.append(json.dumps(answer["params"]))

    def attach(self) -> None:
        """Open a page and send all further commands to it."""
        page = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def go(self, address: str) -> None:
        self.call("Page.navigate", url=address)

    def value(self, script: str) -> Any:
        """Evaluate a JavaScript expression in the page; a promise is awaited."""
        done = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def wait(self, script: str, seconds: float = 20) -> None:
        """Wait until a JavaScript expression is true; an exception counts as false."""
        end = time.monotonic() + seconds
        while not self.value(f"(() => {{ try {{ return !!({script}); }} catch {{ return false; }} }})()"):
            assert time.monotonic() < end, f"not within {seconds} s: {script}\n{self.text()}"
            time.sleep(0.1)

    def text(self) -> str:
        """The visible text of the page."""
        return str(self.value("document.body ? document.body.innerText : ''"))

    def look(self, *, width: int, height: int = 900, dark: bool = False) -> None:
        """Set the screen size (CSS pixels) and the preferred colour scheme."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 640
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, file: Path) -> None:
        picture = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(base64.b64decode(picture))

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], PATIENCE_SEC)
            assert ready, f"Chromium sent nothing for {PATIENCE_SEC} s"
            part = os.read(self._read, 1 << 20)
            assert part, "Chromium has ended"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        received: dict[str, Any] = json.loads(message)
        return received


@contextlib.contextmanager
def opened(enter: Sequence[str] = ()) -> Iterator[Browser]:
    """A running Chromium with an empty page; `enter` is a command prefix, such as nsenter with its arguments."""
    program = shutil.which("chromium")
    assert program, "no chromium here: apt install chromium"
    profile = tempfile.mkdtemp(prefix="citadel-browser-")
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    words = [
        *enter, program, "--headless=new", "--remote-debugging-pipe", f"--user-data-dir={profile}",
        # The pages are our own, and Chromium's sandbox does not work as root or in a container.
        "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
        "--no-first-run", "--no-proxy-server", "--hide-scrollbars", "--lang=en-GB",
    ]  # fmt: skip
    # The protocol's pipe is on descriptors 3 and 4.
    shell = ["bash", "-c", 'in=$1 out=$2; shift 2; exec "$@" 3<&"$in" 4>&"$out"', "bash"]
    process = subprocess.Popen(
        [*shell, str(theirs_in), str(theirs_out), *words], pass_fds=(theirs_in, theirs_out),
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        browser = Browser(ours_out, ours_in)
        browser.attach()
        yield browser
    finally:
        os.close(ours_out)
        os.close(ours_in)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(profile, ignore_errors=True)
