"""The page's other views: a list of texts, the traffic, the models' cards."""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

from tests.api.page.conftest import MAX_SOURCE_TOKENS
from tests.api.page.visit import ADMIN_KEY, KEY, Visit


def _run_batch(visit: Visit, content: str) -> None:
    visit.open("batch")
    visit.page.set_input_files(
        "#batch-file", {"name": "texts.jsonl", "mimeType": "text/plain", "buffer": content.encode()}
    )
    visit.page.wait_for_function("document.querySelector('#batch-text').value !== ''")
    visit.page.click("#batch-run")
    visit.page.wait_for_selector("text=Done:")


def _downloaded(visit: Visit, kind: str) -> bytes:
    with visit.page.expect_download() as begun:
        visit.page.click(f"text=Download {kind}")
    assert begun.value.suggested_filename == f"g2p-comparison.{kind.lower()}"
    return Path(begun.value.path()).read_bytes()


def test_a_file_of_texts_is_run_and_its_answers_are_downloaded(visit: Visit) -> None:
    answers = {text: visit.compare(text).json()["results"] for text in ("abc", "=a, b")}
    right = answers["abc"][0]["generated_text"]
    rows: list[Any] = [{"source": "abc", "target": right}, {"text": "=a, b"}, "a" * (MAX_SOURCE_TOKENS + 1)]
    _run_batch(visit, "".join(f"{json.dumps(row)}\n" for row in rows))
    assert visit.text_of(".batch-progress") == "Done: 3 of 3 texts"
    assert "equal to target\n100.0" in visit.text_of(".figure-card >> nth=0")
    assert "1 texts failed" in visit.text_of(".batch-figures")
    found = [json.loads(line) for line in _downloaded(visit, "JSONL").splitlines()]
    assert [row["source"] for row in found] == ["abc", "=a, b", "a" * (MAX_SOURCE_TOKENS + 1)]
    assert found[0]["target"] == right
    for row in found[:2]:
        for result in answers[row["source"]][:2]:
            kept = row["answers"][result["ref"]]
            assert kept["generated_text"] == result["generated_text"]
            assert kept["agreement"] == result["agreement"]
            assert kept["ms"] > 0
    assert found[2]["error"] == visit.compare(rows[2]).json()["error"]
    table = list(csv.DictReader(io.StringIO(_downloaded(visit, "CSV").decode("utf-8-sig"))))
    assert [row["source"] for row in table] == ["abc", "'=a, b", "a" * (MAX_SOURCE_TOKENS + 1)], "no formula"
    assert table[0]["g2p@pruned"] == answers["abc"][1]["generated_text"]
    assert [complaint for complaint in visit.complaints if "422" not in complaint] == []


def test_a_batch_is_stopped_and_a_bad_line_is_named(visit: Visit) -> None:
    visit.open("batch")
    visit.page.fill("#batch-text", "\n".join(f"text {i}" for i in range(500)))
    visit.page.click("#batch-run")
    visit.page.wait_for_selector(".results tbody tr")
    visit.page.click("#batch-run")
    visit.page.wait_for_selector("text=Stopped at")
    done = int(re.findall(r"Stopped at (\d+) of 500", visit.text_of(".batch-progress"))[0])
    assert 0 < done < 500
    visit.page.fill("#batch-text", '{"source": "a"}\n{"other": "b"}')
    visit.page.click("#batch-run")
    assert visit.text_of("#batch-problem").startswith("Line 2 has no text")
    assert visit.complaints == []


