"""One phase of training on transformers' Seq2SeqTrainer.

Checkpoints, resume and mixed precision are the Trainer's. What is ours: batches of like
lengths, the optimizer, and a loss whose gradient does not depend on the accumulation steps.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    PrinterCallback,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    TrainerState,
)

from model_store.model.config import spec_of
from model_store.model.spec import ModelSpec
from nash.data.examples import IGNORED, Collator, SimilarLengthSampler, TokenizedPairs
from nash.errors import NashError, RequestError
from nash.precision import choose_precision
from nash.recipes.recipe import OptimizationRecipe
from nash.run.disk import full_disk_named
from nash.training import losses
from nash.training.optimizer import MuonAdamW, parameter_groups

_NAMED_ROWS = 20  # of a batch, in an error
# The recipe's names to the Trainer's, whose own "constant" knows no warm-up.
_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


class FinetuneTrainer(Seq2SeqTrainer):
    """Minimises the task's cross-entropy; the pruning trainer builds on it."""

    # T5's forward takes **kwargs but ignores num_items_in_batch, so the Trainer would neither divide by the
    # accumulation steps nor leave it to the model: compute_loss below divides by the update's tokens itself.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: PreTrainedModel,
        pairs: TokenizedPairs,
        optimization: OptimizationRecipe,
        *,
        output_dir: Path,
        seed: int,
        validation: TokenizedPairs | None = None,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        """`validation` pairs have their loss logged after every epoch; nothing is trained on them."""
        spec = spec_of(model.config.to_dict())
        for each in [pairs] if validation is None else [pairs, validation]:
            check_tokens(each, spec)
        self.optimization = optimization
        self.pairs = pairs
        self.validation_sums: list[Tensor | float] = []  # nats and tokens of the validation that is under way
        super().__init__(
            model=model,
            args=_arguments(optimization, output_dir, seed, validated=validation is not None),
            data_collator=Collator(pad_id=model.config.pad_token_id),
            train_dataset=pairs,
            eval_dataset=validation,
            callbacks=list(callbacks),
        )
        self.remove_callback(PrinterCallback)  # the progress callback says the same, better

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return SimilarLengthSampler(self.pairs.lengths(), batch, self.args.seed)

    def optimizer_groups(self) -> list[dict[str, Any]]:
        """The parameter groups of the optimizer, each a dict as torch.optim takes them."""
        return parameter_groups(
            self.model,
            muon=self.optimization.optimizer == "muon",
            weight_decay=self.optimization.weight_decay,
        )

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Build the optimizer on first use."""
        if getattr(self, "optimizer", None) is None:
            self.optimizer = MuonAdamW(self.optimizer_groups(), lr=self.optimization.learning_rate)
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """The recipe's schedule for every parameter group but those that keep a constant rate."""
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        assert isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR)
        for i, group in enumerate(scheduler.optimizer.param_groups):
            if group["constant_rate"]:
                scheduler.lr_lambdas[i] = _constant
                group["lr"] = scheduler.base_lrs[i]  # a warm-up has set it for the first step already
        return scheduler

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        """Clip the weights alone: a gate's gradient has another scale and must not shrink the weights' steps."""
        clipped = [p for group in self.optimizer.param_groups if not group["constant_rate"] for p in group["params"]]
        norm: Tensor = self.accelerator.clip_grad_norm_(clipped, self.args.max_grad_norm)
        return norm

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Cross-entropy summed over real tokens, divided by the real tokens of the whole update."""
        outputs = model(**decoder_inputs(model, inputs))
        loss = losses.cross_entropy(outputs.logits, inputs["labels"], num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """One micro-batch, forward and backward.

        Raises:
            NashError: its loss is not finite; the weights stay as they were before it.
        """
        loss: Tensor = super().training_step(model, inputs, *args, **kwargs)
        if not bool(loss.isfinite()):
            rows = sorted(set(inputs["rows"].tolist()))
            named = ", ".join(map(str, rows[:_NAMED_ROWS])) + (", ..." if len(rows) > _NAMED_ROWS else "")
            raise self._diverged(f"the loss is {float(loss)} on a batch of {len(rows)} rows of the data ({named})")
        return loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The validation loss; leaves training's random numbers alone, for a run resumed at an epoch's end skips it."""
        with torch.random.fork_rng():
            metrics: dict[str, float] = super().evaluate(*args, **kwargs)
            return metrics

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The validation loss in nats a token; the Trainer's own is a mean of the batches' means."""
        self.validation_sums = [0.0, 0.0]
        output = super().evaluation_loop(*args, **kwargs)
        nats, tokens = self.validation_sums
        output.metrics["eval_loss"] = float(nats) / float(tokens)
        return output

    @torch.no_grad()
    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None, None]:
        """The validation loss of one batch: cross-entropy in nats a token."""
        inputs = self._prepare_inputs(inputs)
        logits_BTV = self.validation_logits(model, decoder_inputs(model, inputs))
        nats, tokens = losses.cross_entropy(logits_BTV, inputs["labels"], 1), (inputs["labels"] != IGNORED).sum()
        for i, value in enumerate((nats, tokens)):
            self.validation_sums[i] += value.double()
        return nats / tokens, None, None

    def validation_logits(self, model: nn.Module, feed: dict[str, Any]) -> Tensor:
        """Scores [B, T, V] of the model as it would be used now."""
        logits: Tensor = model(**feed).logits
        return logits

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # A phase saves at its end too: weights that are not finite neither push out good checkpoints nor get published.
        if not all(bool(parameter.isfinite().all()) for parameter in self.model.parameters()):
            raise self._diverged("some weights are not finite")
        super()._save_checkpoint(model, trial)

    def _diverged(self, what: str) -> NashError:
        return NashError(
            f"training went astray: {what} after step {self.state.global_step}; lower learning_rate or use "
            f'precision = "float32" (checkpoints of earlier steps are kept in {self.args.output_dir})'
        )


def check_tokens(pairs: TokenizedPairs, spec: ModelSpec) -> None:
    """Find tokens that the model has no embedding for, and targets that never end.

    Raises:
        RequestError: there are; the tokenizer is another model's, or puts no end token behind a text.
    """
    for texts, size in ((pairs.sources, spec.vocab_size), (pairs.targets, spec.target_vocab_size)):
        largest = max((token for ids in texts for token in ids), default=0)
        if largest >= size:
            raise RequestError(
                f"the tokenizer gives the token id {largest}, and the model has a vocabulary of {size}: they do not "
                "belong together (tokenizer_config.json may name another class than the model's)"
            )
    if pairs.targets and not any(spec.eos_id in ids for ids in pairs.targets):
        raise RequestError(
            f"the tokenizer puts the model's end token {spec.eos_id} behind no target, so no answer would ever end: "
            "give tokenizer.json a post-processor that does, or config.json the eos_token_id that it puts there"
        )


def decoder_inputs(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Any]:
    """A batch with the decoder's inputs in place of the labels, so that the model computes no loss of its own."""
    unwrapped: Any = getattr(model, "module", model)
    return {
        "input_ids": inputs["input_ids"],
        "attention_mask": inputs["attention_mask"],
        "decoder_input_ids": shift_right(inputs["labels"], unwrapped.config),
        "use_cache": False,
    }


