"""The Compose files: their schema, and what they say against what is in the repository."""

import re
import subprocess
import sys
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

from server.settings import Settings, parse_settings
from tests.deploy.container_files import ROOT, compose, health_check, image_environment, instructions, plain, stages

BASE, GPU, S3 = FILES = ("docker-compose.yml", "docker-compose.gpu.yml", "docker-compose.s3.yml")
SERVICES = ("server", "prometheus", "grafana", "locust")
PUBLISHED = {"server": "8000", "grafana": "3000", "locust": "8089"}


def service(name: str, *files: str, **environment: str) -> dict[str, Any]:
    found: dict[str, Any] = compose(*files, **environment)["services"][name]
    return found


def server_settings(*files: str, **environment: str) -> Settings:
    """What the server reads in its container."""
    return parse_settings([], image_environment("server") | service("server", *files, **environment)["environment"])


def mounts(name: str) -> dict[PurePosixPath, tuple[str, bool]]:
    """By folder or file in the container: what is there, and whether it is read-only."""
    found = {}
    for volume in service(name).get("volumes", ()):
        if isinstance(volume, dict):
            found[PurePosixPath(volume["target"])] = (volume["source"], volume["read_only"])
        else:
            source, target, *mode = volume.split(":")
            found[PurePosixPath(target)] = (source, mode == ["ro"])
    return found


def in_repository(name: str, path: str) -> Path:
    """The file that a service finds at `path`."""
    found = mounts(name)
    target = next(each for each in (PurePosixPath(path), *PurePosixPath(path).parents) if each in found)
    return ROOT / found[target][0] / PurePosixPath(path).relative_to(target)


def seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+)s", text)
    assert match is not None, text
    return float(match[1])


def test_the_schema_of_compose(tmp_path: Path) -> None:
    for name in FILES:
        (tmp_path / name).write_text(plain(name), encoding="utf-8")
    paths = [str(tmp_path / name) for name in FILES]
    command = [str(Path(sys.executable).parent / "check-jsonschema"), "--builtin-schema", "vendor.compose-spec", *paths]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_services_and_what_the_overlays_change() -> None:
    assert tuple(compose()["services"]) == SERVICES
    for overlay in (GPU, S3):
        assert set(yaml.safe_load(plain(overlay))["services"]) == {"server"}
    assert [name for name in SERVICES if "profiles" in service(name)] == ["locust"]


