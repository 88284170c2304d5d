"""Engines with random weights generated on the device: speed does not depend on their values."""

import time
import zlib
from collections.abc import Sequence as Collection
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.device import peak_memory, release, settle
from benchmarks.gpu.staged import Recorder
from model_store.model.config import layout_of, spec_of
from model_store.model.spec import ModelSpec
from server.engine.engine import Engine
from server.engine.interface.config import EngineConfig
from server.engine.interface.generation_config import GenerationDefaults
from server.engine.interface.parameters import GenerationParameters
from server.engine.pytorch.backend import TorchBackend, graph_buckets, longest_positions
from server.engine.pytorch.static_step import Bucket
from server.engine.weights.reading import read_network


class RandomTensors:
    """A model's tensors, random and small enough not to overflow; implements `checkpoint.Tensors`."""

    def __init__(self, spec: ModelSpec, *, dtype: torch.dtype, device: torch.device) -> None:
        self._shapes = dict(layout_of(spec).shapes())
        self._dtype = dtype
        self._device = device

    def __contains__(self, name: str) -> bool:
        return name in self._shapes

    def place(self, tensor: Tensor) -> Tensor:
        return tensor.to(device=self._device, dtype=self._dtype)

    def read(self, name: str) -> Tensor:
        shape = self._shapes[name]
        if len(shape) == 1 or "final_logits_bias" in name:
            filled = torch.ones if name.endswith("weight") else torch.zeros
            return filled(shape, dtype=self._dtype, device=self._device)
        scale = 0.1 if "shared" in name or "embed" in name else 0.5 * shape[1] ** -0.5
        generator = torch.Generator(self._device).manual_seed(zlib.crc32(name.encode()))
        return torch.randn(shape, dtype=self._dtype, device=self._device, generator=generator).mul_(scale)


def load(
    record: Recorder, name: str, shape: dict[str, Any], config: EngineConfig, buckets: Collection[Bucket] | None = None
) -> Engine:
    """An engine with random weights; `shape` is its config.json. The cost of loading is recorded as the part `name`."""
    release(config.device)
    started_s = time.perf_counter()
    spec = spec_of(shape)
    config = config.within(spec.max_positions)
    device, dtype = torch.device(config.device), getattr(torch, config.dtype)
    tensors = RandomTensors(spec, dtype=torch.promote_types(dtype, torch.float32), device=device)
    network = read_network(tensors, spec, longest=longest_positions(config))
    backend = TorchBackend.build(network, spec, config, dtype, record.line, buckets)
    settle(config.device)
    defaults = GenerationDefaults(
        parameters=GenerationParameters(max_new_tokens=config.max_new_tokens),
        max_length=None,
        min_length=None,
        most_new_tokens=config.max_new_tokens,
        eos_ids=(spec.eos_id,),
        decoder_start_id=spec.decoder_start_id,
    )
    engine = Engine(spec, backend, config, defaults=defaults)
    graphs = 0 if config.graphs == "off" else len(graph_buckets(config) if buckets is None else buckets)
    loaded_s = time.perf_counter() - started_s
    loaded = {"seconds": loaded_s, "graphs": graphs, "memory_bytes": engine.memory_bytes()}
    record.note(name, loaded | peak_memory(config.device))
    record.line(f"{name}: {loaded_s:.1f} s with {graphs} graphs")
    return engine


def used_buckets(config: EngineConfig, batches: dict[int, int], new_tokens: int) -> list[Bucket]:
    """The graphs of an engine that steps of whole batches run in; `batches` maps a size to its longest source."""
    buckets = graph_buckets(config)
    used = set()
    for batch, source_tokens in batches.items():
        for length in range(1, new_tokens + 1):
            fitting = (
                bucket
                for bucket in reversed(buckets)
                if bucket.holds(rows=batch, target_positions=length, source_positions=source_tokens)
            )
            used.add(next(fitting))
    return [bucket for bucket in buckets if bucket in used]
