"""`nash generate`: answer the rows of a file without a server."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from nash.cli.output import DEFAULT_STORE, JsonOption, StoreOption, print_json, progress_console, result_console
from nash.recipes.recipe import MOST_COUNT


def command(
    model: Annotated[
        str, typer.Argument(metavar="PATH_OR_REF", help="A model directory, a model in the store, or hub:OWNER/NAME.")
    ],
    input_file: Annotated[
        Path, typer.Option("--input", metavar="FILE", help="JSON Lines, one object with the source a line.")
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", metavar="FILE", help="The same lines with generated_text. Called again, it goes on there."
        ),
    ],
    parameters: Annotated[
        str, typer.Option(metavar="JSON", help='As in requests: \'{"num_beams": 4, "max_new_tokens": 64}\'.')
    ] = "{}",
    source_column: Annotated[str, typer.Option("--source-column", help="The key of the sources.")] = "source",
    dtype: Annotated[
        str, typer.Option(help="A dtype, or auto: the fastest whose recorded quality holds, else float32.")
    ] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, or auto: CUDA if there is one.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the engine. Default: it chooses.")] = None,
    slots: Annotated[int, typer.Option(min=1, max=MOST_COUNT, help="Sequences that run at once.")] = 32,
    max_source_tokens: Annotated[int, typer.Option(min=1, max=MOST_COUNT, help="Longer sources are cut.")] = 512,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=MOST_COUNT, help="Longer answers are cut.")] = 256,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Answer every row of a file with a model, on the engine that serves. What was interrupted goes on."""
    from model_store.store import Store
    from nash.device import choose_device
    from nash.errors import RequestError
    from nash.generating.files import begun, read_input
    from server.engine.interface.config import EngineConfig

    given = _given(parameters)
    rows = read_input(input_file, source_column)
    done = begun(output, rows)

    from nash.checkpoints.opening import open_model
    from nash.generating.generate import check_given, generate
    from nash.modeling.folders import quiet_libraries
    from nash.run.progress import Stage
    from server.engine.dtype_choice import with_dtype

    check_given(given)
    quiet_libraries()
    if not output.parent.is_dir():
        raise RequestError(f"--output {output}: there is no folder {output.parent}")
    opened = Store(store)
    asked = EngineConfig(
        dtype=dtype,
        device=choose_device(device),
        threads=threads,
        slots=slots,
        max_source_tokens=max_source_tokens,
        max_new_tokens=max_new_tokens,
    )
    with open_model(model, opened) as found:
        known = () if found.version is None else opened.quality(found.version.ref)
        config, choice = with_dtype(asked, known)
        progress_console().print(f"{found.ref} on {config.device} in {choice.dtype} ({choice.why})", soft_wrap=True)
        with Stage(f"answering with {found.ref}", progress_console(), len(rows), unit="rows", done=done) as stage:
            generate(
                found.model,
                rows[done:],
                source_column,
                config,
                given,
                output,
                lambda count: stage.update(done + count),
            )
    if as_json:
        print_json({"ref": found.ref, "rows": len(rows), "answered": len(rows) - done, "output": str(output)})
        return
    before = f", {done} of them before" if done else ""
    result_console().print(f"{output}: {len(rows)} rows answered{before}", soft_wrap=True)


def _given(text: str) -> dict[str, Any]:
    from nash.errors import RequestError

    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"--parameters is not JSON: {error}") from None
    if not isinstance(given, dict):
        raise RequestError('--parameters is not an object: write one such as {"num_beams": 4}')
    return given
