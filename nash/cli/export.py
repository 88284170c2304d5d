"""`nash export`: a model as a directory of its own, for other programs."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from nash.cli.output import DEFAULT_STORE, JsonOption, StoreOption, print_json, result_console


def command(
    model: Annotated[str, typer.Argument(metavar="REF", help="A model in the store, or a model directory.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="A folder that does not exist yet, or is empty.")],
    form: Annotated[
        Literal["hf", "hf-dense"],
        typer.Option(
            "--format",
            help="hf: as it is, for transformers after `import nash`; hf-dense: a stock checkpoint with the same "
            "logits and layers as large as the dense model's, for any program that reads stock checkpoints.",
        ),
    ] = "hf",
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Write a model to a folder, as it is or as a stock checkpoint."""
    from model_store.store import Store
    from nash.preflight import check_export

    check_export(model, out, Store(store))

    from nash.checkpoints.opening import open_model
    from nash.model_card import model_card
    from nash.modeling.export import export
    from nash.modeling.folders import quiet_libraries

    quiet_libraries()
    opened = Store(store)
    with open_model(model, opened) as resolved:
        version = resolved.version
        card = None
        if version is not None:
            card = model_card(version, opened.parent_of(version), opened.records(version.ref), stock=form == "hf-dense")
        export(resolved.model, form, out, card)
    if as_json:
        print_json({"path": str(out.absolute())})
    else:
        result_console().print(f"{resolved.ref} is in {out.absolute()}", markup=False, soft_wrap=True)
