"""A real browser without a screen, which notes what a page says on its console and what it requests."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

_PATIENCE_S = 60


class Browser:
    """Chromium, driven by Selenium with the driver that is installed; nothing is downloaded."""

    def __init__(self, *, width=1280, height=900, dark=False):
        from selenium.webdriver import Chrome, ChromeOptions
        from selenium.webdriver.chrome.service import Service

        options = ChromeOptions()
        options.binary_location = _found("chromium", "chromium-browser", "google-chrome")
        for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = Chrome(options=options, service=Service(_found("chromedriver")))
        self.driver.set_page_load_timeout(_PATIENCE_S)
        self.resize(width, height, dark=dark)

    def resize(self, width, height, *, dark=False):
        """Give the page a screen of this size, and tell it which colours its user prefers."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})

    def open(self, page):
        """Open a file and wait until it is drawn."""
        self.driver.get(Path(page).resolve().as_uri())
        self.wait("return document.documentElement.dataset.drawn === 'true'")

    def run(self, script, *arguments):
        """Return what a script in the page returns."""
        return self.driver.execute_script(script, *arguments)

    def wait(self, script, *arguments):
        """Wait until a script returns something true."""
        end = time.monotonic() + _PATIENCE_S
        while not (found := self.run(script, *arguments)):
            assert time.monotonic() < end, f"the page did not get so far: {script}\n{self.console()}"
            time.sleep(0.05)
        return found

    def console(self):
        """Return what the page has said on its console since it was last asked, errors of its policy among it."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self):
        """Return the addresses that were requested since this was last asked."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [message["params"] for message in messages if message["method"] == "Network.requestWillBeSent"]
        return [params["request"]["url"] for params in sent if not params["request"]["url"].startswith("data:")]

    def press(self, *keys, on=None):
        """Focus an element, given by a selector, and press keys."""
        from selenium.webdriver.common.keys import Keys

        if on is not None:
            self.run("document.querySelector(arguments[0]).focus()", on)
        for key in keys:
            self.driver.switch_to.active_element.send_keys(getattr(Keys, key, key))

    def screenshot(self, path, *, whole=True):
        """Save a picture of the page."""
        import base64

        parameters = {"format": "png", "captureBeyondViewport": whole}
        if whole:
            size = self.driver.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
            parameters["clip"] = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", parameters)
        Path(path).write_bytes(base64.b64decode(shot["data"]))

    def close(self):
        """End the browser."""
        self.driver.quit()


def _found(*names):
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(f"{names[0]} is not installed (Debian: apt-get install chromium chromium-driver)")
    return found
