"""The server's Prometheus metrics. Labels come only from loaded models; every child is created when a model loads.

Read headline ratios from `_sum / _count`, which is exact; the buckets resolve a millisecond.
"""

from collections import Counter as Tally
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics import MetricWrapperBase

from server.engine.interface.results import Timings
from server.frontend.recent import RecentAnswers
from server.messages import Ready, Stats
from server.telemetry.request_record import TraceIds

OUTCOMES = ("ok", "client_error", "rejected", "timeout", "cancelled", "error")
MODES = ("unary", "stream", "compare")
AGREEMENTS = ("exact", "close", "different")
LOOK_UPS = ("hit", "joined", "miss")
PATHS = ("graph", "eager")  # of a decode step, if the engine records graphs
UNKNOWN = "_unknown"  # model and variant labels of requests refused before their variant was known

_LABELS = ("model", "variant")
_M = TypeVar("_M", bound=MetricWrapperBase)


def geometric_buckets(least: float, most: float, factor: float = 1.2) -> tuple[float, ...]:
    """Bounds from `least` up, each `factor` times the previous one, the last at least `most`."""
    bounds = [least]
    while bounds[-1] < most:
        bounds.append(float(f"{bounds[-1] * factor:.4g}"))
    return tuple(bounds)


def decimal_buckets(most: int) -> tuple[float, ...]:
    """1, 2, 5, 10, 20, 50, ... up to `most`."""
    bounds = (step * 10**power for power in range(12) for step in (1.0, 2.0, 5.0))
    return tuple(takewhile(lambda bound: bound <= most, bounds))


_REQUEST_BUCKETS = geometric_buckets(0.001, 10.0)
_TOKEN_BUCKETS = geometric_buckets(0.0001, 1.0)
_RATIO_BUCKETS = geometric_buckets(0.1, 100.0)
_COUNT_BUCKETS = decimal_buckets(10_000)


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """The labels of nash_model_info."""

    version: str
    digest: str
    parent: str
    decoder_layers: int
    encoder_sparsity: float
    dtype: str
    baseline: bool  # whether the model's other variants are compared with it
    engine: str  # what runs it: `native-SET` or `torch`

    @property
    def labels(self) -> dict[str, str]:
        """As Prometheus labels: all strings, booleans as true and false."""
        values = vars(self).items()
        return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in values}


