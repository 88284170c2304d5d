"""The report of a sweep: every point, the shapes over their seeds and the frontier, as JSON and as a table."""

from dataclasses import asdict, dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

from rich.table import Table

from nash.measuring.figures import MeasuredModel
from nash.measuring.latency import Speedup, Workload
from nash.measuring.metrics import HEADLINE, LOWER_IS_BETTER, quality
from nash.measuring.significance import Difference
from nash.recipes.recipe import MetricKind
from nash.recipes.sweep import Shape
from nash.sweep.frontier import Spread, fastest_within, frontier, grouped
from nash.sweep.latency import BUSY


@dataclass(frozen=True, kw_only=True)
class PointFigures:
    """One pruned model. Latency and speed-up are those of `SideBySide`."""

    id: str
    method: str
    shape: Shape  # as requested
    decoder_layers: int
    encoder_cut: float  # the share of the encoder's prunable weights that was cut: near the requested sparsity
    seed: int
    measured: MeasuredModel  # quality on the test rows
    validation: dict[str, float]  # metrics on the validation rows: they select
    speedup: Speedup
    ref: str | None = None  # the published version, if any

    def document(self) -> dict[str, Any]:
        """The point as one JSON object; it has `ref` only if the point was published."""
        document = asdict(self) | self.measured.document()
        del document["measured"]
        document["shape"] = self.shape.slug
        document["encoder_sparsity"] = self.encoder_cut if self.shape.speedup else self.shape.encoder_sparsity
        document |= {
            "speedup": self.speedup.median,
            "speedup_interval": self.speedup.interval,
            "speedup_quartiles": self.speedup.quartiles,
        }
        if self.ref is None:
            del document["ref"]
        return document


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A point that failed, and why."""

    id: str
    error: str


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A shape's quality on the test rows minus that of the dense model and, if the sweep has it, of the control."""

    dense: Difference
    control: Difference | None = None

    def document(self) -> dict[str, Any]:
        """As keys of the shape's JSON object."""
        against = {"against_dense": self.dense, "against_control": self.control}
        return {name: asdict(difference) for name, difference in against.items() if difference is not None}


@dataclass(frozen=True, kw_only=True)
class ShapeFigures:
    """A shape by one method, over its seeds. Quality is in percent, higher being better.

    `quality`, `compared` and `metrics` are of the test rows, `selecting` is the quality on the validation rows.
    """

    method: str
    shape: Shape
    points: list[PointFigures]
    quality: Spread
    compared: Compared
    selecting: Spread
    speedup: Spread
    metrics: dict[str, Spread]

    @property
    def decoder_layers(self) -> int:
        """The number of kept decoder layers."""
        return self.points[0].decoder_layers

    @property
    def encoder_cut(self) -> float:
        """The mean share cut from the encoder; if both stacks have gates, this is not the requested sparsity."""
        return fmean(point.encoder_cut for point in self.points)

    def document(self) -> dict[str, Any]:
        """The shape as one JSON object."""
        refs = [point.ref for point in self.points if point.ref is not None]
        return {
            "method": self.method,
            "shape": self.shape.slug,
            "decoder_layers": self.decoder_layers,
            "encoder_sparsity": self.encoder_cut if self.shape.speedup else self.shape.encoder_sparsity,
            "encoder_cut": self.encoder_cut,
            "seeds": [point.seed for point in self.points],
            "quality": asdict(self.quality),
            "validation_quality": asdict(self.selecting),
            "speedup": asdict(self.speedup),
            "metrics": {name: asdict(spread) for name, spread in self.metrics.items()},
            "points": [point.id for point in self.points],
            **self.compared.document(),
        } | ({"refs": refs} if refs else {})


