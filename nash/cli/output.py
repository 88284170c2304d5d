"""What the commands share: options, and where progress and results go."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

StoreOption = Annotated[Path, typer.Option("--store", envvar="NASH_STORE", help="The model store's folder.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
DEFAULT_STORE = Path("store")


def progress_console() -> "Console":
    """Progress goes to standard error, so that standard output holds only the result."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False)


def result_console() -> "Console":
    """Results for people go to standard output."""
    from rich.console import Console

    return Console(highlight=False, markup=False)


def print_json(document: Any) -> None:
    """Print the command's one JSON document, in ASCII."""
    sys.stdout.write(json.dumps(document, indent=2, allow_nan=False) + "\n")
