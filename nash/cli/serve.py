"""`nash serve`: serve models side by side over HTTP."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from server.engine.interface.config import SETTINGS

OptionalStoreOption = Annotated[
    str | None,
    typer.Option(
        "--store", envvar="NASH_STORE", help="The model store: a folder or s3://BUCKET/PREFIX; default: store."
    ),
]


def command(
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="REF[,key=value...]",
            help=f"A variant to serve; repeat it. Keys: {', '.join(SETTINGS)}.",
        ),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; default: 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on, 0 for any that is free; default: 8000.")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="TOML file of settings; flags win over it.")] = None,
    api_keys: Annotated[Path | None, typer.Option(help="File of key hashes, a line each: SCOPE SHA256 [NAME].")] = None,
    allow_unauthenticated: Annotated[
        bool,
        typer.Option(
            "--allow-unauthenticated",
            help="Serve without keys beyond this machine, and answer to any Host and Origin.",
        ),
    ] = False,
    store: OptionalStoreOption = None,
) -> None:
    """Serve models with live metrics and a page that compares them. SIGINT and SIGTERM end it with 0."""
    extra = ["--api-keys", str(api_keys)] if api_keys else []
    if config is not None:
        extra += ["--config", str(config)]
    if allow_unauthenticated:
        extra.append("--allow-unauthenticated")
    replace_by_server(models=models or [], host=host, port=port, store=store, extra=extra)


def replace_by_server(
    *,
    models: Sequence[str],
    host: str | None,
    port: int | None,
    store: str | None,
    extra: Sequence[str] = (),
) -> NoReturn:
    """Become `python -m server`: signals then reach it directly, and no HTTP code is imported here."""
    arguments = [sys.executable, "-m", "server"]
    # Flags that are not given are left to the server: its file or its environment may set them.
    for flag, value in (("--host", host), ("--port", port), ("--store", store)):
        if value is not None:
            arguments += [flag, str(value)]
    for model in models:
        arguments += ["--model", model]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [*arguments, *extra])