@dataclass(frozen=True, kw_only=True)
class SweepReport:
    """The outcome of `nash sweep`. `n` is the number of test rows, `busyness` the highest of any `SideBySide`."""

    name: str
    metric: MetricKind
    n: int
    workload: Workload
    quality_kept: float
    dense: MeasuredModel  # latencies are means over the measurements beside the points
    dense_validation: dict[str, float]  # metrics on the validation rows
    dense_layers: int  # of the decoder
    points: list[PointFigures]
    compared: dict[tuple[str, Shape], Compared]  # by method and shape
    failures: list[Failure]
    busyness: float

    @cached_property
    def shapes(self) -> list[ShapeFigures]:
        """The points by method and shape."""
        groups = grouped(((point.method, point.shape), point) for point in self.points)
        return [
            ShapeFigures(
                method=method,
                shape=shape,
                points=points,
                quality=Spread.of([quality(self.metric, point.measured.metrics) for point in points]),
                compared=self.compared[method, shape],
                selecting=Spread.of([quality(self.metric, point.validation) for point in points]),
                speedup=Spread.of([point.speedup.median for point in points]),
                metrics={name: Spread.of([p.measured.metrics[name] for p in points]) for name in self.dense.metrics},
            )
            for (method, shape), points in groups.items()
        ]

    @property
    def methods(self) -> list[str]:
        """The methods' names, in the recipe's order."""
        return list(grouped((shape.method, shape) for shape in self.shapes))

    @property
    def dense_quality(self) -> float:
        """The dense model's quality in percent."""
        return quality(self.metric, self.dense.metrics)

    @cached_property
    def _places(self) -> list[int]:
        """The indices of the frontier's shapes; the index after the last shape is the dense model's."""
        figures = [(shape.selecting.mean, shape.speedup.mean) for shape in self.shapes]
        return frontier([*figures, (quality(self.metric, self.dense_validation), 1.0)])

    @cached_property
    def frontier(self) -> list[ShapeFigures]:
        """The shapes that neither another shape nor the dense model beats in quality and speed; slowest first.

        Quality is that on the validation rows.
        """
        return [self.shapes[i] for i in self._places if i < len(self.shapes)]

    @property
    def dense_on_frontier(self) -> bool:
        """Whether the dense model itself is on the frontier: no shape is both better and faster."""
        return len(self.shapes) in self._places

    @property
    def on_frontier(self) -> list[str]:
        """The ids of the points whose shapes are on the frontier."""
        return [point.id for shape in self.frontier for point in shape.points]

    @property
    def best(self) -> ShapeFigures | None:
        """The fastest shape that keeps the requested share of the dense quality on the validation rows, if any does."""
        dense = quality(self.metric, self.dense_validation)
        if self.dense_quality <= 0 or dense <= 0:
            return None
        figures = [(shape.selecting.mean, shape.speedup.mean) for shape in self.shapes]
        place = fastest_within(figures, self.quality_kept * dense)
        return None if place is None else self.shapes[place]

    @property
    def quality_name(self) -> str:
        """The name of the quality figure: the headline metric, or 100 minus an error rate."""
        name = HEADLINE[self.metric]
        return f"100 \N{MINUS SIGN} {in_words(name)}" if name in LOWER_IS_BETTER else in_words(name)

    @property
    def headline(self) -> str:
        """The finding in one sentence."""
        best = self.best
        if self.dense_quality <= 0:
            return "The dense model gets nothing right: there is no quality to keep"
        if best is None:
            return f"No shape keeps {self.quality_kept:.0%} of the dense quality"
        share = best.quality.mean / self.dense_quality
        low, high = best.compared.dense.interval
        return (
            f"{self.describe(best)}: {best.speedup.mean:.2f}x as fast, with {share:.1%} of the dense quality "
            f"(95 % interval of the difference: {low:+.2f} to {high:+.2f} points)"
        )

    @property
    def warning(self) -> str | None:
        """A warning about the speeds if the machine had other work to do; else None."""
        if self.busyness < BUSY:
            return None
        return (
            f"Other work slowed the machine while speed was measured: the dense model's median run took "
            f"{self.busyness:.1f} times as long as its fast ones. Run the same command with --remeasure when the "
            "machine is quiet"
        )

    def describe(self, shape: ShapeFigures) -> str:
        """A shape in words."""
        method = f"{shape.method}, " if len(self.methods) > 1 else ""
        asked = shape.shape.decoder_layers
        which = f" ({', '.join(map(str, asked))})" if isinstance(asked, tuple) else ""
        return (
            f"{method}{shape.decoder_layers} of {self.dense_layers} decoder layers{which}, "
            f"{shape.encoder_cut:.0%} of the encoder cut"
        )

    def document(self) -> dict[str, Any]:
        """The report as one JSON object. `quality` is the headline metric in percent, or 100 minus an error rate."""
        return {
            "model": self.name,
            "metric": HEADLINE[self.metric],
            "quality": self.quality_name,
            "n": self.n,
            "workload": asdict(self.workload),
            "dense": self.dense.document() | {"decoder_layers": self.dense_layers, "quality": self.dense_quality},
            "points": [point.document() for point in self.points],
            "shapes": [shape.document() for shape in self.shapes],
            "frontier": [shape.document() for shape in self.frontier],
            "quality_kept": self.quality_kept,
            "best": None if self.best is None else self.best.document(),
            "busyness": self.busyness,
            "failed": [asdict(failure) for failure in self.failures],
        }

    def table(self) -> Table:
        """The dense model, and below it every shape over its seeds."""
        metric = HEADLINE[self.metric]
        table = Table(
            title=self.headline,
            caption="* on the frontier of the validation rows; \N{PLUS-MINUS SIGN} is the standard deviation over "
            f"seeds; {self.n} test rows; speed-up for {self.workload}, on this machine",
            caption_justify="left",
        )
        table.add_column("method", no_wrap=True)
        for column in ("layers", "encoder cut", f"{in_words(metric)} %", "speed-up", "seeds"):
            table.add_column(column, justify="right")
        dense = f"{self.dense.metrics[metric]:.2f}"
        mark = " *" if self.dense_on_frontier else ""
        table.add_row("dense" + mark, str(self.dense_layers), "0%", dense, "1.00x", "")
        for shape in self.shapes:
            table.add_row(
                shape.method + (" *" if shape in self.frontier else ""),
                str(shape.decoder_layers),
                f"{shape.encoder_cut:.0%}",
                with_deviation(shape.metrics[metric]),
                with_deviation(shape.speedup) + "x",
                str(len(shape.points)),
            )
        return table


def in_words(metric: str) -> str:
    """A metric's name with spaces."""
    return metric.replace("_", " ")


def with_deviation(spread: Spread) -> str:
    """A mean, and the standard deviation if there is one."""
    if spread.deviation is None:
        return f"{spread.mean:.2f}"
    return f"{spread.mean:.2f} \N{PLUS-MINUS SIGN} {spread.deviation:.2f}"
