"""What a worker tells of steps, one by one and of those that were made ahead."""

import pytest

from server.engine.engine import StepStats
from server.engine.interface.config import EngineLimits
from server.worker.stats import StatsCollector


def test_steps_made_ahead_count_as_steps() -> None:
    collector = StatsCollector(EngineLimits(max_source_tokens=8, max_new_tokens=8, slots=2))
    collector.note(StepStats(encode_s=0.5, decode_s=0.25, batch_size=2, generated_tokens=2, source_tokens=7))
    collector.note(StepStats(decode_s=0.6, steps=3, batch_size=2, generated_tokens=6))
    stats = collector.take([])
    assert stats.decode_step_s == pytest.approx([0.25, 0.2, 0.2, 0.2])
    assert stats.batch_sizes == [2, 2, 2, 2]
    assert (stats.generated_tokens, stats.source_tokens, stats.encode_s) == (8, 7, [0.5])
