"""What the PyTorch backend does beside its arithmetic: memory, the rows that are wanted, slots in any order."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model_store.model.model import Model
from server.engine.backend import Feed
from server.engine.errors import LoadError
from server.engine.interface.config import EngineConfig
from server.engine.pytorch.backend import TorchBackend, graph_buckets, longest_positions
from server.engine.weights.reading import open_network
from tests.engine.family_reference import load_backend, targets, texts
from tests.tiny_families import CASES, build_tiny


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(CASES["bart"], tmp_path_factory.mktemp("bart") / "model")


def test_what_does_not_fit_is_refused_with_the_numbers_before_it_is_read(directory: Path, tmp_path: Path) -> None:
    config = EngineConfig(slots=10**8, max_source_tokens=70, max_new_tokens=20)
    message = r"0 MB of weights and the caches of 100000000 slots with 70 source and 20 new tokens need \d+ MB, but \d+"
    with pytest.raises(LoadError, match=message):
        TorchBackend.load(
            replace(Model.open(directory), folder=tmp_path), config, torch.float32
        )  # there are no weights


def test_the_stated_cache_is_what_the_layers_of_all_slots_hold(directory: Path) -> None:
    stated = load_backend(directory, "bfloat16", slots=5).memory_bytes()
    # 2 layers of 3 heads of width 8, keys and values of 2 bytes, room for 72 source positions and 32 of the target.
    assert stated["cache"] == 5 * 2 * 3 * 8 * 2 * 2 * (72 + 32)


@torch.inference_mode()
def test_slots_in_any_order_and_logits_of_some_rows(directory: Path) -> None:
    spec = Model.open(directory).spec
    sources, wanted = texts(spec, [8, 3, 19]), targets(spec, 3)
    ordered, shuffled = (load_backend(directory, "float64", slots=3) for _ in range(2))
    for backend in (ordered, shuffled):
        backend.encode(sources, [[0], [1], [2]])
    for i in range(4):
        rows = [0, 1, 2]
        expected = ordered.decode(Feed(tokens=[t[i] for t in wanted], positions=[i] * 3, slots=rows, wanted=rows))
        some = shuffled.decode(
            Feed(tokens=[wanted[s][i] for s in (2, 0, 1)], positions=[i] * 3, slots=[2, 0, 1], wanted=[0, 2])
        )
        assert torch.allclose(some, expected[[2, 1]], rtol=0, atol=1e-12)
    again = ordered.decode(Feed(tokens=[t[4] for t in wanted], positions=[4] * 3, slots=[0, 1, 2], wanted=[1]))
    alone = ordered.decode(Feed(tokens=[wanted[1][4]], positions=[4], slots=[1], wanted=[0]))
    assert torch.allclose(again, alone, rtol=0, atol=1e-12)


@torch.inference_mode()
def test_a_cleared_slot_holds_nothing_that_was_not_finite(directory: Path) -> None:
    spec = Model.open(directory).spec
    backend = load_backend(directory, "float32", slots=2)
    backend.encode(texts(spec, [4, 30]), [[0], [1]])
    for cache in (*backend._self_cache.layers, *backend._cross_cache.layers):
        cache[1] = torch.nan
    backend.clear(1)
    (source,) = texts(spec, [6], seed=5)
    backend.encode([source], [[1]])
    feed = Feed(tokens=[spec.decoder_start_id] * 2, positions=[0, 0], slots=[0, 1], wanted=[0, 1])
    assert backend.decode(feed).isfinite().all()


@torch.inference_mode()
def test_of_the_recorded_sizes_some_may_be_left_out(directory: Path) -> None:
    spec, cpu = Model.open(directory).spec, torch.device("cpu")
    config = EngineConfig(graphs="on", backend="torch", slots=4, max_source_tokens=70, max_new_tokens=69)
    every = TorchBackend.load(Model.open(directory), config, torch.float64)
    buckets = [bucket for bucket in graph_buckets(config) if bucket.rows == 2]
    longest = longest_positions(config)
    with open_network(Model.open(directory), dtype=torch.float64, device=cpu, longest=longest) as network:
        some = TorchBackend.build(network, spec, config, torch.float64, buckets=buckets)
    paths = []
    for rows in (1, 2, 3):
        slots = list(range(rows))
        feed = Feed(tokens=[5] * rows, positions=[0] * rows, slots=slots, wanted=slots)
        logits = []
        for backend in (every, some):
            backend.encode(texts(spec, [8, 3, 19][:rows]), [[slot] for slot in slots])
            logits.append(backend.decode(feed).clone())
            paths.append(backend.path)
        assert (logits[0] - logits[1]).abs().max() <= 1e-12
    assert paths == ["graph", "graph", "graph", "graph", "graph", "eager"]
