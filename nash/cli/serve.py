"""`nash serve`: serve models side by side over HTTP."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from nash.cli.output import DEFAULT_STORE, StoreOption


def command(
    models: Annotated[
        list[str],
        typer.Option(
            "--model",
            metavar="REF[,key=value...]",
            help="A variant to serve; repeat it. Keys: dtype, device, threads, slots, max_source_tokens, "
            "max_new_tokens.",
        ),
    ],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on, 0 for any that is free.")] = 8000,
    api_keys: Annotated[Path | None, typer.Option(help="File of key hashes, a line each: SCOPE SHA256 [NAME].")] = None,
    allow_unauthenticated: Annotated[
        bool,
        typer.Option(
            "--allow-unauthenticated",
            help="Serve without keys beyond this machine, and answer to any Host and Origin.",
        ),
    ] = False,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Serve models with live metrics and a page that compares them. SIGINT and SIGTERM end it with 0."""
    extra = ["--api-keys", str(api_keys)] if api_keys else []
    if allow_unauthenticated:
        extra.append("--allow-unauthenticated")
    replace_by_server(models=models, host=host, port=port, store=store, extra=extra)


def replace_by_server(
    *, models: Sequence[str], host: str, port: int, store: Path, extra: Sequence[str] = ()
) -> NoReturn:
    """Become `python -m server`: signals then reach it directly, and nothing of HTTP is imported here."""
    arguments = [sys.executable, "-m", "server", "--host", host, "--port", str(port), "--store", str(store)]
    for model in models:
        arguments += ["--model", model]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [*arguments, *extra])
