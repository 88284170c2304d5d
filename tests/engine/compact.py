"""Compact checkpoints cut out of dense ones, and the dense ones with the same parts zeroed."""

import dataclasses
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model_store.model.config import layout_of
from model_store.model.families import compact_model_type
from model_store.model.spec import DecoderLayerSpec, EncoderLayerSpec, ModelSpec

# Of the tiny dense model's 4 encoder and 3 decoder layers with 4 heads and 64 units: every kind of empty sublayer,
# both stacks with an empty first self-attention (the place of the bias table), and a layer with nothing left.
RAGGED_ENCODER = (
    EncoderLayerSpec(heads=(), ffn=64),
    EncoderLayerSpec(heads=(0, 1, 2, 3), ffn=0),
    EncoderLayerSpec(heads=(1, 3), ffn=17),
    EncoderLayerSpec(heads=(2,), ffn=1),
)
RAGGED_DECODER = (
    DecoderLayerSpec(self_heads=(), cross_heads=(0, 3), ffn=40, origin=0),
    DecoderLayerSpec(self_heads=(1, 2, 3), cross_heads=(), ffn=0, origin=1),
    DecoderLayerSpec(self_heads=(0,), cross_heads=(0, 1, 2, 3), ffn=64, origin=2),
)


def ragged(dense: ModelSpec) -> ModelSpec:
    """Every layer with widths of its own, some sublayers absent."""
    return dataclasses.replace(dense, encoder=RAGGED_ENCODER, decoder=RAGGED_DECODER)


def shortened(dense: ModelSpec) -> ModelSpec:
    """One whole decoder layer, the second, under a narrowed encoder: what NASH makes."""
    return dataclasses.replace(dense, encoder=RAGGED_ENCODER, decoder=dense.decoder[1:2])


def hollow(dense: ModelSpec) -> ModelSpec:
    """Nothing left in any layer but a decoder's feed-forward: embeddings, norms and the output matrix."""
    empty = DecoderLayerSpec(self_heads=(), cross_heads=(), ffn=3, origin=0)
    return dataclasses.replace(dense, encoder=(EncoderLayerSpec(heads=(), ffn=0),) * 4, decoder=(empty,))


def write_compact(dense_dir: Path, spec: ModelSpec, directory: Path) -> Path:
    """The dense checkpoint with everything cut away that `spec` does not keep."""
    dense = load_file(dense_dir / "model.safetensors")
    tensors: dict[str, Tensor] = {}
    for name, shape in [*layout_of(spec).shapes(), *_untied(dense, spec)]:
        parts = name.split(".")
        if len(parts) < 5 or name in layout_of(spec).stack_tensors:
            tensors[name] = dense[name]
            continue
        rows, columns = _kept(spec, parts)
        parts[2] = str(spec.decoder[int(parts[2])].origin) if parts[0] == "decoder" else parts[2]
        kept = dense[".".join(parts)]
        kept = kept if rows is None else kept[rows]
        kept = kept if columns is None else kept[:, columns]
        assert tuple(kept.shape) == shape, name
        tensors[name] = kept.contiguous()
    shutil.copytree(dense_dir, directory)
    config = json.loads((dense_dir / "config.json").read_text())
    config |= spec.layer_config() | {"model_type": compact_model_type(spec.family)}
    config |= {"num_layers": len(spec.encoder), "num_decoder_layers": len(spec.decoder)}
    (directory / "config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def write_zeroed(dense_dir: Path, spec: ModelSpec, directory: Path) -> Path:
    """The dense checkpoint where the output columns of everything that `spec` does not keep are zero."""
    shutil.copytree(dense_dir, directory)
    tensors = load_file(dense_dir / "model.safetensors")
    decoder = {layer.origin: layer for layer in spec.decoder}
    for name, tensor in tensors.items():
        parts = name.split(".")
        if parts[-2:] not in (["o", "weight"], ["wo", "weight"]):
            continue
        index = int(parts[2])
        if parts[0] == "decoder" and index not in decoder:
            tensor.zero_()
            continue
        parts[2] = str(list(decoder).index(index)) if parts[0] == "decoder" else parts[2]
        columns = _kept(spec, parts)[1]
        assert columns is not None
        dropped = torch.ones(tensor.shape[1], dtype=torch.bool)
        dropped[columns] = False
        tensor[:, dropped] = 0
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def _untied(dense: dict[str, Tensor], spec: ModelSpec) -> list[tuple[str, tuple[int, ...]]]:
    return [("lm_head.weight", (spec.vocab_size, spec.d_model))] if "lm_head.weight" in dense else []


def _kept(spec: ModelSpec, parts: list[str]) -> tuple[Tensor | None, Tensor | None]:
    """Which rows and columns of a dense tensor stay; None: all. `parts` is the compact tensor's name."""
    layer = (spec.encoder if parts[0] == "encoder" else spec.decoder)[int(parts[2])]
    kind, matrix = parts[5], parts[-2]
    if matrix in ("layer_norm", "relative_attention_bias"):
        return None, None
    if kind == "DenseReluDense":
        kept = torch.arange(layer.ffn)
    else:
        if isinstance(layer, EncoderLayerSpec):
            heads = layer.heads
        else:
            heads = layer.self_heads if kind == "SelfAttention" else layer.cross_heads
        kept = (torch.tensor(heads, dtype=torch.long)[:, None] * spec.head_dim + torch.arange(spec.head_dim)).flatten()
    return (None, kept) if matrix in ("o", "wo") else (kept, None)
