"""Training a student under its teacher's eyes: the pruning phase with gates, and the final phase without."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback

from model_store.model.config import layout_of, spec_of
from nash.data.examples import IGNORED, TokenizedPairs
from nash.modeling.layers import layers_of
from nash.pruning import distillation, gates
from nash.pruning.masking import Gates, masked
from nash.recipes.recipe import DistillationRecipe, OptimizationRecipe, PruningRecipe
from nash.training import losses
from nash.training.phase import FinetuneTrainer, decoder_inputs


@dataclass(frozen=True, kw_only=True)
class Computed:
    """What a model made of a batch: logits [B, T, V], the outputs of its encoder and its decoder layers."""

    outputs: Any
    encoder_BSD: list[Tensor]
    decoder_BTD: list[Tensor]

    @property
    def logits_BTV(self) -> Tensor:
        """Scores of the next token at every target position."""
        logits: Tensor = self.outputs.logits
        return logits


class StudentTrainer(FinetuneTrainer):
    """Trains a student on the task and towards its teacher; with `pruning`, its gates as well.

    The student carries a submodule `maps` (DistillationMaps) and, in the pruning phase, `gates` (Gates), so
    that checkpoints hold them. `block_ends` names, for each of the student's decoder layers, the teacher layer that
    it is compared with.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel,
        pairs: TokenizedPairs,
        optimization: OptimizationRecipe,
        distill: DistillationRecipe,
        *,
        block_ends: tuple[int, ...],
        pruning: PruningRecipe | None,
        output_dir: Path,
        seed: int,
        validation: TokenizedPairs | None = None,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        super().__init__(
            student,
            pairs,
            optimization,
            output_dir=output_dir,
            seed=seed,
            validation=validation,
            callbacks=callbacks,
        )
        self.student = student
        self.teacher = teacher.to(self.args.device).eval().requires_grad_(False)
        self.distill = distill
        self.block_ends = block_ends
        self.pruning = pruning
        self.gates: Gates | None = None if pruning is None else student.gates
        self.sublayers = layout_of(spec_of(student.config.to_dict())).sublayers()
        self.compared_layers = distillation.compared_layers(len(layers_of(teacher, "encoder")))
        self.source_items: Tensor | int | None = None
        self.figures = RunningMeans()

    def optimizer_groups(self) -> list[dict[str, Any]]:
        """The weights; then maps, alphas and multipliers (ascending), none of them decayed.

        These keep their rate: were it to fall with the weights' schedule, late gates would freeze.
        """
        constant = {"constant_rate": True}
        groups = [*super().optimizer_groups(), {"params": list(self.student.maps.parameters()), **constant}]
        if self.gates is not None and self.pruning is not None:
            gate_rate, multiplier_rate = (
                self.pruning.gate_learning_rate,
                self.pruning.multiplier_learning_rate,
            )
            groups.append({"params": self.gates.alphas(), "lr": gate_rate, **constant})
            multipliers = [self.gates.multipliers_2]
            groups.append({"params": multipliers, "lr": multiplier_rate, "maximize": True, **constant})
        return groups

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """The micro-batches of one update; counts its source tokens as the Trainer counts its target tokens."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            self.source_items = sum(batch["attention_mask"].sum() for batch in batches)
        return batches, items

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The weighted sum of the task's, the distillation's and the sparsity's losses for one micro-batch."""
        feed = decoder_inputs(self.student, inputs)
        student = self._run_student(model, feed)
        parts, shown = self._losses(student, feed, inputs["labels"], num_items_in_batch)
        share = losses.share_of_update(inputs["labels"], num_items_in_batch)
        if self.gates is not None:
            shown["lagrangian"] = self._lagrangian(self.gates) * share
            parts.append(shown["lagrangian"])
        for name, value in shown.items():
            self.figures.add(name, value)
        self.figures.count(share)
        loss = torch.stack(parts).sum()
        return (loss, student.outputs) if return_outputs else loss

    def validation_logits(self, model: nn.Module, feed: dict[str, Any]) -> Tensor:
        """Scores [B, T, V] of the student, its gates at their values without noise."""
        if self.gates is None:
            return super().validation_logits(model, feed)
        with masked(self.student, self.sublayers, self.gates.expected()):
            return super().validation_logits(model, feed)

    def _run_student(self, model: nn.Module, feed: dict[str, Any]) -> Computed:
        with ExitStack() as stack:
            if self.gates is not None:
                stack.enter_context(masked(self.student, self.sublayers, self.gates.draw()))
            encoder = stack.enter_context(distillation.recorded(layers_of(self.student, "encoder")))
            decoder = stack.enter_context(distillation.recorded(layers_of(self.student, "decoder")))
            return Computed(outputs=model(**feed), encoder_BSD=encoder, decoder_BTD=decoder)

    @torch.no_grad()
    def _run_teacher(self, feed: dict[str, Any]) -> Computed:
        with (
            distillation.recorded(layers_of(self.teacher, "encoder")) as encoder,
            distillation.recorded(layers_of(self.teacher, "decoder")) as decoder,
            self.accelerator.autocast(),  # the Trainer wraps only the student's forward in it
        ):
            return Computed(outputs=self.teacher(**feed), encoder_BSD=encoder, decoder_BTD=decoder)

    def _losses(
        self, student: Computed, feed: dict[str, Any], labels_BT: Tensor, items: Tensor | int | None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """What is to be minimized, and by name every loss that is switched on, weighted, of which it is the sum.

        A teacher that no loss asks for is not run.
        """
        want = self.distill
        parts: list[Tensor] = []
        shown: dict[str, Tensor] = {}
        if want.prediction_weight or want.encoder_hidden_weight or want.decoder_hidden_weight:
            teacher = self._run_teacher(feed)
        if want.prediction_weight:
            weights = (want.task_weight, want.prediction_weight)
            both = losses.task_and_prediction(
                student.logits_BTV, teacher.logits_BTV, labels_BT, want.temperature, items, weights=weights
            )
            parts.append(both.loss)
            if want.task_weight:
                shown["task"] = both.task
            shown["prediction"] = both.prediction
        elif want.task_weight:
            shown["task"] = want.task_weight * losses.cross_entropy(student.logits_BTV, labels_BT, items)
            parts.append(shown["task"])
        if want.encoder_hidden_weight:
            shown["encoder"] = want.encoder_hidden_weight * distillation.encoder_loss(
                student.encoder_BSD,
                [teacher.encoder_BSD[i] for i in self.compared_layers],
                self.student.maps.encoder,
                feed["attention_mask"].bool(),
                None if items is None else self.source_items,
                self.compared_layers if want.encoder_matching == "same" else None,
            )
            parts.append(shown["encoder"])
        if want.decoder_hidden_weight:
            shown["decoder"] = want.decoder_hidden_weight * distillation.decoder_loss(
                student.decoder_BTD,
                [teacher.decoder_BTD[i] for i in self.block_ends],
                self.student.maps.decoder,
                labels_BT != IGNORED,
                items,
            )
            parts.append(shown["decoder"])
        return parts, shown

    def _lagrangian(self, own: Gates) -> Tensor:
        assert self.pruning is not None
        warmup_steps = round(self.pruning.sparsity_warmup * self.state.max_steps)
        target = gates.scheduled_target(self.pruning.encoder_sparsity, self.state.global_step, warmup_steps)
        sparsity = own.sparsity()
        self.figures.sparsity = float(sparsity.detach())
        return gates.lagrangian(sparsity, target, own.multipliers_2)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add each loss and the sparsity to the Trainer's own entry."""
        if "loss" in logs:
            logs.update(self.figures.take())
        super().log(logs, start_time)


class RunningMeans:
    """The losses since the last log entry, each a mean over updates, and the newest sparsity."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.updates: Tensor | float = 0.0
        self.sparsity: float | None = None

    def add(self, name: str, value: Tensor) -> None:
        """Add one micro-batch's part of a loss."""
        self.sums[name] = self.sums.get(name, torch.zeros((), device=value.device)) + value.detach()

    def count(self, share: Tensor) -> None:
        """Say what part of an update the micro-batch was."""
        self.updates = self.updates + share

    def take(self) -> dict[str, float]:
        """The means, and start anew."""
        figures = {name: float(total / self.updates) for name, total in self.sums.items()}
        if self.sparsity is not None:
            figures["sparsity"] = self.sparsity
        self.sums, self.updates = {}, 0.0
        return figures
