"""Every panel's query against a real Prometheus that watches a real server under a load test."""

import csv
import gzip
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.grafana import dashboard
from deploy.native import Prometheus
from tests.running_server import RunningServer, publish_tiny_models

VARIANTS = ("dense", "pruned")
WINDOWS = {"$__rate_interval": "20s", "$__range": "15m"}  # as Grafana has them on this dashboard's datasource
METRIC = re.compile(r"\b(?:[a-z_]+:)?nash_\w+(?::\w+)?")
TEXTS = ("abc", "a b c d e f", "the quick brown fox", "hello b", "hello world")  # one token for some of them is no gap
# Panels whose series belong to fewer variants: a shadow is of the variant that is tried.
OF_ONE_VARIANT = {"Shadow: agreement": "pruned", "Shadow: speed-up, mean": "pruned"}
ABSENT = {"nash_rate_limited_total"}  # counted where keys have rates of their own
TRAFFIC = {"weights": {"dense": 1, "pruned": 1}, "shadow": {"from": "dense", "to": "pruned", "fraction": 1.0}}
QUEUE_SERIES = "nash_(queue_seconds)_(.+)"


def rename_queue(configuration: dict[str, Any]) -> None:
    """Store the queue's histogram under another name, as if the server had renamed it."""
    rename = {
        "source_labels": ["__name__"],
        "regex": QUEUE_SERIES,
        "target_label": "__name__",
        "replacement": "nash_renamed_${2}",
    }
    for job in configuration["scrape_configs"]:
        job["metric_relabel_configs"] = [rename]


@dataclass(frozen=True)
class Watched:
    """A server under load, who watches it, and what the load test wrote."""

    url: str
    prometheus: Prometheus
    renamed: Prometheus
    document: dict[str, Any]
    report: Path
    faults: list[str]
    faults_where_renamed: list[str]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    if shutil.which("prometheus") is None:
        reason = "Debian's prometheus is not installed"
        if os.environ.get("NASH_REQUIRE_ALL") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("live")
    words = folder / "words.jsonl"
    words.write_text("".join(json.dumps({"source": text}) + "\n" for text in TEXTS), encoding="utf-8")
    document = json.loads(dashboard.FILE.read_text(encoding="utf-8"))
    store = publish_tiny_models(folder)
    models = [argument for variant in VARIANTS for argument in ("--model", f"tiny@{variant}")]
    with RunningServer("--store", str(store), *models, "--cache-bytes", "1000000") as server:
        address = server.url.removeprefix("http://")
        with Prometheus(address) as prometheus, Prometheus(address, change=rename_queue) as renamed:
            command = [sys.executable, "-m", "loadtest", "--host", server.url, *models, "--workload", str(words)]
            command += ["--users", "2", "--duration", "20s", "--warmup", "2s", "--out", str(folder / "report")]
            for each in (prometheus, renamed):
                each.wait_for("nash_requests_running")  # a rate sees what comes after the first scrape
            ask_again_and_in_the_shadow(server.url)
            load = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            for _ in range(3):
                body = {"inputs": "hello", "parameters": {"max_new_tokens": 4}}
                assert httpx.post(f"{server.url}/compare", json=body, timeout=60).status_code == 200
            for each in (prometheus, renamed):
                for rule in (
                    "model_variant:nash_speedup:mean5m",
                    'nash_request_duration_seconds_count{mode="compare"} > 2',
                ):
                    each.wait_for(f"count({rule}) == 2")
                each.wait_for("sum(nash_shadow_speedup_count) > 0")
                each.wait_for('count(rate(nash_request_duration_seconds_count{mode="unary"}[20s]) > 0) == 2')
            faults = list(find_faults(prometheus, document))
            faults_where_renamed = list(find_faults(renamed, document))
            assert load.wait(120) == 0
            yield Watched(server.url, prometheus, renamed, document, folder / "report", faults, faults_where_renamed)


def ask_again_and_in_the_shadow(url: str) -> None:
    """Equal streams to both variants, the dense one's run in the shadow too. Streams, so that the load test's requests,
    which are none, can be counted alone.
    """
    httpx.put(f"{url}/models/tiny/traffic", json=TRAFFIC).raise_for_status()
    for ref in ("tiny@dense", "tiny@pruned"):
        for text in ("abc", "hello", "abc"):
            body = {"inputs": text, "model": ref, "parameters": {"max_new_tokens": 4}}
            httpx.post(f"{url}/generate_stream", json=body, timeout=60).raise_for_status()
    deadline_s = time.monotonic() + 60
    while httpx.get(f"{url}/models/tiny/traffic").json()["seen"]["pairs"] < 2:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    httpx.put(f"{url}/models/tiny/traffic", json={**TRAFFIC, "shadow": None}).raise_for_status()


