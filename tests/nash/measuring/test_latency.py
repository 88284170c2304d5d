"""The measurement itself: what is run, and that its figures hang together."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from model_store.model.model import Model
from model_store.store import Store
from nash.cli.main import build
from nash.measuring.figures import Latency
from nash.measuring.latency import Workload, measure, measure_side_by_side, measure_turns, paired_speedup, quantile
from server.engine.capabilities import engine_name, speed_order
from server.engine.engine import Engine
from server.engine.errors import BadRequestError, EngineError
from server.engine.interface.config import EngineConfig
from server.engine.sequence import Sequence as Generation
from tests.nash.command_line import nash
from tests.quality_records import record
from tests.tiny_models import build_tiny_t5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model.open(build_tiny_t5(tmp_path_factory.mktemp("latency") / "model"))


def test_the_figures_hang_together(model: Model) -> None:
    latency = measure(model, batch=3, source_tokens=10, new_tokens=12, repeats=3)
    assert 0 < latency.encoder_ms < latency.total_ms
    assert 0 < latency.step_ms * 12 < 2 * latency.total_ms


def test_models_take_turns_and_lengths_are_forced(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    config = EngineConfig(slots=2, max_source_tokens=7, max_new_tokens=5)
    engines = [Engine.load(model, config) for _ in range(2)]
    added: list[tuple[int, int, int]] = []
    add = Engine.add

    def note(self: Engine, sequence: Generation) -> None:
        add(self, sequence)
        wanted = sequence.parameters.max_new_tokens
        added.append((engines.index(self), len(sequence.source_ids), wanted))

    monkeypatch.setattr(Engine, "add", note)
    assert len(measure_side_by_side(engines, batch=2, source_tokens=7, new_tokens=5, repeats=2)) == 2
    assert added == [(0, 7, 5), (0, 7, 5), (1, 7, 5), (1, 7, 5)] * 3


def runs_of(*totals_ms: float) -> list[Latency]:
    return [Latency(encoder_ms=1.0, step_ms=0.5, total_ms=total) for total in totals_ms]


def test_quantiles_are_of_each_figure_by_itself() -> None:
    runs = [
        Latency(encoder_ms=encode, step_ms=1.0, total_ms=total)
        for encode, total in [(3.0, 10.0), (1.0, 30.0), (2.0, 20.0)]
    ]
    assert quantile(runs, 0.5) == Latency(encoder_ms=2.0, step_ms=1.0, total_ms=20.0)
    assert quantile(runs, 0.0).total_ms == 10.0
    assert quantile(runs, 0.25).total_ms == 15.0
    assert quantile(runs[:1], 0.9) == runs[0]


def test_the_spread_is_that_of_turns() -> None:
    """A machine that is slower for a while is slower for both."""
    assert paired_speedup(runs_of(4.0, 40.0, 4.0), runs_of(2.0, 20.0, 2.0)).quartiles == (2.0, 2.0)
    found = paired_speedup(runs_of(2, 4, 6, 8, 10), runs_of(2, 2, 2, 2, 2))
    assert (found.quartiles, found.median) == ((2.0, 4.0), 3.0)


@pytest.mark.parametrize(
    ("n", "low", "high"),
    # The ranks of the usual 95 % interval of a median (Conover, 1999); five pairs are too few for one.
    [(5, 1, 5), (6, 1, 6), (9, 2, 8), (20, 6, 15), (41, 14, 28)],
)
def test_the_interval_of_a_speedup_lies_between_order_statistics(n: int, low: int, high: int) -> None:
    ratios = [float(i) for i in range(1, n + 1)]
    random.Random(n).shuffle(ratios)
    found = paired_speedup(runs_of(*ratios), runs_of(*[1.0] * n))
    assert found.interval == (low, high)


def test_a_workload_is_an_engine_of_its_size(model: Model) -> None:
    workload = Workload(batch=3, source_tokens=6, new_tokens=4, dtype="int8", threads=1)
    config = workload.config
    assert (config.slots, config.max_source_tokens, config.max_new_tokens) == (3, 6, 4)
    assert (config.dtype, config.threads, config.max_encode_tokens) == ("int8", 1, 18)
    turns = measure_turns([Engine.load(model, config)] * 2, workload, repeats=2)
    assert [len(runs) for runs in turns] == [2, 2]
    assert str(workload) == "3 requests together, 6 tokens in and 4 out, int8 on cpu"


def test_an_engine_whose_limits_are_too_low_is_refused(model: Model) -> None:
    engine = Engine.load(model, EngineConfig(max_source_tokens=4))
    with pytest.raises(BadRequestError, match="the source has 5 tokens"):
        measure(engine, batch=1, source_tokens=5, new_tokens=2)


def test_a_generation_that_fails_is_no_measurement(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends at its first step, at several thousand tokens a second."""
    workload = Workload(batch=2, source_tokens=6, new_tokens=4)
    engine = Engine.load(model, replace(workload.config, ahead_s=0.0))
    scores = engine._backend.decode
    monkeypatch.setattr(engine._backend, "decode", lambda feed: scores(feed) * float("nan"))
    with pytest.raises(EngineError, match="nothing can be measured"):
        measure_turns([engine], workload, 1)


