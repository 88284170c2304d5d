"""One text on several variants, in a real browser, over a real server with tiny models."""

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import pytest

from tests.api.page.conftest import MAX_SOURCE_TOKENS
from tests.api.page.visit import DONE, KEY, Visit
from tests.running_server import RunningServer

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Route


def _answer_compare(visit: Visit, *, status: int = 200, body: str, headers: dict[str, str] | None = None) -> None:
    """Put an answer of our own in the place of the server's, for what a healthy server does not say."""

    def fulfill(route: "Route") -> None:
        route.fulfill(status=status, body=body, headers=headers or {})

    visit.page.route("**/compare", fulfill)


def _events(*events: Mapping[str, object]) -> str:
    return "".join(f"data:{json.dumps(event)}\n\n" for event in events)


def _names(variant: str) -> dict[str, object]:
    return {"ref": f"g2p@{variant}", "model": "g2p", "variant": variant}


def _result(variant: str, text: str, total_ms: float, *, exact: bool = True) -> dict[str, object]:
    timings = {"queue_ms": 1, "encode_ms": 1, "decode_ms": total_ms - 2, "total_ms": total_ms}
    timings |= {"time_to_first_token_ms": 2, "time_per_output_token_ms": 1}
    agreement = {"exact": exact, "rouge_l": 0.75, "token_edit_distance": 0 if exact else 2}
    rest = {"finish_reason": "eos_token", "generated_tokens": 3, "seed": None, "speedup": 1.0, "agreement": agreement}
    return {**_names(variant), "generated_text": text, "timings": timings, **rest}


def test_a_typed_text_fills_both_columns_and_shows_the_speed_up(visit: Visit) -> None:
    visit.run("mississippi", runs=5)
    visit.page.wait_for_selector(DONE)
    assert re.fullmatch(r"\d+(\.\d+)?\N{MULTIPLICATION SIGN}", visit.text_of("#figure"))
    assert visit.text_of("#claim").endswith("dense")
    assert visit.text_of("#detail").endswith("median of 5 runs")
    document = visit.compare("mississippi").json()
    assert document["baseline"] == "g2p@dense"
    results = {result["ref"]: result for result in document["results"]}
    assert visit.page.locator(".column").count() == visit.page.locator(".lane").count() == 2
    for ref, lane in zip(("g2p@dense", "g2p@pruned"), visit.page.locator(".lane").all(), strict=True):
        column, result = f"[data-ref='{ref}']", results[ref]
        answer = visit.page.evaluate(
            """(selector) => {
                const answer = document.querySelector(selector).cloneNode(true);
                for (const gone of answer.querySelectorAll("del")) gone.remove();
                return answer.textContent;
            }""",
            f"{column} .answer",
        )
        assert answer == (result["generated_text"] or "an empty answer")
        times = visit.text_of(f"{column} .times")
        assert re.search(r"time\s+[\d.]+\sm?s", times), times
        assert re.search(r"decoder\s+\d layer", visit.text_of(f"{column} .facts"))
        assert lane.locator(".cell").count() == result["generated_tokens"]
    agrees = results["g2p@pruned"]["agreement"]["exact"]
    assert visit.text_of("#badge").startswith("same answer" if agrees else "differs by ")
    assert visit.page.locator("#chart [data-tone='1'] .dot, #chart [data-tone='1'] .beyond").count() == 5
    assert visit.complaints == []
    assert visit.origins == {visit.server.url}


def test_each_variant_is_judged_by_its_median_run_and_the_words_that_differ_are_marked(visit: Visit) -> None:
    dense, pruned = "one two three four.", "one three 4."
    runs = iter([(31, 11), (61, 21), (41, 99)])  # total times with a millisecond of queue: medians of 40 and 20

    def fulfill(route: "Route") -> None:
        times = next(runs)
        results = [_result("dense", dense, times[0]), _result("pruned", pruned, times[1], exact=False)]
        token = {**_names("dense"), "index": 1, "at_ms": 3, "token": {"id": 1, "text": dense, "special": False}}
        document = {"baseline": "g2p@dense", "results": results}
        route.fulfill(body=_events(token, *results, document), headers={"content-type": "text/event-stream"})

    visit.page.evaluate("document.querySelector('#repeat option').textContent = '3'")
    visit.page.route("**/compare", fulfill)
    visit.run("x", runs=3)
    visit.page.wait_for_selector(DONE)
    assert visit.text_of("#figure") == "2.0\N{MULTIPLICATION SIGN}"
    assert re.sub(r"\s", " ", visit.text_of("#detail")) == "20.0 ms, not 40.0 ms median of 3 runs"
    answer = visit.page.locator("[data-ref='g2p@pruned'] .answer")
    assert answer.locator("del").all_text_contents() == ["two", "four"]
    assert answer.locator("ins").all_text_contents() == ["4"]
    said = visit.text_of("[data-ref='g2p@pruned'] .agreement")
    assert said == "2 words differ \N{MIDDLE DOT} 2 tokens \N{MIDDLE DOT} ROUGE-L 0.75"
    assert "10\N{MULTIPLICATION SIGN}: the machine is busy" in visit.text_of("#race-note")
    assert visit.complaints == []


