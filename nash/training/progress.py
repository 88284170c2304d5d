"""Progress of a training phase on the console."""

from rich.console import Console

from nash.page.run_page import RunPage
from nash.run.live_log import CUT
from nash.run.progress import Stage
from nash.run.trackers import Trackers
from nash.training.phase import Phase, Watcher

_UNSHOWN = ("epoch", "step", "grad_norm", "learning_rate")  # of a log's entry
_CLOCK = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")


class TrainingProgress(Watcher):
    """Shows step, time left and the newest logged figures (losses, sparsity) of a training phase.

    It keeps the run's page up to date, if there is one, and passes the log on to trackers.
    """

    def __init__(
        self, title: str, console: Console, page: RunPage | None = None, trackers: Trackers | None = None
    ) -> None:
        self.title = title
        self.console = console
        self.page = page
        self.trackers = trackers
        self.stage: Stage | None = None
        self.step = 0
        self.figures = ""

    def begun(self, step: int, steps: int) -> None:
        """Begin the stage at the phase's first step, or at the step where a resumed run continues."""
        self.step = step
        if 0 < step < steps:
            self.console.print(f"{self.title}: resuming at step {step} of {steps}", soft_wrap=True)
        if self.page is not None:
            self.page.begin(self.title, steps)
        self.stage = Stage(self.title, self.console, steps, done=step, unit="steps").__enter__()

    def updated(self, phase: Phase) -> None:
        """Show the new step."""
        self.step = phase.state.step
        self._show(self.figures)

    def validating(self, batch: int) -> None:
        """Show that a validation is running."""
        self._show(f"validating, batch {batch}")

    def answering(self, rows: int) -> None:
        """Show that the model answers rows."""
        self._show(f"validating, answering {rows} rows")

    def logged(self, entry: dict[str, float]) -> None:
        """Show the newest figures."""
        if "eval_loss" in entry:
            metrics = {k: v for k, v in entry.items() if k not in (*_UNSHOWN, *_CLOCK, "eval_loss")}
            named = "".join(f", {k.removeprefix('eval_').replace('_', ' ')} {v:.2f} %" for k, v in metrics.items())
            line = f"{self.title}: step {self.step}, validation loss {entry['eval_loss']:.4f}{named}"
            self.console.print(line, soft_wrap=True)
        if "loss" in entry:
            shown = {k: v for k, v in entry.items() if k not in _UNSHOWN and not k.startswith(CUT)}
            self.figures = ", ".join(f"{name} {value:.4g}" for name, value in shown.items())
        self._show(self.figures)
        if self.trackers is not None:
            self.trackers.log(self.title, entry)
        if self.page is not None:
            self.page.refresh(older_than_s=10 if "eval_loss" in entry else 60)

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