def test_the_sliders_divide_the_traffic_with_the_admin_key_only(visit: Visit) -> None:
    visit.open("traffic")
    visit.page.wait_for_selector(".live-row >> nth=2")
    visit.page.fill("#share-1", "30")
    visit.page.fill("#share-2", "20")
    shares = [
        int(text.split("\N{NO-BREAK SPACE}")[0]) for text in visit.page.locator(".weight output").all_inner_texts()
    ]
    assert sum(shares) == 100
    assert shares[2] == 20
    visit.page.select_option("#shadow-to", "pruned")
    visit.page.select_option("#shadow-fraction", "0.5")
    before = visit.asked("GET", "/models/g2p/traffic").json()
    visit.page.click("#traffic-apply")
    visit.page.wait_for_selector("#traffic-problem:not([hidden])")
    refusal = visit.asked("PUT", "/models/g2p/traffic", {}, key=KEY)
    assert (refusal.status_code, visit.text_of("#traffic-problem")) == (403, refusal.json()["error"])
    assert visit.asked("GET", "/models/g2p/traffic").json() == before
    visit.page.fill("#admin-key", ADMIN_KEY)
    visit.page.press("#admin-key", "Enter")
    visit.page.wait_for_selector("text=Applied.")
    plan = visit.asked("GET", "/models/g2p/traffic").json()
    assert plan["weights"] == {"dense": shares[0], "pruned": shares[1], "zeros": shares[2]}
    assert plan["shadow"] == {"from": "dense", "to": "pruned", "fraction": 0.5}
    visit.page.click("text=Stop dividing")
    visit.page.wait_for_selector("text=nothing is divided")
    assert visit.asked("GET", "/models/g2p/traffic").json()["weights"] == {}
    assert visit.asked("PUT", "/models/g2p/traffic", {}).status_code == 200
    assert [complaint for complaint in visit.complaints if "403" not in complaint] == []


def test_the_traffic_is_seen_live(visit: Visit) -> None:
    def stats() -> Any:
        [found] = [each for each in visit.asked("GET", "/stats").json()["models"] if each["ref"] == "g2p@zeros"]
        return found

    before = stats()["outcomes"]["ok"]
    answered = [visit.asked("POST", "/generate", {"inputs": "abc", "model": "g2p@zeros"}) for _ in range(4)]
    assert all(answer.status_code == 200 for answer in answered)
    now = stats()
    assert now["outcomes"]["ok"] == before + 4
    assert now["last_minute"]["answers"] == 4, "what was compared is not among them"
    assert 0 < now["last_minute"]["p50_ms"] <= now["last_minute"]["p95_ms"]
    assert now["slots"] == 4
    visit.open("traffic")
    row = visit.page.locator(".live-row", has_text="zeros")
    row.get_by_text(str(before + 4), exact=True).first.wait_for()
    assert re.search(r"p95\s+[\d.]+\sm?s", row.inner_text())
    assert "of 4" in row.inner_text()


def test_a_card_shows_the_layers_the_quality_the_lineage_and_how_to_call_it(visit: Visit) -> None:
    visit.page.check("input[value=zeros]")
    visit.open("models")
    pruned = visit.page.locator(".card[data-ref='g2p@pruned']")
    pruned.wait_for()
    said = pruned.inner_text()
    assert "34.57" in said
    assert "1,234 rows of test" in said
    assert re.search(r"made from\s+g2p@dense", said)
    assert f"{visit.server.url}/models/g2p@pruned" in said
    pictures = [
        each.get_attribute("aria-label") for each in visit.page.locator(".card[data-ref='g2p@zeros'] svg").all()
    ]
    assert pictures == [
        "Encoder: 4 of 4 layers; in them 7 of 16 heads and 75 of 256 feed-forward units",
        "Decoder: 1 of 3 layers; in them 4 of 8 heads and 64 of 64 feed-forward units",
    ]
    assert visit.page.locator(".card[data-ref='g2p@zeros'] .dropped").count() == 2
    pruned.locator("summary", has_text="Examples").click()
    assert 'base_url="http' in pruned.inner_text()
    card = visit.asked("GET", "/models/g2p@pruned", key=KEY)
    assert card.json()["lineage"]["seed"] == 7
    assert "somebody" not in card.text, "recipes name folders of the machine that trained"
    assert visit.asked("GET", "/models/g2p@nothing").status_code == 404
    assert visit.complaints == []
