import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from model_store.store import Store
from model_store.version.manifest import Lineage, MeasuredOn
from tests.api.page.visit import ADMIN_KEY, KEY, Visit
from tests.missing_programs import skip_or_fail
from tests.running_server import RunningServer
from tests.tiny_models import build_compact_t5, build_tiny_t5

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext

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


@pytest.fixture(scope="module")  # and not longer: while it is open, asyncio can run nothing else
def browser() -> Iterator["Browser"]:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        skip_or_fail("playwright is not installed")
    if not CHROMIUM.exists():
        skip_or_fail(f"{CHROMIUM} is missing: install Debian's package chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def page_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """`g2p@dense`, `g2p@pruned` and a third variant, and another model, on a server with keys.

    The page has example texts for both. `pruned` says in the store that it was made from `dense`.
    """
    folder = tmp_path_factory.mktemp("page")
    store = Store(folder / "store")
    dense = store.publish("g2p", build_tiny_t5(folder / "dense", seed=0), alias="dense")
    store.publish(
        "g2p",
        build_tiny_t5(folder / "pruned", seed=3, decoder_layers=1),
        alias="pruned",
        lineage=Lineage(parent=dense.digest, recipe={"secret": "/home/of/somebody"}, seed=7),
        metrics={"word_error_rate": 34.567},
        measured_on=MeasuredOn(split="test", rows=1234),
    )
    store.publish("g2p", build_compact_t5(folder / "dense", folder / "zeros"), alias="zeros")
    store.publish("multi30k-de", folder / "dense", alias="dense")
    keys = folder / "keys"
    hashed = {scope: hashlib.sha256(key.encode()).hexdigest() for scope, key in (("infer", KEY), ("admin", ADMIN_KEY))}
    keys.write_text("".join(f"{scope} {digest}\n" for scope, digest in hashed.items()))
    options = f"threads=1,slots=4,max_source_tokens={MAX_SOURCE_TOKENS},max_new_tokens=24"
    models = (f"--model={ref},{options}" for ref in ("g2p@dense", "g2p@pruned", "g2p@zeros", "multi30k-de@dense"))
    with RunningServer("--store", str(folder / "store"), "--api-keys", str(keys), *models) as running:
        yield running


@pytest.fixture
def context(browser: "Browser") -> Iterator["BrowserContext"]:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    yield context
    context.close()


@pytest.fixture
def visit(context: "BrowserContext", page_server: RunningServer) -> Visit:
    return Visit(context, page_server, link="#compare?model=g2p&variants=dense,pruned")
