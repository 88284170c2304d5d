"""What the page looks like to those who see it, and to those who do not: themes, widths, axe-core, the keyboard."""

from typing import TYPE_CHECKING, Any

import pytest

from tests.api.page.visit import DONE, Visit, axe
from tests.running_server import RunningServer

if TYPE_CHECKING:
    from playwright.sync_api import Browser


def _violations(visit: Visit, source: str) -> list[Any]:
    visit.page.evaluate(source)
    found = visit.page.evaluate("axe.run()")["violations"]
    return [(each["id"], [node["html"] for node in each["nodes"]]) for each in found]


@pytest.mark.parametrize(
    ("width", "theme"),
    [
        (390, "dark"),
        (1280, "light"),
        pytest.param(390, "light", marks=pytest.mark.slow),  # a browser without a GPU takes half a minute for each
        pytest.param(1280, "dark", marks=pytest.mark.slow),
    ],
)
def test_every_view_fits_and_axe_finds_nothing(
    browser: "Browser", page_server: RunningServer, width: int, theme: Any
) -> None:
    source = axe()
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=theme, reduced_motion="reduce")
    visit = Visit(context, page_server, link="#compare?model=g2p")
    visit.run("supercalifragilistic", runs=5)
    visit.page.wait_for_selector(DONE)
    visit.page.click("#parameters summary")
    looks = {"compare": (visit.width, _violations(visit, source))}
    visit.page.select_option("#family", "multi30k-de")
    looks["compare, with sentences for examples"] = visit.width, _violations(visit, source)
    visit.page.select_option("#family", "g2p")
    visit.open("batch")
    visit.page.click("text=Use the examples")
    visit.page.click("#batch-run")
    visit.page.wait_for_selector("text=Done:")
    looks["batch"] = visit.width, _violations(visit, source)
    visit.open("traffic")
    visit.page.wait_for_selector(".live-row")
    looks["traffic"] = visit.width, _violations(visit, source)
    visit.open("models")
    visit.page.wait_for_selector(".card >> nth=2")
    for summary in visit.page.locator(".card summary").all():
        summary.click()
    looks["models"] = visit.width, _violations(visit, source)
    assert looks == dict.fromkeys(looks, (width, []))
    assert visit.complaints == []
    context.close()


def test_the_theme_is_chosen_and_stays(visit: Visit) -> None:
    def background() -> str:
        return str(visit.page.evaluate("getComputedStyle(document.body).backgroundColor"))

    seen = [background()]
    for name in ("light", "dark"):
        visit.page.click("#theme")
        assert visit.text_of("#theme") == f"Theme: {name}"
        seen.append(background())
    assert seen[0] == seen[1] != seen[2]
    visit.page.reload()
    assert background() == seen[2]
    visit.page.click("#theme")
    assert background() == seen[0]


def test_everything_is_reached_by_the_keyboard_and_has_a_visible_focus(visit: Visit) -> None:
    visit.page.focus(".views a")
    reached: list[str] = []
    for _ in range(60):
        name, seen = visit.page.evaluate(
            """() => {
                const active = document.activeElement;
                if (active === document.body) return ["", true];
                const name = active.id || active.value || active.textContent.trim();
                const drawn = active.id === "text" ? active.closest(".entry") : active;
                const style = getComputedStyle(active.id === "auto" ? active.nextElementSibling : drawn);
                return [name, style.outlineStyle !== "none" || style.boxShadow !== "none"];
            }"""
        )
        if name in reached or name == "":
            break
        reached.append(name)
        assert seen, name
        visit.page.keyboard.press("Tab")
    wanted = ["Compare", "Batch", "Traffic", "Models", "theme", "family", "dense", "pruned", "text", "run"]
    assert [name for name in reached if name in wanted] == wanted
    assert {"mississippi", "share", "repeat", "auto"} <= set(reached)


def test_shortcuts_run_from_anywhere_and_stop(visit: Visit) -> None:
    visit.page.focus("#share")
    visit.page.keyboard.press("Control+Enter")
    visit.page.wait_for_selector(DONE)
    visit.page.route("**/compare", lambda _: None)  # an answer that does not come
    visit.page.keyboard.press("Control+Enter")
    visit.page.wait_for_selector("#run[data-action=stop]")
    visit.page.keyboard.press("Escape")
    visit.page.wait_for_selector("#run[data-action=run]")
    assert visit.text_of("#claim") == "Stopped"
    assert visit.complaints == []
