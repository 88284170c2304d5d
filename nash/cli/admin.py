"""`nash admin`: change what a running server has loaded, and how it divides its requests."""

import json
from typing import Annotated, Any

import typer

from nash.cli.output import JsonOption, print_json, result_console
from nash.errors import RequestError
from nash.remote.server import RemoteServer, in_path

app = typer.Typer(no_args_is_help=True, help="Steer a running server.")

ServerOption = Annotated[
    str, typer.Option("--server", envvar="NASH_SERVER_URL", metavar="URL", help="The server's address.")
]
KeyOption = Annotated[
    str | None,
    typer.Option("--api-key", envvar="NASH_API_KEY", help="A key with the scope admin, where the server has keys."),
]
DEFAULT_SERVER = "http://127.0.0.1:8000"


@app.command()
def load(
    model: Annotated[str, typer.Argument(metavar="REF[,key=value...]", help="As `nash serve --model` takes it.")],
    server: ServerOption = DEFAULT_SERVER,
    api_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Load one more model, and wait until it is ready."""
    row = RemoteServer.at(server, api_key).call("POST", "/models?wait=true", {"model": model})
    _tell(row, f"{row['ref']} is {row['state']} in {row['dtype']}", as_json=as_json)


@app.command()
def unload(
    ref: Annotated[str, typer.Argument(metavar="REF", help="As the server calls it: NAME@ALIAS or NAME:VERSION.")],
    server: ServerOption = DEFAULT_SERVER,
    api_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take no more requests for a model; it goes once it has answered those it has."""
    row = RemoteServer.at(server, api_key).call("DELETE", f"/models/{in_path(ref)}")
    _tell(row, f"{row['ref']} is {row['state']}", as_json=as_json)


@app.command()
def swap(
    ref: Annotated[str, typer.Argument(metavar="REF", help="As the server calls it: NAME@ALIAS.")],
    server: ServerOption = DEFAULT_SERVER,
    api_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Serve the version that the model's alias names now. No request fails."""
    done = RemoteServer.at(server, api_key).call("POST", f"/models/{in_path(ref)}/swap")
    what = "serves that version already" if done["old"] == done["new"] else f"serves {str(done['new'])[:12]} now"
    _tell(done, f"{ref} {what}", as_json=as_json)


@app.command()
def reload(
    ref: Annotated[str, typer.Argument(metavar="REF", help="As the server calls it: NAME@ALIAS or NAME:VERSION.")],
    keys: Annotated[
        str | None, typer.Option(metavar="key=value,...", help="How to load it, in place of the keys it has.")
    ] = None,
    server: ServerOption = DEFAULT_SERVER,
    api_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Load a model anew in its own place. No request fails."""
    body = None if keys is None else {"keys": keys}
    row = RemoteServer.at(server, api_key).call("POST", f"/models/{in_path(ref)}/reload", body)
    _tell(row, f"{row['ref']} is {row['state']} in {row['dtype']}", as_json=as_json)


@app.command()
def traffic(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A model, without alias or version.")],
    weights: Annotated[
        list[str] | None,
        typer.Option("--weight", metavar="VARIANT=NUMBER", help="A variant's share of the requests. Repeatable."),
    ] = None,
    shadow: Annotated[
        str | None,
        typer.Option(metavar="FROM:TO:FRACTION", help="Run this share of FROM's answers on TO too, in idle time."),
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Set nothing: requests go where `default` says.")] = False,
    server: ServerOption = DEFAULT_SERVER,
    api_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how a model's requests are divided, or divide them anew. What is not given stays as it is."""
    remote, path = RemoteServer.at(server, api_key), f"/models/{in_path(name)}/traffic"
    plan = remote.call("GET", path)
    if clear or weights or shadow:
        body: dict[str, Any] = {
            "weights": {} if clear else plan["weights"],
            "shadow": None if clear else plan["shadow"],
        }
        if weights:
            body["weights"] = dict(map(_weight, weights))
        if shadow:
            body["shadow"] = _shadow(shadow)
        plan = remote.call("PUT", path, body)
    if as_json:
        print_json(plan)
        return
    shares = ", ".join(f"{variant} {weight:g}" for variant, weight in plan["weights"].items())
    say = result_console().print
    say(f"{name}: {shares or 'no weights: requests go where the alias default says'}")
    if plan["shadow"] is not None:
        seen, told = plan["seen"], plan["shadow"]
        say(f"shadow: {told['fraction']:.3g} of the answers of {told['from']} on {told['to']} too")
        say(f"{seen['pairs']} pairs: {json.dumps(seen['agreement'])[1:-1]}; {seen['speedup'] or '-'} times as fast")


def _weight(text: str) -> tuple[str, float]:
    variant, _, number = text.partition("=")
    try:
        return variant, float(number)
    except ValueError:
        raise RequestError(f"--weight {text!r}: write VARIANT=NUMBER, as in pruned=10") from None


def _shadow(text: str) -> dict[str, Any]:
    parts = text.split(":")
    try:
        source, target, fraction = parts
        return {"from": source, "to": target, "fraction": float(fraction)}
    except ValueError:
        raise RequestError(f"--shadow {text!r}: write FROM:TO:FRACTION, as in dense:pruned:0.1") from None


def _tell(document: dict[str, Any], line: str, *, as_json: bool) -> None:
    if as_json:
        print_json(document)
    else:
        result_console().print(line)
