"""One phase of training: an explicit loop.

An update takes `gradient_accumulation` micro-batches of similar lengths. Their losses are divided by the tokens of the
whole update, so the gradient does not depend on how the update is split. A phase validates after every epoch or so many
steps, logs every few steps, and continues from its newest checkpoint as if it had not been interrupted: with the same
weights, optimizer state, random numbers and order of rows. An interrupt waits for the update to end and is answered
with a checkpoint.

Learning rate and sparsity are functions of the step and of the number of steps. A phase that is extended after its end
goes on as one of the new length stands at that step: a linear schedule that had come down to 0 rises again.
"""

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
from nash.run.interrupts import Interrupts
from nash.run.live_log import CUT, LiveLog
from nash.training import losses
from nash.training.checkpoint import (
    PhaseState,
    has_best,
    last_checkpoint,
    load_best,
    load_checkpoint,
    restore_random_states,
    save_best,
    save_checkpoint,
)
from nash.training.objective import Batch, Objective, Update
from nash.training.optimizer import MuonAdamW
from nash.training.schedule import PhaseLength, rate_factor
from nash.training.validation import TaskScore

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

    def answering(self, rows: int) -> None:
        """In a validation, the model now answers so many rows."""

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
        score: TaskScore | None = None,
        watcher: Watcher | None = None,
        live_log: LiveLog | None = None,
        log_steps: int = LOG_STEPS,
    ) -> None:
        """Checkpoints go into `folder`. `spec` is the shape of the model that reads the pairs.

        A validation computes the loss on `validation` and, with `score`, the task's own metric on its rows.

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
        self.score = score
        self.watcher = watcher or Watcher()
        self.live_log = live_log
        self.log_steps = log_steps
        self.device = torch.device(training_device())
        self.collate = Collator(pad_id=spec.pad_id)
        self.pairs = pairs
        self.state = PhaseState()
        self.grad_norm = torch.zeros(())
        self.interrupts = Interrupts()
        self.torn = False  # whether an update is half made: then there is nothing to save
        self.saved_step = 0
        self.saved_s = 0.0
        accumulated = optimization.batch_size * optimization.gradient_accumulation
        self.sampler = SimilarLengthSampler(pairs.lengths(), accumulated, seed)
        length = PhaseLength.of(optimization, len(pairs))
        self.updates_per_epoch, self.steps = length.updates_per_epoch, length.steps
        half = choose_precision(optimization.precision).precision == "bfloat16"
        self.autocast: Callable[[], AbstractContextManager[Any]] = (
            (lambda: torch.autocast(self.device.type, torch.bfloat16)) if half else nullcontext
        )
        objective.module.to(self.device)
        self.optimizer = MuonAdamW(objective.groups(optimization), lr=optimization.learning_rate)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do: all steps are made, or the validations no longer improve."""
        patience = self.optimization.early_stopping
        return self.state.step >= self.steps or (patience is not None and self.state.unimproved >= patience)

    def run(self) -> list[dict[str, float]]:
        """Train to the end, from the last complete checkpoint if there is one; return the log's entries.

        Raises:
            NashError: a loss or a weight is not finite, or the disk is full.
            KeyboardInterrupt: SIGINT or SIGTERM came; there is a checkpoint of all that was done.
        """
        set_seed(self.seed)
        module = self.objective.module
        checkpoint = last_checkpoint(self.folder)
        if checkpoint is not None:
            self.state = load_checkpoint(checkpoint, module, self.optimizer)
            if self.optimization.keep_best and not has_best(self.folder, self.state):
                self.state.best_step, self.state.unimproved = None, 0
        self.saved_step, self.saved_s = self.state.step, time.monotonic()
        self.watcher.begun(self.state.step, self.steps)
        # A checkpoint holds the weights and the optimizer's two moments; the oldest goes after the newest is written.
        checkpoint_bytes = 3 * sum(parameter.nbytes for parameter in module.parameters())
        self.folder.mkdir(parents=True, exist_ok=True)
        with full_disk_named(self.folder, checkpoint_bytes), self.interrupts:
            if self.live_log is not None:
                self.live_log.restart(self.state.log)
            try:
                if self._validation_due():  # the interrupt came in the middle of it
                    self.validate()
                while not self.finished:
                    self._run_epoch(checkpoint)
                    checkpoint = None
                if self.saved_step < self.state.step:
                    self._save()
            except KeyboardInterrupt:
                if not self.torn and self.saved_step < self.state.step:
                    self._save()
                raise
            if self.optimization.keep_best and self.state.best_step is not None:
                load_best(self.folder, module, self.state)
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
            with self.interrupts.held():
                self.torn = True
                self.update(batches)
                if self.state.step % self.log_steps == 0:
                    self._log()
                self.torn = False
            if self._validation_due():
                self.validate()
            if self.finished or self._checkpoint_due():
                self._save()
            if self.finished:
                return

    def _validation_due(self) -> bool:
        step, every = self.state.step, self.optimization.validation_steps or self.updates_per_epoch
        return self.state.validated_step < step and (step == self.steps or step % every == 0)

    def _checkpoint_due(self) -> bool:
        old = time.monotonic() - self.saved_s >= 60 * self.optimization.checkpoint_minutes
        return old or self.state.step % self.optimization.checkpoint_steps == 0

    def _updates(self, epoch: int) -> Iterator[list[Batch]]:
        """The micro-batches of each update of an epoch."""
        self.sampler.set_epoch(epoch)
        loader = DataLoader(
            self.pairs, batch_size=self.optimization.batch_size, sampler=self.sampler, collate_fn=self.collate
        )
        batches = iter(loader)
        while update := list(islice(batches, self.optimization.gradient_accumulation)):
            yield [self.on_device(batch) for batch in update]

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
        entry |= {CUT + name: share for name, share in self.objective.cuts().items()}
        self._enter(entry)

    def _enter(self, entry: dict[str, float]) -> None:
        entry |= {"epoch": self.state.step / self.updates_per_epoch, "step": self.state.step}
        self.state.log.append(entry)
        if self.live_log is not None:
            self.live_log.append(entry)
        self.watcher.logged(entry)

    @torch.no_grad()
    def validate(self) -> float | None:
        """Compute and log the validation loss in nats per token, and the task's metrics, named "eval_" and their name.

        Training's random numbers stay as they are.
        """
        if self.validation is None:
            return None
        begun_s = time.perf_counter()
        self.objective.module.eval()
        loader = DataLoader(self.validation, batch_size=self.optimization.batch_size, collate_fn=self.collate)
        nats: Tensor = torch.zeros((), dtype=torch.double, device=self.device)
        tokens = torch.zeros((), dtype=torch.long, device=self.device)
        with torch.random.fork_rng():
            for number, batch in enumerate(map(self.on_device, loader), 1):
                logits_BTV = self.objective.validation_logits(batch, self.autocast)
                nats += losses.cross_entropy(logits_BTV, batch["labels"], 1)
                tokens += (batch["labels"] != IGNORED).sum()
                self.watcher.validating(number)
            loss, seconds = float(nats / tokens), time.perf_counter() - begun_s
            metrics = {} if self.score is None else self._metrics(self.score)
        with self.interrupts.held():
            self._compare(([] if self.score is None else [self.score.quality(metrics)]) + [-loss])
            self.state.validated_step = self.state.step
            self._enter(
                {
                    "eval_loss": loss,
                    "eval_runtime": seconds,
                    "eval_samples_per_second": len(self.validation) / seconds,
                    "eval_steps_per_second": len(loader) / seconds,
                    **{f"eval_{name}": value for name, value in metrics.items()},
                }
            )
        return loss

    def _metrics(self, score: TaskScore) -> dict[str, float]:
        self.watcher.answering(len(score.rows))
        return score.metrics(self.objective.finished(self.state.step, self.steps))

    def _compare(self, found: list[float]) -> None:
        """Note whether a validation is the best so far; the first of its figures in which two differ decides."""
        if not self.objective.settled(self.state.step, self.steps):
            return
        if self.state.best_step is not None and found <= self.state.best:
            self.state.unimproved += 1
            return
        self.state.best_step, self.state.best, self.state.unimproved = self.state.step, found, 0
        if self.optimization.keep_best:
            save_best(self.folder, self.objective.module, self.state)

    def _save(self) -> None:
        # A phase also saves at its end: weights that are not finite neither replace good checkpoints nor get published.
        if not all(bool(parameter.isfinite().all()) for parameter in self.objective.module.parameters()):
            raise self._diverged("some weights are not finite")
        with self.interrupts.held():
            save_checkpoint(self.folder, self.objective.module, self.optimizer, self.state)
            self.saved_step, self.saved_s = self.state.step, time.monotonic()

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
        largest = max((token for ids in texts for token in ids), default=0)
        if largest >= size:
            raise RequestError(
                f"the tokenizer gives the token id {largest}, but the model has a vocabulary of {size}: they do not "
                "belong together (tokenizer_config.json may name another class than the model's)"
            )
    if pairs.targets and not any(spec.eos_id in ids for ids in pairs.targets):
        raise RequestError(
            f"the tokenizer ends no target with the model's end token {spec.eos_id}, so no answer would ever end: give "
            "tokenizer.json a post-processor that adds it, or config.json the eos_token_id that the tokenizer adds"
        )
