"""The progress of a training phase, told by transformers' Trainer."""

from typing import Any

from rich.console import Console
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from nash.run.progress import Stage


class TrainingProgress(TrainerCallback):
    """Shows step, time left and the newest logged figures (losses, sparsity) of a training phase."""

    def __init__(self, title: str, console: Console) -> None:
        self.title = title
        self.console = console
        self.stage: Stage | None = None
        self.figures = ""
        self.validated = 0  # batches of the validation that is under way

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin the stage, at the step at which a resumed run goes on."""
        stage = Stage(self.title, self.console, state.max_steps, done=state.global_step, unit="steps")
        self.stage = stage.__enter__()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move on."""
        self._show(state)

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say that it is the validation that takes time."""
        self.validated += 1
        self._show(state, f"validating, batch {self.validated}")

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Show the training's figures again."""
        self.validated = 0
        self._show(state)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the newest figures."""
        if logs is not None and "eval_loss" in logs:
            self.console.print(f"{self.title}: step {state.global_step}, validation loss {logs['eval_loss']:.4f}")
        figures = {k: v for k, v in (logs or {}).items() if k not in ("epoch", "grad_norm", "learning_rate")}
        if "loss" in figures:
            self.figures = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
            self._show(state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the finished stage on the screen."""
        self.close()

    def close(self) -> None:
        """End the stage; also called when training ends in an error."""
        if self.stage is not None:
            self.stage.__exit__(None, None, None)
            self.stage = None

    def _show(self, state: TrainerState, note: str | None = None) -> None:
        if self.stage is not None:
            self.stage.update(state.global_step, note=self.figures if note is None else note)
