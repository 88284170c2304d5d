from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as classic

from server.engine.interface.results import Timings
from server.frontend.metrics import Metrics, VariantMetrics
from server.messages import Stats
from server.telemetry.request_record import TraceIds

OPENMETRICS = "application/openmetrics-text;version=1.0.0"
TIMINGS = Timings(
    queue_ms=1.0, encode_ms=1.0, decode_ms=1.0, total_ms=3.0, time_to_first_token_ms=2.0, time_per_output_token_ms=1.0
)


def stats(running: int, waiting: int, used: float) -> Stats:
    return Stats(
        decode_step_s=[], encode_s=[], batch_sizes=[], source_tokens=0, padding_tokens=0, generated_tokens=0,
        running=running, waiting=waiting, cache_used_ratio={"self": used, "cross": used / 2}, peak_bytes=0,
        steps_by_path={}, source_lookups={},
    )  # fmt: skip


def values(metrics: Metrics) -> dict[tuple[str, ...], float]:
    content, _ = metrics.exposition()
    samples = [sample for family in classic(content.decode()) for sample in family.samples]
    return {(sample.name, *sample.labels.values()): sample.value for sample in samples}  # by label, in order


def test_the_server_as_a_whole_has_gauges_without_labels() -> None:
    metrics = Metrics(CollectorRegistry())
    assert values(metrics)[("nash_server_requests_waiting",)] == 0.0
    dense, pruned = (VariantMetrics(metrics, "m", name) for name in ("dense", "pruned"))
    dense.observe(stats(running=2, waiting=3, used=0.5))
    pruned.observe(stats(running=1, waiting=4, used=0.25))
    told = values(metrics)
    assert told[("nash_server_requests_running",)] == 3.0
    assert told[("nash_server_requests_waiting",)] == 7.0
    assert told[("nash_server_cache_used_ratio",)] == 0.5
    dense.remove()
    assert values(metrics)[("nash_server_requests_waiting",)] == 4.0


def test_traffic_is_told_as_shares_and_forgotten() -> None:
    metrics = Metrics(CollectorRegistry())
    metrics.divided("m", {"dense": 3, "pruned": 1})
    metrics.divided("other", {"dense": 5})
    told = values(metrics)
    assert told[("nash_traffic_weight", "m", "dense")] == 0.75
    assert told[("nash_traffic_weight", "other", "dense")] == 1.0
    metrics.divided("m", {"pruned": 2})
    assert ("nash_traffic_weight", "m", "dense") not in values(metrics)
    metrics.divided("m", {})
    assert not [key for key in values(metrics) if key[:2] == ("nash_traffic_weight", "m")]


@pytest.mark.parametrize(
    ("trace", "exemplars"),
    [
        (None, []),
        (TraceIds("a" * 32, "b" * 16, sampled=False), []),
        (TraceIds("a" * 32, "b" * 16, sampled=True), [{"trace_id": "a" * 32, "span_id": "b" * 16}]),
    ],
)
def test_a_sampled_trace_is_an_exemplar_in_openmetrics_alone(trace: TraceIds | None, exemplars: list[Any]) -> None:
    metrics = Metrics(CollectorRegistry())
    served = VariantMetrics(metrics, "m", "dense")
    served.answered("unary", 0.003, TIMINGS, source=3, generated=2, trace=trace)
    content, content_type = metrics.exposition(OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    families = {family.name: family for family in openmetrics(content.decode())}  # type: ignore[no-untyped-call]
    for name in ("request_duration_seconds", "time_to_first_token_seconds", "queue_seconds"):
        samples = families[f"nash_{name}"].samples
        assert [each.exemplar.labels for each in samples if each.exemplar is not None] == exemplars
    content, content_type = metrics.exposition()
    assert content_type.startswith("text/plain; version=0.0.4")
    assert b"a" * 32 not in content


def test_what_a_dashboard_divides_by_is_there_from_the_start() -> None:
    metrics = Metrics(CollectorRegistry())
    VariantMetrics(metrics, "m", "dense").damaged()
    told = values(metrics)
    assert told[("nash_cache_requests_total", "answer", "m", "hit", "dense")] == 0.0
    assert told[("nash_shadow_requests_total", "exact", "m", "dense")] == 0.0
    assert told[("nash_store_verify_failures_total", "m", "dense")] == 1.0
