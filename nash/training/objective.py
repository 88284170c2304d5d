"""What a phase of training minimises."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from nash.data.examples import IGNORED
from nash.recipes.recipe import OptimizationRecipe
from nash.training import losses
from nash.training.optimizer import parameter_groups

Batch = dict[str, Tensor]  # as the Collator makes it: input_ids, attention_mask [B, S], labels [B, T], rows [B]
Autocast = Callable[[], AbstractContextManager[Any]]  # makes the context that a model's forward pass runs in


@dataclass(frozen=True, kw_only=True)
class Update:
    """What a loss knows of the update that its micro-batch is a part of. Losses are divided by the update's tokens."""

    step: int  # updates before this one
    steps: int  # updates of the phase
    source_tokens: Tensor  # real ones, of all micro-batches
    target_tokens: Tensor


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Of one micro-batch: what is minimised, and what the log shows."""

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)  # the log shows their means over updates
    newest: dict[str, Tensor] = field(default_factory=dict)  # the log shows the last one


class Objective(Protocol):
    """What a phase minimises, and the module whose state its checkpoints hold."""

    @property
    def module(self) -> nn.Module:
        """What is trained: its parameters are those of `groups`."""

    def groups(self, optimization: OptimizationRecipe) -> list[dict[str, Any]]:
        """The optimizer's parameter groups. A group with `constant_rate` is left out of schedule and clipping."""

    def loss(self, batch: Batch, update: Update, autocast: Autocast) -> Loss:
        """The loss of one micro-batch in training; over the micro-batches of an update, the totals add up."""

    def validation_logits(self, batch: Batch, autocast: Autocast) -> Tensor:
        """Scores [B, T, V] of the model as it would be used now."""


class TaskObjective:
    """Cross-entropy against the targets."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.module = model

    def groups(self, optimization: OptimizationRecipe) -> list[dict[str, Any]]:
        """Hidden matrices, and the rest."""
        muon = optimization.optimizer == "muon"
        return parameter_groups(self.module, muon=muon, weight_decay=optimization.weight_decay)

    def loss(self, batch: Batch, update: Update, autocast: Autocast) -> Loss:
        """Cross-entropy over real tokens, divided by those of the whole update."""
        with autocast():
            logits = self.module(**decoder_inputs(self.module.config, batch)).logits
        return Loss(total=losses.cross_entropy(logits, batch["labels"], update.target_tokens))

    def validation_logits(self, batch: Batch, autocast: Autocast) -> Tensor:
        """Scores of the model."""
        with autocast():
            logits: Tensor = self.module(**decoder_inputs(self.module.config, batch)).logits
        return logits


def decoder_inputs(config: PreTrainedConfig, batch: Batch) -> dict[str, Any]:
    """A batch with the decoder's inputs in place of the labels, so that the model computes no loss of its own."""
    return {
        "input_ids": batch["input_ids"],
        "attention_mask": batch["attention_mask"],
        "decoder_input_ids": shift_right(batch["labels"], config),
        "use_cache": False,
    }


def shift_right(labels_BT: Tensor, config: PreTrainedConfig) -> Tensor:
    """What the decoder reads to predict the labels: its start token, then the labels but the last.

    Padding stays padding. The start token is the one that serving begins with, for every family. (transformers rotates
    mBART's labels instead; that is the same if they end in their language token, as mBART's tokenizer writes them.)
    """
    shifted_BT = labels_BT.roll(1, dims=-1)
    shifted_BT[:, 0] = config.decoder_start_token_id
    return shifted_BT.masked_fill(shifted_BT == IGNORED, config.pad_token_id)
