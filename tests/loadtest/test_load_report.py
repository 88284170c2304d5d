"""`summary.json` and `report.html`."""

import dataclasses
import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from loadtest.client.rows import RequestRow
from loadtest.client.workload import TextWorkload
from loadtest.loaded_models import Target
from loadtest.plan import Plan
from loadtest.report.report import banners, headlines, render
from loadtest.results.summary import Run, summarize, to_json
from tests.loadtest.rows_of_a_run import records, row, steady_run

CLAIM = "pruned answers"
HOSTILE = '<script>alert("1")</script>&\u2028'


def make_run(rows: list[RequestRow], *, rate: float | None = None, duration_s: float = 20.0, **changes: Any) -> Run:
    targets = [Target(ref=f"g2p@{name}", name=name) for name in ("dense", "pruned")]
    plan = Plan(
        host="http://127.0.0.1:8000",
        models=(),
        workload=Path("w.jsonl"),
        users=4 if rate is None else None,
        rate_per_s=rate,
        duration_s=duration_s,
        warmup_s=5.0,
        max_new_tokens=None,
        seed=0,
        out=Path("out"),
    )
    run = Run(
        plan=plan,
        workload=TextWorkload(name="w.jsonl", sha256="ab" * 32, sources=("a", "b")),
        targets=targets,
        baseline=targets[0],
        models=[{"ref": target.ref, "model": "g2p", "variant": target.name, "digest": "c" * 64} for target in targets],
        info={"router": "nash", "version": "1", "model_device_type": "cpu"},
        records=records(rows),
        started_at="2026-01-01T00:00:00+00:00",
        interrupted=False,
        ended_early=False,
        troubles=(),
        client_cpu_s=1.0,
        client_wall_s=20.0,
    )
    return dataclasses.replace(run, **changes)


