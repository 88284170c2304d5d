"""The report at the end of a run: dense beside pruned, as JSON and as a table."""

from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from nash.measuring.figures import MeasuredModel
from nash.measuring.latency import Speedup, Workload


@dataclass(frozen=True, kw_only=True)
class Report:
    """The outcome of `nash prune`. `n` is the number of test rows, `speedup` that of a whole answer.

    `asked` is the requested speed-up and `predicted` the cost model's prediction for the chosen shape; both are None if
    a shape was requested.
    """

    ref: str
    digest: str
    dense_ref: str
    n: int
    workload: Workload
    speedup: Speedup
    decoder_layers: int
    encoder_sparsity: float
    dense_vocab_size: int
    vocab_size: int
    asked: float | None = None
    predicted: float | None = None
    dense: MeasuredModel
    pruned: MeasuredModel

    def document(self) -> dict[str, Any]:
        """The report as one JSON object."""
        document = asdict(self) | {"dense": self.dense.document(), "pruned": self.pruned.document()}
        document |= document.pop("workload")
        document |= {
            "speedup": self.speedup.median,
            "speedup_interval": self.speedup.interval,
            "speedup_quartiles": self.speedup.quartiles,
        }
        if self.asked is None:
            del document["asked"], document["predicted"]
        else:
            document["measured"] = self.speedup.median
        return document

    def table(self) -> Table:
        """Dense beside pruned, and the ratio of each pair."""
        layers = f"{self.decoder_layers} decoder layer{'s' if self.decoder_layers != 1 else ''}"
        table = Table(
            title=f"{self.ref}: {layers}, encoder {self.encoder_sparsity:.0%} cut",
            caption=f"{self.n} test rows; latency of {self.workload}, medians on this machine\n{self._speed()}",
            caption_justify="left",
        )
        table.add_column("")
        for column in ("dense", "pruned", "ratio"):
            table.add_column(column, justify="right")
        for name, value in self.dense.metrics.items():
            table.add_row(name.replace("_", " ") + " %", f"{value:.2f}", f"{self.pruned.metrics[name]:.2f}", "")
        figures = (
            ("parameters (millions)", self.dense.parameters / 1e6, self.pruned.parameters / 1e6),
            ("megabytes", self.dense.bytes / 1e6, self.pruned.bytes / 1e6),
            ("encoder ms", self.dense.latency.encoder_ms, self.pruned.latency.encoder_ms),
            ("decode step ms", self.dense.latency.step_ms, self.pruned.latency.step_ms),
            ("total ms", self.dense.latency.total_ms, self.pruned.latency.total_ms),
        )
        if self.vocab_size != self.dense_vocab_size:
            ratio = f"{self.dense_vocab_size / self.vocab_size:.2f}x"
            table.add_row("vocabulary", str(self.dense_vocab_size), str(self.vocab_size), ratio)
        for name, dense, pruned in figures:
            table.add_row(name, f"{dense:.2f}", f"{pruned:.2f}", f"{dense / pruned:.2f}x")
        return table

    def _speed(self) -> str:
        low, high = self.speedup.interval
        speed = f"{self.speedup.median:.2f}x faster (95 % interval: {low:.2f} to {high:.2f})"
        if self.asked is None:
            return speed
        return f"{speed}; {self.asked:g} was asked for, {self.predicted:.2f} predicted"
