"""A run's figures in the programs with which teams follow their trainings, through Accelerate's trackers."""

import importlib.util
import json
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from nash import ranks
from nash.errors import NashError, RequestError
from nash.recipes.recipe import FinetuneRecipe, PruneRecipe, TrackerKind, dotted
from nash.run.folder import RunFolder
from nash.run.lineage import portable

if TYPE_CHECKING:  # it imports torch
    from accelerate.tracking import GeneralTracker

IDS = "trackers.json"  # in the run's folder: what each tracker calls the run, so that a resumed run is no second one


def check_trackers(kinds: Sequence[TrackerKind]) -> None:
    """Refuse trackers whose package is missing.

    Raises:
        RequestError: one is.
    """
    for kind in kinds:
        if importlib.util.find_spec(kind) is None:
            raise RequestError(f"report_to names {kind}, which is not installed: run pip install 'nash[{kind}]'")


class Trackers:
    """Passes a run's log entries on, named by their phase: `final/loss`.

    A tracker is no reason for a run to fail: an error while one is told something is said once, and ends that tracker.
    """

    def __init__(self, trackers: dict[TrackerKind, "GeneralTracker"], console: Console) -> None:
        self._trackers = trackers
        self._console = console

    def log(self, phase: str, entry: dict[str, float]) -> None:
        """Pass on an entry of a phase's log."""
        step = int(entry["step"])
        figures = {f"{phase}/{name}": value for name, value in entry.items()}
        # W&B drops a step below one that it has seen, and each phase counts from 0.
        self._each(lambda kind, tracker: tracker.log(figures, step=None if kind == "wandb" else step))

    def finish(self) -> None:
        """Close all."""
        self._each(lambda _, tracker: tracker.finish())

    def describe(self, recipe: dict[str, Any]) -> None:
        """Pass on the recipe, as the run's configuration."""
        flat = {key: value if isinstance(value, bool | int | float) else str(value) for key, value in dotted(recipe)}

        def tell(kind: TrackerKind, tracker: "GeneralTracker") -> None:
            if kind == "tensorboard":  # its own form makes a second run of each configuration
                tracker.log({"recipe": f"```\n{json.dumps(recipe, indent=2)}\n```"}, step=0)
            else:
                tracker.store_init_configuration(flat)

        self._each(tell)

    def _each(self, tell: "Callable[[TrackerKind, GeneralTracker], None]") -> None:
        for kind, tracker in list(self._trackers.items()):
            try:
                tell(kind, tracker)
            except Exception as error:  # noqa: BLE001  whatever it is, training is worth more than its chart
                del self._trackers[kind]
                what = " ".join(f"{type(error).__name__}: {error}".split())
                self._console.print(f"{kind} is no longer reported to: {what}", soft_wrap=True)


@contextmanager
def trackers_of(
    recipe: FinetuneRecipe | PruneRecipe,
    run: RunFolder,
    project: str,
    title: str,
    console: Console,
    *,
    done: bool = False,
) -> Iterator[Trackers]:
    """The trackers that a recipe reports to, while the block trains a run; the first process's alone.

    `project` groups runs where a tracker does, unless the tracker's own environment variable names another; `title` is
    what the run is called. A run that is `done` has nothing to report.

    Raises:
        NashError: a tracker does not start.
    """
    if done or not recipe.report_to or not ranks.first():
        yield Trackers({}, console)
        return
    ids: dict[str, str] = run.read_json(IDS) or {}
    running: dict[TrackerKind, GeneralTracker] = {}
    trackers = Trackers(running, console)
    try:
        for kind in recipe.report_to:
            try:
                running[kind] = _started(kind, run.path, project, title, ids)
            except Exception as error:
                what = " ".join(f"{type(error).__name__}: {error}".split())
                raise NashError(f"{kind} does not start ({what}): set it up, or leave it out of report_to") from error
        run.write_json(IDS, ids)
        trackers.describe(portable(recipe))
        yield trackers
    finally:
        trackers.finish()


def _started(kind: TrackerKind, folder: Path, project: str, title: str, ids: dict[str, str]) -> "GeneralTracker":
    """A tracker that goes on with the run that `ids` names, or with a new one, which is noted there."""
    from accelerate import tracking

    tracker: GeneralTracker
    if kind == "tensorboard":
        tracker = tracking.TensorBoardTracker(kind, folder)
    elif kind == "mlflow":
        tracker = tracking.MLflowTracker(project, run_id=ids.get(kind), run_name=title)
    elif kind == "wandb":
        own = ids.setdefault(kind, uuid.uuid4().hex)
        named = os.environ.get("WANDB_PROJECT", project)
        tracker = tracking.WandBTracker(named, name=title, id=own, resume="allow", dir=str(folder))
    else:
        own = ids.setdefault(kind, f"{title}-{uuid.uuid4().hex[:8]}")
        tracker = tracking.TrackioTracker(os.environ.get("TRACKIO_PROJECT", project), name=own, resume="allow")
    tracker.start()
    if kind == "mlflow":
        ids[kind] = tracker.tracker.info.run_id
    return tracker
