"""What the commands share: options, and where progress and results go. Of several processes, the first one speaks."""

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nash import ranks

if TYPE_CHECKING:
    from rich.console import Console

    from nash.dry_run.run_plan import RunPlan

StoreOption = Annotated[
    str, typer.Option("--store", envvar="NASH_STORE", help="The model store: a folder, or s3://BUCKET/PREFIX.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
DeviceOption = Annotated[
    str | None,
    typer.Option("--device", help="cpu, cuda, cuda:1, or auto: CUDA if there is one. Default: the recipe's."),
]
ReportToOption = Annotated[
    list[str] | None,
    typer.Option("--report-to", help="Let tensorboard, wandb, mlflow or trackio follow the training. Repeatable."),
]
DEFAULT_STORE = "store"


def progress_console() -> "Console":
    """Progress goes to standard error, so that standard output holds only the result."""
    from rich.console import Console

    return Console(quiet=not ranks.first(), stderr=True, highlight=False, markup=False)


def result_console() -> "Console":
    """Results for people go to standard output."""
    from rich.console import Console

    return Console(quiet=not ranks.first(), highlight=False, markup=False)


def print_json(document: Any) -> None:
    """Print the command's one JSON document, in ASCII."""
    if ranks.first():
        sys.stdout.write(json.dumps(document, indent=2, allow_nan=False) + "\n")


def print_plan(plan: "RunPlan", *, as_json: bool) -> None:
    """What `--dry-run` found."""
    if as_json:
        print_json(plan.document())
        return
    for line in plan.lines():
        result_console().print(line, soft_wrap=True)
    result_console().print("nothing was trained or written: run the same command without --dry-run", soft_wrap=True)
