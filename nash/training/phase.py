"""One phase of training: an explicit loop.

An update takes `gradient_accumulation` micro-batches of similar lengths. Their losses are divided by the tokens of the
whole update, so the gradient does not depend on how the update is split. A phase validates after every epoch or so many
steps, logs every few steps, and continues from its newest checkpoint as if it had not been interrupted: with the same
weights, optimizer state, random numbers and order of rows. An interrupt waits for the update to end and is answered
with a checkpoint. Several processes share the rows of every micro-batch (`nash.ranks`).

Learning rate and sparsity are functions of the step and of the number of steps. A phase that is extended after its end
goes on as one of the new length stands at that step: a linear schedule that had come down to 0 rises again.

The host waits for a GPU only where figures are logged: losses are added up, and checked, on the device.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader
from transformers import set_seed

from model_store.model.spec import ModelSpec
from nash import ranks
from nash.data.examples import IGNORED, Collator, SimilarLengthSampler, TokenizedPairs
from nash.data.model_fit import check_tokens
from nash.errors import NashError, RequestError
from nash.precision import choose_precision
from nash.recipes.recipe import OptimizationRecipe
from nash.run.disk import full_disk_named
from nash.run.interrupts import Interrupts
from nash.run.live_log import CUT, LiveLog
from nash.training import losses
from nash.training.allocator import keep_freed_memory
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
from nash.training.memory import too_large
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
        device: str = "cpu",
        validation: TokenizedPairs | None = None,
        score: TaskScore | None = None,
        watcher: Watcher | None = None,
        live_log: LiveLog | None = None,
        log_steps: int = LOG_STEPS,
        workers: int = 0,
    ) -> None:
        """Checkpoints go into `folder`. `spec` is the shape of the model that reads the pairs.

        A validation computes the loss on `validation` and, with `score`, the task's own metric on its rows. `workers`
        processes make the batches; with 0 the loop does it itself.

        Raises:
            RequestError: the pairs have tokens that the model does not have, or targets that never end; or a batch has
                fewer rows than there are processes.
        """
        if optimization.batch_size < ranks.count():
            raise RequestError(
                f"batch_size {optimization.batch_size} is shared by {ranks.count()} processes: give each a row or more"
            )
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
        self.workers = workers
        self.device = torch.device(device)
        if self.device.index is not None and self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # checkpoints keep the random numbers of the current device
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
        half = choose_precision(optimization.precision, device).precision == "bfloat16"
        self.autocast: Callable[[], AbstractContextManager[Any]] = (
            (lambda: torch.autocast(self.device.type, torch.bfloat16)) if half else nullcontext
        )
        if self.device.type == "cpu":
            keep_freed_memory()
        objective.to(self.device)
        if optimization.gradient_checkpointing:
            objective.checkpoint_layers()
        self.optimizer = MuonAdamW(objective.groups(optimization), lr=optimization.learning_rate)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        # Since the host last looked at the device: sums and newest figures, and the loss and the rows of each batch.
        self._sums: dict[str, Tensor] = {}
        self._newest: dict[str, Tensor] = {}
        self._unchecked: list[tuple[int, Tensor, Tensor]] = []

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do: all steps are made, or the validations no longer improve."""
        patience = self.optimization.early_stopping
        return self.state.step >= self.steps or (patience is not None and self.state.unimproved >= patience)

    def run(self) -> list[dict[str, float]]:
        """Train to the end, from the last complete checkpoint if there is one; return the log's entries.

        Raises:
            NashError: a loss or a weight is not finite, the disk or the memory is full, or another process has ended.
            KeyboardInterrupt: SIGINT or SIGTERM came; a process that trains alone has saved all that was done.
        """
        set_seed(self.seed + ranks.number())  # dropout differs between processes; what must not differ is sent
        module = self.objective.module
        checkpoint = ranks.on_first(lambda: last_checkpoint(self.folder))
        if checkpoint is not None:
            self.state = load_checkpoint(checkpoint, module, self.optimizer)
            state = self.state
            if self.optimization.keep_best and not ranks.on_first(lambda: has_best(self.folder, state)):
                self.state.best_step, self.state.unimproved = None, 0
        self.saved_step, self.saved_s = self.state.step, time.monotonic()
        self.watcher.begun(self.state.step, self.steps)
        # A checkpoint holds the weights and the optimizer's two moments; the oldest goes after the newest is written.
        checkpoint_bytes = 3 * sum(parameter.nbytes for parameter in module.parameters())
        self.folder.mkdir(parents=True, exist_ok=True)
        with full_disk_named(self.folder, checkpoint_bytes), _fast_products(self.device), self.interrupts:
            if self.live_log is not None and ranks.first():
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
                # Of several processes each is interrupted somewhere else: they go on from their last common checkpoint.
                if not self.torn and self.saved_step < self.state.step and ranks.count() == 1:
                    self._save()
                raise
            if self.optimization.keep_best and self.state.best_step is not None:
                ranks.on_first(lambda: None)  # the first process writes the best weights, the others read them
                load_best(self.folder, module, self.state)
        self.watcher.ended()
        return self.state.log

    def _run_epoch(self, resumed: Path | None) -> None:
        """Make the remaining updates of an epoch, and validate."""
        epoch, done = divmod(self.state.step, self.updates_per_epoch)
        if resumed is not None and done == 0:
            self._restore_random_states(resumed)
        updates = self._updates(epoch)
        for _ in range(done):
            next(updates)
        if resumed is not None and done > 0:
            self._restore_random_states(resumed)
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

    def _restore_random_states(self, checkpoint: Path) -> None:
        """Those in a checkpoint are the first process's; the others draw for dropout alone, and begin anew."""
        if ranks.first():
            restore_random_states(checkpoint)
        else:
            set_seed(self.seed + ranks.number() + 1000 * self.state.step)

    def _validation_due(self) -> bool:
        step, every = self.state.step, self.optimization.validation_steps or self.updates_per_epoch
        return self.state.validated_step < step and (step == self.steps or step % every == 0)

    def _checkpoint_due(self) -> bool:
        if self.state.step % self.optimization.checkpoint_steps == 0:
            return True
        if ranks.count() > 1 and self.state.step % self.log_steps:
            return False  # clocks differ, so the processes must ask one of them, and seldom
        age_s = 60 * self.optimization.checkpoint_minutes
        return ranks.on_first(lambda: time.monotonic() - self.saved_s >= age_s)

    def _updates(self, epoch: int) -> Iterator[list[Batch]]:
        """The micro-batches of each update of an epoch: this process's rows of them."""
        self.sampler.set_epoch(epoch)
        whole = BatchSampler(self.sampler, self.optimization.batch_size, drop_last=False)
        shares = [ranks.share(rows) for rows in whole]
        loaded = self._batches(self.pairs, [rows for rows, _ in shares])
        batches = iter(zip(loaded, shares, strict=True))
        while update := list(islice(batches, self.optimization.gradient_accumulation)):
            yield [self.on_device(batch if weight == 1 else _weighted(batch, weight)) for batch, (_, weight) in update]

    def _batches(self, pairs: TokenizedPairs, chosen: list[list[int]]) -> Iterator[Batch]:
        """Batches of the chosen pairs."""
        loader = DataLoader(
            pairs,
            batch_sampler=chosen,
            collate_fn=self.collate,
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
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
        """The batch on the module's device; the numbers of its rows stay, for messages."""
        return {
            name: tensor if name == "rows" else tensor.to(self.device, non_blocking=True)
            for name, tensor in batch.items()
        }

    def update(self, batches: list[Batch]) -> None:
        """One step of the optimizer.

        Raises:
            NashError: a loss is not finite, or the memory is full.
        """
        self.objective.module.train()
        fits = True
        try:
            self._update(batches)
        except torch.OutOfMemoryError:
            fits = False  # what the error holds on to is free again after this block
        if not fits:
            raise self._too_large(batches)

    def _update(self, batches: list[Batch]) -> None:
        update = self.update_of(batches)
        factor = rate_factor(self.optimization, self.state.step, self.steps)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate if group["constant_rate"] else rate * factor
        for batch in batches:
            self._backward(batch, update)
        if self.device.type == "cpu":
            self._check_losses()
        ranks.sum_gradients(self._parameters())
        self._clip()
        self.watcher.before_update(self)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.state.step += 1
        self.watcher.updated(self)

    def update_of(self, batches: list[Batch]) -> Update:
        """What the losses of these micro-batches need to know about their update."""
        sources = [batch["attention_mask"].sum() * batch.get("weight", 1) for batch in batches]
        targets = [(batch["labels"] != IGNORED).sum() * batch.get("weight", 1) for batch in batches]
        tokens = ranks.sum_of(torch.stack([torch.stack(sources).sum(), torch.stack(targets).sum()]))
        return Update(step=self.state.step, steps=self.steps, source_tokens=tokens[0], target_tokens=tokens[1])

    def _backward(self, batch: Batch, update: Update) -> None:
        loss = self.objective.loss(batch, update, self.autocast)
        weight = batch.get("weight", 1)
        torch.autograd.backward(loss.total * weight)
        value = loss.total.detach()
        self._unchecked.append((self.state.step, value, batch["rows"]))
        for name, part in {"loss": value, **loss.parts}.items():
            sum_so_far = self._sums.get(name)
            here = part.detach().double() * weight
            self._sums[name] = here if sum_so_far is None else sum_so_far + here
        self._newest |= {f"newest.{name}": newest.detach() for name, newest in loss.newest.items()}

    def _check_losses(self) -> None:
        """Look at the losses since the last time: at those of many updates at once if the host would have to wait."""
        unchecked, self._unchecked = self._unchecked, []
        values = torch.stack([value for _, value, _ in unchecked]).tolist() if unchecked else []
        for (step, _, batch_rows), value in zip(unchecked, values, strict=True):
            if not math.isfinite(value):
                rows = sorted(set(batch_rows.tolist()))
                named = ", ".join(map(str, rows[:_NAMED_ROWS])) + (", ..." if len(rows) > _NAMED_ROWS else "")
                what = f"the loss is {value} on a batch of {len(rows)} rows of the data ({named})"
                raise self._diverged(what, step)

    def _collect_figures(self) -> None:
        """Add what was summed on the devices of all processes to the figures of the next log entry."""
        self._check_losses()
        if not self._sums:
            return
        figures = self.state.figures
        totals = ranks.sum_of(torch.stack(list(self._sums.values()))).tolist()
        for name, total in zip(self._sums, totals, strict=True):
            figures[name] = figures.get(name, 0.0) + total
        figures |= {name: float(newest) for name, newest in self._newest.items()}
        self._sums, self._newest = {}, {}

    def _too_large(self, batches: list[Batch]) -> NashError:
        """The error for batches that do not fit into memory. What a smaller one needs is tried, moments included."""
        self._unchecked, self._sums = [], {}
        self.optimizer.zero_grad()
        largest = max(batches, key=lambda batch: batch["input_ids"].numel() + batch["labels"].numel())
        update = Update(
            step=self.state.step,
            steps=self.steps,
            source_tokens=largest["attention_mask"].sum(),
            target_tokens=(largest["labels"] != IGNORED).sum(),
        )

        def fits(rows: int) -> bool:
            part = {name: tensor[:rows] if tensor.ndim else tensor for name, tensor in largest.items()}
            try:
                moments = 0 if self.optimizer.state else 2
                reserved = [torch.empty_like(p) for p in self._parameters() for _ in range(moments)]
                self._backward(part, update)
                del reserved
            except torch.OutOfMemoryError:
                return False
            finally:
                self.optimizer.zero_grad()
            return True

        alone = ranks.count() == 1  # losses are computed together
        return too_large(
            self.device,
            self.optimization.batch_size,
            self.optimization.gradient_accumulation,
            fits if alone else None,
        )

    def _parameters(self) -> list[torch.nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _clip(self) -> None:
        """Clip only the weights: a gate's gradient has a different scale and must not shrink the weights' steps."""
        clipped = [p for group in self.optimizer.param_groups if not group["constant_rate"] for p in group["params"]]
        self.grad_norm = torch.nn.utils.clip_grad_norm_(clipped, self.optimization.max_grad_norm)

    def _log(self) -> None:
        """Log the means since the last entry. The losses of an update add up to its mean over tokens."""
        self._collect_figures()
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
        if self.live_log is not None and ranks.first():
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
        whole = BatchSampler(range(len(self.validation)), self.optimization.batch_size, drop_last=False)
        own = list(whole)[ranks.number() :: ranks.count()]
        nats: Tensor = torch.zeros((), dtype=torch.double, device=self.device)
        tokens = torch.zeros((), dtype=torch.long, device=self.device)
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            for number, batch in enumerate(map(self.on_device, self._batches(self.validation, own)), 1):
                logits_BTV = self.objective.validation_logits(batch, self.autocast)
                nats += losses.cross_entropy(logits_BTV, batch["labels"], 1)
                tokens += (batch["labels"] != IGNORED).sum()
                self.watcher.validating(number)
        loss, seconds = float(ranks.sum_of(nats) / ranks.sum_of(tokens)), time.perf_counter() - begun_s
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            score = self.score
            metrics = {} if score is None else ranks.on_first(lambda: self._metrics(score))
        with self.interrupts.held():
            self._compare(([] if score is None else [score.quality(metrics)]) + [-loss])
            self.state.validated_step = self.state.step
            self._enter(
                {
                    "eval_loss": loss,
                    "eval_runtime": seconds,
                    "eval_samples_per_second": len(self.validation) / seconds,
                    "eval_steps_per_second": len(own) / seconds,
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
        if self.optimization.keep_best and ranks.first():
            save_best(self.folder, self.objective.module, self.state)

    def _save(self) -> None:
        self._collect_figures()
        if not ranks.first():
            self.saved_step = self.state.step
            return
        # A phase also saves at its end: weights that are not finite neither replace good checkpoints nor get published.
        if not all(bool(parameter.isfinite().all()) for parameter in self.objective.module.parameters()):
            raise self._diverged("some weights are not finite")
        with self.interrupts.held():
            save_checkpoint(self.folder, self.objective.module, self.optimizer, self.state)
            self.saved_step, self.saved_s = self.state.step, time.monotonic()

    def _diverged(self, what: str, step: int | None = None) -> NashError:
        step = self.state.step if step is None else step
        return NashError(
            f"training diverged: {what} after step {step}; lower learning_rate or use "
            f'precision = "float32" (checkpoints of earlier steps are kept in {self.folder})'
        )


def _weighted(batch: Batch, weight: float) -> Batch:
    """A batch that every process has, of which each counts for its part."""
    return batch | {"weight": torch.tensor(weight)}


@contextmanager
def _fast_products(device: torch.device) -> Iterator[None]:
    """Within the block, products of float32 matrices on CUDA round their inputs to TF32.

    Training does not need more. The engine, which shares the process, computes as before outside of the block.
    """
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
