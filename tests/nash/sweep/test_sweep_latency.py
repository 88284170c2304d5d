"""Points measured beside the dense model: what other work on the machine does to a run does not make a speed-up."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from model_store.model.model import Model
from nash.measuring.figures import Latency
from nash.measuring.latency import Workload, check_workload, measure_for
from nash.sweep import latency as sweep_latency
from nash.sweep.latency import SideBySide, measure_block
from server.engine.errors import EngineError
from tests.tiny_families import CASES, build_tiny
from tests.tiny_models import model_without_files

DENSE, PRUNED = (model_without_files(name) for name in ("dense", "pruned"))
WORKLOAD = Workload(batch=1, source_tokens=4, new_tokens=3)
ALONE_MS = {"dense": 3.0, "pruned": 1.0}
SLICE_MS = 20.0


@pytest.fixture
def made_up_engines(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Engines are names; a run takes its own time and, with a chance for every millisecond, another's time slice."""
    chance = {"of a slice in a ms": 0.0}
    generator = random.Random(0)

    def run(engine: str) -> Latency:
        total_ms = ALONE_MS[engine]
        total_ms += SLICE_MS * (generator.random() < ALONE_MS[engine] * chance["of a slice in a ms"])
        return Latency(encoder_ms=0.1, step_ms=0.1, total_ms=total_ms)

    def turns(engines: Sequence[str], _: Workload, repeats: int, watch: object = None) -> list[list[Latency]]:
        return [[run(engine) for _ in range(repeats)] for engine in engines]

    class Loaded:
        @staticmethod
        def load(model: Model, _: Any) -> str:
            return model.folder.name

    monkeypatch.setattr(sweep_latency, "Engine", Loaded)
    monkeypatch.setattr("nash.measuring.latency.measure_turns", turns)
    return chance


def test_a_quiet_machine(made_up_engines: dict[str, float]) -> None:
    [side] = measure_block(DENSE, [PRUNED], WORKLOAD)
    assert side.speedup.median == pytest.approx(3.0)
    assert side.busyness == 1.0
    assert side.speedup.quartiles == (3.0, 3.0)


def test_a_busy_machine_is_told(made_up_engines: dict[str, float]) -> None:
    """Most runs of the dense model lose a slice, most of the pruned one's do not: the ratio means nothing."""
    made_up_engines["of a slice in a ms"] = 0.25
    [side] = measure_block(DENSE, [PRUNED], WORKLOAD)
    assert side.busyness == pytest.approx(23 / 3)
    assert side.speedup.quartiles[1] == pytest.approx(23.0)


def test_a_machine_that_becomes_quiet_is_measured_again(
    made_up_engines: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up_engines["of a slice in a ms"] = 0.25

    def measured(*arguments: Any, **named: Any) -> Any:
        turns = measure_for(*arguments, **named)
        made_up_engines["of a slice in a ms"] = 0.0
        return turns

    monkeypatch.setattr(sweep_latency, "measure_for", measured)
    [side] = measure_block(DENSE, [PRUNED], WORKLOAD)
    assert (side.busyness, side.speedup.median) == pytest.approx((1.0, 3.0))


def test_what_was_measured_is_kept_whole(made_up_engines: dict[str, float]) -> None:
    first, second = measure_block(DENSE, [PRUNED, DENSE], WORKLOAD)
    assert SideBySide.of(first.document()) == first
    assert second.speedup.median == 1.0


def test_real_engines(dense_dir: Path) -> None:
    threads = torch.get_num_threads()
    [side] = measure_block(
        Model.open(dense_dir), [Model.open(dense_dir)], Workload(batch=1, source_tokens=4, new_tokens=3, threads=2)
    )
    assert 0.2 < side.speedup.median < 5, "one model is as fast as itself"
    assert torch.get_num_threads() == threads


def test_a_workload_that_the_engine_refuses(dense_dir: Path) -> None:
    check_workload(Model.open(dense_dir), WORKLOAD)
    with pytest.raises(EngineError):
        check_workload(Model.open(dense_dir), Workload(batch=0, source_tokens=4, new_tokens=3))


def test_lengths_beyond_a_models_positions_are_refused(tmp_path: Path) -> None:
    build_tiny(CASES["bart"], tmp_path)  # with 75 positions
    check_workload(Model.open(tmp_path), Workload(batch=1, source_tokens=75, new_tokens=3))
    with pytest.raises(EngineError, match="75"):
        check_workload(Model.open(tmp_path), Workload(batch=1, source_tokens=76, new_tokens=3))
