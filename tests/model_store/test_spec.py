import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import (
    BartConfig,
    M2M100Config,
    MarianConfig,
    MBartConfig,
    PegasusConfig,
    T5Config,
    T5ForConditionalGeneration,
    UMT5Config,
)

from model_store.errors import UnsupportedModelError
from model_store.model.config import layout_of, spec_of
from model_store.model.families import compact_model_type
from model_store.model.model import Model
from model_store.model.spec import DecoderLayerSpec, EncoderLayerSpec, ModelSpec, dense_of
from tests.tiny_families import CASES, build_tiny

CONFIG: dict[str, Any] = {
    "model_type": "t5",
    "vocab_size": 30,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 4,
    "num_decoder_layers": 3,
    "num_heads": 4,
}
DENSE = spec_of(CONFIG)
COMPACT_CONFIG = CONFIG | DENSE.layer_config() | {"model_type": compact_model_type("t5")}

HEADS = st.sets(st.integers(0, 3)).map(lambda heads: tuple(sorted(heads)))
ENCODER = st.lists(st.builds(EncoderLayerSpec, heads=HEADS, ffn=st.integers(0, 64)), min_size=4, max_size=4)
ORIGINS = st.sets(st.integers(0, 2), min_size=1).map(sorted)


@st.composite
def compact_specs(draw: st.DrawFn) -> ModelSpec:
    decoder = tuple(
        DecoderLayerSpec(self_heads=draw(HEADS), cross_heads=draw(HEADS), ffn=draw(st.integers(0, 64)), origin=origin)
        for origin in draw(ORIGINS)
    )
    hidden = tuple(sorted(draw(st.sets(st.integers(0, DENSE.d_model - 1), min_size=1))))
    return ModelSpec(**(vars(DENSE) | {"encoder": tuple(draw(ENCODER)), "decoder": decoder, "hidden": hidden}))


@given(compact_specs())
def test_round_trip_through_json(spec: ModelSpec) -> None:
    config = CONFIG | spec.layer_config()
    config |= {"model_type": compact_model_type("t5"), "num_decoder_layers": len(spec.decoder)}
    assert spec_of(json.loads(json.dumps(config))) == spec
    assert dense_of(spec) == DENSE
    assert spec.compact is (spec != DENSE)
    assert 0.0 <= spec.encoder_sparsity <= 1.0


@given(compact_specs())
def test_sparsity_is_what_is_missing_of_the_encoder_tensors(spec: ModelSpec) -> None:
    def prunable(of: ModelSpec) -> int:
        return sum(
            torch.Size(shape).numel()
            for name, shape in layout_of(of).shapes()
            if name.startswith("encoder.block") and "norm" not in name and "relative" not in name
        )

    assert spec.encoder_sparsity == pytest.approx(1 - prunable(spec) / prunable(DENSE))


@pytest.mark.parametrize("gated", [False, True])
def test_tensor_shapes_are_those_of_transformers(gated: bool) -> None:
    config = CONFIG | {"feed_forward_proj": "gated-gelu" if gated else "relu"}
    with torch.device("meta"):
        model = T5ForConditionalGeneration(T5Config(**{k: v for k, v in config.items() if k != "model_type"}))
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert dict(layout_of(spec_of(config)).shapes()) == expected


def test_dense_spec() -> None:
    assert not DENSE.compact
    assert DENSE.encoder_sparsity == 0.0
    assert (DENSE.pad_id, DENSE.eos_id, DENSE.decoder_start_id) == (0, 1, 0)
    assert (DENSE.relative_buckets, DENSE.relative_max_distance, DENSE.layer_norm_eps) == (32, 128, 1e-6)
    assert [layer.origin for layer in DENSE.decoder] == [0, 1, 2]
    assert len(spec_of(CONFIG | {"num_decoder_layers": None}).decoder) == 4


