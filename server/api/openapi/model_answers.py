"""The documents about a variant's card and about what variants are doing, as types; see `answers.py`."""

from typing import Literal

from typing_extensions import TypedDict

from server.api.openapi.answers import Count, Milliseconds, ModelDocument
from server.frontend.workers.supervisor import ModelState


class LineageDocument(TypedDict):
    """Where a version came from, without the recipe: `nash models lineage` shows it."""

    parent: str | None
    parent_ref: str | None  # null where the parent is not served
    data: dict[str, str]
    seed: int | None
    code_version: str | None
    precision: dict[str, str]
    trained_from: str | None


class MeasuredOnDocument(TypedDict):
    """The rows that metrics are of."""

    split: str
    rows: Count


class QualityRecordDocument(TypedDict):
    """One figure, of the version decoded in one dtype."""

    metric: str
    value: float
    lower_is_better: bool
    dtype: str
    engine: str
    split: str
    rows: Count


class QualityDocument(TypedDict):
    """How good the version was when it was published, and whenever it was evaluated since, oldest first."""

    metrics: dict[str, float]
    measured_on: MeasuredOnDocument | None
    records: list[QualityRecordDocument]


class LatencyRecordDocument(TypedDict):
    """Median times of one workload on one machine."""

    dtype: str
    engine: str
    device: str
    processor: str
    threads: Count
    batch: Count
    source_tokens: Count
    new_tokens: Count
    encode_ms: Milliseconds
    step_ms: Milliseconds
    total_ms: Milliseconds
    at: str


class CardDocument(ModelDocument):
    """A variant with what the store knows of its version; nulls and no records for a folder outside the store."""

    version: int | None
    aliases: list[str]
    created_at: str | None
    bytes: int | None
    weights_dtype: str | None
    licence: str | None
    lineage: LineageDocument | None
    quality: QualityDocument
    latency: list[LatencyRecordDocument]


class LastMinuteDocument(TypedDict):
    """The answers of the last minute, the wait in the queue included; null where there were none."""

    answers: Count
    per_s: float
    p50_ms: Milliseconds | None
    p95_ms: Milliseconds | None


class VariantStatsDocument(TypedDict):
    """What a variant is doing. `slots` is null while no worker has it loaded."""

    ref: str
    model: str
    variant: str
    state: ModelState
    slots: int | None
    running: Count
    waiting: Count
    cache_used_ratio: float
    outcomes: dict[Literal["ok", "client_error", "rejected", "timeout", "cancelled", "error"], Count]
    last_minute: LastMinuteDocument


class StatsDocument(TypedDict):
    """What every variant is doing, comparisons and shadows aside."""

    models: list[VariantStatsDocument]
