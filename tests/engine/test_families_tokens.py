"""Every family's tokens are those of transformers' generate: greedy and beam search, both backends, in one batch."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model_store.model.model import Model
from server.engine.capabilities import why_not_native
from server.engine.engine import Engine
from server.engine.interface.config import EngineConfig
from tests.engine.family_reference import load_reference, texts
from tests.tiny_families import CASES, build_tiny

LENGTHS = [5, 60, 1, 33, 17, 20]
NEW_TOKENS = 18
BACKENDS = ["torch", "native"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_greedy_and_beams(name: str, backend: str, tmp_path: Path) -> None:
    config = EngineConfig(slots=5, max_source_tokens=64, max_new_tokens=NEW_TOKENS, backend=backend)
    if backend == "native" and (obstacle := why_not_native(config)):
        pytest.skip(obstacle)
    directory = build_tiny(CASES[name], tmp_path / "model")
    reference = load_reference(CASES[name], directory, "float32")
    sources = texts(Model.open(directory).spec, LENGTHS)
    engine = Engine.load(Model.open(directory), config)
    for beams in (1, 4):
        parameters = replace(engine.defaults.parameters, max_new_tokens=NEW_TOKENS, num_beams=beams)
        for source, sequence in zip(sources, engine.generate(sources, parameters), strict=True):
            expected = reference.generate(
                torch.tensor([source]), max_new_tokens=NEW_TOKENS, do_sample=False, num_beams=beams
            )[0, 1:].tolist()
            assert list(sequence.hypotheses[0].tokens) == expected
