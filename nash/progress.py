"""Progress of long work on standard error: one live line a phase, or plain lines where that is no terminal."""

import time
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

_PLAIN_LINE_EVERY_S = 30.0


class TrainingProgress(TrainerCallback):
    """Shows step, time left and the newest logged figures (losses, sparsity) of a training phase."""

    def __init__(self, title: str, console: Console) -> None:
        self.title = title
        self.console = console
        self.bar: Progress | None = None
        self.last_line_s = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Draw the bar, from the step at which a resumed run goes on."""
        self.bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task(self.title, total=state.max_steps, completed=state.global_step, figures="")
        self.bar.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move the bar."""
        if self.bar is not None:
            self.bar.update(self.task, completed=state.global_step)

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
        if self.bar is None or "loss" not in figures:
            return
        text = " ".join(f"{name} {value:.4g}" for name, value in figures.items())
        self.bar.update(self.task, figures=text)
        now_s = time.monotonic()
        last = state.global_step >= state.max_steps
        if not self.console.is_terminal and (last or now_s - self.last_line_s >= _PLAIN_LINE_EVERY_S):
            self.last_line_s = now_s
            self.console.print(f"{self.title}: step {state.global_step}/{state.max_steps} {text}", soft_wrap=True)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the finished bar on the screen."""
        self.close()

    def close(self) -> None:
        """Stop drawing; also called when training ends in an error, or the terminal would stay without a cursor."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
