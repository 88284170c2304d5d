"""The command line. Only the command that was asked for is imported, and it imports what it needs when it runs."""

import importlib
import sys
import traceback

import typer

from model_store.errors import InvalidRequestError, ModelStoreError
from nash import ranks
from nash.errors import NashError, RequestError
from server.engine.errors import EngineError

INTERRUPTED = 130  # as shells count SIGINT

_COMMANDS = (
    "init",
    "finetune",
    "prune",
    "sweep",
    "evaluate",
    "export",
    "bench",
    "serve",
    "generate",
    "admin",
    "rollout",
    "info",
    "loadtest",
    "demo",
    "models",
)

_GROUPS = {
    "models": "Publish, list, compare, move and remove stored models.",
    "admin": "Load, unload and swap a running server's models, and divide its requests.",
}


def build(command: str | None = None) -> typer.Typer:
    """The program with one of its commands; with all of them if it is not one that we know."""
    program = typer.Typer(
        name="nash",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        help="Prune encoder-decoder language models and serve them beside their dense originals.",
    )
    program.callback()(_options)
    for name in (command,) if command in _COMMANDS else _COMMANDS:
        module = importlib.import_module(f"nash.cli.{name}")
        if name in _GROUPS:
            program.add_typer(module.app, name=name, help=_GROUPS[name])
        else:
            settings = module.PASS_EVERYTHING if name == "loadtest" else None
            program.command(name, context_settings=settings)(module.command)
    return program


def _say_version(asked: bool) -> None:
    if asked:
        from nash.cli.info import installed

        print(f"nash {installed('nash') or 'source'}")
        raise typer.Exit


def _options(
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
    version: bool = typer.Option(False, "--version", is_eager=True, callback=_say_version, help="Print the version."),
) -> None:
    """What `main` itself looks at is declared here, for the help."""


def main() -> None:
    """Run the command line: 0 done, 1 the work failed, 2 the request was wrong, 130 interrupted."""
    debug = "--debug" in sys.argv
    asked = next((argument for argument in sys.argv[1:] if not argument.startswith("-")), None)
    try:
        build(asked)()
    except (NashError, ModelStoreError, EngineError) as error:
        if debug:
            traceback.print_exc()
        wrong = isinstance(error, RequestError | InvalidRequestError | EngineError)
        if ranks.first() or not wrong:  # what is wrong with a request, the first process says for all
            print(f"error: {_process()}{error}", file=sys.stderr)
        sys.exit(2 if wrong else 1)
    except OSError as error:  # a full disk, a folder without permission: no class of ours describes it better
        if debug:
            traceback.print_exc()
        print(f"error: {error.filename or 'the system'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(1)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            print("interrupted: nothing is left half done, and the same command resumes the work", file=sys.stderr)
        raise
    except Exception as error:  # noqa: BLE001  an unforeseen error also gets one line
        if debug:
            traceback.print_exc()
        print(f"error: {_process()}{_unforeseen(error)}", file=sys.stderr)
        sys.exit(1)


def _process() -> str:
    return "" if ranks.count() == 1 else f"process {ranks.number()} of {ranks.count()}: "


def _unforeseen(error: Exception) -> str:
    reason = " ".join(str(error).split())[:300]
    # PyTorch reports a lack of host memory by this text, and a lack of GPU memory by a class of its own.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate" in reason:
        return f"not enough memory ({reason}): lower the batch size or the lengths"
    return f"{type(error).__name__}: {reason} (this is a bug in nash; `nash --debug` before the command shows where)"
