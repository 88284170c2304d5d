"""The comparison page in a real browser, over a real server with two tiny models."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import urlsplit

import httpx
import pytest

from model_store.store import Store
from tests.running_server import RunningServer
from tests.tiny_models import build_tiny_t5

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page, Route

CHROMIUM = Path("/usr/bin/chromium")
CHROMIUM_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
MAX_SOURCE_TOKENS = 64
PATIENCE_MS = 30_000  # for a busy machine


def _missing(what: str) -> NoReturn:
    if os.environ.get("NASH_REQUIRE_ALL") == "1":
        pytest.fail(f"{what}, and NASH_REQUIRE_ALL is set")
    pytest.skip(what)


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _missing("playwright is not installed")
    if not CHROMIUM.exists():
        _missing(f"{CHROMIUM} is missing: install Debian's package chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def g2p_server(browser: "Browser", tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """`g2p@dense` and `g2p@pruned`: the page has example words for g2p. The browser comes first, to skip early."""
    folder = tmp_path_factory.mktemp("page")
    store = Store(folder / "store")
    store.publish("g2p", build_tiny_t5(folder / "dense", seed=0), alias="dense")
    store.publish("g2p", build_tiny_t5(folder / "pruned", seed=3, decoder_layers=1), alias="pruned")
    options = f"threads=1,slots=4,max_source_tokens={MAX_SOURCE_TOKENS},max_new_tokens=24"
    models = (f"--model=g2p@{variant},{options}" for variant in ("dense", "pruned"))
    with RunningServer("--store", str(folder / "store"), *models) as running:
        yield running


class Visit:
    """One visit of the page, and what a visitor does not see: console messages and the addresses asked for."""

    def __init__(self, page: "Page", server: RunningServer) -> None:
        self.page = page
        self.server = server
        self.complaints: list[str] = []
        self.origins: set[str] = set()
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", self._note_message)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.origins.add("{0.scheme}://{0.netloc}".format(urlsplit(request.url))))
        page.goto(server.url + "/")
        page.wait_for_selector("#server-state[data-state=ready]")

    def _note_message(self, message: "ConsoleMessage") -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def run(self, text: str) -> None:
        self.page.fill("#text", text)
        self.page.press("#text", "Enter")

    def compare(self, text: str) -> httpx.Response:
        """What the server says to the same request without the page."""
        return httpx.post(self.server.url + "/compare", json={"inputs": text}, timeout=60)

    def text_of(self, selector: str) -> str:
        return self.page.locator(selector).inner_text()


@pytest.fixture
def visit(browser: "Browser", g2p_server: RunningServer) -> Iterator[Visit]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    yield Visit(context.new_page(), g2p_server)
    context.close()


def _answer_compare(visit: Visit, *, status: int = 200, body: str, headers: dict[str, str] | None = None) -> None:
    """Put an answer of our own in the place of the server's, for what a healthy server does not say."""

    def fulfill(route: "Route") -> None:
        route.fulfill(status=status, body=body, headers=headers or {})

    visit.page.route("**/compare", fulfill)


def test_a_typed_text_fills_both_columns_and_shows_the_speed_up(visit: Visit) -> None:
    visit.run("mississippi")
    visit.page.wait_for_selector(
        "#figure[data-outcome=faster], #figure[data-outcome=slower], #figure[data-outcome=even]"
    )
    assert re.fullmatch(r"\d+(\.\d+)?\N{MULTIPLICATION SIGN}", visit.text_of("#figure"))
    assert visit.text_of("#claim").endswith("dense")
    document = visit.compare("mississippi").json()
    assert document["baseline"] == "g2p@dense"
    for result in document["results"]:
        column = f"[data-ref='{result['ref']}']"
        answer = visit.page.locator(f"{column} .answer").text_content()
        assert answer == (result["generated_text"] or "an empty answer")
        times = visit.text_of(f"{column} .times")
        assert re.search(r"total\s+[\d.]+\sm?s", times), times
        assert re.search(r"decoder\s+\d layer", visit.text_of(f"{column} .facts"))
    assert visit.page.locator(".lane").count() == 2
    for lane, result in zip(visit.page.locator(".lane").all(), document["results"], strict=True):
        assert lane.locator(".cell").count() == result["generated_tokens"]
    agrees = document["results"][1]["agreement"]["exact"]
    assert visit.text_of("#badge").startswith("same answer" if agrees else "differs by ")
    assert visit.complaints == []
    assert visit.origins == {visit.server.url}


