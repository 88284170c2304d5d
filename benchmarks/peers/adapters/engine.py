"""This project's engine."""

from pathlib import Path
from typing import Any

from benchmarks.peers.adapters import Generator
from model_store.model.model import Model

PACKAGES = ("torch",)
_MOST_BATCH, _MOST_TOKENS = 32, 64


def prepare(model: Path, made: Path, dtype: str) -> None:
    """Nothing to do: the engine reads the model as it is."""


def load(model: Path, made: Path, dtype: str, threads: int) -> Generator:
    """An engine for the largest workload."""
    from server.engine.engine import Engine
    from server.engine.interface.config import EngineConfig

    config = EngineConfig(
        dtype=dtype,
        threads=threads,
        slots=_MOST_BATCH,
        max_source_tokens=_MOST_TOKENS,
        max_new_tokens=_MOST_TOKENS,
        max_encode_tokens=_MOST_BATCH * _MOST_TOKENS,
    )
    return _Engine(Engine.load(Model.open(model), config), threads)


class _Engine:
    def __init__(self, engine: Any, threads: int) -> None:
        self._engine, self._threads = engine, threads

    def generate(self, sources: list[list[int]], new_tokens: int) -> list[list[int]]:
        """See `Generator`."""
        import torch

        from server.engine.interface.parameters import GenerationParameters

        torch.set_num_threads(self._threads)
        done = self._engine.generate(sources, GenerationParameters(max_new_tokens=new_tokens, ignore_eos=True))
        for sequence in done:
            if sequence.error is not None:
                raise RuntimeError(sequence.error)
        return [list(sequence.tokens) for sequence in done]