def test_bench_prints_one_array(model: Model) -> None:
    arguments = ["bench", str(model.folder), str(model.folder), "--batch", "1", "--batch", "2", "--source-tokens", "4"]
    result = CliRunner().invoke(
        build(), [*arguments, "--new-tokens", "3", "--repeats", "1", "--threads", "1", "--json"]
    )
    assert result.exit_code == 0
    rows = json.loads(result.stdout)
    assert [(row["ref"], row["batch"]) for row in rows] == [(str(model.folder), batch) for batch in (1, 1, 2, 2)]
    named = {"ref", "device", "dtype", "dtype_why", "engine", "threads", "batch", "source_tokens", "new_tokens"}
    figures = {"encode_ms", "step_ms", "total_ms", "tokens_per_s"}
    for row in rows:
        assert row["engine"] == engine_name(EngineConfig())
        assert set(row) == named | figures
        assert (row["dtype"], row["threads"], row["source_tokens"], row["new_tokens"]) == ("float32", 1, 4, 3)
        assert all(row[name] > 0 for name in figures)


def test_bench_takes_of_each_version_the_fastest_dtype_whose_quality_holds(model: Model, tmp_path: Path) -> None:
    fastest = speed_order(EngineConfig())[0]
    store = Store(tmp_path / "store")
    store.publish("tiny", model.folder, alias="dense")
    other = build_tiny_t5(tmp_path / "other", seed=3)
    store.publish("tiny", other, alias="other")
    for dtype, value in ((fastest, 90.0), ("float32", 90.0)):
        store.add_quality("tiny@dense", record(dtype, value))
    arguments = ["bench", "tiny@dense", "tiny@other", "--store", str(store.root), "--source-tokens", "4"]
    result = CliRunner().invoke(build(), [*arguments, "--new-tokens", "3", "--repeats", "1", "--json"])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert [row["dtype"] for row in rows] == [fastest, "float32"]
    if fastest != "float32":
        assert rows[0]["dtype_why"].startswith("its quality holds: exact match 90.00 % beside 90.00 % in float32")
        assert rows[1]["dtype_why"].startswith(f"{fastest}: no quality is recorded")
        assert f"tiny@dense in {fastest} (its quality holds" in result.stderr


def test_a_dtype_that_does_not_exist_is_refused_at_once(model: Model) -> None:
    outcome = nash("bench", str(model.folder), "--dtype", "int3")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "dtype 'int3' is not supported: use one of auto, float32, " in outcome.err


def test_bench_shows_a_table(model: Model) -> None:
    result = CliRunner().invoke(
        build(), ["bench", str(model.folder), "--source-tokens", "4", "--new-tokens", "3", "--repeats", "1"]
    )
    assert result.exit_code == 0
    assert "tokens/s" in result.stdout
