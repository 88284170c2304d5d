"""From a requested speed to a shape: measure on the engine, fit, choose, verify, and correct a miss.

All measurements use models with random weights, so the shape is known, and an impossible speed refused, before any
training. The gates later give every layer a different width; once they are decided, the speed is measured again.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from model_store.model.model import Model
from model_store.model.spec import ModelSpec
from nash.costs import latency_table
from nash.costs.cost_model import MOST_SPARSITY, CostModel, Cut, ShapeChoice, Timing, choose, fastest, fit
from nash.costs.latency_table import LatencyTable
from nash.errors import RequestError
from nash.measuring.figures import Latency
from nash.measuring.latency import Workload, measure_for, quantile, torch_threads_kept
from nash.measuring.random_model import cut_spec, load_random_engine, uniform_widths, with_vocabulary

# A larger relative miss is corrected. This is half of the promised tenth, because measurements have errors as well.
MISS = 0.05

_TURNS_S = 4.0  # about how long the turns of one measurement take
_FEWEST_TURNS, _MOST_TURNS = 7, 201
# The dense model's time may differ by this share between measurements. If it differs more, the machine was busy and the
# measurement is repeated, up to `_TRIES` times in all.
_STEADY, _TRIES = 0.25, 3

# Returns the latencies of models of these shapes, measured side by side, in the same order.
Measure = Callable[[Sequence[ModelSpec]], list[Latency]]


@dataclass(frozen=True, kw_only=True)
class SpeedPlan:
    """The shape to prune to, and why; saved with the run, so that a resumed run keeps its shape."""

    asked: float
    predicted: float  # speed-up of the chosen shape according to the cost model
    verified: float  # the same, measured with random weights
    workload: Workload
    costs: CostModel
    dense_ms: float
    decoder_layers: int
    encoder_sparsity: float

    def document(self) -> dict[str, Any]:
        """The plan as one JSON object."""
        return asdict(self)

    @classmethod
    def of(cls, document: dict[str, Any]) -> Self:
        """The plan that `document` was made from."""
        workload, costs = Workload(**document["workload"]), CostModel(**document["costs"])
        return cls(**{**document, "workload": workload, "costs": costs})

    def __str__(self) -> str:
        return (
            f"{self.decoder_layers} decoder layers and {self.encoder_sparsity:.1%} of the encoder cut for a speed-up "
            f"of {self.asked:g}: {self.predicted:.2f} predicted, {self.verified:.2f} measured with random weights"
        )


def make_plan(
    asked: float,
    dense: ModelSpec,
    workload: Workload,
    measure: Measure,
    *,
    most_sparsity: float,
    vocabulary: int | None = None,
) -> SpeedPlan:
    """Choose the shape for a speed-up of `asked` over the dense model.

    `most_sparsity` is how much of the encoder can be cut; `vocabulary` is the pruned model's number of tokens if it is
    trimmed. The cost model is corrected once if the chosen shape, when measured, misses the requested speed-up.

    Raises:
        RequestError: the speed-up is out of reach; the message names the highest one that is not.
    """
    whole = dense if vocabulary is None else with_vocabulary(dense, vocabulary)
    most_sparsity = min(most_sparsity, MOST_SPARSITY)
    shapes = probes(whole)
    latencies = measure([dense, *shapes])
    dense_ms, latencies = latencies[0].total_ms, latencies[1:]
    costs = fit([(cut_of(s), timing_of(t)) for s, t in zip(shapes, latencies, strict=True)], workload.new_tokens)
    choice = _choose(asked, whole, dense_ms, costs, workload, most_sparsity)
    shape = _shape(whole, choice)
    reference, found = beside(dense, [shape], dense_ms, measure)
    if not hits(reference.total_ms / found.total_ms, asked):
        drift = dense_ms / reference.total_ms
        timing = timing_of(found)
        timing = Timing(encode_ms=drift * timing.encode_ms, decode_ms=drift * timing.decode_ms)
        costs = costs.corrected(cut_of(shape), timing)
        corrected = _choose(asked, whole, dense_ms, costs, workload, most_sparsity)
        if corrected != choice:
            choice, shape = corrected, _shape(whole, corrected)
            reference, found = beside(dense, [shape], dense_ms, measure)
    return SpeedPlan(
        asked=asked,
        predicted=dense_ms / costs.predict(cut_of(shape)).total_ms,
        verified=reference.total_ms / found.total_ms,
        workload=workload,
        costs=costs,
        dense_ms=dense_ms,
        decoder_layers=choice.decoder_layers,
        encoder_sparsity=choice.encoder_sparsity,
    )


@dataclass(frozen=True, kw_only=True)
class TablePlan:
    """The engine's costs, from which a structure for a requested speed is searched; saved with the run."""

    asked: float
    workload: Workload
    table: LatencyTable
    dense_ms: float

    @property
    def budget_ms(self) -> float:
        """The time that a whole answer may take."""
        return self.dense_ms / self.asked

    def document(self) -> dict[str, Any]:
        """The plan as one JSON object."""
        return asdict(self)

    @classmethod
    def of(cls, document: dict[str, Any]) -> Self:
        """The plan that `document` was made from."""
        workload, table = Workload(**document["workload"]), LatencyTable.of(document["table"])
        return cls(**(document | {"workload": workload, "table": table}))

    def corrected(self, shape: ModelSpec, measured: Timing, dense_ms: float) -> Self:
        """The plan with its costs scaled to match a shape's times, measured when the dense model took `dense_ms`."""
        drift = self.dense_ms / dense_ms
        timing = Timing(encode_ms=drift * measured.encode_ms, decode_ms=drift * measured.decode_ms)
        return replace(self, table=self.table.corrected(shape, timing))

    def __str__(self) -> str:
        return f"{self.budget_ms:.2f} ms of the dense model's {self.dense_ms:.2f}"


