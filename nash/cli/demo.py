"""`nash demo`: prune the shipped example model on real data and serve it beside its dense original."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from nash.cli.output import DEFAULT_STORE, JsonOption, StoreOption, print_json, progress_console, result_console

EXAMPLE = Path("examples/g2p")
RECIPE = EXAMPLE / "demo" / "prune.toml"


def command(
    serve: Annotated[bool, typer.Option("--serve/--no-serve", help="Serve both models at the end.")] = True,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port to listen on, 0 for any that is free.")
    ] = 8000,
    out: Annotated[Path, typer.Option("--out", help="The run's folder; a repeated call resumes the demo.")] = Path(
        "runs/demo"
    ),
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Prune the example's dense model in a few minutes, publish both, print the table, serve both."""
    from model_store.store import Store
    from nash.errors import RequestError
    from nash.preflight import check_prune
    from nash.recipes.recipe import PruneRecipe, read_recipe
    from nash.run.progress import Stage, duration

    if not RECIPE.is_file():
        raise RequestError(f"{RECIPE} is not here: run `nash demo` in the project's folder")
    console, started_s = progress_console(), time.monotonic()
    if not (EXAMPLE / "data" / "tokenizer" / "tokenizer.json").is_file():
        with Stage("writing the example's data from the CMU Pronouncing Dictionary", console):
            subprocess.run([sys.executable, str(EXAMPLE / "prepare.py")], check=True, stdout=sys.stderr)
    recipe = check_prune(read_recipe(PruneRecipe, RECIPE), out, Store(store))

    with Stage("loading PyTorch and transformers", console):
        from nash.cli.serve import replace_by_server
        from nash.modeling.folders import quiet_libraries
        from nash.pruning.prune import prune

        quiet_libraries()
    report = prune(recipe, out, Store(store), console)
    console.print(f"the demonstration took {duration(time.monotonic() - started_s)}")
    if as_json:
        print_json(report.document())
    else:
        result_console().print(report.table())
    if serve:
        replace_by_server(models=[report.dense_ref, report.ref], host=host, port=port, store=store)
