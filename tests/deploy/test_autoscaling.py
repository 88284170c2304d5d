"""What docs/operations.md tells operators to paste."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from server.frontend.metrics import Metrics, VariantMetrics

PAGE = Path(__file__).parents[2] / "docs/operations.md"


@pytest.fixture(scope="module")
def pasted() -> list[Any]:
    """The YAML of the page."""
    return [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)]


@pytest.fixture(scope="module")
def exposed() -> dict[str, str]:
    """The types of the server's series, by name."""
    metrics = Metrics(CollectorRegistry())
    VariantMetrics(metrics, "titles", "pruned")
    content, _ = metrics.exposition()
    families = text_string_to_metric_families(content.decode())
    return {sample.name: family.type for family in families for sample in family.samples}


def test_keda_asks_for_one_value_of_gauges_that_are_there(
    pasted: list[Any], exposed: dict[str, str], tmp_path: Path
) -> None:
    [scaled] = [each for each in pasted if isinstance(each, dict) and each.get("kind") == "ScaledObject"]
    [trigger] = scaled["spec"]["triggers"]
    asked = re.findall(r"nash_\w+", trigger["metadata"]["query"])
    assert {exposed[name] for name in asked} == {"gauge"}
    assert all(isinstance(value, str) for value in trigger["metadata"].values())  # KEDA takes nothing else
    promtool = shutil.which("promtool")
    if promtool is not None:
        rules = {"groups": [{"name": "keda", "rules": [{"record": "keda", "expr": trigger["metadata"]["query"]}]}]}
        (tmp_path / "keda.yml").write_text(yaml.safe_dump(rules))
        subprocess.run([promtool, "check", "rules", str(tmp_path / "keda.yml")], check=True, capture_output=True)


def test_the_endpoint_picker_reads_gauges_of_one_series(pasted: list[Any], exposed: dict[str, str]) -> None:
    [[extractor]] = [each for each in pasted if isinstance(each, list)]
    [engine] = extractor["parameters"]["engineConfigs"]
    names = [value for key, value in engine.items() if key.endswith("Spec")]
    assert len(names) == 3
    assert {exposed[name] for name in names} == {"gauge"}
    assert all(name.startswith("nash_server_") for name in names)