def test_variants_and_parameters_are_chosen_and_stand_in_the_link(
    visit: Visit, context: "BrowserContext", page_server: RunningServer
) -> None:
    visit.page.uncheck("input[value=pruned]")
    visit.page.check("input[value=zeros]")
    visit.page.click("#parameters summary")
    visit.page.fill("[name=max_new_tokens]", "3")
    visit.page.press("[name=max_new_tokens]", "Tab")
    with visit.page.expect_request("**/compare") as asked:
        visit.run("abc")
    body = json.loads(asked.value.post_data or "")
    assert body["models"] == ["g2p@dense", "g2p@zeros"]
    assert body["parameters"]["max_new_tokens"] == 3
    visit.page.wait_for_selector(DONE)
    assert visit.page.locator(".lane").nth(0).locator(".cell").count() <= 3
    link = visit.page.evaluate("location.hash")
    assert link == "#compare?model=g2p&variants=dense%2Czeros&max_new_tokens=3", "and no text: it is the reader's"
    other = Visit(context, page_server, link=f"{link}&text=a+b%26c")
    assert other.page.input_value("#text") == "a b&c"
    assert other.page.input_value("[name=max_new_tokens]") == "3"
    boxes = {box.get_attribute("value"): box.is_checked() for box in other.page.locator("#variants input").all()}
    assert boxes == {"dense": True, "pruned": False, "zeros": True}
    other.page.select_option("#family", "multi30k-de")
    assert other.page.locator("#variants input").count() == 1
    assert visit.complaints == other.complaints == []


def test_an_over_long_text_is_explained_under_the_text(visit: Visit) -> None:
    text = "a" * (MAX_SOURCE_TOKENS + 1)
    visit.run(text)
    visit.page.wait_for_selector("#problem:not([hidden])")
    refusal = visit.compare(text)
    assert refusal.status_code == 422
    assert visit.text_of("#problem") == refusal.json()["error"]
    assert "truncate" in refusal.json()["error"]
    assert visit.page.locator("[name=truncate]").get_attribute("aria-invalid") == "true", "the remedy is at hand"
    assert visit.page.locator("#text").get_attribute("aria-invalid") is not None
    assert [complaint for complaint in visit.complaints if "422" not in complaint] == []
    visit.page.fill("[name=truncate]", "8")
    visit.run(text)
    visit.page.wait_for_selector(DONE)
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
    token = {"id": 9, "text": markup, "logprob": -1.0, "special": False}
    failure = {**_names("pruned"), "error": "The worker ended.", "error_type": "generation"}
    body = _events({**_names("dense"), "index": 1, "at_ms": 2.5, "token": token}, failure)
    _answer_compare(visit, body=body, headers={"content-type": "text/event-stream"})
    visit.run(markup)
    visit.page.wait_for_selector(".column.failed")
    assert visit.text_of("[data-ref='g2p@pruned'] .answer") == "The worker ended."
    assert visit.text_of("[data-ref='g2p@dense'] .answer") == markup
    assert visit.page.locator("img").count() == 0
    assert visit.complaints == []


def test_a_key_is_asked_for_refused_in_words_and_kept_in_the_tab(
    context: "BrowserContext", page_server: RunningServer
) -> None:
    visit = Visit(context, page_server, key=None)
    assert visit.page.evaluate("document.activeElement.id") == "key"
    visit.page.fill("#key", "wrong")
    visit.page.press("#key", "Enter")
    visit.page.wait_for_selector("#key-problem:not([hidden])")
    assert visit.text_of("#key-problem") == visit.asked("GET", "/models", key="wrong").json()["error"]
    visit.page.fill("#key", KEY)
    visit.page.press("#key", "Enter")
    visit.page.wait_for_selector("#server-state[data-state=ready]")
    assert visit.page.locator("#key-form").is_hidden()
    visit.page.reload()
    visit.page.wait_for_selector("#server-state[data-state=ready]")
    assert visit.page.evaluate("localStorage.length") == 0
    assert [complaint for complaint in visit.complaints if "401" not in complaint] == []