def shift_right(labels_BT: Tensor, config: PreTrainedConfig) -> Tensor:
    """What the decoder reads to predict the labels: its start token, then the labels but the last; padding where none.

    The start token is the one that serving begins with, for every family (transformers turns mBART's labels around
    instead: the same where they end in their language, as mBART's tokenizer writes them).
    """
    shifted_BT = labels_BT.roll(1, dims=-1)
    shifted_BT[:, 0] = config.decoder_start_token_id
    return shifted_BT.masked_fill(shifted_BT == IGNORED, config.pad_token_id)


def _constant(step: int) -> float:
    return 1.0


def _arguments(
    optimization: OptimizationRecipe, output_dir: Path, seed: int, *, validated: bool
) -> Seq2SeqTrainingArguments:
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(output_dir),
        num_train_epochs=optimization.epochs,
        max_steps=optimization.max_steps or -1,
        per_device_train_batch_size=optimization.batch_size,
        gradient_accumulation_steps=optimization.gradient_accumulation,
        learning_rate=optimization.learning_rate,
        lr_scheduler_type=_SCHEDULES[optimization.schedule],
        warmup_steps=optimization.warmup_steps,
        max_grad_norm=optimization.max_grad_norm,
        bf16=choose_precision(optimization.precision).precision == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
        data_seed=seed,
        eval_strategy="epoch" if validated else "no",
        per_device_eval_batch_size=optimization.batch_size,
        prediction_loss_only=True,
        save_strategy="steps",
        save_steps=optimization.checkpoint_steps,
        save_total_limit=2,
        logging_strategy="steps",
        logging_steps=50,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to="none",
        remove_unused_columns=False,
        use_cache=True,  # of the model's saved config: false would make others' generate slow; training passes its own
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    # More GPUs than one would each run a copy of the model, without the hooks and masks that stand on this one.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end, or None. A kill while saving leaves one that was not."""

    def step(path: Path) -> int:
        return int(path.name.removeprefix("checkpoint-"))

    for path in sorted(folder.glob("checkpoint-[0-9]*"), key=step, reverse=True):
        try:
            # The Trainer writes its state last.
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return path
    return None


def train(trainer: FinetuneTrainer) -> list[dict[str, float]]:
    """Run the phase to its end, from its last whole checkpoint if there is one; return the log's entries."""
    folder = Path(str(trainer.args.output_dir))
    checkpoint = last_checkpoint(folder)
    state = None if checkpoint is None else TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    if state is not None and state.global_step >= state.max_steps:
        # Going on from a phase's end, the Trainer would take one step more.
        trainer._load_from_checkpoint(str(checkpoint))
        trainer.state = state
    else:
        # A checkpoint is the weights and the optimizer's two moments; the one before it goes after it is written.
        checkpoint_bytes = 3 * sum(parameter.nbytes for parameter in trainer.model.parameters())
        folder.mkdir(parents=True, exist_ok=True)
        with full_disk_named(folder, checkpoint_bytes):
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return [entry for entry in trainer.state.log_history if "loss" in entry or "eval_loss" in entry]


def write_log(path: Path, log: list[dict[str, float]]) -> None:
    """Keep a phase's log, one JSON object a line."""
    path.write_text("".join(json.dumps(entry) + "\n" for entry in log), encoding="utf-8")