def test_an_over_long_text_is_explained_under_the_text(visit: Visit) -> None:
    text = "a" * (MAX_SOURCE_TOKENS + 1)
    visit.run(text)
    visit.page.wait_for_selector("#problem:not([hidden])")
    refusal = visit.compare(text)
    assert refusal.status_code == 422
    assert visit.text_of("#problem") == refusal.json()["error"]
    assert visit.page.locator("#text").get_attribute("aria-invalid") is not None
    assert [complaint for complaint in visit.complaints if "422" not in complaint] == []
    visit.run("short")
    visit.page.wait_for_selector("#figure:not([data-outcome=vacant])")
    assert visit.page.locator("#problem").is_hidden()
    assert visit.page.locator("#text").get_attribute("aria-invalid") is None


def test_auto_run_feeds_the_chart_until_it_is_switched_off(visit: Visit) -> None:
    visit.page.check("#auto", force=True)  # the drawn switch lies over the real one
    for tone in (0, 1):  # a line's children: its median, its course, and a mark for each run
        visit.page.wait_for_selector(f"#chart [data-tone='{tone}'] > :nth-child(4)", state="attached")
    visit.page.fill("#text", "my own")
    assert not visit.page.is_checked("#auto")
    assert visit.page.locator("#chart .median").count() == 2
    assert visit.page.input_value("#text") == "my own"
    assert visit.complaints == []


@pytest.mark.parametrize(
    ("status", "headers", "shown"),
    [
        (429, {"retry-after": "3"}, "The queue is full. Try again in 3 s."),
        (503, {}, "The queue is full."),
    ],
)
def test_a_refusal_is_shown_in_the_servers_words(
    visit: Visit, status: int, headers: dict[str, str], shown: str
) -> None:
    _answer_compare(visit, status=status, body='{"error": "The queue is full."}', headers=headers)
    visit.run("mississippi")
    visit.page.wait_for_selector("#problem:not([hidden])")
    assert visit.text_of("#problem") == shown


def test_a_lost_connection_is_said_and_the_page_goes_on_when_it_is_back(visit: Visit) -> None:
    visit.page.route("**/compare", lambda route: route.abort())
    visit.page.route("**/models", lambda route: route.abort())
    visit.run("mississippi")
    visit.page.wait_for_selector("#problem:not([hidden])")
    assert visit.text_of("#problem") == "The connection to the server was lost."
    visit.page.wait_for_selector("#server-state[data-state=lost]")
    visit.page.unroute_all()
    visit.page.wait_for_selector("#server-state[data-state=ready]")
    visit.page.wait_for_selector("#problem", state="hidden")


def test_what_fails_in_the_stream_is_shown_in_its_column_and_markup_stays_text(visit: Visit) -> None:
    markup = "<img src=x onerror=alert(1)>"
    names = {"ref": "g2p@dense", "model": "g2p", "variant": "dense"}
    token = {**names, "index": 1, "at_ms": 2.5, "token": {"id": 9, "text": markup, "logprob": -1.0, "special": False}}
    failure = {
        **names,
        "ref": "g2p@pruned",
        "variant": "pruned",
        "error": "The worker ended.",
        "error_type": "generation",
    }
    body = "".join(f"data:{json.dumps(event)}\n\n" for event in (token, failure))
    _answer_compare(visit, body=body, headers={"content-type": "text/event-stream"})
    visit.run(markup)
    visit.page.wait_for_selector(".column.failed")
    assert visit.text_of("[data-ref='g2p@pruned'] .answer") == "The worker ended."
    assert visit.text_of("[data-ref='g2p@dense'] .answer") == markup
    assert visit.page.locator("img").count() == 0
    assert visit.complaints == []


@pytest.mark.parametrize("width", [360, 768])
def test_nothing_is_wider_than_a_narrow_window(visit: Visit, width: int) -> None:
    visit.page.set_viewport_size({"width": width, "height": 800})
    visit.run("supercalifragilistic")
    visit.page.wait_for_selector("#figure:not([data-outcome=vacant])")
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
