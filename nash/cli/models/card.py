"""`nash models card`: a version's card for the Hugging Face hub."""

from pathlib import Path
from typing import Annotated

import typer

from nash.cli.models.shared import RefArgument, open_store, say
from nash.cli.output import DEFAULT_STORE, JsonOption, StoreOption, print_json


def card(
    ref: RefArgument,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="A new file, usually README.md.")],
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Write a version's model card: its shape, quality, speed and origin, with the hub's metadata block."""
    from nash.model_card import model_card
    from nash.run.folder import check_new_file

    opened = open_store(store)
    version = opened.resolve(ref)
    check_new_file(out, "--out")
    out.write_text(model_card(version, opened.parent_of(version), opened.records(version.ref)), encoding="utf-8")
    if as_json:
        print_json({"path": str(out.absolute())})
        return
    say(f"the card of {version.ref} is in {out}")