def make_table_plan(
    asked: float, dense: ModelSpec, workload: Workload, measure: Measure, *, vocabulary: int | None = None
) -> TablePlan:
    """Measure what every part of a model takes. `vocabulary` is as in `make_plan`.

    Raises:
        RequestError: the speed-up is out of reach; the message names the highest one that is not.
    """
    whole = dense if vocabulary is None else with_vocabulary(dense, vocabulary)
    shapes = latency_table.probes(whole)
    latencies = measure([dense, *shapes])
    dense_ms = latencies[0].total_ms
    pairs = [(shape, timing_of(latency)) for shape, latency in zip(shapes, latencies[1:], strict=True)]
    plan = TablePlan(
        asked=asked, workload=workload, table=latency_table.fit(pairs, workload.new_tokens), dense_ms=dense_ms
    )
    least = cut_spec(whole, decoder_layers=1, heads=1, units=max(1, round((1 - MOST_SPARSITY) * whole.d_ff)))
    least_ms = plan.table.predict(least).total_ms
    if least_ms > plan.budget_ms:
        raise RequestError(
            f"a speed-up of {asked:g} is out of reach: the most on this machine is about "
            f"{_floored(dense_ms / least_ms):.2f}, with 1 decoder layer, and 1 head and a tenth of the units in every "
            f"encoder layer ({workload})"
        )
    return plan


def beside(dense: ModelSpec, shapes: Sequence[ModelSpec], dense_ms: float, measure: Measure) -> list[Latency]:
    """The dense model and shapes, measured side by side on a machine as fast as when dense took `dense_ms`."""
    for _ in range(_TRIES):
        found = measure([dense, *shapes])
        if abs(found[0].total_ms / dense_ms - 1) <= _STEADY:
            break
    return found


