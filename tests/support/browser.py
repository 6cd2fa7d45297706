"""A headless Chromium, driven over the plain HTTP of its chromedriver (https://www.w3.org/TR/webdriver2/).

`SESSIONKIT_CHROMIUM=1` promises it: then the tests that are marked `browser` fail where it cannot be had. Without the promise
they run where `chromium` and `chromedriver` are on PATH (Debian's packages `chromium` and `chromium-driver`), and are
deselected elsewhere.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
import urllib.error
import urllib.request
from contextlib import suppress
from typing import Any

VARIABLE = "SESSIONKIT_CHROMIUM"
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
"""The key under which the protocol hands an element over."""


class NoBrowser(Exception):
    """It was promised, or found, and cannot be had; the text says why."""


def promised() -> bool:
    return os.environ.get(VARIABLE, "") not in {"", "0"}


def programs() -> tuple[str, str] | None:
    """Find the browser and its driver."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    return None if browser is None or driver is None else (browser, driver)


class Browser:
    """One session of the driver. Close it: it ends the driver, and that the browser."""

    def __init__(self) -> None:
        found = programs()
        if found is None:
            raise NoBrowser("there is no chromium, or no chromedriver, on PATH")
        browser, driver = found
        self._profile = tempfile.TemporaryDirectory(prefix="sessionkit-browser-", ignore_cleanup_errors=True)
        self._driver = subprocess.Popen(
            [driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, stdin=subprocess.DEVNULL
        )
        self._session = ""
        try:
            self._url = f"http://127.0.0.1:{self._port()}"
            arguments = [
                "--headless=new",
                "--no-sandbox",  # the tests may run as root
                "--disable-dev-shm-usage",
                "--disable-gpu",
                "--no-first-run",
                f"--user-data-dir={self._profile.name}",
            ]
            options = {
                "goog:chromeOptions": {"binary": browser, "args": arguments},
                "goog:loggingPrefs": {"browser": "ALL"},
            }
            self._session = self._send("POST", "/session", {"capabilities": {"alwaysMatch": options}})["sessionId"]
            self._do("POST", "/timeouts", {"script": 30_000, "pageLoad": 30_000})
        except BaseException:
            self.close()
            raise

    def _port(self) -> int:
        output = self._driver.stdout
        assert output is not None
        said = ""
        for line in output:
            said += line
            if port := re.search(r"started successfully on port (\d+)", line):
                # Should it say more, it is not to wait for somebody who reads it.
                threading.Thread(target=output.read, daemon=True).start()
                return int(port[1])
        raise NoBrowser(f"chromedriver ended: {said}")

    def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if method == "GET" else json.dumps(body or {}).encode()
        request = urllib.request.Request(self._url + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            with error:
                raise NoBrowser(f"{method} {path}: {error.read().decode()}") from None

    def _do(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        return self._send(method, f"/session/{self._session}{path}", body)

    def tab(self) -> str:
        """Open another tab, and return its name."""
        name: str = self._do("POST", "/window/new", {"type": "tab"})["handle"]
        return name

    def switch(self, tab: str) -> None:
        self._do("POST", "/window", {"handle": tab})

    def open(self, url: str) -> None:
        self._do("POST", "/url", {"url": url})

    def size(self, width: int, height: int = 800) -> None:
        """Make the page as wide as it is on some screen; narrower than a window can be."""
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self._do("POST", "/goog/cdp/execute", {"cmd": "Emulation.setDeviceMetricsOverride", "params": screen})

    def prepare(self, script: str) -> None:
        """Run it in every page that is opened from now on, before any script of its own."""
        self._do(
            "POST", "/goog/cdp/execute", {"cmd": "Page.addScriptToEvaluateOnNewDocument", "params": {"source": script}}
        )

    def run(self, script: str, *arguments: object) -> Any:
        """Run the body of a JavaScript function in the page, and return what it returns."""
        return self._do("POST", "/execute/sync", {"script": script, "args": arguments})

    def wait(self, script: str, *arguments: object) -> Any:
        """Run it, and return what it gives to the function that is its last argument."""
        return self._do("POST", "/execute/async", {"script": script, "args": arguments})

    def console(self) -> list[str]:
        """Return what the browser has complained of since the last time: in scripts, of files that are missing."""
        return [str(entry["message"]) for entry in self._do("POST", "/se/log", {"type": "browser"})]

    def write(self, css: str, text: str) -> None:
        """Put a text into a field in the place of what is there, as a user types it."""
        element = self._element(css)
        self._do("POST", f"/element/{element}/clear")
        self._do("POST", f"/element/{element}/value", {"text": text})

    def click(self, css: str) -> None:
        self._do("POST", f"/element/{self._element(css)}/click")

    def value(self, css: str) -> str:
        return str(self._do("GET", f"/element/{self._element(css)}/property/value"))

    def wait_for_text(self, css: str, text: str) -> str:
        """Wait until an element shows a text that contains `text`; return all that it shows."""
        script = """
            const [css, text, done] = arguments;
            const look = () => document.querySelector(css)?.textContent.includes(text);
            const shown = () => done(document.querySelector(css).textContent);
            if (look()) return shown();
            new MutationObserver((_, observer) => { if (look()) { observer.disconnect(); shown(); } })
                .observe(document, {childList: true, subtree: true, characterData: true});
        """
        return str(self.wait(script, css, text))

    def _element(self, css: str) -> str:
        found: dict[str, str] = self._do("POST", "/element", {"using": "css selector", "value": css})
        return found[ELEMENT]

    def close(self) -> None:
        if self._session:
            with suppress(OSError, NoBrowser):
                self._do("DELETE", "")
        self._driver.terminate()
        self._driver.wait(30)
        if self._driver.stdout is not None:
            self._driver.stdout.close()
        self._profile.cleanup()
