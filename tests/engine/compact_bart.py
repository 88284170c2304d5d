"""Compact checkpoints in BART's layout cut out of dense ones, and the dense ones with the same parts zeroed."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model_store.model.config import layout_of
from model_store.model.families import compact_model_type
from model_store.model.spec import DecoderLayerSpec, EncoderLayerSpec, ModelSpec


def ragged(dense: ModelSpec) -> ModelSpec:
    """Every layer with widths of its own, each kind of sublayer absent somewhere."""
    encoder = (
        EncoderLayerSpec(heads=(0, 2), ffn=17),
        EncoderLayerSpec(heads=(), ffn=41),
        EncoderLayerSpec(heads=(1,), ffn=0),
    )
    decoder = (
        DecoderLayerSpec(self_heads=(), cross_heads=(0, 1, 2), ffn=9, origin=0),
        DecoderLayerSpec(self_heads=(1, 2), cross_heads=(), ffn=0, origin=1),
    )
    return dataclasses.replace(dense, encoder=encoder, decoder=decoder)


def shortened(dense: ModelSpec) -> ModelSpec:
    """The second decoder layer alone, with fewer cross-attention heads."""
    layer = dataclasses.replace(dense.decoder[1], cross_heads=(2,))
    return dataclasses.replace(dense, decoder=(layer,))


def hollow(dense: ModelSpec) -> ModelSpec:
    """Neither heads nor units anywhere."""
    return dataclasses.replace(
        dense,
        encoder=(EncoderLayerSpec(heads=(), ffn=0),) * 3,
        decoder=(DecoderLayerSpec(self_heads=(), cross_heads=(), ffn=0, origin=0),),
    )


def write_compact(dense_dir: Path, spec: ModelSpec, directory: Path) -> Path:
    """The dense checkpoint with everything cut away that `spec` does not keep."""
    config = spec.layer_config() | {"model_type": compact_model_type(spec.family)}
    shapes = dict(layout_of(spec).shapes())
    tensors = {}
    for name, tensor in _layers_of(spec, load_file(dense_dir / "model.safetensors")).items():
        if ".layers." in name and name not in shapes:  # nothing is left that would read it
            continue
        kept, parts = _kept(spec, name), name.split(".")
        if kept is not None and parts[-2] in ("q_proj", "k_proj", "v_proj", "fc1"):
            tensor = tensor[kept]
        elif kept is not None and parts[-1] == "weight":
            tensor = tensor[:, kept]
        tensors[name] = tensor.contiguous()
    return _write(dense_dir, spec, tensors, config, directory)


def write_zeroed(dense_dir: Path, spec: ModelSpec, directory: Path) -> Path:
    """The dense checkpoint where the output columns of everything that `spec` does not keep are zero.

    It has the decoder layers that are kept, and no others: no zeros make a layer nothing where norms come last.
    """
    tensors = _layers_of(spec, load_file(dense_dir / "model.safetensors"))
    for name, tensor in tensors.items():
        kept = _kept(spec, name)
        if kept is not None and name.endswith(("out_proj.weight", "fc2.weight")):
            dropped = torch.ones(tensor.shape[1], dtype=torch.bool)
            dropped[kept] = False
            tensor[:, dropped] = 0
    return _write(dense_dir, spec, tensors, {}, directory)


def _layers_of(spec: ModelSpec, dense: dict[str, Tensor]) -> dict[str, Tensor]:
    """All tensors, those of the kept decoder layers under their new numbers."""
    numbers = {layer.origin: i for i, layer in enumerate(spec.decoder)}
    tensors = {}
    for name, tensor in dense.items():
        parts = name.split(".")
        if parts[1:3] == ["decoder", "layers"]:
            if int(parts[3]) not in numbers:
                continue
            parts[3] = str(numbers[int(parts[3])])
        tensors[".".join(parts)] = tensor
    return tensors


def _kept(spec: ModelSpec, name: str) -> Tensor | None:
    """Which rows, or columns of an output, of a matrix stay; None: it belongs to no head and no unit."""
    parts = name.split(".")
    if len(parts) < 6 or parts[2] != "layers" or parts[-2].endswith("norm"):
        return None
    layer = (spec.encoder if parts[1] == "encoder" else spec.decoder)[int(parts[3])]
    if parts[4] in ("fc1", "fc2"):
        return torch.arange(layer.ffn)
    if isinstance(layer, EncoderLayerSpec):
        heads = layer.heads
    else:
        heads = layer.self_heads if parts[4] == "self_attn" else layer.cross_heads
    return (torch.tensor(heads, dtype=torch.long)[:, None] * spec.head_dim + torch.arange(spec.head_dim)).flatten()


def _write(
    dense_dir: Path, spec: ModelSpec, tensors: dict[str, Tensor], changes: dict[str, Any], directory: Path
) -> Path:
    shutil.copytree(dense_dir, directory)
    config = json.loads((dense_dir / "config.json").read_text()) | {"decoder_layers": len(spec.decoder)} | changes
    (directory / "config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory
