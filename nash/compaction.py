"""From a gated student to a compact model that computes exactly the same."""

import copy

import torch
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration

from model_store.spec import DecoderLayerSpec, EncoderLayerSpec, ModelSpec
from nash.configuration_nash_t5 import NashT5Config
from nash.masking import HardenedGates
from nash.modeling_nash_t5 import NashT5ForConditionalGeneration

BIAS_TABLE = "layer.0.SelfAttention.relative_attention_bias.weight"


def shorten_decoder(teacher: T5ForConditionalGeneration, kept: tuple[int, ...]) -> T5ForConditionalGeneration:
    """A copy of the teacher with the decoder layers `kept` only.

    T5's relative-position table lives in the first decoder layer but belongs to the whole stack: it stays,
    whichever layer comes first now.
    """
    config: T5Config = copy.deepcopy(teacher.config)
    config.num_decoder_layers = len(kept)
    student = T5ForConditionalGeneration(config)
    state = {}
    for name, tensor in teacher.state_dict().items():
        if name == f"decoder.block.0.{BIAS_TABLE}":
            state[name] = tensor
        elif name.startswith("decoder.block."):
            _, _, index, rest = name.split(".", 3)
            if int(index) in kept:
                state[f"decoder.block.{kept.index(int(index))}.{rest}"] = tensor
        else:
            state[name] = tensor
    _load(student, state)
    student.generation_config = copy.deepcopy(teacher.generation_config)
    return student


def compact(
    student: T5ForConditionalGeneration,
    dense: ModelSpec,
    kept_layers: tuple[int, ...],
    hardened: HardenedGates,
) -> NashT5ForConditionalGeneration:
    """Cut what the gates closed and fold the values of the open ones into the weights.

    A head's value folds into its columns of the attention's output matrix, a unit's into its column of the
    feed-forward output matrix. `dense` is the shape of the teacher, `kept_layers` the decoder layers that `student`
    still has.
    """
    all_heads = tuple(range(dense.num_heads))
    fields = dict(vars(dense))
    fields["encoder"] = tuple(
        EncoderLayerSpec(heads=tuple(heads.nonzero().flatten().tolist()), ffn=int(units.sum()))
        for heads, units in zip(hardened.kept.heads, hardened.kept.units, strict=True)
    )
    fields["decoder"] = tuple(
        DecoderLayerSpec(self_heads=all_heads, cross_heads=all_heads, ffn=dense.d_ff, origin=origin)
        for origin in kept_layers
    )
    spec = ModelSpec(**fields)
    model = NashT5ForConditionalGeneration(NashT5Config.from_spec(spec, student.config))
    wanted = model.state_dict()
    state = {name: tensor for name, tensor in _cut(student, spec, hardened).items() if name in wanted}
    _load(model, state)
    model.generation_config = copy.deepcopy(student.generation_config)
    return model


def _load(model: T5ForConditionalGeneration, state: dict[str, Tensor]) -> None:
    """Fill a fresh T5, which ties its head to the embedding whatever the config says; T5 v1.1 has a head of its own."""
    if state["lm_head.weight"].data_ptr() != state["shared.weight"].data_ptr():
        model.lm_head.weight = nn.Parameter(torch.empty_like(model.lm_head.weight))
    model.load_state_dict(state)


@torch.no_grad()
def _cut(student: T5ForConditionalGeneration, spec: ModelSpec, hardened: HardenedGates) -> dict[str, Tensor]:
    state: dict[str, Tensor] = dict(student.state_dict())
    for i in range(len(spec.encoder)):
        attention, ffn = (
            f"encoder.block.{i}.layer.0.SelfAttention",
            f"encoder.block.{i}.layer.1.DenseReluDense",
        )
        rows = hardened.kept.heads[i].repeat_interleave(spec.head_dim)
        values = hardened.values.heads[i].repeat_interleave(spec.head_dim)
        for name in ("q", "k", "v"):
            state[f"{attention}.{name}.weight"] = state[f"{attention}.{name}.weight"][rows]
        state[f"{attention}.o.weight"] = (state[f"{attention}.o.weight"] * values)[:, rows]
        units = hardened.kept.units[i]
        for name in ("wi_0", "wi_1") if spec.gated_ffn else ("wi",):
            state[f"{ffn}.{name}.weight"] = state[f"{ffn}.{name}.weight"][units]
        state[f"{ffn}.wo.weight"] = (state[f"{ffn}.wo.weight"] * hardened.values.units[i])[:, units]
    return state
