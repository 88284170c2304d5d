"""Replayed steps against eager ones: the same logits, whatever joins, leaves, moves, reorders and grows."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model_store.model.model import Model
from server.engine.backend import Feed
from server.engine.engine import Engine
from server.engine.errors import LoadError
from server.engine.interface.config import EngineConfig
from server.engine.interface.parameters import GenerationParameters
from server.engine.pytorch.backend import TorchBackend
from server.engine.pytorch.static_step import Bucket, make_buckets
from server.engine.sequence import Sequence
from server.engine.source_queue import SourceQueue
from tests.engine.family_reference import targets, texts
from tests.engine.native.recorded_operations import Recording
from tests.tiny_families import CASES, build_tiny

CONFIG = EngineConfig(graphs="on", backend="torch", max_source_tokens=70, max_new_tokens=69)


@pytest.fixture(scope="module", params=["mt5", "umt5", "bart", "m2m_100"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(CASES[request.param], tmp_path_factory.mktemp("family") / "model")


class Twins:
    """An eager backend behind an engine, and a replaying one that does the same and is compared at every step."""

    def __init__(self, directory: Path, config: EngineConfig) -> None:
        self.engine = Engine.load(Model.open(directory), config)
        assert isinstance(self.engine._backend, TorchBackend)
        self.replaying = self.engine._backend
        eager = replace(config, graphs="off")
        self.eager = TorchBackend.load(Model.open(directory), eager, getattr(torch, config.dtype))
        self.paths = {"graph": 0, "eager": 0}
        self.differences: list[float] = []
        self.engine._backend = self  # type: ignore[assignment]
        self.engine._sources = SourceQueue(self)  # type: ignore[arg-type]

    has_own_threads = False

    @property
    def path(self) -> str | None:
        return self.replaying.path

    def encode(self, sources: list[list[int]], slots: list[list[int]]) -> int:
        self.eager.encode(sources, slots)
        return self.replaying.encode(sources, slots)

    def decode(self, feed: Feed) -> torch.Tensor:
        logits, expected = self.replaying.decode(feed), self.eager.decode(feed)
        assert logits.shape == expected.shape
        self.differences.append(((logits - expected).abs().max() / expected.abs().max().clamp(min=1)).item())
        assert self.path is not None
        self.paths[self.path] += 1
        return logits

    def reorder(self, targets: list[int], origins: list[int], length: int) -> None:
        for backend in (self.replaying, self.eager):
            backend.reorder(targets, origins, length)

    def move(self, origin: int, target: int, *, source_length: int, length: int) -> None:
        for backend in (self.replaying, self.eager):
            backend.move(origin, target, source_length=source_length, length=length)

    def clear(self, slot: int) -> None:
        for backend in (self.replaying, self.eager):
            backend.clear(slot)


def random_parameters(draw: random.Random, vocab_size: int) -> GenerationParameters:
    prefix = tuple(draw.randrange(6, vocab_size) for _ in range(draw.choice([0, 0, 3])))
    count = draw.choice([2, 4, 9, 30, 66])
    kind = draw.randrange(4)
    if kind == 0:
        return GenerationParameters(max_new_tokens=count, num_beams=draw.choice([2, 4]), prefix_ids=prefix)
    if kind == 1:
        return GenerationParameters(max_new_tokens=count, do_sample=True, seed=3, num_return_sequences=3)
    return GenerationParameters(max_new_tokens=count, ignore_eos=True, prefix_ids=prefix)


def record_all(backend: TorchBackend) -> None:
    """As at load on CUDA: every step is recorded before there is anything to decode, and frozen from there on."""
    assert backend._steps is not None
    for step in backend._steps._steps:
        with torch.inference_mode(), Recording() as recording:
            step._compute()
        step._graph = recording


@pytest.mark.parametrize(("dtype", "recorded"), [("float32", False), ("float64", False), ("float64", True)])
def test_random_traffic_gives_the_logits_of_the_eager_path(directory: Path, dtype: str, recorded: bool) -> None:
    twins = Twins(directory, replace(CONFIG, dtype=dtype, slots=7))
    if recorded:
        record_all(twins.replaying)
    spec, draw = twins.engine.spec, random.Random(5)
    vocab_size = min(spec.vocab_size, spec.target_vocab_size)
    number, cancelled = 0, 0
    for step in range(200):
        for _ in range(draw.choice([0, 0, 0, 1, 3])):
            (source,) = texts(spec, [draw.choice([1, 5, 20, 40, 69])], seed=number)
            parameters = random_parameters(draw, vocab_size)
            twins.engine.add(Sequence(id=number, source_ids=source, parameters=parameters))
            number += 1
        if step % 9 == 0:
            cancelled += twins.engine.cancel(draw.randrange(max(1, number)))
        twins.engine.step()
        twins.engine.check_integrity()
    # A product of other rows beside a row may sum in another order.
    assert max(twins.differences) <= (5e-6 if dtype == "float32" else 1e-13)
    assert number > 60
    assert cancelled
    assert twins.paths["graph"] > 60
    assert twins.paths["eager"] > 5  # prefixes


@torch.inference_mode()
def test_rows_that_fill_up_a_bucket_disturb_nobody(directory: Path) -> None:
    spec = Model.open(directory).spec
    config = replace(CONFIG, slots=5)
    backend = TorchBackend.load(Model.open(directory), config, torch.float32)
    alone = TorchBackend.load(Model.open(directory), config, torch.float32)
    sources, wanted = texts(spec, [30, 9, 3, 12, 61]), targets(spec, 5)
    for slot in (3, 4):  # what was there before leaves no trace
        backend.encode([sources[slot]], [[slot]])
    backend.encode(sources[:3], [[0], [1], [2]])
    alone.encode([sources[0]], [[0]])
    for i in range(12):
        tokens = [target[i] for target in wanted[:3]]
        logits = backend.decode(Feed(tokens=tokens, positions=[i] * 3, slots=[0, 1, 2], wanted=[0, 2]))
        expected = alone.decode(Feed(tokens=tokens[:1], positions=[i], slots=[0], wanted=[0]))
        assert logits.shape[0] == 2
        assert (logits[0] - expected[0]).abs().max() <= 1e-6 * expected.abs().max().clamp(min=1)
        assert (backend.path, alone.path) == ("graph", "graph")
    stale = [layer[3:, :, :, 1:] for layer in backend._self_cache.layers]
    assert not any(positions.any() for positions in stale), "more than a free slot's first position was written"


def test_the_buckets_are_few_and_the_largest_comes_first() -> None:
    buckets = make_buckets(slots=24, target_positions=256, source_positions=104)
    assert buckets[0] == Bucket(rows=24, target_positions=256, source_positions=104)
    assert buckets[-1] == Bucket(rows=1, target_positions=64, source_positions=32)
    assert [b.rows for b in buckets[::9]] == [24, 16, 8, 4, 2, 1]
    assert len(buckets) == len(set(buckets)) == 6 * 9
    assert sorted({b.source_positions for b in buckets}) == [32, 56, 104]
    assert make_buckets(slots=1, target_positions=16, source_positions=8) == [
        Bucket(rows=1, target_positions=16, source_positions=8)
    ]


@torch.inference_mode()
def test_a_step_takes_the_smallest_bucket_that_holds_it(directory: Path) -> None:
    spec = Model.open(directory).spec
    config = replace(CONFIG, slots=4)
    backend = TorchBackend.load(Model.open(directory), config, torch.float32)
    assert backend._steps is not None
    taken: list[Bucket] = []
    for step in backend._steps._steps:
        step.replay = lambda step=step: (taken.append(step.bucket), backend._buffers.logits_AV)[1]  # type: ignore
    backend.encode(texts(spec, [8, 33, 70]), [[0], [1], [2]])
    for rows, position in ((1, 0), (1, 31), (1, 32), (2, 39), (3, 40), (3, 69)):
        slots = list(range(rows))
        backend.decode(Feed(tokens=slots, positions=[position] * rows, slots=slots, wanted=slots))
    sizes = [(b.rows, b.target_positions, b.source_positions) for b in taken]
    assert sizes == [(1, 32, 32), (1, 32, 32), (1, 40, 32), (2, 40, 40), (4, 80, 72), (4, 80, 72)]


class FakeGraph:
    """Counts what CUDA would have recorded."""


def test_recording_begins_with_the_largest_and_shares_its_memory(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools: list[int] = []
    free = iter([9000, 5000])

    @contextmanager
    def record(graph: FakeGraph, pool: int) -> Iterator[None]:
        pools.append(pool)
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", record)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: 7)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (next(free), 10000))
    steps = TorchBackend.load(Model.open(directory), replace(CONFIG, slots=3), torch.float32)._steps
    assert steps is not None
    lines: list[str] = []
    assert steps.record(torch.device("cuda"), lines.append) == 4000
    assert pools == [7] * len(steps._steps) == [7] * 27
    assert lines == [
        "CUDA graphs: 9 of 27, steps of 3 rows are recorded",
        "CUDA graphs: 18 of 27, steps of 2 rows are recorded",
        "CUDA graphs: 27 of 27, steps of 1 rows are recorded",
    ]


def out_of_memory(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_what_does_not_fit_while_loading_is_told_with_the_remedy(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, slots=3, max_encode_tokens=150)
    backend = TorchBackend.load(Model.open(directory), config, torch.float32)
    assert backend._steps is not None
    encoded: list[list[list[int]]] = []
    monkeypatch.setattr(backend, "encode", lambda sources, slots: encoded.append(sources))
    backend.rehearse(config)
    assert [[len(source) for source in sources] for sources in encoded] == [[70, 69]]
    monkeypatch.setattr(backend, "encode", out_of_memory)
    with pytest.raises(LoadError, match="no memory to encode 2 sources of 70 tokens at once: lower max_encode_tokens"):
        backend.rehearse(config)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: 7)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (9000, 10000))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", out_of_memory)
    with pytest.raises(LoadError, match="too small for 27 CUDA graphs of 3 slots: use fewer slots, or graphs=off"):
        backend._steps.record(torch.device("cuda"), print)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_recorded_steps_give_what_eager_ones_do(directory: Path, dtype: str) -> None:
    lines: list[str] = []
    config = replace(CONFIG, dtype=dtype, device="cuda", graphs="auto", slots=4)
    engine = Engine.load(Model.open(directory), config, lines.append)
    eager = Engine.load(Model.open(directory), replace(config, graphs="off"))
    assert [line.split(",")[1] for line in lines] == [f" steps of {n} rows are recorded" for n in (4, 2, 1)]
    sources = texts(engine.spec, [5, 70, 1, 33, 9, 12])
    parameters = GenerationParameters(max_new_tokens=40, ignore_eos=True)
    ours, theirs = ([s.tokens for s in e.generate(sources, parameters)] for e in (engine, eager))
    assert (engine.step_stats.path, eager.step_stats.path) == ("graph", None)
    if dtype == "float32":
        assert ours == theirs
