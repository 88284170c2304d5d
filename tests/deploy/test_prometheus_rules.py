"""The rules and alerts, on synthetic series, by promtool; and that those tests would notice a changed rule."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from server.engine.interface.results import Timings
from server.frontend.metrics import Metrics, ModelDescription, VariantMetrics

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy/prometheus"
RULES = FOLDER / "rules/nash.yml"
SELECTOR = re.compile(r"(?<![:\w])(nash_\w+)(?:\{([^}]*)\})?")  # a metric of the server, not a recorded one
MATCHER = re.compile(r"""(\w+)(=~|!~|!=|=)["']([^"']*)["']""")

QUICK_CHANGES = 3  # the rest is for those who change the tests; each takes a second or two
CHANGES = (
    ("            > 0.05\n          )", "            > 0.2\n          )"),
    (" >= 6\n", " >= 60\n"),
    ("< 0.95\n", "< 1\n"),
    ("> 0.05\n", "> 0.03\n"),
    ("            > 0.05\n        for: 3m", "            >= 0\n        for: 3m"),
    ("nash_requests_failed:increase5m >= 5\n", "nash_requests_failed:increase5m >= 1\n"),
    ("nash_requests_failed:increase5m >= 5\n", "nash_requests_failed:increase5m >= 50\n"),
    ('nash_requests_total{model!="_unknown"}[2m]', 'nash_requests_total{model!="_unknown"}[5m]'),
    ("for: 3m", "for: 4m"),
    ('increase5m{outcome=~"error|timeout|rejected"}', 'increase5m{outcome=~"error|timeout"}'),
    ("10 * model_variant_outcome:nash_requests:increase5m", "0.1 * model_variant_outcome:nash_requests:increase5m"),
    (
        "> on (model, variant) 10 * model_variant_outcome:nash_requests:increase2m",
        "> on (model, variant) 1e9 + model_variant_outcome:nash_requests:increase2m",
    ),
    ('{model!="_unknown"}', ""),
    ("for: 1m", "for: 30s"),
    ("for: 10m", "for: 5m"),
    (" or absent(", " and absent("),
    (" >= 6\n", " >= 4\n"),
    ("> 2.5\n", "> 1.5\n"),
    ("nash_worker_restarts_total[15m]", "nash_worker_restarts_total[1h]"),
    ("_count{mode!=", "_count{mode="),
    ('_sum{mode!="compare"}', "_sum"),
    ("rate5m > 0)", "rate5m)"),
    ('nash_model_info{baseline="true"}\n          )', "nash_model_info\n          )"),
    ("max by (model) (", "min by (model) ("),
    ("< 0.95\n", "< 0.9\n"),
    ("          and on (model, variant) model_variant:nash_pruned\n", ""),
    ('{baseline="true", variant="dense"}', '{baseline="true"}'),
    ('baseline="true", digest!=""', 'baseline="true"'),
    ("unless on (model, decoder_layers)", "unless on (model, variant)"),
    ("and on (model, parent)", "and on (parent)"),
    ("and on (model, variant) model_variant:nash_requests:rate5m > 0.1\n", "\n"),
    ("            model_variant:nash_requests:rate5m > 0.1\n", "            model_variant:nash_requests:rate5m\n"),
    ("| value | humanizeDuration", "| value"),
    ("severity: warning", "severity: critical"),
)


@pytest.fixture(scope="module")
def promtool() -> str:
    path = shutil.which("promtool")
    if path is None:
        reason = "promtool is missing: install Debian's package prometheus"
        if os.environ.get("NASH_REQUIRE_ALL") == "1":
            pytest.fail(f"{reason}, and NASH_REQUIRE_ALL is set")
        pytest.skip(reason)
    return path


@pytest.fixture(scope="module")
def exposition() -> bytes:
    """What a server with a dense and a pruned variant says of itself after one answer."""
    metrics = Metrics(CollectorRegistry())
    for variant in ("dense", "pruned"):
        description = ModelDescription(
            version="1",
            digest="d",
            parent="",
            decoder_layers=1,
            encoder_sparsity=0.0 if variant == "dense" else 0.3,
            dtype="float32",
            baseline=variant == "dense",
            engine="torch",
        )
        timings = Timings(
            queue_ms=1.0, encode_ms=1.0, decode_ms=1.0, total_ms=3.0, time_to_first_token_ms=2.0,
            time_per_output_token_ms=1.0,
        )  # fmt: skip
        served = VariantMetrics(metrics, "g2p", variant)
        served.describe(description)
        served.answered("unary", 0.003, timings, source=3, generated=2)
    return metrics.exposition()[0]


def rules() -> list[dict[str, Any]]:
    document = yaml.safe_load(RULES.read_text(encoding="utf-8"))
    return [rule for group in document["groups"] for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def unit_test(promtool: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [promtool, "test", "rules", str(folder / "tests/nash.test.yml")]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_the_configuration_and_its_rules_are_valid(promtool: str) -> None:
    command = [promtool, "check", "config", str(FOLDER / "prometheus.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 rule files found" in done.stdout
    assert f"{len(rules())} rules found" in done.stdout


def test_rules_and_alerts_on_synthetic_series(promtool: str) -> None:
    done = unit_test(promtool, FOLDER)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("old", "new"),
    [pytest.param(*change, marks=() if i < QUICK_CHANGES else pytest.mark.slow) for i, change in enumerate(CHANGES)],
)
def test_a_changed_rule_is_noticed(old: str, new: str, promtool: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FOLDER, tmp_path / "prometheus"))
    text = RULES.read_text(encoding="utf-8")
    assert old in text
    (folder / "rules/nash.yml").write_text(text.replace(old, new))
    done = unit_test(promtool, folder)
    assert done.returncode == 1
    assert "FAILED" in done.stdout + done.stderr


def test_what_the_server_says_is_well_formed(promtool: str, exposition: bytes) -> None:
    done = subprocess.run([promtool, "check", "metrics"], input=exposition, capture_output=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


def test_rules_ask_for_what_the_server_has(exposition: bytes) -> None:
    labels: dict[str, set[tuple[str, str]]] = {}
    for family in text_string_to_metric_families(exposition.decode()):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels.items())
    asked = 0
    for rule in rules():
        for text in (rule["expr"], *rule.get("annotations", {}).values()):
            for name, matchers in SELECTOR.findall(text):
                assert name in labels, name
                for label, _, values in MATCHER.findall(matchers):
                    known = {value for each, value in labels[name] if each == label}
                    wanted = {value for value in values.split("|") if value not in ("%s", "")}
                    assert wanted <= known, f"{name} has no {label}={wanted - known}"
                    asked += len(wanted)
    assert asked > 10


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: str(alert["alert"]))
def test_alerts_say_what_to_do(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("warning", "critical")
    assert re.fullmatch(r"\d+m", alert["for"])
    assert alert["annotations"]["summary"]
    [page] = re.findall(r"\bdocs/[\w.-]+\.md", alert["annotations"]["description"])
    assert (ROOT / page).is_file()


def test_alerts_tested_are_all_there_are() -> None:
    document = yaml.safe_load((FOLDER / "tests/nash.test.yml").read_text(encoding="utf-8"))
    cases = [case for test in document["tests"] for case in test.get("alert_rule_test", ())]
    for alert in alerts():
        outcomes = {bool(case["exp_alerts"]) for case in cases if case["alertname"] == alert["alert"]}
        assert outcomes == {True, False}, f"{alert['alert']} is not tested both ways"
