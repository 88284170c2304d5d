"""Model directories for other programs: as they are, or as stock checkpoints that need no code of ours."""

import json
import os
import shutil
import uuid
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model_store.model.config import layout_of
from model_store.model.model import CONFIG, INDEX, INT4, WEIGHTS, Model, is_weights
from model_store.model.spec import ModelSpec, shortened
from model_store.storage.files import sync_folder
from model_store.version.source import list_files
from nash.errors import RequestError
from nash.model_card import CARD
from nash.modeling.compact import stock_class
from nash.modeling.configuration import CompactFields
from nash.run.disk import full_disk_named
from nash.run.folder import check_free

Format = Literal["hf", "hf-dense"]


def export(model: Model, form: Format, out: Path, card: str | None = None) -> None:
    """Write a model to the new folder `out`, whole or not at all, with a card unless it has one.

    `hf` copies it. `hf-dense` makes a checkpoint of the family's stock class with the same logits: the remaining layers
    get all heads and units back, with zero weights in those that were cut. A dense model is such a checkpoint already.
    Hidden states get their dimensions back where a norm can be scaled to ignore zeros: not where it subtracts the mean.
    The four-bit calibration has the widths of the compact model and is not exported.

    Raises:
        RequestError: `out` is taken, or no stock checkpoint has these outputs.
        model_store.errors.InvalidRequestError: the folder has a file that does not belong in a model directory.
        NashError: the disk is full.
    """
    names = list_files(model.folder)
    model.check_weights()  # do not copy a damaged file
    widened = form == "hf-dense" and model.pruned
    if widened and model.spec.width < model.spec.d_model and layout_of(model.spec).biases:
        raise RequestError(
            f"{model.folder} has hidden states of {model.spec.width} of {model.spec.d_model} dimensions: "
            f"no stock {model.spec.family} has the same outputs, because its norms take the mean over all of them; "
            "use --format hf"
        )
    check_free(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    # Write under a hidden name until it is complete: a killed run leaves nothing that looks like a model.
    partial = out.with_name(f".{out.name}.{uuid.uuid4().hex}.partial")
    partial.mkdir()
    try:
        for name in names:
            if not (widened and (is_weights(name) or name in (CONFIG, INDEX, INT4))):
                shutil.copyfile(model.folder / name, partial / name)
        if widened:
            _write_stock(model, partial)
        if card is not None and CARD not in names:
            (partial / CARD).write_text(card, encoding="utf-8")
        for path in partial.iterdir():
            _sync(path)
        sync_folder(partial)
        check_free(out)
        partial.rename(out)
        sync_folder(out.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _write_stock(model: Model, partial: Path) -> None:
    tensors = widen(
        {name: tensor for path in model.weight_files for name, tensor in load_file(path).items()}, model.spec
    )
    text = json.dumps(stock_config(model, tensors), indent=2) + "\n"
    with full_disk_named(partial.parent, sum(tensor.nbytes for tensor in tensors.values())):
        (partial / CONFIG).write_text(text, encoding="utf-8")
        save_file(tensors, partial / WEIGHTS, metadata={"format": "pt"})


def stock_shape(compact: ModelSpec) -> ModelSpec:
    """The shape of the stock model equivalent to a compact one: the same layers, each with its full width."""
    return shortened(compact, tuple(layer.origin for layer in compact.decoder))


def stock_config(model: Model, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """A compact model's `config.json`, rewritten as a stock one of its family."""
    compact = model.spec
    ours = {*(field.name for field in fields(CompactFields)), "dense_vocab_size"}
    stock = {key: value for key, value in model.config.items() if key not in ours}
    stock["model_type"] = compact.family
    stock["architectures"] = [stock_class(compact).__name__]
    layout = layout_of(compact)
    if compact.width < compact.d_model:
        assert layout.norm_eps_key is not None, "norms that can be widened have an eps of their own"
        stock[layout.norm_eps_key] = compact.layer_norm_eps * compact.width / compact.d_model
    return stock | layout.counts | layout.output_config(own=f"{layout.output}.weight" in tensors)


def widen(tensors: dict[str, Tensor], compact: ModelSpec) -> dict[str, Tensor]:
    """A compact checkpoint's tensors, with zeros for every part that was cut.

    A part with a zero column in the output matrix adds nothing, whatever its rows hold. A sublayer that is cut entirely
    still adds its output's bias, in families that have one.
    """
    stock = stock_shape(compact)
    shapes, dtype = dict(layout_of(stock).shapes()), next(iter(tensors.values())).dtype
    if compact.width < compact.d_model:
        tensors = _with_all_dimensions(tensors, compact)
    result = dict(tensors)
    for narrow, whole in zip(layout_of(compact).sublayers(), layout_of(stock).sublayers(), strict=True):
        numbers = torch.tensor(narrow.numbers, dtype=torch.long)
        rows = (numbers[:, None] * whole.columns + torch.arange(whole.columns)).flatten()
        for name in (f"{matrix}.{kind}" for matrix in whole.inputs for kind in ("weight", "bias")):
            if name in shapes:
                result[name] = torch.zeros(shapes[name], dtype=dtype)
                if narrow.parts:
                    result[name][rows] = tensors[name]
        out = f"{whole.out}.weight"
        result[out] = torch.zeros(shapes[out], dtype=dtype)
        if narrow.parts:
            result[out][:, rows] = tensors[out]
        neutral = {f"{whole.norm}.weight": 1.0, f"{whole.norm}.bias": 0.0}
        if whole.bias_table is not None:
            neutral[f"{whole.bias_table}.weight"] = 0.0
        for name, value in neutral.items():
            if name in shapes and name not in tensors:
                result[name] = torch.full(shapes[name], value, dtype=dtype)
    return result


def _with_all_dimensions(tensors: dict[str, Tensor], compact: ModelSpec) -> dict[str, Tensor]:
    """The tensors with zeros in the dimensions of the hidden states that were cut.

    A stock RMSNorm divides by the root of the mean over all D dimensions, of which K were kept. With sums s of squares,
    (s / K + eps)^-0.5 = (K / D)^0.5 (s / D + eps K / D)^-0.5: so gains are multiplied by (K / D)^0.5, and eps by K / D.
    """
    whole = replace(compact, hidden=tuple(range(compact.d_model)))
    layout, kept = layout_of(whole), torch.tensor(compact.hidden)
    shapes = dict(layout.optional_shapes()) | dict(layout.shapes())
    norms = {name for name, shape in shapes.items() if shape == (compact.d_model,)}
    result = {}
    for name, tensor in tensors.items():
        if name in norms:
            tensor = (tensor.double() * (compact.width / compact.d_model) ** 0.5).to(tensor.dtype)
        for axis, (size, wanted) in enumerate(zip(tensor.shape, shapes[name], strict=True)):
            if size != wanted:
                widened = list(tensor.shape)
                widened[axis] = wanted
                tensor = tensor.new_zeros(widened).index_copy(axis, kept, tensor)
        result[name] = tensor
    return result