class Page(HTMLParser):
    """Tags that were opened, and what they refer to."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "action", "data"):
                self.references.append(value or "")


def strict_json(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in JSON")

    return json.loads(text, parse_constant=refuse)


def test_the_warm_up_and_what_came_after_are_in_no_figure() -> None:
    slow = [row(ref, at_s, 5000.0) for ref in ("g2p@dense", "g2p@pruned") for at_s in (0.0, 4.99, 25.0, 26.0)]
    run = make_run([*slow, *(each._replace(intended_s=each.intended_s + 5) for each in steady_run(20))])
    summary, verdict = summarize(run)
    assert verdict.ok
    assert summary["requests"] == {"all": 408, "warmup": 4, "measured": 400, "after": 4, "failed_outside": 0}
    assert [figures["ok"] for figures in summary["variants"]] == [200, 200]
    assert max(figures["latency_ms"]["max"] for figures in summary["variants"]) < 100
    assert summary["measured_s"] == 20.0
    assert summary["variants"][0]["requests_per_s"] == 10.0


def test_the_speed_up_is_found_and_said() -> None:
    summary, _ = summarize(make_run(steady_run(27)))
    ratios = summary["speedups"]["by_ref"]["g2p@pruned"]
    assert ratios["latency"]["mean"]["ratio"] == pytest.approx(2.0)
    assert ratios["latency"]["p95"]["ratio"] == pytest.approx(2.0)
    assert ratios["server"]["mean"]["ratio"] > 2.0  # 2 ms less on either side
    assert headlines(summary) == ["pruned answers 2.00x as fast as dense (2.00 to 2.00)"]
    assert summary["lag_ms"] is None  # a closed loop


@pytest.mark.parametrize(
    ("rows", "rate", "duration_s", "said"),
    [
        (
            steady_run(27, factor=0.5),
            None,
            20.0,
            "pruned answers 0.50x as fast as dense (0.50 to 0.50), which is slower",
        ),
        (steady_run(12), None, 6.0, f"{CLAIM} 2.00x as fast as dense, in a run too short for an interval"),
        (steady_run(27, lag_ms=2.0), 20.0, 20.0, "This run is void: the client fell behind its own schedule"),
        (
            [each for each in steady_run(27) if each.variant == "dense"],
            None,
            20.0,
            "pruned cannot be compared with dense: one of them was sent nothing",
        ),
        (
            [
                *(each for each in steady_run(27) if each.variant == "dense"),
                row("g2p@pruned", at_s=6.0, outcome="connection"),
            ],
            None,
            20.0,
            "pruned cannot be compared with dense: one of them answered nothing",
        ),
        (
            [*steady_run(27, lag_ms=2.0), row(at_s=6.0, outcome="connection")],
            20.0,
            20.0,
            "Requests failed, and the client fell behind its own schedule: nothing can be said about speed",
        ),
        (
            [*steady_run(27, lag_ms=2.0), row(at_s=6.0, outcome="too_many_in_flight")],
            20.0,
            20.0,
            "This run is void: the client fell behind its own schedule",
        ),
        (
            [*steady_run(12), row(at_s=6.0, outcome="overloaded")],
            None,
            6.0,
            f"Among answered requests alone: {CLAIM} 2.00x as fast as dense, in a run too short for an interval",
        ),
    ],
)
def test_headlines_claim_no_more_than_was_found(
    rows: list[RequestRow], rate: float | None, duration_s: float, said: str
) -> None:
    assert headlines(summarize(make_run(rows, rate=rate, duration_s=duration_s))[0]) == [said]


def test_no_difference_is_said_to_be_none() -> None:
    rows = steady_run(27) + [each._replace(intended_s=each.intended_s + 0.01) for each in steady_run(27, seed=1)]
    dense = [each for each in rows if each.variant == "dense"]
    alike = [each._replace(ref="g2p@pruned", variant="pruned") for each in dense[1::2]]
    (said,) = headlines(summarize(make_run([*dense[::2], *alike]))[0])
    assert said.startswith("No difference that this run could tell: pruned answers ")


def test_the_summary_is_strict_json_whatever_is_missing() -> None:
    for rows in ([], [row(at_s=6.0, outcome="connection")], steady_run(3), steady_run(27)):
        for rate in (None, 20.0):
            summary, _ = summarize(make_run(rows, rate=rate))
            text = to_json(summary)
            assert strict_json(text) == summary
            assert text.isascii()
    assert set(summary) >= {"plan", "variants", "speedups", "verdict", "client", "server", "measured_s", "baseline"}
    assert summary["plan"]["workload"] == {"name": "w.jsonl", "sha256": "ab" * 32, "rows": 2}
    assert summary["client"]["packages"].keys() == {"locust", "gevent", "geventhttpclient", "numpy"}


def stalled_run() -> list[RequestRow]:
    """A closed loop over a server that hangs from 9 s to 30 s: until the end, its two users wait."""
    answered = [each for each in steady_run(27) if each.intended_s < 9]
    return [*answered, *(row(f"g2p@{name}", at_s=9.0, latency_ms=21_000.0) for name in ("dense", "pruned"))]


@pytest.mark.parametrize("rate", [None, 0.4])
def test_a_stall_until_the_end_is_measured_time(rate: float | None) -> None:
    """Also the time after the last arrival of an open loop at a low rate."""
    summary, _ = summarize(make_run(stalled_run(), rate=rate))
    assert summary["measured_s"] == 20.0
    assert summary["speedups"]["method"]["blocks"] == 20
    for figures in summary["variants"]:
        assert figures["n"] == 41
        assert figures["requests_per_s"] == pytest.approx(41 / 20)
        assert figures["latency_ms"]["max"] == 21_000


def test_a_run_that_ended_early_is_measured_until_its_users_last_answers() -> None:
    waited = [each._replace(latency_ms=min(each.latency_ms, 4_000.0)) for each in stalled_run()]
    assert summarize(make_run(waited, ended_early=True))[0]["measured_s"] == pytest.approx(8.0)
    assert summarize(make_run(stalled_run(), ended_early=True))[0]["measured_s"] == 20.0
    assert summarize(make_run([], ended_early=True))[0]["measured_s"] == 0.0
    # An open loop does not wait: what it measured ended with its last arrival.
    assert summarize(make_run(waited, rate=20.0, ended_early=True))[0]["measured_s"] == pytest.approx(4.0)


def test_what_went_wrong_with_the_run_stands_in_its_report() -> None:
    trouble = "Locust was ended by SIGKILL"
    run = make_run(steady_run(12), ended_early=True, troubles=(trouble,))
    summary, verdict = summarize(run)
    assert not verdict.ok
    assert summary["verdict"]["problems"] == [trouble]
    assert f'<p class="banner">{trouble}</p>' in render(run, summary)


def test_what_explains_most_stands_first() -> None:
    for outcome, first in (("connection", "1 of "), ("too_many_in_flight", "void: ")):
        summary, verdict = summarize(make_run([*steady_run(27, lag_ms=2.0), row(at_s=6.0, outcome=outcome)], rate=20.0))
        assert verdict.line().startswith(first)
        assert banners(summary)[0].startswith(first)


def test_an_interrupted_run_is_measured_until_its_last_answer() -> None:
    run = make_run([each for each in steady_run(27) if each.intended_s < 12], interrupted=True, ended_early=True)
    summary, _ = summarize(run)
    assert summary["measured_s"] == pytest.approx(6.95, abs=0.1)
    html = render(run, summary)
    assert re.search("Interrupted: (7|6.9) of 20 s were measured", html)


def test_a_page_renders_for_every_kind_of_run() -> None:
    for rows in ([], [row(at_s=6.0, outcome="connection")], steady_run(3), steady_run(27, lag_ms=3.0)):
        for rate in (None, 20.0):
            run = make_run(rows, rate=rate)
            summary, verdict = summarize(run)
            html = render(run, summary)
            assert html.startswith("<!doctype html>")
            assert "None" not in html.replace("None in the measured time", "")
            assert "nan" not in re.sub(r"<svg.*?</svg>", "", html, flags=re.DOTALL).lower().split()
            for problem in verdict.problems:
                assert problem in html


def test_the_page_has_the_figures_in_text() -> None:
    run = make_run(steady_run(27), rate=20.0)
    summary, _ = summarize(run)
    html = render(run, summary)
    dense = summary["variants"][0]
    for text in (
        headlines(summary)[0],
        f"{dense['latency_ms']['p95']:.1f}",
        "w.jsonl",
        "abababababab",
        "5 s of warm-up",
    ):
        assert text in html
    plots = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    assert len(plots) == 2
    for plot in plots:
        assert any("latency, ms" in (text.text or "") for text in ET.fromstring(plot).iter("text"))
        assert "var(--tone-0)" in plot
        assert "var(--tone-1)" in plot


def test_the_same_run_gives_the_same_page() -> None:
    run = make_run(steady_run(12))
    summary, _ = summarize(run)
    assert render(run, summary) == render(run, summary)


def test_the_page_asks_for_nothing_else() -> None:
    run = make_run(steady_run(27), rate=20.0)
    html = render(run, summarize(run)[0])
    page = Page(html)
    assert not {"script", "iframe", "img", "object", "embed", "form", "base"} & set(page.tags)
    assert page.tags.count("link") == 1
    assert all(reference == "data:," or reference.startswith("#") for reference in page.references)
    assert len(page.ids) == len(set(page.ids))
    assert {reference[1:] for reference in page.references if reference.startswith("#")} <= set(page.ids)
    assert set(re.findall(r"url\(#([^)]+)\)", html)) <= set(page.ids)
    assert not re.search(r"@import|url\((?!#)", html)
    assert set(re.findall(r"https?://[^\s<,]+", html)) == {"http://127.0.0.1:8000"}  # the server under test, as text


def test_hostile_names_stay_text() -> None:
    targets = [Target(ref="g2p@dense", name=f"a{HOSTILE}"), Target(ref="g2p@pruned", name=f"b{HOSTILE}")]
    rows = [*steady_run(27), row(at_s=6.0, outcome=HOSTILE)]
    run = make_run(
        rows,
        targets=targets,
        baseline=targets[0],
        workload=TextWorkload(name=HOSTILE, sha256="0" * 64, sources=("a",)),
        info={"router": HOSTILE, "version": HOSTILE, "model_device_type": HOSTILE},
        models=[{"ref": "g2p@dense", "dtype": HOSTILE, "digest": HOSTILE, "spec": HOSTILE}, {"ref": "g2p@pruned"}],
    )
    summary, _ = summarize(run)
    html = render(run, summary)
    assert "script" not in Page(html).tags
    assert HOSTILE not in html
    assert html.count("&lt;script&gt;alert(") >= 8
