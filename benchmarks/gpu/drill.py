"""The stage in which memory runs out, at load and while sequences run: is it reported, and does the engine go on?"""

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.gpu.answers import engine_config
from benchmarks.gpu.device import on_device, release
from benchmarks.gpu.random_engine import RandomTensors
from benchmarks.gpu.shapes import Scale, make_sources
from benchmarks.gpu.staged import Recorder, one_line
from model_store.model.config import layout_of, spec_of
from model_store.model.model import Model
from server.engine.engine import Engine
from server.engine.errors import LoadError
from server.engine.interface.config import EngineConfig
from server.engine.interface.parameters import GenerationParameters

_ROOM_BYTES = 16 * 2**20  # less than the memory that the engine lacks


@on_device
def drill(record: Recorder, scale: Scale) -> None:
    """T5-small's shape, loaded from a file as in production. A CPU has no memory limit: only the first part fails."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "model"
        record.parts(
            {
                "caches that do not fit": partial(_caches, scale),
                "an encoder that does not fit": partial(_encoder, scale),
                "graphs that do not fit": partial(_graphs, scale),
                "a step that does not fit": partial(_step, scale),
            },
            lambda: write_model(scale.shapes["t5-small"], directory, scale),
        )


def write_model(shape: dict[str, Any], directory: Path, scale: Scale) -> Path:
    """Write a model folder with random weights; `shape` is its config.json."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(shape), encoding="utf-8")
    spec = spec_of(shape)
    tensors = RandomTensors(spec, dtype=torch.bfloat16, device=torch.device(scale.device))
    read = {name: tensors.read(name).cpu() for name, _ in layout_of(spec).shapes()}
    save_file(read, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def _config(scale: Scale, graphs: str = "off") -> EngineConfig:
    return engine_config(scale, slots=scale.drill_slots, graphs=graphs)


def _caches(scale: Scale, directory: Path) -> dict[str, str]:
    return _told(lambda: Engine.load(Model.open(directory), replace(_config(scale), slots=10**8)), "LoadError")


def _encoder(scale: Scale, directory: Path) -> dict[str, str]:
    """Weights and caches fit, and half of what the rehearsal needs besides them."""
    held, most = _memory_of(directory, _config(scale))
    with _memory_limit(scale.device, (held + most) // 2):
        return _told(lambda: Engine.load(Model.open(directory), _config(scale)), "LoadError")


def _graphs(scale: Scale, directory: Path) -> dict[str, str]:
    """The rehearsal fits, and almost nothing besides it."""
    _, most = _memory_of(directory, _config(scale))
    config = replace(_config(scale), graphs="on")
    with _memory_limit(scale.device, most + _ROOM_BYTES):
        return _told(lambda: Engine.load(Model.open(directory), config), "LoadError")


def _step(scale: Scale, directory: Path) -> dict[str, Any]:
    """An engine is loaded; then the rest of the memory becomes unavailable, and later available again."""
    release(scale.device)
    engine = Engine.load(Model.open(directory), _config(scale, "on"))
    parameters = GenerationParameters(max_new_tokens=scale.new_tokens, ignore_eos=True)
    sources = make_sources(engine.spec, scale.drill_slots, scale.source_tokens)
    before = [sequence.tokens for sequence in engine.generate(sources, parameters)]
    release(scale.device)
    held = 0 if scale.device == "cpu" else torch.cuda.memory_reserved(scale.device)
    with _memory_limit(scale.device, held):
        told: dict[str, Any] = _told(lambda: engine.generate(sources, parameters), "OutOfMemoryError")
    for number in range(len(sources)):
        engine.cancel(number)
    after = [sequence.tokens for sequence in engine.generate(sources, parameters)]
    return told | {"same_tokens_after": after == before}


def _told(work: Callable[[], object], expected: str) -> dict[str, str]:
    """How the work ended: the name of its exception, and its message."""
    try:
        work()
    except (LoadError, torch.OutOfMemoryError) as error:
        return {"outcome": type(error).__name__, "text": one_line(error), "expected": expected}
    return {"outcome": "nothing happened", "text": "", "expected": expected}


def _memory_of(directory: Path, config: EngineConfig) -> tuple[int, int]:
    """Bytes of device memory that a loaded engine holds, and the peak while it was loaded."""
    release(config.device)
    engine = Engine.load(Model.open(directory), config)
    if config.device == "cpu":
        return 0, 0
    held, most = torch.cuda.memory_allocated(config.device), torch.cuda.max_memory_reserved(config.device)
    del engine
    return held, most


@contextmanager
def _memory_limit(device: str, size_bytes: int) -> Iterator[None]:
    """Limit PyTorch to `size_bytes` of device memory; on a CPU nothing is limited."""
    release(device)
    if device == "cpu":
        yield
        return
    torch.cuda.set_per_process_memory_fraction(size_bytes / torch.cuda.get_device_properties(device).total_memory)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        release(device)
