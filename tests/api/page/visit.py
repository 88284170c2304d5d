"""A visit of the comparison page in a real browser."""

from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx

from tests.missing_programs import skip_or_fail
from tests.running_server import RunningServer

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, ConsoleMessage

KEY, ADMIN_KEY = "a key for inference", "a key for operators"
PATIENCE_MS = 30_000  # for a busy machine
DONE = "#figure[data-outcome=faster], #figure[data-outcome=slower], #figure[data-outcome=even]"


class Visit:
    """One visit of the page, and what a visitor does not see: console messages and the addresses asked for."""

    def __init__(
        self, context: "BrowserContext", server: RunningServer, *, key: str | None = KEY, link: str = ""
    ) -> None:
        """Open the page; `key` is one that was given in this tab before, `link` what stands behind the address."""
        self.context = context
        self.server = server
        self.complaints: list[str] = []
        self.origins: set[str] = set()
        self.page = page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", self._note_message)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.origins.add("{0.scheme}://{0.netloc}".format(urlsplit(request.url))))
        if key is not None:
            page.add_init_script(f"sessionStorage.setItem('nash-key', '{key}')")
        page.goto(f"{server.url}/{link}")
        page.wait_for_selector(f"#server-state[data-state={'lost' if key is None else 'ready'}]")

    def _note_message(self, message: "ConsoleMessage") -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def run(self, text: str, runs: int = 1) -> None:
        """Run a text, without waiting for its answers."""
        self.page.select_option("#repeat", str(runs))
        self.page.fill("#text", text)
        self.page.press("#text", "Enter")

    def open(self, view: str) -> None:
        """Turn to another view."""
        self.page.click(f".views a[href='#{view}']")
        self.page.wait_for_selector(f"#view-{view}:not([hidden]) > *", state="attached")

    def compare(self, text: str) -> httpx.Response:
        """What the server says to the same request without the page."""
        return self.asked("POST", "/compare", {"inputs": text})

    def asked(self, method: str, path: str, body: Any = None, key: str = ADMIN_KEY) -> httpx.Response:
        """What the server says to a request."""
        headers = {"authorization": f"Bearer {key}"}
        return httpx.request(method, self.server.url + path, json=body, headers=headers, timeout=60)

    def text_of(self, selector: str) -> str:
        """The text that is shown."""
        return self.page.locator(selector).inner_text()

    @property
    def width(self) -> int:
        """How wide what it shows is, in pixels."""
        return int(self.page.evaluate("document.documentElement.scrollWidth"))


def axe() -> str:
    """The source of axe-core, which checks pages for accessibility."""
    try:
        import axe_playwright_python
    except ImportError:
        skip_or_fail("axe-playwright-python is not installed")
    return (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
