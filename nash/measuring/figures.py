"""What is known of a model once it has been measured, and its one form in JSON."""

from dataclasses import asdict, dataclass
from typing import Any, Self


@dataclass(frozen=True, kw_only=True)
class Latency:
    """One workload on one model, in milliseconds: a batch of sources that arrive together, all lengths forced."""

    encoder_ms: float  # the whole batch through the encoder
    step_ms: float  # one decode step of the whole batch
    total_ms: float  # from the arrival of all sources to the last token of the last answer


@dataclass(frozen=True, kw_only=True)
class Figures:
    """One model's metrics on the test rows, in percent, and its latency."""

    metrics: dict[str, float]
    latency: Latency

    def document(self) -> dict[str, Any]:
        """The figures as one JSON object, latencies beside the metrics."""
        return {"metrics": self.metrics, **asdict(self.latency)}

    @classmethod
    def of(cls, document: dict[str, Any]) -> Self:
        """The figures that `document` was made from."""
        times = {key: value for key, value in document.items() if key != "metrics"}
        return cls(metrics=document["metrics"], latency=Latency(**times))


@dataclass(frozen=True, kw_only=True)
class MeasuredModel:
    """A model's figures, and its size."""

    figures: Figures
    parameters: int
    bytes: int  # of the weights as stored

    @property
    def metrics(self) -> dict[str, float]:
        """Its metrics on the test rows."""
        return self.figures.metrics

    @property
    def latency(self) -> Latency:
        """Its latency."""
        return self.figures.latency

    def document(self) -> dict[str, Any]:
        """All of it as one flat JSON object."""
        return {**self.figures.document(), "parameters": self.parameters, "bytes": self.bytes}
