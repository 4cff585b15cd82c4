"""A headless Chromium that looks at a running system: what it asks for is noted, what it sees kept as pictures."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Browser as Chromium
from playwright.sync_api import Locator, Page, expect, sync_playwright
from playwright.sync_api import TimeoutError as NotSeenError

from okx_pipeline_tests.e2e.system import WITHIN_S, wait_for

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PICTURES = Path(__file__).parents[2] / ".artifacts" / "browser"
"""Where the pictures of the last run are."""

LOOPBACK = {"127.0.0.1", "localhost"}
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    # What Chromium asks for by itself all the same (updates, its account, help with forms) finds no name and no proxy.
    *("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost", "--no-proxy-server"),
]
LOOK_AGAIN_MS = 5_000
SIZE = {"width": 1440, "height": 1000}


class Browser:
    """One window of a person, and the addresses that its pages have asked for.

    Parameters
    ----------
    chromium
        The process.
    home
        The address of the UI.
    """

    def __init__(self, chromium: Chromium, home: str) -> None:
        context = chromium.new_context(base_url=home, viewport=SIZE, locale="en-US", timezone_id="UTC")
        context.set_default_timeout(WITHIN_S * 1000)
        expect.set_options(timeout=WITHIN_S * 1000)
        self.asked: list[str] = []
        # Of every page of the context, the ones that links open included.
        context.on("request", lambda request: self.asked.append(request.url))
        context.on("page", lambda page: page.on("websocket", lambda socket: self.asked.append(socket.url)))
        self.page = context.new_page()

    @property
    def hosts(self) -> set[str]:
        """The hosts that were asked; what a page has made itself (blob:, data:) asks nobody."""
        asked = map(urlsplit, self.asked)
        return {f"{address.hostname}" for address in asked if address.scheme not in {"blob", "data"}}

    def open(self, path: str) -> Page:
        """Go to a page of the UI."""
        self.page.goto(path)
        return self.page

    def reload_until(self, seen: Locator) -> None:
        """Reload until it is there: some pages look for news every 15 s only."""

        def look() -> bool:
            try:
                seen.wait_for(timeout=LOOK_AGAIN_MS)
            except NotSeenError:
                self.page.reload()
                return False
            return True

        wait_for(look, str(seen))

    def keep(self, name: str, page: Page | None = None) -> None:
        """Keep a picture of the page."""
        (page or self.page).screenshot(path=PICTURES / f"{name}.png", animations="disabled")


@contextmanager
def browser(home: str) -> Iterator[Browser]:
    """The system's Chromium, at the UI at `home`."""
    shutil.rmtree(PICTURES, ignore_errors=True)
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            yield Browser(chromium, home)
        finally:
            chromium.close()


def button(inside: Page | Locator, text: str) -> Locator:
    """The button with exactly this text; its name would have that of its icon before it."""
    return inside.get_by_role("button").filter(has_text=re.compile(f"^{re.escape(text)}$"))