class Metrics:
    """All metrics of one server, in their own registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._labelled: list[MetricWrapperBase] = []  # by model and variant
        ProcessCollector(registry=registry)
        self.requests = self._counter("requests", "Generations, by outcome", "outcome")
        self.duration = self._histogram(
            "request_duration_seconds", "Arrival of the request, its body read, to its answer", _REQUEST_BUCKETS, "mode"
        )
        self.first_token = self._histogram("time_to_first_token_seconds", "Arrival to first token", _REQUEST_BUCKETS)
        self.output_token = self._histogram(
            "time_per_output_token_seconds", "Mean gap between a generation's tokens", _TOKEN_BUCKETS
        )
        self.queue = self._histogram("queue_seconds", "Arrival to a slot", _REQUEST_BUCKETS)
        self.encode = self._histogram("encode_seconds", "One encoder batch", _REQUEST_BUCKETS)
        self.decode_step = self._histogram("decode_step_seconds", "One step of the whole batch", _TOKEN_BUCKETS)
        self.batch_size = self._histogram("batch_size", "Sequences in a decode step", _COUNT_BUCKETS)
        self.source_tokens = self._histogram("source_tokens", "Source tokens of a generation", _COUNT_BUCKETS)
        self.generated_tokens = self._histogram("generated_tokens", "Tokens that a generation made", _COUNT_BUCKETS)
        self.tokens = self._counter("tokens", "Tokens through the engine", "direction")
        self.graph_steps = self._counter("graph_steps", "Decode steps, by whether a graph replayed them", "path")
        self.restarts = self._counter("worker_restarts", "Workers that died and were started again")
        self.cache_requests = self._counter(
            "cache_requests", "Requests that looked for an earlier answer", "kind", "outcome"
        )
        self.quarantined = self._counter("quarantined", "Generations that killed the worker that ran them alone")
        self.rate_limited = self._counter("rate_limited", "Requests that their keys' limits refused")
        self.watchdog_kills = self._counter("watchdog_kills", "Workers that hung and were ended")
        self.damaged = self._counter("store_verify_failures", "Loads refused: the files are not those published")
        self.shadow_requests = self._counter("shadow_requests", "Pairs run in the shadow, by agreement", "agreement")
        self.shadow_speedup = self._histogram(
            "shadow_speedup", "Time of the variant that answers over this one's, in a pair", _RATIO_BUCKETS
        )
        self.running = self._gauge("requests_running", "Generations that hold a slot")
        self.waiting = self._gauge("requests_waiting", "Generations that wait for a slot")
        self.slots = self._gauge("slots", "Generations that can run at once")
        self.cache_used = self._gauge("cache_used_ratio", "Used part of the attention caches", "kind")
        self.memory = self._gauge("model_memory_bytes", "Memory of the model's worker", "kind")
        self.load = self._gauge("model_load_seconds", "Time that the last load took, imports included")
        self.traffic_weight = self._gauge("traffic_weight", "Share of the requests that name only the model, if set")
        self.info = self._kept(Info("nash_model", "What is loaded", _LABELS, registry=registry))
        # Of all variants together, for those who can read one series alone and not add several up.
        self._of_the_server("requests_running", "Generations of all variants that hold a slot", self.running, sum)
        self._of_the_server("requests_waiting", "Generations of all variants that wait for a slot", self.waiting, sum)
        self._of_the_server("cache_used_ratio", "Used part of the fullest attention cache", self.cache_used, max)
        for outcome in OUTCOMES:
            self.requests.labels(UNKNOWN, UNKNOWN, outcome)
        self.rate_limited.labels(UNKNOWN, UNKNOWN)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return self._kept(Counter(f"nash_{name}", text, (*_LABELS, *labels), registry=self._registry))

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return self._kept(Gauge(f"nash_{name}", text, (*_LABELS, *labels), registry=self._registry))

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return self._kept(
            Histogram(f"nash_{name}", text, (*_LABELS, *labels), registry=self._registry, buckets=buckets)
        )

    def _of_the_server(self, name: str, text: str, gauge: Gauge, over: Callable[[list[float]], float]) -> None:
        def now() -> float:
            return over([sample.value for metric in gauge.collect() for sample in metric.samples] or [0.0])

        Gauge(f"nash_server_{name}", text, registry=self._registry).set_function(now)

    def _kept(self, metric: _M) -> _M:
        self._labelled.append(metric)
        return metric

    def shadowed(self, model: str, variant: str, agreement: str, speedup: float) -> None:
        """Count a pair; `variant` is the one that was tried."""
        for each in AGREEMENTS:
            self.shadow_requests.labels(model, variant, each).inc(each == agreement)
        self.shadow_speedup.labels(model, variant).observe(speedup)

    def remove(self, model: str, variant: str) -> None:
        """Drop every child with these labels."""
        for metric in self._labelled:
            metric.remove_by_labels({"model": model, "variant": variant})

    def refused(self, outcome: str) -> None:
        """Count a request that ended before its variant was known."""
        self.requests.labels(UNKNOWN, UNKNOWN, outcome).inc()

    def limited(self) -> None:
        """Count a request that its key's limits refused."""
        self.rate_limited.labels(UNKNOWN, UNKNOWN).inc()

    def divided(self, model: str, weights: Mapping[str, float]) -> None:
        """Say how a model's requests are divided among its loaded variants; empty if nothing is set."""
        self.traffic_weight.remove_by_labels({"model": model})
        for variant, weight in weights.items():
            self.traffic_weight.labels(model, variant).set(weight / sum(weights.values()))

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """All metrics, and their content type: Prometheus's text format, or OpenMetrics for those who accept it.

        Only OpenMetrics has exemplars.
        """
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


