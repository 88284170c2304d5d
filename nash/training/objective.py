"""What a phase of training minimises."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from nash.data.examples import IGNORED
from nash.modeling.layers import checkpoint_layers
from nash.recipes.recipe import OptimizationRecipe
from nash.training import losses
from nash.training.optimizer import parameter_groups

Batch = dict[str, Tensor]  # as the Collator returns it: input_ids, attention_mask [B, S], labels [B, T], rows [B]
Autocast = Callable[[], AbstractContextManager[Any]]  # returns the context that a model's forward pass runs in


@dataclass(frozen=True, kw_only=True)
class Update:
    """What a loss knows about the update that its micro-batch belongs to. Losses are divided by the update's tokens."""

    step: int  # updates before this one
    steps: int  # updates of the phase
    source_tokens: Tensor  # without padding, over all micro-batches
    target_tokens: Tensor


@dataclass(frozen=True, kw_only=True)
class Loss:
    """The loss of one micro-batch: the value to minimise, and the figures for the log."""

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)  # the log shows means over updates
    newest: dict[str, Tensor] = field(default_factory=dict)  # the log shows the last values


class Objective(Protocol):
    """What a phase minimises, and the module whose state its checkpoints hold."""

    @property
    def module(self) -> nn.Module:
        """The trained module; `groups` holds its parameters."""

    def to(self, device: torch.device) -> None:
        """Move everything that a loss computes with to the device that trains."""

    def checkpoint_layers(self) -> None:
        """Keep only each layer's input for the backward pass, which then computes the rest again."""

    def groups(self, optimization: OptimizationRecipe) -> list[dict[str, Any]]:
        """The optimizer's parameter groups. Schedule and clipping skip a group with `constant_rate`."""

    def loss(self, batch: Batch, update: Update, autocast: Autocast) -> Loss:
        """The loss of one micro-batch in training; the totals of an update's micro-batches add up to its loss."""

    def validation_logits(self, batch: Batch, autocast: Autocast) -> Tensor:
        """Scores [B, T, V] of the model as it would answer now."""

    def finished(self, step: int, steps: int) -> PreTrainedModel:
        """The model that the phase would leave if it ended now, after `step` of `steps` updates. Not to be changed."""

    def settled(self, step: int, steps: int) -> bool:
        """Whether validations may be compared from now on: what the phase asks of the model no longer changes."""

    def cuts(self) -> dict[str, float]:
        """The share that is cut of each sublayer that can be, as "stack.layer.kind"."""


class TaskObjective:
    """Cross-entropy against the targets."""

    def __init__(self, model: PreTrainedModel, *, label_smoothing: float = 0.0) -> None:
        self.module = model
        self.label_smoothing = label_smoothing

    def to(self, device: torch.device) -> None:
        """Move the model."""
        self.module.to(device)

    def checkpoint_layers(self) -> None:
        """Checkpoint the layers of both stacks."""
        checkpoint_layers(self.module)

    def groups(self, optimization: OptimizationRecipe) -> list[dict[str, Any]]:
        """Hidden matrices, and the rest."""
        kind, decay = optimization.optimizer, optimization.weight_decay
        return parameter_groups(self.module, optimizer=kind, weight_decay=decay)

    def loss(self, batch: Batch, update: Update, autocast: Autocast) -> Loss:
        """Cross-entropy summed over real tokens, divided by the number of real tokens in the whole update."""
        with autocast():
            logits = self.module(**decoder_inputs(self.module.config, batch)).logits
        smoothing = self.label_smoothing
        return Loss(total=losses.cross_entropy(logits, batch["labels"], update.target_tokens, smoothing=smoothing))

    def validation_logits(self, batch: Batch, autocast: Autocast) -> Tensor:
        """Scores of the model."""
        with autocast():
            logits: Tensor = self.module(**decoder_inputs(self.module.config, batch)).logits
        return logits

    def finished(self, step: int, steps: int) -> PreTrainedModel:
        """The model itself."""
        return self.module

    def settled(self, step: int, steps: int) -> bool:
        """Always: the task does not change."""
        return True

    def cuts(self) -> dict[str, float]:
        """Nothing is cut."""
        return {}


def decoder_inputs(config: PreTrainedConfig, batch: Batch) -> dict[str, Any]:
    """A batch with the decoder's inputs instead of the labels, so that the model computes no loss itself.

    transformers looks into a mask [B, S] for padding, and the host would wait for a GPU four times in every forward
    pass. It takes masks [B, heads, queries, keys] as they are.
    """
    inputs = {
        "input_ids": batch["input_ids"],
        "attention_mask": batch["attention_mask"],
        "decoder_input_ids": shift_right(batch["labels"], config),
        "use_cache": False,
    }
    return inputs if batch["labels"].device.type == "cpu" else inputs | whole_masks(config, batch)


def whole_masks(config: PreTrainedConfig, batch: Batch) -> dict[str, Tensor]:
    """The masks of both stacks in the form that the model's attention computes with."""
    length = batch["labels"].shape[1]
    position_T = torch.arange(length, device=batch["labels"].device)
    seen = {
        "attention_mask": batch["attention_mask"].bool()[:, None, None, :],
        "decoder_attention_mask": (position_T[:, None] >= position_T)[None, None],
    }
    if config._attn_implementation == "sdpa":
        return seen
    lowest = torch.finfo(torch.float32).min
    return {name: torch.zeros_like(mask, dtype=torch.float32).masked_fill(~mask, lowest) for name, mask in seen.items()}


def shift_right(labels_BT: Tensor, config: PreTrainedConfig) -> Tensor:
    """What the decoder reads to predict the labels: its start token, then all labels but the last.

    Padding stays padding. For every family, the start token is the one that serving begins with. (transformers rotates
    mBART's labels instead; that is the same if they end in their language token, as mBART's tokenizer writes them.)
    """
    shifted_BT = labels_BT.roll(1, dims=-1)
    shifted_BT[:, 0] = config.decoder_start_token_id
    return shifted_BT.masked_fill(shifted_BT == IGNORED, config.pad_token_id)
