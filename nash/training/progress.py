"""Progress of a training phase on the console."""

from rich.console import Console

from nash.run.progress import Stage
from nash.training.phase import Phase, Watcher


class TrainingProgress(Watcher):
    """Shows step, time left and the newest logged figures (losses, sparsity) of a training phase."""

    def __init__(self, title: str, console: Console) -> None:
        self.title = title
        self.console = console
        self.stage: Stage | None = None
        self.step = 0
        self.figures = ""

    def begun(self, step: int, steps: int) -> None:
        """Begin the stage at the phase's first step, or at the step where a resumed run continues."""
        self.step = step
        self.stage = Stage(self.title, self.console, steps, done=step, unit="steps").__enter__()

    def updated(self, phase: Phase) -> None:
        """Show the new step."""
        self.step = phase.state.step
        self._show(self.figures)

    def validating(self, batch: int) -> None:
        """Show that a validation is running."""
        self._show(f"validating, batch {batch}")

    def logged(self, entry: dict[str, float]) -> None:
        """Show the newest figures."""
        if "eval_loss" in entry:
            self.console.print(f"{self.title}: step {self.step}, validation loss {entry['eval_loss']:.4f}")
        if "loss" in entry:
            shown = {k: v for k, v in entry.items() if k not in ("epoch", "step", "grad_norm", "learning_rate")}
            self.figures = ", ".join(f"{name} {value:.4g}" for name, value in shown.items())
        self._show(self.figures)

    def ended(self) -> None:
        """Leave the finished stage on the screen."""
        self.close()

    def close(self) -> None:
        """End the stage; this is also called when training ends with an error."""
        if self.stage is not None:
            self.stage.__exit__(None, None, None)
            self.stage = None

    def _show(self, note: str) -> None:
        if self.stage is not None:
            self.stage.update(self.step, note=note)
