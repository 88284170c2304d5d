"""One phase of training: an explicit loop.

An update takes `gradient_accumulation` micro-batches of similar lengths. Their losses are divided by the tokens of the
whole update, so the gradient does not depend on how the update is split. A phase validates after every epoch, logs
every few steps, and continues from its newest checkpoint as if it had not been interrupted: with the same weights,
optimizer state, random numbers and order of rows.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import set_seed

from model_store.model.spec import ModelSpec
from nash.data.examples import IGNORED, Collator, SimilarLengthSampler, TokenizedPairs
from nash.errors import NashError, RequestError
from nash.precision import choose_precision, training_device
from nash.recipes.recipe import OptimizationRecipe
from nash.run.disk import full_disk_named
from nash.training import losses
from nash.training.checkpoint import (
    PhaseState,
    last_checkpoint,
    load_checkpoint,
    restore_random_states,
    save_checkpoint,
)
from nash.training.objective import Batch, Objective, Update
from nash.training.optimizer import MuonAdamW
from nash.training.schedule import rate_factor

LOG_STEPS = 50
_NAMED_ROWS = 20  # rows of a batch that an error names


class Watcher:
    """Receives the events of a phase. The methods do nothing; a subclass overrides those it needs."""

    def begun(self, step: int, steps: int) -> None:
        """The phase begins, or continues after `step` of its `steps` updates."""

    def before_update(self, phase: "Phase") -> None:
        """All gradients of an update are computed and clipped; the optimizer is about to use them."""

    def updated(self, phase: "Phase") -> None:
        """An update was made."""

    def validating(self, batch: int) -> None:
        """Batch number `batch`, from 1, of a validation is done."""

    def logged(self, entry: dict[str, float]) -> None:
        """An entry was added to the log."""

    def ended(self) -> None:
        """The last update was made."""


class Phase:
    """Trains a module on an objective. `run` is the loop; it may be called once."""

    def __init__(
        self,
        objective: Objective,
        pairs: TokenizedPairs,
        optimization: OptimizationRecipe,
        *,
        spec: ModelSpec,
        folder: Path,
        seed: int,
        validation: TokenizedPairs | None = None,
        watcher: Watcher | None = None,
        log_steps: int = LOG_STEPS,
        workers: int = 0,
    ) -> None:
        """Checkpoints go into `folder`. `spec` is the shape of the model that reads the pairs.

        `workers` processes make the batches; with 0 the loop does it itself.

        Raises:
            RequestError: the pairs have tokens that the model does not have, or targets that never end.
        """
        for each in [pairs] if validation is None else [pairs, validation]:
            check_tokens(each, spec)
        self.objective = objective
        self.optimization = optimization
        self.folder = folder
        self.seed = seed
        self.validation = validation
        self.watcher = watcher or Watcher()
        self.log_steps = log_steps
        self.workers = workers
        self.device = torch.device(training_device())
        self.collate = Collator(pad_id=spec.pad_id)
        self.pairs = pairs
        self.state = PhaseState()
        self.grad_norm = torch.zeros(())
        accumulated = optimization.batch_size * optimization.gradient_accumulation
        self.sampler = SimilarLengthSampler(pairs.lengths(), accumulated, seed)
        micro_batches = math.ceil(len(pairs) / optimization.batch_size)
        self.updates_per_epoch = max(1, math.ceil(micro_batches / optimization.gradient_accumulation))
        self.steps = optimization.max_steps or math.ceil(optimization.epochs * self.updates_per_epoch)
        half = choose_precision(optimization.precision).precision == "bfloat16"
        self.autocast: Callable[[], AbstractContextManager[Any]] = (
            (lambda: torch.autocast(self.device.type, torch.bfloat16)) if half else nullcontext
        )
        objective.module.to(self.device)
        self.optimizer = MuonAdamW(objective.groups(optimization), lr=optimization.learning_rate)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]

    def run(self) -> list[dict[str, float]]:
        """Train to the end, from the last complete checkpoint if there is one; return the log's entries.

        Raises:
            NashError: a loss or a weight is not finite, or the disk is full.
        """
        set_seed(self.seed)
        module = self.objective.module
        checkpoint = last_checkpoint(self.folder)
        if checkpoint is not None:
            self.state = load_checkpoint(checkpoint, module, self.optimizer)
        self.watcher.begun(self.state.step, self.steps)
        # A checkpoint holds the weights and the optimizer's two moments; the oldest goes after the newest is written.
        checkpoint_bytes = 3 * sum(parameter.nbytes for parameter in module.parameters())
        self.folder.mkdir(parents=True, exist_ok=True)
        with full_disk_named(self.folder, checkpoint_bytes):
            while self.state.step < self.steps:
                self._run_epoch(checkpoint)
                checkpoint = None
        self.watcher.ended()
        return self.state.log

    def _run_epoch(self, resumed: Path | None) -> None:
        """Make the remaining updates of an epoch, and validate."""
        epoch, done = divmod(self.state.step, self.updates_per_epoch)
        if resumed is not None and done == 0:
            restore_random_states(resumed)
        updates = self._updates(epoch)
        for _ in range(done):
            next(updates)
        if resumed is not None and done > 0:
            restore_random_states(resumed)
        for batches in updates:
            self.update(batches)
            at_end = self.state.step == self.steps
            if self.state.step % self.log_steps == 0:
                self._log()
            if at_end or self.state.step % self.updates_per_epoch == 0:
                self.validate()
            if at_end or self.state.step % self.optimization.checkpoint_steps == 0:
                self._save()
            if at_end:
                return

    def _updates(self, epoch: int) -> Iterator[list[Batch]]:
        """The micro-batches of each update of an epoch."""
        self.sampler.set_epoch(epoch)
        batches = self._batches(self.pairs, self.sampler)
        while update := list(islice(batches, self.optimization.gradient_accumulation)):
            yield [self.on_device(batch) for batch in update]

    def _batches(self, pairs: TokenizedPairs, sampler: SimilarLengthSampler | None = None) -> Iterator[Batch]:
        """The batches of all pairs, in the sampler's order."""
        loader = DataLoader(
            pairs,
            batch_size=self.optimization.batch_size,
            sampler=sampler,
            collate_fn=self.collate,
            num_workers=self.workers,
        )
        try:
            yield from loader
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise NashError(
                f"a process that makes batches ended ({' '.join(str(error).split())}): set data.workers = 0, or give "
                "/dev/shm more room"
            ) from error

    def on_device(self, batch: Batch) -> Batch:
        """The batch on the module's device."""
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}

    def update(self, batches: list[Batch]) -> None:
        """One step of the optimizer."""
        self.objective.module.train()
        update = self.update_of(batches)
        factor = rate_factor(self.optimization, self.state.step, self.steps)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate if group["constant_rate"] else rate * factor
        for batch in batches:
            self._backward(batch, update)
        self._clip()
        self.watcher.before_update(self)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.state.step += 1
        self.watcher.updated(self)

    def update_of(self, batches: list[Batch]) -> Update:
        """What the losses of these micro-batches need to know about their update."""
        return Update(
            step=self.state.step,
            steps=self.steps,
            source_tokens=torch.stack([batch["attention_mask"].sum() for batch in batches]).sum(),
            target_tokens=torch.stack([(batch["labels"] != IGNORED).sum() for batch in batches]).sum(),
        )

    def _backward(self, batch: Batch, update: Update) -> None:
        loss = self.objective.loss(batch, update, self.autocast)
        torch.autograd.backward(loss.total)
        value = loss.total.detach()
        if not bool(value.isfinite()):
            rows = sorted(set(batch["rows"].tolist()))
            named = ", ".join(map(str, rows[:_NAMED_ROWS])) + (", ..." if len(rows) > _NAMED_ROWS else "")
            raise self._diverged(f"the loss is {float(value)} on a batch of {len(rows)} rows of the data ({named})")
        sums = self.state.figures
        for name, part in {"loss": value, **loss.parts}.items():
            sums[name] = sums.get(name, 0.0) + float(part.detach())
        for name, newest in loss.newest.items():
            sums[f"newest.{name}"] = float(newest.detach())

    def _clip(self) -> None:
        """Clip only the weights: a gate's gradient has a different scale and must not shrink the weights' steps."""
        clipped = [p for group in self.optimizer.param_groups if not group["constant_rate"] for p in group["params"]]
        self.grad_norm = torch.nn.utils.clip_grad_norm_(clipped, self.optimization.max_grad_norm)

    def _log(self) -> None:
        """Log the means since the last entry. The losses of an update add up to its mean over tokens."""
        sums, self.state.figures = self.state.figures, {}
        entry = {
            "loss": sums.pop("loss") / self.log_steps,
            "grad_norm": float(self.grad_norm),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
        }
        for name, value in sums.items():
            latest = name.startswith("newest.")
            entry[name.removeprefix("newest.")] = value if latest else value / self.log_steps
        self._enter(entry)

    def _enter(self, entry: dict[str, float]) -> None:
        entry |= {"epoch": self.state.step / self.updates_per_epoch, "step": self.state.step}
        self.state.log.append(entry)
        self.watcher.logged(entry)

    @torch.no_grad()
    def validate(self) -> float | None:
        """Compute and log the validation loss in nats per token; training's random numbers stay as they are."""
        if self.validation is None:
            return None
        begun_s = time.perf_counter()
        self.objective.module.eval()
        nats: Tensor = torch.zeros((), dtype=torch.double, device=self.device)
        tokens = torch.zeros((), dtype=torch.long, device=self.device)
        with torch.random.fork_rng():
            for number, batch in enumerate(map(self.on_device, self._batches(self.validation)), 1):
                logits_BTV = self.objective.validation_logits(batch, self.autocast)
                nats += losses.cross_entropy(logits_BTV, batch["labels"], 1)
                tokens += (batch["labels"] != IGNORED).sum()
                self.watcher.validating(number)
        loss, seconds = float(nats / tokens), time.perf_counter() - begun_s
        self._enter(
            {
                "eval_loss": loss,
                "eval_runtime": seconds,
                "eval_samples_per_second": len(self.validation) / seconds,
                "eval_steps_per_second": number / seconds,
            }
        )
        return loss

    def _save(self) -> None:
        # A phase also saves at its end: weights that are not finite neither replace good checkpoints nor get published.
        if not all(bool(parameter.isfinite().all()) for parameter in self.objective.module.parameters()):
            raise self._diverged("some weights are not finite")
        save_checkpoint(self.folder, self.objective.module, self.optimizer, self.state)

    def _diverged(self, what: str) -> NashError:
        return NashError(
            f"training diverged: {what} after step {self.state.step}; lower learning_rate or use "
            f'precision = "float32" (checkpoints of earlier steps are kept in {self.folder})'
        )


def check_tokens(pairs: TokenizedPairs, spec: ModelSpec) -> None:
    """Check for tokens that the model has no embedding for, and for targets that never end.

    Raises:
        RequestError: there are some; the tokenizer belongs to another model, or adds no end token to a text.
    """
    for texts, size in ((pairs.sources, spec.vocab_size), (pairs.targets, spec.target_vocab_size)):
        largest = texts.largest()
        if largest >= size:
            raise RequestError(
                f"the tokenizer gives the token id {largest}, but the model has a vocabulary of {size}: they do not "
                "belong together (tokenizer_config.json may name another class than the model's)"
            )
    if len(pairs) and not pairs.targets.has(spec.eos_id):
        raise RequestError(
            f"the tokenizer ends no target with the model's end token {spec.eos_id}, so no answer would ever end: give "
            "tokenizer.json a post-processor that adds it, or config.json the eos_token_id that the tokenizer adds"
        )


def write_log(path: Path, log: list[dict[str, float]]) -> None:
    """Write a phase's log, one JSON object per line."""
    path.write_text("".join(json.dumps(entry) + "\n" for entry in log), encoding="utf-8")
