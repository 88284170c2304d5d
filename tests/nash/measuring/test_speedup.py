"""From an asked speed to a shape: with a machine whose costs are known, and once with the engine itself."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from model_store.model.config import spec_of
from model_store.model.model import Model
from model_store.model.spec import EncoderLayerSpec, ModelSpec
from nash.costs.cost_model import CostModel, Timing
from nash.data.rows import TaskRow
from nash.errors import RequestError
from nash.measuring.figures import Latency
from nash.measuring.latency import Workload
from nash.measuring.random_model import cut_spec, uniform_widths
from nash.measuring.speedup import SpeedPlan, cut_of, engine_measure, make_plan, probes, settle
from nash.measuring.workload import workload_of
from nash.modeling.folders import load_tokenizer
from nash.recipes.recipe import DataRecipe, WorkloadRecipe

DENSE = spec_of(
    {"model_type": "t5", "vocab_size": 100, "d_model": 64, "d_kv": 8, "num_heads": 8, "d_ff": 256, "num_layers": 6}
)
WORKLOAD = Workload(batch=1, source_tokens=16, new_tokens=10)
COSTS = CostModel(
    new_tokens=10,
    encoder_fixed_ms=1.0,
    encoder_heads_ms=2.0,
    encoder_units_ms=3.0,
    cross_ms=0.5,
    layer_ms=0.25,
    head_ms=0.75,
)


class Machine:
    """Measures shapes by known costs; `distort` is what the model of costs does not know of."""

    def __init__(self, distort: Callable[[ModelSpec], float] = lambda spec: 1.0) -> None:
        self.distort = distort
        self.asked: list[list[ModelSpec]] = []

    def time(self, spec: ModelSpec) -> Timing:
        """A smaller vocabulary takes its share off what every step costs."""
        costs = COSTS.predict(cut_of(spec))
        off_ms = COSTS.new_tokens * 0.5 * (1 - spec.target_vocab_size / DENSE.vocab_size)
        factor = self.distort(spec)
        return Timing(encode_ms=factor * costs.encode_ms, decode_ms=factor * (costs.decode_ms - off_ms))

    def __call__(self, shapes: Sequence[ModelSpec]) -> list[Latency]:
        self.asked.append(list(shapes))
        timings = [self.time(spec) for spec in shapes]
        return [Latency(encoder_ms=t.encode_ms, step_ms=t.decode_ms / 10, total_ms=t.total_ms) for t in timings]


def shape_of(plan: SpeedPlan) -> ModelSpec:
    heads, units = uniform_widths(DENSE, plan.encoder_sparsity)
    return cut_spec(DENSE, decoder_layers=plan.decoder_layers, heads=heads, units=units)


@pytest.mark.parametrize("asked", [1.1, 1.5, 2.0, 2.5])
def test_on_a_machine_as_the_model_has_it_the_prediction_is_right_at_once(asked: float) -> None:
    machine = Machine()
    plan = make_plan(asked, DENSE, WORKLOAD, machine, most_sparsity=1.0)
    assert plan.predicted == pytest.approx(plan.verified)
    assert asked * 0.99 <= plan.predicted <= asked * 1.05
    assert len(machine.asked) == 2, "the probes, and the shape beside the dense model"
    assert machine.asked[1] == [DENSE, shape_of(plan)]
    assert plan.asked == asked
    assert plan.workload == WORKLOAD


def test_what_misses_is_corrected_once() -> None:
    """Cut models are a fifth slower than the probes let expect, as where a width is one that kernels do not like."""
    probed = probes(DENSE)
    machine = Machine(lambda spec: 1.0 if spec in probed else 1.2)
    plan = make_plan(2.0, DENSE, WORKLOAD, machine, most_sparsity=1.0)
    assert len(machine.asked) == 3
    first, second = machine.asked[1][1], machine.asked[2][1]
    assert machine.time(DENSE).total_ms / machine.time(first).total_ms < 1.8
    assert second == shape_of(plan) != first
    assert plan.verified == pytest.approx(2.0, rel=0.03)
    assert plan.predicted == pytest.approx(plan.verified, rel=0.03)


def test_a_drift_between_two_measurements_is_no_miss() -> None:
    """The machine is half as fast from the second measurement on, for the dense model too."""
    machine = Machine(lambda spec: 1.0 if len(machine.asked) == 1 else 2.0)
    plan = make_plan(2.0, DENSE, WORKLOAD, machine, most_sparsity=1.0)
    assert {len(set(map(tuple, machine.asked[1:]))), len(machine.asked)} == {1, 4}, "it was not measured again"
    assert plan.verified == pytest.approx(plan.predicted)


def test_a_measurement_while_the_machine_was_busy_is_made_again() -> None:
    """Else a dense model that was kept waiting would pass for a fast pruned one."""
    machine = Machine(lambda spec: 5.0 if len(machine.asked) == 2 and spec == DENSE else 1.0)
    plan = make_plan(2.0, DENSE, WORKLOAD, machine, most_sparsity=1.0)
    assert len(machine.asked) == 3
    assert plan.verified == pytest.approx(plan.predicted)
    quiet = make_plan(2.0, DENSE, WORKLOAD, Machine(), most_sparsity=1.0)
    assert (plan.decoder_layers, plan.encoder_sparsity) == (quiet.decoder_layers, quiet.encoder_sparsity)


def test_whole_decoder_layers_may_give_more_than_was_asked() -> None:
    """Nothing is there to be corrected where the next shape would be too slow."""
    machine = Machine()
    plan = make_plan(1.25, DENSE, WORKLOAD, machine, most_sparsity=0.0)
    assert (plan.decoder_layers, plan.encoder_sparsity) == (3, 0.0)
    assert plan.predicted == pytest.approx(31.5 / 22.5)
    assert len(machine.asked) == 2


def test_out_of_reach_names_what_is_not() -> None:
    with pytest.raises(RequestError) as refusal:
        make_plan(3.0, DENSE, WORKLOAD, Machine(), most_sparsity=1.0)
    message = str(refusal.value)
    # 31.5 ms over 1 + 5 * 0.1 + 0.5 + 10 * (0.75 + 0.25) ms
    assert "a speed-up of 3 is out of reach: the most on this machine is about 2.62" in message
    assert "90% of the encoder cut" in message
    assert "16 tokens in and 10 out, float32" in message
    assert make_plan(2.62, DENSE, WORKLOAD, Machine(), most_sparsity=1.0).decoder_layers == 1
    with pytest.raises(RequestError, match=r"about 1\.90, with 1 decoder layer and 0% of the encoder cut"):
        make_plan(3.0, DENSE, WORKLOAD, Machine(), most_sparsity=0.0)


def test_a_smaller_vocabulary_makes_more_possible() -> None:
    """The dense model is measured with its own vocabulary, everything else with the smaller one."""
    machine = Machine()
    plan = make_plan(3.0, DENSE, WORKLOAD, machine, most_sparsity=1.0, vocabulary=20)
    assert [shape.vocab_size for shape in machine.asked[0]] == [100, *[20] * 5]
    assert plan.predicted == pytest.approx(plan.verified)
    assert plan.predicted == pytest.approx(3.0, rel=0.05)
    assert plan.costs.head_ms == pytest.approx(0.75 - 0.5 * 0.8)


def test_a_plan_is_kept_as_it_is() -> None:
    plan = make_plan(2.0, DENSE, WORKLOAD, Machine(), most_sparsity=1.0)
    assert SpeedPlan.of(json.loads(json.dumps(plan.document()))) == plan
    assert "for a speed-up of 2: " in str(plan)


def uneven(plan: SpeedPlan, kept_heads: float) -> Callable[[float], ModelSpec]:
    """Gates of which the heads keep another share than asked for, and units the rest of it."""

    def at(sparsity: float) -> ModelSpec:
        heads = round(kept_heads * DENSE.num_heads)
        layer = DENSE.num_heads * DENSE.head_weights + DENSE.d_ff * DENSE.unit_weights
        units = round(((1 - sparsity) * layer - heads * DENSE.head_weights) / DENSE.unit_weights)
        encoder = (EncoderLayerSpec(heads=tuple(range(heads)), ffn=units),) * 6
        return ModelSpec(**{**vars(DENSE), "encoder": encoder, "decoder": DENSE.decoder[: plan.decoder_layers]})

    return at


def test_widths_that_hit_are_left_alone() -> None:
    machine = Machine()
    plan = make_plan(2.0, DENSE, WORKLOAD, machine, most_sparsity=1.0)
    sparsity = settle(plan, DENSE, uneven(plan, 1 - plan.encoder_sparsity), machine, most_sparsity=1.0)
    assert sparsity == plan.encoder_sparsity


@pytest.mark.parametrize("slower", [1.15, 0.85])
def test_widths_that_miss_are_hardened_to_another_sparsity(slower: float) -> None:
    """In either direction; the decoder is as it was, so the encoder makes up for all of it."""
    machine = Machine()
    plan = make_plan(2.4, DENSE, WORKLOAD, machine, most_sparsity=1.0)
    assert plan.encoder_sparsity > 0.3
    at = uneven(plan, 0.25)
    machine.distort = lambda spec: 1.0 if spec == DENSE else slower
    sparsity = settle(plan, DENSE, at, machine, most_sparsity=1.0)
    assert (sparsity > plan.encoder_sparsity) == (slower > 1)
    before, after = (machine.time(at(s)).total_ms for s in (plan.encoder_sparsity, sparsity))
    asked_ms = machine.time(DENSE).total_ms / 2.4
    assert abs(after - asked_ms) < abs(before - asked_ms)
    assert settle(plan, DENSE, at, machine, most_sparsity=0.4) <= 0.4


def test_a_whole_encoder_has_nothing_to_settle() -> None:
    machine = Machine()
    plan = make_plan(1.25, DENSE, WORKLOAD, machine, most_sparsity=0.0)
    measured = len(machine.asked)
    assert settle(plan, DENSE, uneven(plan, 1.0), machine, most_sparsity=0.0) == 0.0
    assert len(machine.asked) == measured


def test_the_engine_measures(dense_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures in the order of the shapes, one engine a shape, and torch's threads as they were."""
    monkeypatch.setattr("nash.measuring.speedup._TURNS_S", 0.0)
    before = torch.get_num_threads()
    dense = Model.open(dense_dir).spec
    small = cut_spec(dense, decoder_layers=1, heads=1, units=3)
    workload = Workload(batch=2, source_tokens=5, new_tokens=4, threads=2)
    first, second, again = engine_measure(Model.open(dense_dir), workload)([dense, small, dense])
    assert torch.get_num_threads() == before
    assert first == again != second
    assert 0 < second.encoder_ms < second.total_ms


def test_lengths_come_from_the_data(dense_dir: Path) -> None:
    """Means, the end token counted; what the recipe says stays."""
    rows = [TaskRow(source="ab", targets=("abc",)), TaskRow(source="abcdefghij", targets=("a",))]
    data = DataRecipe(train=Path("t"), validation=Path("v"), max_source_tokens=9)
    tokenizer = load_tokenizer(dense_dir)
    assert workload_of(WorkloadRecipe(batch=4), data, rows, tokenizer) == Workload(
        batch=4, source_tokens=6, new_tokens=3
    )
    given = WorkloadRecipe(source_tokens=7, dtype="int8", threads=2)
    expected = Workload(batch=1, source_tokens=7, new_tokens=3, dtype="int8", threads=2)
    assert workload_of(given, data, rows, tokenizer) == expected