@pytest.mark.parametrize(
    ("keys", "scaled"),
    [
        ({}, True),
        ({"tie_word_embeddings": True}, True),
        ({"tie_word_embeddings": False}, False),
        ({"tie_word_embeddings": True, "scale_decoder_outputs": False}, False),  # transformers 5 after a v1.1 model
    ],
)
def test_scaling_of_the_logits(keys: dict[str, bool], scaled: bool) -> None:
    assert spec_of(CONFIG | keys).scale_logits is scaled


@pytest.mark.parametrize(
    ("kind", "gated", "activation"),
    [
        ("relu", False, "relu"),
        ("gelu", False, "gelu"),
        ("gated-gelu", True, "gelu_new"),
        ("gated-silu", True, "silu"),
    ],
)
def test_feed_forward_kinds_are_those_of_transformers(kind: str, gated: bool, activation: str) -> None:
    spec = spec_of(CONFIG | {"feed_forward_proj": kind})
    theirs = T5Config(feed_forward_proj=kind)
    assert (spec.gated_ffn, spec.activation) == (gated, activation)
    assert (theirs.is_gated_act, theirs.dense_act_fn) == (gated, activation)


LAYER = {"heads": [0], "ffn": 1}
DECODER_LAYER = {"self_heads": [0], "cross_heads": [0], "ffn": 1, "origin": 0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "longt5"}, "'longt5' is not supported: use a model of the family t5, mt5, umt5, bart"),
        ({"model_type": ["t5"]}, "is not supported"),
        ({"model_type": None}, "None is not supported"),
        ({"auto_map": {}}, "remote code"),
        ({"feed_forward_proj": "swish"}, "feed_forward_proj is 'swish': it must be relu, gelu"),
        ({"feed_forward_proj": 5}, "feed_forward_proj is 5"),
        ({"d_model": None}, "d_model is None"),
        ({"d_model": 0}, "d_model is 0"),
        ({"d_model": True}, "d_model is True"),
        ({"d_model": 2**31}, "d_model is 2147483648"),
        ({"num_layers": 10**9}, "num_layers is 1000000000: it must be a whole number from 1 to 1000"),
        ({"num_heads": 10**9}, "num_heads"),
        ({"layer_norm_epsilon": 0}, "layer_norm_epsilon"),
        ({"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon"),
        ({"scale_decoder_outputs": "false"}, "scale_decoder_outputs is 'false': it must be true or false"),
        ({"eos_token_id": [1, 2]}, "eos_token_id"),
        ({"eos_token_id": 30}, "a token id below vocab_size, 30"),
        ({"pad_token_id": -1}, "pad_token_id"),
        ({"relative_attention_num_buckets": 3}, "relative_attention_num_buckets is 3: it must be at least 4"),
        ({"relative_attention_max_distance": 16}, "relative_attention_max_distance is 16: it must be above 16"),
        ({"dense_vocab_size": 29}, "dense_vocab_size is 29: it must be at least vocab_size, 30"),
    ],
)
def test_bad_configs(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        spec_of(CONFIG | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compact_encoder_layers": None}, "compact_encoder_layers is None: it must be a list of 4 layers"),
        ({"compact_encoder_layers": [LAYER] * 3}, "a list of 4 layers"),
        ({"compact_encoder_layers": [1, 2, 3, 4]}, "a list of 4 layers"),
        ({"compact_encoder_layers": [LAYER | {"heads": [4]}] * 4}, "head numbers below 4"),
        ({"compact_encoder_layers": [LAYER | {"heads": [1, 0]}] * 4}, "ascending"),
        ({"compact_encoder_layers": [LAYER | {"heads": [1, 1]}] * 4}, "ascending"),
        ({"compact_encoder_layers": [LAYER | {"heads": None}] * 4}, "ascending"),
        ({"compact_encoder_layers": [LAYER | {"ffn": 65}] * 4}, "from 0 to 64"),
        ({"compact_decoder_layers": [DECODER_LAYER] * 3}, "strictly ascending origins"),
        ({"compact_decoder_layers": [DECODER_LAYER | {"origin": 3}] * 3}, "from 0 to 2"),
        ({"compact_hidden": []}, "at least one number below d_model"),
        ({"compact_hidden": [0, 10**6]}, "at least one number below d_model"),
        ({"compact_hidden": [1, 0]}, "ascending"),
        ({"compact_hidden": [1, 1]}, "ascending"),
        ({"compact_hidden": [-1, 1]}, "ascending"),
        ({"compact_hidden": [0, True]}, "ascending"),
        ({"compact_hidden": "all"}, "ascending"),
        ({"dense_encoder_layers": 3}, "at least the encoder's layers, 4"),
        ({"dense_decoder_layers": None}, "dense_decoder_layers is None"),
    ],
)
def test_bad_compact_configs(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        spec_of(COMPACT_CONFIG | changes)
    assert len(str(caught.value)) < 300


def test_a_trimmed_vocabulary_is_something_cut() -> None:
    assert not spec_of(CONFIG).compact
    trimmed = spec_of(CONFIG | {"dense_vocab_size": 31})
    assert trimmed.compact
    assert (trimmed.vocab_size, trimmed.dense_vocab_size) == (30, 31)


def test_eos_as_a_list_of_one() -> None:
    assert spec_of(CONFIG | {"eos_token_id": [2]}).eos_id == 2


BART_CONFIG: dict[str, Any] = {
    "model_type": "bart",
    "vocab_size": 37,
    "d_model": 24,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 28,
}


@pytest.mark.parametrize("name", CASES)
def test_every_family_s_checkpoint_holds_the_tensors_of_its_spec(name: str, tmp_path: Path) -> None:
    directory = build_tiny(CASES[name], tmp_path / "model")
    spec = Model.open(directory).spec
    with safe_open(directory / "model.safetensors", framework="pt") as file:
        found = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 (no mapping)
    wanted, optional = dict(layout_of(spec).shapes()), dict(layout_of(spec).optional_shapes())
    assert not wanted.keys() & optional.keys()
    assert not wanted.keys() - found.keys()
    assert found == {key: (wanted | optional)[key] for key in found}


@pytest.mark.parametrize("name", CASES)
def test_every_family_s_spec_goes_through_json(name: str, tmp_path: Path) -> None:
    directory = build_tiny(CASES[name], tmp_path / "model")
    config = json.loads((directory / "config.json").read_text())
    dense = spec_of(config)
    assert dense_of(dense) == dense
    encoder = (EncoderLayerSpec(heads=(0,), ffn=7), *dense.encoder[1:])
    decoder = (dataclasses.replace(dense.decoder[1], cross_heads=(), ffn=dense.decoder_d_ff),)
    spec = dataclasses.replace(dense, encoder=encoder, decoder=decoder)
    changes = {"model_type": f"nash_{config['model_type']}", layout_of(dense).layers_keys["decoder"]: 1}
    read = spec_of(json.loads(json.dumps(config | spec.layer_config() | changes)))
    assert read == spec
    assert read.compact
    assert dense_of(read) == dense
    unit, head = dense.unit_weights, dense.head_weights
    lost = (dense.num_heads - 1) * head + (dense.d_ff - 7) * unit
    all_of_it = len(dense.encoder) * (dense.num_heads * head + dense.d_ff * unit)
    assert read.encoder_sparsity == pytest.approx(lost / all_of_it)


@pytest.mark.parametrize(
    ("family", "config_class"),
    [("bart", BartConfig), ("mbart", MBartConfig), ("marian", MarianConfig), ("pegasus", PegasusConfig)],
)
def test_what_a_config_leaves_out_is_what_transformers_takes(family: str, config_class: type[Any]) -> None:
    spec = spec_of(BART_CONFIG | {"model_type": family, "vocab_size": 60000})
    theirs = config_class(**{k: v for k, v in BART_CONFIG.items() if k != "model_type"})
    assert (spec.pad_id, spec.eos_id) == (theirs.pad_token_id, theirs.eos_token_id)
    start = theirs.decoder_start_token_id
    assert spec.decoder_start_id == (theirs.bos_token_id if start is None else start)
    assert spec.activation == theirs.activation_function
    assert spec.scale_embedding is theirs.scale_embedding
    assert spec.max_positions == theirs.max_position_embeddings


def test_m2m_100_without_its_defaults() -> None:
    spec = spec_of(BART_CONFIG | {"model_type": "m2m_100"})
    theirs = M2M100Config()
    assert (spec.activation, spec.scale_embedding) == (theirs.activation_function, theirs.scale_embedding)
    assert (spec.pad_id, spec.eos_id) == (theirs.pad_token_id, theirs.eos_token_id)
    assert spec.decoder_start_id == theirs.decoder_start_token_id
    assert spec.max_positions is None


def test_mt5_is_gated_and_never_scaled() -> None:
    spec = spec_of(CONFIG | {"model_type": "mt5", "tie_word_embeddings": True})
    assert (spec.family, spec.gated_ffn, spec.activation, spec.scale_logits) == ("mt5", True, "gelu_new", False)


@pytest.mark.parametrize("tied", [True, False])
def test_umt5_is_gated_and_always_scaled_as_transformers_5_does_it(tied: bool) -> None:
    spec = spec_of(CONFIG | {"model_type": "umt5", "tie_word_embeddings": tied})
    theirs = UMT5Config(tie_word_embeddings=tied)
    assert (spec.family, spec.gated_ffn, spec.activation) == ("umt5", theirs.is_gated_act, theirs.dense_act_fn)
    assert spec.scale_logits is theirs.tie_word_embeddings is True


def test_a_table_comes_and_goes_with_its_layer_or_stays_with_its_stack() -> None:
    def tables(spec: ModelSpec) -> list[str]:
        return [name for name, _ in layout_of(spec).shapes() if "relative_attention_bias" in name]

    own, shared = spec_of(CONFIG | {"model_type": "umt5"}), DENSE
    assert [len(tables(spec)) for spec in (own, shared)] == [7, 2]
    assert not layout_of(own).stack_tensors
    assert layout_of(shared).stack_tensors == set(tables(shared))
    for spec in (own, shared):
        first = dataclasses.replace(spec.encoder[0], heads=())
        cut = dataclasses.replace(spec, encoder=(first, *spec.encoder[1:]))
        left = [name for name in tables(spec) if spec is shared or not name.startswith("encoder.block.0.")]
        assert tables(cut) == left


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder_attention_heads": 6}, "decoder_attention_heads is 6: it must be encoder_attention_heads, 3"),
        ({"encoder_attention_heads": 5, "decoder_attention_heads": 5}, "d_model is 24: it must be a multiple of"),
        ({"activation_function": "gelu_fast"}, "activation_function is 'gelu_fast': it must be relu or gelu"),
        ({"scale_embedding": 1}, "scale_embedding is 1: it must be true or false"),
        ({"encoder_layers": None}, "encoder_layers is None"),
        ({"max_position_embeddings": 0}, "max_position_embeddings is 0"),
        ({"decoder_start_token_id": 37}, "decoder_start_token_id is 37: it must be a token id below"),
        ({"model_type": "m2m_100", "d_model": 3}, "d_model is 3: it must be at least 4"),
        (
            {"model_type": "marian", "share_encoder_decoder_embeddings": False, "decoder_vocab_size": -1},
            "decoder_vocab_size is -1",
        ),
        ({"model_type": "nash_bart"}, "dense_encoder_layers is None"),
        ({"auto_map": {}}, "remote code"),
    ],
)
def test_bad_configs_of_bart_s_layout(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        spec_of(BART_CONFIG | changes)