class VariantMetrics:
    """The metric children of one loaded variant."""

    def __init__(self, metrics: Metrics, model: str, variant: str) -> None:
        own = (model, variant)
        self._requests = {outcome: metrics.requests.labels(*own, outcome) for outcome in OUTCOMES}
        self._duration = {mode: metrics.duration.labels(*own, mode) for mode in MODES}
        self._first_token = metrics.first_token.labels(*own)
        self._output_token = metrics.output_token.labels(*own)
        self._queue = metrics.queue.labels(*own)
        self._encode = metrics.encode.labels(*own)
        self._decode_step = metrics.decode_step.labels(*own)
        self._batch_size = metrics.batch_size.labels(*own)
        self._source_tokens = metrics.source_tokens.labels(*own)
        self._generated_tokens = metrics.generated_tokens.labels(*own)
        self._tokens = {kind: metrics.tokens.labels(*own, kind) for kind in ("source", "padding", "generated")}
        self._own = own
        self._graph_steps = metrics.graph_steps
        self._restarts = metrics.restarts.labels(*own)
        self._quarantined = metrics.quarantined.labels(*own)
        self._watchdog_kills = metrics.watchdog_kills.labels(*own)
        self._running = metrics.running.labels(*own)
        self._waiting = metrics.waiting.labels(*own)
        self._slots = metrics.slots.labels(*own)
        self._cache_used = {kind: metrics.cache_used.labels(*own, kind) for kind in ("self", "cross")}
        self._memory = {kind: metrics.memory.labels(*own, kind) for kind in ("weights", "cache", "peak")}
        self._load = metrics.load.labels(*own)
        for agreement in AGREEMENTS:
            metrics.shadow_requests.labels(*own, agreement)
        metrics.shadow_speedup.labels(*own)
        self._damaged = metrics.damaged.labels(*own)
        self._look_ups = {outcome: metrics.cache_requests.labels(*own, "answer", outcome) for outcome in LOOK_UPS}
        self._metrics = metrics
        self.recent = RecentAnswers()
        self.outcomes: Tally[str] = Tally()  # of all generations since the variant was loaded
        self.state: Stats | None = None  # the worker's last report; None until it has done something

    def describe(self, description: ModelDescription) -> None:
        """Say which version it is."""
        self._metrics.info.labels(*self._own).info(description.labels)

    def remove(self) -> None:
        """Forget everything about the variant: it is not loaded any more."""
        self._metrics.remove(*self._own)

    def ended(self, outcome: str, generations: int = 1) -> None:
        """Count generations that ended in `outcome`, refused ones included."""
        self._requests[outcome].inc(generations)
        self.outcomes[outcome] += generations

    def answered(
        self,
        mode: str,
        duration_s: float,
        timings: Timings,
        source: int,
        generated: int,
        trace: TraceIds | None = None,
    ) -> None:
        """Count one generation that succeeded, with its times and token counts, and the trace that tells more."""
        exemplar = (
            {"trace_id": trace.trace_id, "span_id": trace.span_id} if trace is not None and trace.sampled else None
        )
        self.ended("ok")
        self._duration[mode].observe(duration_s, exemplar)
        if mode != "compare":  # one at a time, on a machine that does nothing else: not what callers see
            self.recent.note(duration_s)
        self._first_token.observe(timings.time_to_first_token_ms / 1e3, exemplar)
        if timings.time_per_output_token_ms is not None:
            self._output_token.observe(timings.time_per_output_token_ms / 1e3, exemplar)
        self._queue.observe(timings.queue_ms / 1e3, exemplar)
        self._source_tokens.observe(source)
        self._generated_tokens.observe(generated)

    def loaded(self, ready: Ready) -> None:
        """Record what a worker reported when its model was loaded."""
        self._slots.set(ready.limits.slots)
        self._load.set(ready.load_s)
        for kind, count in ready.memory_bytes.items():
            self._memory[kind].set(count)

    def restarted(self) -> None:
        """Count a worker that died; nothing runs until the next one is loaded."""
        self._restarts.inc()
        self._rest()

    def unloaded(self) -> None:
        """Record that the model has no worker until the next request, and so no memory."""
        self._rest()
        for kind in self._memory.values():
            kind.set(0)

    def _rest(self) -> None:
        self.state = None
        self._running.set(0)
        self._waiting.set(0)
        for ratio in self._cache_used.values():
            ratio.set(0.0)

    def looked_up(self, outcome: str) -> None:
        """Count a request that looked for an earlier answer: "hit", "miss", or "joined" to one that was running."""
        self._look_ups[outcome].inc()

    def damaged(self) -> None:
        """Count a load that was refused because the files are not those that were published."""
        self._damaged.inc()

    def quarantined(self) -> None:
        """Count a generation that killed the worker that ran it alone."""
        self._quarantined.inc()

    def hung(self) -> None:
        """Count a worker that hung and was ended."""
        self._watchdog_kills.inc()

    def observe(self, stats: Stats) -> None:
        """Record what a worker has done since its last report."""
        self.state = stats
        for seconds in stats.decode_step_s:
            self._decode_step.observe(seconds)
        for seconds in stats.encode_s:
            self._encode.observe(seconds)
        for size in stats.batch_sizes:
            self._batch_size.observe(size)
        self._tokens["source"].inc(stats.source_tokens)
        self._tokens["padding"].inc(stats.padding_tokens)
        self._tokens["generated"].inc(stats.generated_tokens)
        self._running.set(stats.running)
        self._waiting.set(stats.waiting)
        for kind, ratio in stats.cache_used_ratio.items():
            self._cache_used[kind].set(ratio)
        self._memory["peak"].set(stats.peak_bytes)
        for outcome, count in stats.source_lookups.items():
            if count:
                self._metrics.cache_requests.labels(*self._own, "source", outcome).inc(count)
        if stats.steps_by_path:  # with graphs, both children exist from the first step on; without, neither
            for path in PATHS:
                self._graph_steps.labels(*self._own, path).inc(stats.steps_by_path.get(path, 0))
