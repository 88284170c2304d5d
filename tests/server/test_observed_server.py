"""A real server that is traced, logs in JSON, and reads its file of settings again while it serves."""

import json
import re
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics

from tests.running_server import RunningServer, publish_tiny_models
from tests.server.otlp_collector import OtlpCollector, collecting

PARENT_TRACE, PARENT_SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
FIRST = 'models = ["tiny@dense,threads=1"]\nlog_format = "json"\naccess_log = true\nmax_batch_items = 4\n'
SECRET = "hello b"  # the text of all requests


@dataclass(frozen=True)
class Observed:
    """A server, its file of settings, and who collects what it sends."""

    server: RunningServer
    file: Path
    collector: OtlpCollector

    @property
    def url(self) -> str:
        return self.server.url

    def reload(self, text: str) -> str:
        """Have it read this file; return the line of the log that says how that went."""
        self.file.write_text(text)
        self.server.process.send_signal(signal.SIGHUP)
        return self.server.next_line('"logger":"server.frontend.reloading","message":"the settings were read again')

    def line(self, text: str) -> dict[str, Any]:
        """The next line of the log that has this text."""
        document: dict[str, Any] = json.loads(self.server.next_line(text))
        return document


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    folder = tmp_path_factory.mktemp("observed")
    store = publish_tiny_models(folder)
    file = folder / "server.toml"
    file.write_text(FIRST)
    with collecting() as (address, collector):
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": address,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "OTEL_METRIC_EXPORT_INTERVAL": "200",
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=test",
        }
        with RunningServer("--store", str(store), "--config", str(file), environment=environment) as server:
            yield Observed(server, file, collector)
        assert server.process.returncode == 0
        assert collector.faults == []


