"""What is computed from data without training: which decoder layers to keep, and the fit of cut matrices."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from model_store.model.config import spec_of
from model_store.model.layout import Sublayer
from nash.data.examples import IGNORED, Collator, TokenizedPairs
from nash.modeling.layers import layers_of
from nash.recipes.layer_selection import search_layers
from nash.structure.compaction import shorten_decoder
from nash.structure.layer_walk import Batches, LayerWalk
from nash.structure.masking import Mask, masked
from nash.structure.repair import NormalEquations
from nash.training import losses
from nash.training.objective import decoder_inputs

ROWS = 512
MOST_TOKENS = 2**16  # of the longer side: more would change no fit, and long texts fill the memory
_BATCH = 16  # the scores of one batch's targets take the most memory


def calibration_batches(pairs: TokenizedPairs, pad_id: int, seed: int, device: str = "cpu") -> list[dict[str, Tensor]]:
    """Up to `ROWS` randomly drawn pairs with at most `MOST_TOKENS`, in batches of similar lengths on a device.

    They are the same for the same seed.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(pairs), generator=generator)[:ROWS].numpy()
    lengths = pairs.lengths()
    tokens = lengths[drawn].max(axis=1).cumsum()
    chosen: list[int] = drawn[(tokens <= MOST_TOKENS) | (tokens == tokens[0])].tolist()
    chosen.sort(key=lambda i: tuple(lengths[i]))
    collate = Collator(pad_id=pad_id)
    batches = [collate([pairs[i] for i in chosen[k : k + _BATCH]]) for k in range(0, len(chosen), _BATCH)]
    return [{name: tensor.to(device) for name, tensor in batch.items()} for batch in batches]


class TeacherDistance:
    """How far a model is from its teacher on calibration data: KL(teacher || model) in nats per target token.

    Models and batches are on one device.
    """

    @torch.no_grad()
    def __init__(self, teacher: PreTrainedModel, batches: Batches) -> None:
        self.batches = batches
        teacher.eval()
        # Keep the inputs of the teacher's output matrix: the scores of all batches would take gigabytes for a large
        # vocabulary.
        self._head, self._bias = teacher.get_output_embeddings(), getattr(teacher, "final_logits_bias", 0.0)
        self._states: list[Tensor] = []
        hook = self._head.register_forward_pre_hook(lambda _, inputs: self._states.append(inputs[0]))
        self._encoded = [_run(teacher, batch).encoder_last_hidden_state for batch in batches]
        hook.remove()
        self._tokens = sum(int((batch["labels"] != IGNORED).sum()) for batch in batches)

    @torch.no_grad()
    def of(self, model: PreTrainedModel, *, same_encoder: bool) -> float:
        """The distance of a model. With the teacher's own encoder, `same_encoder` saves its work."""
        model.eval()
        total = 0.0
        for batch, encoded, states in zip(self.batches, self._encoded, self._states, strict=True):
            feed = decoder_inputs(model.config, batch)
            if same_encoder:
                feed |= {"input_ids": None, "encoder_outputs": (encoded,)}
            scores, teacher_scores = model(**feed).logits, self._head(states) + self._bias
            total += float(losses.prediction_distillation(scores, teacher_scores, batch["labels"], 1.0, self._tokens))
        return total


def closest_layers(teacher: PreTrainedModel, keep: int, distance: TeacherDistance) -> tuple[int, ...]:
    """The `keep` decoder layers that on their own stay closest to the whole teacher.

    Without training: no layer has yet learned to replace its neighbours.
    """
    return search_layers(
        len(layers_of(teacher, "decoder")),
        keep,
        lambda kept: distance.of(shorten_decoder(teacher, kept), same_encoder=True),
    )


@torch.no_grad()
def repair(
    compacted: PreTrainedModel,
    student: PreTrainedModel,
    sublayers: Sequence[Sublayer],
    soft: Mask,
    batches: Batches,
    device: str = "cpu",
) -> None:
    """Refit the output matrices of a compact model to their outputs in the student under its gates' own values.

    The models are on the CPU; they compute on the device, where the batches are, and come back.

    `student` and `sublayers` are uncut; `soft` holds the gates' values before hardening. Matrices are refitted in the
    order in which they run, each from the inputs that it gets from the matrices refitted before it. Where dimensions of
    the hidden states were cut, the outputs in those that were kept are compared.
    """
    kept_D = torch.tensor(spec_of(compacted.config.to_dict()).hidden, device=device)
    compacted.eval().to(device)
    student.eval().to(device)
    soft = {name: values.to(device) for name, values in soft.items()}
    for stack, own in groupby(sublayers, key=lambda sublayer: sublayer.stack):
        layers = [list(each) for _, each in groupby(own, key=lambda sublayer: sublayer.layer)]
        if not any(sublayer.out in soft for layer in layers for sublayer in layer):
            continue
        with masked(student, sublayers, soft):
            whole, cut = LayerWalk(student, stack, batches), LayerWalk(compacted, stack, batches)
            for layer in layers:
                for sublayer in layer:
                    matrix = _matrix(compacted, sublayer.out) if sublayer.out in soft else None
                    if matrix is not None:
                        _refit(matrix, whole, cut, sublayer, kept_D)
                whole.advance()
                cut.advance()
    compacted.to("cpu")
    student.to("cpu")


def _refit(matrix: nn.Linear, whole: LayerWalk, cut: LayerWalk, sublayer: Sublayer, kept_D: Tensor) -> None:
    equations = NormalEquations.of_size(matrix.in_features, matrix.out_features, str(matrix.weight.device))
    for ((_, wanted_NO),), ((inputs_NI, outputs_NO),) in zip(whole.passes(sublayer), cut.passes(sublayer), strict=True):
        equations.add(inputs_NI, wanted_NO.index_select(1, kept_D) - outputs_NO)
    matrix.weight += equations.correction().to(matrix.weight)


def _matrix(compacted: PreTrainedModel, name: str) -> nn.Linear | None:
    """The output matrix of a sublayer, or None if it has no inputs left."""
    try:
        module = compacted.get_submodule(name)
    except AttributeError:
        return None
    return module if isinstance(module, nn.Linear) and module.in_features else None


def _run(model: PreTrainedModel, batch: dict[str, Tensor]) -> Any:
    return model(**decoder_inputs(model.config, batch))