def settle(
    plan: SpeedPlan,
    dense: ModelSpec,
    at: Callable[[float], ModelSpec],
    measure: Measure,
    *,
    most_sparsity: float,
) -> float:
    """The encoder sparsity at which to harden trained gates; `at` returns the shape that a sparsity leaves.

    It is the plan's sparsity, unless the widths that the gates chose miss the requested speed. Then it is adjusted once
    by the difference, converted with the encoder's costs, to at most `most_sparsity`.
    """
    sparsity = plan.encoder_sparsity
    prunable_ms = plan.costs.encoder_heads_ms + plan.costs.encoder_units_ms
    if not sparsity or not prunable_ms:
        return sparsity
    reference, found = beside(dense, [at(sparsity)], plan.dense_ms, measure)
    if hits(reference.total_ms / found.total_ms, plan.asked):
        return sparsity
    over = found.total_ms / reference.total_ms - 1 / plan.asked  # in dense totals
    return min(max(sparsity + over * plan.dense_ms / prunable_ms, 0.0), min(most_sparsity, MOST_SPARSITY))


def hits(speedup: float, asked: float) -> bool:
    """Whether a measured speed-up is close enough to the requested one."""
    return abs(speedup / asked - 1) <= MISS


def probes(dense: ModelSpec) -> list[ModelSpec]:
    """The shapes whose times determine all costs; the first keeps all layers and the whole encoder."""
    heads, units, middle = dense.num_heads, dense.d_ff, (dense.dense_decoder_layers + 1) // 2
    return [
        dense,
        cut_spec(dense, decoder_layers=1, heads=heads, units=units),
        cut_spec(dense, decoder_layers=middle, heads=heads // 2, units=units),
        cut_spec(dense, decoder_layers=middle, heads=heads, units=units // 2),
        cut_spec(dense, decoder_layers=1, heads=heads // 2, units=units // 2),
    ]


def cut_of(spec: ModelSpec) -> Cut:
    """A shape as the cost model sees it."""
    layers = spec.dense_encoder_layers
    return Cut(
        decoder_layers=len(spec.decoder),
        heads=sum(len(layer.heads) for layer in spec.encoder) / (layers * spec.num_heads),
        units=sum(layer.ffn for layer in spec.encoder) / (layers * spec.d_ff),
    )


def timing_of(latency: Latency) -> Timing:
    """The encoder's time, and all the rest as the decoder's."""
    return Timing(encode_ms=latency.encoder_ms, decode_ms=latency.total_ms - latency.encoder_ms)


def engine_measure(dense: Model, workload: Workload) -> Measure:
    """Measures shapes on the engine; they are cut from the dense model, of which only the config is read."""

    def measure(shapes: Sequence[ModelSpec]) -> list[Latency]:
        with torch_threads_kept():
            loaded = {spec: load_random_engine(spec, dense.config, workload) for spec in dict.fromkeys(shapes)}
            engines = list(loaded.values())
            turns = measure_for(engines, workload, _TURNS_S, fewest=_FEWEST_TURNS, most=_MOST_TURNS)
            runs = dict(zip(loaded, turns, strict=True))
            # Other work on the machine only ever adds time to a run, in whole time slices, and more often to a slow
            # model's runs than to a fast one's. The fastest run of each is closest to its time on an idle machine.
            return [quantile(runs[spec], 0.0) for spec in shapes]

    return measure


def _choose(
    asked: float, dense: ModelSpec, dense_ms: float, costs: CostModel, workload: Workload, most_sparsity: float
) -> ShapeChoice:
    choice = choose(costs, dense_ms / asked, decoder_layers=dense.dense_decoder_layers, most_sparsity=most_sparsity)
    if choice is None:
        most = dense_ms / fastest(costs, most_sparsity=most_sparsity).total_ms
        raise RequestError(
            f"a speed-up of {asked:g} is out of reach: the most on this machine is about {_floored(most):.2f}, with 1 "
            f"decoder layer and {most_sparsity:.0%} of the encoder cut ({workload})"
        )
    return choice


def _floored(speedup: float) -> float:
    """Rounded down to two digits, so that the named speed-up can be requested."""
    return int(100 * speedup) / 100


def _shape(dense: ModelSpec, choice: ShapeChoice) -> ModelSpec:
    heads, units = uniform_widths(dense, choice.encoder_sparsity)
    return cut_spec(dense, decoder_layers=choice.decoder_layers, heads=heads, units=units)
