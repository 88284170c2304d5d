"""Models of a given shape with random weights: the engine loads them, and they have the widths they are asked for."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from model_store.model.config import spec_of
from model_store.model.model import Model
from nash.measuring.random_model import cut_spec, uniform_widths, with_vocabulary, write_random_model
from server.engine.engine import Engine
from server.engine.interface.config import EngineConfig
from server.engine.interface.parameters import GenerationParameters

T5 = {"model_type": "t5", "vocab_size": 30, "d_model": 16, "d_kv": 4, "num_heads": 3, "d_ff": 24, "num_layers": 3}
FAMILIES: dict[str, dict[str, Any]] = {
    "t5": T5,
    "gated": T5 | {"feed_forward_proj": "gated-gelu"},
    "umt5": T5 | {"model_type": "umt5"},
    **{
        family: {
            "model_type": family,
            "vocab_size": 30,
            "d_model": 16,
            "encoder_layers": 3,
            "decoder_layers": 2,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 24,
            "decoder_ffn_dim": 20,
            "max_position_embeddings": 40,
            "pad_token_id": 1,
            "decoder_start_token_id": 2,
        }
        for family in ("bart", "marian")
    },
}
SPECS = {name: spec_of(config) for name, config in FAMILIES.items()}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("heads", [0, 1, None])
def test_the_engine_runs_every_shape(name: str, heads: int | None, tmp_path: Path) -> None:
    dense = SPECS[name]
    spec = dense if heads is None else cut_spec(dense, decoder_layers=1, heads=heads, units=7 * heads)
    spec = with_vocabulary(spec, 20)
    write_random_model(tmp_path, spec, FAMILIES[name])
    engine = Engine.load(Model.open(tmp_path), EngineConfig(dtype="int8", threads=1, slots=1))
    assert engine.spec == spec
    [sequence] = engine.generate([[3, 4, 5]], GenerationParameters(max_new_tokens=4, ignore_eos=True))
    assert len(sequence.tokens) == 4


@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_that_a_smaller_vocabulary_has_not(name: str, tmp_path: Path) -> None:
    """What a configuration forces or forbids has nothing to do with the speed."""
    config = FAMILIES[name] | {"forced_bos_token_id": 29, "suppress_tokens": [28], "bad_words_ids": [[27], [3, 26]]}
    write_random_model(tmp_path, with_vocabulary(SPECS[name], 20), config)
    assert Engine.load(Model.open(tmp_path), EngineConfig(threads=1, slots=1)).spec.vocab_size == 20


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.3, 0.5, 0.9])
def test_uniform_widths_are_within_one_unit_of_the_sparsity(name: str, sparsity: float) -> None:
    dense = SPECS[name]
    heads, units = uniform_widths(dense, sparsity)
    cut = cut_spec(dense, decoder_layers=2, heads=heads, units=units)
    layer = dense.num_heads * dense.head_weights + dense.d_ff * dense.unit_weights
    assert cut.encoder_sparsity == pytest.approx(sparsity, abs=dense.unit_weights / layer)
    assert [layer.origin for layer in cut.decoder] == [0, 1]


def test_special_tokens_stay_within_a_smaller_vocabulary() -> None:
    spec = dataclasses.replace(SPECS["marian"], pad_id=29, decoder_start_id=29)
    small = with_vocabulary(spec, 20)
    assert (small.vocab_size, small.target_vocab_size, small.pad_id, small.decoder_start_id) == (20, 20, 19, 19)
    assert small.eos_id == spec.eos_id


def test_a_cut_model_says_so(tmp_path: Path) -> None:
    write_random_model(tmp_path, cut_spec(SPECS["t5"], decoder_layers=2, heads=2, units=9), T5)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["model_type"], config["num_layers"], config["num_decoder_layers"]) == ("nash_t5", 3, 2)
