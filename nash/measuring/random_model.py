"""A model directory of any shape with random weights: a model's speed does not depend on what it has learned."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from model_store.model.config import layout_of
from model_store.model.families import compact_model_type
from model_store.model.model import Model
from model_store.model.spec import EncoderLayerSpec, ModelSpec, dense_of
from nash.int4.calibration import round_without_data
from nash.measuring.latency import Workload
from nash.vocabulary.trimming import names_tokens
from server.engine.engine import Engine

_SCALE = 0.02  # of the weights: any value that keeps numbers far from overflow


def cut_spec(spec: ModelSpec, *, decoder_layers: int, heads: int, units: int) -> ModelSpec:
    """A dense model's shape, cut to these numbers of decoder layers, and of heads and units per encoder layer."""
    fields = dict(vars(spec))
    fields["encoder"] = (EncoderLayerSpec(heads=tuple(range(heads)), ffn=units),) * len(spec.encoder)
    fields["decoder"] = spec.decoder[:decoder_layers]  # they are all alike
    return ModelSpec(**fields)


def uniform_widths(spec: ModelSpec, sparsity: float) -> tuple[int, int]:
    """Heads and units of an encoder layer: the nearest number of heads, and units that compensate for the rounding."""
    heads = round((1 - sparsity) * spec.num_heads)
    kept = (1 - sparsity) * (spec.num_heads * spec.head_weights + spec.d_ff * spec.unit_weights)
    units = round((kept - heads * spec.head_weights) / spec.unit_weights)
    return heads, min(max(units, 0), spec.d_ff)


def with_vocabulary(spec: ModelSpec, size: int) -> ModelSpec:
    """The shape with another vocabulary size; special tokens beyond the end become the last token."""
    last = size - 1
    return replace(
        spec,
        vocab_size=size,
        target_vocab_size=size,
        pad_id=min(spec.pad_id, last),
        eos_id=min(spec.eos_id, last),
        decoder_start_id=min(spec.decoder_start_id, last),
    )


def write_random_model(folder: Path, spec: ModelSpec, dense_config: Mapping[str, Any]) -> None:
    """Write the files that the engine needs for a model of shape `spec`, cut from one with the given `config.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(_config(spec, dense_config)), encoding="utf-8")
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in layout_of(spec).shapes():
        # Half precision saves disk space; the engine converts what it reads.
        tensors[name] = torch.empty(shape, dtype=torch.float16).normal_(std=_SCALE, generator=generator)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def load_random_engine(spec: ModelSpec, dense_config: Mapping[str, Any], workload: Workload) -> Engine:
    """An engine for the workload with such a model; nothing is left on disk."""
    with tempfile.TemporaryDirectory() as folder:
        write_random_model(Path(folder), spec, dense_config)
        model = Model.open(Path(folder))
        if workload.dtype == "int4":
            round_without_data(model)
        return Engine.load(model, workload.config)


def _config(spec: ModelSpec, dense_config: Mapping[str, Any]) -> dict[str, Any]:
    # Forced and forbidden tokens may have no row in a trimmed vocabulary, and do not affect the speed.
    config = {key: value for key, value in dense_config.items() if not names_tokens(key)}
    config |= {"vocab_size": spec.vocab_size, "pad_token_id": spec.pad_id, "eos_token_id": spec.eos_id}
    config |= {"decoder_start_token_id": spec.decoder_start_id, "dense_vocab_size": spec.dense_vocab_size}
    if "decoder_vocab_size" in config:
        config["decoder_vocab_size"] = spec.target_vocab_size
    if spec != dense_of(spec):
        config |= layout_of(spec).counts | spec.layer_config() | {"model_type": compact_model_type(spec.family)}
    return config
