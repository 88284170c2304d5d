import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from deploy.grafana import dashboard
from deploy.native import COMPOSE, ROOT

PROVISIONING = ROOT / "deploy/grafana/provisioning"


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(dashboard.FILE.read_text(encoding="utf-8"))
    return loaded


def panels(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from (panel for panel in document["panels"] if panel["type"] != "row")


def test_the_committed_file_is_what_the_module_makes(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    assert dashboard.FILE.read_text(encoding="utf-8") == dashboard.text()
    monkeypatch.setattr("sys.argv", ["dashboard", "--check"])
    dashboard.main()
    changed = tmp_path / "nash.json"
    changed.write_text(dashboard.text().replace("p95", "p96"), encoding="utf-8")
    monkeypatch.setattr(dashboard, "FILE", changed)
    with pytest.raises(SystemExit, match="is not what this module makes"):
        dashboard.main()


def test_panels_fill_the_grid_without_overlap(document: dict[str, Any]) -> None:
    taken: Counter[tuple[int, int]] = Counter()
    for panel in document["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        taken.update((x + place["x"], y + place["y"]) for x in range(place["w"]) for y in range(place["h"]))
    assert max(taken.values()) == 1
    ids = [panel["id"] for panel in document["panels"]]
    assert len(ids) == len(set(ids))


def test_every_panel_says_what_it_shows_and_asks_the_chosen_datasource(document: dict[str, Any]) -> None:
    titles = [panel["title"] for panel in panels(document)]
    assert len(titles) == len(set(titles))
    for panel in panels(document):
        assert panel["description"].endswith("."), panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["targets"], panel["title"]
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"
            assert target["expr"].count("(") == target["expr"].count(")")
            variables = set(re.findall(r"\$\{?(\w+)", target["expr"]))
            assert variables <= {"model", "variant", "__rate_interval", "__range"}, panel["title"]


def test_every_panel_and_alert_is_explained(document: dict[str, Any]) -> None:
    page = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    rules = yaml.safe_load((ROOT / "deploy/prometheus/rules/nash.yml").read_text(encoding="utf-8"))
    alerts = [rule["alert"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule]
    assert alerts
    titles = [panel["title"].replace("$variant", "*variant*") for panel in panels(document)]
    assert not [name for name in [*titles, *alerts] if f"**{name}**" not in page]


def test_grafana_finds_the_dashboard_and_prometheus_where_compose_puts_them() -> None:
    compose = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]
    volumes = dict(volume.split(":")[:2] for volume in compose["grafana"]["volumes"] if volume.startswith("./"))
    mounted = {inside: ROOT / outside for outside, inside in volumes.items()}
    provider = yaml.safe_load((PROVISIONING / "dashboards/nash.yaml").read_text(encoding="utf-8"))["providers"][0]
    assert (mounted[provider["options"]["path"]] / dashboard.FILE.name).samefile(dashboard.FILE)
    assert mounted["/etc/grafana/provisioning"].samefile(PROVISIONING)
    home = compose["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/{dashboard.FILE.name}"
    source = yaml.safe_load((PROVISIONING / "datasources/prometheus.yaml").read_text(encoding="utf-8"))["datasources"][
        0
    ]
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in compose
    scrape = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8"))
    assert source["jsonData"]["timeInterval"] == scrape["global"]["scrape_interval"]