def attributes(span: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


def test_a_request_is_one_trace_below_its_callers(observed: Observed) -> None:
    headers = {"traceparent": f"00-{PARENT_TRACE}-{PARENT_SPAN}-01", "x-request-id": "traced-1"}
    body = {"inputs": SECRET, "parameters": {"max_new_tokens": 5}}
    response = httpx.post(f"{observed.url}/generate", json=body, headers=headers, timeout=60)
    assert response.status_code == 200
    spans = observed.collector.trace(PARENT_TRACE, 5)
    by_name = {span.name: span for span in spans}
    assert set(by_name) == {"POST /generate", "text_completion tiny@dense", "queue", "encode", "decode"}
    root, generation = by_name["POST /generate"], by_name["text_completion tiny@dense"]
    assert root.parent_span_id.hex() == PARENT_SPAN
    assert response.headers["traceresponse"] == f"00-{PARENT_TRACE}-{root.span_id.hex()}-01"
    assert generation.parent_span_id == root.span_id
    phases = [by_name[name] for name in ("queue", "encode", "decode")]
    assert {phase.parent_span_id for phase in phases} == {generation.span_id}
    timings = response.json()["timings"]
    for phase, name in zip(phases, ("queue_ms", "encode_ms", "decode_ms"), strict=True):
        assert (phase.end_time_unix_nano - phase.start_time_unix_nano) / 1e6 == pytest.approx(timings[name], abs=0.01)
    assert phases[0].start_time_unix_nano == generation.start_time_unix_nano
    assert phases[0].end_time_unix_nano == phases[1].start_time_unix_nano
    said = attributes(generation)
    assert (said["gen_ai.operation.name"], said["gen_ai.provider.name"]) == ("text_completion", "nash")
    assert (said["gen_ai.request.model"], said["gen_ai.response.model"]) == ("tiny", "tiny@dense")
    assert said["gen_ai.request.max_tokens"] == 5
    assert 1 <= said["gen_ai.usage.output_tokens"] <= 5
    assert attributes(root) | {
        "http.route": "/generate",
        "http.response.status_code": 200,
        "nash.request_id": "traced-1",
        "gen_ai.usage.input_tokens": said["gen_ai.usage.input_tokens"],
    } == attributes(root)
    assert {each["service.name"] for each in observed.collector.resources} == {"nash"}
    assert {each["deployment.environment"] for each in observed.collector.resources} == {"test"}
    assert SECRET not in str(observed.collector.spans)

    line = observed.line('"request_id":"traced-1"')
    assert (line["logger"], line["message"], line["level"]) == ("server.access", "request", "info")
    assert (line["method"], line["path"], line["status"], line["outcome"]) == ("POST", "/generate", 200, "ok")
    assert (line["model"], line["generations"]) == ("tiny@dense", 1)
    assert line["output_tokens"] == said["gen_ai.usage.output_tokens"]
    assert line["decode_ms"] == pytest.approx(timings["decode_ms"], abs=0.01)
    assert line["trace_id"] == PARENT_TRACE
    assert SECRET not in json.dumps(line)


def test_who_leaves_before_a_response_is_cancelled_and_no_fault(observed: Observed) -> None:
    address = httpx.URL(observed.url)
    body = json.dumps({"inputs": "abc", "parameters": {"max_new_tokens": 200, "min_new_tokens": 200}}).encode()
    with socket.create_connection((address.host, address.port)) as connection:
        connection.sendall(
            b"POST /generate HTTP/1.1\r\nhost: 127.0.0.1\r\nx-request-id: left-1\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%s" % (len(body), body)
        )
    line = observed.line('"request_id":"left-1"')
    assert (line["status"], line["outcome"], line["level"]) == (499, "cancelled", "info")


def test_the_same_times_come_as_metrics_of_the_conventions(observed: Observed) -> None:
    for name in ("request.duration", "time_to_first_token", "time_per_output_token"):
        metric = observed.collector.metric(f"gen_ai.server.{name}")
        assert metric.unit == "s"
        point = metric.histogram.data_points[0]
        assert point.count >= 1
        assert attributes(point)["gen_ai.response.model"] == "tiny@dense"
        assert len(point.explicit_bounds) > 10


def test_histograms_have_exemplars_for_those_who_take_openmetrics(observed: Observed) -> None:
    accept = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.3"
    response = httpx.get(f"{observed.url}/metrics", headers={"accept": accept})
    assert response.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    families = {family.name: family for family in openmetrics(response.text)}  # type: ignore[no-untyped-call]
    samples = families["nash_request_duration_seconds"].samples
    [exemplar] = [sample.exemplar for sample in samples if sample.exemplar is not None]
    assert exemplar.labels["trace_id"] == PARENT_TRACE
    classic = httpx.get(f"{observed.url}/metrics")
    assert classic.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert PARENT_TRACE not in classic.text


def test_what_only_looks_is_logged_and_not_traced(observed: Observed) -> None:
    response = httpx.get(f"{observed.url}/health", headers={"x-request-id": "look-1"})
    assert "traceresponse" not in response.headers
    line = observed.line('"request_id":"look-1"')
    assert (line["path"], line["outcome"]) == ("/health", "ok")
    assert "trace_id" not in line
    httpx.get(f"{observed.url}/none%0aof%20these?key=secret", headers={"x-request-id": "look-2"})
    line = observed.line('"request_id":"look-2"')
    assert (line["path"], line["status"], line["outcome"]) == ("/none%0aof%20these", 404, "client_error")


def test_limits_and_log_level_change_while_it_serves(observed: Observed) -> None:
    two = {"inputs": [SECRET, SECRET], "parameters": {"max_new_tokens": 2}}
    with httpx.Client(base_url=observed.url, timeout=60) as client:
        assert client.post("/generate", json=two).status_code == 200
        said = observed.reload(FIRST.replace("max_batch_items = 4", "max_batch_items = 1\nmax_body_bytes = 300"))
        assert "max_body_bytes 1048576 -> 300; max_batch_items 4 -> 1" in said
        refused = client.post("/generate", json=two)
        assert (refused.status_code, "at most 1" in refused.json()["error"]) == (422, True)
        assert client.post("/generate", json={"inputs": "b" * 400}).status_code == 413
        observed.reload(FIRST)
        assert client.post("/generate", json=two).status_code == 200
    assert "nothing has changed" in observed.reload(FIRST)


def test_models_and_traffic_change_while_it_serves(observed: Observed) -> None:
    with httpx.Client(base_url=observed.url, timeout=60) as client:

        def served() -> list[str]:
            return [each["ref"] for each in client.get("/models").json() if each["state"] == "ready"]

        both = FIRST.replace('"]', '", "tiny@pruned,threads=1"]')
        traffic = "[traffic.tiny]\nweights = { dense = 3, pruned = 1 }\n"
        shadow = 'shadow = { from = "dense", to = "pruned", fraction = 0.5 }\n'
        said = observed.reload(both + traffic + shadow)
        assert "tiny@pruned loaded; traffic of tiny" in said
        assert served() == ["tiny@dense", "tiny@pruned"]
        document = client.get("/models/tiny/traffic").json()
        assert document["weights"] == {"dense": 3, "pruned": 1}
        assert document["shadow"] == {"from": "dense", "to": "pruned", "fraction": 0.5}
        text = client.get("/metrics").text
        assert 'nash_traffic_weight{model="tiny",variant="dense"} 0.75' in text

        # What cannot be is refused whole, even where another part of the file could.
        for wrong, error in (
            ("max_queue = -1\n" + both, "is not a whole number"),
            ("max_queue = 1\n" + both.replace("pruned", "nobody"), "nobody"),
            ("max_queue = 1\n" + FIRST + traffic, "'pruned' is not among the models: use a variant of tiny (dense)"),
            ("max_queue = 1\nunknown_key = 2\n" + both, "unknown_key is not a setting"),
            ("max_queue = \n", "is not valid TOML"),
        ):
            observed.file.write_text(wrong)
            observed.server.process.send_signal(signal.SIGHUP)
            line = observed.line('"message":"the settings stay as they were')
            assert (error in line["message"], line["level"]) == (True, "error")
        assert served() == ["tiny@dense", "tiny@pruned"]
        assert client.get("/models/tiny/traffic").json() == document

        # What only a new start can change is said, and the rest is done.
        observed.file.write_text('host = "127.0.0.2"\n' + FIRST)
        observed.server.process.send_signal(signal.SIGHUP)
        assert "host stays 127.0.0.1, not 127.0.0.2: start" in observed.line('"level":"warning"')["message"]
        observed.server.next_line("the settings were read again: traffic of tiny; tiny@pruned unloaded")
        assert served() == ["tiny@dense"]
        assert client.get("/models/tiny/traffic").json()["weights"] == {}

        said = observed.reload(FIRST.replace("threads=1", "threads=1,slots=5"))
        assert "tiny@dense loaded with other keys" in said
        assert 'nash_slots{model="tiny",variant="dense"} 5.0' in client.get("/metrics").text


def test_a_request_that_the_server_failed_is_a_warning(observed: Observed) -> None:
    same_models = observed.file.read_text()
    observed.reload(same_models.replace("access_log = true", "access_log = false") + "total_s = 0.01\n")
    body = {"inputs": SECRET, "parameters": {"max_new_tokens": 200, "min_new_tokens": 200, "num_beams": 4}}
    headers = {"x-request-id": "late-1"}
    response = httpx.post(f"{observed.url}/generate", json=body, headers=headers, timeout=60)
    assert response.status_code == 504
    line = observed.line('"request_id":"late-1"')
    assert (line["level"], line["outcome"], line["status"]) == ("warning", "timeout", 504)
    assert re.match(r"the request took more than 0\.01 s", line["error"])
    assert "input_tokens" in line
