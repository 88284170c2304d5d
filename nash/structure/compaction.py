"""From a gated student to a compact model that computes exactly the same outputs."""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from model_store.model.config import layout_of, spec_of, with_kept
from model_store.model.layout import HIDDEN, Sublayer
from model_store.model.spec import ModelSpec, shortened
from nash.modeling.compact import compact_class, compact_config, fill
from nash.modeling.hidden import only_kept
from nash.structure.hidden import tables
from nash.structure.masking import HardenedGates


def shorten_decoder(teacher: PreTrainedModel, kept: tuple[int, ...]) -> PreTrainedModel:
    """A copy of the teacher with the decoder layers `kept` only.

    T5's relative-position table is stored in the first decoder layer but belongs to the whole stack: it stays,
    whichever layer is now the first. UMT5's tables belong to their layers and go with them. Training no longer drops
    layers at random (`layerdrop`): every kept decoder layer is needed, and distillation compares every layer in every
    step.
    """
    dense = spec_of(teacher.config.to_dict())
    layout = layout_of(dense)
    config = copy.deepcopy(teacher.config)
    setattr(config, layout.layers_keys["decoder"], len(kept))
    for key in ("encoder_layerdrop", "decoder_layerdrop"):
        if hasattr(config, key):
            setattr(config, key, 0.0)
    student: PreTrainedModel = type(teacher)(config)
    prefix, state = f"{layout.layers('decoder')}.", {}
    for name, tensor in teacher.state_dict().items():
        if name in layout.stack_tensors or not name.startswith(prefix):
            state[name] = tensor
            continue
        index, rest = name.removeprefix(prefix).split(".", 1)
        if int(index) in kept:
            state[f"{prefix}{kept.index(int(index))}.{rest}"] = tensor
    fill(student, state)
    student.generation_config = copy.deepcopy(teacher.generation_config)
    return student.to(teacher.device)  # a table that is no parameter was made on the CPU


def compact(
    student: PreTrainedModel, dense: ModelSpec, kept_layers: tuple[int, ...], hardened: HardenedGates
) -> PreTrainedModel:
    """Cut what the gates closed, and fold the values of the open gates into the weights.

    A part's value folds into its columns of the sublayer's output matrix, the value of a dimension of the hidden states
    into all that writes it, and into the output matrix, which reads it. `dense` is the shape of the teacher;
    `kept_layers` are the decoder layers that `student` still has.
    """
    whole = shortened(dense, kept_layers)
    kept = {name: tuple(bits.nonzero().flatten().tolist()) for name, bits in hardened.kept.items()}
    spec = with_kept(whole, kept)
    model = compact_class(spec)(compact_config(spec, student.config))
    state = _cut(student.state_dict(), layout_of(whole).sublayers(), hardened)
    wanted = model.state_dict()
    state = {name: tensor for name, tensor in state.items() if name in wanted}
    if HIDDEN in hardened.kept:
        state = _cut_hidden(state, student, spec, hardened.values[HIDDEN], wanted)
    fill(model, state)
    model.generation_config = copy.deepcopy(student.generation_config)
    return model


@torch.no_grad()
def _cut(student: dict[str, Tensor], sublayers: Sequence[Sublayer], hardened: HardenedGates) -> dict[str, Tensor]:
    """The student's tensors without the closed parts. A sublayer with no parts left keeps empty matrices."""
    state = dict(student)
    for sublayer in sublayers:
        if sublayer.out not in hardened.kept:
            continue
        rows = hardened.kept[sublayer.out].repeat_interleave(sublayer.columns)
        values = hardened.values[sublayer.out].repeat_interleave(sublayer.columns)
        for matrix in sublayer.inputs:
            for name in (f"{matrix}.weight", f"{matrix}.bias"):
                if name in state:
                    state[name] = state[name][rows]
        out = f"{sublayer.out}.weight"
        state[out] = (state[out] * values.to(state[out].dtype))[:, rows]
    return state


@torch.no_grad()
def _cut_hidden(
    state: Mapping[str, Tensor],
    student: PreTrainedModel,
    spec: ModelSpec,
    values_D: Tensor,
    wanted: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """The tensors with the values of the hidden states' dimensions folded in, and without the closed dimensions.

    Names that share a tensor here share it in the result.
    """
    read_by_column = {module.get_parameter("weight").data_ptr() for module in tables(student, layout_of(spec))}
    outs = {sublayer.out for sublayer in layout_of(spec).sublayers()}
    cut: dict[tuple[int, torch.Size], Tensor] = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tensor.shape)
        if key in cut:
            continue
        place, _, kind = name.rpartition(".")
        values = values_D.to(tensor)
        if tensor.data_ptr() in read_by_column:
            tensor = tensor * values
        elif place in outs:
            tensor = tensor * (values[:, None] if kind == "weight" else values)
        cut[key] = only_kept(tensor, wanted[name].shape, spec)
    return {name: cut[tensor.data_ptr(), tensor.shape] for name, tensor in state.items()}