def find_faults(prometheus: Prometheus, document: dict[str, Any]) -> Iterator[str]:
    """What is wrong with the dashboard, as this Prometheus has the data: one line a panel and fault."""
    names = prometheus.metric_names()
    for panel in (panel for panel in document["panels"] if panel["type"] != "row"):
        for target in panel["targets"]:
            for name in METRIC.findall(target["expr"]):
                if name not in names | ABSENT:
                    yield f"{panel['title']}: {name} does not exist"
            for shown in VARIANTS if panel.get("repeat") == "variant" else (f"({'|'.join(VARIANTS)})",):
                expression = with_values(target["expr"], shown)
                series = prometheus.query(expression)
                values = [float(each["value"][1]) for each in series]
                if not all(map(math.isfinite, values)):
                    yield f"{panel['title']}: not finite: {expression}"
                if not series:
                    yield f"{panel['title']}: nothing: {expression}"
                if "$variant" not in target["expr"]:
                    continue  # what it shows belongs to no variant
                wanted = {OF_ONE_VARIANT[panel["title"]]} if panel["title"] in OF_ONE_VARIANT else set(VARIANTS)
                missing = {v for v in wanted if v in shown} - {each["metric"].get("variant") for each in series}
                if missing:
                    yield f"{panel['title']}: nothing for {', '.join(sorted(missing))}: {expression}"


def with_values(expression: str, variant: str) -> str:
    """The query as Grafana sends it."""
    for name, value in {"$model": "tiny", "$variant": variant, **WINDOWS}.items():
        expression = expression.replace(name, value)
    assert "$" not in expression
    return expression


def test_every_panel_shows_both_variants(watched: Watched) -> None:
    assert watched.faults == []


def test_few_panels_are_of_no_variant(watched: Watched) -> None:
    panels = (panel for panel in watched.document["panels"] if panel["type"] != "row")
    without = [p["title"] for p in panels if not all("$variant" in target["expr"] for target in p["targets"])]
    assert without == ["Over their own limit", "Refused before a variant was known"]


def test_what_is_refused_before_a_variant_was_known_is_shown(watched: Watched) -> None:
    [panel] = (p for p in watched.document["panels"] if p["title"] == "Refused before a variant was known")
    [target] = panel["targets"]
    expression = with_values(target["expr"], "none")
    assert httpx.post(f"{watched.url}/generate", json={"inputs": "hello", "model": "none"}).status_code == 404
    series = watched.prometheus.wait_for(f"{expression} > 0")
    assert [each["metric"] for each in series] == [{"outcome": "client_error"}]


def test_a_renamed_metric_is_found_out(watched: Watched) -> None:
    named = {fault.split(":")[0] for fault in watched.faults_where_renamed}
    assert named == {"Time in the queue, p95"}
    assert any("nash_queue_seconds_bucket does not exist" in fault for fault in watched.faults_where_renamed)
    assert any("nothing for dense, pruned" in fault for fault in watched.faults_where_renamed)


def test_the_variables_offer_what_is_loaded(watched: Watched) -> None:
    asked = {variable["name"]: variable.get("query") for variable in watched.document["templating"]["list"]}
    assert asked["model"] == "label_values(nash_model_info, model)"
    assert asked["variant"] == 'label_values(nash_model_info{model="$model"}, variant)'
    info = watched.prometheus.query("nash_model_info")
    assert {(each["metric"]["model"], each["metric"]["variant"]) for each in info} == {("tiny", v) for v in VARIANTS}
    assert {each["metric"]["variant"]: each["metric"]["baseline"] for each in info} == {
        "dense": "true",
        "pruned": "false",
    }


def test_the_rules_are_healthy_and_no_alert_fires(watched: Watched) -> None:
    rules = watched.prometheus.rules()
    assert {rule["type"] for rule in rules} == {"alerting", "recording"}
    assert [rule["name"] for rule in rules if rule["health"] != "ok"] == []
    assert [rule["name"] for rule in rules if rule["type"] == "alerting" and rule["state"] == "firing"] == []


def test_prometheus_and_the_load_test_saw_the_same_requests(watched: Watched) -> None:
    """Not a matter of speed: both have the times of the very same requests, from the server's clock."""
    times_ms: dict[str, list[float]] = defaultdict(list)
    with gzip.open(watched.report / "requests.csv.gz", "rt", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            times_ms[row["variant"]].append(float(row["total_ms"]))
    assert set(times_ms) == set(VARIANTS)
    counted = 'nash_request_duration_seconds_count{mode="unary"}'
    for variant, times in times_ms.items():
        own = counted.replace("{", f'{{variant="{variant}",')
        watched.prometheus.wait_for(f"{own} == {len(times)}")
    means = {
        variant: watched.prometheus.query(
            f'nash_request_duration_seconds_sum{{mode="unary",variant="{variant}"}}'
            f' / nash_request_duration_seconds_count{{mode="unary",variant="{variant}"}}'
        )
        for variant in VARIANTS
    }
    seen = {variant: float(vector[0]["value"][1]) for variant, vector in means.items()}
    ratio = seen["dense"] / seen["pruned"]
    own_ratio = (sum(times_ms["dense"]) / len(times_ms["dense"])) / (sum(times_ms["pruned"]) / len(times_ms["pruned"]))
    assert ratio == pytest.approx(own_ratio, rel=0.1)
