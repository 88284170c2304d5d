"""`nash sweep`: many shapes of one model, and the frontier of quality and speed."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from nash.cli.output import (
    DEFAULT_STORE,
    DeviceOption,
    JsonOption,
    StoreOption,
    print_json,
    progress_console,
    result_console,
)

_PACKAGES = ("matplotlib", "jinja2")


def command(
    recipe_file: Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML file.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="The sweep's folder; a repeated call resumes the sweep.")
    ] = None,
    publish: Annotated[
        str | None,
        typer.Option("--publish", metavar="none|frontier|all", help="The points to publish, each under its id."),
    ] = None,
    remeasure: Annotated[
        bool, typer.Option("--remeasure", help="Measure the speed of all points again, on a quieter machine.")
    ] = False,
    device: DeviceOption = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Prune a model to every shape, seed and method of a recipe, and draw quality against speed."""
    from model_store.store import Store
    from nash.errors import NashError
    from nash.preflight import check_sweep
    from nash.recipes.sweep import read_sweep

    recipe, points = read_sweep(recipe_file, {} if publish is None else {"publish": publish})
    if device is not None:
        points = [replace(point, recipe=point.recipe.model_copy(update={"device": device})) for point in points]
    missing = [package for package in _PACKAGES if importlib.util.find_spec(package) is None]
    if missing:  # say now, not after hours of training, that there is nothing to draw with
        raise NashError(
            f'{", ".join(missing)} not installed: run pip install -c constraints.txt -e ".[sweep]" '
            "in the project's folder"
        )
    folder = out or Path("runs") / recipe_file.stem
    points = check_sweep(recipe, points, folder, Store(store))

    from nash.modeling.folders import quiet_libraries
    from nash.sweep.page import HTML_FILE
    from nash.sweep.sweep import sweep

    quiet_libraries()
    console = progress_console()
    report = sweep(recipe, points, folder, Store(store), console, remeasure=remeasure)
    if as_json:
        print_json(report.document())
    else:
        result_console().print(report.table())
    if report.warning is not None:
        console.print(f"warning: {report.warning}", soft_wrap=True)
    console.print(f"report: {folder / HTML_FILE}", soft_wrap=True)
    if report.failures:
        failed = ", ".join(failure.id for failure in report.failures)
        raise NashError(f"{len(report.failures)} of {len(points)} points failed and may be tried again: {failed}")