@pytest.mark.parametrize("files", [(BASE,), (BASE, GPU), (BASE, S3)])
@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_confined(name: str, files: tuple[str, ...]) -> None:
    found = service(name, *files)
    assert re.fullmatch(r"[1-9]\d*:\d+", found["user"])
    assert found["read_only"] is True
    assert found["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in found["security_opt"]
    assert found["restart"] == "unless-stopped"
    assert {"max-size", "max-file"} <= set(found["logging"]["options"])
    assert not {"privileged", "network_mode", "pid", "cap_add"} & set(found)


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_published_on_loopback_only(name: str) -> None:
    ports = service(name).get("ports", [])
    assert ports == ([f"127.0.0.1:{PUBLISHED[name]}:{PUBLISHED[name]}"] if name in PUBLISHED else [])


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_built_here_or_pinned(name: str) -> None:
    found = service(name)
    if "build" in found:
        assert found["build"]["target"] in stages()
        assert found["user"] == [rest for word, rest in instructions(found["build"]["target"]) if word == "USER"][-1]
        arguments = {rest.partition("=")[0] for stage in stages().values() for word, rest in stage if word == "ARG"}
        assert set(found["build"].get("args", ())) <= arguments
    else:
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", found["image"])


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_has_a_health_check(name: str) -> None:
    found = service(name)
    if "build" in found:
        assert health_check(found["build"]["target"])
        assert "healthcheck" not in found
    else:
        assert found["healthcheck"]["test"][0] == "CMD"
        assert seconds(found["healthcheck"]["timeout"]) <= seconds(found["healthcheck"]["interval"])
    for needed, how in found.get("depends_on", {}).items():
        assert needed in SERVICES
        assert how == {"condition": "service_healthy"}


def test_what_is_mounted_is_in_the_repository_and_read_only() -> None:
    volumes = compose()["volumes"]
    for name in SERVICES:
        for target, (source, read_only) in mounts(name).items():
            if source in volumes:
                continue
            assert read_only, target
            assert source == "./store" or (ROOT / source).exists(), source


def test_the_server_serves_the_store_that_is_mounted() -> None:
    settings = server_settings()
    assert mounts("server") == {PurePosixPath(settings.store): ("./store", True)}
    assert service("server", NASH_STORE="/srv/models")["volumes"][0]["source"] == "/srv/models"
    assert service("server")["volumes"][0]["bind"] == {"create_host_path": False}
    assert str(settings.port) == PUBLISHED["server"]
    assert not settings.is_loopback
    assert settings.allow_unauthenticated
    assert [model.ref for model in settings.models] == ["g2p@dense", "g2p@pruned"]
    other = server_settings(NASH_MODELS="titles@dense titles@pruned,threads=2")
    assert [(model.ref, model.engine.threads) for model in other.models][1] == ("titles@pruned", 2)


def test_the_overlay_runs_the_same_models_on_a_gpu() -> None:
    settings = server_settings(BASE, GPU)
    assert [model.ref for model in settings.models] == [model.ref for model in server_settings().models]
    assert {(model.engine.device, model.engine.dtype) for model in settings.models} == {("cuda", "bfloat16")}
    [device] = service("server", BASE, GPU)["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])


def test_the_overlay_reads_the_store_from_object_storage() -> None:
    settings = server_settings(BASE, S3, NASH_STORE="s3://models/prod")
    assert str(settings.store) == "s3://models/prod"
    found = service("server", BASE, S3)
    [volume] = found["volumes"]
    assert volume["target"] == image_environment("server")["NASH_CACHE"]
    assert volume["source"] in compose(BASE, S3)["volumes"]
    passed = {name for name, value in found["environment"].items() if value is None}  # from the host, if it is set
    assert passed > {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_ENDPOINT_URL"}


def test_how_to_open_it_to_others_as_the_comment_says() -> None:
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    block = text[text.index("#   services:") : text.index("\nname:")]
    override = yaml.safe_load(re.sub(r"(?m)^#  ? ?", "", block).replace("!override ", ""))["services"]
    environment = image_environment("server") | service("server")["environment"] | override["server"]["environment"]
    settings = parse_settings([], environment)
    assert not settings.allow_unauthenticated
    assert [str(settings.api_keys)] == [volume.split(":")[1] for volume in override["server"]["volumes"]]
    credentials = re.findall(r"#\s+credentials_file: (\S+)", (ROOT / "deploy/prometheus/prometheus.yml").read_text())
    assert credentials == [volume.split(":")[1] for volume in override["prometheus"]["volumes"]]


def test_a_stop_leaves_time_for_the_drain() -> None:
    assert seconds(service("server")["stop_grace_period"]) >= server_settings().drain_s + 10
    assert service("server")["init"] is True


def test_prometheus_finds_its_configuration_and_the_server() -> None:
    flags = dict(argument.split("=", 1) for argument in service("prometheus")["command"])
    assert flags["--storage.tsdb.path"] in {str(target) for target in mounts("prometheus")}
    assert {"--storage.tsdb.retention.time", "--storage.tsdb.retention.size"} <= set(flags)
    path = flags["--config.file"]
    configuration = yaml.safe_load(in_repository("prometheus", path).read_text(encoding="utf-8"))
    for pattern in configuration["rule_files"]:
        folder = in_repository("prometheus", str(PurePosixPath(path).parent / PurePosixPath(pattern).parent))
        assert list(folder.glob(PurePosixPath(pattern).name)), pattern
    [job] = configuration["scrape_configs"]
    assert job["job_name"] == "nash"
    assert job["static_configs"] == [{"targets": [f"server:{server_settings().port}"]}]


def test_grafana_finds_its_dashboard_and_prometheus() -> None:
    environment = service("grafana")["environment"]
    assert in_repository("grafana", environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]).is_file()
    provisioning = in_repository("grafana", "/etc/grafana/provisioning")
    [source] = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    [provider] = yaml.safe_load((provisioning / "dashboards/nash.yaml").read_text())["providers"]
    assert list(in_repository("grafana", provider["options"]["path"]).glob("*.json"))


def test_nobody_can_log_into_grafana() -> None:
    environment = service("grafana")["environment"]
    assert environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert not [name for name in environment if "PASSWORD" in name]
