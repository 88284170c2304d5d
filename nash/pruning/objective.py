"""The objective of a student: the task, its teacher and, in the pruning phase, a sparsity."""

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from model_store.model.config import spec_of
from nash.data.examples import IGNORED
from nash.modeling.layers import layers_of
from nash.pruning import distillation
from nash.pruning.student import Computed, Student, compute
from nash.recipes.recipe import DistillationRecipe, OptimizationRecipe, PruningRecipe
from nash.structure import gates
from nash.structure.compaction import compact
from nash.structure.masking import Gates
from nash.training import losses
from nash.training.objective import Autocast, Batch, Loss, Update, decoder_inputs
from nash.training.optimizer import parameter_groups


class StudentObjective:
    """The weighted sum of the losses of task and distillation and, if the student has gates, of the sparsity loss."""

    def __init__(
        self,
        student: Student,
        teacher: PreTrainedModel,
        distill: DistillationRecipe,
        *,
        block_ends: tuple[int, ...],
        pruning: PruningRecipe,
        label_smoothing: float = 0.0,
    ) -> None:
        """`block_ends`: for each of the student's decoder layers, the teacher layer that it is compared with."""
        self.module = student
        self.teacher = teacher.eval().requires_grad_(False)
        self.distill = distill
        self.block_ends = block_ends
        self.pruning = pruning
        self.label_smoothing = label_smoothing
        self.compared_layers = distillation.compared_layers(len(layers_of(teacher, "encoder")))

    def to(self, device: torch.device) -> None:
        """Move the student and its teacher."""
        self.module.to(device)
        self.teacher.to(device)

    def checkpoint_layers(self) -> None:
        """Checkpoint the layers of the student. The teacher keeps nothing anyway."""
        self.module.checkpoint_layers()

    def groups(self, optimization: OptimizationRecipe) -> list[dict[str, Any]]:
        """The weights; then maps, alphas and multipliers (by gradient ascent), all without weight decay.

        The last three keep their rates: if these fell with the weights' schedule, late gates would freeze.
        """
        kind, decay = optimization.optimizer, optimization.weight_decay
        groups = parameter_groups(self.module.model, optimizer=kind, weight_decay=decay)
        constant = {"constant_rate": True}
        groups.append({"params": list(self.module.maps.parameters()), **constant})
        own = self.module.gates
        if own is not None:
            groups.append({"params": own.alphas(), "lr": self.pruning.gate_learning_rate, **constant})
            rate = self.pruning.multiplier_learning_rate
            groups.append({"params": [own.multipliers_2], "lr": rate, "maximize": True, **constant})
        return groups

    def loss(self, batch: Batch, update: Update, autocast: Autocast) -> Loss:
        """The weighted losses that are switched on. The teacher runs only if a loss needs it."""
        want, labels_BT, items = self.distill, batch["labels"], update.target_tokens
        feed = decoder_inputs(self.module.model.config, batch)
        with autocast():
            student = self.module(feed)
        totals: list[Tensor] = []
        shown: dict[str, Tensor] = {}
        if want.prediction_weight or want.encoder_hidden_weight or want.decoder_hidden_weight:
            teacher = self._run_teacher(feed, autocast)
        if want.prediction_weight:
            weights = (want.task_weight, want.prediction_weight)
            both = losses.task_and_prediction(
                student.logits_BTV,
                teacher.logits_BTV,
                labels_BT,
                want.temperature,
                items,
                weights=weights,
                smoothing=self.label_smoothing,
            )
            totals.append(both.loss)
            if want.task_weight:
                shown["task"] = both.task
            shown["prediction"] = both.prediction
        elif want.task_weight:
            task = losses.cross_entropy(student.logits_BTV, labels_BT, items, smoothing=self.label_smoothing)
            shown["task"] = want.task_weight * task
            totals.append(shown["task"])
        if want.encoder_hidden_weight:
            shown["encoder"] = want.encoder_hidden_weight * distillation.encoder_loss(
                student.encoder_BSD,
                [teacher.encoder_BSD[i] for i in self.compared_layers],
                self.module.maps.encoder,
                batch["attention_mask"].bool(),
                update.source_tokens,
                self.compared_layers if want.encoder_matching == "same" else None,
            )
            totals.append(shown["encoder"])
        if want.decoder_hidden_weight:
            shown["decoder"] = want.decoder_hidden_weight * distillation.decoder_loss(
                student.decoder_BTD,
                [teacher.decoder_BTD[i] for i in self.block_ends],
                self.module.maps.decoder,
                labels_BT != IGNORED,
                items,
            )
            totals.append(shown["decoder"])
        newest: dict[str, Tensor] = {}
        if self.module.gates is not None:
            newest["sparsity"] = self.module.gates.sparsity()
            share = losses.share_of_update(labels_BT, items)
            shown["lagrangian"] = self._lagrangian(newest["sparsity"], self.module.gates, update) * share
            totals.append(shown["lagrangian"])
        return Loss(total=torch.stack(totals).sum(), parts=shown, newest=newest)

    def validation_logits(self, batch: Batch, autocast: Autocast) -> Tensor:
        """Scores of the student, its gates at their values without noise."""
        with autocast():
            computed: Computed = self.module(decoder_inputs(self.module.model.config, batch))
        return computed.logits_BTV

    @torch.no_grad()
    def finished(self, step: int, steps: int) -> PreTrainedModel:
        """The model; with gates, it is cut down to the sparsity that this step asks for."""
        student, own = self.module, self.module.gates
        if own is None:
            return student.model
        spec = spec_of(student.model.config.to_dict())
        every_layer = tuple(range(len(spec.decoder)))
        hardened = copy.deepcopy(own).harden(self._target(step, steps))  # which clamps them, and training goes on
        return compact(student.model, spec, every_layer, hardened)

    def settled(self, step: int, steps: int) -> bool:
        """Whether the sparsity has been driven to its target: before, a model is better because it is larger."""
        return self.module.gates is None or step >= self._warmup_steps(steps)

    def cuts(self) -> dict[str, float]:
        """The expected share that is cut of everything that has gates."""
        return {} if self.module.gates is None else self.module.gates.shares_cut()

    @torch.no_grad()
    def _run_teacher(self, feed: dict[str, Any], autocast: Autocast) -> Computed:
        with autocast():
            return compute(self.teacher, feed)

    def _lagrangian(self, sparsity: Tensor, own: Gates, update: Update) -> Tensor:
        return gates.lagrangian(sparsity, self._target(update.step, update.steps), own.multipliers_2)

    def _target(self, step: int, steps: int) -> float:
        return gates.scheduled_target(self.pruning.encoder_sparsity, step, self._warmup_steps(steps))

    def _warmup_steps(self, steps: int) -> int:
        return round(self.pruning.sparsity_warmup * steps)
