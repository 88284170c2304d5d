"""How many steps ran from a graph, from the engine's step to the metric."""

from pathlib import Path

import torch
from prometheus_client import CollectorRegistry

from model_store.model.model import Model
from server.engine.engine import Engine
from server.engine.interface.config import EngineConfig
from server.engine.interface.parameters import GenerationParameters
from server.engine.sequence import Sequence
from server.frontend.metrics import Metrics, VariantMetrics
from server.messages import FrameBuffer, Stats, decode_report, encode
from server.worker.stats import StatsCollector
from tests.tiny_models import build_tiny_t5

CONFIG = EngineConfig(slots=2, max_source_tokens=16, max_new_tokens=16, threads=1)


def steps_by_path(directory: Path, config: EngineConfig) -> dict[str, float]:
    """What the metric says after one sequence with a prefix and three more tokens."""
    engine = Engine.load(Model.open(directory), config)
    collector = StatsCollector(engine.limits)
    parameters = GenerationParameters(max_new_tokens=4, ignore_eos=True, prefix_ids=(5, 6))
    engine.add(Sequence(id=0, source_ids=[7, 8, 1], parameters=parameters))
    while not engine.idle:
        engine.step()
        collector.note(engine.step_stats)
    (payload,) = FrameBuffer().feed(encode([collector.take([])]))
    stats = decode_report(payload)
    assert isinstance(stats, Stats)
    registry = CollectorRegistry()
    VariantMetrics(Metrics(registry), "m", "v").observe(stats)
    samples = [sample for family in registry.collect() for sample in family.samples]
    return {s.labels["path"]: s.value for s in samples if s.name == "nash_graph_steps_total"}


def test_steps_are_counted_by_path_where_there_are_graphs(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        directory = build_tiny_t5(tmp_path / "model")
        replayed = EngineConfig(graphs="on", slots=2, max_source_tokens=16, max_new_tokens=16, threads=1)
        assert steps_by_path(directory, replayed) == {"graph": 3.0, "eager": 1.0}
        assert steps_by_path(directory, CONFIG) == {}
    finally:
        torch.set_num_threads(threads)
