"""Records of a version's measured latency, one for each measurement, with the hardware it was taken on."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

KIND = "latency"  # among a version's measurements


@dataclass(frozen=True, kw_only=True)
class LatencyRecord:
    """The median times of one version under one workload. Encoder, step and total are in milliseconds."""

    dtype: str
    engine: str  # what ran it, such as "native-avx2"
    device: str  # "cpu" or "cuda:0"
    processor: str  # the name of the processor or of the GPU
    threads: int
    batch: int
    source_tokens: int
    new_tokens: int
    encode_ms: float
    step_ms: float  # of the whole batch
    total_ms: float
    repeats: int
    at: str  # UTC, ISO
    code_version: str

    @property
    def workload(self) -> tuple[object, ...]:
        """What was measured on what. Records of equal workloads can be compared."""
        measured = ("dtype", "device", "processor", "threads", "batch", "source_tokens", "new_tokens")
        return tuple(getattr(self, name) for name in measured)

    def document(self) -> dict[str, Any]:
        """The record as stored. Its id is made of all of it: every measurement is kept."""
        return {"kind": KIND, **asdict(self)}

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Self | None:
        """The record that `document` was made from; None if it is another kind of record, or a field does not fit."""
        values: dict[str, Any] = {field.name: document.get(field.name) for field in fields(cls)}
        if document.get("kind") != KIND or not all(_fits(field.type, values[field.name]) for field in fields(cls)):
            return None
        return cls(**values)


def _fits(kind: Any, value: Any) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e12
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31
    return isinstance(value, str)
